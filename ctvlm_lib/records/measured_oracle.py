"""The questions on real CTs answered a second time, from their words and the masks, by other and plainer code.

It reads a record's question, choices and marked region, never its answer, and shares nothing with the code that asked
but the names of structures: volumes are counts of labels times the product of the spacings, sides are told in NIfTI's
RAS coordinates against the middle of the body's outline, limits are read out of the choices' own text.
"""

import re
from collections.abc import Iterable

import numpy as np

from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records.measured_wording import called
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume

OUTLINE_HU = -200


def answers_from_masks(records: Iterable[Record], volume: Volume, labels: LabelMap) -> dict[str, str]:
    """Answer each record from the masks alone.

    Args:
        records: of :func:`ctvlm_lib.records.measured.ask_about`, of this CT.
        volume: the CT.
        labels: its masks, on its grid.

    Returns:
        Record's id → answer, one of its choices where it has any.

    Raises:
        BadInput: a question that isn't of these.
    """
    names = {called(name): name for name in labels.names.values()}
    counts = {name: _voxels(name, labels) for name in names.values()}
    voxel_ml = float(np.prod(labels.spacing_mm)) / 1000
    volumes_ml = {name: count * voxel_ml for name, count in counts.items()}
    answers = {}
    for record in records:
        if record.kind == "organ":
            answer = _structure(record, names, counts, labels)
        elif record.kind == "location":
            side = _side(record.region, volume, labels)
            answer = side if record.choices else f"on the {side}"
        elif record.kind == "presence":
            answer = "Yes" if counts[record.region] else "No"
        elif record.kind == "size":
            answer = _size(record, names, volumes_ml)
        else:
            raise BadInput(f"no mask answers {record.question!r} ({record.id}); give records of ask_about")
        answers[record.id] = answer
    return answers


def _voxels(name: str, labels: LabelMap) -> int:
    """Voxels of a structure, counted label by label."""
    if name in labels.overlapping:
        return int(labels.overlapping[name].sum())
    return sum(int((labels.labels == key).sum()) for key, label in labels.names.items() if label == name)


def _structure(record: Record, names: dict[str, str], counts: dict[str, int], labels: LabelMap) -> str:
    """The structure, among the choices or all, whose mask is the marked one voxel by voxel."""
    marked = labels.binary(record.region)
    for words in record.choices or tuple(names):
        name = names[words]
        if counts[name] == counts[record.region] and np.array_equal(labels.binary(name), marked):
            return words
    return "none"


def _side(name: str, volume: Volume, labels: LabelMap) -> str:
    """Left or right of the middle of the body's outline, slice by slice, in RAS: x grows to the patient's right."""
    lefts, mask = 0.0, labels.binary(name)
    for d in np.flatnonzero(mask.any(axis=(1, 2))):
        columns = np.flatnonzero((volume.hu[d] > OUTLINE_HU).sum(axis=0) > 10)
        middle = (columns[0] + columns[-1]) / 2
        at = np.argwhere(mask[d])
        ras = [volume.nifti_affine @ [w, at[:, 0].mean(), d, 1] for w in (at[:, 1].mean(), middle)]
        lefts += len(at) * (ras[1][0] - ras[0][0])
    return "left" if lefts > 0 else "right"


def _size(record: Record, names: dict[str, str], volumes_ml: dict[str, float]) -> str:
    match = re.search(r"\b(larger|smaller)\b", record.question)
    own = volumes_ml[record.region]
    if match is None:
        return _volume_class(own, record.choices) if record.choices else _rounded(own)
    if record.choices:
        by_size = sorted(record.choices, key=lambda words: volumes_ml[names[words]])
        return by_size[-1] if match[1] == "larger" else by_size[0]
    other = names[re.search(r"than (?:that of )?the (.+)\?$", record.question)[1]]
    larger = own > volumes_ml[other]
    return "Yes" if larger == (match[1] == "larger") else "No"


def _volume_class(ml: float, choices: tuple[str, ...]) -> str:
    for words in choices:
        numbers = [float(n) for n in re.findall(r"\d+", words)]
        if words.startswith("up to"):
            numbers = [0, *numbers]
        elif words.startswith("more than"):
            numbers = [*numbers, np.inf]
        if numbers[0] < ml <= numbers[1]:
            return words
    return "none"


def _rounded(ml: float) -> str:
    """To two significant digits, by powers of ten."""
    unit = 10.0 ** (np.floor(np.log10(ml)) - 1)
    return f"about {round(ml / unit) * unit:g} mL"
