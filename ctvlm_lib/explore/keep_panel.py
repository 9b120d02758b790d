"""The page's section on what can be taken along: volumes, slices, the record, a page to print, and the view itself."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import ipywidgets as widgets

from ctvlm_lib import view
from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import cases, keep
from ctvlm_lib.explore.ask_panel import AskPanel
from ctvlm_lib.explore.cases import Case
from ctvlm_lib.explore.files import Download, Upload
from ctvlm_lib.explore.session import Choice, Drawn, Session

VIEWER = ("at", "window", "big", "layout_", "overlay", "opacity", "crosshair", "view")


class KeepPanel:
    """Buttons that hand files to the browser, and the view as a link or a file."""

    def __init__(self, session: Session, asked: AskPanel, busy: Callable, opened: Callable[[Case], None]) -> None:
        self.session, self.asked, self._opened = session, asked, opened
        self.download = Download()
        self.say = widgets.HTML()
        files = {
            "Prompted CT (RGB NIfTI)": lambda: keep.rgb_nifti(session.case, session.prompt(), self._window),
            "Lines (label NIfTI)": lambda: keep.label_nifti(session.case, session.prompt()),
            "Slices (PNG in a ZIP)": lambda: keep.png_stack(session.case, session.prompt(), self._window),
            "Record (JSON lines)": self._record,
            "Page to print (HTML)": self.summary,
            "This view (JSON)": lambda: keep.view_json(self.state()),
        }
        self.buttons = {name: widgets.Button(description=name, layout={"width": "auto"}) for name in files}
        for name, make in files.items():
            self.buttons[name].on_click(
                lambda _, make=make, name=name: busy(lambda tell: self._give(make()), self.say, f"{name} …")
            )
        self.link = widgets.Button(description="Link to this view", layout={"width": "auto"})
        self.link.on_click(lambda _: self.download.link(keep.view_link(self.state())))
        self.upload = Upload("Restore a view (JSON)", self._restore_file, ".json")
        self.widget = widgets.VBox([*self.buttons.values(), self.link, self.download, self.upload, self.say])

    @property
    def _window(self) -> tuple[float, float]:
        return tuple(self.session.viewer.window)

    def _give(self, file: keep.File) -> str:
        self.download.give(file)
        return ""

    def _record(self) -> keep.File:
        asked = self.asked
        if asked.withheld and asked.answers:
            raise BadInput(
                "the answers are withheld on a real CT; tick “show anyway” in Ask to keep them with the record"
            )
        record = asked.record or asked.asked()
        return keep.record_lines(self.session.case, record, asked.answers, asked.model.name if asked.answers else "")

    def summary(self) -> keep.File:
        """The page to print."""
        asked, session = self.asked, self.session
        question = ""
        if asked.record:
            from ctvlm_lib.experiments.vlm_reader import worded

            question = worded(asked.record, asked.model.condition).question
        prompt = session.prompt() if session.choice.region else keep.Prompt((), "No prompt.")
        return keep.summary(
            session.case, prompt, view.png(figure(session)), question, asked.answers, asked.verdict(),
            asked.model.name if asked.answers else "", asked.shown_answers(),
        )  # fmt: skip

    def state(self) -> dict:
        """The view as plain values; a case of one's own is named, not held."""
        session = self.session
        return {
            "case": session.case.name, "viewer": {name: getattr(session.viewer, name) for name in VIEWER},
            "choice": asdict(session.choice), "shown": list(session.shown),
            "drawn": [asdict(one) for one in session.drawn],
            "question": self.asked.question.value,
        }  # fmt: skip

    def _restore_file(self, path: Path) -> str:
        self.restore(keep.read_view(path.read_bytes()))
        return "The view is restored."

    def restore(self, state: Mapping) -> None:
        """Show a saved view.

        Raises:
            BadInput: a case that isn't there, or values that can't be; what can be shown is shown.
        """
        name = state.get("case")
        if name in cases.built_in():
            if name != self.session.case.name:
                self._opened(cases.load(name))
        elif name != self.session.case.name:
            raise BadInput("the view is of a CT of one's own, which is never stored; open that CT first, then the view")
        try:
            for one in state.get("drawn", ()):
                self.session.draw(Drawn(**one | {"points": tuple(tuple(point) for point in one["points"])}))
            self.session.show([name for name in state.get("shown", ()) if name in self.session.names])
            known = {field.name for field in fields(Choice)}
            self.session.choose(**{key: value for key, value in dict(state.get("choice", {})).items() if key in known})
            for key, value in dict(state.get("viewer", {})).items():
                if key in VIEWER:
                    setattr(self.session.viewer, key, value)
            if state.get("question") in self.asked.question.options:
                self.asked.question.value = state["question"]
        except BadInput:
            raise
        except Exception as error:  # a hand-made view may hold anything
            raise BadInput(
                f"the view holds a value that can't be shown ({type(error).__name__}); save it again"
            ) from None


def figure(session: Session):
    """The view as a static figure: three planes through the crosshair, with prompt and areas."""
    try:
        marks = session.prompt().marks
    except BadInput:
        marks = ()
    outlines = [(mark.mask, mark.colour, mark.label) for mark in marks]
    labels = session.labels if session.shown else None
    return view.orthogonal(
        session.case.volume, [int(n) for n in session.viewer.at], tuple(session.viewer.window), outlines=outlines,
        labels=labels, names=list(session.shown) or None, title=session.case.name,
    )  # fmt: skip
