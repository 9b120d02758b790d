"""``ctvlm table PAPER.TABLE``: a published table beside ours, and what it takes to have the rest."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib import sources
from ctvlm_lib.alignment.arm_tables import RESULTS, ceilings, of_seed
from ctvlm_lib.errors import atomic_path
from ctvlm_lib.ledger import published
from ctvlm_lib.run import check_profile, run_folder

if TYPE_CHECKING:
    import pandas as pd

    from ctvlm_lib.ledger.ours import Results

MORE = """\
profiles:
  quick   (default) from the answers that ship with the workbook; beside it what `make run` left here, if it did
  full    first trains the arms of this table that are missing, one after the other (hours on a CPU; can be stopped
          and taken up again)
  paper   which commands ask for the real data and weights; with --sources FILE (see ctvlm_lib/sources.py) first
          trains and asks the arms of this table that are missing
"""
QUICK = {"contour.T1": "70_quick_contour_T1.csv", "dualbox.T1": "70_quick_dualbox_T1.csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm table``."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, MORE
    parser.add_argument("name", nargs="?", metavar="PAPER.TABLE", help="e.g. dualbox.T1; without it, the list")
    parser.add_argument("--profile", default="quick", help="quick (default), full or paper")
    parser.add_argument("--sources", default="", metavar="FILE", help="profile paper: where your data and weights lie")
    parser.add_argument("--out", default="", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out)")


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm table``."""
    check_profile(args.profile)
    sources.check_profile(args.sources, args.profile)
    if not args.name:
        print(_list())
        return 0
    cells = published.table(args.name)
    import pandas as pd

    from ctvlm_lib.experiments.vlm_arms import ARMS
    from ctvlm_lib.ledger import rows, table_text, verdicts  # these bring the models along, which takes seconds
    from ctvlm_lib.ledger.ours import Results

    name, title, home = cells[0].name, cells[0].title, run_folder(args.profile, args.out)
    results = Results.of_profile(args.profile, args.out)
    if args.profile == "full":
        train_missing(rows.ledger(cells, results), home)
        results = Results.of_profile("full", args.out)
    if args.profile == "paper" and args.sources:
        run_real(cells, results, args.sources, home)
    found = rows.ledger(cells, results)
    print(table_text.text(name, title, found, verdicts.verdicts(cells[0].paper, results)))
    if encoders := sorted({ARMS[arm].encoder for arm in found["arm"] if arm in ARMS}):
        print(f"\n{ceilings(encoders)} (a linear read-out of its own features that is told the region)")
    if args.profile == "paper":
        print(_commands(found))
    smoke = home / "tables" / QUICK.get(name, "-")
    if smoke.is_file():
        print(f"\nThis machine's own smoke test (one seed, minutes of training; judges nothing), {smoke.name}:")
        print(pd.read_csv(smoke).to_string(index=False))
    with atomic_path(home / "tables" / f"{name}.csv") as partial:
        found.to_csv(partial, index=False)
    print(f"\nwritten: {home / 'tables' / f'{name}.csv'}")
    return 0


def train_missing(found: "pd.DataFrame", home: Path) -> None:
    """Train the arms whose answers a table lacks, each with the protocol's seeds, one after the other.

    Args:
        found: the table's rows.
        home: ``DIR/full``; arms that lie in its ``results`` aren't trained again.
    """
    from ctvlm_lib import arm_command
    from ctvlm_lib.ledger.ours import Results
    from ctvlm_lib.records import protocol

    wanted = [arm for arm in dict.fromkeys(found["arm"]) if arm]
    results = Results((RESULTS, home / "results"))
    jobs = [(arm, seed) for arm in wanted for seed in protocol.load().seeds("full") if seed not in results.folders(arm)]
    for count, (arm, seed) in enumerate(jobs, start=1):
        print(f"{count} of {len(jobs)}: {of_seed(arm, seed)}", flush=True)
        arm_command.run_arm([arm, "--seed", str(seed), "--out", str(home.parent)])


def run_real(cells: Sequence[published.Published], results: "Results", sources_file: str, home: Path) -> None:
    """Run the arms of profile paper whose answers a table lacks.

    Args:
        cells: of the table.
        results: of the user's arms.
        sources_file: where data and weights lie.
        home: ``DIR/paper``.
    """
    from ctvlm_lib.experiments import real_arms
    from ctvlm_lib.ledger import real_places
    from ctvlm_lib.ledger.quantities import RealScore

    given = sources.load(sources_file)
    wanted = dict.fromkeys(one.arm for one in map(real_places.quantity, cells) if isinstance(one, RealScore))
    for arm in (arm for arm in wanted if not results.real_folders(arm)):
        real_arms.run(arm, given, home=home)


def _list() -> str:
    found = {name: published.table(name) for name in published.names()}
    lines = [f"{name:15}{len(cells):4} numbers  {cells[0].title}" for name, cells in found.items()]
    return "\n".join(lines)


def _commands(found: "pd.DataFrame") -> str:
    asked = found[found["kind"] == "data"]
    if asked.empty:
        return "\nNo number of this table asks for the real data set."
    lines = ["", "With the real data:"]
    lines += [f"    {one}" for one in sorted(set(asked["command"])) if one]
    without = int((asked["command"] == "").sum())
    if without:
        lines.append(f"    {without} of {len(asked)} numbers have no command yet; the reasons stand above")
    return "\n".join(lines)
