"""What a model that was trained on a user's RadGenome-ChestCT says of a split, volume by volume from disk.

It is asked as MedVista3D's tables 1 and 4 ask, and what it says is stored as the cohort's arms store it
(:class:`ctvlm_lib.experiments.local_global.Said`):

    global     CT-RATE's 18 labels, from the volume's vector
    local      16 of them, each from the vector of the region that it belongs to, as in fVLM's evaluation
    retrieval  the place of a volume's report among all of the split's; equal reports count as one
    grounding  the place of a region's sentences among all different ones of the split

Source: medvista3d.txt §4.2, §4.4; fVLM's released code (d768ec1) for the labels' regions.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ctvlm_lib.alignment.grounded import NOTHING
from ctvlm_lib.alignment.local_global_training import LocalGlobal
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome
from ctvlm_lib.alignment.radgenome_training import Corpus, region_masks
from ctvlm_lib.alignment.radgenome_volumes import Prepared
from ctvlm_lib.evaluate.retrieval import ranks
from ctvlm_lib.evaluate.zero_shot import text_pairs
from ctvlm_lib.experiments.local_global import Said
from ctvlm_lib.records.ct_rate import LABELS

LOCAL = {  # region: its labels
    "lung": ("Emphysema", "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela",
             "Pleural effusion", "Mosaic attenuation pattern", "Peribronchial thickening", "Consolidation",
             "Bronchiectasis", "Interlobular septal thickening"),
    "heart": ("Cardiomegaly", "Pericardial effusion", "Coronary artery wall calcification"),
    "esophagus": ("Hiatal hernia",),
    "aorta": ("Arterial wall calcification",),
}  # fmt: skip
AT_ONCE = 4  # volumes
FARTHEST = 16_000  # a place that stands for itself and all behind it: halves of places are stored in 16 bits


def local_labels(regions: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(region, label) of local detection, for those regions that a model was trained with."""
    return tuple((region, label) for region, labels in LOCAL.items() if region in regions for label in labels)


def prompts() -> list[str]:
    """The sentences of detection: those that affirm the 18 labels, then those that deny them."""
    return [sentence for side in text_pairs(LABELS) for sentence in side]


@torch.inference_mode()
def ask(
    model: LocalGlobal, corpus: Corpus, config: OnRadGenome, cut_out: bool = False,
    tell: Callable[[int], None] = lambda done: None,
) -> Said:  # fmt: skip
    """Ask a model everything about a split.

    Args:
        model: trained; put into evaluation mode.
        corpus: of the split; the sentences of :func:`prompts` are among its texts.
        config: what it was trained by.
        cut_out: whether regions are also cut out of the volumes, as global models are asked about them.
        tell: called with how many volumes are done.

    Raises:
        BadInput: a volume that can't be read.
    """
    model.eval()
    labels, texts = local_labels(config.regions), corpus.texts
    asked = list(dict.fromkeys(config.regions.index(region) for region, _ in labels))
    volumes, regions, seen, cut = _seen(model, corpus, config, asked if cut_out else [], tell)
    pair = _projected(model, texts.rows(prompts()), corpus).reshape(2, len(LABELS), -1)
    reports = _projected(model, corpus.rows["report"], corpus)
    alike = volumes @ reports.T
    report = np.stack([ranks(table, corpus.rows["report"])[0] for table in (alike, alike.T)])
    sentence = _sentence_places(model, regions, corpus, corpus.told & seen)
    return Said(
        np.stack([volumes @ side.T for side in pair]),
        _local(regions, seen, pair, labels, config.regions),
        _local(cut, seen, pair, labels, config.regions)[:, : len(cut)],
        np.minimum(report, FARTHEST), np.minimum(sentence, FARTHEST),
    )  # fmt: skip


