"""Profile ``paper``: U-VLM's three stages on a user's CT-RATE and ReXGroundingCT, or AbdomenAtlas 3.0.

    ctvlm arm uvlm-rep-FL-cls-skip --profile paper --sources FILE              CT-RATE
    ctvlm arm uvlm-rep-CL-cls-skip-abdomen --profile paper --sources FILE      AbdomenAtlas
    ctvlm arm uvlm-rep-FL-cls-lora --profile paper --sources FILE              CT-RATE, with Qwen3-4B and LoRA

says what it will cost, reads the tables, makes volumes ready in the folder ``[run] prepared``, trains the arms that
the named one begins with and then itself, and stores what each says of the test split. The same command goes on where
it was stopped. Under ``accelerate launch`` all processes train, the first one scores.

What is otherwise than in the paper stands in :mod:`ctvlm_lib.experiments.uvlm_real_options`.

Source: uvlm.txt §3.1; U-VLM's released code (5d7fde9) for the frozen encoder of stage 3.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from accelerate import PartialState
from torch import nn

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import classification
from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.alignment.checkpoints import check_tensors
from ctvlm_lib.alignment.radgenome_volumes import prepare_all
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments import uvlm
from ctvlm_lib.experiments.local_global_real_data import Tell, pace
from ctvlm_lib.experiments.uvlm_arms import CLS, REP, SEG
from ctvlm_lib.experiments.uvlm_real_cost import Cost, cost
from ctvlm_lib.experiments.uvlm_real_data import CHEST, Volumes
from ctvlm_lib.experiments.uvlm_real_listed import DATA, listed, usable
from ctvlm_lib.experiments.uvlm_real_networks import build, try_out
from ctvlm_lib.experiments.uvlm_real_options import PUBLISHED, UNSAID, OnReal, Task, arm_of, chain, plain
from ctvlm_lib.experiments.uvlm_real_scores import RADBERT, WORDS, ask, labeller_of, table, truth_of
from ctvlm_lib.experiments.uvlm_said import read_said, write_said
from ctvlm_lib.experiments.uvlm_tables import TABLE
from ctvlm_lib.run import run_folder
from ctvlm_lib.segment import unet_training
from ctvlm_lib.sources import Sources, load
from ctvlm_lib.training import Curve, Training
from ctvlm_lib.training_checkpoint import frozen_hash
from ctvlm_lib.training_processes import joined
from ctvlm_lib.vlm import report_writer
from ctvlm_lib.vlm.parts import shape_from_hub

OPTIONS = ("patients", "steps", "batch", "epochs", "workers")  # of the command line


def command(name: str, seed: int, sources_file: str, out: str, changes: Mapping, suffix: str) -> int:
    """Run ``ctvlm arm uvlm-… --profile paper``.

    Args:
        name, seed: of the arm. sources_file: where data and weights lie. out: the output folder.
        changes: of OPTIONS, from the command line, for the named arm alone. suffix: what they add to its name.
    """
    if extra := sorted(set(changes) - set(OPTIONS)):
        there = ", ".join(f"--{one}" for one in OPTIONS)
        raise BadInput(f"{name} takes --seed, --sources, {there}, not --{extra[0]}; leave it out")
    arm_of(name)  # a wrong name is told before anything is read
    home, label = run_folder("paper", out), of_seed(name + suffix, seed)
    found = run(name, load(sources_file), seed, home=home, changes=changes, label=label)
    if found is not None:
        for _, row in found[found["measure"].isin(uvlm.SHOWN)].iterrows():
            print(f"{row['measure']}: {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
        print(f"on test; scores in {home / 'results' / label}; `ctvlm ledger --profile paper` shows them")
    return 0


def run(
    name: str, given: Sources, seed: int = 0, *, home: str | Path, changes: Mapping | None = None, label: str = "",
    progress: bool = True, on_step: Callable[[dict], None] | None = None,
) -> pd.DataFrame | None:  # fmt: skip
    """Train an arm, and before it those that it begins with, on a user's data; ask each about the test split.

    Args:
        name: one of :data:`ctvlm_lib.experiments.uvlm_arms.ARMS`, with ``-abdomen`` behind it for AbdomenAtlas.
        given: where data and weights lie, and what is otherwise.
        seed: of everything random.
        home: gets ``results/<label>/`` and ``checkpoints/<label>/`` of each arm, and ``training``.
        changes: options of the named arm besides those of ``given``. label: of its folders, instead of its name.
        progress, on_step: see :func:`ctvlm_lib.training.train`.

    Returns:
        The named arm's table of measures; None in all processes but the first.

    Raises:
        BadInput: an arm, option, table, volume or weights that can't be used, or an arm that it begins with that was
            trained otherwise. What is wrong in stage 3's settings is told before stage 1 is trained.
    """
    state = joined()
    first, home = state.is_main_process, Path(home)
    tell: Tell = (lambda line: print(line, flush=True)) if progress and first else (lambda line: None)
    tasks = chain(name, label or of_seed(name, seed), given, seed, changes)
    tasks = [_with_language(task, given, home) for task in tasks]
    lacking = [task for task in tasks if not _is_trained(task, home)]
    unfinished = [task for task in tasks if task in lacking or not _is_scored(task, home)]
    for task in unfinished:  # stages 1 and 2 take days, and stage 3 is the last to be built
        if task.arm.stage == REP:
            try_out(task, given)
    for task in lacking:
        count = PUBLISHED[task.scope][task.arm.stage]
        tell(f"{task.label}, {task.arm.stage}, with the paper's {count:,} volumes of {DATA[task.scope]}:")
        tell(f"{_cost(task, count)}\notherwise than the paper: {', '.join(task.otherwise)}")
    known: dict[str, dict[str, Volumes]] = {}
    for task in lacking:
        known[task.label] = _ready(task, given, tell)
        _train(task, known[task.label], given, seed, home, on_step=on_step, progress=progress)
        state.wait_for_everyone()  # for the weights that the next one begins with
    if not first:  # two writers would take each other's folders away
        return None
    for task in unfinished:
        _score(task, known.get(task.label) or _ready(task, given, tell), given, home, tell)
    return pd.read_csv(home / "results" / tasks[-1].label / TABLE)


def _with_language(task: Task, given: Sources, home: Path) -> Task:
    """An arm with LoRA that isn't finished, with its decoder's shape: whether that is there is told before all else.

    Raises:
        BadInput: no such decoder.
    """
    if not task.arm.lora or (_is_trained(task, home) and _is_scored(task, home)):
        return task
    return task.reading(shape_from_hub(given.decoders[task.arm.lora]))


def _cost(task: Task, volumes: int, kept: int = 0) -> Cost:
    return cost(task.arm, task.scope, task.config, volumes, kept, language=task.language)


def _is_trained(task: Task, home: Path) -> bool:
    """Whether an arm's weights are there.

    Raises:
        BadInput: they were trained otherwise.
    """
    if task.label not in checkpoints.names(home / "checkpoints"):
        return False
    stored, now = checkpoints.record(task.label, home / "checkpoints").get("on_real", {}), plain(task.config)
    stored = stored and plain(OnReal()) | stored  # options that are younger than it
    if other := [one for one in now if one not in UNSAID and stored.get(one) != now[one]]:
        raise BadInput(
            f"checkpoints/{task.label} was trained otherwise: {other[0]} was {stored.get(other[0])!r} and is"
            f" {now[other[0]]!r}; take that folder away to train it anew, or give the old value"
        )
    return True


def _is_scored(task: Task, home: Path) -> bool:
    return (home / "results" / task.label / TABLE).is_file()


def _ready(task: Task, given: Sources, tell: Tell) -> dict[str, Volumes]:
    """All splits of a stage, their volumes made ready; several processes share the work and none waits for another."""
    state, found = PartialState(), listed(task.arm.stage, task.arm.granularity, task.scope, given, task.config)
    tell("\n".join(dict.fromkeys(note for split in found.values() for note in split.notes)))
    every = sum(map(len, found.values()))
    tell(f"{task.label}, with yours:\n{_cost(task, len(found['train']), every)}")
    for split, some in found.items():
        share, workers = (state.process_index, state.num_processes), task.config.workers
        made = prepare_all(some.scans, some, workers, share, pace(f"{split}: volumes ready", len(some), tell))
        found[split] = usable(some, split, made)
        tell("\n".join(found[split].notes[len(some.notes) :]) or f"{split}: every volume can be used")
    return found


def _train(task: Task, known: dict[str, Volumes], given: Sources, seed: int, home: Path, **how) -> None:
    """Train an arm; the first process stores it."""
    state, taught = PartialState(), known["train"]
    training = task.config.training(len(taught), seed)
    model = build(task, given, seed, home).to(state.device)
    folder = home / "training" / f"{task.label}-{_key(task, taught, seed, home)}"
    curve = _fit(model, task, taught, training, folder=folder, **how)
    if state.is_main_process:
        record = {"profile": "paper", "seed": seed, "otherwise": list(task.otherwise)}
        record |= checkpoints.circumstances({task.arm.stage: curve}) | {"arm": asdict(task.arm), "scope": task.scope}
        record |= {"cost": asdict(_cost(task, len(taught))), "data": _data(task, known)}
        record |= {"on_real": plain(task.config), "labels of reports": _reads(task, given)}
        record |= {"decoder": frozen_hash(model.decoder)} if task.arm.lora else {}
        checkpoints.save(task.label, uvlm.stored(model, task.arm), record, home / "checkpoints")


def _fit(model: nn.Module, task: Task, taught: Volumes, training: Training, **how) -> Curve:
    config, arm = task.config, task.arm
    if arm.stage == SEG:  # all classes weigh alike, as printed
        how |= {"patch_dhw_vox": tuple(config.patch_dhw_vox), "balanced": False, "as_nnunet": True}
        return unet_training.fit(model, taught, training, config.batch, **how)
    if arm.stage == CLS:
        return classification.fit(model, taught, taught.labels, training, config.batch, arm.encoder_rate, **how)
    return report_writer.fit(model, taught, training, config.batch, arm.encoder_rate, keep=False, **how)


def _score(task: Task, known: dict[str, Volumes], given: Sources, home: Path, tell: Tell) -> None:
    """Ask what was stored; what it said, what is true, table and record appear together."""
    begun, seed = time.monotonic(), checkpoints.record(task.label, home / "checkpoints")["seed"]
    tensors, record = checkpoints.load(task.label, home / "checkpoints")
    model = build(replace(task, arm=replace(task.arm, start="")), given, seed, home)
    check_tensors(tensors, uvlm.stored(model, task.arm), task.label)
    if task.arm.lora and frozen_hash(model.decoder) != record["decoder"]:
        raise BadInput(
            f"checkpoints/{task.label} was trained on another decoder than {given.decoders[task.arm.lora]}; name that"
            f" one in the sources file: [decoders] {task.arm.lora} = …"
        )
    model.load_state_dict(tensors, strict=not task.arm.lora)
    model.eval().requires_grad_(False).to(PartialState().device)
    said, truth, labeller = {}, {}, labeller_of(task.scope, given) if task.arm.stage == REP else None
    with atomic_path(home / "results" / task.label) as partial:
        partial.mkdir()
        for split in known:
            if split == "train" or (task.arm.stage == REP and split != "test"):
                continue
            counted = pace(f"{split}: volumes asked", len(known[split]), tell)
            asked = ask(model, known[split], task.arm, task.config, labeller, counted)
            said[split] = read_said(write_said(asked, partial / f"{split}.npz"))
            truth[split] = read_said(write_said(truth_of(known[split]), partial / f"truth-{split}.npz"))
        found, notes = table(said, truth, task.arm, task.scope)
        found.to_csv(partial / TABLE, index=False, lineterminator="\n")
        record |= {"notes": notes, "minutes of scoring": round((time.monotonic() - begun) / 60, 2)}
        checkpoints.write_record(record, partial)
    tell("\n".join(notes) or f"{task.label}: every measure is stored")


def _reads(task: Task, given: Sources) -> str:
    return RADBERT if task.scope == CHEST and given.radbert else WORDS


def _data(task: Task, known: dict[str, Volumes]) -> dict:
    """What the data were: of each split volumes, patients and a hash; and what is missing, a sentence each."""
    splits = {
        split: {"volumes": len(some), "patients": len(set(some.patients)), "sha256": some.digest()}
        for split, some in known.items()
    }
    return {"name": DATA[task.scope], "splits": splits, "notes": [n for some in known.values() for n in some.notes]}


def _key(task: Task, taught: Volumes, seed: int, home: Path) -> str:
    """What tells a training from another one: it goes on only with the same configuration, scans and first weights."""
    settings = {name: value for name, value in plain(task.config).items() if name not in UNSAID}
    start = task.arm.start and checkpoints.record(of_seed(task.arm.start, seed), home / "checkpoints")["weights"]
    what = json.dumps([settings, asdict(task.arm), taught.digest(), start], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:8]
