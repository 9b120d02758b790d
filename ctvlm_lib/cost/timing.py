"""Seconds and peak memory of a call on a device; a GPU that is too small is a result, not an error.

Work on a GPU is only queued when a call returns, so the clock is read when the queue is empty. Memory is what PyTorch
allocated at the most, weights included, and what it reserved of the GPU for that; both are asked of CUDA alone. What
the driver and libraries take beside it, some hundred MB, is in neither. :mod:`ctvlm_lib.cost.measure` does the same
for a CPU, where memory is the process'.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

MEASURED, TOO_LARGE = "measured", "out of memory"
GB = 1e9
REPEATS, WARM_UP = 5, 2  # the first calls choose kernels and fill caches


@dataclass(frozen=True)
class Taken:
    """What a call took.

    Attributes:
        seconds: median over the repeats; None where it didn't fit.
        peak_gb: allocated at the most; reserved_gb: of the GPU. None on a CPU, and where it didn't fit.
        status: "measured", "out of memory", or what went wrong.
    """

    seconds: float | None = None
    peak_gb: float | None = None
    reserved_gb: float | None = None
    status: str = MEASURED


def taken(
    run: Callable[[], object], device: torch.device | str, repeats: int = REPEATS, warm_up: int = WARM_UP
) -> Taken:
    """Run a call several times.

    Args:
        run: what is measured; what it makes is let go.
        device: that it works on.
        repeats: that are timed, ≥ 1.
        warm_up: calls before these.

    Returns:
        the median of the repeats, the peak of all calls. Where memory runs out all that the call made is freed, and the
        status says so; other errors are raised.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    free(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(warm_up):
            run()
        seconds = [_timed(run, device) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        seconds = None
    if seconds is None:  # here, where the error no longer holds the tensors of the call
        free(device)
        return Taken(status=TOO_LARGE)
    if not on_gpu:
        return Taken(median(seconds))
    peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return Taken(median(seconds), peak / GB, reserved / GB)


def free(device: torch.device | str) -> None:
    """Give back what is no longer used of a GPU, so that the next peak is the next call's own."""
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
