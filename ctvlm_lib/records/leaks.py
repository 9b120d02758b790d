"""Leaks: what lies in several splits, and so lets a model be tested on what it has seen."""

import gzip
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.record import Record
from ctvlm_lib.records.similar import near_duplicates

# These take their scans from another data set, so the same name is the same patient there.
SAME_SCANS = {"RadGenome-ChestCT": "CT-RATE", "ReXGroundingCT": "CT-RATE", "M3D-VQA": "M3D-Cap"}
_RECONSTRUCTION = re.compile(r"(?P<scan>(?:train|valid)_\d+_[a-z]+)_\d+")  # CT-RATE: split_patient_scan_reconstruction


@dataclass(frozen=True)
class Leak:
    """Something that is in several splits.

    Attributes:
        what: "id", "patient", "volume", "scan", "content" or "text".
        name: which one.
        splits: where it is.
        records: ids of one record in each of these splits.
    """

    what: str
    name: str
    splits: tuple[str, ...]
    records: tuple[str, ...]

    def __str__(self) -> str:
        told = {"content": "volumes with the hash", "scan": "reconstructions of scan", "text": "near-duplicate texts"}
        where = " and ".join(self.splits)
        return f"{told.get(self.what, self.what)} {self.name} in {where} (records {', '.join(self.records)})"


def check_leaks(
    records: Iterable[Record],
    volume_hash: Callable[[Record], str] | None = None,
    text_similarity: float | None = 0.9,
    shown: int = 3,
    **options,
) -> None:
    """Refuse records of which something lies in several splits; see :func:`find_leaks`.

    Raises:
        BadInput: naming the first ``shown`` leaks of each sort.
    """
    leaks = find_leaks(records, volume_hash, text_similarity, **options)
    if not leaks:
        return
    sorts = defaultdict(list)
    for leak in leaks:
        sorts[leak.what].append(str(leak))
    told = []
    for found in sorts.values():
        more = f" and {len(found) - shown} more" if len(found) > shown else ""
        told.append(", ".join(found[:shown]) + more)
    raise BadInput(f"the splits leak: {'; '.join(told)}; split again by patient, or remove one side")


def find_leaks(
    records: Iterable[Record],
    volume_hash: Callable[[Record], str] | None = None,
    text_similarity: float | None = 0.9,
    *,
    text: Callable[[Record], str] | None = None,
    min_words: int = 20,
) -> list[Leak]:
    """List what lies in several splits: ids, patients, volumes, scans, voxels, near-duplicate reports.

    Names are compared within a data set, and between those that share their scans (``SAME_SCANS``).

    Args:
        records: with their splits.
        volume_hash: gives a volume's content hash, e.g. ``file_hash(root)``; asked once a volume. None leaves it out.
        text_similarity: Jaccard index of five-word runs from which two texts count as near duplicates; None leaves it
            out. Two healthy patients may have the same report by rights: look before something is removed.
        text: which text of a record to compare, "" for none; by default the answer of a report.
        min_words: shorter texts are alike by chance and are left out.

    Returns:
        The leaks, in the order id, patient, volume, scan, content, text.
    """
    records = list(records)
    leaks = []
    for what, name in (("id", _id), ("patient", patient_of), ("volume", _volume), ("scan", _scan)):
        leaks += _across(what, records, name)
    if volume_hash is not None:
        hashes = {}
        for record in records:
            if _volume(record) not in hashes:
                hashes[_volume(record)] = volume_hash(record)
        leaks += _across("content", records, lambda record: ("", hashes[_volume(record)]))
    if text_similarity is not None:
        leaks += _text_leaks(records, text or _report, text_similarity, min_words)
    return leaks


def file_hash(root: str | Path) -> Callable[[Record], str]:
    """Give a function from a record to the SHA-256 of its volume's file, for :func:`find_leaks`.

    A ``.gz`` file is unpacked first, because its header holds a time: two copies of one volume are then the same.

    Args:
        root: the data set's folder.
    """

    def digest(record: Record) -> str:
        path = Path(root) / record.volume
        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, EOFError) as error:
            raise BadInput(f"the volume {record.volume} of record {record.id} can't be read: {error}") from None

    return digest


def _family(record: Record) -> str:
    return SAME_SCANS.get(record.dataset, record.dataset)


def _id(record: Record) -> tuple[str, str]:
    return record.dataset, record.id


def patient_of(record: Record) -> tuple[str, str]:
    return _family(record), record.patient


def _volume(record: Record) -> tuple[str, str]:
    return _family(record), record.volume


def _scan(record: Record) -> tuple[str, str] | None:
    """The scan that a volume is a reconstruction of, by CT-RATE's names; None for any other name."""
    found = _RECONSTRUCTION.fullmatch(PurePosixPath(record.volume).name.split(".")[0])
    return (_family(record), found["scan"]) if found else None


def _report(record: Record) -> str:
    return record.answer if record.kind == "report" else ""


def _across(what: str, records: list[Record], name: Callable[[Record], tuple[str, str] | None]) -> list[Leak]:
    """What a name finds in several splits, in the order in which the names first appear."""
    seen = defaultdict(dict)
    for record in records:
        if (key := name(record)) is not None:
            seen[key].setdefault(record.split, record.id)
    return [Leak(what, key[1], tuple(ids), tuple(ids.values())) for key, ids in seen.items() if len(ids) > 1]


def _text_leaks(records: list[Record], text: Callable[[Record], str], threshold: float, min_words: int) -> list[Leak]:
    if not 0 < threshold <= 1:
        raise BadInput(f"text_similarity is {threshold}; expected above 0, at most 1, or None")
    compared = [(record, text(record)) for record in records]
    compared = [(record, words) for record, words in compared if len(words.split()) >= min_words]
    leaks = []
    for i, j, alike in near_duplicates([words for _, words in compared], threshold, [r.split for r, _ in compared]):
        pair = compared[i][0], compared[j][0]
        name = f"({alike:.2f} alike)"
        leaks.append(Leak("text", name, tuple(r.split for r in pair), tuple(r.id for r in pair)))
    return leaks
