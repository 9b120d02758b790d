"""One pinned archive: downloaded by pip with its hash, unpacked member by member, each compared with its own hash.

pip runs as a subprocess and only downloads; nothing is installed or imported. For a source distribution it runs the
package's build metadata step in a throw-away environment. What is fetched, and when, is ``ctvlm_lib.assets``'s matter:
here a package and its members are rows of the manifest. An archive lies in ``<cache>/downloads``.
"""

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
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import filelock

from ctvlm_lib.errors import BadInput, atomic_path

MB = 1e6
NO_NETWORK = r"NewConnectionError|Max retries|name resolution|Connection (reset|broken|aborted)|timed? ?out|ProxyError"

Progress = Callable[[str], None]


def size(file: Path) -> int | None:
    """The bytes of a plain file; None if there is none."""
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def sha256(file: Path) -> str:
    """The file's hash in hexadecimal, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def lock(file: Path, say: Progress) -> Iterator[None]:
    """Let one process at a time work on an archive; the system frees a dead process's lock, so none goes stale.

    Raises:
        BadInput: the cache can't be written, while locking or in the block.
    """
    held = filelock.FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0.1)
        except filelock.Timeout:
            say("another process is fetching the same archive; waiting for it")
            held.acquire()
        try:
            yield
        finally:
            held.release()
    except OSError as error:
        raise BadInput(f"can't write into the cache {file.parents[1]}: {error.strerror}; set CTVLM_CACHE") from error


# --- downloading ----------------------------------------------------------------------------------------------------


def download(package: dict, archive: Path, say: Progress) -> None:
    """Run ``pip download`` for one pinned archive and move the checked file to ``archive``, unless it lies there.

    Args:
        package: its entry in the manifest: requirement, kind, archive, bytes, sha256.
        archive: where the file shall lie, ``<cache>/downloads/<name>``; its lock is held.
        say: called with one line of text at a time.

    Raises:
        BadInput: no network, no such package in pip's index, a hash that differs (nothing is kept), a full disc.
    """
    if size(archive) == package["bytes"] and sha256(archive) == package["sha256"]:
        return
    archive.unlink(missing_ok=True)
    work = archive.parent / f"{package['archive']}.partial"
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process; the lock is ours
    work.mkdir(parents=True)
    try:
        requirements = work / "requirements.txt"
        requirements.write_text(f"{package['requirement']} --hash=sha256:{package['sha256']}\n", encoding="utf-8")
        output = _run_pip(package, requirements, work, say)
        came = work / "came" / package["archive"]
        if not came.is_file():
            raise BadInput(_why(output, archive.parents[1]))
        found = sha256(came)
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
    # elsewhere a backslash is part of a path
    command += shlex.split(os.environ.get("CTVLM_PIP_ARGS", ""), posix=os.name == "posix")
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
            came = max(came, *(size(file) or 0 for file in temporary.glob(f"*/{package['archive']}")), 0)
            say(f"  {came / MB:6.1f} of {package['bytes'] / MB:.1f} MB" if came < package["bytes"] else "  checking")


def _why(output: str, cache: Path) -> str:
    """One sentence from pip's output."""
    text = " ".join(output.split())
    hashes = re.search(r"Expected sha256 (\w+) Got (\w+)", text)
    if hashes:
        return f"the archive has sha256 {hashes[2]}, expected {hashes[1]}; nothing of it was kept"
    if "No module named pip" in text:
        return f"{sys.executable} has no pip; add it with -m ensurepip, or copy the archive to {cache}/downloads"
    if re.search(NO_NETWORK, text, re.IGNORECASE):
        return "the package index can't be reached; check the network or name an index in CTVLM_PIP_ARGS"
    if "No space left" in text:
        return f"no space left on the disc of {cache}; free some or set CTVLM_CACHE"
    if "No matching distribution" in text:
        return "the package index that pip uses doesn't have it; name another one in CTVLM_PIP_ARGS"
    errors = [line.strip() for line in output.splitlines() if line.strip().upper().startswith("ERROR")]
    return "pip said: " + (errors[-1] if errors else "nothing, and wrote no file")


# --- unpacking ------------------------------------------------------------------------------------------------------


def unpack(archive: Path, members: list[dict], final: Path) -> None:
    """Copy members out of the archive into a partial folder, check each, then rename the folder.

    Args:
        archive: a wheel (``.whl``) or a source distribution (``.tar.gz``).
        members: rows of the manifest: ``from`` in the archive, ``to`` in the folder, sha256, perhaps strip_cr.
        final: the asset's folder in the cache.

    Raises:
        BadInput: a member isn't a plain file of the archive, leads out of the folder, or has another hash.
    """
    for stale in final.parent.glob(f".*.partial.{final.name}"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    wanted = {member["from"]: member for member in members}
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
