"""A cohort for local and global alignment: what of a region lies in which token, and all texts as vectors.

Each patient has a report and a sentence for each of the ten regions, both as they were written and enriched
(:mod:`ctvlm_lib.alignment.enrichment`), and the labels of zero-shot detection: 18 of the volume, and for each region
the kinds of finding that it could show.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ctvlm_lib.alignment.enrichment import absent, present, region_statement, report_statement
from ctvlm_lib.alignment.scans import Scans, as_input, kinds_of
from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.alignment.tokens import shares
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.zero_shot import text_pairs
from ctvlm_lib.mask import bounding_box
from ctvlm_lib.records.phantom import LOBES, REGIONS, Patient
from ctvlm_lib.records.report import LABELS, abnormality_labels, report

NOTHING = "-"  # in the place of a sentence of a region outside the field
LOCAL_LABELS = tuple((region, kind) for region in REGIONS for kind in kinds_of(region)[1:])
# what a local label is scored as: the same kind in all lobes, or in all organs
GROUPS = tuple(dict.fromkeys(("lung" if r in LOBES else "organ", kind) for r, kind in LOCAL_LABELS))
AIR_HU = -1000


@dataclass(frozen=True, eq=False)
class Grounded:
    """Patients with what is said of each region.

    Attributes:
        scans: HU, regions and findings.
        sentences: ``n`` rows of ten, NOTHING where the region isn't in the field.
        there: bool ``(n, 10)``: the region is in the field and has a sentence.
        labels: bool ``(n, 18)``, of the volume, in the order of ``LABELS``.
    """

    scans: Scans
    sentences: tuple[tuple[str, ...], ...]
    there: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scans)

    @classmethod
    def of(cls, patients: Iterable[Patient]) -> "Grounded":
        """Read patients' reports and labels.

        Raises:
            BadInput: no patients, of different sizes, or a report without any region's sentence.
        """
        patients = list(patients)
        scans, rows, labels = Scans.of(patients), [], []
        for patient in patients:
            regions = report(patient).regions
            row = tuple(regions.get(region, NOTHING) for region in REGIONS)
            if set(row) == {NOTHING}:
                raise BadInput(f"the report of {patient.name} says nothing of any region; leave the patient out")
            rows.append(row)
            labels.append([abnormality_labels(patient)[label] for label in LABELS])
        there = np.array([[sentence != NOTHING for sentence in row] for row in rows]) & (scans.found >= 0)
        return cls(scans, tuple(rows), there, np.array(labels))

    @property
    def region_labels(self) -> np.ndarray:
        """bool ``(n, 50)``, in the order of ``LOCAL_LABELS``; False where the region isn't in the field."""
        possible = [np.arange(1, len(kinds_of(region))) for region in REGIONS]
        return np.concatenate([self.scans.found[:, [r]] == kinds for r, kinds in enumerate(possible)], axis=1)

    def share(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """float32 ``(n, 10, tokens)``: of each token's voxels those in each region."""
        return torch.from_numpy(shares(self.scans.region, len(REGIONS) + 1, grid)[:, 1:])


@dataclass(frozen=True, eq=False)
class Texts:
    """All texts of a split as vectors, float32, of the text tower.

    Attributes:
        report, enriched_report: ``(n, channels)``.
        region, enriched_region: ``(n, 10, channels)``.
        same_region: int ``(n, 10)``: regions with the same enriched sentence have the same number.
    """

    report: torch.Tensor
    enriched_report: torch.Tensor
    region: torch.Tensor
    enriched_region: torch.Tensor
    same_region: torch.Tensor

    @classmethod
    def of(cls, cohort: Grounded, tower: TextTower) -> "Texts":
        """Embed them; each different text is computed once and kept on disk."""
        enriched = [
            [NOTHING if s == NOTHING else region_statement(s, r) for s, r in zip(row, REGIONS, strict=True)]
            for row in cohort.sentences
        ]
        reports = list(cohort.scans.reports)
        number = {text: k for k, text in enumerate(dict.fromkeys(sum(enriched, [])))}
        return cls(
            tower.embed(reports),
            tower.embed([report_statement(text) for text in reports]),
            _in_rows(tower, cohort.sentences),
            _in_rows(tower, enriched),
            torch.tensor([[number[text] for text in row] for row in enriched]),
        )

    def all(self) -> torch.Tensor:
        """Every vector in one list ``(texts, channels)``, to find their centre."""
        flat = (self.region.flatten(0, 1), self.enriched_region.flatten(0, 1))
        return torch.cat([self.report, self.enriched_report, *flat])


@dataclass(frozen=True, eq=False)
class Prompts:
    """The pairs of sentences of zero-shot detection as vectors, in the order of ``LABELS`` and of ``LOCAL_LABELS``."""

    present: torch.Tensor
    absent: torch.Tensor
    local_present: torch.Tensor
    local_absent: torch.Tensor

    @classmethod
    def of(cls, tower: TextTower) -> "Prompts":
        """Embed them."""
        local = [present(kind, region) for region, kind in LOCAL_LABELS]
        denied = [absent(kind, region) for region, kind in LOCAL_LABELS]
        return cls(*(tower.embed(texts) for texts in (*text_pairs(LABELS), local, denied)))


def cropped(cohort: Grounded, patient: int, region: int) -> np.ndarray:
    """A region cut out along its bounding box and centred in a field of air, as global models are asked about regions.

    Args:
        cohort: the patients.
        patient, region: numbers; the region has to be in the field.

    Returns:
        float32 ``(1, D, H, W)``, an encoder's input.

    Raises:
        BadInput: the region isn't in the field.

    Source: medvista3d.txt §4.2: "we crop the CT volume to the segmentation mask and perform padding".
    """
    mask = cohort.scans.region[patient] == region + 1
    if not mask.any():
        raise BadInput(f"the {REGIONS[region]} of {cohort.scans.names[patient]} isn't in the field; leave it out")
    box, size = bounding_box(mask), mask.shape
    field = np.full(size, AIR_HU, np.int16)
    sides = [where.stop - where.start for where in box]
    to = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(size, sides, strict=True))
    field[to] = cohort.scans.hu[patient][box]
    return as_input(field)[None]


@torch.inference_mode()
def stem_tokens(stem: torch.nn.Module, images: Callable[[np.ndarray], np.ndarray], count: int, batch: int = 25):
    """A frozen encoder's low tokens of many volumes, float16 ``(count, tokens, channels)``.

    Args:
        stem: with ``encode``; put into evaluation mode.
        images: indices → float32 ``(B, 1, D, H, W)``.
        count: how many volumes.
        batch: at a time.
    """
    stem.eval()
    device, parts = next(stem.parameters()).device, []
    for start in range(0, count, batch):
        some = images(np.arange(start, min(start + batch, count)))
        parts.append(stem.encode(torch.from_numpy(some).to(device))[0][-2].half().cpu())
    return torch.cat(parts)


def _in_rows(tower: TextTower, rows: Iterable[Iterable[str]]) -> torch.Tensor:
    rows = [list(row) for row in rows]
    return tower.embed(sum(rows, [])).unflatten(0, (len(rows), len(REGIONS)))
