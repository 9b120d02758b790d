"""The protocol: what is fixed before any model is scored, read from ``data_samples/protocol.toml``.

One place says who is in the cohort, how large findings are, which conditions are compared and how. Whatever is trained
or scored takes its patients and its records from here, so that no notebook has a cohort of its own. The differences
that are judged stand in ``ctvlm_lib/ledger/contrasts.csv``, which belongs to the protocol.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ctvlm_lib import assets
from ctvlm_lib.damaged import NOT_TOML
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import phantom
from ctvlm_lib.records.balance import balance
from ctvlm_lib.records.blind import BlindScore, OracleScore, blind
from ctvlm_lib.records.phantom import FindingRange, Patient, PoseRange
from ctvlm_lib.records.questions import ask
from ctvlm_lib.records.record import Record

PATH = Path(__file__).resolve().parents[2] / "data_samples" / "protocol.toml"
SPLITS = ("train", "validation", "test", "external")
_SECTIONS = ("version", "fixed", "changes", "cohort", "split", "questions", "seeds", "conditions", "metrics",
             "multiple_comparisons", "tables", "controls", "calibration", "abstention", "limits")  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """The protocol as read; ``content`` is the whole file as a dictionary."""

    content: dict

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the cohort's volumes, voxels."""
        return tuple(self.content["cohort"]["shape"])

    def seeds(self, profile: str = "quick") -> tuple[int, ...]:
        """Training seeds of a profile; ``paper`` takes those of ``full``."""
        return tuple(self.content["seeds"][_sizes_of(profile)])

    def size(self, split: str, profile: str = "quick") -> int:
        """Number of patients of a split in a profile."""
        return int(self._split(split)[_sizes_of(profile)])

    def patients(
        self,
        split: str,
        profile: str = "quick",
        *,
        n: int | None = None,
        shape: tuple[int, int, int] | None = None,
        cache: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Patient]:
        """Give a split's patients one at a time, drawn once and then read from the cache.

        Args:
            split: train, validation, test or external.
            profile: says how many; a larger profile's cohort begins with the smaller one's patients.
            n: the first ``n`` only, at most the split's size in profile full.
            shape: (D, H, W) of the same patients on another grid; None is the protocol's.
            cache: folder for drawn patients; None takes the workbook's cache.
            progress: called with (done, n) after each patient.

        Raises:
            BadInput: no such split or profile, or more patients than the protocol has.
        """
        entry, most = self._split(split), self.size(split, "full")
        n = self.size(split, profile) if n is None else n
        if n > most:
            raise BadInput(f"the protocol has {most} {split} patients, got n={n}; more would be another cohort")
        made = {"pose": self._pose(), "findings": self._findings(), "phases": self.content["cohort"]["phases"]}
        folder = assets.cache_dir() / "cohort" if cache is None else cache
        return phantom.cohort(
            n, entry["seed"], shape or self.shape, entry["scanner"], cache=folder, progress=progress, **made
        )

    def records(self, patients: dict[str, Iterable[Patient]]) -> list[Record]:
        """Ask about the patients of each split, and balance all of it together.

        Args:
            patients: split → its patients. "external" patients get the split "test": call once more for them, without
                "test", so that the two are never pooled.

        Raises:
            BadInput: test and external patients in one call, or no patient in a split.
        """
        if {"test", "external"} <= set(patients):
            raise BadInput("test and external patients are asked about separately; call records once for each")
        seed, asked = self.content["questions"]["seed"], []
        for split, those in patients.items():
            self._split(split)
            asked += ask(those, "test" if split == "external" else split, seed=seed)
        return balance(asked, seed)

    def blind(self, records: Iterable[Record]) -> list[BlindScore]:
        """Score the blind readers at the protocol's level, shared out over all groups (Bonferroni)."""
        metrics, records = self.content["metrics"], list(records)
        groups = {(r.kind, r.form, r.names_region) for r in records if r.kind != "report" and r.split == "test"}
        level = 1 - (1 - metrics["confidence"]) / max(1, len(groups))
        # a percentile so far out needs more draws than one at 95 %
        return blind(records, confidence=level, resamples=10 * metrics["resamples"])

    def check(self, blind_scores: Iterable[BlindScore], oracle_scores: Iterable[OracleScore]) -> list[str]:
        """What the cohort fails to show, a sentence each; empty if a model's score on it means something."""
        least = self.content["limits"]["oracle"]
        problems = [
            f"a blind reader of {_group(s)} scores {s.bag_of_words:.2f} ({s.low:.2f} to {s.high:.2f}),"
            f" and chance is {s.chance:.2f}"
            for s in blind_scores
            if not s.at_chance
        ]
        return problems + [
            f"the oracle answers {_group(s)} in {s.accuracy:.3f} of the cases, below {least:g}"
            for s in oracle_scores
            if s.accuracy < least
        ]

    def _split(self, split: str) -> dict:
        if split not in self.content["split"]:
            raise BadInput(f"no split is called {split!r}; the protocol has {', '.join(self.content['split'])}")
        return self.content["split"][split]

    def _pose(self) -> PoseRange:
        pose = self.content["cohort"]["pose"]
        return PoseRange(**pose | {"scale": tuple(pose["scale"])})

    def _findings(self) -> FindingRange:
        cohort = self.content["cohort"]
        radii = {kind: tuple(values) for kind, values in cohort["radius_mm"].items()}
        plain = {key: cohort[key] for key in ("prevalence", "effusion", "cardiomegaly", "border_vox")}
        return FindingRange(radius_mm=radii, **plain)


