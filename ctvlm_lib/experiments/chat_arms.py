"""The chat arms, MedVista3D's Table 3: a language model on an aligned encoder, asked what needs no prompt.

    chat-global   on an encoder aligned on reports alone, CT-CLIP's objective: CT-CHAT's kind
    chat-full     on MedVista3D's, aligned on reports and regions, as they are and enriched: MedVista3D-LLaVA
    chat-stem     on the stem's tokens themselves, which both encoders read: what alignment adds (ours)
    chat-blind    on blank pictures: what the words alone give (ours)

All read 512 tokens on the same grid, averaged over the same blocks, through a two-layer perceptron with GELU; the
decoder, its training and the questions are the same. Every seed of an arm reads the same encoder, that of seed 0, which
ships; a seed is of projector, adapters and steps. Which encoder, and how long, stands in the protocol.

Decided here, as the paper leaves it open: both stages minimise the next token's loss on all four tasks (the paper's
first stage "performs contrastive alignment" of the projector, "same as LLaVA", which has no such loss). A choice is the
likeliest of those offered, all else is written greedily.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import asked
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.experiments.chat_protocol import FILES, load
from ctvlm_lib.experiments.chat_records import lessons_of, with_tasks
from ctvlm_lib.experiments.chat_tables import PREFIX, QUESTIONS
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.vlm_run import as_asked, forget, on_the_way, store, trained
from ctvlm_lib.records.committed import recorded
from ctvlm_lib.training_processes import alone
from ctvlm_lib.vlm.finetune import Finetuning

SPLITS = ("validation", "test")
DESCRIBED = {PREFIX + name: told["what"] for name, told in load()["arms"].items()}


def _arms() -> dict[str, Finetuning]:
    fixed = load()["training"]
    base = Finetuning(
        condition="none", decoder=fixed["decoder"], projector=fixed["projector"],
        projector_options=tuple((name, tuple(sides)) for name, sides in fixed["averaged"].items()),
        projector_steps=fixed["projector_steps"], projector_lr=fixed["projector_lr"], lora_steps=fixed["lora_steps"],
        lora_lr=fixed["lora_lr"], rank=fixed["rank"], alpha=fixed["alpha"], dropout=fixed["dropout"],
        pictures=fixed["pictures"], words=fixed["words"], report_weight=fixed["report_weight"], regions=0,
    )  # fmt: skip
    made = load()["arms"].items()
    return {PREFIX + name: replace(base, encoder=told["encoder"], blind=told["blind"]) for name, told in made}


ARMS = _arms()


def run(
    name: str,
    profile: str = "full",
    seed: int = 0,
    *,
    cohort: Cohort | None = None,
    splits: Sequence[str] = SPLITS,
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    changes: Mapping | None = None,
    label: str = "",
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Train an arm, store what was trained, ask it the four tasks, and store questions and answers.

    Args:
        name: one of ARMS.
        profile: how many patients.
        seed: of projector, adapters and steps; any but 0 is added to the names of the two folders.
        cohort: None draws the profile's.
        splits: that are asked; the test split needs a committed protocol.
        folder: for checkpoints on the way.
        checkpoint_folder: gets ``<name>/`` with projector and adapters in float16 and the record.
        results: gets ``<name>/`` with a file of answers for each split and the record, and the questions beside it.
        changes: fields of :class:`ctvlm_lib.vlm.finetune.Finetuning` with other values.
        label: name of the two folders, instead of that of arm and seed.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        Split → table of answers.

    Raises:
        BadInput: no such arm or setting, or a protocol that isn't committed.
    """
    alone(name)
    config, label = recipe_of(name, seed, changes), label or of_seed(name, seed)
    record = recorded(splits, "chat_protocol", FILES, load()["version"])
    record |= {"encoder_sha256": checkpoints.record(config.encoder)["weights"]["sha256"]}
    fixed = load()["asking"]
    cohort = with_tasks(cohort or Cohort.of(profile, ("train", *splits)), fixed["kinds"], fixed["patients"])
    target = Path(checkpoint_folder) / label
    reader, record = trained(config, cohort, lessons_of(cohort, config), target, record, most=fixed["most"],
                             held_out=lessons_of(cohort, config, "validation") if config.look_every else (),
                             folder=folder, on_step=on_step, progress=progress)  # fmt: skip
    said = {}
    for split in splits:
        began = time.monotonic()
        tables = as_asked(reader, cohort.questions(split), cohort.scans[split], config, print if progress else None,
                          on_the_way(folder, record, split))  # fmt: skip
        said[split] = pd.concat(tables, ignore_index=True)
        record["minutes"][split] = round((time.monotonic() - began) / 60, 2)
        asked.save(Asked.of(cohort.records[split], cohort.scans[split]), Path(results) / QUESTIONS / f"{split}.npz")
    store(said, cohort, record, Path(results) / label)
    forget(folder)
    return said


def recipe_of(name: str, seed: int = 0, changes: Mapping | None = None) -> Finetuning:
    """What an arm trains, with a seed and changes.

    Raises:
        BadInput: no such arm or setting.
    """
    if name not in ARMS:
        raise BadInput(f"no arm is called {name!r}; choose one of {', '.join(ARMS)}")
    return Finetuning.from_dict(asdict(replace(ARMS[name], seed=seed)) | dict(changes or {}))
