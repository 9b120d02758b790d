"""The frame of the trunk: skin, fat and muscle, the cavity with the lungs' lobes, ribs, sternum, spine and the table.

All lengths are body millimetres (see :class:`Canvas`); profiles along z are straight lines between knots. Proportions
follow an adult's chest and upper abdomen; they are drawn to look right at a glance, not measured from patients.
"""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.records.phantom.canvas import Canvas, Draws, added, edge, lattice_noise, profile

# knots z: pelvis … dome of the diaphragm (0) … apex of the lungs (170) … neck
Z = (-260.0, -130.0, -60.0, 0.0, 60.0, 105.0, 135.0, 155.0, 175.0, 215.0)
CAVITY = {  # half width, half depth and centre (y) of the space inside the ribs
    "width": (116.0, 122.0, 128.0, 128.0, 121.0, 106.0, 92.0, 78.0, 58.0, 40.0),
    "depth": (76.0, 82.0, 88.0, 92.0, 89.0, 77.0, 62.0, 50.0, 40.0, 30.0),
    "centre": (-12.0, -10.0, -8.0, -6.0, -3.0, 4.0, 12.0, 17.0, 20.0, 22.0),
}
MUSCLE = {
    "width": (136.0, 138.0, 143.0, 146.0, 148.0, 150.0, 150.0, 142.0, 122.0, 66.0),
    "depth": (96.0, 99.0, 104.0, 108.0, 106.0, 98.0, 90.0, 82.0, 74.0, 60.0),
    "centre": (0.0, 0.0, 0.0, 0.0, 2.0, 6.0, 10.0, 12.0, 14.0, 16.0),
}
APEX_Z = (60.0, 100.0, 130.0, 150.0, 164.0, 171.0)  # each lung narrows to its own tip
APEX_WIDTH = (96.0, 66.0, 48.0, 36.0, 21.0, 3.0)
APEX_DEPTH = (125.0, 92.0, 64.0, 45.0, 25.0, 4.0)
SPINE_Z = (-260.0, -130.0, -60.0, 0.0, 60.0, 120.0, 175.0, 230.0)
SPINE_Y = (36.0, 36.0, 46.0, 53.0, 57.0, 50.0, 38.0, 30.0)
LEVELS = ["vertebrae L5", *(f"vertebrae L{k}" for k in (4, 3, 2, 1)), *(f"vertebrae T{k}" for k in range(12, 0, -1))]
HEIGHTS = (35.0, 34.0, 33.0, 31.0, 29.0, *(25.5 - 0.75 * k for k in range(12)))  # with the disc below
T12_MIDDLE = -68.0
FAT_HU, MUSCLE_HU, LUNG_HU = -100.0, 55.0, -850.0


@dataclass(frozen=True)
class Habitus:
    """What differs between patients in the frame: fat (mm), lung density, dome heights, fissures, bone density."""

    fat_mm: float
    lung_hu: float
    right_dome: float
    left_dome: float
    fissure_mm: float
    bone_gain: float

    @classmethod
    def drawn(cls, draws: Draws) -> "Habitus":
        return cls(
            fat_mm=draws.uniform(9, 28),
            lung_hu=LUNG_HU + draws.normal(18),
            right_dome=8 + draws.normal(5),
            left_dome=-4 + draws.normal(5),
            fissure_mm=draws.normal(6),
            bone_gain=draws.uniform(0.8, 1.15),
        )


def number(name: str) -> int:
    """The VISTA-3D id of a structure."""
    return anatomy.structure(name).vista3d


def roundish(canvas: Canvas, shape: dict, extra_width: float = 0.0, extra_depth: float = 0.0, box=None):
    """Signed distance to an upright, slightly squared ellipse whose radii change with z; positive inside, about mm."""
    x, y, z = canvas.at(box) if box else (canvas.x, canvas.y, canvas.z)
    width = profile(z, Z, shape["width"]) + extra_width
    depth = profile(z, Z, shape["depth"]) + extra_depth
    u, v = x / width, (y - profile(z, Z, shape["centre"])) / depth
    u, v = np.minimum(u * u, 1.7), np.minimum(v * v, 1.7)
    return (1.0 - np.sqrt(u + v - 0.35 * u * v)) * (0.5 * (width + depth))


