"""Record: one question about one CT, with its answer and the region that it is about; and its file, JSON lines."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path, PurePosixPath

from ctvlm_lib import anatomy
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.prompt import wording

SPLITS = ("train", "validation", "test")
KINDS = ("report", "presence", "abnormality", "location", "size", "plane", "phase", "organ", "disorder", "other")
FORMS = ("closed", "open")
MAX_CHOICES = 26  # one a letter


@dataclass(frozen=True, kw_only=True)
class Record:
    """One grounded question. Nothing is filled in: a field that isn't right is refused by name.

    Attributes:
        id: unique in its file.
        dataset: e.g. "phantom", "CT-RATE", "M3D-VQA".
        patient: who; a split never cuts through one. For pictures from the literature: the article.
        split: "train", "validation" or "test".
        volume: path of the CT below the data set's folder, with forward slashes.
        mask: path of the label map, binary mask or folder of masks, likewise; None if there is none.
        region: what is asked about, by :func:`region_name`; None for the whole scan.
        distractor: region of the red box, or None.
        kind: one of ``KINDS``.
        form: "closed" (yes or no, or choices) or "open".
        question: in the words of ``style``, without choices.
        answer: likewise; one of the choices if there are any.
        choices: () for open questions and for yes or no.
        names_region: whether the question's words name the region. The two strata are never pooled.
        style: "plain", or the style of :mod:`ctvlm_lib.prompt.wording` that the texts are in.

    Raises:
        BadInput: naming the field, what it holds and what was expected.
    """

    id: str
    dataset: str
    patient: str
    split: str
    volume: str
    mask: str | None
    region: str | None
    distractor: str | None
    kind: str
    form: str
    question: str
    answer: str
    choices: tuple[str, ...]
    names_region: bool
    style: str

    def __post_init__(self) -> None:
        _check_types(self)
        for field, allowed in (("split", SPLITS), ("kind", KINDS), ("form", FORMS), ("style", tuple(wording.STYLES))):
            if getattr(self, field) not in allowed:
                raise _wrong(field, getattr(self, field), f"one of {', '.join(allowed)}")
        for field in ("volume", "mask"):
            _check_path(field, getattr(self, field))
        _check_regions(self)
        _check_answer(self)
        found = wording.style_of(self.question)
        if found != self.style:
            raise _wrong("style", self.style, f"{found!r}, which the words of the question are in")

    def to_dict(self) -> dict:
        """Give the fields as JSON has them: choices become a list."""
        return asdict(self) | {"choices": list(self.choices)}

    @classmethod
    def from_dict(cls, content: dict) -> "Record":
        """Make a record from its fields; all of them, and no others.

        Raises:
            BadInput: a field is missing, unknown or wrong.
        """
        if not isinstance(content, dict):
            raise BadInput(f"a record is an object with named fields, got {_short(content)}")
        names = [field.name for field in fields(cls)]
        for field in names:
            if field not in content:
                raise BadInput(f"field {field} is missing; a record has {', '.join(names)}")
        for field in content:
            if field not in names:
                raise BadInput(f"field {field} is unknown; a record has {', '.join(names)}")
        if not isinstance(content["choices"], list | tuple):
            raise _wrong("choices", content["choices"], "a list of texts")
        return cls(**content | {"choices": tuple(content["choices"])})

    def worded(self, style: str, **options) -> "Record":
        """The same question in another style; one that isn't plain is restored first.

        Args:
            style: key of ``ctvlm_lib.prompt.wording.STYLES``.
            options: of :func:`ctvlm_lib.prompt.wording.rewrite`; the form is the record's own.
        """
        if style == self.style:
            question, answer = self.question, self.answer
        else:
            keep_case = bool(options.get("keep_case"))
            question, answer = wording.restore(self.question, self.answer, self.style, keep_case=keep_case)
        made = wording.rewrite(question, answer, style, **{**options, "form": self.form})
        return replace(self, question=made.question, answer=made.answer, style=style)


def region_name(name: str) -> str:
    """The canonical name that :mod:`ctvlm_lib.anatomy` has for a region, else the name as it is."""
    return _canonical(name) or name


def read_jsonl(path: str | Path) -> list[Record]:
    """Read records, one JSON object a line, in the order of the file.

    Raises:
        BadInput: the file can't be read, or a line isn't a valid record; the message has file, line and field.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also cut at U+2028
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8 text (byte {error.start}); save it as JSON lines in UTF-8") from None
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}; give a file of records, one JSON object a line") from None
    if lines[-1] == "":
        lines.pop()
    records, line_of = [], {}
    for number, line in enumerate(lines, start=1):
        try:
            record = Record.from_dict(_object(line))
            if record.id in line_of:
                raise _wrong("id", record.id, f"a new one, as line {line_of[record.id]} has it already")
        except BadInput as problem:
            raise BadInput(f"{path.name} line {number}: {problem}") from None
        line_of[record.id] = number
        records.append(record)
    return records


