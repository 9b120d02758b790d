"""Kill ``ctvlm run`` at random moments until it has ended each time, and compare with a run that nobody disturbed.

    python tests/fuzz/kill_run.py --moments 50 --seed 0                 a small workbook of three notebooks
    python tests/fuzz/kill_run.py --moments 10 --seed 0 --only 00,10,30 real notebooks

A run begins with an empty folder. It is killed at a moment drawn from the processor time that it takes
undisturbed, or where one of its processes is about to give a file its name, and started again, at once or when
everything has ended, until it is done. Runs follow until there were enough kills. Exit code 1: something differed,
stayed, or ended oddly.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers_kill import KINDS, Killer, differences, killed_until_it_ends, left_by_run, write_miniature  # noqa: E402


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50, metavar="N", help="kills in all (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and kinds (default 0)")
    parser.add_argument("--only", default="", metavar="NN,NN", help="real notebooks instead of the small workbook")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="notebooks at a time (default 2)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of: {', '.join(KINDS)}")
    parser.add_argument("--times", default="", metavar="NAMES", help="columns of tables that hold measured times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ctvlm-kill-") as base:
        return runs(Path(base), args)


def runs(base: Path, args: argparse.Namespace) -> int:
    """One undisturbed run, then killed ones; print what was done and what was found."""
    which = ["--only", args.only] if args.only else ["--notebooks", str(write_miniature(base / "notebooks"))]

    def killer(name: str) -> Killer:
        command = ["-m", "ctvlm_lib", "run", "--jobs", str(args.jobs), "--out", str(base / name), *which]
        return Killer(command, base / name / "quick", base / f"{name}.log")

    begun = time.monotonic()
    plain = killer("undisturbed")
    if plain.once():
        print(f"the undisturbed run failed:\n{plain.log.read_text()[-3000:]}")
        return 1
    span, times = plain.cpu_s, tuple(filter(None, args.times.split(",")))
    wanted = left_by_run(base / "undisturbed" / "quick", times)
    print(f"undisturbed: {span:.0f} s of a processor, {len(wanted['files'])} files", flush=True)
    rng, kills, faults, number = random.Random(args.seed), [], list(plain.faults), 0
    while len(kills) < args.moments:
        number += 1
        one = killer(f"run{number}")
        code = killed_until_it_ends(one, rng, span, args.kinds.split(","), args.moments - len(kills))
        kills += one.kills
        found = one.faults + ([] if code == 0 else [f"the last start ended with {code}: {one.log.read_text()[-2000:]}"])
        if code == 0:
            found += [f"differs: {what}" for what in differences(wanted, left_by_run(one.folder, times))]
        faults += [f"run {number}: {what}" for what in found]
        told = ", ".join(moment.kind + " (writing)" * (moment.change > 0) for moment in one.kills) or "none"
        line = f"run {number}: killed {len(one.kills)} times ({told}), {len(found)} faults"
        print(line, *found, sep="\n  ", flush=True)
    print(f"{len(kills)} kills in {number} runs, {time.monotonic() - begun:.0f} s; {len(faults)} faults")
    for kind, count in collections.Counter(moment.kind for moment in kills).items():
        at_writing = sum(moment.change > 0 for moment in kills if moment.kind == kind)
        print(f"  {kind}: {count}, {at_writing} of them while a file was being written")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
