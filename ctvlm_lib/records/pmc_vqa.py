"""PMC-VQA: questions with four choices on figures from open-access articles. 2-D pictures: no volume, no HU, no mask.

Layout, below the folder::

    train_2.csv, test_2.csv, images_2/…      second version: figures that aren't compound
    train.csv, test.csv, images/…            first version: compound figures
        Figure_path, Question, Anwser [sic; some copies: Answer], Choice A … Choice D (" A:text"), Answer_label, Caption

**There is no modality column.** A "CT subset" can only be a filter by key words in question, choices and caption, which
finds what was written and not what is shown; the papers' subset of 91 thousand can't be had again. :func:`read`
filters by ``CT_WORDS`` and says how many questions it keeps, for which words, found where.

There are no question types either: every record has the kind ``other``. The patient of a record is its article, the
PMC number of the figure.

Sources: xmcmic/PMC-VQA on its hub; its code at 1678ec2.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import naming, table
from ctvlm_lib.records.record import Record

CT_WORDS = ("CT", "CTA", "HRCT", "CECT", "CBCT", "computed tomography", "computed tomographic", "computer tomography")
_LETTERS = "ABCD"
_CHOICES = tuple(f"Choice {letter}" for letter in _LETTERS)
_VERSIONS = {  # version: split → table
    "v2": {"train": "train_2.csv", "test": "test_2.csv"},
    "v1": {"train": "train.csv", "test": "test.csv"},
}
_IMAGES = {"v2": ("images_2", "figures", "images"), "v1": ("images", "figures")}  # the archives' names first


def read(
    folder: str | Path, split: str | None = None, *, version: str | None = None, ct_only: bool = True
) -> table.Reading:
    """Read the questions whose figures are there.

    Args:
        folder: the folder with the tables.
        split: "train" or "test"; both by default.
        version: "v1" or "v2"; by default the second if its tables are there.
        ct_only: keep only what the key words find.

    Raises:
        BadInput: no table is there; a column is missing; the answer column has neither of its spellings.
    """
    folder = table.existing_folder(folder)
    reader = _Reader(folder, _version(folder, version), ct_only)
    splits = table.wanted_splits(split, ("train", "test"))
    records = [record for name in splits for record in reader.records(name) if record]
    notes = (*reader.notes(), *table.crossing_note(records))
    files = reader.files
    return table.Reading("PMC-VQA", folder, records, dict(files.missing), files.unreadable, notes)


def words_for_ct(text: str) -> tuple[str, ...]:
    """The key words in a text: abbreviations as they are written, the rest in any case; "CT" not in "FACT" or "ct"."""
    return tuple(
        word for word in CT_WORDS if re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", text, 0 if word.isupper() else re.I)
    )


def _version(folder: Path, version: str | None) -> str:
    if version not in (None, *_VERSIONS):
        raise BadInput(f"PMC-VQA has no version {version!r}; choose v1 or v2")
    for name in [version] if version else _VERSIONS:
        if any((folder / file).is_file() for file in _VERSIONS[name].values()):
            return name
    raise BadInput(
        f"{folder} holds no table of PMC-VQA; train_2.csv and test_2.csv (or train.csv and test.csv) are expected"
    )


class _Reader:
    """Reads the tables of one version and counts what is worth a note."""

    def __init__(self, folder: Path, version: str, ct_only: bool) -> None:
        self.folder, self.version, self.ct_only = folder, version, ct_only
        self.files = table.Files(folder)
        self.seen: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.refused: dict[str, str] = {}

    def records(self, split: str) -> Iterator[Record | None]:
        """The records of one split; none if its table isn't there."""
        path = self.folder / _VERSIONS[self.version][split]
        if not path.is_file():
            self.seen[f"absent:{path.name}"] += 1
            return
        for line, row in table.rows(path, ("Figure_path", "Question", *_CHOICES)):
            self.seen["rows"] += 1
            if self.ct_only and not self._about_ct(row):
                continue
            self.seen["kept"] += 1
            yield self._record(row, split, path, line)

    def _about_ct(self, row: dict[str, str]) -> bool:
        places = {"question": row["Question"], "choices": " ; ".join(row[c] for c in _CHOICES)}
        hits = [(word, place) for place, text in (places | {"caption": row.get("Caption", "")}).items()
                for word in words_for_ct(text)]  # fmt: skip
        self.words.update({f"{word} in the {place}" for word, place in hits})
        return bool(hits)

    def _record(self, row: dict[str, str], split: str, path: Path, line: int) -> Record | None:
        where = f"{path.name}, line {line}"
        article = re.match(r"PMC\d+", row["Figure_path"].rsplit("/", 1)[-1])
        choices = tuple(re.sub(r"^[A-D]\s*[:.]\s*", "", row[name]) for name in _CHOICES)
        answer = _answer(row, choices, path)
        if not article or answer is None:
            self.seen["no article" if not article else "no answer"] += 1
            return None
        figure = self.files.find(*(f"{below}/{row['Figure_path']}" for below in _IMAGES[self.version]))
        if figure is None:
            return None
        region = naming.structure_in(row["Question"])
        return table.make_record(
            self.refused, where, id=f"pmc-vqa:{path.stem}:{line}", dataset="PMC-VQA", patient=article[0], split=split,
            volume=figure, region=region, kind="other", form="closed", question=row["Question"], answer=answer,
            choices=choices, names_region=region is not None,
        )  # fmt: skip

    def notes(self) -> Iterator[str]:
        seen = self.seen
        yield f"version {self.version[1]}; 2-D figures: no volume, no HU, no mask"
        if self.ct_only:
            found = ", ".join(f"{place} {count}" for place, count in self.words.most_common(8))
            yield f"key words for CT keep {seen['kept']} of {table.plural(seen['rows'], 'question')}: {found or 'none'}"
        absent = [key.removeprefix("absent:") for key in seen if key.startswith("absent:")]
        if absent:
            yield f"tables not there: {table.some(absent)}"
        if seen["no answer"]:
            yield f"{table.plural(seen['no answer'], 'question')} whose answer isn't one of its choices, left out"
        if seen["no article"]:
            yield f"{table.plural(seen['no article'], 'question')} whose figure names no article (PMC…), left out"
        yield from table.refused_note(self.refused)


def _answer(row: dict[str, str], choices: tuple[str, ...], path: Path) -> str | None:
    """The right choice by its letter, or by its text; None if the two disagree or it isn't told."""
    column = next((name for name in ("Anwser", "Answer") if name in row), None)
    if column is None:
        table.check_columns(path, list(row), ("Answer",))
    text = re.sub(r"^[A-D]\s*[:.]\s*", "", row[column])
    letter = row.get("Answer_label") or (text if text in _LETTERS else "")
    if len(letter) == 1 and letter in _LETTERS:
        answer = choices[_LETTERS.index(letter)]
        agrees = text in ("", letter, answer)
    else:
        answer, agrees = text, True
    return answer if agrees and answer and choices.count(answer) == 1 else None
