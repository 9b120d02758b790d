"""What one person looks at: the case, its structures, the chosen prompt; whoever shows any of it is told of changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore import outline, prompts
from ctvlm_lib.explore.cases import Case
from ctvlm_lib.explore.viewer import MOST_STRUCTURES, SliceViewer
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.mask.labels import label_counts
from ctvlm_lib.prompt import distractor
from ctvlm_lib.view import frame
from ctvlm_lib.view.panel import STRUCTURE_COLOURS

CASE, STRUCTURES, PROMPT = "case", "structures", "prompt"  # what may change
BY_HAND = "by hand"
FAVOURITES = ("liver", "heart", "left lung upper lobe")


@dataclass(frozen=True)
class Choice:
    """The prompt that is asked for.

    Attributes:
        region: the structure asked about, "" for none.
        style: of ``prompts.STYLES``. thickness: of the lines, pixels. side: of a contour.
        rule: how a distractor is chosen, or BY_HAND. named: the structure chosen by hand.
        colours: key of ``prompts.COLOURS``.
    """

    region: str = ""
    style: str = "contour"
    thickness: int = 3
    side: str = "inner"
    rule: str = "nearest"
    named: str = ""
    colours: str = prompts.PAPERS


@dataclass(frozen=True)
class Drawn:
    """A region that was drawn by hand, so that a saved view can draw it again."""

    name: str
    kind: str
    plane: str
    points: tuple[tuple[int, int], ...]
    first: int
    last: int


@dataclass(eq=False)
class Session:
    """The state of one page.

    Args:
        case: shown first.

    Attributes:
        viewer: shows it.
        labels: the case's structures, and those that were drawn, uploaded or predicted.
        shown: structures whose areas are drawn, at most seven.
        choice: the prompt asked for; change it with :meth:`choose`.
    """

    case: Case
    labels: LabelMap = field(init=False)
    viewer: SliceViewer = field(init=False)
    shown: tuple[str, ...] = ()
    choice: Choice = Choice()
    drawn: list[Drawn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._told: dict[str, list[Callable[[], None]]] = {CASE: [], STRUCTURES: [], PROMPT: []}
        self._prompts: dict = {}
        self._distractors: dict = {}
        self.viewer = SliceViewer(self.case.volume)
        self.open(self.case)

    def when(self, what: str, act: Callable[[], None]) -> None:
        """Call ``act`` after each change of CASE, STRUCTURES or PROMPT."""
        self._told[what].append(act)

    def open(self, case: Case) -> None:
        """Show another case; what was drawn on the last one is gone."""
        if self.case is not case:
            self.viewer.show_volume(case.volume)
        self.case, self.labels, self.shown, self.drawn = case, case.labels, (), []
        self._forget()
        region = next((name for name in FAVOURITES if name in self.names), self.names[0] if self.names else "")
        self.choice = replace(self.choice, region=region, named="", style=self.choice.style if region else "none")
        self._tell(CASE, STRUCTURES)
        self.redraw()
        if region:
            self.viewer.go_to(self.labels.binary(region))

    @property
    def names(self) -> list[str]:
        """Structures with voxels, in alphabetical order."""
        return sorted(self.labels.present)

    def volumes_ml(self) -> dict[str, float]:
        """Structure → millilitres."""
        counts = label_counts(self.labels.labels, max(self.labels.names, default=0) + 1)
        voxel_ml = abs(np.linalg.det(self.labels.affine[:3, :3])) / 1000
        whole = {name: int(mask.sum()) for name, mask in self.labels.overlapping.items()}
        keys = {name: key for key, name in self.labels.names.items()}
        return {name: float(whole.get(name, counts[keys[name]]) * voxel_ml) for name in self.names}

    def found(self, words: str) -> list[str]:
        """Structures one of whose names holds these words: canonical, RadLex, or a synonym."""
        wanted = words.lower().split()
        return [name for name in self.names if all(word in _all_names(name) for word in wanted)]

    def take(self, labels: LabelMap) -> None:
        """Use other structures for this case."""
        self.labels = labels
        self.drawn = [one for one in self.drawn if one.name in labels.overlapping]
        self.shown = tuple(name for name in self.shown if name in self.names)
        if self.choice.region not in self.names:
            self.choice = replace(self.choice, region=self.names[0] if self.names else "")
        self._forget()
        self._tell(STRUCTURES)
        self.redraw()

    def draw(self, one: Drawn) -> None:
        """Add a region that was drawn by hand, and choose it.

        Raises:
            BadInput: a shape that can't be, or a name that is taken.
        """
        mask = outline.region(
            frame(self.case.volume, one.plane), one.kind, one.points, one.first, one.last, self.case.volume.shape
        )
        labels = outline.with_region(self.labels, one.name, mask)
        self.drawn = [other for other in self.drawn if other.name != one.name] + [one]
        style = self.choice.style if self.choice.style != "none" else "contour"
        self.choice = replace(self.choice, region=one.name, style=style)
        self.take(labels)
        self.viewer.go_to(mask)

    def remove_drawn(self) -> None:
        """Take away everything that was drawn by hand."""
        labels = self.labels
        for one in self.drawn:
            labels = outline.without_region(labels, one.name)
        self.drawn = []
        self.take(labels)

    def show(self, names: Sequence[str]) -> None:
        """Draw the areas of structures.

        Raises:
            BadInput: more than can be told apart.
        """
        if len(names) > MOST_STRUCTURES:
            raise BadInput(f"{len(names)} structures can't be told apart; choose at most {MOST_STRUCTURES}")
        self.shown = tuple(names)
        self.redraw()

    def choose(self, **changes) -> None:
        """Change the prompt; a new region is gone to."""
        before, self.choice = self.choice, replace(self.choice, **changes)
        self.redraw()
        if self.choice.region and self.choice.region != before.region:
            self.viewer.go_to(self.labels.binary(self.choice.region))

    def prompt(self) -> prompts.Prompt:
        """The chosen prompt; each is made once.

        Raises:
            BadInput: no structure, or no distractor to be had.
        """
        one = self.choice
        if not one.region:
            raise BadInput("this CT has no structure yet; draw one, upload a label map, or let the network make masks")
        key = (one.region, one.style, one.thickness, one.colours)
        key += (one.rule, one.named) if one.style == "dual" else (one.side,)
        if key not in self._prompts:
            other = self.distractor() if one.style == "dual" else None
            self._prompts[key] = prompts.make(
                self.labels, one.region, one.style, one.thickness, one.side, other, one.colours
            )
        return self._prompts[key]

    def distractor(self) -> distractor.Distractor:
        """What the second box is drawn around, and why; the search takes up to a second, so it is made once."""
        one = self.choice
        how = one.named if one.rule == BY_HAND else one.rule
        if not how:
            raise BadInput("no distractor is chosen yet; choose a structure, or a rule")
        if (one.region, how) not in self._distractors:
            self._distractors[one.region, how] = distractor.choose(self.labels, one.region, how, self.case.volume)
        return self._distractors[one.region, how]

    def redraw(self) -> None:
        """Show the chosen prompt and the chosen areas."""
        try:
            marks = self.prompt().marks
        except BadInput:
            marks = ()
        areas = [
            (self.labels.binary(name), colour, name)
            for name, colour in zip(self.shown, STRUCTURE_COLOURS, strict=False)
        ]
        self.viewer.show_marks(marks, areas)
        self._tell(PROMPT)

    def _forget(self) -> None:
        self._prompts.clear()
        self._distractors.clear()

    def _tell(self, *what: str) -> None:
        for one in what:
            for act in self._told[one]:
                act()


def _all_names(name: str) -> str:
    try:
        known = anatomy.structure(name)
    except BadInput:
        return name.lower()
    return " ".join((name, known.radlex, known.radlex_id, *known.synonyms)).lower()


def radlex(name: str) -> str:
    """A structure's RadLex term, with its id where the table has one; the name itself if it isn't in the table."""
    try:
        known = anatomy.structure(name)
    except BadInput:
        return name
    return f"{known.radlex or name} ({known.radlex_id})" if known.radlex_id else known.radlex or name
