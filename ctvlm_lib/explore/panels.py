"""The page's sections on cases, structures, outlines and prompts: ordinary controls beside the viewer."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import cases, outline, prompts
from ctvlm_lib.explore.cases import Case
from ctvlm_lib.explore.files import Upload, paragraph, sentence
from ctvlm_lib.explore.session import BY_HAND, CASE, PROMPT, STRUCTURES, Drawn, Session, radlex
from ctvlm_lib.prompt.distractor import RULES
from ctvlm_lib.view import PLANES

WIDE = {"width": "100%"}
VOCABULARIES = [("the file's own names", ""), ("TotalSegmentator", "totalsegmentator"), ("VISTA-3D", "vista3d")]


def told(act: Callable[[], str | None], say: widgets.HTML) -> None:
    """Do something that a person asked for; what is wrong with it is said in a sentence."""
    try:
        text = act()
    except BadInput as problem:
        text = sentence(problem)
    say.value = paragraph(text) if text else ""


class CasePanel:
    """Choose a case that comes with the workbook, open a file of one's own, or upload it."""

    def __init__(self, session: Session, opened: Callable[[Case], None]) -> None:
        self.session, self._opened = session, opened
        self.case = widgets.Dropdown(options=[*cases.built_in()], description="Case", layout=WIDE)
        self.case.value = session.case.name if session.case.name in cases.built_in() else None
        self.case.observe(lambda change: change["new"] and self._choose(change["new"]), names="value")
        folder = cases.data_folder()
        listed = cases.own_files(folder) if folder else []
        self.path = widgets.Combobox(options=listed, description="Own CT", placeholder="path below the data folder",
                                     ensure_option=False, layout=WIDE, continuous_update=False)  # fmt: skip
        self.open = widgets.Button(description="Open this path")
        self.open.on_click(lambda _: told(self._open_path, self.say))
        self.upload = Upload("Upload a CT (NIfTI, or DICOM as ZIP)", self._take)
        self.say = widgets.HTML()
        self.notes = widgets.HTML()
        where = f"Data folder: {folder}" if folder else "No data folder: start with ctvlm app --data FOLDER."
        self.widget = widgets.VBox([
            self.case, self.notes, self.path, self.open, widgets.HTML(paragraph(where, "small")), self.upload, self.say,
        ])  # fmt: skip
        session.when(CASE, self._tell)
        self._tell()

    def _choose(self, name: str) -> None:
        self.say.value = paragraph(f"Loading: {name} …")
        told(lambda: self._opened(cases.load(name)), self.say)

    def _open_path(self) -> None:
        self.say.value = paragraph("Reading …")
        self._opened(cases.open_path(self.path.value))

    def _take(self, path: Path) -> str:
        self._opened(cases.own_case(path))
        return "The CT is open. It has no masks: outline something, or upload a label map."

    def _tell(self) -> None:
        case = self.session.case
        if case.name not in cases.built_in():
            self.case.value = None
        size = "×".join(str(n) for n in case.volume.shape)
        spacing = "×".join(f"{s:.2f}" for s in case.volume.spacing_mm)
        lines = [f"{size} voxels of {spacing} mm (z, y, x), file in {case.volume.orientation} axes", *case.notes]
        self.notes.value = "".join(paragraph(line, "div") for line in lines)


