"""BERTScore through the bert-score package: cosine similarity of contextual word vectors, greedily matched.

The number means little without its model: roberta-large is what the papers print, MiniLM is what lies here without a
hub. Defaults, all named: no idf weights, no rescaling with a baseline, the layers below, texts cut at the tokenizer's
longest input.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ctvlm_lib import assets
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput

LAYERS = {"minilm": 6, "roberta-large": 17}  # MiniLM's last; the package's choice for roberta-large
DECIMALS = 4  # of 0…100: the package's order of batches varies with Python's hash seed, and with it float32's last bits


def bert_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    model: str | Path = "minilm",
    *,
    profile: str = "quick",
    layers: int | None = None,
    batch: int = 64,
) -> np.ndarray:
    """Precision, recall and F1 of BERTScore for each pair.

    Args:
        predictions: texts; a blank one scores 0.
        references: for each prediction its references; of several the best counts, separately for each column.
        model: "minilm" (the asset), "roberta-large" (from the hub, profile ``paper`` only), or a local folder.
        profile: quick, full or paper.
        layers: how many of the model's layers to use; None takes LAYERS.
        batch: texts at a time.

    Returns:
        float64 ``(pairs, 3)`` in -100…100, rounded to DECIMALS: precision, recall, F1.

    Raises:
        BadInput: a hub outside profile ``paper``, an asset that can't be had, a folder that isn't there, or a folder
            without ``layers``.

    Source: Zhang et al., BERTScore, ICLR 2020.
    """
    where, layers = _found(model, profile, layers)
    spoken = [place for place, text in enumerate(predictions) if text.strip()]
    found = np.zeros((len(predictions), 3))
    if not spoken:
        return found
    said, true = [predictions[place] for place in spoken], [list(references[place]) for place in spoken]
    scores = _scorer(where, layers, batch).score(said, true, batch_size=batch)
    found[spoken] = np.stack([column.double().numpy() for column in scores], axis=1)
    return np.round(100 * found, DECIMALS)


def layers_like_roberta_large(folder: str | Path) -> int:
    """How many layers of a local copy to use: 17 of roberta-large's 24, of another depth the same share."""
    try:
        depth = int(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])
    except (OSError, LookupError, TypeError, OverflowError, *NOT_JSON) as error:
        raise BadInput(
            f"{Path(folder).name}/config.json doesn't state num_hidden_layers ({type(error).__name__}); give a whole"
            " copy of roberta-large"
        ) from error
    return max(1, round(LAYERS["roberta-large"] / 24 * depth))


def _found(model: str | Path, profile: str, layers: int | None) -> tuple[str, int]:
    """Where the weights lie, and how many layers are used."""
    name = str(model)
    if name == "minilm":
        return str(assets.path("minilm")), layers or LAYERS[name]
    if Path(model).is_dir():
        if layers is None:
            raise BadInput(f"the model in {name} needs layers: how many of its layers to use")
        return name, layers
    if name not in LAYERS:
        raise BadInput(f"no model {name!r}: take minilm, roberta-large (profile paper), or a folder that is there")
    if profile != "paper":
        raise BadInput(f"{name} lies on a model hub, which is asked only in profile paper; take 'minilm'")
    return name, layers or LAYERS[name]


@lru_cache(maxsize=2)
def _scorer(where: str, layers: int, batch: int):
    """The package's scorer with its model loaded."""
    from bert_score import BERTScorer

    return BERTScorer(
        model_type=where, num_layers=layers, batch_size=batch, idf=False, rescale_with_baseline=False, nthreads=0
    )
