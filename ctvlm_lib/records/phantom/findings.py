"""What is wrong with a patient: lesions inside regions, fluid around the lungs, a large heart."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.records.phantom.canvas import Box, Canvas, Draws, edge, lattice_noise

LOBES = tuple(anatomy.structure(number, "vista3d").name for number in range(28, 33))
ORGANS = ("liver", "spleen", "left kidney", "right kidney", "heart")
REGIONS = LOBES + ORGANS
_NOMINAL_MM = dict(zip(REGIONS, (110, 110, 90, 75, 110, 130, 65, 55, 55, 80), strict=True))  # a region's usual width

# smallest and largest radius in mm, and the smallest in voxels of the plane
SIZES = {
    "nodule": (5.0, 14.0, 2.0),
    "mass": (16.0, 28.0, 3.0),
    "cyst": (9.0, 26.0, 3.0),
    "calcification": (5.0, 16.0, 2.1),
    "consolidation": (22.0, 40.0, 3.5),
    "ground-glass opacity": (22.0, 40.0, 3.5),
    "emphysema": (22.0, 42.0, 3.5),
}
IN_ORGAN = {"mass": 1, "cyst": 1, "calcification": 1}  # kind: weight
IN_LUNG = dict.fromkeys(SIZES, 2) | {"ground-glass opacity": 1, "emphysema": 1}
_DENSITY = {"calcification": "calcified", "ground-glass opacity": "ground-glass", "emphysema": "air"}
_PATCHY = ("consolidation", "ground-glass opacity", "emphysema")
_LUNG_HU = {"nodule": 40.0, "mass": 40.0, "consolidation": 25.0, "ground-glass opacity": -560.0, "emphysema": -975.0}
PLACES = 4  # tried for each lesion
CALCIFIED_HU, FLUID_HU, MASS_HU = 700.0, 0.0, 210.0


@dataclass(frozen=True, kw_only=True)
class FindingRange:
    """How often findings occur, and how large they are.

    Attributes:
        prevalence: chance of a lesion in each of the ten regions, drawn independently.
        in_lung, in_organ: kind → weight, where there is a lesion.
        radius_mm: kind → (smallest mm, largest mm, smallest in voxels of the plane); the last is a floor, so that a
            lesion can be seen on a coarse grid.
        effusion, cardiomegaly: chance in a patient.
        border_vox: lesions keep so many voxels away from their region's border.
    """

    prevalence: float = 0.5
    in_lung: Mapping[str, float] = field(default_factory=lambda: dict(IN_LUNG))
    in_organ: Mapping[str, float] = field(default_factory=lambda: dict(IN_ORGAN))
    radius_mm: Mapping[str, tuple[float, float, float]] = field(default_factory=lambda: dict(SIZES))
    effusion: float = 0.2
    cardiomegaly: float = 0.15
    border_vox: int = 1

    def __post_init__(self) -> None:
        for name in ("prevalence", "effusion", "cardiomegaly"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} is a chance from 0 to 1, got {getattr(self, name):g}")
        for kinds, regions in ((self.in_lung, LOBES), (self.in_organ, ORGANS)):
            if not kinds or min(kinds.values()) < 0 or sum(kinds.values()) <= 0:
                raise BadInput("the kinds' weights must not be negative, and at least one must be positive")
            for kind in kinds:
                self._check_kind(kind, regions)

    def _check_kind(self, kind: str, regions: tuple[str, ...]) -> None:
        if kind not in SIZES or (regions == ORGANS and kind not in IN_ORGAN):
            known = SIZES if regions == LOBES else IN_ORGAN
            raise BadInput(f"no finding called {kind!r} is drawn there; choose from {', '.join(known)}")
        low, high, floor = self.radius_mm.get(kind, SIZES[kind])
        if not 0 < low <= high or floor < 0:
            raise BadInput(f"the radius of a {kind} must be two growing lengths in mm, got {low:g} and {high:g}")
        region = min(regions, key=_NOMINAL_MM.__getitem__)
        if 2 * low > _NOMINAL_MM[region]:
            raise BadInput(
                f"a {kind} of at least {2 * low:g} mm is larger than its region: the {region} is about"
                f" {_NOMINAL_MM[region]} mm wide; ask for a smaller radius"
            )


@dataclass(frozen=True, eq=False)
class Finding:
    """One finding and where it lies.

    Attributes:
        kind: "nodule", "mass", "cyst", "calcification", "consolidation", "ground-glass opacity", "emphysema",
            "pleural effusion" or "cardiomegaly".
        region: canonical name of the structure that it lies in; "pleura" for an effusion.
        side: "left", "right" or None.
        lobe: name of the lobe, or None outside the lungs.
        size_mm: longest diameter in an axial slice, measured on the mask; of an effusion its depth along gravity.
        density: "calcified", "solid", "fluid", "ground-glass" or "air".
        severity: "mild", "moderate" or "severe".
        box: slices of the volume that hold it. inside: bool, the mask within that box. shape: of the volume.
    """

    kind: str
    region: str
    side: str | None
    lobe: str | None
    size_mm: float
    density: str
    severity: str
    box: tuple[tuple[int, int], ...]
    inside: np.ndarray
    shape: tuple[int, int, int]

    @property
    def mask(self) -> np.ndarray:
        """bool ``(D, H, W)``, made from the stored box each time."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[tuple(slice(*pair) for pair in self.box)] = self.inside
        return mask

    def turned(self) -> "Finding":
        """The same finding in an array that is turned by half a circle about the long axis."""
        depth, *plane = self.box
        plane = [(n - stop, n - start) for (start, stop), n in zip(plane, self.shape[1:], strict=True)]
        return replace(self, box=(depth, *plane), inside=np.ascontiguousarray(self.inside[:, ::-1, ::-1]))

    @property
    def voxels(self) -> int:
        """Number of voxels of the mask."""
        return int(np.count_nonzero(self.inside))


