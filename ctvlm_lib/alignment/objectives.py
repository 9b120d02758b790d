"""What pretraining minimises: reports against volumes, or captions against tokens and regions as well.

``report`` is the papers' objective: a volume and its report. ``dense`` adds captions of tokens and of regions. It is
**supervised by finding masks and region masks**, only worded as SigLIP: no such masks come with a clinical archive.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ctvlm_lib.alignment.heads import Aligned, Pairing
from ctvlm_lib.alignment.scans import KINDS, Batch, Scans, batch_of, drawn_batch, kinds_of
from ctvlm_lib.alignment.tokens import Pooling, shares
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import NONE
from ctvlm_lib.training import Step

FEWEST_VOXELS = 6  # of a finding in a token that is captioned with it, out of 256; smaller findings caption their best
CLEAN_SHARE, ORGAN_SHARE = 0.25, 0.5  # of a region in a token without finding, in a token that is named after it
ORGAN_TOKENS = 256  # a step
FINE_SHARE, FINE_TOKENS = 0.25, 512  # of a finding in a token of the finer grid; such tokens a step
WEIGHTS = {"fine": 2.0, "token": 2.0, "organ": 0.5, "sentence": 1.0, "caption": 2.0, "report": 0.3}

TOKEN_CAPTIONS = (NONE, *KINDS)
CAPTIONS = (NONE, *KINDS[:-1])  # what a region can show: an effusion lies in none
SENTENCES = tuple((region, kind) for region in REGIONS for kind in kinds_of(region))


def article(kind: str) -> str:
    """A kind of finding as a caption says it."""
    return kind if kind in (NONE, "emphysema") else f"a {kind}"


def vocabulary() -> dict[str, list[str]]:
    """The captions of each pairing, in the order of their indices."""
    tokens = [article(kind) for kind in TOKEN_CAPTIONS]
    return {
        "fine": tokens,
        "token": tokens,
        "organ": [f"the {region}" for region in REGIONS],
        "sentence": [f"{article(kind)} in the {region}" for region, kind in SENTENCES],
        "caption": [article(kind) for kind in CAPTIONS],
    }


@dataclass(eq=False)
class Objective:
    """A loss on batches of a cohort, a function of model and step.

    Attributes:
        scans: the training patients.
        reports: float32 ``(n, text channels)``, their reports' vectors.
        captions: pairing → ``(captions, text channels)``; empty for the objective ``report``.
        batch: volumes a step, over all processes.
        weights: of the parts.
        stream: which batches: a run that goes on from another shall not see the same ones again.
    """

    scans: Scans
    reports: torch.Tensor
    captions: dict[str, torch.Tensor] = field(default_factory=dict)
    batch: int = 12
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    stream: str = ""

    def __post_init__(self) -> None:
        texts = list(self.scans.reports)
        self._identity = torch.tensor(
            [texts.index(text) for text in texts]
        )  # equal reports are positives of each other

    def __call__(self, model: Aligned, step: Step) -> dict[str, torch.Tensor]:
        """The parts of the loss of this step's share."""
        batch = self.draw(step)
        device = next(model.parameters()).device
        tokens, vectors = model(torch.from_numpy(batch.image).to(device))
        parts = {}
        if self.captions:
            parts = dense_parts(model, batch, self.scans, self.captions, tokens, step)
        identity = self._identity[batch.index].to(device)
        parts["report"] = model.pairings["report"].pairs(vectors, self.reports[batch.index].to(device), identity)
        weights = self.weights if self.captions else {}
        return {name: weights.get(name, 1.0) * value for name, value in parts.items()}

    def draw(self, step: Step) -> Batch:
        """This step's share of the batch: which patients, shifted by how much."""
        index, shifts = drawn_batch(self.scans, step.rng(f"batch{self.stream}"), self.batch)
        return batch_of(self.scans, step.mine(index), step.mine(shifts))


def dense_parts(
    model: Aligned,
    batch: Batch,
    scans: Scans,
    captions: dict[str, torch.Tensor],
    tokens: list[torch.Tensor],
    step: Step,
) -> dict[str, torch.Tensor]:
    """The parts that need masks: tokens against findings and organs, regions against sentences and captions.

    Args:
        captions: of each pairing, ``(captions, text channels)``.
        tokens: the encoder's, finest first. The last but one are the low tokens, which everything is asked of; the
            grid before is asked about findings too, so that the first layers needn't wait for the later ones.
    """
    *_, finer, low_grid, _ = model.encoder.grids(batch.region.shape[1:])
    fine, low = (t.reshape(-1, t.shape[-1]) for t in tokens[-3:-1])
    region, kind = _both_shares(batch, low_grid)
    rng = step.own_rng("tokens")
    rows = {
        "fine": (fine, fine_rows(*_both_shares(batch, finer)[::-1], rng)),
        "token": (low, token_rows(kind, region, np.prod(batch.kind.shape[1:]) / np.prod(low_grid), rng)),
        "organ": (low, organ_rows(region, rng)),
    }
    parts = {}
    for name, (flat, (index, positive)) in rows.items():
        parts[name] = _against(model.pairings[name], flat[torch.from_numpy(index)], captions[name], positive)
    pooling = Pooling.of(region[:, 1:])
    pooled = pooling(tokens[-2])
    for name, positive in region_positives(pooling.rows, scans.found[batch.index]).items():
        parts[name] = _against(model.pairings[name], pooled, captions[name], positive)
    return parts


