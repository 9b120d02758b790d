"""What the papers' prose claims, beside what can be computed here: ``paper_claims.csv``, one row a claim and a check.

Tables are one half of a paper's numbers, its sentences the other: "2.4 % of the total parameters", "up to 6.8 GB",
"1–2 percentage points". A claim is of one of five kinds:

    exact            computed here, by counting, from shapes, or from the papers' own tables
    analogue         something like it is measured on phantoms; a contrast of ``contrasts.csv`` stands beside it
    measured         a time or a memory that a machine has to show
    data             a number of scans or questions that only the real data set could confirm
    not computable   nothing here can confirm it; the note says why

One sentence that can be read in several ways has a row for each reading. Values and quotes are the papers'.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import contrasts
from ctvlm_lib.ledger.published import PAPERS

if TYPE_CHECKING:
    import pandas

PATH = Path(__file__).with_name("paper_claims.csv")
RECORD = RESULTS / "cost" / "record.json"  # {"measured": {name: {"value": …, "unit": …, "hardware": …}}}
KINDS = ("exact", "analogue", "measured", "data", "not computable")
PREFIXES = {"analogue": "contrast:", "measured": "measured:"}  # of ``computed``; an exact one is a function's bare name
AGREES, DISAGREES, WAITS, CONTRAST = "agrees", "disagrees", "waits for a measurement", "see its contrast"
_UNCHECKED = {"data": "needs the data set", "not computable": "not computable", "analogue": "no contrast"}
_RULE = re.compile(r"(>=|<=|>|<|)\s*(\d+(?:\.\d+)?|)")
_SLACK = 1e-9  # of floats


@dataclass(frozen=True)
class Claim:
    """One claim of a paper's prose, and how it is checked.

    Attributes:
        paper, section: where it stands.
        quantity: what is claimed. value: as printed; a word where the claim has no number.
        unit: of the value; "text" where it is a word.
        quote: the paper's words.
        kind: of KINDS.
        computed: a name in ``claims_exact.COMPUTED``, "contrast:NAME" or "measured:NAME"; "" where there is none.
        tolerance: when ours agrees: "0.05", within so much of the value; ">", ">=", "<" or "<=", on that side of the
            value; with a number, "> 0", on that side of the number.
        note: why ours is another, or what is assumed.
    """

    paper: str
    section: str
    quantity: str
    value: str
    unit: str
    quote: str
    kind: str
    computed: str
    tolerance: str
    note: str

    @property
    def number(self) -> float | None:
        """The value as a number, None where it is a word."""
        try:
            return float(self.value)
        except ValueError:
            return None

    @property
    def name(self) -> str:
        """``computed`` without its prefix."""
        return self.computed.removeprefix(PREFIXES.get(self.kind, ""))

    def allows(self, ours: float) -> bool:
        """Whether our number agrees with the claim."""
        sign, bound = _RULE.fullmatch(self.tolerance).groups()
        if not sign:
            return abs(ours - self.number) <= float(bound) + _SLACK
        limit = float(bound) if bound else self.number
        return {">": ours > limit, ">=": ours >= limit, "<": ours < limit, "<=": ours <= limit}[sign]


@dataclass(frozen=True)
class Checked:
    """What became of a claim.

    Attributes:
        ours: our number, None where there is none.
        unit: of it.
        agrees: with the claim, by its tolerance; None where nothing was computed or measured.
        how: what was done, in a sentence.
        note: the claim's.
        status: "agrees", "disagrees", or why there is nothing to compare.
    """

    ours: float | None
    unit: str
    agrees: bool | None
    how: str
    note: str
    status: str


@cache
def load(path: str | Path = PATH) -> tuple[Claim, ...]:
    """Read all claims and check that each can be looked into.

    Raises:
        BadInput: no such file, other columns, a row that stands twice or lacks what its kind needs.
    """
    path, columns = Path(path), list(Claim.__dataclass_fields__)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{path.name} can't be read as claims ({error}); restore it") from None
    if not rows or any(list(row) != columns or None in row.values() for row in rows):
        raise BadInput(f"{path.name} has other columns than {', '.join(columns)}; write one row for each claim")
    found = tuple(Claim(**row) for row in rows)
    for claim in found:
        _check_row(claim)
    places = [(c.paper, c.section, c.quantity, c.value, c.computed) for c in found]
    twice = next((place for place in places if places.count(place) > 1), None) if len({*places}) < len(places) else None
    if twice:
        raise BadInput(f"{path.name} has the claim {' | '.join(twice)} twice; keep one of them")
    return found


def said(paper: str, quantity: str) -> float:
    """A number that a paper's prose gives, for what is computed from it.

    Raises:
        BadInput: no such claim, or not one number.
    """
    values = {claim.number for claim in load() if (claim.paper, claim.quantity) == (paper, quantity)}
    if len(values) != 1 or None in values:
        raise BadInput(f"{paper} gives {len(values)} values of {quantity!r}; take a quantity that has one number")
    return values.pop()


def check(claim: Claim, record: str | Path = RECORD) -> Checked:
    """Compute or look up what the claim says.

    Args:
        claim: of :func:`load`.
        record: measurements of the cost benchmark; a missing file is an empty one.

    Raises:
        BadInput: ``computed`` names no function, or the record can't be read.
    """
    if claim.kind == "exact":
        return _computed(claim)
    if claim.kind == "measured":
        return _measured(claim, measurements(record))
    if claim.kind == "analogue" and claim.computed:
        contrast = next(c for c in contrasts.load() if c.name == claim.name)
        how = f"on phantoms: {contrast.left} against {contrast.right}, {contrast.metric}"
        return Checked(None, "", None, how, claim.note, CONTRAST)
    return Checked(None, "", None, "", claim.note, _UNCHECKED[claim.kind])


def measurements(path: str | Path = RECORD) -> dict[str, dict]:
    """What the cost benchmark measured: name → value, unit, hardware; {} where it hasn't run.

    Raises:
        BadInput: a file of another form.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["measured"]
        return {name: {"value": float(m["value"]), "unit": str(m["unit"]), "hardware": str(m["hardware"])}
                for name, m in found.items()}  # fmt: skip
    except (OSError, KeyError, TypeError, AttributeError, *NOT_JSON) as error:
        raise BadInput(
            f"{path.name} doesn't hold measurements ({type(error).__name__}: {error}); give"
            ' {"measured": {name: {"value": …, "unit": …, "hardware": …}}}, or remove it'
        ) from None


