"""The ceiling: what a linear read-out of the frozen tokens knows about a region's finding.

It stands in every table: a decoder that answers worse hasn't used what is there. It is a practical ceiling, not a
proof; a read-out that isn't linear may find more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ctvlm_lib.alignment.scans import KINDS, Scans, as_input, kinds_of
from ctvlm_lib.alignment.tokens import Pooling, shares
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import LOBES, REGIONS
from ctvlm_lib.records.questions import LUNG_CHOICES, NONE, ORGAN_CHOICES


@dataclass(frozen=True)
class Ceiling:
    """Accuracy of the linear read-out on "which finding does this region show?", regions of all patients together.

    Attributes:
        four_way: mean over the kinds of finding, each with the same weight, as the questions are balanced; answers are
            restricted to the four choices of the cohort's questions, the mean over the sets that hold the true one.
        low, high: its 95 % interval over patients drawn with replacement.
        plain: the same over the regions as they occur, half of them without a finding.
        all_kinds: over the kinds with equal weight, without choices: eight of a lobe, four of an organ.
        majority: ``plain`` of the reader who always says that there is no finding.
        regions, patients: how many were scored.
    """

    four_way: float
    low: float
    high: float
    plain: float
    all_kinds: float
    majority: float
    regions: int
    patients: int


Features = tuple[np.ndarray, np.ndarray]  # (rows (R, 2): patient and region, features (R, channels))


@torch.inference_mode()
def region_features(
    encoder: torch.nn.Module, scans: Scans, images: Callable | None = None, batch: int = 25
) -> Features:
    """Mean and maximum of the low tokens over each region of each patient.

    Args:
        encoder: with ``encode`` and ``grids``; put into evaluation mode.
        scans: the patients.
        images: indices → float32 ``(B, channels, D, H, W)``; None gives the grey volumes.
        batch: volumes at a time.
    """
    encoder.eval()
    images = images or (lambda index: as_input(scans.hu[index])[:, None])
    device = next(encoder.parameters()).device
    grid = encoder.grids(scans.hu.shape[1:])[-2]
    rows, features = [], []
    for start in range(0, len(scans), batch):
        index = np.arange(start, min(start + batch, len(scans)))
        low = encoder.encode(torch.from_numpy(images(index)).to(device))[0][-2].float().cpu()
        pooling = Pooling.of(shares(scans.region[index], len(REGIONS) + 1, grid)[:, 1:])
        rows.append(pooling.rows + [start, 0])
        features.append(pooling(low).numpy())
    return np.concatenate(rows), np.concatenate(features)


def perfect_features(scans: Scans, grid: tuple[int, int, int]) -> Features:
    """What an encoder could know at most on this grid by which voxels belong to which kind of finding."""
    rows, features = [], []
    for start in range(0, len(scans), 25):
        part = slice(start, start + 25)
        kind = shares(scans.kind[part], len(KINDS) + 1, grid)[:, 1:]
        pooling = Pooling.of(shares(scans.region[part], len(REGIONS) + 1, grid)[:, 1:])
        rows.append(pooling.rows + [start, 0])
        features.append(pooling(torch.from_numpy(np.ascontiguousarray(kind.swapaxes(1, 2)))).numpy())
    return np.concatenate(rows), np.concatenate(features)


def read_out(train: tuple[Scans, Features], score: tuple[Scans, Features]) -> np.ndarray:
    """Fit the read-out on one cohort and let it answer about another.

    Args:
        train, score: a cohort and its features, of the same encoder.

    Returns:
        float32 ``(regions, 5)``: patient, region, kind (index into ``kinds_of``), share of the four-choice sets that
        are answered rightly, and whether the answer without choices is right.

    Raises:
        BadInput: a cohort without regions.
    """
    rows = []
    for group, choices in ((LOBES, LUNG_CHOICES), (REGIONS[len(LOBES) :], ORGAN_CHOICES)):
        rows.append(_read(_of_group(*train, group), _of_group(*score, group), kinds_of(group[0]), choices))
    return np.concatenate(rows).astype(np.float32)


def ceiling(answers: np.ndarray, seed: int = 0, resamples: int = 1000) -> Ceiling:
    """Score the read-out's answers.

    Args:
        answers: from :func:`read_out`.
        seed, resamples: of the interval.
    """
    answers = answers.astype(np.float32)  # bincount sums in the type that comes
    rng, patients = np.random.default_rng(seed), np.unique(answers[:, 0])
    by_patient = [answers[answers[:, 0] == p] for p in patients]
    draws = []
    for _ in range(resamples):
        drawn = np.concatenate([by_patient[k] for k in rng.integers(0, len(patients), len(patients))])
        draws.append(_balanced(drawn, 3))
    low, high = np.quantile(draws, [0.025, 0.975])
    none = [kinds_of(REGIONS[int(r)])[int(k)] == NONE for r, k in answers[:, 1:3]]
    return Ceiling(
        four_way=_balanced(answers, 3), low=float(low), high=float(high), plain=float(answers[:, 3].mean()),
        all_kinds=_balanced(answers, 4), majority=float(np.mean(none)), regions=len(answers), patients=len(patients),
    )  # fmt: skip


def _of_group(scans: Scans, features: Features, group: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Rows, features and kinds of a group's regions."""
    rows, values = features
    found = scans.found[rows[:, 0], rows[:, 1]]
    chosen = np.isin(rows[:, 1], [REGIONS.index(r) for r in group]) & (found >= 0)
    if not chosen.any():
        raise BadInput(f"no region of {', '.join(group)} lies in these volumes, so there is nothing to read out")
    return rows[chosen], values[chosen], found[chosen].astype(int)


def _read(train: tuple, score: tuple, kinds: tuple[str, ...], choices: tuple) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    model.fit(train[1], train[2])
    chance = np.full((len(score[2]), len(kinds)), -1.0)
    chance[:, model[-1].classes_] = model.predict_proba(score[1])
    sets = [[kinds.index(kind) for kind in names] for names in choices]
    rows = []
    for where, row, truth in zip(score[0], chance, score[2], strict=True):
        four = np.mean([s[int(np.argmax(row[s]))] == truth for s in sets if truth in s])
        rows.append((*where, truth, four, row.argmax() == truth))
    return np.array(rows)


def _balanced(answers: np.ndarray, column: int) -> float:
    """Mean over the kinds, those of lobes and of organs apart, of the mean within each."""
    lobe = answers[:, 1] < len(LOBES)
    _, kind = np.unique(answers[:, 2] + 100 * lobe, return_inverse=True)
    return float((np.bincount(kind, answers[:, column]) / np.bincount(kind)).mean())