def draw_effusions(canvas: Canvas, lungs: dict[bool, tuple], within: FindingRange, draws: Draws) -> list[Finding]:
    """Let fluid run to the lowest part of one or both pleural spaces; its level is horizontal in the scanner."""
    sides = {"left": (True,), "right": (False,), "both": (False, True)}
    chosen = sides[draws.choice({"left": 1.0, "right": 1.0, "both": 1.0})]
    depth_mm = [draws.uniform(16, 60), draws.uniform(16, 60)]
    if not draws.chance(within.effusion):
        return []
    found = []
    for left in chosen:
        box, cover = lungs[left]
        labels = canvas.labels[box]
        space = (labels == 28) | (labels == 29) if left else (labels >= 30) & (labels <= 32)
        if np.count_nonzero(space) < 30:
            continue
        down = canvas.down[:, box[1], box[2]] + np.zeros(cover.shape)
        tilted = down - 0.22 * canvas.pose.scale * (canvas.z[box[0]] + 0.0)  # a little deeper at the base
        lowest = float(tilted[space].max())
        change = canvas.spacing_mm[1] + 0.22 * canvas.spacing_mm[0]
        fluid = np.minimum(cover, edge(tilted - (lowest - 1.4 * depth_mm[left]), change))
        fluid = fluid * (space | ((labels == 0) & (cover < 0.5)))  # not over the heart's fat or a vessel
        owned = (fluid >= 0.5) & space
        extent = down[owned]
        if not extent.size:
            continue
        canvas.paint(box, fluid, 8.0, 0)
        size = float(extent.max() - extent.min()) + canvas.spacing_mm[1]
        share = extent.size / np.count_nonzero(space)
        severity = "mild" if share < 0.12 else "moderate" if share < 0.3 else "severe"
        side = "left" if left else "right"
        found.append(_finding(canvas, "pleural effusion", "pleura", side, None, size, "fluid", severity, box, owned))
    return found


def cardiomegaly(canvas: Canvas, heart_scale: float) -> list[Finding]:
    """The finding of an enlarged heart: its mask is the whole heart."""
    mask = canvas.labels == anatomy.structure("heart").vista3d
    box = bounding_box(mask)
    if box is None:
        return []
    size = long_axis_mm(mask[box], canvas.spacing_mm)
    severity = "mild" if heart_scale < 1.28 else "moderate" if heart_scale < 1.33 else "severe"
    return [_finding(canvas, "cardiomegaly", "heart", None, None, size, "solid", severity, box, mask[box])]


def draw_lesions(
    canvas: Canvas, within: FindingRange, organ_hu: dict[str, float], draws: Draws, texture: Draws
) -> list[Finding]:
    """Draw at most one lesion in each region, clipped to the region less its border."""
    found = []
    for region in REGIONS:
        kinds = within.in_lung if region in LOBES else within.in_organ
        present, kind = draws.chance(within.prevalence), draws.choice(kinds)
        u = [draws.uniform() for _ in range(4 + PLACES)]  # as many whether drawn or not: regions stay independent
        room = _room(canvas, region, within.border_vox)
        if present and room is not None:
            lesion = _draw_lesion(canvas, region, kind, within, organ_hu, u, texture, *room)
            if lesion is not None:
                found.append(lesion)
    return found


def _room(canvas: Canvas, region: str, border_vox: int) -> tuple[Box, np.ndarray] | None:
    """Box and mask of the voxels of a region that are more than so many voxels away from its border."""
    mask = canvas.labels == anatomy.structure(region).vista3d
    box = bounding_box(mask)
    if box is None:
        return None
    room = np.pad(mask[box], 1)
    for _ in range(border_vox):  # erosion by the six neighbours; outside the volume counts as outside the region
        smaller = room.copy()
        for axis in range(3):
            for step in (1, -1):
                smaller &= np.roll(room, step, axis)
        room = smaller
    room = room[1:-1, 1:-1, 1:-1]
    return (box, room) if np.count_nonzero(room) >= 12 else None


