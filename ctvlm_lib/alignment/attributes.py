"""How far a report can be found by a few facts: pose, contrast phase, findings, each without any image.

Where an encoder's recall is no higher than that of the pose, it has learned the pose. Where the true findings
themselves reach little more, the report's wording is what is missing, and no image could tell it.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ctvlm_lib.alignment.scans import Scans, kinds_of
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import PHASES

FACTS = ("pose", "phase", "findings")


def facts_of(scans: Scans, which: Sequence[str]) -> np.ndarray:
    """Facts of each patient as numbers ``(n, features)``.

    Args:
        scans: the patients.
        which: "pose" (side, rotation, scale, shift, fat), "phase" (of contrast), "findings" (kind in each region,
            effusion, cardiomegaly).

    Raises:
        BadInput: none, or an unknown one.
    """
    if not which or set(which) - set(FACTS):
        raise BadInput(f"facts are any of {', '.join(FACTS)}, got {list(which)}")
    return np.array([sum((_OF[name](scans, k) for name in which), []) for k in range(len(scans))], np.float32)


def similarity_by_facts(train: Scans, train_reports, score: Scans, score_reports, which: Sequence[str]) -> np.ndarray:
    """Similarity ``(n, n)`` of patients and reports, by a ridge regression from facts to report vectors.

    Args:
        train, score: cohorts.
        train_reports, score_reports: ``(n, channels)``, their reports' vectors.
        which: as :func:`facts_of`.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    facts, texts = StandardScaler(), StandardScaler()
    known = np.asarray(texts.fit_transform(np.asarray(train_reports)))
    model = RidgeCV(np.logspace(-1, 4, 11)).fit(facts.fit_transform(facts_of(train, which)), known)
    guess = torch.from_numpy(model.predict(facts.transform(facts_of(score, which))))
    true = torch.from_numpy(texts.transform(np.asarray(score_reports)))
    guess, true = (torch.nn.functional.normalize(t.double(), dim=1) for t in (guess, true))
    return (guess @ true.mT).numpy()


def _pose(scans: Scans, k: int) -> list[float]:
    facts = scans.facts[k]
    return [float(facts["prone"]), facts["rotation_deg"], facts["scale"], *facts["shift_mm"], facts["fat_mm"]]


def _phase(scans: Scans, k: int) -> list[float]:
    return [float(scans.facts[k]["phase"] == phase) for phase in PHASES]


def _findings(scans: Scans, k: int) -> list[float]:
    found = [
        float(scans.found[k, r] == value) for r, name in enumerate(REGIONS) for value in range(len(kinds_of(name)))
    ]
    return [*found, float(scans.facts[k]["effusion"]), float(scans.facts[k]["cardiomegaly"])]


_OF = {"pose": _pose, "phase": _phase, "findings": _findings}
