"""Profile ``paper``: vision–language models on a user's RadGenome-ChestCT or M3D, by name.

    radgenome-contour-0.5B        trained on blue contours with Qwen2.5-0.5B: a row of contour.T1
    m3d-none-7B-2xMLP             trained on M3D with one of Med3DVLM's projectors: a row of med3dvlm.T6–T8
    m3d-none-released             Med3DVLM's released weights, asked and not trained: a row of med3dvlm.T2–T4

What is trained, and how it is asked, are the same functions as on the cohort. Closed answers of trained models are
chosen; the released one writes them, as it was evaluated.
"""

import re
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.damaged import read_csv
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate.bert_score import bert_scores, layers_like_roberta_large
from ctvlm_lib.evaluate.text_registry import ROBERTA
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.real_cohort import READERS, THICKNESS, RealCohort
from ctvlm_lib.experiments.vlm_reader import VlmReader, worded
from ctvlm_lib.records.record import Record, read_jsonl, write_jsonl
from ctvlm_lib.sources import DECODERS, Sources
from ctvlm_lib.training_processes import joined
from ctvlm_lib.vlm import finetune, finetune_saving
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune import Finetuning
from ctvlm_lib.vlm.lessons import Lesson, Lessons
from ctvlm_lib.vlm.parts import tokenizer_of
from ctvlm_lib.vlm.processor import CtvlmProcessor
from ctvlm_lib.vlm.projector import IN_THE_PAPER
from ctvlm_lib.vlm.released import load_released

RELEASED, QUESTIONS, ANSWERS, BERT = "released", "questions.jsonl", "test.npz", "bert_score.csv"
EPOCHS = {"radgenome": (3, 25), "m3d": (3, 5)}  # of the projector, of LoRA
# the projector as Med3DVLM's, since a smaller decoder needs one of its own
_STAGE_1 = {"projector_lr": 1e-4, "warmup_share": 0.03, "report_weight": 1.0}
_PROMPTED = _STAGE_1 | {"pictures": 4, "lora_lr": 2e-5, "warmup_steps": 500, "focal_gamma": 2.0}
RECIPES = {
    "contour": _PROMPTED | {"weight_decay": 2e-2, "l2": 1e-4, "class_balanced": True},  # contour.txt §4
    "dualbox": _PROMPTED | {"weight_decay": 1e-2, "train_norms": True},  # dualbox.txt §3.3 and §4.2; γ is contour's
    "med3dvlm": _STAGE_1 | {"pictures": 8, "lora_lr": 5e-5, "weight_decay": 0.0, "projector_pictures": 16,
                            "projector_yes_no": False},  # med3dvlm.txt §4
}  # fmt: skip
BY_RUN = ("patients", "regions", "kinds", "blind")  # of Finetuning: here all is learnt from that the data hold
AT_ONCE = 4  # pictures: 34 MB each at the published size


@dataclass(frozen=True)
class RealArm:
    """What a name says.

    Attributes:
        data: "radgenome" or "m3d". condition: what is drawn. decoder: size of Qwen2.5, or "released".
        projector: name in ``ctvlm_lib.vlm.projector.PROJECTORS``.
    """

    data: str
    condition: str
    decoder: str
    projector: str = "mixer"


def arm_of(name: str) -> RealArm:
    """Read an arm's name.

    Raises:
        BadInput: no such arm.
    """
    variants = {label: own for own, label in IN_THE_PAPER.items()}
    sides = [READERS, CONDITIONS, (*DECODERS, RELEASED), variants]
    patterns = ["|".join(map(re.escape, side)) for side in sides]
    found = re.fullmatch("({})-({})-({})(?:-({}))?".format(*patterns), name)
    if not found:
        raise BadInput(
            f"no arm of profile paper is called {name!r}; arms are DATA-CONDITION-DECODER[-PROJECTOR], such as"
            f" radgenome-contour-0.5B: DATA {', '.join(READERS)}; CONDITION {', '.join(CONDITIONS)}; DECODER"
            f" {', '.join(DECODERS)}, {RELEASED}; PROJECTOR {', '.join(variants)}"
        )
    data, condition, decoder, variant = found.groups()
    if data == "m3d" and condition != "none":
        raise BadInput(f"{name}: M3D has no masks, so nothing can be drawn; take the condition none")
    if decoder == RELEASED and (condition != "none" or variant):
        raise BadInput(
            f"{name}: the released model has its own projector and never saw a prompt; ask {data}-none-released"
        )
    return RealArm(data, condition, decoder, variants[variant] if variant else "mixer")


