"""The answers of questions on real CTs, measured again from voxels and affine by other code than the one that asked."""

from collections.abc import Iterable

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume


def answers_from_masks(records: Iterable[Record], volume: Volume, labels: LabelMap) -> dict[str, str]:
    """Answer closed questions of :mod:`ctvlm_lib.records.measured` again: record id → answer.

    It reads the marked voxels, not the region's name, wherever the question doesn't name it.
    """
    answers = {}
    for record in records:
        if record.form != "closed":
            continue
        if record.kind == "presence":
            asked = [one for one in anatomy.structures() if f"the {said(one)}" in record.question]
            answers[record.id] = "Yes" if max(asked, key=len) in labels.present else "No"
        elif set(record.choices) == {record.region, record.distractor}:
            answers[record.id] = max(record.choices, key=lambda one: np.count_nonzero(labels.binary(one)))
        else:
            answers[record.id] = _from_voxels(record, labels.binary(record.region), volume, labels)
    return answers


def _from_voxels(record: Record, region: np.ndarray, volume: Volume, labels: LabelMap) -> str:
    if record.kind == "organ":
        return max(record.choices, key=lambda one: np.count_nonzero(labels.binary(one) & region))
    if record.kind == "location":
        body = np.argwhere(volume.hu > -300).mean(axis=0)
        here = np.argwhere(region).mean(axis=0)
        return "left" if (volume.mm_of(here) - volume.mm_of(body))[0] > 0 else "right"  # LPS: x grows to the left
    ml = np.count_nonzero(region) * np.prod(volume.spacing_mm) / 1000
    ends = [limits(choice) for choice in record.choices]
    return next(choice for choice, (low, high) in zip(record.choices, ends, strict=True) if low < ml <= high)


def limits(choice: str) -> tuple[float, float]:
    """The smallest and the largest volume, mL, that the words of a size class hold."""
    numbers = [float(word) for word in choice.split() if word.replace(".", "").isdigit()]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    return (numbers[0], np.inf) if choice.startswith("more") else (0.0, numbers[0])


def said(name: str) -> str:
    """A structure's name as it stands in a sentence: the vocabularies have single vertebrae in the plural."""
    return name.replace("vertebrae ", "vertebra ")
