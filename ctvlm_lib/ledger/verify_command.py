"""``ctvlm verify``: compute the stored tables again from the stored predictions, and say what differs."""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ctvlm_lib.errors import BadInput, atomic_path

MORE = """\
exit code 0: all is as stored; 1: something differs, or an arm isn't finished; 2: what was given can't be read.
An arm that was run again is refused until it is named: ctvlm verify --update --renew vlm-B-contour-small
"""
SHOWN = 5  # problems of one folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``ctvlm verify``."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, MORE
    what = "results with a folder for each arm (default: those that ship), or an archive of them"
    parser.add_argument("target", nargs="?", default="", metavar="FOLDER|ARCHIVE.zip", help=what)
    parser.add_argument("--update", action="store_true", help="write tables and hashes of arms that aren't listed yet")
    parser.add_argument("--renew", action="append", default=[], metavar="ARM",
                        help="with --update: list this folder again although it has changed")  # fmt: skip


def command(args: argparse.Namespace) -> int:
    """Run ``ctvlm verify``."""
    from ctvlm_lib.alignment.arm_tables import RESULTS
    from ctvlm_lib.ledger import packed_results
    from ctvlm_lib.ledger.record_checks import Under

    if args.renew and not args.update:
        raise BadInput(f"--renew {args.renew[0]} lists an arm again, which only --update does; give both")
    target = Path(args.target).expanduser() if args.target else RESULTS
    if target.is_dir():
        return 0 if verify(target, update=args.update, renew=args.renew) is not None else 1
    if not target.is_file():
        raise BadInput(f"there is no {target}; give a folder of results or an archive made by ctvlm archive")
    if args.update:
        raise BadInput(f"{target.name} is an archive, which isn't changed; --update takes a folder")
    with packed_results.unpacked(target) as (results, files):
        under, here = Under.of(files), Under.of()
        found = verify(results, under=under, sealed=True)
    same = "is that of this installation" if under == here else f"isn't that of this installation ({here})"
    print(f"the protocol inside {same}")
    return 0 if found is not None else 1


def verify(
    results: Path,
    *,
    under=None,
    sealed: bool = False,
    update: bool = False,
    renew: list[str] | None = None,
    say: Callable[[str], None] = print,
):
    """Check a folder of results and say a line for each folder in it, then a summary.

    Args:
        results: with a folder for each arm.
        under: the protocol, see :class:`ctvlm_lib.ledger.record_checks.Under`; None takes the installation's.
        sealed: an arm that isn't listed is a failure, as in an archive.
        update: write tables and hashes of arms that aren't listed yet.
        renew: names of folders that are listed again although they have changed.
        say: called with each line.

    Returns:
        The checked folders; None if one of them fails.

    Raises:
        BadInput: no results there, a list that can't be read, or a folder to be listed again that isn't known.
    """
    from ctvlm_lib.ledger import verify as checks
    from ctvlm_lib.ledger.record_checks import Under

    results, under, renew = results.resolve(), under or Under.of(), renew or []
    against = checks.Against.of(results, under, _checkpoints(results), renew, derived=not update)
    _known(results, renew)
    found = []
    for folder in checks.folders(results, against):
        if sealed:
            folder.problems += [f"{name}: sums.csv doesn't list it" for name in folder.came]
            folder.problems += [] if folder.listed else ["sums.csv: doesn't list the arm"]
        found.append(folder)
        for line in _lines(folder, update):
            say(line)
    new = [folder for folder in found if (folder.came or not folder.listed) and not folder.problems]
    if update:
        _write(results, against.listed, new)
    apart = _apart(found)
    for line in (*apart, *_summary(found, under, [] if update else new)):
        say(line)
    return None if apart or any(folder.problems for folder in found) else found


def _checkpoints(results: Path) -> Path | None:
    """Where the networks of these results lie: beside the folder, or two above it."""
    return next((home / "checkpoints" for home in results.parents[:2] if (home / "checkpoints").is_dir()), None)


def _known(results: Path, renew: list[str]) -> None:
    from ctvlm_lib.ledger import sums

    there = {path.partition("/")[0] for path in sums.read(results)}
    for name in renew:
        if name not in there and not (results / name).is_dir():
            raise BadInput(f"no folder is called {name!r}; --renew takes one of {', '.join(sorted(there)) or 'none'}")


def _lines(folder, update: bool) -> list[str]:
    state = "FAILED" if folder.problems else "ok" if folder.listed else "new"
    told = [folder.holds or "not read", *folder.notes]
    if not folder.problems and (folder.came or not folder.listed):
        told.append(f"{', '.join(folder.came)} {'listed now' if update else 'not listed yet'}".strip())
    lines = [f"{state:7} {folder.name}: {'; '.join(told)}"]
    lines += [f"          {folder.name}/{problem}" for problem in folder.problems[:SHOWN]]
    more = len(folder.problems) - SHOWN
    return lines + ([f"          … and {more} more in {folder.name}"] if more > 0 else [])


def _apart(found) -> list[str]:
    """Whether arms of one protocol version name one hash, and all are of one profile."""
    from ctvlm_lib.ledger.record_checks import version_of

    named: dict[object, dict[str, str]] = {}
    profiles: dict[str, str] = {}
    for folder in found:
        version, digest = version_of(folder.record)
        if digest:
            named.setdefault(version, {}).setdefault(digest, folder.name)
        if folder.record.get("profile"):
            profiles.setdefault(str(folder.record["profile"]), folder.name)
    told = [
        f"FAILED  {' and '.join(those.values())} name protocol version {version} with different sha256"
        for version, those in named.items()
        if len(those) > 1
    ]
    several = ", ".join(f"{profile} ({name})" for profile, name in profiles.items())
    return told + ([f"FAILED  the arms are of several profiles: {several}"] if len(profiles) > 1 else [])


def _summary(found, under, new) -> list[str]:
    failed = [folder.name for folder in found if folder.problems]
    fine = len(found) - len(failed) - len(new)
    lines = [f"{len(found)} folders: {fine} as stored, {len(new)} not listed yet, {len(failed)} failed"]
    lines.append(f"the protocol is {under}")
    notes = Counter(note for folder in found for note in folder.notes)
    lines += [f"{note}: {count} of them" for note, count in sorted(notes.items())]
    if new:
        lines.append(f"not listed yet: {', '.join(folder.name for folder in new)}; `ctvlm verify --update` lists them")
    return lines + ([f"failed: {', '.join(failed)}"] if failed else [])


def _write(results: Path, listed, new) -> None:
    """Tables first, the list last: what isn't listed yet is simply listed by the next call."""
    from ctvlm_lib.alignment.arm_tables import RESULTS
    from ctvlm_lib.ledger import rows, stored_tables, sums

    listed = dict(listed)
    for folder in new:
        if folder.table:
            with atomic_path(results / folder.name / stored_tables.NAME) as partial:
                partial.write_bytes(folder.table.encode())
        if folder.name.startswith("vlm-") and results == RESULTS:  # the ledger's, which knows the shipped questions
            rows.store_scores(results / folder.name)
        listed |= sums.of(results / folder.name)
    if listed != sums.read(results):
        sums.write(results, listed)