def paper_of(arm: RealArm) -> str:
    """The paper by whose recipe an arm is trained; without a prompt on RadGenome-ChestCT both have one, contour's."""
    return "med3dvlm" if arm.data == "m3d" else "dualbox" if arm.condition in ("box", "dual") else "contour"


def otherwise(arm: RealArm, given: Sources, config: Finetuning) -> tuple[str, ...]:
    """What a trained arm does otherwise than its paper says; its numbers stand in the ledger with this remark.

    Args:
        arm: which. given: what the user changes. config: the recipe that follows.

    Source: contour.txt §3.2 and §4, dualbox.txt §3.3, §4.1 and §4.2, med3dvlm.txt §4.
    """
    said = ["batches of pictures with several questions each"]
    if arm.data == "m3d":
        return (*given.otherwise(), *said)
    said += ["patients split 70/10/20 by this workbook", "projector trained in both stages", "weight decay on it too"]
    if arm.condition == "dual":
        said.append("distractors of the data set's masks instead of VISTA-3D's")
    if arm.condition == "contour":
        said.append("contours of the data set's masks instead of VISTA-3D's")
    if paper_of(arm) == "contour":
        said.append("no distillation from the 7B model")
        said += [] if config.head_answers else ["no head for closed questions"]
        said += [] if config.slice_attention else ["no slice attention"]
    if arm.condition == "none":
        said.append("contour's recipe beside dualbox's numbers too")
    return (*given.otherwise(), *said)


def recipe_of(name: str, given: Sources, pictures: int, seed: int = 0) -> Finetuning:
    """What a trained arm learns, and how.

    Args:
        name: of the arm.
        given: where its parts lie; its ``finetuning`` replaces what is said here.
        pictures: of the training split: steps follow from the papers' epochs.
        seed: of projector, adapters and steps.

    Raises:
        BadInput: no such arm or setting, or a value that doesn't fit.
    """
    try:
        return _recipe(arm_of(name), given, pictures, seed)
    except BadInput:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadInput(f"a setting of finetuning has a value of the wrong kind: {error}") from None


