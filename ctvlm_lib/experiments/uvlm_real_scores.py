"""What an arm of U-VLM says of a user's CT-RATE or AbdomenAtlas, and what follows: T2 to T5 of the paper, in shares.

Labels are read from reports by CT-CLIP's RadBERT where the sources file names its weights, as in the paper; else, and
in AbdomenAtlas's, where the paper asks a language model behind an API, by key words: a sentence affirms a label if it
holds all of its expressions and denies nothing. Other organs have lobes, segments and nodules, too: a sentence that
names one of them is about the lung only if it names that as well. All of this is coarse, and the record says which it
was. Intervals draw patients.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from ctvlm_lib.alignment import classification
from ctvlm_lib.evaluate.abnormalities import denies
from ctvlm_lib.evaluate.labels import choose_thresholds
from ctvlm_lib.evaluate.radbert import THRESHOLD, ReportLabeller, load_radbert
from ctvlm_lib.evaluate.zero_shot import Drawn
from ctvlm_lib.experiments.uvlm_arms import CLS, REP, Arm
from ctvlm_lib.experiments.uvlm_real_data import ABDOMEN, CHEST, LABELS, Volumes
from ctvlm_lib.experiments.uvlm_tables import COLUMNS, SHARES, bleu_of, f1_of, mean_dice
from ctvlm_lib.segment import unet_training
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.segment.unet_training import Segmented, dice_of
from ctvlm_lib.sources import Sources
from ctvlm_lib.vlm import report_writer

AT_ONCE = 16  # scans between two lines on how far it is
RADBERT, WORDS = "RadBERT", "key words"
_ARTERY = r"\b(?:aort|supra-?aortic|carotid|vascular|(?<!coronary )arter)"
_CALCIFIED = r"calcif|atherom|atheroscl|plaque"
_ELSEWHERE = r"thyroid|\bliver\b|hepat|renal|\bkidney|\bbreast|mammar|\bspleen|splenic|pancrea"  # adrenal is in renal
_IN_LUNG = r"\blungs?\b|pulmon|pleura|fissur|lingul|\b(?:upper|middle|lower) lobe"
_NOT_ELSEWHERE = rf"^(?!.*(?:{_ELSEWHERE}))|{_IN_LUNG}"
_FLUID, _LESION = r"effusion|fluid", r"lesion|mass|tumou?r|cyst|metasta|nodule|carcinoma"
KEY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    CHEST: {
        "Medical material": (r"catheter|pacemaker|\bstent|prosthe|implant|\btube\b|sutur|sternotomy|electrode",),
        "Arterial wall calcification": (_ARTERY, _CALCIFIED),
        "Cardiomegaly": (r"cardiomegal|enlarged heart|(?:heart|cardiac)\b.*\b(?:enlarged|increased)",),
        "Pericardial effusion": (r"pericardial", _FLUID),
        "Coronary artery wall calcification": (r"coronary", _CALCIFIED),
        "Hiatal hernia": (r"hiat(?:al|us) hernia",),
        "Lymphadenopathy": (r"lymphadenopath|enlarged lymph node|lymph nodes?\b.*\b(?:enlarged|pathological)",),
        "Emphysema": (r"emphysem",),
        "Atelectasis": (r"atelecta",),
        "Lung nodule": (r"lung|lobe|pulmonary|parenchym|segment|pleura|fissur", r"nodul", _NOT_ELSEWHERE),
        "Lung opacity": (r"opacit|ground.?glass|infiltrat|consolidat",),
        "Pulmonary fibrotic sequela": (r"fibro|sequel|scar",),
        "Pleural effusion": (r"pleural", _FLUID),
        "Mosaic attenuation pattern": (r"mosaic",),
        "Peribronchial thickening": (r"peribronchial|bronchial wall thick",),
        "Consolidation": (r"consolidat",),
        "Bronchiectasis": (r"bronchiecta",),
        "Interlobular septal thickening": (r"interlobular sept|septal thick",),
    },
    ABDOMEN: {
        "Liver lesion": (r"\bliver|hepatic", _LESION),
        "Kidney lesion": (r"kidney|\brenal", _LESION),
        "Pancreas lesion": (r"pancrea", _LESION),
    },
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|[;\n]+")
_NONE = re.compile(
    r"\b(?:none|negative for|ruled out)\b|:\s*(?:0(?:[.,]0+)?|zero)\b(?![.,–-]?\d)",  # "lesions: 0", not "size: 0.5 cm"
    re.IGNORECASE,
)


def labeller_of(scope: str, given: Sources) -> ReportLabeller | None:
    """What reads CT-RATE's labels from reports; None: key words do.

    Raises:
        BadInput: weights are named and can't be used.
    """
    if scope != CHEST or not given.radbert:
        return None
    return load_radbert(given.radbert, given.radbert_backbone, profile="paper").labeller


def read_labels(texts: Sequence[str], scope: str, labeller: ReportLabeller | None = None) -> np.ndarray:
    """bool ``(n, labels)``: what each report affirms; an empty one affirms nothing."""
    called = np.zeros((len(texts), len(LABELS[scope])), bool)
    told = [k for k, text in enumerate(texts) if text.strip()]
    if labeller is None:
        for k in told:
            called[k] = by_key_words(texts[k], scope)
    elif told:
        called[told] = labeller.labels([texts[k] for k in told], cut=True) >= THRESHOLD
    return called


def by_key_words(text: str, scope: str) -> list[bool]:
    """Which labels some sentence of a report affirms, by KEY_WORDS."""
    said = [one for one in _SENTENCE.split(text) if one.strip() and not denies(one) and not _NONE.search(one)]
    found = [[re.compile(one, re.IGNORECASE) for one in KEY_WORDS[scope][label]] for label in LABELS[scope]]
    return [any(all(one.search(sentence) for one in every) for sentence in said) for every in found]


def ask(
    model, split: Volumes, arm: Arm, config, labeller: ReportLabeller | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What a trained model says of a split, in the form of :func:`ctvlm_lib.experiments.uvlm.ask`.

    Args:
        model: trained, on the device where it shall compute.
        split: which. arm: what it was trained as. config: how.
        labeller: see :func:`labeller_of`.
        tell: called with how many scans are done.

    Returns:
        stage 1: ``dice`` ``(n, classes − 1)``, and of the abdomen's lesions ``lesion`` int ``(n, 3)``, voxels that were
        found; stage 2: ``logits`` ``(n, labels)``; stage 3: ``report``, n texts, and ``called`` ``(n, labels)``.
    """
    parts, done = [], 0
    for block in split.blocks(AT_ONCE):
        if arm.stage == CLS:
            part = {"logits": classification.logits_of(model, block, config.batch)}
        elif arm.stage == REP:
            texts = report_writer.reports_of(model, block, config.batch, config.longest, config.batch)
            part = {"report": np.array(texts, object)}
        else:
            part = _segmented(model, block, config)
        parts.append(part)
        done += len(block)
        tell(done)
    said = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if arm.stage == REP:
        said["called"] = read_labels(list(said["report"]), split.scope, labeller).astype(int)
    return said


