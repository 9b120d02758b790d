"""Scores of generated texts, by the libraries that the papers used, each under a name that says which.

A blank prediction scores 0 in every metric and never raises. (By themselves sacrebleu, rouge-score, NLTK and CIDEr give
0 too; Hugging Face's BLEU and bert-score raise; pycocoevalcap's ROUGE-L counts a blank as a word.) A pair without a
reference is refused, because the libraries don't agree on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate import text_libraries
from ctvlm_lib.evaluate.intervals import mean_of_sums
from ctvlm_lib.evaluate.pairs import checked
from ctvlm_lib.evaluate.text_metrics import FAMILIES, Family, Progress, measured
from ctvlm_lib.evaluate.text_registry import METRICS, chosen


def text_scores(
    predictions, references, *, metrics=None, ids=None, workers: int = 1, progress: Progress | None = None,
    profile: str = "quick",
) -> dict[str, float]:  # fmt: skip
    """Score predictions against references.

    Scores lie in 0–100, CIDEr in 0–10. :func:`~ctvlm_lib.evaluate.text_registry.metric_table` shows for each name the
    library, its version, the tokenizer, the level and the papers that print it.

    Args:
        predictions: a text for each pair, "" for none; or a mapping id → text.
        references: a text for each, or a sequence of texts where there are several; or a mapping from the same ids.
        metrics: names; None takes the usual ones: all but the model-based and pycocoevalcap's second BLEU and ROUGE.
        ids: of the pairs, each once, for error sentences.
        workers: processes. In a script, more than one needs ``if __name__ == "__main__":`` around the call.
        progress: called with (pairs done, of how many different ones); CIDEr and models come after.
        profile: quick, full or paper; only ``paper`` asks a model hub.

    Returns:
        Metric → score, in the order asked: ``{"BLEU-1": …, "BLEU-4": …, "ROUGE-L": …, "METEOR": …, "CIDEr": …, …}``.

    Raises:
        BadInput: different numbers of predictions and references, something that isn't a text, ids missing or given
            twice, a pair whose references are blank, an unknown metric, or one whose resource can't be had.
    """
    statistics = text_statistics(
        predictions, references, metrics=metrics, ids=ids, workers=workers, progress=progress, profile=profile
    )
    return statistics.scores()


def text_scores_per_pair(
    predictions, references, *, metrics=None, ids=None, workers: int = 1, progress: Progress | None = None,
    profile: str = "quick",
) -> dict[str, np.ndarray]:  # fmt: skip
    """Each pair's own score, for the metrics that are means over pairs; arguments as of :func:`text_scores`.

    CIDEr's values depend on the other pairs' references. Corpus-level metrics have no such values:
    :func:`text_statistics` recomputes those for any draw of pairs.

    Returns:
        Metric → float64 ``(pairs,)``.

    Raises:
        BadInput: as :func:`text_scores`, or a corpus-level metric is asked for by name.
    """
    if metrics is None:
        metrics = [metric.name for metric in chosen(None, profile) if metric.level != "corpus"]
    statistics = text_statistics(
        predictions, references, metrics=metrics, ids=ids, workers=workers, progress=progress, profile=profile
    )
    return {name: statistics.values(name) for name in statistics.metrics}


def text_statistics(
    predictions, references, *, metrics=None, ids=None, workers: int = 1, progress: Progress | None = None,
    profile: str = "quick",
) -> "TextStatistics":  # fmt: skip
    """What each pair adds to its scores, from which the score of any draw of pairs follows without its texts.

    Arguments and errors as of :func:`text_scores`.
    """
    texts, several = checked(predictions, references, ids)
    metrics = chosen(metrics, profile)
    families = list(dict.fromkeys(metric.family for metric in metrics))
    rows = measured(list(zip(texts, several, strict=True)), families, workers, progress)
    return TextStatistics(tuple(metric.name for metric in metrics), rows)


@dataclass(frozen=True, eq=False)
class TextStatistics:
    """Sufficient statistics of text scores, for a bootstrap over pairs or over patients.

    Attributes:
        metrics: names of the scores.
        rows: family → float64 ``(pairs, columns)``: values to be averaged, or counts to be summed.
    """

    metrics: tuple[str, ...]
    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __repr__(self) -> str:
        return f"TextStatistics({len(self)} pairs: {', '.join(self.metrics)})"

    def scores(self, draw=None) -> dict[str, float]:
        """Scores of a draw of pairs.

        For CIDEr the weights of the n-grams stay those of all pairs' references.

        Args:
            draw: places of pairs, any number, the same place as often as it was drawn; None takes each pair once.

        Returns:
            Metric → score.

        Raises:
            BadInput: an empty draw, or a place that isn't there.
        """
        times = np.ones(len(self)) if draw is None else self._times(draw)
        found = {}
        for metric in self.metrics:
            rows, of_sums = self.sums(metric)
            found[metric] = float(of_sums(times @ rows))
        return found

    def sums(self, metric: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """For intervals: ``bootstrap_of_sums(rows, patients, of_sums)`` of :mod:`ctvlm_lib.evaluate.intervals`.

        Returns:
            rows, float64 ``(pairs, k)``: what each pair adds; of_sums: from summed rows ``(…, k)`` to scores ``(…)``.

        Raises:
            BadInput: the metric wasn't computed.
        """
        family, rows = self._family(metric)
        if metric in family.summed:
            return rows[:, : text_libraries.COUNTS].copy(), family.summed[metric]
        return np.stack([rows[:, family.means[metric]], np.ones(len(rows))], axis=1), mean_of_sums

    def values(self, metric: str) -> np.ndarray:
        """A metric's value for each pair, ``(pairs,)``.

        Raises:
            BadInput: the metric wasn't computed, or is of the whole corpus.
        """
        family, rows = self._family(metric)
        if metric not in family.means:
            raise BadInput(f"{metric!r} is of the whole corpus and has no value for a pair; draw with scores(draw)")
        return rows[:, family.means[metric]].copy()

    def _family(self, metric: str) -> tuple[Family, np.ndarray]:
        if metric not in self.metrics:
            raise BadInput(f"{metric!r} wasn't computed; there are: {', '.join(self.metrics)}")
        name = METRICS[metric].family
        return FAMILIES[name], self.rows[name]

    def _times(self, draw) -> np.ndarray:
        """How often each pair was drawn."""
        draw = np.asarray(draw)
        if draw.size == 0 or draw.dtype.kind not in "iu" or draw.min() < 0 or draw.max() >= len(self):
            raise BadInput(
                f"a draw holds places from 0 to {len(self) - 1}, at least one, got {draw.ravel().tolist()[:5]}"
            )
        return np.bincount(draw.ravel(), minlength=len(self)).astype(float)
