"""Small tables of texts and numbers as compressed arrays: each different text once, the same table the same bytes."""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ctvlm_lib.damaged import load_npz
from ctvlm_lib.errors import BadInput, atomic_path

T = TypeVar("T")


def write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as ``np.savez_compressed`` does, without the time of day; whole or not at all."""
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA  # it finds repeats that lie far apart
            archive.writestr(entry, buffer.getvalue())
    return Path(path)


def read(path: str | Path, make: Callable[[dict[str, np.ndarray]], T], what: str) -> T:
    """Read arrays, none of them of objects, and make something of them.

    Args:
        path: of the file.
        make: from all arrays by name.
        what: the table is of, for the message.

    Raises:
        BadInput: the file isn't there, is damaged, or lacks an array.
    """
    path = Path(path)
    try:
        return make(load_npz(path, texts=True))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BadInput(f"{path.name} can't be read as a table of {what} ({error}); make it again") from None


def coded(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Texts as ``name.values``, each different one once, and ``name.codes``, which of them stands where."""
    values, codes = np.unique(np.array(list(texts), dtype=object), return_inverse=True)
    codes = codes.astype(np.min_scalar_type(max(1, len(values) - 1)))
    return {f"{name}.codes": codes, f"{name}.values": packed(values)}


def decoded(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """What :func:`coded` was given, as an array of objects."""
    return np.array(unpacked(arrays[f"{name}.values"]), dtype=object)[arrays[f"{name}.codes"]]


def packed(texts: Iterable[str]) -> np.ndarray:
    """Texts without zero bytes as one array of bytes."""
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def unpacked(array: np.ndarray) -> list[str]:
    """What :func:`packed` was given."""
    return array.tobytes().decode().split("\0")
