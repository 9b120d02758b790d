"""Progress of a run in words: one line per notebook, ticking on a terminal, plain in a log."""

import sys
import threading


class Progress:
    """Prints ``[2/4] 10_volumes … 34 s, 1.2 GB (about 1 min 20 s left)``.

    Args:
        estimates: seconds expected for each notebook, in the order they run; None where nothing is known yet.
        current: names expected to be up to date; they count as 0 s.
    """

    def __init__(self, estimates: dict[str, float | None], current: set[str]):
        self.names = list(estimates)
        self.expected = {name: 0.0 if name in current else seconds for name, seconds in estimates.items()}
        self.terminal = sys.stdout.isatty()
        self._label = ""
        self._from = 0

    def plan(self) -> str:
        """Say how many notebooks there are and how long they will take."""
        to_run = sum(seconds != 0 for seconds in self.expected.values())
        plural = "" if len(self.names) == 1 else "s"
        if not to_run:
            return f"{len(self.names)} notebook{plural}, all up to date"
        count = f"{len(self.names)} notebook{plural}"
        done = "" if to_run == len(self.names) else f", {len(self.names) - to_run} of them up to date"
        return f"{count}{done}, {self._about(self.names) or 'no estimate of the time yet'}"

    def begin(self, name: str) -> None:
        """Start a notebook's line."""
        self._from = self.names.index(name)
        self._label = f"[{self._from + 1}/{len(self.names)}] {name} … "
        sys.stdout.write(self._label)
        sys.stdout.flush()

    def tick(self, name: str, seconds: float, used_bytes: int) -> None:
        """Renew the line on a terminal while the notebook runs."""
        if self.terminal:
            left = self._about(self.names[self._from :], seconds)
            text = f"{duration(seconds)}, {used_bytes / 1e9:.1f} GB now" + (f"  ({left} left)" if left else "")
            sys.stdout.write(f"\r{self._label}{text}\x1b[K")
            sys.stdout.flush()

    def end(self, name: str, summary: str, notes: list[str]) -> None:
        """Finish the line; notes follow on lines of their own."""
        left = self._about(self.names[self.names.index(name) + 1 :])
        self._finish(self._label, summary + (f"  ({left} left)" if left else ""), notes)

    def _finish(self, label: str, rest: str, notes: list[str]) -> None:
        """Write a line whose label a log holds already, and notes."""
        sys.stdout.write(f"\r{label}{rest}\x1b[K\n" if self.terminal else f"{rest}\n")
        for note in notes:
            sys.stdout.write(f"      {note}\n")
        sys.stdout.flush()

    def _about(self, names: list[str], spent_s: float = 0) -> str:
        """Return ``about 1 min 20 s`` for these notebooks; empty if nothing is left or one of them is unknown."""
        expected = [self.expected[name] for name in names]
        if None in expected or not sum(expected):
            return ""
        return f"about {duration(max(sum(expected) - spent_s, 0))}"


class SideBySide(Progress):
    """The same for several notebooks at a time: a line for each that ended, and on a terminal one of those at work.

    Args:
        estimates, current: as of :class:`Progress`.
        jobs: how many run at a time; the time left is shared by them.
    """

    def __init__(self, estimates: dict[str, float | None], current: set[str], jobs: int):
        super().__init__(estimates, current)
        self.jobs, self._at_work, self._ended, self._lock = jobs, {}, set(), threading.Lock()

    def begin(self, name: str) -> None:
        """Note that a notebook begins."""
        with self._lock:
            self._at_work[name] = 0.0

    def tick(self, name: str, seconds: float, used_bytes: int) -> None:
        """Renew the line of those at work on a terminal."""
        with self._lock:
            self._at_work[name] = seconds
            if self.terminal:
                running = ", ".join(f"{one} {duration(spent)}" for one, spent in self._at_work.items())
                sys.stdout.write(f"\r… {running}{self._left()}\x1b[K")
                sys.stdout.flush()

    def end(self, name: str, summary: str, notes: list[str]) -> None:
        """Write a notebook's line; notes follow on lines of their own."""
        with self._lock:
            self._at_work.pop(name, None)
            self._ended.add(name)
            self._finish("", f"[{len(self._ended)}/{len(self.names)}] {name} … {summary}{self._left()}", notes)

    def _about(self, names: list[str], spent_s: float = 0) -> str:
        expected = [self.expected[name] for name in names]
        return super()._about(names, spent_s + (1 - 1 / self.jobs) * sum(expected)) if None not in expected else ""

    def _left(self) -> str:
        left = self._about([name for name in self.names if name not in self._ended], sum(self._at_work.values()) / 2)
        return f"  ({left} left)" if left else ""


def duration(seconds: float) -> str:
    """Write seconds as ``34 s``, ``1 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
