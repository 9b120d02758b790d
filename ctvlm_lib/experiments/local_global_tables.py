"""Tables of the local–global arms, from what they said: detection, retrieval, grounding, each with its interval."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.grounded import GROUPS, LOCAL_LABELS
from ctvlm_lib.damaged import read_csv
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.zero_shot import MEASURES, WORDINGS, Detection, Drawn, detection_scores, worded_scores
from ctvlm_lib.experiments import table_file
from ctvlm_lib.experiments.local_global import PREFIX, Said
from ctvlm_lib.experiments.stored_arms import StoredArms
from ctvlm_lib.records.phantom import LOBES, REGIONS

RETRIEVAL = {"R@5": 5, "R@10": 10}
GROUNDING = {"grounding top-10": 10, "grounding top-50": 50}
READINGS = ("mask pooled", "cut out")  # of a region: by the local pathway, or as a volume of its own
RESAMPLES = 2000
TABLE = "table.csv"  # beside an arm's scores: what follows from them, see measures_of


class Store(StoredArms):
    """Stored local–global arms, their scores and intervals."""

    prefix = PREFIX

    def said(self, arm: str, seed: int, split: str) -> Said:
        """What an arm said of a split.

        Raises:
            BadInput: it isn't stored.
        """
        folder = self.folder(arm, seed)
        key = (folder, split)
        if key not in self._kept:
            self._kept[key] = Said.load(folder / f"{split}.npz")
        return self._kept[key]

    def truth(self, split: str) -> dict[str, np.ndarray]:
        """What is true of a split, see :func:`ctvlm_lib.experiments.local_global.truth_of`."""
        if split not in self._kept:
            self._kept[split] = table_file.read(self.truth_file(split), dict, "what is true of a split")
        return self._kept[split]

    def scores(
        self, arm: str, seed: int, split: str = "test", reading: str = READINGS[0], wording: str = WORDINGS[0]
    ) -> dict[str, Drawn]:
        """Every measure of an arm on a split, "global AUROC" … "local precision", "R@5" … "grounding top-50".

        Args:
            arm, seed: which.
            split: "test" or "external"; thresholds come from validation either way.
            reading: of regions, one of READINGS.
            wording: one of :data:`ctvlm_lib.evaluate.zero_shot.WORDINGS`.

        Raises:
            BadInput: it isn't stored, or wasn't asked that way.
        """
        key = (arm, seed, split, reading, wording)
        if key not in self._kept:
            self._kept[key] = scores(
                self.said(arm, seed, "validation"), self.truth("validation"), self.said(arm, seed, split),
                self.truth(split), reading, wording,
            )  # fmt: skip
        return self._kept[key]

    def interval(
        self, arm: str, seed: int, measure: str, split="test", reading=READINGS[0], wording=WORDINGS[0]
    ) -> tuple[float, float, float]:
        """A measure with the ends of its interval, shares 0…1: from the stored table if there is one, else computed.

        Raises:
            BadInput: it isn't stored, or wasn't asked that way.
        """
        folder, key = self.folder(arm, seed), (split, reading, wording, measure)
        if (folder / TABLE).is_file():
            if folder / TABLE not in self._kept:
                self._kept[folder / TABLE] = read_table(folder)
            rows = self._kept[folder / TABLE]
            if key in rows.index:
                return tuple(float(rows.loc[key, name]) for name in ("value", "low", "high"))
        one = self.scores(arm, seed, split, reading, wording)[measure]
        return one.value, *one.interval()


def scores(
    tuned: Said,
    tuned_truth: Mapping[str, np.ndarray],
    said: Said,
    truth: Mapping[str, np.ndarray],
    reading: str = READINGS[0],
    wording: str = WORDINGS[0],
) -> dict[str, Drawn]:
    """Every measure of what a model said.

    Args:
        tuned, tuned_truth: of validation: thresholds.
        said, truth: of the split that is scored.
        reading: of regions, one of READINGS.
        wording: one of :data:`ctvlm_lib.evaluate.zero_shot.WORDINGS`.

    Raises:
        BadInput: an unknown reading or wording, or one that the model wasn't asked in.
    """
    both = []
    for one, true in ((tuned, tuned_truth), (said, truth)):
        both.append((volume_detections(one, true, wording), region_detections(one, true, reading, wording)))
    found = {}
    for k, scope in enumerate(("global", "local")):
        drawn = detection_scores(both[0][k], both[1][k], resamples=RESAMPLES)
        found |= {f"{scope} {measure}": drawn[measure] for measure in MEASURES}
    found |= {name: _share_of(np.clip(k - said.report[0], 0, 1)[:, None]) for name, k in RETRIEVAL.items()}
    return found | {name: _share_of(_hits(said.sentence, k)) for name, k in GROUNDING.items()}


def measures_of(store: Store, arm: str, seed: int) -> pd.DataFrame:
    """All that is measured of an arm: split, reading, wording, measure, then value, low and high as shares 0…1."""
    rows = []
    for split, wording in product(("test", "external"), WORDINGS):
        for reading in READINGS[: 1 + bool(store.said(arm, seed, split).cut_out.size)]:
            for measure, one in store.scores(arm, seed, split, reading, wording).items():
                low, high = one.interval()
                told = {"split": split, "reading": reading, "wording": wording, "measure": measure}
                told["labels"] = one.labels or ""
                rows.append(told | {"patients": len(one.each), "value": one.value, "low": low, "high": high})
    return pd.DataFrame(rows).round({"value": 6, "low": 6, "high": 6})


def read_table(folder: Path) -> pd.DataFrame:
    """An arm's stored table, by split, reading, wording and measure."""
    key = ["split", "reading", "wording", "measure"]
    return read_csv(folder / TABLE, (*key, "value", "low", "high")).set_index(key).sort_index()


