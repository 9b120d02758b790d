"""RadGenome-ChestCT: CT-RATE's volumes with region sentences, region questions and masks of regions.

Layout, below the folder or its sub-folder ``dataset``::

    radgenome_files/{train,validation}_region_report.csv      Volumename, Anatomy, Sentence  (no Anatomy: whole scan)
                    …_vqa_abnormality.csv, …_vqa_location.csv Volumename, Anatomy, Abnormality
                    …_vqa_presence.csv                        Volumename, Anatomy, Finding, Presence  (Yes. / No.)
                    …_vqa_size.csv                            Volumename, Anatomy, Abnormality, Size
                    …_case_disorders.csv                      Volumename, Disorders
    {train,valid}_preprocessed/train_1/train_1a/train_1_a_1.nii.gz            the folder of the scan has no "_"
    {train,valid}_anatomy_mask/seg_train_1_a_1/right lung lower lobe.nii.gz   the end of the Anatomy path
    {train,valid}_region_mask/seg_train_1_a_1/lung.nii.gz                     its beginning, if the former isn't there

``radgenome_files/subset_2000`` (the part that lies in the code repository) is read where the full tables aren't.

The tables hold no questions. The authors draw one of many templates at random; here each kind has one plain wording
of our own (``QUESTIONS``), once with the region's name and once with "the given region", which is what their code does
in half of the cases. Only presence is closed; there is no multiple choice.

A row is repeated for each level of its path, ``lung`` and ``lung/lung``: where that gives the same question with the
same answer it is kept once. The split is CT-RATE's; there is no official 70/10/20.

Sources: RadGenome/RadGenome-ChestCT on its hub; its code at b7d34bd.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import naming, table
from ctvlm_lib.records.radgenome_places import SHORT, base_of, places, table_path
from ctvlm_lib.records.record import Record, region_name
from ctvlm_lib.volume import load


class _Kind(NamedTuple):
    file: str
    columns: tuple[str, ...]
    finding: str  # column that the question quotes, or ""
    answer: str  # column that holds the answer


_KINDS = {
    "report": _Kind("region_report", ("Anatomy", "Sentence"), "", "Sentence"),
    "abnormality": _Kind("vqa_abnormality", ("Anatomy", "Abnormality"), "", "Abnormality"),
    "presence": _Kind("vqa_presence", ("Anatomy", "Finding", "Presence"), "Finding", "Presence"),
    "location": _Kind("vqa_location", ("Anatomy", "Abnormality"), "Abnormality", "Anatomy"),
    "size": _Kind("vqa_size", ("Anatomy", "Abnormality", "Size"), "Abnormality", "Size"),
    "disorder": _Kind("case_disorders", ("Disorders",), "", "Disorders"),
}
QUESTIONS = {  # kind: (about a region, about the whole scan)
    "report": ("Describe the {region}.", "Describe the findings of this CT."),
    "abnormality": ("What abnormalities does the {region} show?", "What abnormalities does this CT show?"),
    "presence": ("Does the {region} show {finding}?", "Does this CT show {finding}?"),
    "location": ("Where is the {finding}?", "Where is the {finding}?"),
    "size": ("How large is the {finding} in the {region}?", "How large is the {finding}?"),
    "disorder": ("Which disorders does this CT show?", "Which disorders does this CT show?"),
}
_NO_REGION = ("", "others", "whole scan")  # path ends that no mask belongs to


def read(
    folder: str | Path, split: str | None = None, *, name_region: bool = True, check_volumes: bool = False
) -> table.Reading:
    """Read the questions on the volumes that are there.

    Args:
        folder: the data set's folder, or the one that holds ``dataset``.
        split: "train" or "validation"; both by default.
        name_region: say the region's name in the question, or "the given region".
        check_volumes: read every volume to its end, so that a damaged one is listed (slow).

    Returns:
        The reading. ``missing`` lists volumes and masks; a record whose mask alone isn't there has ``mask=None``.

    Raises:
        BadInput: none of its tables is there; a column is missing; Presence is neither "Yes." nor "No.".
    """
    folder = table.existing_folder(folder)
    files = table.Files(folder, check=(lambda path: load(path, check=False)) if check_volumes else None)
    reader = _Reader(folder, files, name_region)
    splits = table.wanted_splits(split, tuple(SHORT))
    records = [record for name in splits for kind in _KINDS for record in reader.records(name, kind)]
    if not reader.tables:
        raise BadInput(
            f"{folder} holds no table of RadGenome-ChestCT; radgenome_files/train_vqa_presence.csv and its siblings are"
            " expected, in it or in dataset"
        )
    missing = dict(files.missing + reader.masks.missing)
    unreadable = files.unreadable | reader.masks.unreadable
    return table.Reading("RadGenome-ChestCT", folder, records, missing, unreadable, tuple(reader.notes()))


@cache
def region_of(path: str) -> tuple[str | None, bool]:
    """The region of an Anatomy path, and whether the anatomy table has it.

    Returns:
        The canonical name, the data set's own where the table has none, or None for the whole scan; "others" stays.
    """
    leaf = path.rsplit("/", 1)[-1].strip()
    if leaf in ("", "whole scan"):
        return None, True
    if leaf == "others":
        return leaf, True
    try:
        return anatomy.structure(path, "radgenome").name, True
    except BadInput:
        return region_name(leaf), False


class _Reader:
    """Reads table after table and counts what is worth a note."""

    def __init__(self, folder: Path, files: table.Files, name_region: bool) -> None:
        self.folder, self.files, self.name_region = folder, files, name_region
        self.masks = table.Files(folder)  # masks are never opened here: there are up to 197 a volume
        self.base = base_of(folder)
        self.tables, self.absent = [], []
        self.seen: Counter[str] = Counter()
        self.refused: dict[str, str] = {}

    def records(self, split: str, kind: str) -> Iterator[Record]:
        """The records of one table; none if it isn't there."""
        spec = _KINDS[kind]
        path = self._table(f"{split}_{spec.file}.csv")
        if path is None:
            return
        said: dict[tuple[str, str], set[str]] = {}
        for line, row in table.rows(path, ("Volumename", *spec.columns)):
            if not row[spec.answer] and not (kind == "location" and row[spec.finding]):
                self.seen["empty"] += 1
                continue
            question, names_region = self._question(kind, row)
            answer = self._answer(kind, row, f"{path.name}, line {line}")
            # without its name the region still tells two questions apart
            leaf = row.get("Anatomy", "").rsplit("/", 1)[-1]
            about = said.setdefault((row["Volumename"], f"{leaf}:{question}"), set())
            if answer in about:
                self.seen["repeated"] += 1
                continue
            self.seen["contradicted"] += kind == "presence" and bool(about)
            about.add(answer)
            record = self._record(split, kind, line, row, question, answer, names_region)
            if record:
                yield record

    def _table(self, name: str) -> Path | None:
        path = table_path(self.folder, name)
        (self.absent if path is None else self.tables).append(name if path is None else path)
        return path

    def _question(self, kind: str, row: dict[str, str]) -> tuple[str, bool]:
        """The question, and whether its words name the region."""
        finding = row.get(_KINDS[kind].finding, "")
        leaf = row.get("Anatomy", "").rsplit("/", 1)[-1].strip()
        about_region, about_scan = QUESTIONS[kind]
        if leaf in _NO_REGION:
            question = about_region.format(region="other regions", finding=finding) if leaf == "others" else ""
            return question or about_scan.format(finding=finding), False
        question = about_region.format(region=leaf if self.name_region else "given region", finding=finding)
        # a finding such as "left lower lobe atelectasis" names it as well
        named = leaf.lower() in question.lower() or naming.structure_in(question) == region_of(row["Anatomy"])[0]
        return question, named

    def _answer(self, kind: str, row: dict[str, str], where: str) -> str:
        answer = row[_KINDS[kind].answer]
        if kind == "location":
            return answer.rsplit("/", 1)[-1] or "whole scan"
        if kind != "presence":
            return answer
        word = naming.yes_or_no(answer)
        if word is None:
            raise BadInput(f'{where}: Presence is {answer!r}; "Yes." or "No." is expected')
        return word

    def _record(self, split, kind, line, row, question, answer, names_region) -> Record | None:
        patient, path = self._volume(row["Volumename"], split, kind, line)
        if path is None:
            return None
        region, known = region_of(row.get("Anatomy", ""))
        if not known:
            self.seen[f"unknown:{region}"] += 1
        stem = path.rsplit("/", 1)[-1].removesuffix(".nii.gz")
        return table.make_record(
            self.refused, f"{split}_{_KINDS[kind].file}.csv, line {line}",
            id=f"radgenome:{split}:{kind}:{line}", dataset="RadGenome-ChestCT", patient=patient, split=split,
            volume=path, mask=self._mask(stem, split, row.get("Anatomy", "")), region=region, kind=kind,
            form="closed" if kind == "presence" else "open", question=question, answer=answer,
            names_region=names_region,
        )  # fmt: skip

    def _volume(self, name: str, split: str, kind: str, line: int) -> tuple[str, str | None]:
        """The patient, and the volume's path if it is there."""
        try:
            patient, candidates = places(name, split, self.base)
        except BadInput as problem:
            raise BadInput(f"{split}_{_KINDS[kind].file}.csv, line {line}: {problem}") from None
        return patient, self.files.find(*candidates)

    def _mask(self, stem: str, split: str, anatomy_path: str) -> str | None:
        head, leaf = anatomy_path.split("/")[0].strip(), anatomy_path.rsplit("/", 1)[-1].strip()
        if leaf in _NO_REGION or head in _NO_REGION or not self._has_masks(SHORT[split]):
            return None
        fine = f"{self.base}{SHORT[split]}_anatomy_mask/seg_{stem}/{leaf}.nii.gz"
        coarse = f"{self.base}{SHORT[split]}_region_mask/seg_{stem}/{head}.nii.gz"
        found = self.masks.find(fine, coarse)
        self.seen["coarse"] += found == coarse and head != leaf
        return found

    def _has_masks(self, short: str) -> bool:
        trees = [f"{self.base}{short}_{tree}_mask" for tree in ("anatomy", "region")]
        there = any((self.folder / tree).is_dir() for tree in trees)
        if not there:
            self.seen[f"treeless:{short}"] += 1
        return there

    def notes(self) -> Iterator[str]:
        seen = self.seen
        yield "the tables hold no question texts: the questions are plain ones of this project"
        if self.absent:
            yield f"tables not there: {table.some(self.absent, 12)}"
        if seen["repeated"]:
            count = table.plural(seen["repeated"], "row")
            yield f"{count} with a question and answer that another level of the path has too: kept once"
        if seen["contradicted"]:
            yield f"{table.plural(seen['contradicted'], 'presence question')} answered both Yes and No, as published"
        if seen["empty"]:
            yield f"{table.plural(seen['empty'], 'row')} without an answer, left out"
        if seen["coarse"]:
            yield f"{table.plural(seen['coarse'], 'record')} with the mask of a whole region, for want of the finer one"
        for short in SHORT.values():
            if seen[f"treeless:{short}"]:
                yield f"neither {short}_anatomy_mask nor {short}_region_mask is there: no masks for this split"
        unknown = [key.removeprefix("unknown:") for key in seen if key.startswith("unknown:")]
        if unknown:
            yield f"regions that the anatomy table doesn't have, under their own names: {table.some(unknown)}"
        yield from table.refused_note(self.refused)