def check_budget(patients: int, there: int) -> None:
    """Raise BadInput unless so many training patients can be learnt from; 0 takes all.

    Args:
        patients: of a recipe, the first so many.
        there: how many the cohort has.
    """
    if not 0 <= patients <= there:
        raise BadInput(
            f"{patients} patients to learn from, but there are {there}; give 1 to that, or 0 for all (profile full has"
            " the most)"
        )


@cache
def load(path: str | Path = PATH) -> Protocol:
    """Read the protocol and check that it is whole.

    Raises:
        BadInput: the file isn't there, isn't TOML, or lacks a section or a split.
    """
    path = Path(path)
    content = content_of(path, (*_SECTIONS, *(f"split.{name}" for name in SPLITS)))
    try:
        made = [int(entry["seed"]) for entry in content["split"].values()]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadInput(f"{path.name} has a split without a whole number as seed; give each its own") from None
    if len(set(made)) < len(made):
        raise BadInput(f"{path.name}: two splits have the same seed, so the same patients; give each its own")
    return Protocol(content)


def content_of(path: Path, sections: Iterable[str]) -> dict:
    """Read a protocol's file and check that its sections are there.

    Args:
        path: of the file.
        sections: "name", or "name.part" for a part of one.

    Raises:
        BadInput: the file isn't there, isn't TOML, or lacks one of them.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"there is no protocol {path.name} ({error.strerror}); nothing is scored without one") from None
    except NOT_TOML as error:
        raise BadInput(f"{path.name} isn't TOML: {error}") from None
    pairs = [(name, *name.partition(".")[::2]) for name in sections]
    missing = [
        name for name, first, part in pairs if not _has(content, first) or (part and not _has(content[first], part))
    ]
    if missing:
        raise BadInput(f"{path.name} lacks {', '.join(missing)}; a protocol fixes all of it before anything is scored")
    return content


def _has(table: object, name: str) -> bool:
    return isinstance(table, dict) and name in table


def own(path: Path, sections: Iterable[str]) -> dict:
    """Read the protocol of arms that have one of their own, with contrasts to be judged.

    Args:
        path: of the file.
        sections: see :func:`content_of`; "version", "scoring" and "contrast" have to be there anyway.

    Raises:
        BadInput: as :func:`content_of`, or a contrast is named twice.
    """
    content = content_of(path, ("version", *sections, "scoring", "contrast"))
    try:
        names = [str(contrast["name"]) for contrast in content["contrast"]]
    except (LookupError, TypeError):
        raise BadInput(f"{path.name} has a contrast without a name; write each as [[contrast]] with one") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path.name} has the contrast {twice[0]!r} twice; give each its own name")
    return content


def _sizes_of(profile: str) -> str:
    if profile not in ("quick", "full", "paper"):
        raise BadInput(f"unknown profile {profile!r}; choose one of quick, full, paper")
    return "quick" if profile == "quick" else "full"


def _group(score) -> str:
    stratum = "that name the region" if score.names_region else "that don't name a region"
    return f"{getattr(score, 'form', 'closed')} {score.kind} questions {stratum}"
