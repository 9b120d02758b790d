"""Which metric a column of a paper's table means, in what scale it is printed, and how that is known."""

from dataclasses import dataclass

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text_registry import ROBERTA

_PERCENT, _SHARE = 1.0, 0.01
_JAVA = "METEOR 1.5 in Java, which pycocoevalcap calls; NLTK's differs in weights and tokenizer: not comparable"


@dataclass(frozen=True)
class Variant:
    """A column of a paper.

    Attributes:
        column: as the table heads it.
        metric: the name of ours that it means.
        factor: printed value = factor × ours.
        known_by: "code" (read in the released code), "text" (the paper names the metric, not the library) or
            "nearest" (ours is not the same metric).
        note: what else differs.
    """

    column: str
    metric: str
    factor: float
    known_by: str
    note: str = ""


def _text(columns: dict[str, str], note: str) -> tuple[Variant, ...]:
    return tuple(Variant(column, metric, _PERCENT, "text", note) for column, metric in columns.items())


_HUGGING_FACE = (
    Variant("BLEU", "BLEU-1 (sentence mean)", _PERCENT, "code", "evaluate's bleu with max_order=1, sample by sample;"
            " it fails on an empty text where ours scores 0"),
    Variant("ROUGE", "ROUGE-1", _PERCENT, "code", "evaluate's rouge1, sample by sample"),
    Variant("METEOR", "METEOR", _PERCENT, "code", "evaluate's meteor: NLTK's, with Punkt's sentences"),
    Variant("BERTScore", ROBERTA, _PERCENT, "code", 'evaluate\'s bertscore, lang="en"'),
)  # fmt: skip
_COCO = (
    Variant("BLEU_1", "BLEU-1 (pycocoevalcap)", _SHARE, "code", "strings as they are, no PTB tokenizer"),
    Variant("METEOR", "METEOR", _SHARE, "nearest", _JAVA),
    Variant("ROUGE_L", "ROUGE-L (pycocoevalcap)", _SHARE, "code", "strings as they are, no PTB tokenizer"),
    Variant("CIDER", "CIDEr", 1.0, "code", "strings as they are, no PTB tokenizer"),
)
_UNSTATED = "library, tokenizer and level are not stated"
PAPERS = {
    "contour": _text({"BLEU": "BLEU-4", "ROUGE": "ROUGE-L", "METEOR": "METEOR"}, f"{_UNSTATED}; the table says BLEU"
                     " and ROUGE, the text BLEU-4 and ROUGE-L"),
    "dualbox": _text({"B-4": "BLEU-4", "R-L": "ROUGE-L", "MET": "METEOR"}, _UNSTATED),
    "med3dvlm": _HUGGING_FACE,
    "m3d": _HUGGING_FACE,
    "medvista3d": tuple(
        Variant(one.column, one.metric, one.factor, "nearest" if one.known_by == "nearest" else "text",
                f'"evaluation follows CT-CHAT": {one.note}')
        for one in _COCO
    ),
    "ct-chat": _COCO,
    "uvlm": (Variant("BLEU-mean", "BLEU-mean", _SHARE, "code", "no PTB tokenizer; texts rewritten first"),
             Variant("B-M", "BLEU-mean", _SHARE, "code", "no PTB tokenizer; texts rewritten first")),
}  # fmt: skip


def variants(paper: str) -> tuple[Variant, ...]:
    """The text-metric columns of a paper: contour, dualbox, med3dvlm, m3d, medvista3d, ct-chat or uvlm.

    Raises:
        BadInput: another name.
    """
    if paper not in PAPERS:
        raise BadInput(f"no paper with text metrics is called {paper!r}; there are: {', '.join(PAPERS)}")
    return PAPERS[paper]


def variant_for(paper: str) -> dict[str, str]:
    """Column of the paper's tables → name of the metric that it means."""
    return {one.column: one.metric for one in variants(paper)}


def printed_by(metric: str) -> str:
    """The papers and columns that print a metric, e.g. ``"contour: BLEU (text)"``; empty if none does."""
    found = (
        f"{paper}: {one.column} ({one.known_by})"
        for paper, columns in PAPERS.items()
        for one in columns
        if one.metric == metric
    )
    return "; ".join(found)
