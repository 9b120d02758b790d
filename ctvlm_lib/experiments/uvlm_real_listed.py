"""Which scans of a user's CT-RATE and ReXGroundingCT, or AbdomenAtlas 3.0, U-VLM's stages have, by split.

Stage 1 has the scans with masks, of the chest ReXGroundingCT's; stages 2 and 3 have those with a report and labels. No
volume is opened, and what is missing gets a sentence.

Held out of training are the patients whose names' hashes come first, in every stage: thresholds are chosen on them.

Source: uvlm.txt §3.1.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.uvlm_arms import SEG
from ctvlm_lib.experiments.uvlm_real_data import ABDOMEN, CHEST, Scan, Store, Volumes
from ctvlm_lib.records import abdomen_atlas, ct_rate, table
from ctvlm_lib.records.segmentation_cases import Cases, abdomen_cases, chest_cases
from ctvlm_lib.records.table import plural, some
from ctvlm_lib.sources import Sources

DATA = {CHEST: "CT-RATE", ABDOMEN: "AbdomenAtlas 3.0"}
SPLITS = ("train", "validation", "test")
_ORGANS = ("liver", "kidney", "pancreas")  # in the order of ABDOMEN_LABELS


def listed(stage: str, granularity: str, scope: str, given: Sources, config) -> dict[str, Volumes]:
    """Which scans a stage has, by split; no volume is opened.

    Args:
        stage: one of :data:`ctvlm_lib.experiments.uvlm_arms.STAGES`. granularity: of stage 1.
        scope: "chest", CT-RATE, or "abdomen", AbdomenAtlas.
        given: where the data lie.
        config: of :class:`ctvlm_lib.experiments.uvlm_real_options.OnReal`.

    Raises:
        BadInput: a folder or table that isn't there or can't be used, or a split without a scan.
    """
    if not given.prepared:
        raise BadInput("U-VLM's volumes are made ready once; name a folder for them: [run] prepared = …")
    makes = {CHEST: (_chest, _chest_masks), ABDOMEN: (_abdomen, _abdomen_masks)}[scope][stage == SEG]
    found, notes = makes(given, config)
    store, every = Store(Path(given.prepared), tuple(config.size_dhw_vox)), {}
    needed = SPLITS if (stage, scope) != (SEG, CHEST) else ("train", "test")  # nothing is tuned on the chest's masks
    for split in needed:
        scans = tuple(found[split][: config.patients or None])
        if not scans:
            told = "; ".join(notes[split] or notes["train"]) or "nothing of it is there"
            raise BadInput(f"no scan of {DATA[scope]} is left for {stage}, split {split}: {told}")
        every[split] = Volumes(scans, store, scope, granularity, tuple(notes[split]))
    return every


def usable(known: Volumes, split: str, found: Sequence[tuple[str, tuple[str, ...]]]) -> Volumes:
    """Those scans of a split that could be made ready, and a sentence on each that couldn't.

    Raises:
        BadInput: none could.
    """
    both = list(zip(known.scans, found, strict=True))
    notes = [f"{split}: {scan.name} left out: {why}" for scan, (why, _) in both if why]
    kept = tuple(scan for scan, (why, _) in both if not why)
    if not kept:
        raise BadInput(f"no volume of the {split} split can be used, e.g. {notes[0]}")
    return replace(known, scans=kept, notes=(*known.notes, *notes))


def held_out(patient: str, share: float) -> bool:
    """Whether a patient of training is held out: the same in every stage and in every copy of the data."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) < share * 16**8


def _parted(found: dict[str, list[Scan]], notes: dict[str, list[str]], share: float):
    """Training scans without those of held-out patients, which become validation."""
    whole = found["train"]
    found["train"], found["validation"] = (
        [scan for scan in whole if held_out(scan.patient, share) == whether] for whether in (False, True)
    )
    held = len({scan.patient for scan in found["validation"]})
    notes["validation"] = [f"validation: {plural(held, 'patient')} of the training split held out"]
    if not held:
        notes["validation"] += [f"none of {plural(len(whole), 'training scan')} is; enlarge held_out ({share:g})"]
    return found, notes


