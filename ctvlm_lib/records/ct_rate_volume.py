"""One CT-RATE volume in HU and mm, whichever generation it is of: the metadata's rescale is applied once or not at all.

CT-CLIP's loader multiplies every volume by the metadata's slope and adds its intercept, also where the file is in HU
already, and looks neither at the header's rescale nor at its affine.

Sources: CT-CLIP at a2a155c, issues 28 (an intercept of −8192) and 50 (the fixed generation rescaled again).
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ctvlm_lib import volume
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume
from ctvlm_lib.volume.read import open_nifti

METADATA_COLUMNS = ("RescaleIntercept", "RescaleSlope", "XYSpacing", "ZSpacing")


def load_volume(path: str | Path, metadata_row: dict[str, str] | None = None) -> Volume:
    """Load one volume in HU: the metadata's slope and intercept are applied once, and only where they belong.

    Whether values are in HU is decided by the values: a chest CT has both air near −1000 HU and soft tissue. The
    metadata is applied if the values aren't HU as they are, are HU afterwards, the header has no rescale of its own,
    and the file isn't of the ``*_fixed`` generation.

    Where the header states 1 mm along all axes, which is what a header without geometry states, the spacing is taken
    from the metadata, if its numbers of rows, columns and slices agree with the array.

    Args:
        path: the NIfTI file.
        metadata_row: its row of :func:`ctvlm_lib.records.ct_rate.metadata`.

    Returns:
        The volume in LPS axes; ``notes`` say what was applied and what wasn't.

    Raises:
        BadInput: it can't be brought to HU with certainty, or the metadata doesn't belong to it.
    """
    path = Path(path)
    found = volume.load(path, check=False)
    rescaled, note = _in_hu(found, path, metadata_row)
    return _with_spacing(replace(rescaled, notes=(*rescaled.notes, note)), path, metadata_row)


def _looks_like_hu(values: np.ndarray) -> bool:
    """Whether there is both air or lung, and soft tissue: at least 1 % each, padding below −1200 not counted."""
    sample = values.reshape(-1)[:: max(1, values.size // 2_000_000)]
    sample = sample[sample > -1200]
    if sample.size == 0:
        return False
    air, tissue = np.mean(sample < -700), np.mean((sample > -150) & (sample < 250))
    return bool(air >= 0.01 and tissue >= 0.01)


def _in_hu(found: Volume, path: Path, row: dict[str, str] | None) -> tuple[Volume, str]:
    """The volume in HU, and a sentence that says what was applied."""
    as_it_is = _looks_like_hu(found.hu)
    slope, intercept = (1.0, 0.0)
    if row is not None:
        slope, intercept = _number(row, "RescaleSlope", path), _number(row, "RescaleIntercept", path)
    if (slope, intercept) == (1.0, 0.0):
        if not as_it_is:
            volume.check_hu(found.hu, path.name)
            hint = "; give its row of metadata" if row is None else ""
            raise BadInput(f"{path.name} doesn't hold air near -1000 and soft tissue near 0 to 100 HU{hint}")
        return found, "in HU as stored; no rescale from metadata"
    told = f"slope {slope:g} and intercept {intercept:g}"
    again = replace(found, hu=found.hu * np.float32(slope) + np.float32(intercept))
    afterwards = _looks_like_hu(again.hu)
    scaled, fixed = _header_rescale(path), _is_fixed(path)
    if as_it_is and (scaled or fixed or not afterwards):
        return found, f"in HU as stored; the metadata's {told} not applied a second time"
    if as_it_is:
        raise BadInput(f"{path.name} could be in HU with and without the metadata's {told}; look at it and decide")
    if afterwards and not scaled and not fixed:
        return again, f"stored values; the metadata's {told} applied once"
    raise BadInput(f"{path.name} isn't in HU as stored, and {_why_not(afterwards, scaled, told)}; fetch it again")


def _why_not(afterwards: bool, scaled: str, told: str) -> str:
    if not afterwards:
        return f"the metadata's {told} don't make it so"
    if scaled:
        return f"its header has {scaled} of its own, so the metadata's {told} would be a second rescale"
    return f"the fixed generation should be, so the metadata's {told} are not for it"


def _is_fixed(path: Path) -> bool:
    return any(part.endswith("_fixed") for part in path.parts)


def _header_rescale(path: Path) -> str:
    """The header's own slope and intercept in words; empty if it has none."""
    image = open_nifti(path, header_only=True)
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    return "" if (slope, intercept) == (1, 0) else f"slope {slope:g} and intercept {intercept:g}"


def _with_spacing(found: Volume, path: Path, row: dict[str, str] | None) -> Volume:
    """Take the spacing from the metadata where the header has none; say so where the two disagree."""
    default = np.allclose(found.spacing_mm, 1.0, atol=1e-3)
    if row is None:
        note = "the header states 1 mm along all axes, which may mean that it has no geometry; give its row of metadata"
        return replace(found, notes=(*found.notes, note)) if default else found
    spacing = _spacing_of(row, path)
    if np.allclose(found.spacing_mm, spacing, rtol=0.02):
        return found
    in_words = "×".join(f"{s:g}" for s in spacing)
    if not default:
        header = "×".join(f"{s:.3g}" for s in found.spacing_mm)
        note = f"the header's spacing {header} mm (z, y, x) is kept; the metadata states {in_words}"
        return replace(found, notes=(*found.notes, note))
    _check_counts(found, path, row)
    affine = found.affine.copy()
    affine[:3, :3] *= np.divide(spacing, found.spacing_mm)
    note = f"spacing {in_words} mm (z, y, x) from the metadata; left and right are the header's, which is no proof"
    return replace(found, affine=affine, notes=(*found.notes, note))


def _spacing_of(row: dict[str, str], path: Path) -> tuple[float, float, float]:
    """(z, y, x) mm; XYSpacing is a list written as text: "[0.75, 0.75]", rows first."""
    try:
        values = [float(text) for text in re.findall(r"[-+.\deE]+", row["XYSpacing"])]
        y, x = values if len(values) == 2 else (values[0], values[0])
        z = float(row["ZSpacing"])
    except (KeyError, ValueError, IndexError):
        raise BadInput(
            f"the metadata of {path.name} has XYSpacing {row.get('XYSpacing')!r} and ZSpacing {row.get('ZSpacing')!r};"
            " two lengths such as [0.75, 0.75] and one in mm are expected"
        ) from None
    if min(x, y, z) <= 0:
        raise BadInput(f"the metadata of {path.name} states a spacing of {z:g}×{y:g}×{x:g} mm; it must be positive")
    return z, y, x


def _check_counts(found: Volume, path: Path, row: dict[str, str]) -> None:
    """The metadata's slices, rows and columns, where it has them, must be the array's."""
    for column, size in zip(("NumberofSlices", "Rows", "Columns"), found.shape, strict=True):
        if row.get(column) and int(float(row[column])) != size:
            raise BadInput(
                f"{path.name} has {size} voxels where its metadata states {column} {row[column]}, and its header has no"
                " spacing: which axis is which can't be told; use the fixed generation of this volume"
            )


def _number(row: dict[str, str], column: str, path: Path) -> float:
    try:
        return float(row[column])
    except (KeyError, ValueError):
        raise BadInput(f"the metadata of {path.name} has {column} {row.get(column)!r}; a number is expected") from None