def _draw_lesion(canvas, region, kind, within, organ_hu, u, texture, box, room) -> Finding | None:
    """Place, shape, paint and measure one lesion; None if fewer than four voxels of it fit."""
    low, high, floor = within.radius_mm.get(kind, SIZES[kind])
    low = max(low, floor * max(canvas.spacing_mm[1:]))
    radius = low + (max(high, low) - low) * u[0]
    at = _roomiest(room, radius, canvas.spacing_mm, u[4:])
    r2 = np.zeros(room.shape)
    for axis, (n, step) in enumerate(zip(room.shape, canvas.spacing_mm, strict=True)):
        reach = max(radius * (0.85 + 0.3 * u[1 + axis]), 1.2 * step)  # thinner than a slice would vanish between two
        offset = (np.arange(n) - at[axis]) * (step / reach)
        r2 += (offset * offset).reshape([-1 if a == axis else 1 for a in range(3)])
    inside = (1.0 - np.sqrt(r2)) * radius
    if kind in _PATCHY:  # an irregular border
        inside += 0.45 * radius * lattice_noise(canvas, texture, 24.0, box)
    cover = edge(inside, canvas.spacing_mm[1]) * room
    owned = cover >= 0.5
    if np.count_nonzero(owned) < 4:
        return None
    _colour(canvas, region, kind, organ_hu, inside, cover, box)
    size = long_axis_mm(owned, canvas.spacing_mm)
    if kind in ("nodule", "mass") and region in LOBES:
        kind = "nodule" if size <= 30.0 else "mass"  # the usual limit; clipping can make a nodule of a mass
    density = _DENSITY.get(kind, "solid")
    if kind == "cyst":
        density = "air" if region in LOBES else "fluid"
    width = _NOMINAL_MM[region]
    severity = "mild" if size < 0.28 * width else "moderate" if size < 0.5 * width else "severe"
    side, lobe = anatomy.structure(region).side, region if region in LOBES else None
    return _finding(canvas, kind, region, side, lobe, size, density, severity, box, owned)


def _roomiest(room: np.ndarray, radius: float, spacing_mm: tuple, chances: list[float]) -> list[int]:
    """Of a few random places in a region, the one with most of the region around it: less of the lesion is clipped."""
    places = np.argwhere(room)
    best, most = None, -1
    for chance in chances:
        at = places[min(int(chance * len(places)), len(places) - 1)].tolist()
        reach = [int(radius / step) for step in spacing_mm]
        around = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(at, reach, strict=True))
        count = np.count_nonzero(room[around])
        if count > most:
            best, most = at, count
    return best


def _colour(canvas, region, kind, organ_hu, inside, cover, box) -> None:
    """Paint a lesion: a cyst of the lung is air within a wall, all others are filled."""
    if kind == "calcification":
        canvas.paint(box, cover, CALCIFIED_HU)
    elif kind == "cyst" and region in LOBES:
        canvas.paint(box, cover, 0.0)
        wall = max(2.0, 0.6 * canvas.spacing_mm[1])
        canvas.paint(box, np.minimum(cover, edge(inside - wall, canvas.spacing_mm[1])), -990.0)
    elif kind == "cyst":
        canvas.paint(box, cover, FLUID_HU)
    elif region in LOBES:
        canvas.paint(box, cover, _LUNG_HU[kind])
    else:  # brighter than its organ, or darker where the contrast phase leaves no room above
        own = organ_hu[region]
        canvas.paint(box, cover, MASS_HU if own < 130 else own - 85.0)


def _finding(canvas, kind, region, side, lobe, size, density, severity, box, owned) -> Finding:
    tight = bounding_box(owned)
    bounds = tuple((b.start + t.start, b.start + t.stop) for b, t in zip(box, tight, strict=True))
    inside = np.ascontiguousarray(owned[tight])
    return Finding(kind, region, side, lobe, round(size, 1), density, severity, bounds, inside, canvas.shape)


def long_axis_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Longest diameter within one axial slice of a mask, mm: between voxel centres, and a voxel."""
    best = 0.0
    _, dy, dx = spacing_mm
    for plane in mask:
        rows = np.flatnonzero(plane.any(axis=1))
        if not rows.size:
            continue
        first = plane[rows].argmax(axis=1)
        last = plane.shape[1] - 1 - plane[rows][:, ::-1].argmax(axis=1)
        y = np.concatenate([rows, rows]) * dy
        x = np.concatenate([first, last]) * dx
        square = (y[:, None] - y) * (y[:, None] - y) + (x[:, None] - x) * (x[:, None] - x)
        best = max(best, float(square.max()))
    return sqrt(best) + (dx + dy) / 2
