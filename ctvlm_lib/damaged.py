"""What the libraries raise on a damaged file; tables and NumPy's files read without trusting what they claim.

A header of a few bytes can claim 10⁹ voxels. NumPy allocates what it claims before it looks at what there is; here an
array grows with the bytes that are really read.
"""

import io
import lzma
import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ctvlm_lib.errors import BadInput

if TYPE_CHECKING:
    import pandas

NOT_JSON = (ValueError, RecursionError)  # no JSON, no UTF-8, a number of thousands of digits; brackets without end
NOT_TOML = (ValueError, RecursionError)  # likewise
NOT_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)
PACKED_AT_MOST = 1032  # times smaller than its content is what deflate makes; more is claimed, not there

_NOT_NUMPY = (TypeError, SyntaxError, AttributeError, KeyError, IndexError, RecursionError, struct.error,
              tokenize.TokenError, MemoryError)  # fmt: skip
_PART = 1 << 22  # bytes read at a time
_LONGEST_HEADER = 1 << 16  # bytes; one of a plain array has 118


def could_hold(path: Path, size: int, packed: bool) -> bool:
    """Whether a file can hold so many bytes, plain or packed by gzip or zlib; no more than its length is looked at."""
    return size <= path.stat().st_size * (PACKED_AT_MOST if packed else 1)


def unpacked_size(file: BinaryIO, most: int) -> int:
    """How many bytes zlib's stream in the rest of a file holds; counting ends at ``most``, and none are kept.

    Raises:
        zlib.error: the stream is damaged.
    """
    stream, size = zlib.decompressobj(), 0
    while size < most and (packed := stream.unconsumed_tail or file.read(_PART)):
        size += len(stream.decompress(packed, _PART))
    return size


def read_csv(path: Path, columns: Sequence[str] = (), **options) -> "pandas.DataFrame":
    """Read a table that an earlier run left.

    Args:
        path: of the CSV.
        columns: that it must have.
        options: of ``pandas.read_csv``.

    Raises:
        BadInput: no such file, no table, or one without these columns.
    """
    import pandas

    where = f"{path.parent.name}/{path.name}"
    try:
        table = pandas.read_csv(path, **options)
    except (OSError, ValueError) as error:  # what pandas raises on a damaged table are kinds of these
        raise BadInput(f"{where} can't be read as a table ({error}); restore it, or run the arm again") from None
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise BadInput(f"{where} has no column {', '.join(lacking)}; restore it, or run the arm again")
    return table


def load_npy(path: str | Path) -> np.ndarray:
    """Read an ``.npy`` file of numbers or truth values.

    Raises:
        OSError: it can't be opened.
        ValueError: anything else that is wrong with it.
    """
    with open(path, "rb") as file:
        return _array(file)


def map_npy(path: str | Path) -> np.ndarray:
    """The numbers of an ``.npy`` file, read when they are looked at; raises as :func:`load_npy`."""
    with open(path, "rb") as file:
        shape, fortran, dtype = _numbers(file)
        place = file.tell()
    return np.memmap(path, dtype, "r", place, shape, "F" if fortran else "C")  # a ValueError if the file is too short


def load_npz(path: str | Path, texts: bool = False) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file, of numbers, truth values or, where they are expected, texts.

    Raises:
        OSError: it can't be opened.
        ValueError: anything else that is wrong with it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    found[entry.filename.removesuffix(".npy")] = _array(file, texts)
            return found
    except NOT_ZIP as error:
        raise ValueError(f"no whole archive: {error}") from error


def _array(file: BinaryIO, texts: bool = False) -> np.ndarray:
    shape, fortran, dtype = _numbers(file, texts)
    wanted, content = math.prod(shape) * dtype.itemsize, bytearray()
    while part := file.read(min(_PART, wanted - len(content))):
        content += part
    if len(content) < wanted or file.read(1):
        there = f"{len(content):,} are there" if len(content) < wanted else "there are more"
        raise ValueError(f"{wanted:,} bytes of numbers are expected, and {there}")
    if dtype.kind == "U" and np.frombuffer(content, dtype.str[0] + "u4").max(initial=0) > sys.maxunicode:
        raise ValueError("texts of numbers that aren't letters")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _numbers(file: BinaryIO, texts: bool = False) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type that a header claims."""
    try:
        shape, fortran, dtype = _header(file)  # a Python literal: NumPy raises whatever reading one raises
    except _NOT_NUMPY as error:
        raise ValueError(f"no header of NumPy: {type(error).__name__}") from error
    if dtype.kind not in ("biufU" if texts else "biuf"):
        raise ValueError(f"an array of {dtype}, and numbers{' or texts' * texts} are expected")
    return shape, fortran, dtype


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # its length has four bytes, for which NumPy would make room
        length = file.read(4)
        if version not in ((2, 0), (3, 0)) or int.from_bytes(length, "little") > _LONGEST_HEADER:
            raise ValueError(f"a header of version {version} or a length that NumPy doesn't write")
        head = length + file.read(int.from_bytes(length, "little"))
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(io.BytesIO(head))
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return tuple(map(int, shape)), fortran, dtype
