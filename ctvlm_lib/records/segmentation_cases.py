"""Stage 1's cases of the real data sets: a CT and, for each granularity, the classes of its voxels.

Chest: ReXGroundingCT's scans with the masks of its findings, whose categories stand in ``dataset.json``, and
TotalSegmentator's labels of the same scans. CT-RATE publishes such labels in the layout of its volumes, below
``dataset/ts_seg/ts_total``; a few scans lack them. A folder of one's own holds ``train_1_a_1.nii.gz``, or a folder
``train_1_a_1`` with a mask for each structure. Abdomen: AbdomenAtlas's masks.

A case has all its parts or isn't one: what is missing is listed and counted. So the three granularities are learned
from the same cases. Files are opened to be read and no more: U-VLM's preprocessing removes the source of a case that it
fails on, so that one unreadable byte costs the user a CT.

Sources: uvlm.txt §3.1; ReXGroundingCT's data card (``categories``) and ``categorize.py`` at 789d371 (their meaning);
U-VLM at 5d7fde9, ``preprocessing/preprocess_ct_rate_cls_report.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import rex_grounding, segmentation_masks, table
from ctvlm_lib.records.ct_rate import places
from ctvlm_lib.segment.class_maps import REX_CATEGORIES, ClassMap
from ctvlm_lib.segment.containment import BACKGROUND, content

_CHEST_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_ABDOMEN_SPLITS = ("train", "test")
_ABDOMEN_MASKS = tuple(content()["released"]["abdomen"]["config"])  # the names of its files
_Loaded = tuple[LabelMap, Mapping[str, np.ndarray] | None]


@dataclass(frozen=True)
class SegmentationCase:
    """One scan to learn segmentation from.

    Attributes:
        name: of the scan.
        patient: whose it is.
        split: "train", "validation" or "test".
        scope: "chest" or "abdomen", of its class map.
        ct: the file.
        masks: files and folders that the masks are in.
    """

    name: str
    patient: str
    split: str
    scope: str
    ct: Path
    masks: tuple[Path, ...]
    _load: Callable[[], _Loaded] = field(repr=False)

    def target(self, granularity: str) -> np.ndarray:
        """Read the masks and paint them: uint8 ``(D, H, W)`` on the CT's grid, indices into the class map's names.

        Raises:
            BadInput: a file can't be read, or as :meth:`ctvlm_lib.segment.class_maps.ClassMap.of_labels`.
        """
        classes = ClassMap.of(self.scope, granularity)
        return classes.of_labels(*self._load())

    def files(self) -> list[Path]:
        """Every file that a target is painted from, in a fixed order."""
        return [file for one in self.masks for file in (sorted(one.iterdir()) if one.is_dir() else [one])]


@dataclass(frozen=True, eq=False, repr=False)
class Cases:
    """What a reader of cases found; iterable.

    Attributes:
        dataset: name of the data set.
        cases: those that have all their parts.
        missing: path of each file or folder that isn't there → how many cases wait for it.
        unreadable: what is there and can't be used → why.
        notes: what else is worth knowing, one sentence each.
    """

    dataset: str
    cases: list
    missing: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __repr__(self) -> str:
        lines = [f"Cases({self.dataset}: {table.plural(len(self), 'case')}"]
        lines += [f"not there: {table.some(self.missing)}"] if self.missing else []
        lines += [f"unusable: {name} ({reason})" for name, reason in list(self.unreadable.items())[:1]]
        return "\n  ".join([*lines, *self.notes]) + ")"


def chest_cases(
    folder: str | Path, anatomy_labels: str | Path | None = None, split: str | None = None, *, incomplete: bool = False
) -> Cases:
    """List ReXGroundingCT's scans that have a CT, masks of their findings with categories, and anatomy.

    Args:
        folder: ReXGroundingCT's, with the CTs in CT-RATE's layout.
        anatomy_labels: folder of TotalSegmentator's labels of the scans; CT-RATE's own below ``folder`` by default.
        split: ReXGroundingCT's "train", "validation" or "test"; all by default. The masks of test aren't public.
        incomplete: also keep a scan whose folder of masks lacks some: their structures count as background.

    Raises:
        BadInput: as :func:`ctvlm_lib.records.rex_grounding.read`; no folder of labels; no scan has categories.
    """
    reading = rex_grounding.read(folder, split)  # it checks the list and says which CTs and masks are there
    records = {(record.split, record.id.split(":")[1]): record for record in reading.records}
    labels = table.Files(_anatomy_folder(reading.folder, anatomy_labels))
    cases, unreadable = [], dict(reading.unreadable)
    for (home, scan), codes in _categories(reading.folder, split).items():
        source = _anatomy_of(scan, labels, incomplete)
        record, problem = records.get((home, scan)), _problem_of(codes)
        if problem:
            unreadable[f"dataset.json, {scan}"] = problem
        if record and source and not problem:
            ct, masks = reading.folder / record.volume, reading.folder / record.mask
            load = partial(segmentation_masks.of_chest, ct, masks, source, codes)
            cases.append(SegmentationCase(scan, record.patient, home, "chest", ct, (masks, source), load))
    missing = dict.fromkeys(reading.missing, 1) | {f"{labels.folder.name}/{k}": n for k, n in labels.missing.items()}
    apart = ", ".join(content()["chest"]["apart"])
    notes = (*reading.notes, f"{apart}: TotalSegmentator has no mask of it; a scan without one of its own has none")
    return Cases("ReXGroundingCT", cases, missing, unreadable | labels.unreadable, notes)


def abdomen_cases(
    folder: str | Path, split: str | None = None, *, shift: str = "IID", incomplete: bool = False
) -> Cases:
    """List AbdomenAtlas's cases that have a CT and a mask of every structure and lesion.

    Args:
        folder: the folder with ``TrainTestIDS``, ``image_only`` and ``mask_only``.
        split: "train" or "test"; both by default.
        shift: the published split to follow, "IID" or "OOD".
        incomplete: also keep a case that lacks masks of structures, which then count as background; the lesions' must
            be there.

    Raises:
        BadInput: an unknown split, its list isn't there, or a case is in both lists.
    """
    folder = table.existing_folder(folder)
    wanted = table.wanted_splits(split, _ABDOMEN_SPLITS)
    files, cases, partly = table.Files(folder), [], 0
    for case, home in _homes(folder, shift).items():
        if home not in wanted:
            continue
        ct, below = files.find(f"image_only/{case}/ct.nii.gz"), f"mask_only/{case}/segmentations"
        lacking = [name for name in _ABDOMEN_MASKS if not files.find(f"{below}/{name}.nii.gz")]
        lesion_lacking = any(name.endswith("lesion") for name in lacking)
        if ct and not lesion_lacking and (incomplete or not lacking):
            partly += bool(lacking)
            load = partial(segmentation_masks.of_abdomen, folder / ct, folder / below)
            cases.append(SegmentationCase(case, case, home, "abdomen", folder / ct, (folder / below,), load))
    notes = (f"{table.plural(partly, 'case')} without some structures, which count as background",) if partly else ()
    return Cases("AbdomenAtlas 3.0", cases, dict(files.missing), files.unreadable, notes)


def _homes(folder: Path, shift: str) -> dict[str, str]:
    """Case → split of AbdomenAtlas's published lists."""
    if shift not in ("IID", "OOD"):
        raise BadInput(f"shift={shift!r}: choose IID or OOD, the published splits")
    homes: dict[str, str] = {}
    for split in _ABDOMEN_SPLITS:
        path = folder / "TrainTestIDS" / f"{shift}_{split}.csv"
        for line, row in table.rows(path, ("BDMAP ID",)):
            if homes.setdefault(row["BDMAP ID"], split) != split:
                raise BadInput(f"{path.name}, line {line}: {row['BDMAP ID']} is in the list of train too; remove one")
    return homes


