"""Notebook 80: scores of the stored answers, by kind of question, with intervals over patients."""

from pathlib import Path

import pandas as pd

from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.evaluate.intervals import patient_bootstrap
from ctvlm_lib.evaluate.text import text_scores_per_pair
from ctvlm_lib.experiments import real_arms
from ctvlm_lib.own_data import begin


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Score every arm whose answers are stored."""
    begun = begin("80_evaluation", profile, seed, out_dir)
    if begun:
        run, _ = begun
        folders = sorted(path.parent for path in (run.folder / "results").glob(f"*/{real_arms.QUESTIONS}"))
        if not folders:
            print("no answers are stored yet; list arms in the sources file, [run] arms = […], and run notebook 70")
            return
        found = pd.concat([scores(folder) for folder in folders], ignore_index=True)
        run.table(found.round(1), "own_scores", "Models on your data: accuracy of closed answers, ROUGE-L of others.")


def scores(folder: Path) -> pd.DataFrame:
    """One row for each form, kind and stratum of an arm's answers, 0–100, with its interval over patients."""
    table, rows = real_arms.read(folder), []
    correct = score_closed(table)["correct"] * 100.0
    for (form, kind, stratum), group in table.groupby(["form", "kind", "stratum"]):
        if form == "closed":
            metric, each = "accuracy", correct[group.index]
        else:
            texts = group["answer"].tolist(), group["truth"].tolist()
            metric, each = "ROUGE-L", text_scores_per_pair(*texts, metrics=["ROUGE-L"])["ROUGE-L"]
        found = patient_bootstrap(each, group["patient"])
        rows.append((folder.name, form, kind, stratum or "–", found.n, found.patients, metric, found.value, found.low,
                     found.high))  # fmt: skip
    columns = ["arm", "form", "kind", "region", "questions", "patients", "metric", "score", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
