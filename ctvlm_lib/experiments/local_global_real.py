"""Profile ``paper``: the local–global arms on a user's CT-RATE and RadGenome-ChestCT, trained, asked and stored.

    ctvlm arm align-full --profile paper --sources FILE

says what it will cost, reads the tables, makes volumes ready if ``[run] prepared`` names a folder, computes the texts'
vectors once, trains as in medvista3d.txt §4.1, and stores what the model says of the test split as other arms do. The
same command goes on where it was stopped. Under ``accelerate launch`` all processes train, the first one scores.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import radgenome_training
from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.alignment.radgenome_cost import cost
from ctvlm_lib.alignment.radgenome_recipe import UNSAID, VOLUMES, OnRadGenome, on_radgenome
from ctvlm_lib.alignment.radgenome_texts import ENRICHED
from ctvlm_lib.alignment.radgenome_training import Corpus
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate.zero_shot import WORDINGS
from ctvlm_lib.experiments import local_global
from ctvlm_lib.experiments.local_global import Said
from ctvlm_lib.experiments.local_global_real_data import Tell, data_record, pace, read
from ctvlm_lib.experiments.local_global_real_scores import ask, truth_of
from ctvlm_lib.experiments.local_global_real_tables import table
from ctvlm_lib.experiments.local_global_tables import READINGS, TABLE
from ctvlm_lib.run import run_folder
from ctvlm_lib.sources import Sources, load
from ctvlm_lib.training_processes import joined

OPTIONS = ("patients", "steps", "batch", "epochs", "workers")  # of the command line
SCORED = ("validation", "test")
# what is otherwise than the paper says whatever the sources file says
ALWAYS = ("text tower frozen", "thresholds from held-out training patients")
ENRICHMENT = {"labels": "texts enriched by the label tables, whose words detection asks with", "none": "no enrichment"}


def command(name: str, seed: int, sources_file: str, out: str, changes: Mapping, suffix: str) -> int:
    """Run ``ctvlm arm align-… --profile paper``.

    Args:
        name, seed: of the arm. sources_file: where data and weights lie. out: the output folder.
        changes: of OPTIONS, from the command line. suffix: what they add to the arm's name.
    """
    if extra := sorted(set(changes) - set(OPTIONS)):
        there = ", ".join(f"--{one}" for one in OPTIONS)
        raise BadInput(f"{name} takes --seed, --sources, {there}, not --{extra[0]}; leave it out")
    local_global.recipe_of(name)  # a wrong name is told before anything is read
    home, label = run_folder("paper", out), of_seed(name + suffix, seed)
    found = run(name, load(sources_file), seed, home=home, changes=changes, label=label)
    if found is not None:
        shown = found[(found["reading"] == READINGS[0]) & (found["wording"] == WORDINGS[0])]
        for _, row in shown.iterrows():
            print(f"{row['measure']}: {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
        print(f"on test; scores in {home / 'results' / label}; `ctvlm ledger --profile paper` shows them")
    return 0


def config_of(name: str, given: Sources, seed: int = 0, changes: Mapping | None = None) -> OnRadGenome:
    """What an arm trains on a user's data.

    Raises:
        BadInput: no such arm, or an option that it doesn't have.
    """
    patients = {"patients": given.patients} if given.patients else {}
    return on_radgenome(local_global.recipe_of(name), seed, patients | dict(given.alignment) | dict(changes or {}))


def run(
    name: str, given: Sources, seed: int = 0, *, home: str | Path, changes: Mapping | None = None, label: str = "",
    progress: bool = True, on_step: Callable[[dict], None] | None = None,
) -> pd.DataFrame | None:  # fmt: skip
    """Train an arm on a user's data, ask it about the test split, store both.

    Args:
        name: one of :data:`ctvlm_lib.experiments.local_global.ARMS`.
        given: where data and weights lie, and what is otherwise.
        seed: of training.
        home: gets ``results/<label>/`` and ``checkpoints/<label>/``; ``training`` and ``texts``.
        changes: options besides those of ``given``. label: of both folders, instead of the arm's and seed's name.
        progress, on_step: see :func:`ctvlm_lib.training.train`.

    Returns:
        The table of measures; None in all processes but the first.

    Raises:
        BadInput: an arm, option, table, volume or weights that can't be used.
    """
    state = joined()
    first, home, label = state.is_main_process, Path(home), label or of_seed(name, seed)
    tell: Tell = (lambda line: print(line, flush=True)) if progress and first else (lambda line: None)
    config, begun = config_of(name, given, seed, changes), time.monotonic()
    tell(f"{label}, with all of the paper's training volumes:\n{cost(config, VOLUMES)}")
    corpora = read(config, given, home, tell)
    taught = corpora["train"]
    config = config.for_volumes(len(taught))
    here = cost(config, len(taught))
    tell(f"with yours:\n{here}")
    folder = home / "training" / f"{label}-{_key(config, taught, given)}"
    model, curve, measured = radgenome_training.fit(config, taught, folder=folder, on_step=on_step, progress=progress)
    if not first:  # two writers would take each other's folders away
        return None
    record = {"profile": "paper", "seed": seed, "otherwise": otherwise(given, config, changes)}
    record |= checkpoints.circumstances({"training": curve}) | measured | {"data": data_record(corpora)}
    record |= {"text tower": Path(given.cxr_bert).name, "cost": asdict(here), "on_radgenome": _plain(config)}
    radgenome_training.save(home / "checkpoints" / label, model, record)
    return _store(home, label, name in local_global.CROPPED, corpora, record, begun, tell)


def otherwise(given: Sources, config: OnRadGenome, changes: Mapping | None = None) -> list[str]:
    """What an arm is run with otherwise than the paper says: its numbers stand in the ledger with this remark."""
    options = {*given.alignment, *(changes or {}), *(("patients",) if given.patients else ())}
    enriched = [ENRICHMENT[config.enriched]] if config.recipe.semantic and config.enriched in ENRICHED else []
    return [*ALWAYS, *enriched, *sorted(options - {*UNSAID, "enriched"})]


def _store(
    home: Path, label: str, cut_out: bool, corpora: dict[str, Corpus], record: dict, begun: float, tell: Tell
) -> pd.DataFrame:
    """Ask what was stored about both splits; what it said, what is true, table and record appear together."""
    model, config = radgenome_training.read(home / "checkpoints" / label)
    model.to(PartialState().device)
    said, truth = {}, {}
    with atomic_path(home / "results" / label) as partial:
        partial.mkdir()
        for split in SCORED:
            corpus = corpora[split]
            asked = ask(model, corpus, config, cut_out, pace(f"{split}: volumes asked", len(corpus), tell))
            said[split] = Said.load(asked.save(partial / f"{split}.npz"))  # so a table from the file is the same
            truth[split] = truth_of(corpus, config)
            with open(partial / f"truth-{split}.npz", "wb") as file:
                np.savez_compressed(file, **truth[split])
        found, notes = table(said["validation"], truth["validation"], said["test"], truth["test"])
        found.to_csv(partial / TABLE, index=False, lineterminator="\n")
        record |= {"notes": notes, "data": data_record(corpora), "minutes": round((time.monotonic() - begun) / 60, 2)}
        checkpoints.write_record(record, partial)
    tell("\n".join(notes) or "every measure is stored")
    return found


def _plain(config: OnRadGenome) -> dict:
    """A configuration as JSON has it, without folders of this machine."""
    return json.loads(json.dumps(asdict(config) | {"enriched": Path(config.enriched).name}))


def _key(config: OnRadGenome, taught: Corpus, given: Sources) -> str:
    """What tells a training from another one: it goes on only with the same configuration, volumes and texts."""
    plain = _plain(config)
    plain.pop("workers"), plain["recipe"]["training"].pop("checkpoint_every")
    what = [plain, taught.pairs.digest(), Path(given.cxr_bert).name]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
