"""Render the prompt of one case: which lines are drawn, in which colours, and to which kind of file."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ctvlm_lib import mask as masks
from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.mask import LabelMap, largest_component
from ctvlm_lib.prompt import distractor
from ctvlm_lib.prompt.box import box_outline, check_box
from ctvlm_lib.prompt.contour import check_side, check_thickness, contour
from ctvlm_lib.prompt.overlay import overlay
from ctvlm_lib.volume import Volume, window_levels
from ctvlm_lib.volume.hu import check_finite

STYLES = ("contour", "box", "dual")
KINDS = ("rgb", "label", "png")
FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz", ".zip")


@dataclass(frozen=True)
class Style:
    """How a prompt is drawn.

    Attributes:
        style: ``contour`` (blue line), ``box`` (green box), ``dual`` (green box, and a red one on a distractor).
        thickness: of the lines, pixels, odd.
        side: of the contour: ``inner`` or ``both``.
        box: ``slice`` or ``volume``.
        distractor: ``auto`` (= nearest), ``nearest``, ``similar``, ``random`` or a structure's name; read by ``dual``.
        window: of the grey image below the lines; preset's name or (level, width) in HU.
        seed: of a random distractor.
    """

    style: str = "contour"
    thickness: int = 3
    side: str = "inner"
    box: str = "slice"
    distractor: str = "auto"
    window: str | tuple[float, float] = "soft tissue"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise BadInput(f"no prompt style is called {self.style!r}; choose one of {', '.join(STYLES)}")
        check_thickness(self.thickness)
        check_side(self.side)
        check_box(self.box)
        window_levels(self.window)
        if self.seed < 0:
            raise BadInput(f"seed must be a whole number from 0 on, got {self.seed}")


@dataclass(frozen=True, eq=False)
class Prompt:
    """The lines of one prompt.

    Attributes:
        lines: (line, colour, what it outlines), line bool ``(D, H, W)``.
        reason: why this distractor; empty without one.
    """

    lines: list[tuple[np.ndarray, str, str]]
    reason: str = ""

    @property
    def outlines(self) -> list[tuple[np.ndarray, str]]:
        """(line, colour) as :func:`overlay` takes them."""
        return [(line, colour) for line, colour, _ in self.lines]

    def as_label(self) -> np.ndarray:
        """uint16 ``(D, H, W)``: 1 = first line, 2 = second; a later one covers an earlier one."""
        label = np.zeros(self.lines[0][0].shape, dtype=np.uint16)
        for value, (line, _, _) in enumerate(self.lines, start=1):
            label[line] = value
        return label

    def describe(self) -> str:
        """One sentence for a person: what is outlined in which colour on how many slices."""
        parts = []
        for line, colour, name in self.lines:
            slices = int(line.any(axis=(1, 2)).sum())
            parts.append(f"{name} in {colour} on {slices} of {line.shape[0]} slices, {int(line.sum())} voxels")
        return "; ".join(parts) + (f" ({self.reason})" if self.reason else "")


def draw(labels: LabelMap, roi: str, style: Style | None = None, volume: Volume | None = None) -> Prompt:
    """Make the lines of a prompt.

    Args:
        labels: the patient's structures, on the volume's grid.
        roi: the region to outline.
        style: how; the contour paper's by default.
        volume: read by a ``similar`` distractor.

    Raises:
        BadInput: an unknown structure, an empty mask, or no distractor to be had.

    Source: contour.txt §3.1 (blue contour), dualbox.txt §3.1 (green box, red box).
    """
    style = style or Style()
    region = largest_component(labels.binary(roi))
    if style.style == "contour":
        return Prompt([(contour(region, style.thickness, style.side, largest_component=False), "blue", roi)])
    lines = [(box_outline(region, style.thickness, style.box), "green", roi)]
    if style.style == "box":
        return Prompt(lines)
    how = "nearest" if style.distractor == "auto" else style.distractor
    chosen = distractor.choose(labels, roi, how, volume, style.seed)
    other = largest_component(chosen.mask)
    lines.append((box_outline(other, style.thickness, style.box), "red", chosen.name))
    return Prompt(lines, chosen.reason)


def render(
    ct: str | Path, mask: str | Path, roi: str, out: str | Path, kind: str = "rgb", style: Style | None = None, *,
    names=None, series: str | None = None, check=True, force=False,
) -> dict:  # fmt: skip
    """Read a CT and its masks, draw a prompt and write it.

    Args:
        ct: NIfTI file or DICOM folder.
        mask: label map, binary mask, or folder of binary masks; put on the CT's grid if it lies on another.
        roi: the region to outline.
        out: ``.nii``/``.nii.gz`` file for ``rgb`` and ``label``, a folder for ``png``.
        kind: ``rgb`` (NIfTI RGB24: windowed CT with coloured lines), ``label`` (NIfTI of the lines only, 1 and 2),
            ``png`` (a folder with one picture per axial slice, ``slice_000.png`` the lowest).
        style: how to draw.
        names: see :func:`ctvlm_lib.mask.load`.
        series: see :func:`ctvlm_lib.volume.load`.
        check: refuse a CT whose values can't be HU.
        force: replace an existing ``out``.

    Returns:
        A record of what was drawn: region, style, a sentence that describes it, voxels of each line, and notes.

    Raises:
        BadInput: any input that can't be used, or an output that exists; nothing is written then.
    """
    out, style = Path(out), style or Style()
    check_output(out, kind, force)
    if out.resolve() in (Path(ct).resolve(), Path(mask).resolve()):
        raise BadInput(f"{out} is an input, and it would be replaced; choose another output")
    volume = volumes.load(ct, series=series, check=check)
    if not check:  # any unit can be drawn, but NaN has no grey
        check_finite(volume.hu, Path(ct).name)
    labels = masks.load(mask, like=volume, names=names)
    prompt = draw(labels, roi, style, volume)
    write(prompt, volume, out, kind, style.window)
    return {
        "ct": str(ct), "mask": str(mask), "roi": roi, "out": str(out), "as": kind, **asdict(style),
        "prompt": prompt.describe(), "voxels": [int(line.sum()) for line, _, _ in prompt.lines],
        "notes": [*volume.notes, *labels.notes],
    }  # fmt: skip


def check_output(out: Path, kind: str, force: bool = False) -> None:
    """Refuse an output path that does not fit the kind, or that exists."""
    if kind not in KINDS:
        raise BadInput(f"can't render as {kind!r}; choose one of {', '.join(KINDS)}")
    if kind != "png" and not out.name.endswith((".nii", ".nii.gz")):
        raise BadInput(f"{kind} is written as NIfTI, but {out.name} does not end in .nii or .nii.gz")
    if kind == "png" and out.suffix.lower() in FILE_SUFFIXES:  # a case's name may hold dots, as a DICOM UID does
        raise BadInput(f"png is written as a folder of slices, but {out.name} looks like a file; give a folder's name")
    if out.exists() and not force:
        raise BadInput(f"{out} exists already; choose another output, or replace it with --force")
    if kind == "png" and out.is_dir() and any(not f.match("slice_*.png") for f in out.iterdir()):
        raise BadInput(f"{out} holds other files than slices, and --force would remove them; choose another folder")


def parse_window(text: str) -> str | tuple[float, float]:
    """A preset's name as it is, or "40/400" as (level, width)."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        raise BadInput(f"window {text!r} is neither a preset's name nor level/width in HU, e.g. 40/400") from None


def write(prompt: Prompt, volume: Volume, out: Path, kind: str, window="soft tissue") -> Path:
    """Write a prompt as ``kind`` on the volume's grid, in the axes of the file that the CT came from."""
    if kind == "label":
        return volumes.save_nifti(out, prompt.as_label().astype(np.uint8), volume.affine, volume.orientation)
    picture = overlay(volume, prompt.outlines, window)
    if kind == "rgb":
        return volumes.save_nifti(out, picture, volume.affine, volume.orientation)
    from PIL import Image

    with atomic_path(out) as folder:
        folder.mkdir()
        for k, plane in enumerate(picture):
            Image.fromarray(plane).save(folder / f"slice_{k:03d}.png")
    return out
