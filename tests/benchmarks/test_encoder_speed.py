"""Encoders against the plain way: eqs. (1)–(4) as separate Conv3d branches, each with its BatchNorm.

The two are timed in turn, so that what else the machine does slows both. Run by `make bench`, never as a timed test.
"""

import sys
import time
from pathlib import Path

import pytest
import torch

from ctvlm_lib.encoder import dcformer, for_inference, vit3d

sys.path.append(str(Path(__file__).parents[1]))
from helpers_encoder import lived_in, plain_way  # noqa: E402

PAPER_SIZE = (1, 1, 128, 256, 256)
COHORT_BATCH, EIGHTH = (12, 1, 32, 64, 64), (2, 1, 64, 128, 128)
STEPS = {
    "dcformer on the cohort": (dcformer, "phantom", COHORT_BATCH),
    "vit3d on the cohort": (vit3d, "phantom", COHORT_BATCH),
    "small on an eighth of the paper's size": (dcformer, "small", EIGHTH),
}


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_turn(*functions, rounds=3):
    """Seconds of each function, the least of some rounds; every round runs all of them."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]  # the first round warms up


def plainly(function):
    """The same, computed the plain way."""

    def run(*args):
        with pytest.MonkeyPatch.context() as patch:
            plain_way(patch)
            return function(*args)

    return run


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_inference_of_small_at_the_papers_size(benchmark, threads):
    encoder, x = lived_in(dcformer("small", seed=0)), torch.rand(PAPER_SIZE)
    fast, plain = for_inference(encoder), torch.inference_mode()(plainly(encoder))
    for ours, theirs in zip(fast(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    plain_s, fast_s = in_turn(lambda: plain(x), lambda: fast(x))
    benchmark.pedantic(fast, args=(x,), rounds=2)
    benchmark.extra_info |= {"plain_s": round(plain_s, 2), "times_faster": round(plain_s / fast_s, 1)}
    assert plain_s / fast_s >= 1.5


def kept_for_backward_mb(function):
    """Memory that autograd holds between forward and backward; a tensor kept twice counts once."""
    kept = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        function()
    return sum(kept.values()) / 1e6


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("threads", [1], indirect=True)
def test_training_step(benchmark, threads, name):
    """Forward and backward of one batch: seconds, and what autograd keeps in between."""
    build, variant, shape = STEPS[name]
    encoder, x = build(variant, seed=0), torch.randn(shape)

    def step():
        tokens, summary = encoder.encode(x)
        (tokens[-2].square().mean() + summary.square().mean()).backward()

    plain_s, ours_s = in_turn(plainly(step), step)
    benchmark.pedantic(step, rounds=3)
    benchmark.extra_info["kept_for_backward_mb"] = round(kept_for_backward_mb(step))
    print(f"\n{name}: {len(x) / ours_s:.1f} volumes/s, {benchmark.extra_info['kept_for_backward_mb']} MB for backward")
    if build is dcformer:
        benchmark.extra_info |= {"plain_s": round(plain_s, 2), "times_faster": round(plain_s / ours_s, 1)}


@pytest.mark.parametrize("threads", [1], indirect=True)
def test_a_stem_that_sees_every_voxel_costs_at_most_1_3_times_the_released(benchmark, threads):
    """Whole forward passes and stems alone, as trained and as folded for inference."""
    x = torch.rand(PAPER_SIZE)
    released, every = (dcformer("small", seed=0, stem=stem).eval() for stem in ("released", "every_voxel"))
    folded = [for_inference(encoder) for encoder in (released, every)]
    turned = x.permute(0, 1, 3, 4, 2)
    with torch.inference_mode():
        calls = [lambda e=e: e(x) for e in (released, every, *folded)]
        calls += [lambda e=e: e.encoder.s0(turned) for e in (released, every)]
        calls += [lambda f=f: f.stem(x) for f in folded]
        times = in_turn(*calls, rounds=2)
        benchmark.pedantic(every, args=(x,), rounds=1)
    names = ("whole", "whole, folded", "stem", "stem, folded")
    costs = {name: round(b / a, 2) for name, a, b in zip(names, times[::2], times[1::2], strict=True)}
    benchmark.extra_info |= costs
    print("\nevery voxel against released:", costs)
    assert costs["whole"] <= 1.3 and costs["whole, folded"] <= 1.3
