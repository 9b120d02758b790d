"""Notebook 70: the arms that the sources file lists, trained and asked."""

import pandas as pd

from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import real_arms
from ctvlm_lib.own_data import begin


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Run each arm that hasn't finished, and show the closed accuracy of all."""
    begun = begin("70_qwen_lora", profile, seed, out_dir)
    if not begun:
        return
    run, given = begun
    rows = []
    for name in given.arms:
        folder = run.folder / "results" / of_seed(name, seed)
        table = real_arms.read(folder) if folder.is_dir() else real_arms.run(name, given, seed, home=run.folder)
        closed = score_closed(table[table["form"] == "closed"])
        rows.append((name, len(table), len(closed), round(100 * closed["correct"].mean(), 1)))
    columns = ["arm", "answers", "closed", "closed accuracy, %"]
    run.table(pd.DataFrame(rows, columns=columns), "own_arms", "Models on your data; notebook 80 has the intervals.")