def table(
    paper: str = "", record: str | Path = RECORD, chosen: Callable[[Claim], bool] | None = None
) -> "pandas.DataFrame":
    """All claims with ours beside them, in the file's order.

    Args:
        paper: one of ``published.PAPERS``; "" takes all.
        record: see :func:`check`.
        chosen: takes only the claims for which it is true; the others aren't computed.

    Raises:
        BadInput: no such paper.
    """
    import pandas

    if paper and paper not in PAPERS:
        raise BadInput(f"no paper is called {paper!r}; choose one of {', '.join(PAPERS)}")
    rows = []
    for claim in load():
        if paper in ("", claim.paper) and (chosen is None or chosen(claim)):
            found = check(claim, record)
            rows.append(
                {"paper": claim.paper, "section": claim.section, "claim": claim.quantity, "value": claim.value,
                 "unit": claim.unit, "kind": claim.kind, "ours": found.ours, "our unit": found.unit,
                 "status": found.status, "how": found.how, "note": found.note, "quote": claim.quote}
            )  # fmt: skip
    return pandas.DataFrame(rows)


def _computed(claim: Claim) -> Checked:
    from ctvlm_lib.ledger.claims_exact import compute  # it needs torch, and reads claims itself

    value, unit, how = compute(claim.name)
    agrees = claim.allows(value)
    return Checked(value, unit, agrees, how, claim.note, AGREES if agrees else DISAGREES)


def _measured(claim: Claim, measured: dict[str, dict]) -> Checked:
    """From the record, else from a function that a CPU can do, else it waits."""
    from ctvlm_lib.ledger.claims_exact import COMPUTED

    if claim.name in measured:
        m = measured[claim.name]
        if claim.number is not None and m["unit"] != claim.unit:
            raise BadInput(
                f"the measurement {claim.name!r} is in {m['unit']} and the claim in {claim.unit}; record it in these"
            )
        agrees = claim.allows(m["value"])
        how = f"measured on {m['hardware']}"
        return Checked(m["value"], m["unit"], agrees, how, claim.note, AGREES if agrees else DISAGREES)
    if claim.name in COMPUTED:
        return _computed(claim)
    return Checked(None, "", None, "", claim.note, WAITS)


def _check_row(claim: Claim) -> None:
    """Raise BadInput unless the row has what its kind needs."""
    where = f"the claim {claim.quantity!r} of {claim.paper}"
    if claim.paper not in PAPERS or claim.kind not in KINDS:
        raise BadInput(f"{where} has kind {claim.kind!r}; papers are {', '.join(PAPERS)} and kinds {', '.join(KINDS)}")
    prefix = PREFIXES.get(claim.kind, "")
    if claim.computed and not (claim.kind in ("exact", *PREFIXES) and claim.computed.startswith(prefix)):
        raise BadInput(f"{where} is {claim.kind}, computed {claim.computed!r}; write {prefix!r} and a name, or nothing")
    if claim.kind in ("exact", "measured"):
        sign, bound = (_RULE.fullmatch(claim.tolerance) or re.match("()()", "")).groups()
        if not (claim.computed and (sign or bound) and (claim.number is not None or (sign and bound))):
            raise BadInput(
                f"{where} has value {claim.value!r}, computed {claim.computed!r} and tolerance {claim.tolerance!r};"
                " give a name, and '0.05', '>' or, of a word, '> 0'"
            )
    if claim.kind == "analogue" and claim.computed and claim.name not in {c.name for c in contrasts.load()}:
        raise BadInput(f"{where} stands beside the contrast {claim.name!r}, which isn't in contrasts.csv; add it there")
    if claim.kind == "not computable" and not claim.note:
        raise BadInput(f"{where} is not computable and has no note; say why")
