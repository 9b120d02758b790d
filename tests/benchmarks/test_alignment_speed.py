"""SigLIP in chunks against all at once, in time and memory; how many volumes a second pretraining reads."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from ctvlm_lib.alignment import siglip_loss
from ctvlm_lib.alignment.objectives import CAPTIONS, vocabulary
from ctvlm_lib.alignment.pretrain import Data, Pretraining, throughput
from ctvlm_lib.alignment.prompted import PLACE_CAPTIONS
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.records import phantom
from ctvlm_lib.training import Training

PAIRS, WIDTH, CHUNK = 4096, 256, 256


def features() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    made = [torch.nn.functional.normalize(torch.randn(PAIRS, WIDTH, generator=random), dim=1) for _ in range(2)]
    return [tensor.requires_grad_() for tensor in made]


def step(leaves: list[torch.Tensor], chunk: int | None) -> torch.Tensor:
    loss = siglip_loss(*leaves, 2.3, -8.0, chunk=chunk)
    return torch.autograd.grad(loss, leaves)[0]


def kept_mb(chunk: int | None) -> float:
    """What the forward pass keeps for the gradient, MB, each tensor counted once."""
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        siglip_loss(*features(), 2.3, -8.0, chunk=chunk)
    return sum(size for size, _ in kept.values()) / 1e6


def test_chunked_siglip_keeps_less(benchmark):
    """4,096 pairs in chunks of 256: at most a quarter is kept; the price is computing the logits twice."""
    leaves = features()
    torch.testing.assert_close(step(leaves, CHUNK), step(leaves, None), rtol=1e-4, atol=1e-7)  # sums in another order
    plain, chunked = kept_mb(None), kept_mb(CHUNK)
    benchmark.pedantic(step, args=(leaves, CHUNK), rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {"plain_mb": round(plain), "chunked_mb": round(chunked)}
    print(f"\n{PAIRS} pairs: {plain:.0f} MB all at once, {chunked:.0f} MB in chunks of {CHUNK}")
    assert chunked < plain / 4


def test_plain_siglip(benchmark):
    benchmark.pedantic(step, args=(features(), None), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("objective", ["report", "dense"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_volumes_a_second(benchmark, objective, precision):
    """A training step on 8 volumes of 32×64×64, batch drawing included."""
    scans = Scans.of(phantom.cohort(8, 5))
    words = vocabulary() | {"place": list(PLACE_CAPTIONS), "focus": list(CAPTIONS)}
    random = torch.Generator().manual_seed(0)
    captions = {name: torch.randn(len(texts), 384, generator=random) for name, texts in words.items()}
    data = Data({"train": scans}, {"train": torch.randn(8, 384, generator=random)}, captions)
    settings = Training(steps=4, lr=1e-3, precision=precision)
    config = Pretraining("speed", objective=objective, batch=8, training=settings)
    found = benchmark.pedantic(throughput, args=(config, data), rounds=1)
    benchmark.extra_info |= {name: round(value, 2) for name, value in found.items()}
    print(f"\n{objective}, {precision}: {found['volumes_per_s']:.0f} volumes/s, {found['step_s']:.2f} s a step")
