"""The paper that a patient is drawn on: a grid, the pose that maps it to the body, and shapes with smooth edges.

A shape is a *coverage*: the share of each voxel that it fills, 0…1, from an implicit function and its change across one
voxel. That is the partial volume of a real scan, and it costs no supersampling. Only ``+ − × ÷ √``, comparisons and
minima act on arrays: IEEE 754 rounds these the same way on every processor, which exp, sin, matrix products and
library filters don't promise. So the same seed gives the same bytes anywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import atan, degrees

import numpy as np

from ctvlm_lib.errors import BadInput

FIELD_MM = 340.0  # along each axis
Box = tuple[slice, slice, slice]


def added(values: Iterable[float]) -> float:
    """Add plain numbers one after another: from Python 3.12 on, ``sum`` compensates and differs in the last bit."""
    total = 0.0
    for value in values:
        total = total + value
    return total


class Draws:
    """Random scalars for one patient, from the bit stream alone: no method of numpy's that may change its algorithm."""

    def __init__(self, seed: int, index: int, stream: int):
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index], spawn_key=(stream,))))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.rng.random())

    def normal(self, sd: float = 1.0) -> float:
        """Sum of twelve uniforms less six: close to a normal deviate within ±3 sd, and exactly reproducible."""
        return sd * (added(self.rng.random(12).tolist()) - 6.0)

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def choice(self, weights: dict[str, float]) -> str:
        """One key, with chances in proportion to the weights."""
        at = self.uniform(0.0, added(weights.values()))
        for key, weight in weights.items():
            at -= weight
            if at < 0:
                return key
        return [key for key, weight in weights.items() if weight > 0][-1]


