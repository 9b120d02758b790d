"""The explorer's page: the viewer, and beside it one section at a time."""

import os
import threading
from collections.abc import Callable

import ipywidgets as widgets

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import cases, keep
from ctvlm_lib.explore.ask_panel import AskPanel
from ctvlm_lib.explore.cases import Case
from ctvlm_lib.explore.files import paragraph, sentence
from ctvlm_lib.explore.keep_panel import KeepPanel, figure
from ctvlm_lib.explore.panels import CasePanel, OutlinePanel, PromptPanel, StructurePanel
from ctvlm_lib.explore.session import Session


class Explorer:
    """Scroll a CT, outline a structure, draw a prompt, ask a model, keep what was found; without code.

    Args:
        case: shown first: one of :func:`ctvlm_lib.explore.cases.built_in`, or a :class:`~ctvlm_lib.explore.cases.Case`.
        background: long work runs beside the page; False waits for it, as tests and headless notebooks need.

    Attributes:
        session: what is looked at. panels: section's name → its panel. widget: what to show.
    """

    def __init__(self, case: str | Case = "Abdomen and pelvis CT", background: bool = True) -> None:
        self.background = background
        self.session = Session(cases.load(case) if isinstance(case, str) else case)
        session, opened = self.session, self.session.open
        asked = AskPanel(session, self.busy)
        self.panels = {
            "Case": CasePanel(session, opened), "Structures": StructurePanel(session),
            "Outline": OutlinePanel(session, self.busy), "Prompt": PromptPanel(session), "Ask": asked,
            "Keep": KeepPanel(session, asked, self.busy, opened),
        }  # fmt: skip
        self.section = widgets.ToggleButtons(options=list(self.panels), value="Prompt", tooltips=list(self.panels),
                                             style={"button_width": "auto"}, description="")  # fmt: skip
        self.section.observe(lambda change: self._turn(), names="value")
        self.place = widgets.VBox(layout={"width": "100%"})
        side = widgets.VBox([self.section, self.place], layout={"flex": "0 1 410px", "min_width": "320px"})
        left = widgets.VBox([session.viewer], layout={"flex": "1 1 560px", "min_width": "320px"})
        self.widget = widgets.HBox([left, side], layout={"flex_flow": "row wrap", "width": "100%"})
        self._turn()

    def _repr_mimebundle_(self, **how):
        return self.widget._repr_mimebundle_(**how)

    def figure(self):
        """The view as a static figure, for printed pages and where no widgets are."""
        return figure(self.session)

    def busy(self, work: Callable, say: widgets.HTML, text: str, button: widgets.Button | None = None) -> None:
        """Do long work beside the page, and say what came of it; ``work`` gets a function that tells on the way."""

        def tell(line: str) -> None:
            say.value = paragraph(line)

        def run() -> None:
            try:
                tell(work(tell))
            except BadInput as problem:
                tell(sentence(problem))
            except Exception as error:  # the page lives, whatever a model or a file does
                tell(
                    f"That failed ({type(error).__name__}: {error}); try it with another case, or start the page again."
                )
            finally:
                if button is not None:
                    button.disabled = False

        tell(text)
        if button is not None:
            button.disabled = True
        if self.background:
            threading.Thread(target=run, daemon=True).start()
        else:
            run()

    def _turn(self) -> None:
        self.place.children = [self.panels[self.section.value].widget]


def app() -> widgets.Widget:
    """The page that ``ctvlm app`` serves; a view in the link's query is restored."""
    heading = widgets.HTML(f"<h2 style='margin:0'>Prompt explorer</h2><p style='margin:2px 0'>{keep.NOTICE}</p>")
    problem = widgets.HTML()
    try:
        view = keep.view_of_link(os.environ.get("QUERY_STRING", ""))
        explorer = Explorer()
        if view:
            explorer.panels["Keep"].restore(view)
    except BadInput as found:
        explorer, problem.value = Explorer(), paragraph(f"The view of the link can't be shown: {found}.")
    return widgets.VBox([heading, problem, explorer.widget], layout={"padding": "4px 12px"})