def write_jsonl(records: Iterable[Record], path: str | Path) -> Path:
    """Write records as JSON lines, whole or not at all.

    Raises:
        BadInput: two records have the same id, or the path can't be written.
    """
    path, records = Path(path), list(records)
    seen = set()
    for record in records:
        if record.id in seen:
            raise _wrong("id", record.id, "a different one for each record")
        seen.add(record.id)
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
    return path


def _object(line: str) -> dict:
    if not line.strip():
        raise BadInput("the line is empty; remove it, or put the lost record back")
    try:
        return json.loads(line, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        field = _last_field(line[: error.pos])
        where = f"after field {field}" if field else "before any field"
        raise BadInput(f"not JSON at character {error.pos + 1}, {where}: {error.msg}; is the line cut off?") from None
    except BadInput:
        raise
    except NOT_JSON as error:  # a number of thousands of digits, brackets without end
        raise BadInput(f"not JSON: {error}; write the record again") from None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"field {name} stands twice in the line; keep one")
    return dict(pairs)


def _last_field(text: str) -> str:
    """The field that stands last in a broken line."""
    places = {field.name: text.rfind(f'"{field.name}"') for field in fields(Record)}
    last = max(places, key=places.get)
    return last if places[last] >= 0 else ""


def _check_types(record: Record) -> None:
    for field in ("id", "dataset", "patient", "split", "volume", "kind", "form", "question", "answer", "style"):
        _check_text(field, getattr(record, field))
    for field in ("mask", "region", "distractor"):
        if getattr(record, field) is not None:
            _check_text(field, getattr(record, field), "a text, or null")
    if not isinstance(record.choices, tuple):
        raise _wrong("choices", record.choices, "a tuple of texts")
    for choice in record.choices:
        _check_text("choices", choice, "texts with at least one letter")
    if not isinstance(record.names_region, bool):
        raise _wrong("names_region", record.names_region, "true or false")


def _check_text(field: str, value: object, expected: str = "a text with at least one letter") -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(field, value, expected)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _wrong(field, value, "text that UTF-8 can hold, but half of a surrogate pair stands in it")


def _check_path(field: str, value: str | None) -> None:
    if value is None:
        return
    absolute = value.startswith("/") or value[1:2] == ":"
    if absolute or "\\" in value or ".." in PurePosixPath(value).parts:
        raise _wrong(field, value, "a path below the data set's folder, with forward slashes and without ..")


def _check_regions(record: Record) -> None:
    for field in ("region", "distractor"):
        value = getattr(record, field)
        if value is not None and region_name(value) != value:
            raise _wrong(field, value, f"its canonical name, {region_name(value)!r}")
    if record.distractor is not None and record.distractor == record.region:
        raise _wrong("distractor", record.distractor, "another region than the one asked about")
    if record.region is None and record.distractor is not None:
        raise _wrong("distractor", record.distractor, "null, as there is no region that it could distract from")
    if record.region is None and record.names_region:
        raise _wrong("names_region", True, "false, as there is no region to name")


def _check_answer(record: Record) -> None:
    if record.form == "open" and record.choices:
        raise _wrong("choices", record.choices, "none for an open question")
    if record.choices and record.choices.count(record.answer) != 1:
        raise _wrong("answer", record.answer, f"exactly one of the choices {_short(record.choices)}")
    if len(record.choices) == 1 or len(record.choices) > MAX_CHOICES:
        raise _wrong("choices", record.choices, f"two to {MAX_CHOICES}")
    yes_or_no = record.answer.strip().rstrip(".").lower() in ("yes", "no")
    if record.form == "closed" and not record.choices and not yes_or_no:
        raise _wrong("answer", record.answer, "yes or no, for a closed question without choices")


@cache
def _canonical(name: str) -> str | None:
    try:
        return anatomy.structure(name).name
    except BadInput:
        return None


def _wrong(field: str, value: object, expected: str) -> BadInput:
    return BadInput(f"field {field} is {_short(value)}; expected {expected}")


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
