"""The viewer's kernel side: it cuts slices out of a volume, its marks and its heat map, and hands them to the browser.

Slices travel one at a time, as they lie on the screen, so that a CT of any size needs no more of the browser than a
small one. Marks are small numbers: those below ``FIRST_STRUCTURE`` are lines of a prompt, drawn voxel by voxel as an
encoder gets them; the others are areas of structures.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore.prompts import Mark
from ctvlm_lib.view import COLOURS, PLANES, frame, slice_index
from ctvlm_lib.view.panel import STRUCTURE_COLOURS
from ctvlm_lib.volume import WINDOWS, Volume, window_levels

HERE = Path(__file__).parent
FIRST_STRUCTURE = 16
MOST_STRUCTURES = len(STRUCTURE_COLOURS)
Area = tuple[np.ndarray, str, str]  # bool (D, H, W), colour, label


class SliceViewer(anywidget.AnyWidget):
    """Three linked planes of a volume.

    Args:
        volume: the CT.

    Attributes:
        at: voxel (d, h, w) of the crosshair: the three slices.
        window: (level, width) in HU.
        big: the plane that is shown large; ``layout_`` is "three planes" or "one plane".
        overlay, opacity, crosshair: whether and how marks and reference lines are drawn.
        tool: "crosshair", "window", "pan", "caliper", "box" or "polygon".
        drawn: the last shape that was finished: kind, plane, index of the slice, points (row, column) on the screen.
        view: plane → zoom and centre in mm, for those that were changed.
    """

    _esm = HERE / "viewer.js"
    _css = HERE / "viewer.css"
    frames = traitlets.Dict().tag(sync=True)
    affine = traitlets.List().tag(sync=True)
    at = traitlets.List().tag(sync=True)
    window = traitlets.List([40, 400]).tag(sync=True)
    presets = traitlets.List().tag(sync=True)
    big = traitlets.Enum(PLANES, "axial").tag(sync=True)
    layout_ = traitlets.Enum(("three planes", "one plane"), "three planes").tag(sync=True)
    overlay = traitlets.Bool(True).tag(sync=True)
    opacity = traitlets.Float(0.9).tag(sync=True)
    crosshair = traitlets.Bool(True).tag(sync=True)
    palette = traitlets.List().tag(sync=True)
    heat = traitlets.Dict({"shown": False, "title": "", "top": "", "colours": []}).tag(sync=True)
    tool = traitlets.Unicode("crosshair").tag(sync=True)
    drawn = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def __init__(self, volume: Volume) -> None:
        presets = [{"name": name, "window": list(pair)} for name, pair in WINDOWS.items()]
        self._marks: list[tuple[int, np.ndarray]] = []
        self._warm: np.ndarray | None = None
        self._take(volume)
        super().__init__(
            presets=presets, frames=self._described(), affine=volume.affine.tolist(), at=[n // 2 for n in volume.shape]
        )
        self.on_msg(self._asked)

    def show_volume(self, volume: Volume) -> None:
        """Show another CT, from its middle and without marks."""
        self._take(volume)
        self._marks, self._warm = [], None
        with self.hold_sync():
            self.palette, self.drawn, self.view = [], {}, {}
            self.heat = self.heat | {"shown": False}
            self.frames, self.affine = self._described(), volume.affine.tolist()
            self.at = [n // 2 for n in volume.shape]
            self.version += 1

    def show_marks(self, lines: Sequence[Mark] = (), areas: Sequence[Area] = ()) -> None:
        """Draw a prompt's lines and structures' areas.

        Args:
            lines: of two on one voxel the later one is seen.
            areas: (bool ``(D, H, W)``, colour, label), at most seven; the lines lie on top.

        Raises:
            BadInput: another grid, or too many areas.
        """
        if len(areas) > MOST_STRUCTURES:
            raise BadInput(
                f"{len(areas)} structures can't be told apart in one picture; choose at most {MOST_STRUCTURES}"
            )
        marks = [*enumerate(lines, 1), *enumerate((Mark(*area) for area in areas), FIRST_STRUCTURE)]
        for _, mark in marks:
            if mark.mask.shape != self.volume.shape:
                raise BadInput(
                    f"{mark.label} is {mark.mask.shape} but the volume is {self.volume.shape}; put it on its grid"
                )
        self._marks = [(code, mark.mask) for code, mark in sorted(marks, key=_order)]
        with self.hold_sync():
            self.palette = [
                {"code": code, "label": mark.label, "rgb": _rgb(mark.colour), "dashed": mark.dashed}
                for code, mark in marks
            ]
            self.version += 1

    def show_heat(self, values: np.ndarray | None, title: str = "", top: str = "") -> None:
        """Lay a map over the CT, with a bar of its colours.

        Args:
            values: ``(D, H, W)``, 0…1; None takes the map away.
            title: of the bar. top: what its upper end stands for.
        """
        self._warm = None if values is None else np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
        with self.hold_sync():
            self.heat = {"shown": values is not None, "title": title, "top": top, "colours": heat_colours()}
            self.version += 1

    def go_to(self, mask: np.ndarray) -> None:
        """Put the crosshair on a mask: the axial slice with most of it, and there the voxel nearest to its middle."""
        if mask.any():
            axial = slice_index(self.framed["axial"], None, [mask])
            rows, columns = np.nonzero(mask[axial])
            place = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
            self.at = [int(axial), int(rows[place]), int(columns[place])]

    def slice(self, plane: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """One slice as it lies on the screen: HU int16, marks uint8, heat uint8 or None, each ``(rows, columns)``."""
        cut = self.framed[plane].cut
        hu = np.clip(np.rint(cut(self.volume.hu, index)), -32768, 32767).astype("<i2")
        marks = np.zeros(hu.shape, np.uint8)
        for code, mask in self._marks:
            marks[cut(mask, index)] = code
        heat = None if self._warm is None else np.ascontiguousarray(cut(self._warm, index))
        return np.ascontiguousarray(hu), marks, heat

    def _take(self, volume: Volume) -> None:
        self.volume, self.framed = volume, {plane: frame(volume, plane) for plane in PLANES}

    def _described(self) -> dict:
        """The planes' geometry as JSON has it."""
        return {
            plane: {
                "slices": one.shape[0], "rows": one.shape[1], "cols": one.shape[2], "row_mm": one.spacing_mm[0],
                "col_mm": one.spacing_mm[1], "letters": list(one.letters), "axes": list(one.axes),
                "flips": list(one.flips), "positions_mm": one.positions_mm.tolist(),
            }
            for plane, one in self.framed.items()
        }  # fmt: skip

    def _asked(self, _, message: dict, __) -> None:
        """Answer the browser's request for a slice."""
        plane, index = message.get("plane"), message.get("index")
        if message.get("kind") != "slice" or plane not in self.framed or not isinstance(index, int):
            return
        if 0 <= index < self.framed[plane].shape[0]:
            hu, marks, heat = self.slice(plane, index)
            buffers = [hu.tobytes(), marks.tobytes(), b"" if heat is None else heat.tobytes()]
            self.send({"kind": "slice", "plane": plane, "index": index, "version": message.get("version")}, buffers)

    @traitlets.validate("at")
    def _check_at(self, proposal) -> list[int]:
        """A voxel of the volume, whatever the browser sends."""
        limits = self.volume.shape
        if len(proposal["value"]) != 3:
            raise traitlets.TraitError(f"at is (d, h, w), got {proposal['value']}")
        return [int(np.clip(int(value), 0, n - 1)) for value, n in zip(proposal["value"], limits, strict=True)]

    @traitlets.validate("window")
    def _check_window(self, proposal) -> list[float]:
        try:
            return list(window_levels(proposal["value"]))
        except BadInput as problem:
            raise traitlets.TraitError(str(problem)) from None


def _order(mark: tuple[int, Mark]) -> tuple[bool, int]:
    """Areas are painted before lines."""
    return mark[0] < FIRST_STRUCTURE, mark[0]


def warmed(rgb: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay a map over a picture as the page does: uint8 ``(…, 3)`` and values 0…1 ``(…)`` → uint8 ``(…, 3)``."""
    colours = np.array(heat_colours(), np.float32)[np.rint(255 * np.clip(values, 0, 1)).astype(int)]
    opacity = 0.7 * np.clip(values, 0, 1)[..., None]
    return np.rint((1 - opacity) * rgb + opacity * colours).astype(np.uint8)


def heat_colours() -> list[list[int]]:
    """256 colours of matplotlib's "inferno"."""
    from matplotlib import colormaps

    return (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(int).tolist()


def _rgb(colour: str) -> list[int]:
    from matplotlib.colors import to_rgb

    return [round(255 * value) for value in to_rgb(COLOURS.get(colour, colour))]
