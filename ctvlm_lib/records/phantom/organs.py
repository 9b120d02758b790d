"""Organs of the mediastinum and of the abdomen, painted over the frame in an order that lets the nearer one win."""

from dataclasses import dataclass

import numpy as np

from ctvlm_lib.records.phantom.body import (
    CAVITY,
    SPINE_Y,
    SPINE_Z,
    Habitus,
    Z,
    dome,
    number,
)
from ctvlm_lib.records.phantom.canvas import Canvas, Draws, added, edge, lattice_noise, profile

# Blood in the aorta, blood in the heart, heart muscle, liver, spleen, kidney; HU by contrast phase.
PHASES = {
    "non-contrast": (42.0, 40.0, 46.0, 58.0, 48.0, 32.0),
    "arterial": (310.0, 270.0, 95.0, 72.0, 125.0, 150.0),
    "portal venous": (165.0, 160.0, 110.0, 112.0, 122.0, 180.0),
    "delayed": (105.0, 102.0, 90.0, 92.0, 98.0, 150.0),
}
HEART_TILT = ((0.74, -0.52, -0.4264), (0.5750, 0.8182, 0.0), (0.34888, -0.24518, 0.90452))  # long axis to the apex


@dataclass(frozen=True)
class Organs:
    """One patient's organs: contrast phase, HU by tissue, shifts (mm) and sizes (factors)."""

    phase: str
    hu: dict[str, float]
    shift: dict[str, tuple[float, float, float]]
    size: dict[str, float]
    heart_scale: float

    @classmethod
    def drawn(cls, draws: Draws, phases: dict[str, float], cardiomegaly: float) -> "Organs":
        phase = draws.choice(phases)
        names = ("aorta", "blood", "muscle", "liver", "spleen", "kidney")
        strength = draws.uniform(0.88, 1.12)
        hu = {name: value * strength + draws.normal(3) for name, value in zip(names, PHASES[phase], strict=True)}
        spread = {"heart": 5, "liver": 4, "spleen": 6, "left kidney": 6, "right kidney": 6, "stomach": 7, "bladder": 5}
        shift = {name: tuple(draws.normal(sd * k) for k in (0.6, 0.5, 1.0)) for name, sd in spread.items()}
        size = {name: draws.uniform(0.9, 1.12) for name in spread}
        enlarged = draws.chance(cardiomegaly)
        scale = draws.uniform(1.24, 1.38) if enlarged else draws.uniform(0.94, 1.08)
        return cls(phase, hu, shift, size, scale)

    @property
    def enlarged(self) -> bool:
        return self.heart_scale > 1.2

    def placed(self, name: str, centre: tuple, radii: tuple) -> tuple[tuple, tuple]:
        """Centre and radii of an organ in this patient."""
        shift, size = self.shift[name], self.size[name]
        return tuple(c + s for c, s in zip(centre, shift, strict=True)), tuple(r * size for r in radii)


def draw_chest(canvas: Canvas, organs: Organs) -> None:
    """Paint heart, great vessels, airway and oesophagus."""
    _draw_heart(canvas, organs)
    aorta, spine = organs.hu["aorta"], dict(zip(SPINE_Z, SPINE_Y, strict=True))
    vein = 40.0 + (0.3 if organs.phase == "arterial" else 0.9) * (organs.hu["blood"] - 40.0)
    canvas.tube([(-8.0, -18.0, 62.0), (10.0, -30.0, 84.0), (26.0, -14.0, 90.0)], 13.0, organs.hu["blood"])  # pulmonary
    canvas.tube([(30.0, -8.0, 88.0), (52.0, 8.0, 80.0)], 9.0, organs.hu["blood"])
    canvas.tube([(20.0, -12.0, 86.0), (-18.0, -2.0, 82.0), (-50.0, 4.0, 74.0)], 9.0, organs.hu["blood"])
    arch = [(-12.0, -30.0, 60.0), (-16.0, -26.0, 92.0), (-9.0, -16.0, 112.0), (4.0, 0.0, 119.0), (16.0, 16.0, 112.0)]
    canvas.tube([*arch, (21.0, 25.0, 95.0)], 14.0, aorta, number("aorta"))
    low = [(21.0, 25.0, 95.0), (21.0, spine[60.0] - 28.0, 60.0), (17.0, spine[0.0] - 24.0, 0.0)]
    low += [(12.0, spine[-60.0] - 27.0, -60.0), (6.0, spine[-130.0] - 28.0, -130.0), (4.0, 8.0, -215.0)]
    canvas.tube(low, 11.5, aorta, number("aorta"))
    canvas.tube([(-26.0, -14.0, 55.0), (-30.0, -12.0, 118.0)], 9.5, vein, number("superior vena cava"))
    cava = [(-22.0, 8.0, 12.0), (-22.0, 10.0, -90.0), (-18.0, 10.0, -230.0)]
    canvas.tube(cava, 11.0, vein, number("inferior vena cava"))
    for x, y, name in ((-14, -14, "brachiocephalic trunk"), (5, -4, "left common carotid artery")):
        canvas.tube([(x * 0.4, y, 116.0), (x * 1.5, y, 175.0)], 5.5, aorta, number(name))
    oesophagus = [(2.0, 26.0, 175.0), (4.0, 33.0, 100.0), (2.0, 30.0, 40.0), (16.0, 14.0, -14.0)]
    canvas.tube(oesophagus, 6.5, 38.0, number("esophagus"))
    trachea = [(0.0, 8.0, 230.0), (0.0, 9.0, 172.0), (1.0, 20.0, 96.0)]
    canvas.tube(trachea, 11.0, 20.0)
    canvas.tube(trachea, 9.0, -1000.0, number("trachea"))
    for end in ((-42.0, 18.0, 70.0), (46.0, 18.0, 66.0)):
        canvas.tube([(1.0, 20.0, 95.0), end], 8.0, 10.0)
        canvas.tube([(1.0, 20.0, 95.0), end], 6.2, -990.0)


