"""The text tower: a pretrained BERT that stays as it is, its embeddings kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from ctvlm_lib import assets
from ctvlm_lib.errors import BadInput, atomic_path

TOWERS = {  # name: (where the weights lie, how they are pooled)
    "minilm": ("asset minilm", "mean"),
    "clinicalbert": ("medicalai/ClinicalBERT", "cls"),  # Med3DVLM takes token 0
    "cxrbert": ("microsoft/BiomedVLP-CXR-BERT-specialized", "cls"),  # MedVista3D's and CT-CLIP's
}
CXR_BERT = "cxr-bert"  # its model type: a BERT whose own code isn't needed to read it
POOLS = ("mean", "cls")


class TextTower:
    """Texts to vectors, each text computed once and then read from the cache.

    Args:
        name: "minilm", the workbook's asset; or in profile ``paper`` "clinicalbert" or any repository of the model hub.
        profile: quick, full or paper.
        pool: "mean" over the tokens or "cls" (token 0); None takes what the tower was trained with.
        cache: folder for embeddings; None takes the workbook's cache.
        device: that texts are computed on.

    Raises:
        BadInput: a hub outside profile ``paper``, or an unknown pool.
    """

    def __init__(self, name: str = "minilm", profile: str = "quick", pool: str | None = None, cache=None,
                 device: str | torch.device = "cpu"):  # fmt: skip
        where, usual = TOWERS.get(name, (name, "cls"))
        self.name, self.pool = name, pool or usual
        if self.pool not in POOLS:
            raise BadInput(f"a text is pooled by one of {', '.join(POOLS)}, got {self.pool!r}")
        if name != "minilm" and profile != "paper":
            raise BadInput(
                f"text tower {name!r} lies on a model hub, which is asked only in profile paper; take 'minilm'"
            )
        self._where = assets.path("minilm") if name == "minilm" else where
        self._folder = (assets.cache_dir() if cache is None else Path(cache)) / "embeddings"
        self._loaded, self._device = None, device
        self.too_long: dict[str, int] = {}

    @property
    def limit(self) -> int:
        """Largest number of tokens, special ones included."""
        return int(self._network()[1].config.max_position_embeddings)

    def embed(self, texts: Sequence[str], cut: bool = False, batch: int = 16) -> torch.Tensor:
        """Vectors of texts.

        Args:
            texts: any number, the same text as often as you like.
            cut: take only the first tokens of a text that is too long, and count it in ``too_long``.
            batch: texts computed at a time; no result depends on it beyond rounding.

        Returns:
            float32 ``(len(texts), channels)``, not normalised.

        Raises:
            BadInput: an empty text, or one that is too long and may not be cut.
        """
        empty = [k for k, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if empty:
            raise BadInput(
                f"{len(empty)} of {len(texts)} texts are empty, the first is number {empty[0]}; leave it out"
            )
        if not texts:
            raise BadInput("there is no text to embed; give at least one")
        different = list(dict.fromkeys(texts))
        file = self._folder / f"{self._key(different, cut)}.safetensors"
        vectors, self.too_long = _stored(file, len(different))
        if vectors is None:
            vectors = self._computed(different, cut, batch)
            with atomic_path(file) as partial:
                save_file({"vectors": vectors}, partial, {"too_long": json.dumps(self.too_long)})
        at = {text: k for k, text in enumerate(different)}
        return torch.from_numpy(vectors[[at[text] for text in texts]])

    @property
    def identity(self) -> tuple[str, str, str]:
        """What vectors depend on besides the texts: the tower's name, what tells its weights, how they are pooled."""
        minilm = self.name == "minilm"
        return (
            self.name, str(assets.about("minilm")["members"][1]["sha256"]) if minilm else _stamp(self._where), self.pool
        )  # fmt: skip

    def _key(self, texts: list[str], cut: bool) -> str:
        return hashlib.sha256(json.dumps([*self.identity, cut, texts]).encode()).hexdigest()[:24]

    def _network(self):
        if self._loaded is None:
            tokenizer, network = text_network(self._where)
            self._loaded = tokenizer, network.eval().requires_grad_(False).to(self._device)
        return self._loaded

    def _computed(self, texts: list[str], cut: bool, batch: int) -> np.ndarray:
        tokenizer, network = self._network()
        lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        self.too_long = {text: n for text, n in zip(texts, lengths, strict=True) if n > self.limit}
        if self.too_long and not cut:
            raise BadInput(
                f"{len(self.too_long)} of {len(texts)} texts are longer than {self.limit} tokens, the longest has"
                f" {max(lengths)}; shorten them, or let them be cut with cut=True"
            )
        order = np.argsort(lengths)  # texts of like length together: less padding to compute
        vectors = np.empty((len(texts), network.config.hidden_size), np.float32)
        for start in range(0, len(texts), batch):
            some = order[start : start + batch]
            vectors[some] = self._pooled(tokenizer, network, [texts[k] for k in some]).numpy()
        return vectors

    @torch.inference_mode()
    def _pooled(self, tokenizer, network, texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.limit)
        inputs = inputs.to(self._device)
        hidden = network(**inputs).last_hidden_state.float()  # (texts, tokens, channels)
        if self.pool == "cls":
            return hidden[:, 0].cpu()
        mask = inputs["attention_mask"][..., None]
        return ((hidden * mask).sum(1) / mask.sum(1)).cpu()


def text_network(where: str | Path, weights: bool = True):
    """Tokenizer and network of a BERT; code that lies beside the weights isn't run.

    Args:
        where: a folder in the hub's layout, or a repository of the model hub.
        weights: False builds it with random weights, for a checkpoint that brings its own.

    Raises:
        BadInput: there is none, or it can't be reached.
    """
    from transformers import AutoModel

    try:
        config, tokenizer = _config_and_tokenizer(where)
        if weights:
            return tokenizer, AutoModel.from_pretrained(where, config=config, dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            return tokenizer, AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:  # a damaged model: transformers, safetensors and tokenizers raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"no text tower can be had from {str(where)!r} ({reason}); give a folder with config.json, the tokenizer"
            " and model.safetensors, or a repository such as medicalai/ClinicalBERT"
        ) from error


def _config_and_tokenizer(where: str | Path):
    """A BERT's; CXR-BERT's folder asks for code of its own, which only adds a projection that isn't read here."""
    from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizerFast, PreTrainedConfig

    if PreTrainedConfig.get_config_dict(where)[0].get("model_type") == CXR_BERT:
        return BertConfig.from_pretrained(where), BertTokenizerFast.from_pretrained(where)
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    return config, AutoTokenizer.from_pretrained(where, trust_remote_code=False)


def _stamp(where: str | Path) -> str:
    """What tells a folder's weights from those that lay there before; nothing for a repository of the hub."""
    files = sorted(Path(where).glob("*.safetensors")) if Path(where).is_dir() else []
    return " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def _stored(file: Path, count: int) -> tuple[np.ndarray | None, dict[str, int]]:
    """Vectors of a file, and which texts were too long; None and {} if there is no such file or it is damaged."""
    try:
        with safe_open(file, "numpy") as stored:
            vectors, too_long = stored.get_tensor("vectors"), json.loads(stored.metadata()["too_long"])
    except Exception:  # absent, cut short or of another format: all mean that it must be computed
        return None, {}
    return (vectors, too_long) if len(vectors) == count else (None, {})