def _recipe(arm: RealArm, given: Sources, pictures: int, seed: int) -> Finetuning:
    if lost := sorted(set(BY_RUN) & set(given.finetuning)):
        raise BadInput(
            f"arms on your data don't read {lost[0]} of [run.finetuning]; remove it (patients of [run] makes a trial)"
        )
    usual = RECIPES[paper_of(arm)] | {"words": 512, "precision": "bf16", "checkpoint_every": 500}
    if "pictures" in given.finetuning:  # what a user's memory holds is for both stages
        usual.pop("projector_pictures", None)
    if arm.data == "radgenome" and arm.decoder == "3B":
        usual["lora_lr"] = 1e-5
    chosen = usual | dict(given.finetuning)
    a_step = (chosen.get("projector_pictures") or chosen["pictures"], chosen["pictures"])
    steps = [max(1, epochs * -(-pictures // n)) for epochs, n in zip(EPOCHS[arm.data], a_step, strict=True)]
    config = Finetuning.from_dict(
        {"encoder": given.two_towers, "variant": given.variant, "decoder": given.decoders[arm.decoder],
         "size_dhw_vox": given.size_dhw_vox, "scale": "Med3DVLM", "condition": arm.condition, "seed": seed,
         "projector": arm.projector, "projector_steps": steps[0], "lora_steps": steps[1]} | usual | given.finetuning
    )  # fmt: skip
    if config.learns_from_teacher:
        raise BadInput(f"arms on your data have no teacher, and [run.finetuning] names {config.teacher}; remove it")
    return config


def run(
    name: str, given: Sources, seed: int = 0, *, home: str | Path, progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
) -> pd.DataFrame | None:  # fmt: skip
    """Train an arm, or load what was released, ask it about the test split, and store its answers.

    Under ``accelerate launch`` all processes train; the first one stores, asks and scores.

    Args:
        name: of the arm.
        given: where data and weights lie.
        seed: of training; the split of the patients is always the same.
        home: gets ``results/<name>/`` with answers, questions, BERTScores and record; ``checkpoints``, ``training`` and
            ``features``. An arm that was stopped goes on from there.
        progress, on_step: see :func:`ctvlm_lib.training.train`.

    Returns:
        The table of answers; None in all processes but the first.

    Raises:
        BadInput: no such arm, or data or weights that can't be used.
    """
    state = joined()
    arm, label, home = arm_of(name), of_seed(name, seed), Path(home)
    if arm.decoder == RELEASED and not state.is_main_process:
        return None
    cohort = RealCohort.of(arm.data, given.folder(arm.data), given.patients)
    tell = print if progress and state.is_main_process else (lambda line: None)
    tell(f"{label}: {', '.join(f'{len(some):,} {split}' for split, some in cohort.records.items())} questions")
    check_bert_score(given)  # hours before it is needed
    began = time.monotonic()
    if arm.decoder == RELEASED:
        reader, about = _released(given), checkpoints.circumstances({}) | {"weights": Path(given.med3dvlm).name}
    else:
        trained = _trained(name, given, cohort, seed, home, progress, on_step)
        if trained is None:
            return None
        reader, about = trained
    minutes, began = {"training": (time.monotonic() - began) / 60}, time.monotonic()
    table = ask(reader, cohort, "test", arm.condition, seed, tell)
    similar = bert_score_of(table, given)
    minutes["test"] = (time.monotonic() - began) / 60
    counts = {split: {"questions": len(some), "patients": len({r.patient for r in some})}
              for split, some in cohort.records.items()}  # fmt: skip
    record = {"profile": "paper", "seed": seed, "data": {"name": arm.data, "splits": counts, "notes": cohort.notes}}
    record |= {"otherwise": given.otherwise()}
    record |= about | {"minutes": {part: round(value, 2) for part, value in minutes.items()}}
    with atomic_path(home / "results" / label) as partial:
        partial.mkdir()
        write_jsonl(cohort.records["test"], partial / QUESTIONS)
        answers.save(table, cohort.records["test"], partial / ANSWERS)
        if similar is not None:
            similar.to_csv(partial / BERT)
        checkpoints.write_record(record, partial)
    return table


def read(folder: str | Path) -> pd.DataFrame:
    """The answers that :func:`run` stored, see :func:`ctvlm_lib.experiments.answers.load`.

    Raises:
        BadInput: no such files, damaged ones, or answers to other questions.
    """
    return answers.load(Path(folder) / ANSWERS, read_jsonl(Path(folder) / QUESTIONS))


def read_bert_score(folder: str | Path) -> pd.Series | None:
    """The BERTScores that :func:`run` stored, question → F1; None where they were left out."""
    path = Path(folder) / BERT
    return read_csv(path, ("id", ROBERTA)).set_index("id")[ROBERTA] if path.is_file() else None


def bert_score_of(table: pd.DataFrame, given: Sources) -> pd.Series | None:
    """BERTScore F1 of each open answer, question → −100…100; None where no model is named.

    It is stored beside the answers, as its model takes far longer than all other scores together.

    Args:
        table: of answers. given: names the model: "roberta-large" of the hub, or a local copy.

    Raises:
        BadInput: no such model.
    """
    rows = table[table["form"] == "open"]
    if not given.bert_score or rows.empty:
        return None
    scores = _bert_scores(rows["answer"].tolist(), rows["truth"].tolist(), given.bert_score)
    return pd.Series(scores[:, 2], index=pd.Index(rows["id"], name="id"), name=ROBERTA)


def check_bert_score(given: Sources) -> None:
    """Load the model behind BERTScore, if one is named: no arm shall lose its answers because it can't be had.

    Raises:
        BadInput: it can't be had.
    """
    if not given.bert_score:
        return
    try:
        _bert_scores(["no"], ["no"], given.bert_score)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"the model behind BERTScore, {given.bert_score}, can't be had ({reason}); name a local copy in the sources"
            ' file, [weights] bert_score = …, or "" to leave it out'
        ) from error


def _bert_scores(said: list[str], true: list[str], model: str) -> np.ndarray:
    layers = layers_like_roberta_large(model) if Path(model).is_dir() else None
    return bert_scores(said, [[text] for text in true], model, profile="paper", layers=layers)


def ask(
    reader: VlmReader, cohort: RealCohort, split: str, condition: str, seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:  # fmt: skip
    """Ask a model all of a split's questions, those about one picture together.

    Args:
        reader: of the model.
        cohort: with the questions. split: which of them.
        condition: what is drawn, and how questions are worded.
        seed: of the model's training, kept in the table.
        tell: called with a line after every tenth of the pictures.
    """
    made_by = reader.processor.image_input
    records = sorted(cohort.records[split], key=lambda record: cohort.key(record, condition))
    groups = [list(same) for _, same in groupby(records, key=lambda record: cohort.key(record, condition))]
    said, told = [], 0
    for start in range(0, len(groups), AT_ONCE):
        some = groups[start : start + AT_ONCE]
        pictures = np.stack([cohort.picture(group[0], condition, made_by) for group in some])
        said += [pair for pairs in reader.answer(pictures, some, condition) for pair in pairs]
        done = 10 * (start + len(some)) // len(groups)
        if done > told:
            tell(f"{split}: {start + len(some)} of {len(groups)} pictures")
            told = done
    texts, confidence = zip(*said, strict=True)
    return answers.answer_table(records, texts, confidence, condition=condition, seed=seed)


def lessons_of(cohort: RealCohort, condition: str, split: str = "train") -> list[Lesson]:
    """What a split teaches: everything that is asked about each picture."""
    groups: dict[str, list[Record]] = {}
    for record in cohort.records[split]:
        groups.setdefault(cohort.key(record, condition), []).append(worded(record, condition))
    return [Lesson(key, tuple(asked)) for key, asked in groups.items()]


def _trained(name, given, cohort, seed, home, progress, on_step) -> tuple[VlmReader, dict] | None:
    """The reader and what is told of it, in the first process."""
    label, condition = of_seed(name, seed), arm_of(name).condition
    taught = lessons_of(cohort, condition)
    config = recipe_of(name, given, len(taught), seed)
    model, processor = finetune.build(config)
    model.to(PartialState().device)
    features = _features(model, processor, cohort, taught, config, home / "features")
    looked_at = None
    if config.look_every:
        others = lessons_of(cohort, condition, "validation")
        kept = _features(model, processor, cohort, others, config, home / "features", "validation")
        looked_at = Lessons(processor, others, config.head_answers), kept
    model.cpu()  # the loop takes it to its device, with FSDP in parts
    curves = finetune.finetune(model, Lessons(processor, taught, config.head_answers), features, config,
                               held_out=looked_at, folder=home / "training" / label, on_step=on_step,
                               progress=progress)  # fmt: skip
    if not PartialState().is_main_process:  # two writers would take each other's folders away
        return None
    record = checkpoints.circumstances(curves) | {"otherwise": otherwise(arm_of(name), given, config)}
    finetune_saving.save(home / "checkpoints" / label, model, config, record | {"profile": "paper"})
    model, processor, _ = finetune_saving.load(home / "checkpoints" / label)  # what is asked is what was stored
    model.to(PartialState().device)
    plain = asdict(config) | {"encoder": Path(config.encoder).name, "decoder": Path(config.decoder).name}
    return VlmReader(model, processor), record | {"finetuning": plain}


def _released(given: Sources) -> VlmReader:
    size = {"size_dhw_vox": given.size_dhw_vox, "profile": "paper"}
    model = load_released(given.med3dvlm, encoder={"kind": "dcformer", "variant": given.variant}, **size).model
    model.freeze(encoder=True, projector=True, decoder=True).to(PartialState().device)
    processor = CtvlmProcessor.for_config(model.config, tokenizer_of(given.med3dvlm), scale="Med3DVLM",
                                          colour="luminance")  # fmt: skip
    return VlmReader(model, processor, written=True)


def _features(
    model, processor, cohort: RealCohort, taught: list[Lesson], config: Finetuning, store: Path, split: str = "train"
) -> FeatureCache:
    """Features of all of a split's pictures, computed once in each process; other decoders and seeds read them."""
    first, condition = {}, config.condition
    for record in cohort.records[split]:
        first.setdefault(cohort.key(record, condition), record)
    content = 0 if condition == "none" else zlib.crc32(f"lines of {THICKNESS}".encode())
    for lesson in taught:
        path = cohort.folder / first[lesson.key].volume
        content = zlib.crc32(f"{lesson.key} {path.stat().st_size} {path.stat().st_mtime_ns}".encode(), content)
    path = store / f"{model.encoder_id()}-{cohort.data}-{config.drawn_as}-{len(first)}-{content:08x}.safetensors"
    if path.is_file():
        return FeatureCache.load(path)
    made_by = processor.image_input
    found = FeatureCache.of(model, tuple(first), lambda key: cohort.picture(first[key], condition, made_by),
                            batch=AT_ONCE)  # fmt: skip
    found.save(path)
    return found
