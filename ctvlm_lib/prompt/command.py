"""``ctvlm render``: one case, or a batch from a folder or CSV."""

import argparse
import csv
from pathlib import Path

from ctvlm_lib import many
from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt import batch
from ctvlm_lib.prompt.render import KINDS, STYLES, Style, parse_window, render
from ctvlm_lib.volume.cases import is_batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "ct",
        type=Path,
        metavar="CT",
        help="NIfTI file or DICOM folder; or, for a batch, a CSV of cases or a folder of case folders",
    )
    parser.add_argument("--mask", type=Path, help="label map, binary mask, or folder of binary masks (single case)")
    parser.add_argument("--roi", help="the region to outline, by any of its names, e.g. liver")
    parser.add_argument(
        "--style",
        choices=STYLES,
        default="contour",
        help="blue contour; green box; green and red box (default: contour)",
    )
    parser.add_argument(
        "--distractor",
        default="auto",
        help="for dual: auto (= nearest), nearest, similar, random, or a structure's name",
    )
    parser.add_argument("--thickness", type=int, default=3, help="of the line, pixels, odd (default: 3)")
    parser.add_argument(
        "--side", choices=("inner", "both"), default="inner", help="which pixels eq. (1) starts from (default: inner)"
    )
    parser.add_argument(
        "--box", choices=("slice", "volume"), default="slice", help="box of each slice, or the 3-D box's section"
    )
    parser.add_argument(
        "--window", default="soft tissue", help="preset (soft tissue, lung …) or level/width in HU, e.g. 40/400"
    )
    parser.add_argument(
        "--as", dest="kind", choices=KINDS, default="rgb", help="RGB NIfTI, label NIfTI, or a folder of PNG slices"
    )
    parser.add_argument(
        "--names", help="names of the labels: vista3d, totalsegmentator, or a CSV with the columns id and name"
    )
    parser.add_argument(
        "--series", help="instance UID of the DICOM series, or its beginning, if the folder holds several"
    )
    parser.add_argument("--seed", type=int, default=0, help="of a random distractor")
    parser.add_argument(
        "--no-hu-check", action="store_true", help="accept values that don't look like Hounsfield units"
    )
    parser.add_argument("--force", action="store_true", help="replace existing output")
    many.add_arguments(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="output file; for png and for a batch, a folder")


def command(arguments: argparse.Namespace) -> int:
    """Run ``ctvlm render``; 0 = all rendered, 1 = some of a batch failed.

    Raises:
        BadInput: what the user gave can't be used.
    """
    style = Style(
        arguments.style,
        arguments.thickness,
        arguments.side,
        arguments.box,
        arguments.distractor,
        parse_window(arguments.window),
        arguments.seed,
    )
    names = _names(arguments.names)
    if is_batch(arguments.ct):
        return _batch(arguments, style, names)
    if arguments.mask is None or arguments.roi is None:
        raise BadInput(
            "a single case needs --mask LABELS and --roi NAME; a batch needs a CSV or a folder whose folders"
            " hold ct.nii.gz"
        )
    made = render(
        arguments.ct, arguments.mask, arguments.roi, arguments.out, arguments.kind, style,
        names=names, series=arguments.series, check=not arguments.no_hu_check, force=arguments.force,
    )  # fmt: skip
    for note in made["notes"]:
        print(f"note: {note}")
    print(f"{arguments.out}: {made['prompt']}")
    return 0


def _batch(arguments: argparse.Namespace, style: Style, names) -> int:
    if not arguments.ct.exists():
        raise BadInput(f"there is no file {arguments.ct}")
    cases = batch.find_cases(arguments.ct, arguments.roi, style)
    rows = batch.render_all(
        cases, arguments.out, arguments.kind, workers=arguments.workers, scheduler=arguments.scheduler, names=names,
        check=not arguments.no_hu_check, force=arguments.force,
    )  # fmt: skip
    return many.tell(rows, f"rendered into {arguments.out}", arguments.out / batch.TABLE)


def _names(text: str | None) -> str | dict[int, str] | None:
    """A vocabulary's name as it is, or a table of ids and names read from a CSV."""
    if text is None or not text.lower().endswith(".csv"):
        return text
    path = Path(text)
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise BadInput(f"{path.name} is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise BadInput(f"{path.name} can't be read: {error.strerror}; give a CSV of ids and names") from None
    try:
        whole = {"id", "name"} <= set(reader.fieldnames or ())
        names = {int(row["id"]): row["name"] for row in reader} if whole else {}
    except csv.Error as error:
        raise BadInput(f"{path.name} can't be read as a CSV: {error}; save it again") from None
    except (TypeError, ValueError):
        raise BadInput(f"{path.name} line {reader.line_num}: an id must be a whole number") from None
    if not whole:
        raise BadInput(f"{path.name} needs the columns id and name, got {reader.fieldnames}")
    return names
