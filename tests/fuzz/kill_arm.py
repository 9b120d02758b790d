"""Kill ``ctvlm arm`` at random moments until it ends, and compare with an arm that nobody disturbed, bit for bit.

    python tests/fuzz/kill_arm.py --moments 10 --seed 0                                   three small arms
    python tests/fuzz/kill_arm.py --moments 10 vit3d-clip-8 --patients 8 --steps 8        one arm with its options

A checkpoint is written after every step, so that a few steps have as many as a long training, and no split has more
than twelve patients. Compared are answers,
tables, weights, the optimiser's state and records; of records not what tells times. Exit code 1: something differed.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers_kill import Killer, Moment, differences  # noqa: E402

from ctvlm_lib import assets  # noqa: E402

KINDS = ("all at once", "SIGTERM", "Ctrl-C")
FEW = 12  # patients
SMALL = (
    "vit3d-clip-8 --patients 8 --steps 8",
    "vlm-B-none-small --patients 4 --steps 3",
    "uvlm-seg-CL --patients 6 --steps 6 --batch 2",
)
COMPUTED = ("features", "embeddings", "cohort")  # what arms keep in the cache, and so have to make anew here
TIMES = ("seconds", "minutes", "volumes_per_s", "made", "written")


def worker(words: list[str]) -> int:
    """Be ``ctvlm arm``, with a checkpoint after every step and few patients in each split."""
    from ctvlm_lib.__main__ import main as command_line
    from ctvlm_lib.records.protocol import Protocol
    from ctvlm_lib.training import Training

    check, patients = Training.__post_init__, Protocol.patients

    def few(self, split: str, profile: str = "quick", *, n: int | None = None, **rest):
        return patients(self, split, profile, n=min(n or FEW, FEW), **rest)

    def often(self) -> None:
        object.__setattr__(self, "checkpoint_every", 1)
        check(self)

    Training.__post_init__, Protocol.patients = often, few
    return command_line(["arm", *words])


def left_by_arm(home: Path) -> dict[str, object]:
    """What must be the same: names of files, and what is in them but for times. Half-written leftovers don't count."""
    left: dict[str, object] = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.is_file() and "partial" not in name:
            left[name] = True if path.suffix == ".json" else path.read_bytes()
            left |= {f"{name}: {key}": value for key, value in _plain(path)} if path.suffix == ".json" else {}
    return {"files": sorted(name for name in left if ": " not in name)} | left


def _plain(path: Path) -> Iterator[tuple[str, object]]:
    """The values of a JSON file, each by the names that lead to it, without times."""

    def walk(content: object, key: str) -> Iterator[tuple[str, object]]:
        if isinstance(content, dict | list):
            for name, one in content.items() if isinstance(content, dict) else enumerate(content):
                if not str(name).startswith(TIMES):
                    yield from walk(one, f"{key}/{name}")
        else:
            yield key, content

    return walk(json.loads(path.read_text(encoding="utf-8")), "")


def kill_arm(words: list[str], base: Path, moments: int, seed: int) -> list[str]:
    """Train an arm undisturbed and killed; print what was done, return what was found."""

    def killer(name: str) -> Killer:
        cache = base / f"{name}-cache"
        cache.mkdir(parents=True)
        for path in assets.cache_dir().glob("*"):
            if path.name not in COMPUTED:
                (cache / path.name).symlink_to(path)
        command = [__file__, "--worker", *words, "--profile", "quick", "--out", str(base / name)]
        return Killer(command, base, base / f"{name}.log", {"CTVLM_CACHE": str(cache)})

    plain, killed, begun = killer("undisturbed"), killer("killed"), time.monotonic()
    if plain.once():
        return [f"the undisturbed arm failed: {plain.log.read_text()[-2000:]}"]
    span, rng, starts = plain.cpu_s, random.Random(seed), 0
    while len(killed.kills) < moments and starts < 3 * moments:
        moment, starts = Moment.draw(rng, span, KINDS, changes=12), starts + 1
        killed.once(moment)  # one that has ended is started again: it must stay as it is
    code = killed.once()
    faults = plain.faults + killed.faults + ([] if code == 0 else [killed.log.read_text()[-2000:]])
    if code == 0:
        wanted, found = left_by_arm(base / "undisturbed"), left_by_arm(base / "killed")
        faults += [f"differs: {what}" for what in differences(wanted, found)]
    kinds = collections.Counter(moment.kind for moment in killed.kills)
    print(f"{words[0]}: undisturbed {span:.0f} s of a processor; {len(killed.kills)} kills in {starts} starts "
          f"{dict(kinds)}, {sum(moment.change > 0 for moment in killed.kills)} of them while a file was being written; "
          f"{time.monotonic() - begun:.0f} s; {len(faults)} faults", *faults, sep="\n  ", flush=True)  # fmt: skip
    left = [path.relative_to(base).as_posix() for path in base.rglob(".*partial*")]
    print(f"  half-written leftovers: {left or 'none'}")
    return faults


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=10, metavar="N", help="kills of each arm (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and kinds (default 0)")
    parser.add_argument("arm", nargs=argparse.REMAINDER, help="an arm and its options (default: three small ones)")
    args = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory(prefix="ctvlm-kill-") as base:
        for words in [args.arm] if args.arm else map(str.split, SMALL):
            faults += kill_arm(words, Path(base) / words[0], args.moments, args.seed)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
