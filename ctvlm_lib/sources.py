"""Profile ``paper``: where a user's copies of the data sets and weights lie, and what is run on them; a TOML file.

    [data]                              # folders; a part that is left out isn't run
    ct_rate = "/data/CT-RATE"
    radgenome = "/data/RadGenome-ChestCT"
    m3d = "/data/M3D"
    rex_grounding = "/data/CT-RATE"     # ReXGroundingCT's dataset.json and masks, beside CT-RATE's volumes
    totalsegmentator = ""               # labels of those scans; "" takes CT-RATE's own, below rex_grounding
    abdomen_atlas = "/data/AbdomenAtlas3.0Mini"
    [weights]                           # folders, files, or repositories of the model hub; these are the defaults
    two_towers = "MagicXin/DCFormer_SigLIP"
    text = "medicalai/ClinicalBERT"
    med3dvlm = "MagicXin/Med3DVLM-Qwen-2.5-7B"
    cxr_bert = "microsoft/BiomedVLP-CXR-BERT-specialized"
    bert_score = "roberta-large"        # "" leaves BERTScore out
    tokenizer = "Qwen/Qwen3-4B"         # of U-VLM's decoder; only files that are on this machine are read
    radbert = ""                        # CT-CLIP's RadBertClassifier.pth; "" reads labels from reports by key words
    radbert_backbone = "zzxslp/RadBERT-RoBERTa-4m"
    [decoders]
    "0.5B" = "Qwen/Qwen2.5-0.5B-Instruct"
    "Qwen3-4B" = "Qwen/Qwen3-4B"        # of uvlm-…-lora arms, with its tokenizer
    [run]
    arms = ["m3d-none-released", "radgenome-none-0.5B", "radgenome-contour-0.5B"]
    pretraining = {epochs = 0}          # only scores two_towers; {} trains new ones by the paper's recipe
    finetuning = {}                     # fields of ctvlm_lib.vlm.finetune.Finetuning
    alignment = {}                      # fields of ctvlm_lib.alignment.radgenome_recipe.OnRadGenome, for align-… arms
    uvlm = {}                           # fields of ctvlm_lib.experiments.uvlm_real_options.OnReal, for uvlm-… arms,
                                        # and tables of such for one stage: segmentation, classification, report
    prepared = ""                       # folder for their volumes as the encoder reads them, 20 MB each; "" keeps none,
                                        # which uvlm-… arms, 25 MB each, don't do without
    patients = 0                        # fewer of each split, for a trial; 0 takes all

A path that isn't absolute is looked for below the folder of the file. ``ctvlm run --profile paper --sources FILE``
hands the file to the notebooks, ``ctvlm arm`` and ``ctvlm table`` take it as well.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from ctvlm_lib.damaged import NOT_TOML
from ctvlm_lib.errors import BadInput

VARIABLE = "CTVLM_SOURCES"  # by which the file reaches notebooks
DECODERS = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B")}
QWEN3 = "Qwen3-4B"  # U-VLM's, with LoRA
_PRETRAINED = DECODERS | {QWEN3: f"Qwen/{QWEN3}"}
_TABLES = {
    "data": ("ct_rate", "radgenome", "m3d", "rex_grounding", "totalsegmentator", "abdomen_atlas"),
    "weights": ("two_towers", "text", "med3dvlm", "cxr_bert", "bert_score", "tokenizer", "radbert",
                "radbert_backbone"),
    "run": ("arms", "pretraining", "finetuning", "alignment", "uvlm", "prepared", "patients", "variant",
            "size_dhw_vox"),
}  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """What a user has.

    Attributes:
        ct_rate, radgenome, m3d, rex_grounding, totalsegmentator, abdomen_atlas: folders of data sets, "" for one that
            isn't there.
        two_towers: DCFormer and text tower. text: the text tower's configuration and tokenizer. med3dvlm: the whole
            model, with its tokenizer. cxr_bert: the text tower of alignment on RadGenome-ChestCT. bert_score: the model
            behind BERTScore, "" for none. tokenizer: of U-VLM's decoder. radbert, radbert_backbone: what reads labels
            from reports, see :mod:`ctvlm_lib.evaluate.radbert`, "" for none.
        decoders: size of Qwen2.5, or QWEN3 → language model in the hub's layout.
        arms: of :mod:`ctvlm_lib.experiments.real_arms` that a notebook runs.
        pretraining: options of ``ctvlm arm dcformer-siglip-m3d``. finetuning: fields that an arm has otherwise.
        alignment, uvlm: fields that an ``align-…`` or a ``uvlm-…`` arm has otherwise. prepared: where their volumes
            are kept as the encoder reads them, "" for nowhere.
        patients: the first so many of each split; 0 takes all.
        variant: of DCFormer. size_dhw_vox: that volumes are brought to.
    """

    ct_rate: str = ""
    radgenome: str = ""
    m3d: str = ""
    rex_grounding: str = ""
    totalsegmentator: str = ""
    abdomen_atlas: str = ""
    two_towers: str = "MagicXin/DCFormer_SigLIP"
    text: str = "medicalai/ClinicalBERT"
    med3dvlm: str = "MagicXin/Med3DVLM-Qwen-2.5-7B"
    cxr_bert: str = "microsoft/BiomedVLP-CXR-BERT-specialized"
    bert_score: str = "roberta-large"
    tokenizer: str = "Qwen/Qwen3-4B"
    radbert: str = ""
    radbert_backbone: str = "zzxslp/RadBERT-RoBERTa-4m"
    decoders: Mapping[str, str] = field(default_factory=lambda: dict(_PRETRAINED))
    arms: tuple[str, ...] = ()
    pretraining: Mapping = field(default_factory=lambda: {"epochs": 0})
    finetuning: Mapping = field(default_factory=dict)
    alignment: Mapping = field(default_factory=dict)
    uvlm: Mapping = field(default_factory=dict)
    prepared: str = ""
    patients: int = 0
    variant: str = "small"
    size_dhw_vox: tuple[int, int, int] = (128, 256, 256)

    def folder(self, data: str) -> str:
        """Folder of a data set.

        Raises:
            BadInput: none is named.
        """
        if not getattr(self, data):
            raise BadInput(f"no copy of {data} is named; write its folder into the sources file: [data] {data} = …")
        return getattr(self, data)

    def otherwise(self) -> tuple[str, ...]:
        """What an arm is run with otherwise than the papers say: its numbers stand in the ledger with this remark."""
        usual = Sources()
        sizes = (
            name for name in ("patients", "variant", "size_dhw_vox") if getattr(self, name) != getattr(usual, name)
        )
        return (*sizes, *self.finetuning)


def check_profile(path: str | Path | None, profile: str) -> None:
    """Raise BadInput if a sources file is given outside of profile paper, where it would be left unread."""
    if path and profile != "paper":
        raise BadInput("--sources belongs to --profile paper; give both, or neither")


def load(path: str | Path = "") -> Sources:
    """Read a sources file.

    Args:
        path: of the file; empty takes the one that ``$CTVLM_SOURCES`` names.

    Raises:
        BadInput: none is named, it can't be read, or it names what there isn't.
    """
    path = str(path) or os.environ.get(VARIABLE, "")
    if not path:
        raise BadInput(
            "profile paper needs a file that says where your data and weights lie; give it with --sources FILE"
            " (ctvlm_lib/sources.py shows one)"
        )
    path = Path(path).expanduser()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}; give the sources file with --sources FILE") from None
    except NOT_TOML as error:
        raise BadInput(f"{path.name} isn't TOML: {error}") from None
    decoders = _of(content.pop("decoders", {}), tuple(_PRETRAINED), f"{path.name} [decoders]")
    found = {"decoders": _PRETRAINED | decoders}
    unknown = [name for name in content if name not in _TABLES]
    if unknown:
        raise BadInput(f"{path.name} has a part [{unknown[0]}]; it may have {', '.join((*_TABLES, 'decoders'))}")
    for part, names in _TABLES.items():
        found |= _of(content.get(part, {}), names, f"{path.name} [{part}]")
    return _absolute(_typed(found, path.name), path.resolve().parent)


def _of(table: object, names: tuple[str, ...], where: str) -> dict:
    if not isinstance(table, dict):
        raise BadInput(f"{where} is {table!r}; a table with some of {', '.join(names)} is expected")
    unknown = [name for name in table if name not in names]
    if unknown:
        raise BadInput(f"{where} has {unknown[0]!r}; it may have {', '.join(names)}")
    return table


def _typed(found: dict, name: str) -> Sources:
    """Lists as tuples; a value of another type than the default's is refused."""
    usual, made = asdict(Sources()), {}
    for what, value in found.items():
        value = tuple(value) if isinstance(value, list) else value
        if type(value) is not type(usual[what]):
            raise BadInput(f"{name}: {what} is {value!r}; {type(usual[what]).__name__} is expected")
        made[what] = value
    return Sources(**made)


def _absolute(given: Sources, home: Path) -> Sources:
    """Paths below the file's folder as whole paths; names of the hub's repositories stay."""

    def whole(value: str) -> str:
        there = home / Path(value).expanduser()
        return str(there) if value and there.exists() else value

    usual = Sources()
    if given.prepared:  # a folder that is made where it isn't there yet
        given = replace(given, prepared=str(home / Path(given.prepared).expanduser()))
    paths = [f.name for f in fields(Sources) if isinstance(getattr(usual, f.name), str) and f.name != "variant"]
    for data in _TABLES["data"]:
        if getattr(given, data) and not Path(whole(getattr(given, data))).is_dir():
            raise BadInput(f"[data] {data} is {getattr(given, data)!r}, and no folder is there; correct the path")
    return replace(given, **{name: whole(getattr(given, name)) for name in paths},
                   decoders={size: whole(one) for size, one in given.decoders.items()})  # fmt: skip