def truth_of(split: Volumes) -> dict[str, np.ndarray]:
    """What is true of a split, and of whom; of stage 1 the masks alone are, and they stay with the user."""
    return {
        "labels": split.labels.astype(int), "report": np.array(split.reports, object), "patient": split.patients,
        "name": np.array(split.names, object),
    }  # fmt: skip


def table(said: Mapping[str, dict], truth: Mapping[str, dict], arm: Arm, scope: str) -> tuple[pd.DataFrame, list[str]]:
    """All that is measured on test, with the columns and names of :mod:`ctvlm_lib.experiments.uvlm_tables`.

    Args:
        said: split → :func:`ask`. truth: split → :func:`truth_of`.
        arm: which. scope: of its data.

    Returns:
        The table, and what has to be said of it, a sentence each.
    """
    patient, notes = truth["test"]["patient"], []
    known = truth["test"]["labels"].astype(bool)
    if arm.stage == REP:
        found = _shares(said["test"]["called"].astype(bool), known, patient, scope)
        wording = bleu_of(said["test"]["report"], truth["test"]["report"])
        found |= {name: _by_patient(one, patient) for name, one in wording.items()}
    elif arm.stage == CLS:
        called, notes = _called(said, truth["validation"]["labels"], "logits", scope)
        found = _shares(called, known, patient, scope)
    else:
        found = _dice(said["test"]["dice"], patient, arm, scope)
        if "lesion" in said["test"]:
            called, notes = _called(said, truth["validation"]["labels"], "lesion", scope)
            found |= _shares(called, known, patient, scope)
    rows = []
    for measure, one in found.items():
        values = dict(zip(("value", "low", "high"), (one.value, *one.interval()), strict=True))
        rows.append({"split": "test", "measure": measure, "patients": len(one.each)} | values)
    return pd.DataFrame(rows, columns=COLUMNS).round({"value": 6, "low": 6, "high": 6}), notes


