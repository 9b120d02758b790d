"""One case: a good file is damaged, a reader reads it, and the outcome is held to the rules."""

import contextlib
import gc
import os
import random
import resource
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctvlm_lib.errors import BadInput
from fuzz.damage import damage
from fuzz.target import Target

READ, SENTENCE, FAULT = "read", "sentence", "fault"
SECONDS = 5.0  # of computing; wall time says little on a busy machine
RESIDENT_BYTES = 240 * 1024**2  # more than one case may take; the largest good file has 2 MB
NOBODY = 65534


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        target, number, seed: which case; the three draw the same damage again.
        outcome: READ, SENTENCE or FAULT.
        damage: file, and what was done to it.
        told: the sentence, or what is wrong.
        seconds: of computing.
        megabytes: of memory that it took above what was there before.
    """

    target: str
    number: int
    seed: int
    outcome: str
    damage: str
    told: str
    seconds: float = 0.0
    megabytes: float = 0.0


class Bench:
    """A folder with the good files of each target, and one in which they are damaged.

    Args:
        home: an empty or new folder of its own.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._there: str | None = None  # the target whose files lie in the folder of the case

    def good(self, target: Target) -> Path:
        """The target's good files, made when they are first asked for."""
        folder = self.home / "good" / target.name.replace(" ", "_").replace("/", "_")
        if not folder.is_dir():
            partial = folder.with_name("." + folder.name)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            target.make(partial)
            partial.rename(folder)
        return folder

    def check(self, target: Target) -> None:
        """Read the good files, so that what a campaign finds is the damage's doing; raises whatever the reader does."""
        folder = self._ready(target)
        for victim in target.victims(folder)[:3]:
            target.read(folder, victim)

    def run(self, target: Target, number: int, seed: int, *, mute: bool = True) -> Outcome:
        """Damage a file by the seed, read it, put everything back.

        Args:
            target: whose reader and files.
            number: of the case.
            seed: of the campaign.
            mute: keep the stack of a fault to yourself.
        """
        rng = random.Random(f"{seed} {target.name} {number}")
        folder = self._ready(target)
        victims = target.victims(folder)
        victim = victims[rng.randrange(len(victims))]
        what = f"{victim.relative_to(folder)}: {damage(victim, rng)}"
        if target.mend and rng.random() < 0.5:
            with contextlib.suppress(Exception):  # what can't be mended any more stays as it is
                target.mend(folder, victim)
        before, own = _facts(folder), _content(victim)
        peak, started = _Peak(), time.process_time()
        outcome, told = _judged(target, folder, victim, mute)
        seconds, megabytes = time.process_time() - started, peak.grown_mb()
        changed = _changes(before, _facts(folder), own, _content(victim))
        for wrong, sentence in (
            (changed, f"files were changed: {changed}"), (seconds > SECONDS, f"took {seconds:.1f} s"),
            (megabytes > RESIDENT_BYTES / 1e6, f"took {megabytes:.0f} MB"),
        ):  # fmt: skip
            if wrong:
                outcome, told = FAULT, f"{sentence}; {told}"
        self._put_back(target, folder, victim, bool(changed))
        return Outcome(target.name, number, seed, outcome, what, told, round(seconds, 3), round(megabytes, 1))

    def _ready(self, target: Target) -> Path:
        folder = self.home / "case"
        if self._there != target.name:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.good(target), folder)
            self._there = target.name
        return folder

    def _put_back(self, target: Target, folder: Path, victim: Path, whole: bool) -> None:
        if whole or target.mend:
            self._there = None
            return
        if victim.is_dir() and not victim.is_symlink():
            shutil.rmtree(victim)
        victim.unlink(missing_ok=True)
        shutil.copyfile(self.good(target) / victim.relative_to(folder), victim)


def _judged(target: Target, folder: Path, victim: Path, mute: bool) -> tuple[str, str]:
    """Outcome and sentence of one reading."""
    try:
        with _as_nobody(victim), _working_in(folder):
            target.read(folder, victim)
        return READ, ""
    except BadInput as error:
        told = str(error)
        if _for_want_of_memory(error):
            return FAULT, f"asked for memory that there isn't; {told}"
        return (SENTENCE, told) if told.strip() else (FAULT, "an empty sentence")
    except BaseException as error:  # noqa: BLE001 – whatever it is, it is what the campaign looks for
        if isinstance(error, KeyboardInterrupt):
            raise
        if not mute:
            traceback.print_exc()
        return FAULT, f"{type(error).__name__}: {str(error)[:200]} [{_place(error)}]"
    finally:
        gc.collect(0)


def _for_want_of_memory(error: BaseException | None) -> bool:
    """A reader that turns a MemoryError into a sentence has tried to allocate what a header merely claims."""
    while error is not None:
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error) or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    """The last line of the project in the stack."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "ctvlm_lib" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _facts(folder: Path) -> dict[str, tuple]:
    """Kind, size and time of change of everything in a folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            kept = (facts.st_mode, facts.st_size, facts.st_mtime_ns) if name in files else (facts.st_mode,)
            found[os.path.relpath(path, folder)] = kept
    return found


def _content(path: Path) -> bytes | None:
    """None where there is none, or it mayn't be read: of that one size and time have to do."""
    with contextlib.suppress(OSError):
        return path.read_bytes() if path.is_file() else None


def _changes(before: dict, after: dict, own: bytes | None, now: bytes | None) -> str:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join([*names[:4], *(["the damaged file itself"] if own != now else [])])


@contextlib.contextmanager
def _as_nobody(victim: Path) -> Iterator[None]:
    """Root may read what nobody may: a case of a file without permission is read without root's rights."""
    closed = os.path.isfile(victim) and not os.stat(victim).st_mode & 0o777
    if not closed or not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """What is written beside the working folder is seen as well."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


class _Peak:
    """The largest memory since it was made, where the system tells; else since the process began."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        self.before = _peak_bytes()

    def grown_mb(self) -> float:
        return max(0.0, (_peak_bytes() - self.before) / 1e6)


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(more: int = 1536 * 1024**2) -> None:
    """Let this process have so many bytes of addresses beyond those that it has: what a header claims is refused."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
