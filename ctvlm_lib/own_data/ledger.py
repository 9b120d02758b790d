"""Notebook 85: the ledger with the rows that the user's data and weights fill."""

from ctvlm_lib.ledger import page, rows
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.own_data import begin


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Write the ledger of profile ``paper`` and show which published numbers now have one of ours beside them."""
    begun = begin("85_ledger", profile, seed, out_dir)
    if begun:
        run, _ = begun
        found = page.write(run.folder, Results.of_profile(profile, run.folder.parent))
        run.table(rows.counts(found), "own_counts", "Published numbers by kind, with your data.")
        filled = found[(found["kind"] == "data") & found["ours"].notna()]
        columns = ["paper", "table", "row", "column", "condition", "published", "ours", "low", "high", "n", "arm"]
        shown = filled[columns].round(3).reset_index(drop=True)
        run.table(shown, "own_rows", "Published numbers beside those on your data.")