def _anatomy_folder(folder: Path, given: str | Path | None) -> Path:
    """Where TotalSegmentator's labels lie: the folder given, or CT-RATE's own."""
    if given is not None:
        return table.existing_folder(given)
    for own in (folder / "dataset/ts_seg/ts_total", folder / "ts_seg/ts_total"):
        if own.is_dir():
            return own
    raise BadInput(
        f"{folder} holds no dataset/ts_seg/ts_total, CT-RATE's labels by TotalSegmentator; fetch it, or segment the CTs"
        " and give the folder as anatomy_labels="
    )


def _anatomy_of(scan: str, labels: table.Files, incomplete: bool) -> Path | None:
    """The scan's file of labels, or its folder of masks if it is whole (or needn't be)."""
    if (labels.folder / scan).is_dir():
        found = [labels.find(f"{scan}/{name}.nii.gz") for name in _chest_masks()]
        return labels.folder / scan if all(found) or (incomplete and any(found)) else None
    _, candidates = places(scan, "")
    path = labels.find(*candidates, f"{scan}.nii.gz")
    return labels.folder / path if path else None


def _chest_masks() -> tuple[str, ...]:
    """TotalSegmentator's names of the structures that have a class."""
    classes = ClassMap.of("chest", "F+L")
    names = anatomy.vocabulary("totalsegmentator").values()
    return tuple(anatomy.structure(name).totalsegmentator for name in names if classes.class_of(name) != BACKGROUND)


def _categories(folder: Path, split: str | None) -> dict[tuple[str, str], dict[str, str]]:
    """(split, scan) → number of a finding → its category's code, "" where dataset.json has none."""
    lists = table.read_json(folder / "dataset.json", dict)
    found, told = {}, False
    for home, key in _CHEST_SPLITS.items():
        for entry in lists.get(key) or () if split in (None, home) else ():
            codes = entry.get("categories")
            told |= codes is not None
            codes = codes if isinstance(codes, dict) else {}
            scan = entry["name"].removesuffix(".nii.gz")
            found[home, scan] = {number: str(codes.get(number, "")) for number in entry["findings"]}
    if found and not told:
        raise BadInput(
            "dataset.json says no finding's category (its key categories), and the lesions' classes are these; fetch"
            " the data set's own file"
        )
    return found


def _problem_of(codes: dict[str, str]) -> str | None:
    for number, code in codes.items():
        if not number.isdecimal():
            return f"a finding is numbered {number!r}; the place of its mask, 0, 1 …, is expected"
        if code not in REX_CATEGORIES:
            return f"finding {number} has the category {code!r}; one of {', '.join(REX_CATEGORIES)} is expected"
    return None
