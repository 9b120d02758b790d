"""The arms of the tables: each encoder's recipe by name, and what a finished one leaves behind."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ctvlm_lib.alignment import checkpoints
from ctvlm_lib.alignment.pretrain import Data, Pretraining, Result, pretrain
from ctvlm_lib.alignment.scoring import marked_accuracy, marked_tokens, predict, recall_by_facts
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.training import Training

RESULTS = Path(__file__).resolve().parents[2] / "data_samples" / "results" / "full"
BATCHES = (8, 32)
VOLUMES = 9600  # seen by each arm that is trained on reports: the same number whatever the batch, twelve epochs

A1 = Pretraining("A1", batch=8, training=Training(steps=2600, lr=4e-3, precision="bf16", checkpoint_every=100))
# a second cosine: on the validation split the first one left the ceiling at .90, below what was aimed at
A = replace(A1, name="A", start="A1", training=replace(A1.training, lr=3e-3))
_LONGER = Training(steps=2000, lr=3e-3, precision="bf16", checkpoint_every=100)


def _on_reports(name: str, batch: int, lr: float, **options) -> Pretraining:
    training = Training(steps=VOLUMES // batch, lr=lr, precision="bf16")
    return Pretraining(f"{name}-{batch}", objective="report", batch=batch, training=training, **options)


ARMS: dict[str, Pretraining] = {
    "A1": A1,
    "A": A,
    "A-continued": replace(A, name="A-continued", start="A", batch=12, training=_LONGER),  # as long as B
    "B": replace(A, name="B", objective="prompted", start="A", batch=12, training=_LONGER),
} | {
    arm.name: arm
    for batch in BATCHES
    for arm in (
        _on_reports("dcformer-siglip", batch, 2e-3),
        _on_reports("dcformer-clip", batch, 2e-3, loss="clip"),
        _on_reports("vit3d-clip", batch, 1e-3, loss="clip", encoder="vit3d"),
    )
}


def run(
    name: str,
    data: Data | None = None,
    *,
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    profile: str = "full",
    seed: int = 0,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> Result:
    """Train an arm, store it, and score what was stored: on validation, and once on test.

    Args:
        name: one of ARMS.
        data: train, validation and test; None reads the protocol's.
        folder: for checkpoints on the way.
        checkpoint_folder: gets ``<name>/`` with weights in float16 and the record; ``start`` is looked up there, then
            among those that ship.
        results: gets ``<name>/`` with tables, the predictions on test, and the record.
        profile: how many patients.
        seed: of everything random; any but 0 is added to the names of the two folders.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: no such arm, or it goes on from one that isn't trained.
    """
    if name not in ARMS:
        raise BadInput(f"no arm is called {name!r}; choose one of {', '.join(ARMS)}")
    training = replace(ARMS[name].training, seed=seed)
    config = replace(ARMS[name], profile=profile, training=training)
    name = name if seed == 0 else f"{name}-seed{seed}"
    start = config.start
    if start:
        own = Path(checkpoint_folder) / start
        config = replace(config, start=str(own if own.is_dir() else checkpoints.FOLDER / start))
    data = data or Data.of(config, ("train", "validation", "test"))
    result = pretrain(config, data, folder=folder, on_step=on_step, progress=progress)
    result.record["config"]["start"] = start
    target = Path(checkpoint_folder) / name
    checkpoints.save(target, result.model, result.record)
    result.model, _ = checkpoints.load(target)  # what is scored is what is shipped, float16's rounding included
    with atomic_path(Path(results) / name) as partial:
        partial.mkdir()
        for split in ("validation", "test"):
            found = predict(result.model, data.scans["train"], data.scans[split], data.reports[split])
            if split == "test":
                found.save(partial / "test.safetensors")
            found.table(arm=name, split=split).to_csv(partial / f"{split}.csv", index=False, lineterminator="\n")
            result.record[split] = {"ceiling": asdict(found.ceiling()), "recall": [asdict(r) for r in found.recalls()]}
            if "focus" in result.model.pairings:
                marked = marked_accuracy(result.model, data.scans[split], data.captions["focus"])
                result.record[split]["marked"] = marked
                places = marked_tokens(result.model, data.scans[split], data.captions["place"])
                result.record[split]["marked_tokens"] = places
        content = json.dumps(result.record, indent=1, ensure_ascii=False)
        (partial / "record.json").write_text(content + "\n", encoding="utf-8")
    checkpoints.save(target, result.model, result.record)
    return result


def run_facts(data: Data, results: str | Path = RESULTS) -> None:
    """Write what pose, phase and findings reach without an image, for validation and test."""
    with atomic_path(Path(results) / "retrieval-by-facts") as partial:
        partial.mkdir()
        for split in ("validation", "test"):
            table = recall_by_facts(data.scans["train"], data.reports["train"], data.scans[split], data.reports[split])
            table.to_csv(partial / f"{split}.csv", index=False, lineterminator="\n")