def truth_of(corpus: Corpus, config: OnRadGenome) -> dict[str, np.ndarray]:
    """What is true of a split's volumes: labels, and whether they are known; patients; how many sentences differ."""
    each = corpus.pairs.each
    patients = {name: k for k, name in enumerate(dict.fromkeys(pair.patient for pair in each))}
    return {
        "labels": np.array([pair.labels or (False,) * len(LABELS) for pair in each], bool),
        "labelled": np.array([pair.labels is not None for pair in each]),
        "patient": np.array([patients[pair.patient] for pair in each]),
        "sentences": np.array(len({text for pair in each for text in pair.sentences} - {NOTHING})),
        "label_names": np.array(LABELS),
        "local_labels": np.array(local_labels(config.regions)),
        "names": np.array([pair.name for pair in each]),
    }


def _seen(model, corpus: Corpus, config: OnRadGenome, asked: list[int], tell) -> tuple[np.ndarray, ...]:
    """Vectors of volumes ``(n, width)`` and regions ``(n, R, width)``, which of these have tokens, and of cut-outs."""
    device, grid = next(model.parameters()).device, model.encoder.grids(model.encoder.config.size_dhw_vox)[0]
    volumes, regions, seen, cuts = [], [], [], []
    for items in _blocks(corpus, config.workers):
        share = torch.from_numpy(np.stack([item.share() for item in items])).to(device)
        masks = region_masks(share, grid, config.recipe)
        both = model.images(_pictures([item.volume for item in items], device), masks)
        for some, new in zip((volumes, regions, seen), (*both, masks.any(dim=-1)), strict=True):
            some.append(new.cpu().numpy())
        for item in items if asked else ():
            one = np.zeros_like(regions[-1][0])
            one[asked] = model.volumes(_pictures([item.cut_out(r) for r in asked], device)).cpu().numpy()
            cuts.append(one)
        tell(sum(map(len, volumes)))
    whole = [np.concatenate(some) for some in (volumes, regions, seen)]
    return *whole, np.array(cuts) if cuts else np.zeros_like(whole[1][:0])


def _blocks(corpus: Corpus, workers: int) -> Iterator[list[Prepared]]:
    """A split's volumes, a few at a time, the next ones being read meanwhile."""
    blocks = [range(first, min(first + AT_ONCE, len(corpus))) for first in range(0, len(corpus), AT_ONCE)]
    ahead = {}
    with ThreadPoolExecutor(workers) as pool:
        for number, block in enumerate(blocks):
            for some in blocks[number : number + 2]:
                ahead |= {k: pool.submit(corpus.item, k) for k in some if k not in ahead}
            yield [ahead.pop(k).result() for k in block]


def _pictures(volumes: list[np.ndarray], device) -> torch.Tensor:
    return torch.from_numpy(np.stack(volumes).astype(np.float32))[:, None].to(device)


def _projected(model: LocalGlobal, rows: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Texts in the common space: ``(n, width)``."""
    device = next(model.parameters()).device
    return model.pairing.texts(corpus.texts.at(rows).to(device)).cpu().numpy()


def _local(vectors: np.ndarray, seen: np.ndarray, pair: np.ndarray, labels, regions) -> np.ndarray:
    """Cosines of regions with both sentences of their labels: ``(2, n, labels)``; NaN where a region has no token."""
    made = np.full((2, len(seen), len(labels)), np.nan)
    for k, (region, label) in enumerate(labels):
        r, sentences = regions.index(region), pair[:, LABELS.index(label)]  # (2, width)
        if len(vectors):
            made[:, :, k] = np.where(seen[:, r], (vectors[:, r] @ sentences.T).T, np.nan)
    return made


def _sentence_places(model: LocalGlobal, regions: np.ndarray, corpus: Corpus, told: np.ndarray) -> np.ndarray:
    """Place of each region's sentences among all different ones, ``(n, R)``; a volume at a time, to save memory."""
    rows = corpus.rows["region"]
    gallery = np.unique(rows[corpus.said])
    if not len(gallery):
        return np.full(told.shape, np.nan)
    vectors, place = _projected(model, gallery, corpus), np.full(told.shape, np.nan)
    for n, there in enumerate(told):
        alike = regions[n, there] @ vectors.T
        right = alike[np.arange(len(alike)), np.searchsorted(gallery, rows[n, there])][:, None]
        place[n, there] = (alike > right).sum(axis=1) + ((alike == right).sum(axis=1) - 1) / 2
    return place