def _draw_heart(canvas: Canvas, organs: Organs) -> None:
    scale = organs.heart_scale
    centre, radii = organs.placed("heart", (17.0, -27.0, 34.0), (63.0, 47.0, 47.0))
    radii = tuple(r * scale for r in radii)
    canvas.ellipsoid(centre, tuple(r + 5.0 for r in radii), -85.0, 0, HEART_TILT)  # fat around it, no lung
    canvas.ellipsoid(centre, radii, organs.hu["muscle"], number("heart"), HEART_TILT)
    blood = organs.hu["blood"]
    for along, across, up, r in (
        (16.0, 14.0, -2.0, (30.0, 15.0, 19.0)),  # left ventricle
        (10.0, -22.0, -6.0, (33.0, 15.0, 24.0)),  # right ventricle
        (-32.0, 16.0, 6.0, (17.0, 19.0, 22.0)),  # left atrium
        (-30.0, -20.0, 0.0, (19.0, 16.0, 26.0)),  # right atrium
    ):
        steps = [scale * s for s in (along, across, up)]
        at = tuple(c + added(s * a[k] for s, a in zip(steps, HEART_TILT, strict=True)) for k, c in enumerate(centre))
        canvas.ellipsoid(at, tuple(scale * v for v in r), blood, None, HEART_TILT)


def draw_abdomen(canvas: Canvas, habitus: Habitus, organs: Organs, cavity: np.ndarray, texture: Draws) -> None:
    """Paint bowel, stomach, spleen, kidneys, pancreas, gallbladder, liver and psoas below the diaphragm."""
    box = canvas.window((-130.0, -100.0, -262.0), (130.0, 90.0, 10.0))
    under = np.zeros(canvas.shape)
    x, y, z = canvas.at(box)
    below = np.where(x > 6.0, dome(canvas, habitus, True, box), dome(canvas, habitus, False, box)) - 3.0 - z
    under[box] = np.minimum(edge(cavity[box] - 2.0, canvas.step_xy), edge(below, canvas.step_z + 0.6 * canvas.step_xy))
    _draw_bowel(canvas, texture, under)
    spine_y = 37.0
    for side in (-1.0, 1.0):
        path = [(side * 30.0, spine_y + 8.0, -92.0), (side * 46.0, spine_y + 4.0, -250.0)]
        canvas.tube(path, 17.0, 58.0, number("left iliopsoas" if side > 0 else "right iliopsoas"))
        canvas.tube([(side * 12.0, 22.0, -40.0), (side * 13.0, 18.0, -110.0)], 5.0, 55.0)  # crura
    _draw_stomach(canvas, organs, under)
    pancreas = [(-32.0, -14.0, -112.0), (0.0, -22.0, -98.0), (62.0, 14.0, -74.0)]
    canvas.tube(pancreas, 10.5, 0.75 * organs.hu["liver"] + 12, number("pancreas"))
    centre, radii = organs.placed("spleen", (92.0, 34.0, -44.0), (28.0, 44.0, 46.0))
    canvas.ellipsoid(centre, radii, organs.hu["spleen"], number("spleen"), within=under)
    _draw_liver(canvas, habitus, organs, under, texture)
    for left in (False, True):
        _draw_kidney(canvas, organs, under, left)


