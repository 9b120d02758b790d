"""What local–global pretraining is told of a user's CT-RATE and RadGenome-ChestCT: paths, reports, sentences, labels.

A volume is one that RadGenome-ChestCT's table of region sentences names: 24,128 for training and 1,564 for the test.
Its own copy of the volume is taken, as in the paper, since the masks lie on that grid; else CT-RATE's. Reports and
labels are CT-RATE's. Texts are kept in memory, about 10 kB a volume; volumes and masks stay on the disk.

Nothing is replaced: what isn't there is counted and told, see :class:`Pairs`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctvlm_lib.alignment.grounded import NOTHING
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome
from ctvlm_lib.alignment.radgenome_texts import ENRICHED, region_by_presences, report_by_labels, rewrites_of
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import ct_rate, naming, radgenome_places, table
from ctvlm_lib.records.table import plural, some

_TOLD = {  # what is said of volumes, reports or sentences that lack something
    "volume": "not there or empty, left out",
    "report": "without a report, left out",
    "sentence": "without any region's sentence, aligned with the report alone",
    "enriched report": "that nothing could be enriched from, left as in the original",
    "enriched sentence": "that nothing could be enriched from, left as in the original",
}
_NOUNS = {"enriched report": "report", "enriched sentence": "sentence"}
_NEEDED = ("RescaleIntercept", "RescaleSlope", "XYSpacing", "ZSpacing", "NumberofSlices", "Rows", "Columns")


@dataclass(frozen=True, eq=False)
class Pair:
    """A volume and what is said of it.

    Attributes:
        name, patient: such as train_1_a_1 and train_1.
        volume: its path. own: it is RadGenome-ChestCT's copy, on the grid of the masks.
        masks: path of each region's mask, None where there is none.
        report, enriched_report: of the volume.
        sentences, enriched: of each region, NOTHING where there is none.
        labels: of CT-RATE's 18, in their order; None where the table lacks the volume.
        metadata: of CT-RATE, what loading needs; None where there is none.
    """

    name: str
    patient: str
    volume: Path
    own: bool
    masks: tuple[Path | None, ...]
    report: str
    enriched_report: str
    sentences: tuple[str, ...]
    enriched: tuple[str, ...]
    labels: tuple[bool, ...] | None
    metadata: dict[str, str] | None


@dataclass(frozen=True, eq=False)
class Pairs:
    """The volumes of a split.

    Attributes:
        each: in the order of the table.
        notes: what isn't there, a sentence each.
    """

    each: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.each)

    @property
    def told(self) -> np.ndarray:
        """bool ``(n, R)``: the region has a sentence and a mask."""
        rows = [[s != NOTHING and m is not None for s, m in zip(p.sentences, p.masks, strict=True)] for p in self.each]
        return np.array(rows, bool)

    def digest(self) -> str:
        """Hash of which volumes there are and what is said of them."""
        lines = ("\t".join([p.name, p.report, p.enriched_report, *p.sentences, *p.enriched]) for p in self.each)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read(ct_rate_folder: str | Path, radgenome_folder: str | Path, config: OnRadGenome) -> dict[str, Pairs]:
    """Find the volumes of all splits; none is opened.

    Args:
        ct_rate_folder, radgenome_folder: of the user's copies, or those that hold ``dataset``.
        config: regions, enrichment, held-out share, patients.

    Returns:
        "train", "validation" (patients of the training split that are held out) and "test" (the published validation
        split).

    Raises:
        BadInput: a table that isn't there or can't be used, or a split that would be empty.
    """
    homes = table.existing_folder(ct_rate_folder), table.existing_folder(radgenome_folder)
    rewrites = None if config.enriched in ENRICHED else rewrites_of(config.enriched)
    found = {name: _Split(*homes, name, config, rewrites).pairs() for name in ("train", "validation")}
    for name, pairs in found.items():
        if not pairs.each:
            raise BadInput(f"no volume of the {name} split is there with its report: {'; '.join(pairs.notes)}")
    held = _held_out([p.patient for p in found["train"].each], config.held_out)
    train, apart = (
        tuple(p for p in found["train"].each if (p.patient in held) == whether) for whether in (False, True)
    )
    if not train:
        raise BadInput("all training volumes are of one patient, who is held out; give a larger part of the data")
    note = f"validation: {plural(len(apart), 'volume')} of {plural(len(held), 'patient')} held out of training"
    kept = {"train": replace(found["train"], each=train), "validation": Pairs(apart, (note,))}
    return kept | {"test": found["validation"]}


def _held_out(patients: Sequence[str], share: float) -> set[str]:
    """At least one patient, those whose names' hashes come first: other copies of the data hold out the same."""
    names = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(names[: max(1, round(share * len(names)))])


