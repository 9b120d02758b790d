"""Every text metric by its exact name: which library, which words, which level, which scale, what it needs."""

from dataclasses import dataclass
from importlib.metadata import version

from ctvlm_lib import assets
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import check_profile

MINILM = "MiniLM similarity F1 (BERTScore's formula)"
ROBERTA = "BERTScore F1 (roberta-large)"
_13A = "13a (mteval), case kept"
_SPACES = "white space, as written (CT-CHAT's way: no PTB tokenizer)"
_UVLM = "white space, after U-VLM's rewriting of full stops"
_ASCII = "a–z and 0–9 in lower case; other letters are dropped; no stemmer"
_METEOR = "NLTK's word_tokenize, sentences by full stop instead of Punkt; lower case"
_CUT = "the model's own, cut at its longest input; layer {}, no idf, no baseline rescaling"
_SMOOTH = 'smoothing "exp", fixed order'
_EFFECTIVE = 'smoothing "exp", orders longer than the text left out'
_BEST = "F1; of several references the best"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: the key in all results.
        family: computed together with the others of this name.
        library: the distribution that computes it.
        tokenizer: what counts as a word.
        level: "corpus" (counts are summed before anything is divided) or "mean of pairs", of CIDEr's with words
            weighted by the corpus.
        scale: what its values lie between, e.g. "0–100".
        detail: what else the library leaves open.
        needs: "", "asset NAME" or "hub NAME" (asked in profile ``paper`` only).
        usual: whether it is computed where no metrics are named.
    """

    name: str
    family: str
    library: str
    tokenizer: str
    level: str
    scale: str = "0–100"
    detail: str = ""
    needs: str = ""
    usual: bool = True

    @property
    def version(self) -> str:
        """The version of the library that is installed."""
        return version(self.library)


def _bleus(form: str, *about, **more) -> list[Metric]:
    return [Metric(form.format(f"BLEU-{order}"), *about, **more) for order in (1, 2, 3, 4)]


METRICS = {
    metric.name: metric
    for metric in (
        *_bleus("{}", "sacrebleu", "sacrebleu", _13A, "corpus", detail=_SMOOTH),
        *_bleus("{} (sentence mean)", "sacrebleu", "sacrebleu", _13A, "mean of pairs", detail=_EFFECTIVE),
        *_bleus("{} (pycocoevalcap)", "coco bleu", "pycocoevalcap", _SPACES, "corpus", usual=False),
        Metric("BLEU-mean", "uvlm bleu", "pycocoevalcap", _UVLM, "corpus", detail="mean of BLEU-1…4"),
        Metric("ROUGE-1", "rouge 1", "rouge-score", _ASCII, "mean of pairs", detail=_BEST),
        Metric("ROUGE-L", "rouge l", "rouge-score", _ASCII, "mean of pairs", detail=_BEST),
        Metric("ROUGE-L (pycocoevalcap)", "coco rouge", "pycocoevalcap", "single spaces, as written", "mean of pairs",
               detail="F with β = 1.2", usual=False),
        Metric("METEOR", "meteor", "nltk", _METEOR, "mean of pairs", needs="asset wordnet",
               detail="WordNet 3.0 by stem, α 0.9, β 3, γ 0.5; the best reference; a single word scores at most 50"),
        Metric("CIDEr", "cider", "pycocoevalcap", _SPACES, "mean of pairs, weights of the corpus", "0–10",
               "n-grams weighted by how few pairs' references hold them, so that one pair alone scores 0; σ = 6"),
        Metric(MINILM, "minilm", "bert-score", _CUT.format("6 of 6"), "mean of pairs", "−100–100",
               needs="asset minilm", usual=False),
        Metric(ROBERTA, "roberta-large", "bert-score", _CUT.format("17 of 24"), "mean of pairs", "−100–100",
               needs="hub roberta-large", usual=False),
    )
}  # fmt: skip
USUAL = tuple(name for name, metric in METRICS.items() if metric.usual)


def chosen(names=None, profile: str = "quick") -> list[Metric]:
    """The metrics to compute.

    Args:
        names: of METRICS; None takes USUAL.
        profile: quick, full or paper; a model hub is asked in ``paper`` only.

    Raises:
        BadInput: an unknown name, or what a metric needs can't be had.
    """
    check_profile(profile)
    names = USUAL if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise BadInput(f"no text metric is called {unknown[0]!r}; there are: {', '.join(METRICS)}")
    if not names:
        raise BadInput("no metric was named; name at least one, or leave metrics out for the usual ones")
    metrics = [METRICS[name] for name in dict.fromkeys(names)]
    for metric in metrics:
        _check_needs(metric, profile)
    return metrics


def _check_needs(metric: Metric, profile: str) -> None:
    kind, _, name = metric.needs.partition(" ")
    if kind == "hub" and profile != "paper":
        raise BadInput(
            f"{metric.name!r} reads {name} from a model hub, which is asked only in profile paper; take {MINILM!r}"
        )
    if kind == "asset":
        try:
            assets.path(name)
        except BadInput as problem:
            raise BadInput(
                f"{metric.name!r} needs the asset {name}, fetched with: ctvlm assets {name}; or leave this metric out"
                f" with metrics=[…] ({problem})"
            ) from problem


def metric_table():
    """All metrics as a pandas table, with the columns of the papers that print each: to be shown beside results."""
    import pandas as pd

    from ctvlm_lib.evaluate.text_papers import printed_by

    return pd.DataFrame(
        {
            "metric": metric.name, "library": f"{metric.library} {metric.version}", "words": metric.tokenizer,
            "level": metric.level, "scale": metric.scale, "detail": metric.detail, "needs": metric.needs,
            "printed by": printed_by(metric.name),
        }
        for metric in METRICS.values()
    )  # fmt: skip