class StructurePanel:
    """The structures with their volumes, searchable by any of their names; up to seven are drawn as areas."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.find = widgets.Text(description="Find", placeholder="name, RadLex term or id", layout=WIDE)
        self.list = widgets.SelectMultiple(options=[], description="Structures", rows=13, layout=WIDE)
        self.say = widgets.HTML()
        self.go = widgets.Button(description="Go to the first chosen one", layout={"width": "auto"})
        self.none = widgets.Button(description="Draw none")
        self.find.observe(lambda _: self._fill(), names="value")
        self.list.observe(lambda change: told(self._show, self.say), names="value")
        self.go.on_click(lambda _: told(self._go, self.say))
        self.none.on_click(lambda _: setattr(self.list, "value", ()))
        about = "Choose up to seven (Ctrl or Shift adds). Volumes are those of the masks."
        self.widget = widgets.VBox([
            self.find, self.list, widgets.HTML(paragraph(about, "small")), widgets.HBox([self.go, self.none]), self.say,
        ])  # fmt: skip
        session.when(STRUCTURES, self._fill)
        self._fill()

    def _fill(self) -> None:
        volumes = self.session.volumes_ml()
        names = self.session.found(self.find.value)
        keep = tuple(name for name in self.session.shown if name in names)
        self.list.options = [(f"{radlex(name)} · {volumes[name]:,.1f} mL", name) for name in names]
        self.list.value = keep
        self.say.value = "" if names else paragraph("No structure of this CT has such a name.")

    def _show(self) -> None:
        self.session.show(self.list.value)

    def _go(self) -> None:
        if not self.list.value:
            raise BadInput("no structure is chosen; choose one in the list")
        self.session.viewer.go_to(self.session.labels.binary(self.list.value[0]))


class OutlinePanel:
    """Outline anything: a shape drawn in the viewer or typed as numbers, a label map, or the small network's masks."""

    def __init__(self, session: Session, busy: Callable) -> None:
        self.session, self._points, self._kind = session, (), "box"
        number = {"min": 0, "max": 9999, "layout": {"width": "90px"}}
        self.plane = widgets.Dropdown(options=PLANES, description="Plane", layout=WIDE)
        self.corners = [
            widgets.BoundedIntText(description=what, style={"description_width": "62px"},
                                   **number | {"layout": {"width": "150px"}})
            for what in ("top row", "left", "last row", "right")
        ]  # fmt: skip
        self.first = widgets.BoundedIntText(description="Slices from", **number | {"layout": {"width": "180px"}})
        self.last = widgets.BoundedIntText(description="to", style={"description_width": "20px"},
                                           **number | {"layout": {"width": "110px"}})  # fmt: skip
        self.name = widgets.Text(value=outline.DRAWN, description="Name", layout=WIDE)
        self.add = widgets.Button(description="Add this region", button_style="primary")
        self.remove = widgets.Button(description="Remove drawn regions", layout={"width": "auto"})
        self.names = widgets.Dropdown(options=VOCABULARIES, description="Its labels", layout=WIDE)
        self.upload = Upload("Upload a label map (NIfTI)", self._take, ".nii,.nii.gz,.gz")
        self.predict = widgets.Button(description="Masks by the small network (unreliable)", layout={"width": "auto"})
        self.say = widgets.HTML()
        self.add.on_click(lambda _: told(self._add, self.say))
        self.remove.on_click(lambda _: told(session.remove_drawn, self.say))
        self.predict.on_click(lambda _: busy(self._predict, self.say, "Looking for organs …", self.predict))
        session.viewer.observe(lambda change: self._drawn(change["new"]), names="drawn")
        how = "Take Draw box or Draw polygon in the viewer, draw on a slice, and give the slices that it reaches over."
        self.widget = widgets.VBox([
            widgets.HTML(paragraph(how, "small")), self.plane, widgets.HBox(self.corners[:2]),
            widgets.HBox(self.corners[2:]), widgets.HBox([self.first, self.last]), self.name,
            widgets.HBox([self.add, self.remove]), self.names, self.upload, self.predict, self.say,
        ])  # fmt: skip

    def _drawn(self, shape: dict) -> None:
        """Take over a shape from the viewer; the slice range is five slices around it until it is changed."""
        if not shape:
            return
        self._kind, self._points = shape["kind"], tuple(tuple(point) for point in shape["points"])
        rows, columns = zip(*self._points, strict=True)
        count = self.session.viewer.framed[shape["plane"]].shape[0]
        self.plane.value = shape["plane"]
        for box, value in zip(self.corners, (min(rows), min(columns), max(rows), max(columns)), strict=True):
            box.value = value
        self.first.value, self.last.value = max(0, shape["index"] - 2), min(count - 1, shape["index"] + 2)
        self.say.value = paragraph(f"A {self._kind} on slice {shape['index']}. Give its slices, then add it.")

    def _add(self) -> str:
        top, left, bottom, right = (box.value for box in self.corners)
        points = ((top, left), (bottom, right))
        if self._kind == "polygon":
            rows, columns = zip(*self._points, strict=True)
            if (min(rows), min(columns), max(rows), max(columns)) == (top, left, bottom, right):
                points = self._points
        kind = "polygon" if len(points) > 2 else "box"
        name = " ".join(self.name.value.split())
        self.session.draw(Drawn(name, kind, self.plane.value, points, self.first.value, self.last.value))
        ml = self.session.volumes_ml()[name]
        return (
            f"{name}: {ml:,.1f} mL on slices {self.first.value} to {self.last.value}. It is the region asked about now."
        )

    def _take(self, path: Path) -> str:
        labels = cases.own_labels(path, self.session.case.volume, self.names.value or None)
        self.session.take(labels)
        return f"{len(labels.present)} structures were read."

    def _predict(self, tell: Callable[[str], None]) -> str:
        case = self.session.case
        found = outline.predicted(case.volume)
        if self.session.case is not case:
            raise BadInput("another case was opened meanwhile, so that the masks are dropped; press again for this one")
        self.session.take(outline.joined(self.session.labels, found, outline.UNRELIABLE))
        return f"{len(found.present)} structures {outline.UNRELIABLE}."