def _chest(given: Sources, config) -> tuple[dict, dict]:
    """CT-RATE's scans with a report and labels; its validation is the test split."""
    folder, found, notes = Path(given.folder("ct_rate")), {}, {}
    base = "dataset/" if (folder / "dataset").is_dir() else ""
    for split, own in (("train", "train"), ("test", "validation")):
        reports, told = ct_rate.reports(folder, own)
        labels, more = ct_rate.labels(folder, own)
        files, rows, made = table.Files(folder), _metadata(folder, own), []
        for name in labels:
            patient, places = ct_rate.places(name, base)
            path = files.find(*places) if name in reports else None
            if path:
                made.append(Scan(name, patient, folder / path, rows.get(name), reports[name], labels[name]))
        lost = [*(set(labels) - set(reports)), *(set(reports) - set(labels))]
        found[split] = made
        notes[split] = [*told, *more, *_lacking(split, "volume", files.missing)]
        notes[split] += _lacking(split, "report or its labels", sorted(lost))
    return _parted(found, notes, config.held_out)


def _chest_masks(given: Sources, config) -> tuple[dict, dict]:
    """ReXGroundingCT's training scans of CT-RATE's training split, and as test those of its validation."""
    folder = Path(given.folder("rex_grounding"))
    rows = _metadata(Path(given.ct_rate), "train") if given.ct_rate else {}
    found, notes = {}, {}
    for split, own in (("train", "train"), ("test", "validation")):
        cases = chest_cases(folder, given.totalsegmentator or None, own, incomplete=config.incomplete)
        found[split], notes[split] = _of_masks(cases, rows), _said(split, cases)
    scored = {scan.patient for scan in found["test"]}
    kept = [scan for scan in found["train"] if scan.name.startswith("train_") and scan.patient not in scored]
    if lost := len(found["train"]) - len(kept):
        notes["train"] += [f"train: {plural(lost, 'scan')} of patients of a scored split left out"]
    found["train"] = kept
    return _parted(found, notes, config.held_out)


def _abdomen(given: Sources, config) -> tuple[dict, dict]:
    """AbdomenAtlas's cases with a report and what is known of three organs' lesions."""
    folder = Path(given.folder("abdomen_atlas"))
    both = {split: _atlas(folder, split, config.report) for split in ("train", "test")}
    found, notes = ({split: one[k] for split, one in both.items()} for k in (0, 1))
    return _parted(found, notes, config.held_out)


def _abdomen_masks(given: Sources, config) -> tuple[dict, dict]:
    """Those of them that have all masks, too."""
    folder, found, notes = Path(given.folder("abdomen_atlas")), {}, {}
    for split in ("train", "test"):
        scans, told = _atlas(folder, split, config.report)
        cases = abdomen_cases(folder, split, incomplete=config.incomplete)
        masks = {case.name: case for case in cases}
        found[split] = [replace(scan, masks=masks[scan.name]) for scan in scans if scan.name in masks]
        notes[split] = list(dict.fromkeys([*told, *_said(split, cases)]))
    return _parted(found, notes, config.held_out)


def _atlas(folder: Path, split: str, report: str) -> tuple[list[Scan], list[str]]:
    reading = abdomen_atlas.read(folder, split, report=report)
    cases: dict[str, dict] = {}
    for record in reading.records:
        one = cases.setdefault(record.patient, {"ct": folder / record.volume})
        if record.kind in ("report", "presence"):
            one[record.region or record.kind] = record.answer
    whole = {name: one for name, one in cases.items() if {"report", *_ORGANS} <= set(one)}
    scans = [
        Scan(name, name, one["ct"], None, one["report"], tuple(one[organ] == "Yes" for organ in _ORGANS))
        for name, one in whole.items()
    ]
    absent = [path for path in reading.missing if path.startswith("image_only")]
    silent = sorted(set(cases) - set(whole))
    notes = [*reading.notes, *_lacking(split, "volume", absent)]
    return scans, notes + _lacking(split, f"{report}, or an organ's lesion volume", silent)


def _of_masks(cases: Cases, rows: dict[str, dict]) -> list[Scan]:
    return [Scan(case.name, case.patient, case.ct, rows.get(case.name), masks=case) for case in cases]


def _said(split: str, cases: Cases) -> list[str]:
    unusable = [f"{split}: {name} can't be used: {why}" for name, why in list(cases.unreadable.items())[:20]]
    return [*_lacking(split, "volume or mask", cases.missing), *unusable, *cases.notes]


def _lacking(split: str, what: str, lost: Sequence[str] | dict) -> list[str]:
    return [f"{split}: without a {what}, left out: {some(lost, 4)}"] if lost else []


def _metadata(folder: Path, split: str) -> dict[str, dict[str, str]]:
    """CT-RATE's table, {} where it isn't there: volumes of the fixed generation don't need it."""
    path = folder / ("dataset" if (folder / "dataset").is_dir() else "") / "metadata" / f"{split}_metadata.csv"
    return ct_rate.metadata(folder, split) if path.is_file() else {}
