"""``ctvlm archive``: predictions, questions, tables, records and protocols in one zip, and its unpacking elsewhere.

The same results are the same bytes: names are sorted, the time of day is left out, and nothing is compressed (the
predictions are already). A zip from elsewhere is unpacked into a temporary folder, and only names that an archive of
results can have.
"""

import argparse
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctvlm_lib.damaged import NOT_ZIP
from ctvlm_lib.errors import BadInput, atomic_path

FOLDER = "results"
PROTOCOL = ("protocol.toml", "contrasts.csv")
MAX_BYTES, MAX_FILES = 1_000_000_000, 20_000
_NAME = re.compile(
    rf"({'|'.join(map(re.escape, PROTOCOL))}|protocol_[a-z_]+\.toml|{FOLDER}(/[A-Za-z0-9_+][A-Za-z0-9_.+ -]*){{1,4}})"
)
_MADE = (1980, 1, 1, 0, 0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm archive``."""
    parser.add_argument("out", metavar="OUT.zip", help="the archive to write; an existing file is never replaced")
    parser.add_argument("--results", default="", metavar="FOLDER", help="results to pack (default: those that ship)")


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm archive``: verify, then pack."""
    from ctvlm_lib.alignment.arm_tables import RESULTS
    from ctvlm_lib.ledger.verify_command import verify
    from ctvlm_lib.records import protocol
    from ctvlm_lib.records.committed import FILES

    results = Path(args.results).expanduser() if args.results else RESULTS
    if not results.is_dir():
        raise BadInput(f"there is no folder {results}; give one with a folder for each arm")
    out = _free(args.out)
    found = verify(results)
    if found is None:
        print("nothing was packed: what differs has to be cleared up first")
        return 1
    new = [folder.name for folder in found if folder.came or not folder.listed]
    if new:
        raise BadInput(f"not all of {', '.join(new)} is listed, so nothing was packed; run ctvlm verify --update first")
    pack(results, FILES, out, also=tuple(sorted(protocol.PATH.parent.glob("protocol_*.toml"))))
    print(f"{len(found)} folders in {out} ({out.stat().st_size / 1e6:.1f} MB); `ctvlm verify {out.name}` checks it")
    return 0


def pack(results: Path, protocol: tuple[Path, ...], out: str | Path, also: tuple[Path, ...] = ()) -> Path:
    """Write an archive of what is listed, whole or not at all.

    Args:
        results: with its list of hashes; what isn't listed isn't packed.
        protocol: the protocol's files in the order of PROTOCOL.
        out: of the archive.
        also: protocols of arms that have one of their own, to be read beside the results.

    Raises:
        BadInput: the file exists or can't be written, or something isn't as listed.
    """
    from ctvlm_lib.ledger import sums

    out = _free(out)
    files = dict(zip(PROTOCOL, protocol, strict=True)) | {path.name: path for path in also}
    files |= {f"{FOLDER}/{sums.NAME}": results / sums.NAME}
    listed = sums.read(results)
    files |= {f"{FOLDER}/{path}": results / path for path in listed}
    changed = [path for path, value in listed.items() if sums.sha256_of(results / path) != value]
    if changed:
        raise BadInput(f"{changed[0]} isn't as listed, so nothing was packed; see what ctvlm verify says")
    with atomic_path(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if not _NAME.fullmatch(name):
                raise BadInput(f"{name} can't be packed under this name; rename it to letters, digits, - and _")
            entry = zipfile.ZipInfo(name, date_time=_MADE)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # the same on every system
            archive.writestr(entry, files[name].read_bytes())
    return out


@contextmanager
def unpacked(path: str | Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Unpack an archive into a temporary folder.

    Args:
        path: of the zip.

    Yields:
        The folder of results, and the protocol's files; both are gone when the block ends.

    Raises:
        BadInput: not a zip, a damaged one, one that holds other names or more bytes than results have, or one without
            results, list or protocol.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="ctvlm-verify-") as temporary:
        home = Path(temporary)
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in _checked(archive.infolist(), path.name):
                    target = home / entry.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
        except NOT_ZIP as error:
            raise BadInput(f"{path.name} is damaged or isn't a zip ({error}); fetch it again") from None
        except OSError as error:
            clash = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
            if clash and error.filename != str(path):
                raise BadInput(
                    f"{path.name} has a file and a folder of one name; it isn't made by ctvlm archive"
                ) from None
            raise BadInput(f"can't unpack {path}: {error.strerror}; give an archive of results, and room") from None
        for file in home.rglob("*.npz"):
            _bounded(file)
        wanted = (*PROTOCOL, f"{FOLDER}/sums.csv")
        missing = [name for name in wanted if not (home / name).is_file()]
        if missing:
            raise BadInput(f"{path.name} lacks {', '.join(missing)}; give an archive made by ctvlm archive")
        yield home / FOLDER, tuple(home / name for name in PROTOCOL)


def _checked(entries: list[zipfile.ZipInfo], archive: str) -> list[zipfile.ZipInfo]:
    """The entries, if all of them are files with names and sizes of results."""
    names = [entry.filename for entry in entries]
    for entry in entries:
        plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
        if not plain or not _NAME.fullmatch(entry.filename) or ".." in entry.filename:
            raise BadInput(
                f"{archive} holds {entry.filename!r}, which no archive of results does, so it was refused; if it was"
                " cut off on its way, fetch it again"
            )
    if len({name.lower() for name in names}) < len(names):
        raise BadInput(f"{archive} holds a name twice; it isn't made by ctvlm archive")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES or len(entries) > MAX_FILES:
        raise BadInput(f"{archive} would take {total / 1e6:,.0f} MB in {len(entries):,} files, more than results do; it"
                       " was refused")  # fmt: skip
    return entries


def _bounded(file: Path) -> None:
    """Refuse a table of answers that grows beyond measure; one that is damaged is told of by its arm."""
    try:
        with zipfile.ZipFile(file) as arrays:
            total = sum(entry.file_size for entry in arrays.infolist())
    except zipfile.BadZipFile:
        return
    if total > MAX_BYTES:
        raise BadInput(f"{file.parent.name}/{file.name} would take {total / 1e6:,.0f} MB of memory; it was refused")


def _free(out: str | Path) -> Path:
    """The path of a new archive."""
    out = Path(out).expanduser()
    if out.suffix != ".zip":
        raise BadInput(f"{out.name} isn't the name of an archive; give one that ends in .zip")
    if out.exists():
        raise BadInput(f"{out} exists already and isn't replaced; give another name")
    return out