def _segmented(model, block: Volumes, config) -> dict[str, np.ndarray]:
    """Windows slide over each scan; Dice of its classes, and of the abdomen how many voxels of a lesion were found."""
    classes, dice, voxels = ClassMap.of(block.scope, block.granularity), [], []
    for k, name in enumerate(block.names):
        hu, target = block.hu[k][None], block.target[k][None]
        look = partial(block.as_input, k)
        found = unet_training.segment(model, hu, tuple(config.patch_dhw_vox), config.batch, look, gaussian=True)
        dice.append(dice_of(found, Segmented((name,), hu, target, classes.names))[0])
        voxels.append(np.bincount(found.ravel(), minlength=len(classes.names)))
    made = {"dice": np.round(dice, 3)}
    if block.scope == ABDOMEN and classes.lesions:
        made["lesion"] = np.stack(voxels)[:, [classes.names.index(name) for name in classes.lesions]]
    return made


def _called(said: Mapping[str, dict], known: np.ndarray, what: str, scope: str) -> tuple[np.ndarray, list[str]]:
    """What is called on test at thresholds of the best F1 on validation; at even odds, or a voxel, if none is there."""
    tuned, names = said["validation"][what].astype(float), LABELS[scope]
    rows = [f"validation {k}" for k in range(len(tuned))]
    chosen = choose_thresholds(tuned, known.astype(bool), names, rows, rule="best F1")
    least = {"logits": 0.0, "lesion": 1.0}[what]
    alike = np.isin(names, chosen.one_class)
    notes = [f"{name}: validation has a single class, so its threshold is {least:g}" for name in chosen.one_class]
    return said["test"][what] >= np.where(alike, least, chosen.values), notes


def _by_patient(statistic: Callable[[np.ndarray], np.ndarray], patient: np.ndarray, labels: int = 0) -> Drawn:
    """A statistic of how often each scan is drawn, whose draws are of patients."""
    return Drawn.of(lambda times: statistic(times[:, patient]), int(patient.max()) + 1, labels=labels)


def _shares(called: np.ndarray, truth: np.ndarray, patient: np.ndarray, scope: str) -> dict[str, Drawn]:
    """F1, precision and recall, macro over the labels; of AbdomenAtlas also for each organ."""
    parts = {"labels" if scope == CHEST else "lesions": list(range(truth.shape[1]))}
    if scope == ABDOMEN:
        parts |= {f"{name.lower()}s": [k] for k, name in enumerate(LABELS[scope])}  # "liver lesions"
    return {
        f"{what} {name}": _by_patient(partial(f1_of, called[:, of], truth[:, of], measure=name), patient, len(of))
        for what, of in parts.items()
        for name in SHARES
    }


def _dice(dice: np.ndarray, patient: np.ndarray, arm: Arm, scope: str) -> dict[str, Drawn]:
    """Of anatomy and of lesions, where there are any."""
    anatomy = dice.shape[1] - len(ClassMap.of(scope, arm.granularity).lesions)
    parts = {"Dice of anatomy": dice[:, :anatomy], "Dice of lesions": dice[:, anatomy:]}
    there = {name: one for name, one in parts.items() if np.isfinite(one).any()}
    return {name: _by_patient(partial(mean_dice, one), patient) for name, one in there.items()}