class PromptPanel:
    """What is drawn: region, style, line, distractor and why it was chosen, colours."""

    def __init__(self, session: Session) -> None:
        self.session, self._quiet = session, False
        self.region = widgets.Dropdown(options=[], description="Region", layout=WIDE)
        self.style = widgets.ToggleButtons(options=prompts.STYLES, value="contour", description="Prompt",
                                           style={"button_width": "76px"})  # fmt: skip
        self.thickness = widgets.Dropdown(options=[1, 3, 5, 7, 9], value=3, description="Line, px", layout=WIDE)
        self.side = widgets.Dropdown(options=[("from the edge's inner side", "inner"), ("on both sides", "both")],
                                     description="Contour", layout=WIDE)  # fmt: skip
        self.rule = widgets.Dropdown(options=[*RULES, BY_HAND], description="Distractor", layout=WIDE)
        self.named = widgets.Dropdown(options=[], description="Which one", layout=WIDE)
        self.colours = widgets.Dropdown(options=list(prompts.COLOURS), description="Colours", layout=WIDE)
        self.say = widgets.HTML()
        self.controls = {"region": self.region, "style": self.style, "thickness": self.thickness, "side": self.side,
                         "rule": self.rule, "named": self.named, "colours": self.colours}  # fmt: skip
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name, change["new"]), names="value")
        self.widget = widgets.VBox([*self.controls.values(), self.say])
        session.when(STRUCTURES, self._fill)
        session.when(PROMPT, self._tell)
        self._fill()
        self._tell()

    def _fill(self) -> None:
        self._quiet = True
        options = [(radlex(name), name) for name in self.session.names]
        self.region.options = options
        self.named.options = [("–", ""), *options]
        self._quiet = False

    def _changed(self, name: str, value) -> None:
        if not self._quiet:
            self.session.choose(**{name: value or ""})

    def _tell(self) -> None:
        self._quiet = True
        choice = self.session.choice
        for name, control in self.controls.items():
            value = getattr(choice, name)
            if name in ("region", "named"):
                control.value = value if value in [option for _, option in control.options] else None
            else:
                control.value = value
        self.rule.disabled = choice.style != "dual"
        self.named.disabled = choice.style != "dual" or choice.rule != BY_HAND
        self.side.disabled = choice.style != "contour"
        self.thickness.disabled = self.colours.disabled = choice.style == "none"
        self._quiet = False
        told(self._sentence, self.say)

    def _sentence(self) -> str:
        prompt = self.session.prompt()
        if not prompt.marks:
            return prompt.sentence
        lines = prompt.marks[0].mask | prompt.marks[-1].mask
        share = prompts.share_read(lines)
        size = "×".join(map(str, prompts.MED3DVLM_SIZE))
        seen = f" Of these lines, brought to its {size} voxels, Med3DVLM's first layer reads {share:.0%}"
        models = "; the workbook's own models get a line of one voxel on their grid and read all of it."
        text = f"{prompt.sentence}{seen}{models}"
        if self.session.choice.colours == prompts.SAFE:
            text += " Models have seen the papers' colours only; these are for your eyes and for exports."
        return text


def table(rows: list[tuple], header: tuple) -> str:
    """An HTML table of plain texts."""
    head = "".join(f"<th style='text-align:left;padding-right:10px'>{escape(str(one))}</th>" for one in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='padding-right:10px;vertical-align:top'>{escape(str(one))}</td>" for one in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
