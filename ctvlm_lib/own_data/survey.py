"""Notebook 40: what is in the copies, and what of it can be asked about."""

import pandas as pd

from ctvlm_lib.own_data import begin
from ctvlm_lib.records import ct_rate, m3d, radgenome
from ctvlm_lib.sources import Sources

READERS = {"ct_rate": ct_rate.read, "radgenome": radgenome.read, "m3d": m3d.read}


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Read every copy that the sources file names, and tell what lies there and what doesn't."""
    begun = begin("40_grounded_records", profile, seed, out_dir)
    if begun:
        run, given = begun
        run.table(survey(given), "own_data", "Your copies: what can be asked with the files that are there.")


def survey(given: Sources) -> pd.DataFrame:
    """One row for each data set and split: questions, patients, volumes; files that are missing or unreadable."""
    rows = []
    for name, read in READERS.items():
        if not getattr(given, name):
            continue
        reading = read(getattr(given, name))
        for split in dict.fromkeys(record.split for record in reading.records):
            some = [record for record in reading.records if record.split == split]
            rows.append((reading.dataset, split, len(some), len({r.patient for r in some}),
                         len({r.volume for r in some}), sum(r.mask is not None for r in some),
                         len(reading.missing), len(reading.unreadable)))  # fmt: skip
        print(f"{reading.dataset}:", *reading.notes, sep="\n  ")
    columns = ["data set", "split", "questions", "patients", "volumes", "with a mask", "files missing", "unreadable"]
    return pd.DataFrame(rows, columns=columns)