def draw_trunk(canvas: Canvas, habitus: Habitus, texture: Draws) -> np.ndarray:
    """Paint skin, fat, muscle and the fat inside; return the cavity's signed distance, positive inside, mm."""
    everything = tuple(slice(0, n) for n in canvas.shape)
    fat = habitus.fat_mm
    skin = roundish(canvas, MUSCLE, fat, 0.8 * fat)
    canvas.paint(everything, edge(skin, canvas.step_xy), 20.0)
    canvas.paint(everything, edge(skin - 2.0, canvas.step_xy), FAT_HU)
    muscle = roundish(canvas, MUSCLE)
    cavity = roundish(canvas, CAVITY)
    canvas.paint(everything, edge(muscle, canvas.step_xy), MUSCLE_HU)
    layers = lattice_noise(canvas, texture, 24.0, everything)  # fat between the muscles, away from the ribs
    between = np.minimum(edge(0.2 - np.abs(layers - 0.2), 0.05 * canvas.step_xy), edge(-13.0 - cavity, 6.0))
    canvas.paint(everything, between * edge(muscle - 3.0, 4.0), -75.0)
    canvas.paint(everything, edge(cavity - 1.0, canvas.step_xy), -85.0)
    neck = edge(cavity - 4.0, canvas.step_xy) * edge(canvas.z - 158.0, 30.0)
    canvas.paint(everything, neck * edge(layers + 0.25, 0.3), 50.0)
    return cavity


def dome(canvas: Canvas, habitus: Habitus, left: bool, box=None) -> np.ndarray:
    """Height of one half of the diaphragm over the plane, mm: a paraboloid with a flat gutter around it."""
    x, y, _ = canvas.at(box) if box else (canvas.x, canvas.y, canvas.z)
    top, centre = (habitus.left_dome, 64.0) if left else (habitus.right_dome, -62.0)
    outwards = x - centre if left else centre - x
    u, v = outwards / np.where(outwards > 0, 72.0, 115.0), (y + 16.0) / 90.0  # it falls steeply to the ribs only
    return np.maximum(top - 56.0 * (u * u) - 62.0 * (v * v), -82.0)


def lung_cover(canvas: Canvas, habitus: Habitus, cavity: np.ndarray, left: bool) -> tuple:
    """Box and coverage of one lung (or its pleural space): inside the ribs, above the diaphragm, below its apex."""
    side = 1.0 if left else -1.0
    low, high = (10.0, -100.0, -85.0), (132.0, 92.0, 174.0)
    if not left:
        low, high = (-high[0], low[1], low[2]), (-low[0], high[1], high[2])
    box = canvas.window(low, high)
    x, y, z = canvas.at(box)
    u = (x - side * 50.0) / profile(z, APEX_Z, APEX_WIDTH)
    v = (y - 18.0) / profile(z, APEX_Z, APEX_DEPTH)
    apex = (1.0 - np.sqrt(u * u + v * v)) * profile(z, APEX_Z, APEX_WIDTH)
    middle = 7.0 + 11.0 * np.maximum(1.0 - np.abs(y - 5.0) / 60.0, 0.0)  # half the mediastinum's width
    inside = np.minimum(np.minimum(cavity[box], apex), side * x - middle)
    cover = edge(inside, canvas.step_xy)
    above = edge(z - dome(canvas, habitus, left, box), canvas.step_z + 0.6 * canvas.step_xy)
    return box, np.minimum(cover, above) * (z < 171.0)


def draw_lungs(canvas: Canvas, habitus: Habitus, lungs: dict[bool, tuple], texture: Draws) -> None:
    """Paint both lungs, {is it the left: (box, coverage)}, with their fissures, vessels and lobes."""
    for left, (box, cover) in lungs.items():
        if cover.size == 0:
            continue
        x, y, z = canvas.at(box)
        oblique = z - (34.0 + habitus.fissure_mm + 0.95 * y)  # positive in front of and above the fissure
        lobes = np.where(oblique > 0, 28 if left else 30, 29 if left else 32).astype(np.uint16)
        fissures = np.abs(oblique) * 0.72
        if not left:
            horizontal = z - (46.0 + habitus.fissure_mm + 0.12 * (x + 60.0)) + np.zeros(oblique.shape)
            lobes[(oblique > 0) & (horizontal < 0)] = 31
            fissures = np.minimum(fissures, np.where(oblique > 0, np.abs(horizontal), 99.0))
        # denser where it hangs lowest
        hu = habitus.lung_hu + 0.35 * canvas.down[:, box[1], box[2]] + np.zeros(cover.shape)
        thin = min(1.0, 1.2 / canvas.step_xy)
        hu = hu + 230.0 * thin * np.maximum(1.0 - fissures / max(canvas.step_xy, 1.2), 0.0)
        vessels = _vessels(canvas, texture, box, x, y, z, 1.0 if left else -1.0)
        canvas.paint(box, cover, hu + vessels * (40.0 - hu), lobes)


