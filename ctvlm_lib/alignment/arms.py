"""The arms of the tables: each encoder's recipe by name, and what a finished one leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from accelerate import PartialState

from ctvlm_lib.alignment import checkpoints
from ctvlm_lib.alignment.arm_tables import FACTS, RESULTS, of_seed
from ctvlm_lib.alignment.m3d_cap import Captioned
from ctvlm_lib.alignment.m3d_pretrain import predict_captions
from ctvlm_lib.alignment.pretrain import Data, Result, pretrain
from ctvlm_lib.alignment.recipe import Pretraining, paper
from ctvlm_lib.alignment.scoring import marked_accuracy, marked_tokens, predict, recall_by_facts
from ctvlm_lib.alignment.two_towers import save_two_towers
from ctvlm_lib.checkpoints import write_record
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.records.committed import check_committed
from ctvlm_lib.training import Training

BATCHES = (8, 32)
VOLUMES = 9600  # seen by each arm that is trained on reports: the same number whatever the batch, twelve epochs

A1 = Pretraining("A1", batch=8, training=Training(steps=2600, lr=4e-3, precision="bf16", checkpoint_every=100))
# a second cosine: on the validation split the first one left the ceiling at .90, below what was aimed at
A = replace(A1, name="A", start="A1", training=replace(A1.training, lr=3e-3))
_LONGER = Training(steps=2000, lr=3e-3, precision="bf16", checkpoint_every=100)


def _on_reports(name: str, batch: int, lr: float, **options) -> Pretraining:
    training = Training(steps=VOLUMES // batch, lr=lr, precision="bf16")
    return Pretraining(f"{name}-{batch}", objective="report", batch=batch, training=training, **options)


ARMS: dict[str, Pretraining] = (
    {
        "A1": A1,
        "A": A,
        "A-continued": replace(A, name="A-continued", start="A", batch=12, training=_LONGER),  # as long as B
        "B": replace(A, name="B", objective="prompted", start="A", batch=12, training=_LONGER),
    }
    | {
        arm.name: arm
        for batch in BATCHES
        for arm in (
            _on_reports("dcformer-siglip", batch, 2e-3),
            _on_reports("dcformer-clip", batch, 2e-3, loss="clip"),
            _on_reports("vit3d-clip", batch, 1e-3, loss="clip", encoder="vit3d"),
        )
    }
    | {  # table 5 itself, on the user's copy of M3D-Cap
        arm.name: arm
        for arm in (
            paper("dcformer-siglip-m3d"),
            paper("dcformer-clip-m3d", loss="clip"),
            paper("vit3d-clip-m3d", loss="clip", encoder="vit3d"),
        )
    }
)


def changed(config: Pretraining, changes: Mapping) -> Pretraining:
    """A recipe with other values, e.g. ``{"steps": 2, "patients": 16}``: fields of it, of its training or its corpus.

    Raises:
        BadInput: it has no such field.
    """
    parts = {"": config, "training": config.training} | ({"corpus": config.corpus} if config.corpus else {})
    of = {name: next((k for k, p in parts.items() if name in {f.name for f in fields(p)}), None) for name in changes}
    for name, part in of.items():
        if part is None:
            raise BadInput(f"{config.name} has no setting {name!r}; it has those of Pretraining, Training and Corpus")
    new = {part: {name: changes[name] for name in changes if of[name] == part} for part in parts}
    inner = {part: replace(parts[part], **values) for part, values in new.items() if part and values}
    return replace(config, **new[""], **inner)  # at once: some settings are only right together


def run(
    name: str,
    data: Data | tuple[dict[str, Captioned], list[str]] | None = None,
    *,
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    profile: str = "full",
    seed: int = 0,
    changes: Mapping | None = None,
    label: str = "",
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> Result:
    """Train an arm, store it, and score what was stored: on validation, and once on test.

    Under ``accelerate launch`` all processes train; the first one stores and scores, and only its record has scores.

    Args:
        name: one of ARMS.
        data: train, validation and test; None reads the protocol's, or the corpus.
        folder: for checkpoints on the way.
        checkpoint_folder: gets ``<name>/`` with weights in float16 (of an arm on M3D-Cap: float32, in the released
            layout) and the record; ``start`` is looked up there, then among those that ship.
        results: gets ``<name>/`` with tables, the predictions on test, and the record.
        profile: how many patients; paper for the arms on M3D-Cap, and only for them.
        seed: of everything random; any but 0 is added to the names of the two folders.
        changes: of the recipe, see :func:`changed`; the folder of M3D-Cap is one of them.
        label: name of the two folders, instead of that of arm and seed.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: no such arm, a profile that it isn't of, it goes on from one that isn't trained, or the protocol isn't
            committed.
    """
    if name not in ARMS:
        raise BadInput(f"no arm is called {name!r}; choose one of {', '.join(ARMS)}")
    config = recipe_of(name, profile, seed, changes or {})
    if not config.corpus:
        check_committed()  # the test split is scored at the end
    label = label or of_seed(name, seed)
    start = config.start
    if start and not config.corpus:
        own = Path(checkpoint_folder) / of_seed(start, seed)
        config = replace(config, start=str(own if own.is_dir() else checkpoints.FOLDER / of_seed(start, seed)))
    if not config.corpus:
        data = data or Data.of(config, ("train", "validation", "test"))
    result = pretrain(config, data, folder=folder, on_step=on_step, progress=progress)
    if not PartialState().is_main_process:  # two writers would take each other's folders away
        return result
    target, results = Path(checkpoint_folder) / label, Path(results) / label
    if config.corpus:
        return _store_captions(result, target, results)
    result.record["config"]["start"] = start
    return _store(result, data, target, results)


def recipe_of(name: str, profile: str, seed: int, changes: Mapping) -> Pretraining:
    """What an arm trains in a profile, with a seed and changes.

    Raises:
        BadInput: an arm on M3D-Cap outside profile paper, or another one in it; changes that it doesn't have.
    """
    arm = ARMS[name]
    if (profile == "paper") != (arm.corpus is not None):
        those = ", ".join(n for n, a in ARMS.items() if a.corpus)
        raise BadInput(
            f"profile paper has the arms on M3D-Cap ({those}), and they are in no other profile; got arm {name!r} and"
            f" profile {profile!r}"
        )
    if arm.corpus and {"steps", "patients"} & set(changes):
        raise BadInput(f"{name} goes by epochs over all volumes of your copy; change epochs and batch")
    return changed(replace(arm, profile=profile, training=replace(arm.training, seed=seed)), changes)


def _store(result: Result, data: Data, target: Path, results: Path) -> Result:
    """Store an arm on the cohort, and score what was stored."""
    checkpoints.save(target, result.model, result.record)
    result.model, _ = checkpoints.load(target)  # what is scored is what is shipped, float16's rounding included
    with atomic_path(results) as partial:
        partial.mkdir()
        for split in ("validation", "test"):
            found = predict(result.model, data.scans["train"], data.scans[split], data.reports[split])
            if split == "test":
                found.save(partial / "test.safetensors")
            _write_table(found.table(arm=target.name, split=split), partial / f"{split}.csv")
            result.record[split] = {"ceiling": asdict(found.ceiling()), "recall": [asdict(r) for r in found.recalls()]}
            if "focus" in result.model.pairings:
                marked = marked_accuracy(result.model, data.scans[split], data.captions["focus"])
                result.record[split]["marked"] = marked
                places = marked_tokens(result.model, data.scans[split], data.captions["place"])
                result.record[split]["marked_tokens"] = places
        write_record(result.record, partial)
    checkpoints.save(target, result.model, result.record)
    return result


def _store_captions(result: Result, target: Path, results: Path) -> Result:
    """Store an arm on M3D-Cap in the released layout, and score it on validation and test."""
    if result.curve:  # weights that were only scored lie where they came from
        save_two_towers(target, result.model, result.record)
    model = result.model.to(PartialState().device)
    with atomic_path(results) as partial:
        partial.mkdir()
        for split in ("validation", "test"):
            found = predict_captions(model, result.data[split])
            found.save(partial / f"{split}.safetensors")
            table = found.table(arm=target.name, split=split)
            _write_table(table, partial / f"{split}.csv")
            result.record[split] = {"recall": table.to_dict("records")}
        write_record(result.record, partial)
    return result


def _write_table(table, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")


def run_facts(profile: str = "full", results: str | Path = RESULTS) -> None:
    """Write what pose, phase and findings reach without an image, for validation and test.

    Args:
        profile: whose cohort, "quick" or "full".
        results: gets ``retrieval-by-facts/``.
    """
    data = Data.of(Pretraining(FACTS, profile=profile), ("train", "validation", "test"))
    with atomic_path(Path(results) / FACTS) as partial:
        partial.mkdir()
        for split in ("validation", "test"):
            table = recall_by_facts(data.scans["train"], data.reports["train"], data.scans[split], data.reports[split])
            table.to_csv(partial / f"{split}.csv", index=False, lineterminator="\n")
