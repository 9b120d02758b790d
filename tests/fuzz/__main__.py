"""``make fuzz``: the whole campaign, or one case of it again.

    make fuzz                                        5,400 cases, at most ten minutes
    make fuzz ARGS="--minutes 5 --seed 7"            others
    make fuzz ARGS="--only 'volume.load' --files 300"
    make fuzz ARGS="--replay 'volume.load:123'"      one case, with its stack
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])

from fuzz.case import FAULT, READ, SENTENCE, Bench, Outcome  # noqa: E402
from fuzz.worker import ONE_THREAD, Worker  # noqa: E402

ROUND = 15  # cases of a reader before it is the next one's turn


def main(words: list[str] | None = None) -> int:
    """Run the campaign; 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="damaged files against every reader")
    parser.add_argument("--files", type=int, default=5400, help="cases in all (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after so many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all damage (default %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="readers whose name holds these words")
    parser.add_argument("--replay", default="", metavar="READER:NUMBER", help="one case again, with its stack")
    parser.add_argument("--out", type=Path, default=_out(), metavar="DIR", help="for the tables (default %(default)s)")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="ctvlm-fuzz-") as home:
        os.chmod(home, 0o755)  # nobody shall be stopped by the folder, see case._as_nobody
        if args.replay:
            return _replay(Path(home), args)
        return _campaign(Path(home), args)


def _out() -> Path:
    return Path(os.environ.get("CTVLM_OUT") or os.environ.get("OUT") or ROOT / "out") / "fuzz"


def _campaign(home: Path, args: argparse.Namespace) -> int:
    from fuzz.targets import TARGETS

    names = [name for name in TARGETS if args.only in name]
    if not names:
        print(f"no reader's name holds {args.only!r}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    worker = Worker(home, args.out / "printed.log")
    begun, outcomes = time.monotonic(), []
    shares = {name: TARGETS[name].share for name in names}
    each = {name: max(1, round(share * args.files / sum(shares.values()))) for name, share in shares.items()}
    try:
        for first in range(0, max(each.values()), ROUND):  # a campaign that is stopped has seen every reader
            for name in names:
                for number in range(first, min(first + ROUND, each[name])):
                    if time.monotonic() - begun > 60 * args.minutes:
                        break
                    outcomes.append(worker.run(name, number, args.seed))
                    if outcomes[-1].outcome == FAULT:
                        print(_line(outcomes[-1]), flush=True)
    finally:
        worker.close()
    seconds = time.monotonic() - begun
    _write(outcomes, args.out)
    _summary(outcomes, names, seconds, sum(each.values()), worker.started)
    return 1 if any(one.outcome == FAULT for one in outcomes) else 0


def _replay(home: Path, args: argparse.Namespace) -> int:
    os.environ.update(ONE_THREAD)
    from fuzz.targets import TARGETS

    name, _, number = args.replay.rpartition(":")
    if name not in TARGETS or not number.isdecimal():
        print(f"give READER:NUMBER with one of {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    found = Bench(home).run(TARGETS[name], int(number), args.seed, mute=False)
    print(_line(found))
    return 1 if found.outcome == FAULT else 0


def _line(one: Outcome) -> str:
    again = f"make fuzz ARGS=\"--replay '{one.target}:{one.number}' --seed {one.seed}\""
    return (
        f"{one.outcome}: {one.told[:500]}\n    {again}    ({one.damage}, {one.seconds:.2f} s, {one.megabytes:.0f} MB)"
    )


def _write(outcomes: list[Outcome], out: Path) -> None:
    """``cases.csv``, one row a case, and ``summary.csv``, one a reader."""
    rows = [asdict(one) for one in outcomes]
    _table(out / "cases.csv", rows)
    counts = Counter((one.target, one.outcome) for one in outcomes)
    names = dict.fromkeys(one.target for one in outcomes)
    _table(out / "summary.csv", [
        {"reader": name, **{kind: counts[name, kind] for kind in (READ, SENTENCE, FAULT)},
         "slowest_s": max(one.seconds for one in outcomes if one.target == name),
         "most_mb": max(one.megabytes for one in outcomes if one.target == name)}
        for name in names
    ])  # fmt: skip


def _table(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["reader"])
        writer.writeheader()
        writer.writerows(rows)


def _summary(outcomes: list[Outcome], names: list[str], seconds: float, planned: int, started: int) -> None:
    counts = Counter((one.target, one.outcome) for one in outcomes)
    width = max(map(len, names))
    print(f"\n{'reader':{width}}  {READ:>6} {SENTENCE:>9} {FAULT:>6}")
    for name in names:
        print(f"{name:{width}}  {counts[name, READ]:6} {counts[name, SENTENCE]:9} {counts[name, FAULT]:6}")
    total = Counter(one.outcome for one in outcomes)
    print(f"{'all':{width}}  {total[READ]:6} {total[SENTENCE]:9} {total[FAULT]:6}")
    if outcomes:
        slow, large = max(outcomes, key=lambda one: one.seconds), max(outcomes, key=lambda one: one.megabytes)
        print(
            f"\n{len(outcomes)} of {planned} cases in {seconds / 60:.1f} min, {len(outcomes) / seconds:.0f} a second;"
            f" {started} processes\nslowest {slow.seconds:.2f} s ({slow.target}:{slow.number}), most memory"
            f" {large.megabytes:.0f} MB ({large.target}:{large.number})"
        )


if __name__ == "__main__":
    sys.exit(main())