def _vessels(canvas: Canvas, texture: Draws, box, x, y, z, side: float) -> np.ndarray:
    """Coverage by tubes: where two smooth noises are near zero at once; thick near the hilum, thin near the ribs."""
    first, second = (lattice_noise(canvas, texture, 17.0, box) for _ in range(2))
    u, v, w = (x - side * 30.0) / 90.0, (y - 12.0) / 90.0, (z - 55.0) / 105.0
    outwards = np.minimum(u * u + v * v + w * w, 1.0)
    radius = 0.05 + 0.17 * (1.0 - outwards)  # in units of the noise, which changes by about 0.06 a millimetre
    change = max(0.06 * canvas.step_xy, 0.04)
    cover = edge(radius - np.sqrt(first * first + second * second), change)
    return cover * min(1.0, 2.6 / canvas.step_xy)  # a coarse voxel averages a thin tube away


def level_middles() -> list[float]:
    """Height of the middle of each vertebra, in the order of LEVELS."""
    at = T12_MIDDLE - HEIGHTS[5] / 2 - added(HEIGHTS[:5])
    middles = []
    for height in HEIGHTS:
        middles.append(at + height / 2)
        at += height
    return middles


def draw_ribs(canvas: Canvas, habitus: Habitus, cavity: np.ndarray) -> None:
    """Paint twelve pairs of ribs as a sloping comb in the shell around the cavity, cartilage in front, the sternum."""
    shell = 3.7 - np.abs(cavity + 5.5)
    near = np.nonzero((shell > -canvas.step_xy) & (canvas.z < 172.0) & (canvas.z > -150.0))
    x, y = (np.broadcast_to(c, canvas.shape)[near] for c in (canvas.x, canvas.y))
    z, shell = canvas.z[near[0], 0, 0], shell[near]
    # a rib falls from the spine outwards and forwards: this height stays the same all along it
    along = z + 0.46 * (62.0 - y) + 0.24 * np.abs(x)
    middles = level_middles()[5:]  # T12 … T1
    bounds = np.array([(a + b) / 2 for a, b in zip(middles, middles[1:], strict=False)])
    level = np.searchsorted(bounds, along)
    off = np.abs(along - np.array(middles)[level])
    rib = 12 - level
    front = np.array([0.0, *(-58.0,) * 7, -46.0, -38.0, -28.0, 10.0, 35.0])[rib]  # where each ends
    inside = np.minimum(shell, 4.7 - 0.86 * off)
    real = (rib >= 1) & (along > middles[0] - 8.0) & (along < middles[-1] + 8.0)
    bone = edge(np.minimum(inside, y - front), canvas.step_xy) * real * (np.abs(x) > 16.0)
    cartilage = edge(np.minimum(inside, front - y), canvas.step_xy) * real * (rib <= 10) * (np.abs(x) < 92.0)
    hu = np.where(inside < 1.6, 430.0, 180.0) * habitus.bone_gain
    for cover, value, label in (
        (cartilage, 95.0, np.full(rib.shape, number("costal cartilages"))),
        (bone, hu, np.where(x > 0, number("left rib 1") - 1, number("right rib 1") - 1) + rib),
    ):
        canvas.hu[near] += (value - canvas.hu[near]) * cover
        owned = cover >= 0.5
        canvas.labels[tuple(n[owned] for n in near)] = label[owned]
    _draw_sternum(canvas, habitus)
    _draw_shoulders(canvas, habitus, cavity)


def _draw_shoulders(canvas: Canvas, habitus: Habitus, cavity: np.ndarray) -> None:
    """The blades behind and beside the ribs, and the collar bones."""
    for side, name in ((1.0, "left"), (-1.0, "right")):
        ends = sorted((side * 44.0, side * 128.0))
        box = canvas.window((ends[0], 0.0, 35.0), (ends[1], 110.0, 150.0))
        x, y, z = canvas.at(box)
        inner = profile(z, (40.0, 140.0), (82.0, 52.0))  # the medial border leans inwards and up
        plate = np.minimum(2.0 - np.abs(cavity[box] + 17.0), np.minimum(side * x - inner, y - 30.0))
        plate = np.minimum(plate, np.minimum(z - 50.0, 142.0 - z))
        hu = np.where(plate < 1.2, 480.0, 250.0) * habitus.bone_gain
        canvas.paint(box, edge(plate, canvas.step_xy), hu, number(f"{name} scapula"))
        collar = [(side * 17.0, -52.0, 138.0), (side * 60.0, -58.0, 152.0), (side * 112.0, -22.0, 166.0)]
        canvas.tube(collar, 6.0, 420.0 * habitus.bone_gain, number(f"{name} clavicula"))


