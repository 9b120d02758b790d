"""The arms of the pointing reader: what a shipped encoder's frozen tokens tell under every condition and control."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arms import RESULTS
from ctvlm_lib.alignment.checkpoints import load
from ctvlm_lib.encoder import for_inference
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.experiments import answers, asked, pointing
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.controls import MOVED, REMOVED, ask, controls_for
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import check_committed

PROBES = {f"pointing-{name}": name for name in ("A", "A-continued", "B")}
UNCHANGED = ("pointing-A-continued",)  # asked without controls: it only shows what B's longer training is worth
ON_EVERYBODY = (answers.AS_ASKED, REMOVED, MOVED)


def run(
    name: str,
    cohort: Cohort | None = None,
    *,
    results: str | Path = RESULTS,
    folder: str | Path | None = None,
    profile: str = "full",
    regions: int = 4,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Fit the pointing reader on an encoder, ask it everything, and store its answers.

    Args:
        name: one of PROBES.
        cohort: None draws the profile's.
        results: gets ``<name>/`` with ``validation.npz``, ``test.npz`` and the record, and ``questions/`` with what was
            asked, so that the answers can be scored without the patients.
        folder: for answers on the way; a run that was killed goes on from there.
        profile: how many patients.
        regions: of each training patient that are learnt from.
        progress: called with a line after each condition and control.

    Returns:
        The answers on test.

    Raises:
        BadInput: no such probe, or a protocol that isn't committed.
    """
    if name not in PROBES:
        raise BadInput(f"no probe is called {name!r}; choose one of {', '.join(PROBES)}")
    under, started = check_committed(), time.monotonic()
    cohort = cohort or Cohort.of(profile)
    encoder = for_inference(load(PROBES[name])[0].encoder)
    reader = pointing.fit(encoder, cohort.scans["train"], regions=regions)
    fitted = time.monotonic() - started
    said = {
        split: everything(reader, cohort, split, controls=name not in UNCHANGED, folder=folder, progress=progress)
        for split in ("validation", "test")
    }
    record = {
        "config": {"encoder": PROBES[name], "regions": regions, "listens": reader.listens},
        "protocol": {"version": under.version, "sha256": under.sha256},
        "rows": {split: len(table) for split, table in said.items()},
        "minutes": {"fit": round(fitted / 60, 2), "all": round((time.monotonic() - started) / 60, 2)},
        "profile": cohort.profile,
        "seed": 0,
    } | checkpoints.circumstances({})
    with atomic_path(Path(results) / name) as partial:
        partial.mkdir()
        for split, table in said.items():
            # calibration and abstention ask about the unchanged prompt only; without the rest the file is half as large
            kept = table.assign(confidence=table["confidence"].where(table["control"] == answers.AS_ASKED))
            answers.save(kept, cohort.records[split], partial / f"{split}.npz")
        checkpoints.write_record(record, partial)
    for split in said:
        asked.save(asked.Asked.of(cohort.records[split], cohort.scans[split]), asked.path_of(split, results))
    return said["test"]


def everything(
    reader: pointing.Pointing,
    cohort: Cohort,
    split: str,
    conditions: Sequence[str] = CONDITIONS,
    *,
    controls: bool = True,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Ask a reader under every condition; on the test split under every control too, as the protocol says.

    Args:
        reader: who answers.
        cohort: whose split is asked about. split: "validation" or "test".
        conditions: of :data:`ctvlm_lib.experiments.conditions.CONDITIONS`.
        controls: False asks everything as it is.
        folder: keeps the answers of each condition and control; those that are there aren't asked for again.
        progress: called with a line after each.
    """
    fixed = protocol.load().content["controls"]
    tables = []
    for condition in conditions:
        for control in controls_for(condition, fixed):
            everybody = control.name in ON_EVERYBODY
            if control.name != answers.AS_ASKED and not (controls and split == "test"):
                continue
            some = cohort.questions(split, kinds=pointing.ANSWERS, form="closed",
                                    patients=0 if everybody else fixed["patients"])  # fmt: skip
            kept = folder and Path(folder) / f"{split}-{condition}-{control}.npz".replace(" ", "-")
            if kept and kept.is_file():
                tables.append(answers.load(kept, cohort.records[split]))
                continue
            tables.append(ask(reader, some, cohort.scans[split], condition, control))
            if kept:
                answers.save(tables[-1], cohort.records[split], kept)
            if progress:
                progress(f"{split}, {condition}, {control}: {len(some):,} answers")
    return pd.concat(tables, ignore_index=True)