@dataclass(frozen=True, kw_only=True)
class PoseRange:
    """How patients may lie in the field; the defaults are wide, so that a place alone doesn't tell an organ.

    Attributes:
        prone_share: share of patients who lie face down (0…1).
        rotation_sd_deg: spread of the turn about the long axis, degrees.
        scale: smallest and largest size of the body.
        shift_share: largest shift along each axis, as a share of the field.
    """

    prone_share: float = 0.3
    rotation_sd_deg: float = 12.0
    scale: tuple[float, float] = (0.85, 1.1)
    shift_share: float = 0.13

    def __post_init__(self) -> None:
        if not 0 <= self.prone_share <= 1:
            raise BadInput(f"prone_share is a share from 0 to 1, got {self.prone_share:g}")
        if not 0 <= self.rotation_sd_deg <= 30 or not 0 <= self.shift_share <= 0.3:
            raise BadInput("rotation_sd_deg must be 0 to 30 and shift_share 0 to 0.3, or the body leaves the field")
        if not 0.5 <= self.scale[0] <= self.scale[1] <= 1.5:
            raise BadInput(f"scale must be two growing factors from 0.5 to 1.5, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How one patient lies: prone or supine, turned, scaled and shifted (x, y, z of the scanner, mm)."""

    prone: bool
    rotation_deg: float
    scale: float
    shift_mm: tuple[float, float, float]
    half_turn: float  # tangent of half the rotation: sine and cosine follow from it without a library call

    @classmethod
    def drawn(cls, draws: Draws, within: PoseRange) -> "Pose":
        prone = draws.chance(within.prone_share)
        # tan(x/2) ≈ x/2 (1 + x²/12) with x in radians, to 1e-4 within 36°
        x = draws.normal(within.rotation_sd_deg) * 0.017453292519943295
        half = x / 2 * (1 + x * x / 12)
        scale = draws.uniform(*within.scale)
        limit = within.shift_share * FIELD_MM
        shift = tuple(draws.uniform(-limit, limit) for _ in range(3))
        degrees_turned = round(degrees(2 * atan(half)), 3)
        return cls(prone=prone, rotation_deg=degrees_turned, scale=scale, shift_mm=shift, half_turn=half)


class Canvas:
    """HU and labels of one patient while they are drawn, in the body's own millimetres.

    The body's axes are x to its left, y to its back, z up, before scaling; the origin is the middle of the trunk at the
    height of the diaphragm's dome.

    Attributes:
        hu: float64 ``(D, H, W)``.
        labels: uint16 ``(D, H, W)``.
        x, y: body coordinates ``(1, H, W)``, mm before scaling. z: ``(D, 1, 1)``.
        down: how far each column of voxels is down along gravity ``(1, H, W)``, mm: the table is below, prone or not.
        step_xy, step_z: a voxel's size in the body's millimetres.
    """

    def __init__(self, shape: tuple[int, int, int], pose: Pose):
        self.shape, self.pose = shape, pose
        self.spacing_mm = tuple(FIELD_MM / n for n in shape)
        t = pose.half_turn
        self.cosine, self.sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        self.sign = -1.0 if pose.prone else 1.0
        z, h, w = (
            (np.arange(n) - (n - 1) / 2) * s - shift
            for n, s, shift in zip(shape, self.spacing_mm, pose.shift_mm[::-1], strict=True)
        )
        self.down = h[None, :, None] + np.zeros((1, 1, shape[2]))
        forward, left = self.sign * self.down, self.sign * w[None, None, :]
        self.x = (self.cosine * left + self.sine * forward) / pose.scale
        self.y = (self.cosine * forward - self.sine * left) / pose.scale
        self.z = z[:, None, None] / pose.scale
        self.step_z = self.spacing_mm[0] / pose.scale
        self.step_xy = max(self.spacing_mm[1:]) / pose.scale
        self.hu = np.full(shape, -1000.0)
        self.labels = np.zeros(shape, np.uint16)

    def affine(self) -> np.ndarray:
        """Index (d, h, w) → LPS mm, true for a prone patient too; a turn on the table is not in a header, nor here."""
        dz, dy, dx = self.spacing_mm
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = dz, self.sign * dy, self.sign * dx, 1.0
        depth, height, width = self.shape
        affine[:3, 3] = (
            -self.sign * dx * (width - 1) / 2,
            -self.sign * dy * (height - 1) / 2,
            -dz * (depth - 1) / 2,
        )
        return affine

    def window(self, low: tuple[float, float, float], high: tuple[float, float, float]) -> Box:
        """The slices that hold a box of the body, (x, y, z) mm from ``low`` to ``high``, and a voxel around it."""
        middle = [(a + b) / 2 * self.pose.scale for a, b in zip(low, high, strict=True)]
        half = [(b - a) / 2 * self.pose.scale for a, b in zip(low, high, strict=True)]
        c, s = self.cosine, self.sine
        at = (
            middle[2] + self.pose.shift_mm[2],
            self.sign * (s * middle[0] + c * middle[1]) + self.pose.shift_mm[1],
            self.sign * (c * middle[0] - s * middle[1]) + self.pose.shift_mm[0],
        )
        reach = (half[2], abs(s) * half[0] + c * half[1], c * half[0] + abs(s) * half[1])
        slices = []
        for centre, radius, n, step in zip(at, reach, self.shape, self.spacing_mm, strict=True):
            first = int((centre - radius) / step + (n - 1) / 2 + n) - n - 1  # floor, for any position near the field
            last = int((centre + radius) / step + (n - 1) / 2 + n) - n + 3
            slices.append(slice(min(max(first, 0), n), min(max(last, 0), n)))
        return tuple(slices)

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body coordinates (x, y, z) within a box, ready to broadcast."""
        plane = (slice(None), *box[1:])
        return self.x[plane], self.y[plane], self.z[box[0]]

    def paint(self, box: Box, cover: np.ndarray, hu, label: int | np.ndarray | None = None) -> None:
        """Mix ``hu`` in by its share of each voxel; voxels that it fills by half or more take the label."""
        part = self.hu[box]
        part += (hu - part) * cover
        if label is not None:
            labels, owned = self.labels[box], np.broadcast_to(cover >= 0.5, part.shape)
            labels[owned] = np.broadcast_to(label, part.shape)[owned] if isinstance(label, np.ndarray) else label

    def ellipsoid(self, centre, radii, hu, label=None, tilt=None, within: np.ndarray | None = None) -> None:
        """Paint an ellipsoid, cut to ``within`` (a coverage of the whole grid) if that is given."""
        reach = (max(radii),) * 3 if tilt else radii
        box = self.window(
            tuple(c - r for c, r in zip(centre, reach, strict=True)),
            tuple(c + r for c, r in zip(centre, reach, strict=True)),
        )
        cover = self.ellipsoid_cover(box, centre, radii, tilt)
        self.paint(box, cover if within is None else np.minimum(cover, within[box]), hu, label)

    def ellipsoid_cover(self, box: Box, centre, radii, tilt=None) -> np.ndarray:
        """Coverage of an ellipsoid in a box; ``tilt`` gives its three axes as unit vectors (x, y, z)."""
        offset = [a - c for a, c in zip(self.at(box), centre, strict=True)]
        axes = tilt or ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        steps = (self.step_xy, self.step_xy, self.step_z)
        square, change = -1.0, 0.0
        for axis, radius in zip(axes, radii, strict=True):
            terms = [o * (a / radius) for o, a in zip(offset, axis, strict=True) if a != 0.0]
            u = sum(terms[1:], start=terms[0])
            step = added(a * a * s * s for a, s in zip(axis, steps, strict=True)) / (radius * radius)
            # mean and variance of u² over a voxel, of which a uniform edge has 1/12 of its squared width
            square = square + u * u + step / 12
            change = change + u * u * (4 * step) + step * step / 15
        return edge(-square, np.sqrt(change))

    def tube(self, path, radius: float, hu, label=None) -> None:
        """Paint a round tube along points (x, y, z) that are joined by straight pieces."""
        low = tuple(min(p[k] for p in path) - radius for k in range(3))
        high = tuple(max(p[k] for p in path) + radius for k in range(3))
        box = self.window(low, high)
        x, y, z = self.at(box)
        nearest = None
        for start, end in zip(path, path[1:], strict=False):
            d = [b - a for a, b in zip(start, end, strict=True)]
            length = added(v * v for v in d)
            along = ((x - start[0]) * d[0] + (y - start[1]) * d[1] + (z - start[2]) * d[2]) / length
            along = np.minimum(np.maximum(along, 0.0), 1.0)
            off = [a - (s + along * v) for a, s, v in zip((x, y, z), start, d, strict=True)]
            square = off[0] * off[0] + off[1] * off[1] + off[2] * off[2]
            nearest = square if nearest is None else np.minimum(nearest, square)
        if nearest.size:
            self.paint(box, edge(radius - np.sqrt(nearest), self.step_xy), hu, label)


def edge(inside: np.ndarray, change) -> np.ndarray:
    """Coverage from an implicit function that is positive inside and changes by ``change`` across a voxel."""
    return np.minimum(np.maximum(inside / change + 0.5, 0.0), 1.0)


def profile(z: np.ndarray, knots: tuple[float, ...], values: tuple[float, ...]) -> np.ndarray:
    """Straight lines through (knot, value), constant outside; the shape of ``z``."""
    result = np.full(z.shape, float(values[0]))
    for z0, z1, v0, v1 in zip(knots, knots[1:], values, values[1:], strict=False):
        share = np.minimum(np.maximum((z - z0) / (z1 - z0), 0.0), 1.0)
        result = result + share * (v1 - v0)
    return result


def lattice_noise(canvas: Canvas, draws: Draws, period_mm: float, box: Box) -> np.ndarray:
    """Smooth noise in ±1 within a box: random numbers on a coarse lattice, joined linearly along one axis at a time."""
    sizes = [int(FIELD_MM / period_mm) + 2] * 3
    noise = draws.rng.random(sizes[0] * sizes[1] * sizes[2]).reshape(sizes) * 2.0 - 1.0
    for axis, (cut, step) in enumerate(zip(box, canvas.spacing_mm, strict=True)):
        at = np.arange(cut.start, cut.stop) * (step / period_mm)
        low = at.astype(np.int64)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        noise = noise.take(low, axis) * (1.0 - share) + noise.take(low + 1, axis) * share
    return noise