def _draw_sternum(canvas: Canvas, habitus: Habitus) -> None:
    box = canvas.window((-24.0, -112.0, 0.0), (24.0, -40.0, 150.0))
    x, y, z = canvas.at(box)
    front = profile(z, Z, CAVITY["centre"]) - profile(z, Z, CAVITY["depth"]) - 6.5
    width = profile(z, (5.0, 30.0, 110.0, 130.0), (8.0, 15.0, 13.0, 24.0))
    inside = np.minimum(5.5 - np.abs(y - front), width - np.abs(x))
    inside = np.minimum(inside, np.minimum(z - 10.0, 138.0 - z))
    hu = np.where(inside < 1.6, 330.0, 130.0) * habitus.bone_gain
    canvas.paint(box, edge(inside, canvas.step_xy), hu, number("sternum"))


def draw_spine(canvas: Canvas, habitus: Habitus) -> None:
    """Paint vertebral bodies and discs, the arch with its processes, and the canal with the cord."""
    box = canvas.window((-48.0, 10.0, -270.0), (48.0, 122.0, 240.0))
    x, y, z = canvas.at(box)
    back = y - profile(z, SPINE_Z, SPINE_Y)
    width = profile(z, (-200.0, -60.0, 60.0, 170.0), (25.0, 20.5, 16.5, 14.5))
    depth = profile(z, (-200.0, -60.0, 60.0, 170.0), (18.5, 16.5, 14.5, 11.5))
    middles = np.array(level_middles())
    level = np.searchsorted((middles[1:] + middles[:-1]) / 2, z.ravel()).reshape(z.shape)
    off = np.abs(z - middles[level]) / np.array(HEIGHTS)[level]  # 0 in the middle, 0.5 at the next one
    exists = (z > middles[0] - HEIGHTS[0] / 2) & (z < middles[-1] + HEIGHTS[-1] / 2)
    labels = np.where(exists, np.array([number(name) for name in LEVELS])[level], 0).astype(np.uint16)

    u, v = x / width, back / depth
    body = (1.0 - np.sqrt(u * u + v * v)) * depth
    canvas.paint(box, edge(body + 3.0, canvas.step_xy), 45.0)  # ligaments keep the lung off the bone
    solid = edge((0.41 - off) * np.array(HEIGHTS)[level], canvas.step_z)
    marrow = np.where(body < 1.6, 340.0, 150.0) * habitus.bone_gain
    canvas.paint(box, edge(body, canvas.step_xy), 95.0)
    canvas.paint(box, edge(body, canvas.step_xy) * solid, marrow, labels)

    behind = back - depth - 11.0  # from the middle of the canal
    canal = np.sqrt(x * x + behind * behind)
    spinous = np.minimum(4.0 - np.abs(x), np.minimum(behind - 9.0, 34.0 - behind))
    sideways = np.minimum(5.0 - np.abs(behind - 2.0), np.minimum(np.abs(x) - 9.0, 36.0 - np.abs(x)))
    arch = np.maximum(4.5 - np.abs(canal - 12.5), np.where(off < 0.3, np.maximum(spinous, sideways), -9.0))
    canvas.paint(box, edge(arch, canvas.step_xy), 320.0 * habitus.bone_gain, labels)
    canvas.paint(box, edge(8.8 - canal, canvas.step_xy), 12.0)
    canvas.paint(box, edge(5.2 - canal, canvas.step_xy), 30.0, number("spinal cord"))


def draw_table(canvas: Canvas, habitus: Habitus, couch_hu: float) -> None:
    """Paint the couch below the patient; gravity points to it, whichever way the patient lies."""
    pose = canvas.pose
    lowest = (MUSCLE["depth"][3] + 0.8 * habitus.fat_mm + 2.0) * pose.scale
    sway = (canvas.x * canvas.cosine - canvas.y * canvas.sine) * pose.scale  # along the table, from the body's middle
    depth = canvas.down - lowest + 0.0006 * sway * sway - 3.0  # (1, H, W), millimetres below the couch's top
    step = canvas.spacing_mm[1]
    across = edge(210.0 - np.abs(sway), step)
    air = np.minimum(np.maximum((-300.0 - canvas.hu) / 700.0, 0.0), 1.0)  # never over the patient
    core = edge(14.0 - np.abs(depth - 14.0), step) * across
    shell = edge(1.5 - np.abs(np.abs(depth - 14.0) - 13.0), step) * across
    outside = air * (canvas.labels == 0) * (roundish(canvas, MUSCLE, habitus.fat_mm, 0.8 * habitus.fat_mm) < 0)
    canvas.hu += outside * core * (couch_hu - canvas.hu)
    canvas.hu += outside * shell * (60.0 - canvas.hu)
