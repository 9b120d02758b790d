"""The explorer: scroll a CT, outline a structure, add a distractor, without code. In a notebook, or served by Voilà.

The picture is drawn by :class:`ctvlm_lib.view.SliceView`, the drawing behind every static figure.
"""

import time
from html import escape

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore_server import add_arguments, command

__all__ = ["Explorer", "add_arguments", "app", "command", "explore", "load_case", "make_prompt"]

NOTICE = "Research and teaching, not a medical device."
STYLES = {"none": "none", "contour": "contour", "box": "box", "dual box": "dual"}
CASES = {  # shown name: (CT, masks) among the assets
    "Abdomen and pelvis CT": ("abdomen_ct/ct.nii.gz", "abdomen_ct/labels.nii.gz"),
    "Chest CT angiogram": ("chest_cta/ct.nii.gz", "chest_cta/masks"),
}
NEAREST = "nearest (automatic)"
SLOW_S = 0.05  # above this a slider waits until it is let go


class Explorer:
    """Widgets around one slice: plane, slice, window, structure, prompt.

    Args:
        volume: the CT.
        labels: its structures, on the same grid.

    Attributes:
        widget: what to show; a notebook shows the explorer itself as well.
        controls: {name: widget}, in the order of the Tab key.
    """

    def __init__(self, volume, labels) -> None:
        import ipywidgets as widgets

        self.volume, self.labels = volume, labels
        self._views, self._places, self._prompts, self._distractors, self._quiet = {}, {}, {}, {}, False
        self.controls = _controls(sorted(labels.present))
        self.image = widgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        self.text = widgets.HTML()
        rows = [("plane", "slice"), ("window", "structure"), ("style", "distractor"), ("thickness", "both sides")]
        lines = [
            widgets.HBox(
                [self.controls[name] for name in row], layout={"flex_flow": "row wrap", "align_items": "flex-end"}
            )
            for row in rows
        ]
        self.widget = widgets.VBox([*lines, self.image, self.text], layout={"max_width": "900px"})
        self._to_plane("axial")
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name), names="value")
        self.redraw()  # the first drawing also loads fonts and makes the prompt
        begun = time.perf_counter()
        self.redraw()
        self.controls["slice"].continuous_update = time.perf_counter() - begun <= SLOW_S

    def _repr_mimebundle_(self, **how):
        return self.widget._repr_mimebundle_(**how)

    @property
    def view(self):
        """The drawing of the current plane; each plane's is built once."""
        from ctvlm_lib.view import SliceView

        plane = self.controls["plane"].value
        if plane not in self._views:
            self._views[plane] = SliceView(
                self.volume, plane, width_in=6.4, max_height_in=5.2, smooth=True, legend_in=0.46
            )
        return self._views[plane]

    def redraw(self) -> None:
        """Draw the current slice and say what is on it."""
        from ctvlm_lib.view import png

        index = self.controls["slice"].value
        try:
            outlines, sentence = self._prompt()
        except BadInput as problem:
            outlines, sentence = [], f"No prompt: {problem}."
        self.view.show(index, self.controls["window"].value, outlines)
        self.image.value = png(self.view.figure)
        here = [label for mask, _, label in outlines if self.view.frame.cut(mask, index).any()]
        seen = f" On this slice: {', '.join(here) or 'none of it'}." if outlines else ""
        self.text.value = f"<p>{escape(sentence + seen)}</p><p><b>{NOTICE}</b></p>"

    def _prompt(self) -> tuple[list[tuple], str]:
        """The prompt that the controls ask for: outlines and the sentence that states it; each is made once."""
        value = {name: control.value for name, control in self.controls.items()}
        key = (value["structure"], value["style"], value["thickness"])
        key += (value["distractor"],) if value["style"] == "dual" else (value["both sides"],)
        if key not in self._prompts:
            side = "both" if value["both sides"] else "inner"
            other = self._distractor(value["structure"], value["distractor"]) if value["style"] == "dual" else None
            self._prompts[key] = make_prompt(self.labels, *key[:3], side, other)
        return self._prompts[key]

    def _distractor(self, structure: str, wanted: str):
        """The chosen distractor; the search for the nearest takes up to a second, so it is made once."""
        from ctvlm_lib.prompt import distractor

        if (structure, wanted) not in self._distractors:
            how = "nearest" if wanted == NEAREST else wanted
            self._distractors[structure, wanted] = distractor.choose(self.labels, structure, how)
        return self._distractors[structure, wanted]

    def _changed(self, name: str) -> None:
        if self._quiet:
            return
        if name == "plane":
            self._to_plane(self.controls["plane"].value)
        if name == "structure":
            self._to_structure()
        self._enable()
        self.redraw()

    def _to_plane(self, plane: str) -> None:
        """Set the slider to the plane's slices, at the place last looked at."""
        count = self.view.frame.shape[0]
        self._set_slice(self._places.get(plane, count // 2), count - 1)
        if plane not in self._places:
            self._to_structure()
        self._enable()

    def _to_structure(self) -> None:
        """Go to the slice with most of the structure, unless it is on this one already."""
        from ctvlm_lib.view import slice_index

        mask, framed = self.labels.binary(self.controls["structure"].value), self.view.frame
        if not framed.cut(mask, self.controls["slice"].value).any():
            self._set_slice(slice_index(framed, None, [mask]), framed.shape[0] - 1)

    def _set_slice(self, index: int, last: int) -> None:
        slider, self._quiet = self.controls["slice"], True
        with slider.hold_sync():
            slider.max, slider.value = last, index
        self._quiet = False

    def _enable(self) -> None:
        """Grey out what has no effect on the chosen style; remember the place."""
        style = self.controls["style"].value
        self.controls["distractor"].disabled = style != "dual"
        self.controls["both sides"].disabled = style != "contour"
        self.controls["thickness"].disabled = style == "none"
        self._places[self.controls["plane"].value] = self.controls["slice"].value


def explore(volume, labels):
    """The explorer of one case as an ipywidgets ``VBox``."""
    return Explorer(volume, labels).widget


def make_prompt(
    labels, structure: str, style: str, thickness: int, side: str = "inner", distractor=None
) -> tuple[list[tuple], str]:
    """Draw a prompt as the papers do: a blue contour, a green box, or a green box with a red one around a distractor.

    Args:
        labels: the patient's structures.
        structure: the region asked about.
        style: ``none``, ``contour``, ``box`` or ``dual``.
        thickness: of the line, pixels, odd.
        side: of the contour, ``inner`` or ``both``.
        distractor: the :class:`ctvlm_lib.prompt.distractor.Distractor` of a dual box.

    Returns:
        ``[(bool (D, H, W), colour, label), …]`` and a sentence with the share of axial slices it is on.
    """
    from ctvlm_lib import prompt
    from ctvlm_lib.mask import largest_component

    name = structure.replace("_", " ")
    if style == "none":
        return [], f"No prompt: the CT as it is. Chosen structure: {name}."
    mask = largest_component(labels.binary(structure))  # as ctvlm render: box and contour mean the same part
    if style == "contour":
        outlines = [(prompt.contour(mask, thickness, side), "blue", f"contour: {name}")]
        edge = "both sides of the edge" if side == "both" else "from the edge's inner side"
        words = f"blue contour around the {name}, {thickness} px, {edge}"
    else:
        outlines = [(prompt.box_outline(mask, thickness), "green", f"region: {name}")]
        words = f"green box around the {name}, {thickness} px"
    reason = ""
    if style == "dual":
        other = distractor.name.replace("_", " ")
        line = prompt.box_outline(largest_component(distractor.mask), thickness)
        outlines.append((line, "red", f"distractor: {other}"))
        words += f"; dashed red box around the {other}"
        reason = f" Distractor: {distractor.reason.replace('_', ' ')}."
    met = int(sum(outline.any(axis=(1, 2)) for outline, *_ in outlines).astype(bool).sum())
    return outlines, f"Prompt: {words}. On {met} of {len(mask)} axial slices ({met / len(mask):.0%}).{reason}"


def load_case(name: str) -> tuple:
    """One of CASES as (volume, labels); fetched if missing."""
    from ctvlm_lib import assets, mask, volume

    image, masks = CASES[name]
    case = volume.load(assets.path(image))
    return case, mask.load(assets.path(masks), like=case)


def app():
    """The page that ``ctvlm app`` serves: a choice of cases, and the explorer of the chosen one."""
    import ipywidgets as widgets

    made, place = {}, widgets.VBox()
    choice = widgets.Dropdown(options=list(CASES), description="Case", layout={"width": "450px"})

    def show(_=None):
        if choice.value not in made:
            place.children = [widgets.HTML(f"<p>Loading: {escape(choice.value)} …</p>")]
            made[choice.value] = Explorer(*load_case(choice.value)).widget
        place.children = [made[choice.value]]

    choice.observe(show, names="value")
    show()
    heading = widgets.HTML(f"<h2 style='margin:0'>Prompt explorer</h2><p>{NOTICE}</p>")
    return widgets.VBox([heading, choice, place], layout={"padding": "8px 16px"})


def _controls(structures: list[str]) -> dict:
    """The controls, in the order of the Tab key."""
    import ipywidgets as widgets

    from ctvlm_lib.view import PLANES
    from ctvlm_lib.volume import WINDOWS

    if not structures:
        raise BadInput("the label map has no structure with voxels; load masks that belong to this CT")
    named = [(name.replace("_", " "), name) for name in structures]
    windows = [(f"{name} (W {width} L {level})".replace("-", "−"), name) for name, (level, width) in WINDOWS.items()]
    start = "liver" if "liver" in structures else structures[0]
    left, right = {"width": "450px"}, {"width": "400px"}
    button = {"button_width": "90px"}
    return {
        "plane": widgets.ToggleButtons(options=PLANES, description="Plane", style=button, layout=left),
        "slice": widgets.IntSlider(min=0, max=1, description="Slice", layout=right),
        "window": widgets.Dropdown(options=windows, description="Window", layout=left),
        "structure": widgets.Dropdown(options=named, value=start, description="Structure", layout=right),
        "style": widgets.ToggleButtons(
            options=STYLES,
            value="contour",
            description="Prompt",
            style={"button_width": "72px"},
            layout=left,
        ),
        "distractor": widgets.Dropdown(options=[(NEAREST, NEAREST), *named], description="Distractor", layout=right),
        "thickness": widgets.IntSlider(value=3, min=1, max=9, step=2, description="Line (px)", layout=left),
        "both sides": widgets.Checkbox(description="Contour on both sides of the edge", indent=False, layout=right),
    }