def _draw_bowel(canvas: Canvas, texture: Draws, under: np.ndarray) -> None:
    box = canvas.window((-112.0, -88.0, -262.0), (112.0, 40.0, -70.0))
    if under[box].size == 0:
        return
    x, y, z = canvas.at(box)
    loops = lattice_noise(canvas, texture, 27.0, box) * 1.4
    room = under[box] * edge(np.minimum(-78.0 - z, 24.0 - y), 14.0)
    change = 0.045 * canvas.step_xy
    canvas.paint(box, edge(loops + 0.12, change) * room, 48.0)
    canvas.paint(box, edge(loops - 0.06, change) * room, 22.0)
    gas = edge(loops - 0.55, change) * room * (canvas.down[:, box[1], box[2]] < canvas.pose.shift_mm[1])
    canvas.paint(box, gas, -900.0)


def _draw_stomach(canvas: Canvas, organs: Organs, under: np.ndarray) -> None:
    """The stomach's wall, its content, and air that rises away from the table."""
    centre, radii = organs.placed("stomach", (52.0, -30.0, -42.0), (44.0, 36.0, 38.0))
    canvas.ellipsoid(centre, radii, 62.0, number("stomach"), within=under)
    inner = tuple(r - 4.5 for r in radii)
    box = canvas.window(*(tuple(c + s * r for c, r in zip(centre, inner, strict=True)) for s in (-1, 1)))
    cover = np.minimum(canvas.ellipsoid_cover(box, centre, inner), edge(under[box] - 0.5, 1.0))
    pose = canvas.pose
    down = pose.scale * canvas.sign * (canvas.sine * centre[0] + canvas.cosine * centre[1])
    level = canvas.down[:, box[1], box[2]] - (down - 8.0)
    canvas.paint(box, cover, 26.0)
    canvas.paint(box, cover * edge(-level, canvas.spacing_mm[1]), -980.0)


def _draw_liver(canvas: Canvas, habitus: Habitus, organs: Organs, under: np.ndarray, texture: Draws) -> None:
    """The liver fills the right upper abdomen under the dome; its lower face rises to the left, the left lobe thins."""
    box = canvas.window((-130.0, -100.0, -150.0), (90.0, 80.0, 15.0))
    if under[box].size == 0:
        return
    x, y, z = canvas.at(box)
    dx, dy, dz = organs.shift["liver"]
    size = organs.size["liver"]
    along = (x - dx + 118.0) / size  # from the right wall
    face = -121.0 * size + dz + 0.15 * along + 0.0024 * along * along - 0.10 * (y + 10.0)
    behind = 68.0 + dy - 0.22 * along - 0.0026 * along * along
    inside = np.minimum(z - face, behind - y)
    inside = np.minimum(inside, 176.0 * size - along)
    wall = edge(cavity_margin(canvas, box) - 3.0, canvas.step_xy)
    cover = np.minimum(np.minimum(edge(inside, 0.5 * (canvas.step_xy + canvas.step_z)), under[box]), wall)
    hu = organs.hu["liver"]
    vessel = 40.0 if organs.phase == "non-contrast" else hu + 0.2 * organs.hu["aorta"]
    first, second = (lattice_noise(canvas, texture, 30.0, box) for _ in range(2))
    tubes = edge(0.10 - np.sqrt(first * first + second * second), max(0.04 * canvas.step_xy, 0.04))
    tubes = tubes * min(1.0, 2.5 / canvas.step_xy)
    canvas.paint(box, cover, hu + tubes * (vessel - hu), number("liver"))
    centre, radii = organs.placed("bladder", (-42.0, -42.0, -88.0), (15.0, 19.0, 26.0))
    canvas.ellipsoid(centre, radii, 10.0, number("gallbladder"), within=under)


def cavity_margin(canvas: Canvas, box) -> np.ndarray:
    """Distance to the side walls only: the liver keeps a little fat between itself and the ribs, mm."""
    x, y, z = canvas.at(box)
    u = x / profile(z, Z, CAVITY["width"])
    v = (y - profile(z, Z, CAVITY["centre"])) / profile(z, Z, CAVITY["depth"])
    return (1.0 - np.sqrt(u * u + v * v)) * 105.0


def _draw_kidney(canvas: Canvas, organs: Organs, under: np.ndarray, left: bool) -> None:
    name, side = ("left kidney", 1.0) if left else ("right kidney", -1.0)
    centre, radii = organs.placed(name, (side * 62.0, 42.0, -98.0 if left else -112.0), (27.0, 25.0, 52.0))
    tilt = ((0.936, -side * 0.24, side * 0.2577), (side * 0.2485, 0.9686, 0.0), (-side * 0.2496, 0.064, 0.9662))
    label = number(name)
    canvas.ellipsoid(centre, tuple(r + 8.0 for r in radii), -98.0, 0, tilt)  # its capsule of fat
    canvas.ellipsoid(centre, radii, organs.hu["kidney"], label, tilt)
    sinus = tuple(c - side * v for c, v in zip(centre, (19.0, 0.0, 0.0), strict=True))
    canvas.ellipsoid(sinus, (11.0, 8.0, 19.0), -45.0, 0)
