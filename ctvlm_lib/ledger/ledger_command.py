"""``ctvlm ledger``: every published number beside ours, counted, as CSV and as a page."""

import argparse

from ctvlm_lib.run import check_profile, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm ledger``."""
    parser.add_argument("--profile", default="quick", help="quick (default), full or paper: into which folder")
    parser.add_argument("--out", default="", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out)")


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm ledger``."""
    check_profile(args.profile)
    from ctvlm_lib.ledger import page, rows  # these bring the models along, which takes seconds
    from ctvlm_lib.ledger.ours import Results

    home = run_folder(args.profile, args.out)
    found = page.write(home, Results.of_profile(args.profile, args.out))
    print(rows.counts(found).to_string(index=False))
    print(f"{len(found)} published numbers; written to {home}: ledger.csv, ledger_claims.csv, report/ledger.html")
    return 0