def volume_detections(said: Said, truth: Mapping[str, np.ndarray], wording=WORDINGS[0]) -> dict[str, Detection]:
    """The volume's labels."""
    given = worded_scores(said.volume, wording)
    return {
        str(name): Detection(given[:, k], truth["labels"][:, k], np.arange(len(given)))
        for k, name in enumerate(truth["label_names"])
    }


def region_detections(
    said: Said, truth: Mapping[str, np.ndarray], reading: str = READINGS[0], wording: str = WORDINGS[0]
) -> dict[str, Detection]:
    """The regions' labels by kind, all lobes together and all organs together.

    Raises:
        BadInput: an unknown reading, or one that the model wasn't asked in.
    """
    if reading not in READINGS:
        raise BadInput(f"a region is read {' or '.join(READINGS)}, got {reading!r}")
    given = worded_scores(said.region if reading == READINGS[0] else said.cut_out, wording)
    if not len(given):
        raise BadInput("this arm wasn't asked about regions cut out of their volumes; take 'mask pooled'")
    found = {}
    for place, kind in GROUPS:
        columns = [k for k, (region, what) in enumerate(LOCAL_LABELS) if what == kind and _place(region) == place]
        rows = [(k, np.flatnonzero(truth["there"][:, REGIONS.index(LOCAL_LABELS[k][0])])) for k in columns]
        found[f"{place} {kind}"] = Detection(
            np.concatenate([given[who, k] for k, who in rows]),
            np.concatenate([truth["region_labels"][who, k] for k, who in rows]),
            np.concatenate([who for _, who in rows]),
        )
    return found


def over_seeds(
    store: Store, arm: str, measure: str, split: str = "test", reading: str = READINGS[0], wording: str = WORDINGS[0]
) -> dict:
    """A measure of an arm: mean over the seeds, lowest and highest end of their intervals, in %.

    Raises:
        BadInput: no seed of the arm is stored, or it wasn't asked that way.
    """
    seeds = store.arms().get(arm, ())
    if not seeds:
        raise BadInput(f"{arm} isn't stored; stored are {', '.join(store.arms()) or 'none'}; run `ctvlm arm {arm}`")
    values, lows, highs = zip(
        *(store.interval(arm, seed, measure, split, reading, wording) for seed in seeds), strict=True
    )
    return {
        "arm": arm, "measure": measure, "seeds": len(seeds), "value": 100 * float(np.mean(values)),
        "low": 100 * min(lows), "high": 100 * max(highs),
    }  # fmt: skip


def table(store: Store, arms: Sequence[str], measures: Sequence[str], split: str = "test", reading=READINGS[0]):
    """A pandas table: a row for each arm that is stored, and under each measure "mean (lowest to highest end)" in %."""
    there, rows = store.arms(), []
    for arm in (arm for arm in arms if arm in there):
        row = {"arm": arm.removeprefix(PREFIX), "seeds": len(there[arm])}
        for measure in measures:
            one = over_seeds(store, arm, measure, split, reading)
            row[measure] = f"{one['value']:.1f} ({one['low']:.1f} to {one['high']:.1f})"
        rows.append(row)
    return pd.DataFrame(rows)


def chance(store: Store, measure: str, split: str = "test") -> float:
    """What guessing reaches, in %; NaN where thresholds decide."""
    truth = store.truth(split)
    if measure.endswith("AUROC"):
        return 50.0
    if measure in RETRIEVAL:
        return 100 * RETRIEVAL[measure] / len(truth["labels"])
    return 100 * GROUNDING[measure] / int(truth["sentences"]) if measure in GROUNDING else float("nan")


def _place(region: str) -> str:
    return "lung" if region in LOBES else "organ"


def _hits(place: np.ndarray, k: int) -> np.ndarray:
    return np.where(np.isfinite(place), np.clip(k - place, 0, 1), np.nan)


def _share_of(hits: np.ndarray) -> Drawn:
    """The mean over all rows that are there, patients drawn."""
    there = np.isfinite(hits)
    right, all_ = np.where(there, hits, 0).sum(axis=1), there.sum(axis=1)
    return Drawn.of(lambda times: (times @ right) / (times @ all_), len(hits), RESAMPLES)
