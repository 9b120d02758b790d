"""Seconds, memory and operations of a function: two measured here and now, one counted.

Seconds are the best of a few runs: what else the machine does makes a run slower and never faster. They are told twice,
by the wall's clock and as the processor's, which doesn't run while others have the core. Memory is what the process
holds beyond what it held before, looked at every two milliseconds by a thread, so it includes what libraries need
beside tensors and arrays; a peak shorter than that can be missed, and it comes in pages of 4 kB. Before a run, memory
that is free but not given back is given back (on Linux with glibc), or the run would take it unseen; elsewhere only the
first run of a process is told in full. Operations are counted by PyTorch and the same anywhere.
"""

import contextlib
import ctypes
import ctypes.util
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ctvlm_lib.errors import BadInput

SAMPLE_S = 0.002  # between two looks at the process' memory
REPEATS, BUDGET_S = 3, 0.3


@dataclass(frozen=True)
class Measured:
    """What a function took.

    Attributes:
        seconds: of the fastest run.
        cpu_seconds: of the run that took fewest of all threads' together; with one thread far below ``seconds`` where
            the core was shared.
        runs: how many.
        peak_mb: memory beyond what the process held before the first run, 10⁶ bytes.
        threads: that PyTorch was allowed.
    """

    seconds: float
    cpu_seconds: float
    runs: int
    peak_mb: float
    threads: int


def measure(
    run: Callable[[], object], repeats: int = REPEATS, budget_s: float = BUDGET_S, memory: bool = True
) -> Measured:
    """Time a function and see what memory it needs.

    The first run is watched for its memory. What takes long runs once: repeating stops when ``budget_s`` is spent.

    Args:
        run: takes nothing; what it returns is let go after the time was taken.
        repeats: runs at most, ≥ 1.
        budget_s: no further run starts after so many seconds.
        memory: watch it; without, ``peak_mb`` is NaN and the first run isn't slowed by the watching.

    Raises:
        BadInput: no run is asked for.
    """
    if repeats < 1:
        raise BadInput(f"{repeats} runs measure nothing; give 1 or more")
    import torch

    taken: list[float] = []
    worked: list[float] = []

    def timed() -> None:
        begun, before = time.perf_counter(), time.process_time()
        run()  # its result is gone before the clock is read: freeing is a part of the cost
        worked.append(time.process_time() - before)
        taken.append(time.perf_counter() - begun)

    peak = peak_mb(timed) if memory else float("nan")
    while not taken or (len(taken) < repeats and sum(taken) < budget_s):
        timed()
    return Measured(min(taken), min(worked), len(taken), peak, torch.get_num_threads())


def peak_mb(run: Callable[[], object]) -> float:
    """The most memory that a function made the process hold beyond what it held before, 10⁶ bytes, ≥ 0.

    What earlier calls freed is given back to the system first, so that the function can't use it unseen.
    """
    import psutil

    resident = psutil.Process().memory_info
    give_back()
    before = highest = resident().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(SAMPLE_S):
            highest = max(highest, resident().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        made = run()
        highest = max(highest, resident().rss)  # what it returns is held now
        del made
    finally:
        done.set()
        watcher.join()
    return (highest - before) / 1e6


def give_back() -> bool:
    """Collect recent garbage and return free memory to the system; says whether the second was possible."""
    gc.collect(1)  # all generations would take a fifth of a second, beside libraries with millions of objects
    name = ctypes.util.find_library("c")
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return ctypes.CDLL(name).malloc_trim(0) >= 0
    return False


def operations(run: Callable[[], object]) -> int:
    """Operations of the products and convolutions in a function: a multiplication and its addition are two.

    Attention is counted in its plain form, as two products over all pairs of tokens: the fused form that a CPU runs is
    unknown to PyTorch's counter, which would leave it out, and it skips what a causal mask hides, which here counts.
    Sums, norms and activations aren't counted. Tensors on the device ``meta`` are enough: then nothing is computed.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Let PyTorch and SimpleITK use so many threads within the block.

    Raises:
        BadInput: fewer than one.
    """
    if count < 1:
        raise BadInput(f"{count} threads compute nothing; give 1 or more")
    import SimpleITK
    import torch

    before = torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(count)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before[1])
