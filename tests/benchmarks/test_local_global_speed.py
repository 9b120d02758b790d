"""The matching bank of the paper's size asked by a batch, beside a loop; the local loss beside a loop over regions."""

import time

import torch
from torch.nn import functional

from ctvlm_lib.alignment.local_global import global_loss, local_loss
from ctvlm_lib.alignment.semantic_bank import PAPER_SIZE, SemanticBank

WIDTH, BATCH, REGIONS = 768, 32, 10
PROMISE_S = 0.1


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def one_by_one(bank: SemanticBank, query: torch.Tensor) -> torch.Tensor:
    """The plain way: cosine similarity, a query at a time."""
    return torch.stack([functional.cosine_similarity(one[None], bank.texts).argmax() for one in query])


def test_a_batch_asks_the_whole_bank(benchmark):
    """32 queries of 65,536 × 768: at most 100 ms on two cores."""
    bank, query = SemanticBank(WIDTH), unit(BATCH, WIDTH, seed=1)
    bank.push(unit(PAPER_SIZE, WIDTH))
    found = benchmark.pedantic(bank.nearest, args=(query,), rounds=5, warmup_rounds=1)
    begun = time.perf_counter()
    plain = one_by_one(bank, query)
    seconds = time.perf_counter() - begun
    assert torch.equal(found.place, plain)
    times = round(seconds / benchmark.stats.stats.min, 1)
    benchmark.extra_info |= {"limit_s": PROMISE_S, "plain_s": round(seconds, 2), "times_faster": times}


def by_region(image: torch.Tensor, text: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The plain way: the global loss of each region by itself, each pair alike."""
    losses = [global_loss(image[t, r], text[t, r], 2.0) * t.sum() for r, t in enumerate(there.mT)]
    return sum(losses) / there.sum()


def test_all_regions_at_once(benchmark):
    """The local loss of 32 patients and ten regions, with its gradient, beside a loop over regions."""
    image, text = unit(BATCH, REGIONS, WIDTH).requires_grad_(), unit(BATCH, REGIONS, WIDTH, seed=1)
    there = torch.rand(BATCH, REGIONS, generator=torch.Generator().manual_seed(0)) < 0.9
    torch.testing.assert_close(local_loss(image, text, there, 2.0), by_region(image, text, there))

    def step(loss):
        return torch.autograd.grad(loss, image)[0]

    benchmark.pedantic(lambda: step(local_loss(image, text, there, 2.0)), rounds=20, warmup_rounds=3)
    begun = time.perf_counter()
    for _ in range(20):
        step(by_region(image, text, there))
    seconds = (time.perf_counter() - begun) / 20
    times = round(seconds / benchmark.stats.stats.mean, 1)
    benchmark.extra_info |= {"plain_s": round(seconds, 4), "times_faster": times}
