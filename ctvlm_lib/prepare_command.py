"""``ctvlm prepare``: many volumes as a paper's system reads them, through Dask."""

import argparse
from pathlib import Path

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import RECIPES, prepare
from ctvlm_lib.volume.cases import CT, is_batch

EXAMPLES = """
examples:
  ctvlm prepare cases.csv -o prepared --recipe Med3DVLM     .npy files; those of Med3DVLM's recipe are read as M3D's
  ctvlm prepare cases.csv -o prepared --scheduler tcp://node1:8786
  ctvlm prepare sources.toml --arm align-full --workers 16  what `ctvlm arm align-full --profile paper` reads, into
                                                            [run] prepared of that file (ctvlm_lib/sources.py)
what is finished is kept: the same command goes on where it was stopped
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help=f"a CSV with the columns ct and, if wished, name; a folder of folders with {CT}; or, with --arm, the"
        " sources file of profile paper",
    )
    parser.add_argument("-o", "--out", type=Path, help="output folder, for one recipe")
    parser.add_argument("--recipe", choices=RECIPES, help="whose input is made (default: Med3DVLM)")
    parser.add_argument("--arm", help="make what an arm of profile paper keeps: align-… or uvlm-…")
    parser.add_argument(
        "--no-hu-check", action="store_true", help="accept values that don't look like Hounsfield units"
    )
    parser.add_argument("--force", action="store_true", help="replace existing output")
    many.add_arguments(parser)


def command(arguments: argparse.Namespace) -> int:
    """Run ``ctvlm prepare``; 0 = all prepared, 1 = some failed.

    Raises:
        BadInput: what the user gave can't be used.
    """
    who = {"workers": arguments.workers, "scheduler": arguments.scheduler}
    if arguments.arm is not None:
        return _of_arm(arguments, who)
    if not is_batch(arguments.source):
        raise BadInput(f"{arguments.source} is neither a CSV nor a folder whose folders hold {CT}; give one of these")
    if arguments.out is None:
        raise BadInput("say where prepared volumes shall lie: -o FOLDER")
    rows = prepare.prepare_all(
        prepare.find_cases(arguments.source), arguments.out, arguments.recipe or "Med3DVLM",
        check=not arguments.no_hu_check, force=arguments.force, **who,
    )  # fmt: skip
    return many.tell(rows, f"prepared in {arguments.out}", arguments.out / prepare.TABLE)


def _of_arm(arguments: argparse.Namespace, who: dict) -> int:
    from ctvlm_lib import sources
    from ctvlm_lib.experiments import prepared_arms

    others = {"-o": arguments.out, "--recipe": arguments.recipe, "--force": arguments.force}
    if given := [option for option, value in others.items() if value] + ["--no-hu-check"] * arguments.no_hu_check:
        raise BadInput(f"--arm takes --workers and --scheduler, not {given[0]}; the sources file and the arm say it")
    rows, table = prepared_arms.prepare_all(arguments.arm, sources.load(arguments.source), **who)
    return many.tell(rows, f"ready for {arguments.arm}", table)
