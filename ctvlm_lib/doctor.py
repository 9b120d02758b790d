"""``ctvlm doctor``: is this installation usable? One line a fact, ``ok`` or ``attention`` with what to do."""

import os
import platform
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import ctvlm_lib
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.run import PROJECT, package_version, run_folder

NEEDED_MEMORY_GB = 4  # what profile quick may take
NEEDED_DISK_GB = 2
INSTALL = "run `make run` again, or `pip install -c constraints.txt -e .` in the project"

Finding = tuple[bool, str]  # (usable, text)


def findings(out_dir: str | Path = "") -> Iterator[Finding]:
    """Check one thing after the other; each gives (usable, what was found and, if not usable, what to do)."""
    yield True, f"ctvlm {ctvlm_lib.__version__} on {platform.platform()}"
    yield _python()
    yield from _packages()
    yield from _absent()
    yield from _device()
    yield from _machine(out_dir)
    yield from _assets()
    yield _output_folder(out_dir)
    yield True, "a browser is needed only to look at pages (`ctvlm app`, the report); chromium isn't needed"


def _python() -> Finding:
    found = ".".join(platform.python_version_tuple()[:2])
    ranges = _project().get("requires-python", ">=3.11")
    return _in_range("Python", platform.python_version(), ranges, f"{found} is outside it: make .venv with Python 3.11")


def _project() -> dict:
    """Return pyproject's ``project`` table, empty when the package was installed without a checkout."""
    try:
        return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return {}


def _packages() -> Iterator[Finding]:
    """Compare the installed versions with the ranges of pyproject.toml."""
    wanted = _project().get("dependencies", [])
    if not wanted:
        yield False, "pyproject.toml isn't there, so versions can't be compared; use a complete checkout of the project"
    good = []
    for line in wanted:
        name, ranges = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*(.*)", line.split(";")[0].strip()).groups()
        version = package_version(name)
        if version is None:
            yield False, f"{name} is not installed; {INSTALL}"
            continue
        usable, text = _in_range(name, version, ranges, INSTALL)
        if usable:
            good.append(f"{name} {version}")
        else:
            yield False, text
    if good:
        yield True, f"{len(good)} of {len(wanted)} packages within their ranges: {', '.join(good)}"


def _in_range(name: str, version: str, ranges: str, remedy: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(ranges).contains(version, prereleases=True):
        return True, f"{name} {version}"
    return False, f"{name} {version} is not within {ranges}; {remedy}"


def _absent() -> Iterator[Finding]:
    """Check that torchvision and timm are absent: their builds can replace torch or break the import of peft."""
    for name in ("torchvision", "timm"):
        version = package_version(name)
        if version:
            yield False, f"{name} {version} is installed and can break torch and peft; run `pip uninstall {name}`"
        else:
            yield True, f"{name} is absent, as it should be"


def _device() -> Iterator[Finding]:
    """Import torch and ask it; this is the one check that takes seconds."""
    from ctvlm_lib.run import find_device

    try:
        import torch
    except (ImportError, OSError) as error:
        yield False, f"torch can't be imported ({error}); {INSTALL}"
        return
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU only"
    yield True, f"torch {torch.__version__}, {build}, {torch.get_num_threads()} threads"
    device, why = find_device()
    yield True, f"device: {device} ({why})"


def _machine(out_dir: str | Path) -> Iterator[Finding]:
    import psutil

    yield True, f"{os.cpu_count()} CPU cores"
    free = psutil.virtual_memory().available / 1e9
    text = f"{free:.1f} GB of memory free"
    enough = free >= NEEDED_MEMORY_GB
    yield enough, text if enough else f"{text}, profile quick can take {NEEDED_MEMORY_GB} GB; close other programs"
    folder = run_folder("quick", out_dir)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:.1f} GB of disk free for results"
    enough = free >= NEEDED_DISK_GB
    yield enough, text if enough else f"{text}, {NEEDED_DISK_GB} GB are needed; free some or set CTVLM_OUT elsewhere"


def _assets() -> Iterator[Finding]:
    """List what is in the cache; what isn't is fetched when it is first used, which is no fault."""
    from ctvlm_lib import assets

    try:
        rows = assets.status()
    except BadInput as error:
        yield False, str(error)
        return
    there = [row.name for row in rows if row.present]
    missing = [row for row in rows if row.quick and not row.present]
    yield True, f"data in {assets.cache_dir()}: {', '.join(there) or 'nothing yet'}"
    if missing:
        size = sum(row.bytes for row in missing) / 1e6
        names = ", ".join(row.name for row in missing)
        yield True, f"not fetched yet: {names} ({size:.0f} MB unpacked); fetched on first use, or now by `ctvlm assets`"


def _output_folder(out_dir: str | Path) -> Finding:
    folder = run_folder("quick", out_dir).parent
    try:
        probe = folder / f".ctvlm-{secrets.token_hex(4)}"  # a name of its own: nothing of the user's is replaced
        with atomic_path(probe) as partial:
            partial.mkdir()
        probe.rmdir()
    except BadInput as error:
        return False, f"{error} (with CTVLM_OUT or --out)"
    return True, f"results go to {folder}, which can be written to"


def data_findings(folder: str | Path) -> Iterator[Finding]:
    """Read each data set that lies in a folder and say what is there; what isn't is no fault, what is broken is.

    Raises:
        BadInput: no folder, or no data set that is known.
    """
    from ctvlm_lib.records.readers import recognise

    for name, reader in recognise(folder).items():
        try:
            reading = reader.read(folder)
        except BadInput as problem:
            yield False, f"{name}: {problem}"
            continue
        yield bool(reading.records) and not reading.unreadable, repr(reading).replace("\n  ", "\n           ")
        if reading.records:
            kinds = ", ".join(f"{split} {kind} {count}" for (split, kind), count in sorted(reading.counts.items()))
            yield True, f"{name}: records by split and kind: {kinds}"


def add_arguments(parser) -> None:
    """Add the options of ``ctvlm doctor``."""
    parser.add_argument("--data", metavar="DIR", help="say instead which data set lies in DIR and what of it is there")
    parser.add_argument("--out", metavar="DIR", default="", help="output folder to check (default: as for ctvlm run)")


def command(args) -> int:
    """Print the findings; return 0 if all is usable, else 1."""
    faults = 0
    checks = findings(args.out) if args.data is None else data_findings(args.data)
    for usable, text in checks:
        print(f"{'ok       ' if usable else 'attention'}  {text}", flush=True)
        faults += not usable
    print("everything is usable" if not faults else f"{faults} finding{'s' * (faults > 1)} above to attend to")
    return 1 if faults else 0
