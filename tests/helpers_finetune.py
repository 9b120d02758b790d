"""What the tests of finetuning share: a few small phantoms as a cohort, and lessons for the tiny model."""

from functools import cache

import numpy as np
import torch
from helpers_vlm import SIZE, tiny

from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.records import phantom
from ctvlm_lib.records.balance import balance
from ctvlm_lib.records.questions import ask
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.lessons import Lesson, Lessons

ORGANS = ("liver", "spleen", "heart", "left kidney")


@cache
def small_cohort() -> Cohort:
    """Eight patients to learn from and four to be asked about."""
    patients = {"train": tuple(phantom.cohort(8, seed=5)), "validation": tuple(phantom.cohort(4, seed=6))}
    asked = balance([r for split, those in patients.items() for r in ask(those, split, seed=0)], 0)
    records = {split: [r for r in asked if r.split == split] for split in patients}
    return Cohort("quick", {split: Scans.of(those) for split, those in patients.items()}, records, patients)


def record(number: int, answer: str = "Yes", question: str = "Is there a mass?", choices=()) -> Record:
    """A question about the patient with a number."""
    return Record(
        id=f"q{number}-{question}-{answer}", dataset="phantom", patient=f"p{number}", split="train", volume="v.nii.gz",
        mask=None, region="liver", distractor=None, kind="presence", form="closed" if choices or answer in ("Yes", "No")
        else "open", question=question, answer=answer, choices=tuple(choices), names_region=False, style="plain",
    )  # fmt: skip


def lessons(count: int = 6) -> list[Lesson]:
    """Pictures with three questions each, of different lengths."""
    return [
        Lesson(
            f"p{k}",
            (
                record(k, "Yes" if k % 2 else "No"),
                record(k, ORGANS[k % 4], "Which organ is it?", ORGANS),
                record(k, f"a mass in the {ORGANS[k % 4]}", "What is within the blue-outlined area, and where?"),
            ),
        )
        for k in range(count)
    ]


def school(seed: int = 0, count: int = 6):
    """The tiny model with its encoder frozen, its processor, lessons and their features."""
    model, processor = tiny(seed=seed)
    model.freeze()
    taught = lessons(count)
    noise = {one.key: torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(k)) * 2 - 1
             for k, one in enumerate(taught)}  # fmt: skip
    kept = FeatureCache.of(model, [one.key for one in taught], lambda key: noise[key].numpy().astype(np.float32))
    return model, processor, Lessons(processor, taught), kept
