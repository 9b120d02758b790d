"""U-VLM: reports written with a cache beside the released way without one; training on kept maps beside volumes."""

import time

import pytest
import torch

from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.experiments import uvlm, uvlm_arms
from ctvlm_lib.vlm import report_writer

REPORTS, WORDS = 8, 80


@pytest.fixture(scope="module")
def scans():
    return uvlm.World("quick", {"validation": REPORTS}).split("validation").scans


@pytest.fixture(scope="module")
def writer():
    return uvlm.build(uvlm_arms.Arm(uvlm_arms.REP, injected=True)).eval()


@pytest.fixture(scope="module")
def kept(writer, scans):
    return [stage.float() for stage in report_writer.kept_features(writer, scans)]


def compare(benchmark, ours, plain, rounds: int) -> None:
    """Time ours, and the plain way as often."""
    benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)
    begun = time.perf_counter()
    for _ in range(rounds):
        plain()
    seconds = (time.perf_counter() - begun) / rounds
    times = round(seconds / benchmark.stats.stats.mean, 1)
    benchmark.extra_info |= {"plain_s": round(seconds, 2), "times_faster": times}


def test_reports_with_a_cache(benchmark, writer, kept):
    """Eight reports of 80 tokens; without a cache all is read anew for each token, as in the released code."""
    model = writer.decoder

    @torch.no_grad()
    def plain() -> torch.Tensor:
        said = torch.zeros(REPORTS, 0, dtype=torch.long)
        for _ in range(WORDS):
            ids, _, _ = model.with_image(kept, said)
            said = torch.cat([said, model(kept, ids, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
        return said

    def ours() -> torch.Tensor:
        return model.generate(kept, max_new_tokens=WORDS, eos_token_id=-1)

    assert torch.equal(ours(), plain())
    compare(benchmark, ours, plain, rounds=1)


def test_a_step_on_kept_maps(benchmark, writer, kept, scans):
    """A step of stage 3 with a frozen encoder, whose maps are computed once, beside one that reads the volumes."""
    volume = torch.from_numpy(as_input(scans.hu))[:, None]

    def step(features) -> None:
        writer.decoder.zero_grad()
        writer(features, scans.reports).backward()

    def plain() -> None:
        with torch.no_grad():
            features = writer.features(volume)
        step(features)

    compare(benchmark, lambda: step(kept), plain, rounds=3)