def _both_shares(batch: Batch, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return shares(batch.region, len(REGIONS) + 1, grid), shares(batch.kind, len(KINDS) + 1, grid)


def fine_rows(kind: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some tokens of the finer grid that hold a finding, and as many clean ones; as :func:`token_rows`."""
    has = (kind[:, 1:] >= FINE_SHARE).swapaxes(1, 2).reshape(-1, len(KINDS))
    found = np.flatnonzero(has.any(axis=1))
    found = np.sort(rng.choice(found, min(len(found), FINE_TOKENS), replace=False))
    return _with_clean(has, found, kind, region, rng)


def token_rows(kind: np.ndarray, region: np.ndarray, voxels: float, rng: np.random.Generator):
    """Tokens that hold a finding, and as many clean ones of the regions.

    Args:
        kind, region: ``(B, classes, tokens)``, shares.
        voxels: in a token.

    Returns:
        Indices through the batch ``(rows,)``, and bool ``(rows, len(TOKEN_CAPTIONS))``: what is true of each.
    """
    found = kind[:, 1:]
    least = np.minimum(FEWEST_VOXELS / voxels, found.max(axis=2, keepdims=True))
    has = (found >= np.maximum(least, 1e-9)).swapaxes(1, 2).reshape(-1, len(KINDS))  # (B·tokens, kinds)
    return _with_clean(has, np.flatnonzero(has.any(axis=1)), kind, region, rng)


def _with_clean(has, found, kind, region, rng) -> tuple[np.ndarray, np.ndarray]:
    """Add as many tokens without any finding; the first caption is theirs."""
    clean = np.flatnonzero((kind[:, 1:].sum(axis=1) == 0) & (region[:, 1:].max(axis=1) >= CLEAN_SHARE))
    clean = rng.choice(clean, min(len(clean), max(8, len(found))), replace=False)
    rows = np.concatenate([found, np.sort(clean)])
    return rows, np.concatenate([~has[rows].any(axis=1, keepdims=True), has[rows]], axis=1)


def organ_rows(region: np.ndarray, rng: np.random.Generator):
    """Some tokens that lie mostly in one region, and bool ``(rows, regions)``: in which."""
    inside = (region[:, 1:] >= ORGAN_SHARE).swapaxes(1, 2).reshape(-1, len(REGIONS))
    rows = np.flatnonzero(inside.any(axis=1))
    rows = np.sort(rng.choice(rows, min(len(rows), ORGAN_TOKENS), replace=False))
    return rows, inside[rows]


def region_positives(rows: np.ndarray, found: np.ndarray) -> dict[str, np.ndarray]:
    """Which sentences and which short captions are true of regions.

    Args:
        rows: ``(R, 2)``: patient in the batch, region.
        found: ``(B, 10)``, as :class:`Scans` holds it; regions without a label are true of nothing.
    """
    sentence, caption = (np.zeros((len(rows), len(v)), bool) for v in (SENTENCES, CAPTIONS))
    for k, (patient, region) in enumerate(rows):
        if found[patient, region] >= 0:
            name = REGIONS[region]
            kind = kinds_of(name)[found[patient, region]]
            sentence[k, SENTENCES.index((name, kind))] = True
            caption[k, CAPTIONS.index(kind)] = True
    return {"sentence": sentence, "caption": caption}


def pairings_for(
    objective: str, fine: int, low: int, high: int, text: int, width: int, batch: int, **options
) -> dict[str, Pairing]:
    """The pairings that an objective needs.

    Args:
        objective: "report" or "dense".
        fine, low, high, text: channels of the tokens before the low ones, of the low tokens, of a volume's vector, of a
            text's vector.
        width: of the common space.
        batch: volumes a step.
        options: ``loss``, ``init`` of the report's pairing, and ``seed``.
    """
    seed = options.get("seed", 0)
    made = {"report": Pairing(high, text, width, batch, **options)}
    if objective == "report":
        return made
    widths = {"fine": fine, "token": low, "organ": low, "sentence": 2 * low, "caption": 2 * low}  # mean and maximum
    for k, (name, captions) in enumerate(vocabulary().items(), start=1):
        made[name] = Pairing(widths[name], text, width, len(captions), seed=seed + k)
    return made


def _against(pairing: Pairing, rows: torch.Tensor, captions: torch.Tensor, positive: np.ndarray) -> torch.Tensor:
    return pairing.against(rows, captions.to(rows.device), torch.from_numpy(positive).to(rows.device))
