"""The page's section on questions: choose or write one, see how it is worded, ask, and see what the answer hangs on."""

import math
from collections.abc import Callable

import ipywidgets as widgets

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import cases, prompts
from ctvlm_lib.explore.files import paragraph
from ctvlm_lib.explore.panels import WIDE, table
from ctvlm_lib.explore.questions import question, shown, templates
from ctvlm_lib.explore.session import CASE, PROMPT, Session
from ctvlm_lib.records.record import Record

OWN = "own question"
FORMS = {"yes or no": "yes", "choices": "choices", "open": "open"}


class AskPanel:
    """Questions about the chosen region, to the workbook's model for the chosen prompt or to a saved one."""

    def __init__(self, session: Session, busy: Callable) -> None:
        self.session, self._busy = session, busy
        self.models: dict = {}
        self.answers, self.record, self.model = [], None, None
        self.question = widgets.Dropdown(options=[OWN], description="Question", layout=WIDE)
        self.text = widgets.Text(description="Own words", placeholder="Is there a cyst in the liver?", layout=WIDE)
        self.form = widgets.Dropdown(options=FORMS, description="Answer is", layout=WIDE)
        self.choices = widgets.Text(description="Choices", placeholder="mass; cyst; none", layout=WIDE)
        self.saved = widgets.Text(description="Model", placeholder="empty: the workbook's; or a folder of yours",
                                  layout=WIDE)  # fmt: skip
        self.anyway = widgets.Checkbox(description="show anyway (real CT)", indent=False)
        self.ask = widgets.Button(description="Ask the model", button_style="primary")
        self.where = widgets.Button(description="Show what it is sensitive to", layout={"width": "auto"}, disabled=True)
        self.say, self.result, self.worded = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.widget = widgets.VBox([
            self.question, self.text, self.form, self.choices, self.saved, self.anyway,
            widgets.HBox([self.ask, self.where]), self.say, self.result,
            widgets.Accordion([self.worded], titles=["The question in each paper's wording"], selected_index=None),
        ])  # fmt: skip
        self.ask.on_click(lambda _: busy(self._ask, self.say, "Loading model …", self.ask))
        self.where.on_click(lambda _: busy(self._show_where, self.say, "Following the gradient …", self.where))
        self.anyway.observe(lambda _: self._show(), names="value")
        for control in (self.question, self.text, self.form, self.choices):
            control.observe(lambda _: self._word(), names="value")
        session.when(CASE, self._another_case)
        session.when(PROMPT, self._fill)
        self._region: str | None = None
        self._fill()

    @property
    def withheld(self) -> bool:
        """Whether answers aren't shown: the case is no phantom, and nobody asked for them anyway."""
        return self.session.case.kind != cases.PHANTOM and not self.anyway.value

    def _fill(self) -> None:
        """The questions of the chosen region; an answer to another prompt is gone."""
        self._forget()
        key = (id(self.session.case), self.session.choice.region)
        if key == self._region:
            return
        self._region = key
        self._known: dict[str, Record] = {}
        region = self.session.choice.region
        for record in self.session.case.records:
            if record.region == region:
                self._known.setdefault(shown(record), record)
        if region:
            for text, record in templates(region).items():
                self._known.setdefault(text, record)
        self.question.options = [*self._known, OWN]
        self.question.value = next(iter(self._known), OWN)
        self._word()

    def _another_case(self) -> None:
        self._forget()
        self.anyway.value = False  # what was shown anyway of one CT is withheld of the next

    def _forget(self) -> None:
        self.answers, self.record = [], None
        self.where.disabled = True
        self.result.value = self.say.value = ""
        if self.session.viewer.heat["shown"]:
            self.session.viewer.show_heat(None)

    def asked(self) -> Record:
        """The question that would be asked.

        Raises:
            BadInput: no region, or no words.
        """
        if self.question.value != OWN:
            return self._known[self.question.value]
        if not self.session.choice.region:
            raise BadInput("no region is chosen that a question could be about; outline one first")
        choices = self.choices.value.split(";") if self.form.value == "choices" else ()
        if self.form.value == "choices" and len([c for c in choices if c.strip()]) < 2:
            raise BadInput("give at least two choices, separated by semicolons")
        return question(
            self.text.value, self.session.choice.region, choices=choices, open_ended=self.form.value == "open"
        )

    def _word(self) -> None:
        own = self.question.value == OWN
        self.text.disabled = self.form.disabled = not own
        self.choices.disabled = not own or self.form.value != "choices"
        try:
            record = self.asked()
        except BadInput as problem:
            self.worded.value = paragraph(f"{problem}.")
            return
        rows = [(style, text + (" (with a system prompt)" if system else ""))
                for style, text, system in prompts.wordings(record.question, record.form)]  # fmt: skip
        self.worded.value = table(rows, ("style", "as it is sent"))

    def _ask(self, tell: Callable[[str], None]) -> str:
        from ctvlm_lib.explore import ask

        session, record = self.session, self.asked()
        before = session.case, session.choice
        if session.choice.style != "none":
            session.prompt()  # says what is wrong with it
        model = self._model(session.choice.style)
        other = session.distractor().name if model.condition == "dual" and session.choice.style == "dual" else None
        names = [name for name in (record.region, other) if name]
        what = ask.given(session.case, session.labels, names)
        found = ask.ask(model, what, record, other, tell)
        strange = ask.strangeness(model, what) if session.case.kind != cases.PHANTOM else None
        if before != (session.case, session.choice):
            raise BadInput(
                "case or prompt have changed while the model was asked, so that its answer is dropped; ask again"
            )
        self.answers, self.strange = found, strange
        self.record, self.model, self.what, self.other = record, model, what, other
        self.where.disabled = False
        self._show()
        return what.note

    def _model(self, condition: str):
        from ctvlm_lib.explore import ask

        folder = str(cases.inside(cases.data_folder(), self.saved.value)) if self.saved.value.strip() else ""
        key = folder or condition
        if key not in self.models:
            self.models[key] = ask.load_model(condition, folder)
        return self.models[key]

    def shown_answers(self) -> list[str]:
        """Each answer as it may be read: withheld, refused, or the model's words with their confidence."""
        from ctvlm_lib.explore.ask import WITHHELD

        if self.withheld:
            return [WITHHELD] * len(self.answers)
        limit = self.model.threshold.value if self.model and self.model.threshold else 0.0
        return [_words(one, limit) for one in self.answers]

    def verdict(self) -> str:
        """What the answers side by side say, as far as they may be read."""
        from ctvlm_lib.explore.ask import verdict

        return "" if self.withheld or not self.answers else verdict(self.answers)

    def _show(self) -> None:
        if not self.answers:
            return
        rows = [
            (one.how, one.marked or "–", text) for one, text in zip(self.answers, self.shown_answers(), strict=True)
        ]
        lines = [table(rows, ("asked", "prompt on", f"answer of {self.model.name}"))]
        if self.strange is not None:
            lines.append(
                paragraph(
                    f"This CT lies {self.strange:.1f} times as far from the phantoms that the model knows as phantoms"
                    " lie from each other (in its encoder's features; 1 is the farthest twentieth of phantoms). A small"
                    " number is no reason to believe an answer."
                )
            )
        if self.model.threshold is None:
            lines.append(paragraph("No validation answers of this model are stored, so that it never refuses."))
        if self.withheld:
            lines.append(paragraph("Tick “show anyway” to read what it says all the same."))
        else:
            lines.append(paragraph(self.verdict()))
            if self.record.answer != "unknown" and self.record.id != "explorer":
                lines.append(paragraph(f"Drawn into the phantom: {self.record.answer}."))
        self.result.value = "".join(lines)

    def _show_where(self, tell: Callable[[str], None]) -> str:
        from ctvlm_lib.explore import ask

        if self.withheld:
            raise BadInput("the answer is withheld, and so is its map; tick “show anyway” first")
        record, what, case = self.record, self.what, self.session.case
        values = ask.saliency(self.model, what, record, self.answers[0].text, self.other)
        if self.record is not record:
            raise BadInput("case or prompt have changed meanwhile, so that the map is dropped; ask again")
        self.session.viewer.show_heat(ask.on_grid(values, what, case), "sensitivity", "1")
        return (
            "Bright: changing the picture there changes the answer's likelihood most. It says nothing on what is right."
        )


def _words(one, limit: float) -> str:
    if math.isnan(one.confidence):
        return one.text or "(nothing was written)"
    if one.refused:
        return f"refuses to answer: confidence {one.confidence:.0%} is below its threshold of {limit:.0%}"
    return f"{one.text} (confidence {one.confidence:.0%})"
