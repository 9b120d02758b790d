"""What a run record has to say: who made an arm, how, under which protocol, and with which weights."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ctvlm_lib.alignment.arm_tables import name_and_seed
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import FILES, as_it_stands
from ctvlm_lib.run import PROFILES

NAME = "record.json"
WEIGHTS = "model.safetensors"
_SAME = ("config", "seed", "profile", "validation", "test", "finetuning")  # of an arm and of its shipped checkpoint


@dataclass(frozen=True)
class Under:
    """The protocol that records are compared with.

    Attributes:
        version, sha256: of it and its contrasts.
        changes: the versions that it says the changes of.
    """

    version: int
    sha256: str
    changes: frozenset[int]

    @classmethod
    def of(cls, files: tuple[Path, ...] = FILES) -> "Under":
        """Read the protocol and its contrasts."""
        standing, changes = as_it_stands(files), protocol.load(files[0]).content["changes"]
        return cls(standing.version, standing.sha256, frozenset(change["version"] for change in changes))

    def __str__(self) -> str:
        return f"version {self.version}, sha256 {self.sha256[:12]}…"


def read(folder: Path) -> tuple[dict, list[str]]:
    """The record of an arm, and what is wrong with the file."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        return {}, [f"{NAME}: can't be read ({type(error).__name__}); restore it"]
    return (content, []) if isinstance(content, dict) else ({}, [f"{NAME}: isn't a record; restore it"])


def version_of(record: dict) -> tuple[int | None, str]:
    """Version and hash of the protocol that a record names; encoders' records have no hash."""
    named = record.get("protocol")
    if isinstance(named, dict):
        return named.get("version"), named.get("sha256") or ""
    data = record.get("data")
    return (data.get("protocol") if isinstance(data, dict) else None), ""


def problems(name: str, record: dict, answers: bool) -> list[str]:
    """Fields that a record lacks, or that can't be so.

    Args:
        name: of the folder.
        record: as read.
        answers: whether the arm has answers, whose records tell more.
    """
    wanted = ("profile", "seed", "hardware", *(("commit", "protocol", "rows") if answers else ("data", "test")))
    told = [f"{NAME}: lacks {field}" for field in wanted if record.get(field) in (None, "", {}, [])]
    version, digest = version_of(record)
    if not isinstance(version, int):
        told.append(f"{NAME}: lacks the protocol's version")
    elif answers and len(digest) != 64:
        told.append(f"{NAME}: lacks the protocol's sha256")
    if "profile" in record and record["profile"] not in PROFILES:
        told.append(f"{NAME}: its profile is {record['profile']!r} instead of one of {', '.join(PROFILES)}")
    seed = name_and_seed(name)[1]
    if "seed" in record and record["seed"] != seed:
        told.append(f"{NAME}: its seed is {record['seed']!r}, and the folder's name says {seed}")
    return told


def against_protocol(record: dict, under: Under) -> tuple[list[str], list[str]]:
    """What differs from the protocol: (what makes the arm wrong, what is only to be told)."""
    version, digest = version_of(record)
    if not isinstance(version, int):
        return [], []
    if version > under.version:
        return [f"{NAME}: protocol version {version}, and the protocol here is {under.version}; take the newer one"], []
    if version == under.version:
        if digest and digest != under.sha256:
            why = "one of the two was changed without a new version"
            return [
                f"{NAME}: protocol sha256 {digest[:12]}… instead of {under.sha256[:12]}… of the same version"
                f" {version}; {why}"
            ], []
        return [], []
    untold = sorted(set(range(version + 1, under.version + 1)) - under.changes)
    if untold:
        why = f"and the protocol doesn't say what version {untold[0]} changed"
        return [f"{NAME}: protocol version {version}, {why}"], []
    return [], [f"protocol version {version} instead of {under.version}"]


def circumstances(record: dict) -> list[str]:
    """What a reader should know of the code that made an arm."""
    commit = record.get("commit") or ""
    if not commit:
        return ["no commit recorded"]
    return ["code with uncommitted changes"] if str(commit).endswith("+changes") else []


def against_checkpoint(name: str, record: dict, folder: Path | None) -> list[str]:
    """Whether the shipped checkpoint of this name, if there is one, is the model that was scored."""
    home = folder / name if folder else None
    if home is None or not (home / WEIGHTS).is_file():
        return []
    shipped, told = read(home)
    if told:
        return [f"{NAME}: the shipped checkpoint's own record can't be read; restore checkpoints/{name}"]
    digest = hashlib.sha256((home / WEIGHTS).read_bytes()).hexdigest()
    of_record = record.get("weights") or shipped.get("weights") or {}
    if of_record.get("sha256") != digest:
        said = str(of_record.get("sha256"))[:12]
        return [f"{NAME}: weights with sha256 {said}…, and checkpoints/{name}/{WEIGHTS} has {digest[:12]}…"]
    other = [field for field in _SAME if field in record and field in shipped and record[field] != shipped[field]]
    return [f"{NAME}: {field} isn't that of checkpoints/{name}" for field in other]
