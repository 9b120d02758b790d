"""The ``ctvlm`` command, also ``python -m ctvlm_lib``: one module per subcommand, imported only when asked for."""

import argparse
import importlib
import io
import os
import sys

import ctvlm_lib
from ctvlm_lib.errors import BadInput

# name: (module with add_arguments(parser) and command(args) -> exit code, what it does)
COMMANDS = {
    "doctor": ("ctvlm_lib.doctor", "check this installation: versions, device, memory, data, folders"),
    "assets": ("ctvlm_lib.assets", "list or fetch the real CTs and small models that the workbook uses"),
    "run": ("ctvlm_lib.workbook", "run the notebooks end to end and write the report page"),
    "arm": ("ctvlm_lib.arm_command", "train, score and store one arm of a table"),
    "train": ("ctvlm_lib.train_command", "train again a network that ships with the workbook"),
    "verify": ("ctvlm_lib.ledger.verify_command", "compute stored tables again from the stored predictions"),
    "archive": ("ctvlm_lib.ledger.packed_results", "pack the stored results, so that they can be verified elsewhere"),
    "table": ("ctvlm_lib.ledger.table_command", "print a published table beside ours, e.g. dualbox.T1"),
    "ledger": ("ctvlm_lib.ledger.ledger_command", "count and write every published number beside ours"),
    "render": ("ctvlm_lib.prompt.command", "draw a visual prompt (contour, box) into a CT and save it"),
    "prepare": ("ctvlm_lib.prepare_command", "bring many CTs to a paper's input, in several processes or on a cluster"),
    "app": ("ctvlm_lib.explore.server", "open the prompt explorer in the browser"),
}
INTERRUPTED = 130  # as shells report a process ended by Ctrl-C
BROKEN_PIPE = 141  # … or by a reader that closed the pipe


def parser_for(argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser, with the options of the subcommand that ``argv`` names: the others aren't imported."""
    parser = argparse.ArgumentParser(
        prog="ctvlm",
        description="Workbook on 3D CT vision-language models. For research and teaching, not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"ctvlm {ctvlm_lib.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == asked:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 2 for what the user can correct, 1 for a failure, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows' code pages lack − and others: a ? rather than a traceback
            stream.reconfigure(errors="replace")
    try:
        args = parser_for(argv).parse_args(argv)
        code = importlib.import_module(COMMANDS[args.command][0]).command(args)
        sys.stdout.flush()
        return code or 0
    except BadInput as error:
        print(f"ctvlm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nctvlm: stopped; what is finished is kept, the same command continues from there", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has closed it (`ctvlm … | head`); Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is None:
            raise
        print(f"ctvlm: {error.filename}: {error.strerror}; give another path", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
