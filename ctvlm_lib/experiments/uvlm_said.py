"""The file of what an arm of U-VLM said: fractions as thousandths, whole numbers and texts as they are."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ctvlm_lib.experiments import table_file

ORGANS = ("liver", "kidney", "spleen")  # whose lesions are looked for in masks, as in table 3
LACKS = np.iinfo(np.int32).min  # in a file: no number


def write_said(said: Mapping[str, np.ndarray], path: Path) -> Path:
    """Write what a model said: fractions as thousandths, whole numbers and texts as they are."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in said.items():
        if value.dtype.kind == "f":
            whole = np.where(np.isfinite(value), np.rint(1000 * np.nan_to_num(value)), LACKS)
            arrays[f"{name}.thousandths"] = whole.astype(np.int32)
        elif value.dtype.kind in "iu":
            arrays[f"{name}.count"] = value.astype(np.int32)
        else:
            arrays[f"{name}.words"] = table_file.packed(map(str, value))
    return table_file.write(path, arrays)


def read_said(path: str | Path) -> dict[str, np.ndarray]:
    """Read what :func:`write_said` wrote.

    Raises:
        BadInput: not such a file.
    """
    read: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "thousandths": lambda one: np.where(one == LACKS, np.nan, one / 1000),
        "count": lambda one: one,
        "words": lambda one: np.array(table_file.unpacked(one), dtype=object),
    }

    def made(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = ((*name.rsplit(".", 1), one) for name, one in arrays.items())
        return {name: read[how](one) for name, how, one in parts}

    return table_file.read(path, made, "what an arm of U-VLM said")
