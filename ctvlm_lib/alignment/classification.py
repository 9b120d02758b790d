"""Stage 2 of U-VLM: learnable queries gather what the encoder's last map holds, and one layer tells the findings.

As released: a query for each label, four heads, a norm behind them, every label's entropy with the same weight. As
printed the encoder learns at a tenth of the head's rate (``encoder_rate``), which spares weights that were pretrained;
an encoder with random weights has nothing to spare, so 1 is there to compare. Decided here, as steps with the encoder
are dear on a CPU: the head may learn first, alone, on maps that are computed once (:func:`fit_head`); then both do
(:func:`fit`).

Source: uvlm.txt §2.1, equation (2), and §3.1; peers' released code for what it leaves open.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctvlm_lib.alignment.scans import SHIFT_VOX, Scans, batch_of, drawn_batch
from ctvlm_lib.encoder import frozen
from ctvlm_lib.encoder.unet import UNetEncoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Curve, Step, Training, train


class QueryClassifier(nn.Module):
    """Encoder and head: ŷ = σ(Linear(Flatten(CrossAttn(Q, f_N)))).

    Args:
        encoder: its last stage is read.
        labels: names of what is told.
        queries: M, how many; 0 takes one for each label.
        heads: of attention.
        seed: of the head's random weights.

    Raises:
        BadInput: no label, a negative number of queries, or channels that the heads don't divide.

    Source: uvlm.txt eq. (2).
    """

    def __init__(self, encoder: UNetEncoder, labels: Sequence[str], queries: int = 0, heads: int = 4, seed: int = 0):
        super().__init__()
        width, count = encoder.config.channels[-1], queries or len(labels)
        if not labels:
            raise BadInput("there are no labels to classify by; give the name of at least one")
        if count < 1:
            raise BadInput(f"queries is {queries}; give how many, or 0 for one for each label")
        if heads < 1 or width % heads:
            raise BadInput(f"{width} channels can't be shared by {heads} heads; choose a number that divides them")
        self.encoder, self.labels = encoder, tuple(labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.queries = nn.Parameter(torch.randn(count, width) * width**-0.5)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.norm = nn.LayerNorm(width)
            self.linear = nn.Linear(count * width, len(labels))

    def forward(self, volume: Tensor) -> Tensor:
        """``(B, in_channels, D, H, W)`` → logits ``(B, labels)``."""
        return self.head(self.encoder.features(volume)[-1])

    def head(self, features: Tensor) -> Tensor:
        """The last stage's map ``(B, C, D, H, W)`` → logits ``(B, labels)``."""
        return self.linear(self.gathered(features)[0].flatten(1))

    def gathered(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What each query took, ``(B, M, C)``, and from where: attention ``(B, M, tokens)``, mean over the heads."""
        tokens = features.flatten(2).mT  # (B, D·H·W, C)
        taken, weights = self.attention(self.queries.expand(len(tokens), -1, -1), tokens, tokens)
        return self.norm(taken), weights


def fit_head(
    model: QueryClassifier,
    scans: Scans,
    truth: np.ndarray,
    settings: Training,
    batch: int = 64,
    views: int = 1,
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Curve:
    """Train the head in place, on the last maps of a frozen encoder, which are computed once.

    Args:
        model: to be trained.
        scans, truth: see :func:`fit`.
        settings: how.
        batch: maps a step, over all processes.
        views: maps of each patient: as it is, and shifted.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: as :func:`fit`.
    """
    _check(model, scans, truth)
    frozen.freeze(model.encoder)
    kept = torch.cat([_kept_maps(model.encoder, scans, view, settings.seed) for view in range(views)])
    if batch > len(kept):
        raise BadInput(f"a batch of {batch} is larger than the {len(kept)} kept maps; choose a smaller one")
    wanted = torch.from_numpy(np.tile(truth, (views, 1))).float()

    def loss(network: QueryClassifier, step: Step) -> Tensor:
        index = torch.from_numpy(step.mine(step.rng("maps").choice(len(kept), batch, replace=False)))
        device = network.queries.device
        logits = network.head(kept[index].float().to(device))
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted[index].to(device))

    return train(model, loss, settings, folder=folder, on_step=on_step, progress=progress)


def fit(
    model: QueryClassifier,
    scans: Scans,
    truth: np.ndarray,
    settings: Training,
    batch: int = 4,
    encoder_rate: float = 0.1,
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Curve:
    """Train head and encoder in place, on shifted volumes.

    Args:
        model: to be trained.
        scans: the patients, in memory, or an object that reads each volume when :func:`pictures` asks for it.
        truth: bool ``(n, labels)``.
        settings: how.
        batch: volumes a step, over all processes.
        encoder_rate: of the head's; 0 freezes the encoder.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: truth of other patients or labels, or a batch larger than the cohort.
    """
    _check(model, scans, truth)
    if encoder_rate:
        frozen.unfreeze(model.encoder)
        settings = replace(settings, rates=(("encoder.", encoder_rate),))
    else:
        frozen.freeze(model.encoder)

    def loss(network: QueryClassifier, step: Step) -> Tensor:
        index, shifts = drawn_batch(scans, step.rng("patients"), batch)
        index, shifts = step.mine(index), step.mine(shifts)
        device = network.queries.device
        volume = pictures(scans, index, shifts)
        logits = network(volume.to(device, memory_format=torch.channels_last_3d))
        wanted = torch.from_numpy(truth[index]).to(device, logits.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted)

    model.encoder.to(memory_format=torch.channels_last_3d)
    return train(model, loss, settings, folder=folder, on_step=on_step, progress=progress)


@torch.inference_mode()
def logits_of(model: QueryClassifier, scans: Scans, batch: int = 10) -> np.ndarray:
    """float32 ``(n, labels)`` of unshifted volumes."""
    model.eval()
    device = model.queries.device
    parts = [np.arange(start, min(start + batch, len(scans))) for start in range(0, len(scans), batch)]
    return np.concatenate([model(pictures(scans, part).to(device)).cpu().numpy() for part in parts])


def pictures(scans: Scans, index: np.ndarray, shifts: np.ndarray | None = None) -> Tensor:
    """What an encoder reads of some patients: float32 ``(B, 1, D, H, W)``.

    Args:
        scans: the patients; an object that isn't a cohort in memory has a method of this name.
        index, shifts: see :func:`ctvlm_lib.alignment.scans.batch_of`.
    """
    if isinstance(scans, Scans):
        return torch.from_numpy(batch_of(scans, index, shifts).image)
    return torch.from_numpy(scans.pictures(index, shifts))


def _check(model: QueryClassifier, scans: Scans, truth: np.ndarray) -> None:
    if truth.shape != (len(scans), len(model.labels)):
        raise BadInput(
            f"truth is {truth.shape} for {len(scans)} patients and {len(model.labels)} labels; give a row each"
        )


@torch.inference_mode()
def _kept_maps(encoder: UNetEncoder, scans: Scans, view: int, seed: int, batch: int = 10) -> Tensor:
    """Last maps of all patients, float16 ``(n, C, D, H, W)``: as they are in view 0, shifted in the others."""
    encoder.eval()
    rng, n = np.random.default_rng([seed, view]), len(scans)
    shifts = np.stack([rng.integers(-s, s + 1, n) if view else np.zeros(n, int) for s in SHIFT_VOX], axis=1)
    parts = []
    for start in range(0, len(scans), batch):
        some = np.arange(start, min(start + batch, len(scans)))
        image = pictures(scans, some, shifts[some]).to(next(encoder.parameters()).device)
        parts.append(encoder.features(image)[-1].half().cpu())
    return torch.cat(parts)