class _Split:
    """Reads the tables of one published split."""

    def __init__(self, ct: Path, rad: Path, split: str, config: OnRadGenome, rewrites: Mapping[str, str] | None):
        self.ct, self.rad, self.split, self.config, self.rewrites = ct, rad, split, config, rewrites
        self.base = {"ct": radgenome_places.base_of(ct), "rad": radgenome_places.base_of(rad)}
        self.notes: list[str] = []
        self.files = {"ct": table.Files(ct), "rad": table.Files(rad)}
        self.lost: dict[str, list[str]] = defaultdict(list)

    def pairs(self) -> Pairs:
        """All volumes that are there with their report."""
        said, known = self._sentences(), self._presences()
        reports, notes = ct_rate.reports(self.ct, self.split)
        labels, more = ct_rate.labels(self.ct, self.split)
        self.notes += [*notes, *more]
        metadata, made, patients = self._metadata(), [], {}
        for name, sentences in said.items():
            patient, own_places = radgenome_places.places(name, self.split, self.base["rad"])
            patients.setdefault(patient, len(patients))
            if self.config.patients and patients[patient] >= self.config.patients:
                continue
            path, own = self._volume(name, own_places)
            if path is None or name not in reports:
                self.lost["report" if path else "volume"].append(name)
                continue
            texts = tuple(" ".join(sentences.get(region, ())) or NOTHING for region in self.config.regions)
            if set(texts) == {NOTHING}:
                self.lost["sentence"].append(name)
            made.append(
                Pair(name, patient, path, own, self._masks(name), reports[name],
                     self._enriched_report(reports[name], labels.get(name), name), texts,
                     self._enriched(name, texts, known.get(name, {})), labels.get(name), metadata.get(name))
            )  # fmt: skip
        here = "train" if self.split == "train" else "test"
        return Pairs(tuple(made), tuple(f"{here}: {note}" for note in (*self.notes, *self._told(len(made)))))

    def _sentences(self) -> dict[str, dict[str, list[str]]]:
        """Volume → region → its sentences; one that another holds is taken once, as each level of a path has it."""
        found: dict[str, dict[str, list[str]]] = {}
        for name, path, row in self._rows("region_report", ("Anatomy", "Sentence")):
            regions = found.setdefault(name, {})
            for region in set(path).intersection(self.config.regions) if row["Sentence"] else ():
                there = regions.setdefault(region, [])
                if not any(row["Sentence"] in other for other in there):
                    there.append(row["Sentence"])
        return found

    def _presences(self) -> dict[str, dict[str, list[tuple[str, bool]]]]:
        """Volume → region → findings with whether they are there; a region's own rows sum up those below it."""
        found: dict[str, dict[str, list[tuple[str, bool]]]] = {}
        if self.config.enriched != ENRICHED[0]:
            return found
        for name, path, row in self._rows("vqa_presence", ("Anatomy", "Finding", "Presence")):
            if path[-1] in self.config.regions and row["Finding"]:
                answer = naming.yes_or_no(row["Presence"])
                if answer is None:
                    raise BadInput(f'vqa_presence.csv: Presence of {name} is {row["Presence"]!r}; "Yes." or "No."')
                found.setdefault(name, {}).setdefault(path[-1], []).append((row["Finding"], answer == "Yes"))
        return found

    def _rows(self, kind: str, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """Volume, parts of its path, and the row."""
        name = f"{self.split}_{kind}.csv"
        path = radgenome_places.table_path(self.rad, name)
        if path is None and kind == "region_report":
            raise BadInput(f"{self.rad} holds no radgenome_files/{name}, which says what is seen in each region")
        if path is None:
            self.notes.append(f"{name} is not there: region sentences stay as they are")
            return
        for _, row in table.rows(path, ("Volumename", *columns)):
            parts = [part.strip() for part in row["Anatomy"].split("/")]
            yield row["Volumename"].removesuffix(".nii.gz"), parts, row

    def _metadata(self) -> dict[str, dict[str, str]]:
        try:
            rows = ct_rate.metadata(self.ct, self.split)
        except BadInput as problem:
            self.notes.append(f"no metadata ({problem}): volumes that aren't in HU can't be read")
            return {}
        return {name: {k: row[k] for k in _NEEDED if k in row} for name, row in rows.items()}

    def _volume(self, name: str, own_places: tuple[str, str]) -> tuple[Path | None, bool]:
        own = self.files["rad"].find(*own_places)
        if own is not None:
            return self.rad / own, True
        other = self.files["ct"].find(*ct_rate.places(name, self.base["ct"])[1])
        return (None if other is None else self.ct / other), False

    def _masks(self, name: str) -> tuple[Path | None, ...]:
        found = []
        for region in self.config.regions:
            places = radgenome_places.mask_places(name, self.split, region, self.base["rad"])
            path = self.files["rad"].find(*places)
            if path is None:
                self.lost[f"mask of the {region}"].append(name)
            found.append(None if path is None else self.rad / path)
        return tuple(found)

    def _enriched_report(self, report: str, labels: tuple[bool, ...] | None, name: str) -> str:
        made = report_by_labels(labels) if self.config.enriched == ENRICHED[0] and labels else None
        return self._or_original(made, report, "report", name)

    def _enriched(self, name: str, texts: Sequence[str], known: Mapping) -> tuple[str, ...]:
        made = (region_by_presences(region, known.get(region, ())) for region in self.config.regions)
        return tuple(
            NOTHING if text == NOTHING else self._or_original(new, text, "sentence", name)
            for text, new in zip(texts, made, strict=True)
        )

    def _or_original(self, made: str | None, text: str, kind: str, name: str) -> str:
        new = self.rewrites.get(text) if self.rewrites is not None else made
        if not new and self.config.enriched != "none":
            self.lost[f"enriched {kind}"].append(name)
        return new or text

    def _told(self, there: int) -> Iterator[str]:
        """One sentence on each kind of thing that isn't there."""
        yield f"{plural(there, 'volume')} with a report"
        for kind, names in self.lost.items():
            noun = _NOUNS.get(kind, "volume")
            told = _TOLD.get(kind, f"without a {kind}, where that region isn't aligned")
            yield f"{plural(len(names), noun)} {told}: {some(dict.fromkeys(names), 3)}"
