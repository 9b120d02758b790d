"""The protocol's cohort as experiments read it: scans and questions of every split, in one fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass

from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.records.record import Record

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans and records by split.

    Attributes:
        profile: that says how many patients.
        scans: split → scans.
        records: split → all its questions. They are balanced over the three splits together, so that a file of answers
            refers to the same list wherever it is read.
        patients: split → patients, for readers of masks.
    """

    profile: str
    scans: dict[str, Scans]
    records: dict[str, list[Record]]
    patients: dict[str, Sequence[Patient]]

    @classmethod
    def of(cls, profile: str = "quick", splits: Sequence[str] = SPLITS) -> "Cohort":
        """Draw the protocol's patients, or read them from the cache, and ask about them.

        Args:
            profile: quick, full or paper.
            splits: whose scans are kept; the questions need the patients of all three.
        """
        fixed = protocol.load()
        patients = {split: list(fixed.patients(split, profile)) for split in SPLITS}
        asked = fixed.records(patients)
        records = {split: [record for record in asked if record.split == split] for split in SPLITS}
        kept = {split: patients[split] for split in splits}
        return cls(profile, {split: Scans.of(those) for split, those in kept.items()}, records, kept)

    def questions(self, split: str, *, kinds: Sequence[str] = (), form: str = "", patients: int = 0) -> list[Record]:
        """Some of a split's questions.

        Args:
            split: which.
            kinds: of question; () takes all.
            form: "closed", "open", or "" for both.
            patients: the first so many, or all where there are fewer; 0 takes all.

        Raises:
            BadInput: a negative number of patients.
        """
        if patients < 0:
            raise BadInput(f"questions of {patients} patients are asked for; give how many, or 0 for all")
        names = set(self.scans[split].names[: patients or None])
        return [
            record
            for record in self.records[split]
            if record.patient in names and (not kinds or record.kind in kinds) and form in ("", record.form)
        ]
