"""A GGUF file of llama.cpp as plain values and float32 arrays, read in one pass.

    header   "GGUF", version, number of tensors, number of values
    values   key, type, value: sizes of the network, the vocabulary, the chat template …
    tensors  name, sides, type, place; then, aligned, their numbers

Quantised numbers come in blocks of 32 that share a scale d, and in Q4_1 a least value m:

    Q4_1   d, m float16, 16 bytes     x_i = d q_i + m, q_i in 0…15: the low halves of the bytes, then the high ones
    Q8_0   d float16, 32 bytes        x_i = d q_i, q_i in −128…127

transformers reads the same with ``gguf_file=``, through a general parser that takes ten times as long; a test compares.

Source: the GGUF specification in ggml's repository (docs/gguf.md), version 3; ggml-quants for the blocks.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ctvlm_lib.errors import BadInput

MAGIC, VERSIONS = b"GGUF", (2, 3)
BLOCK = 32  # numbers that share a scale
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# type's number → its name, numbers in a block, and the block's bytes
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", BLOCK, 20), 8: ("Q8_0", BLOCK, 34)}


@dataclass(frozen=True, eq=False)
class Gguf:
    """What a file holds.

    Attributes:
        values: key → number, truth value, text, or list of these.
        tensors: name → float32 array, the slowest axis first, as PyTorch has it.
    """

    values: dict[str, object]
    tensors: dict[str, np.ndarray]


def read(path: str | Path) -> Gguf:
    """Read a file whole.

    Args:
        path: of a little-endian file with tensors of types F32, F16, Q4_1 and Q8_0.

    Raises:
        BadInput: no such file, no GGUF, another version or type, or a file that is cut off.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}; give a GGUF file") from error
    if content[:4] != MAGIC:
        raise BadInput(f"{path.name} begins with {content[:4]!r}, not {MAGIC!r}; give a GGUF file")
    reader = _Reader(content, 4)
    try:
        version = reader.scalar("I")
        if version not in VERSIONS:
            raise BadInput(f"{path.name} is GGUF version {version}; give one of version 2 or 3, little-endian")
        tensors, values = reader.scalar("Q"), reader.scalar("Q")
        found = {}
        for _ in range(values):
            key, kind = reader.string(), reader.scalar("I")
            found[key] = reader.value(kind)
        table = [reader.entry() for _ in range(tensors)]
        start = _aligned(reader.at, int(found.get("general.alignment", 32)))
        return Gguf(found, {name: _numbers(content, name, start + at, *rest) for name, at, *rest in table})
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise BadInput(f"{path.name} is cut off or damaged ({error}); fetch it again") from error


class _Reader:
    """Walks through a file's values."""

    def __init__(self, content: bytes, at: int):
        self.content, self.at = content, at

    def scalar(self, code: str):
        return self.many(code, 1)[0]

    def many(self, code: str, count: int) -> tuple:
        form = f"<{count}{code}"
        found = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return found

    def string(self) -> str:
        length = self.scalar("Q")
        text = self.content[self.at : self.at + length]
        if len(text) < length:
            raise IndexError("a text reaches beyond the end")
        self.at += length
        return text.decode("utf-8")

    def value(self, kind: int):
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner in _SCALARS:
                return list(self.many(_SCALARS[inner], count))
            return [self.value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise BadInput(f"a GGUF value has type {kind}, which version 3 doesn't have; fetch the file again")
        return self.scalar(_SCALARS[kind])

    def entry(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, place, shape and type of one tensor."""
        name, sides = self.string(), self.scalar("I")
        shape = self.many("Q", sides)[::-1]  # the file names the fastest axis first
        kind, at = self.scalar("I"), self.scalar("Q")
        return name, at, shape, kind


def _numbers(content: bytes, name: str, at: int, shape: tuple[int, ...], kind: int) -> np.ndarray:
    """One tensor as float32."""
    if kind not in _TYPES:
        known = ", ".join(known for known, *_ in _TYPES.values())
        raise BadInput(f"tensor {name} has GGML's type {kind}, and {known} are read; take a file of these types")
    known, block, size = _TYPES[kind]
    count = prod(shape) // block
    if at + count * size > len(content):
        raise IndexError(f"tensor {name} reaches beyond the end")
    rows = np.frombuffer(content, np.uint8, count * size, at).reshape(count, size)
    return _DECODE[known](rows).reshape(shape)


def _half(rows: np.ndarray) -> np.ndarray:
    """Two bytes of each row as a float16, ``(n, 1)`` float32."""
    return np.ascontiguousarray(rows).view("<f2").astype(np.float32)


def _q4_1(rows: np.ndarray) -> np.ndarray:
    scale, least, halves = _half(rows[:, :2]), _half(rows[:, 2:4]), rows[:, 4:]
    quants = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)  # (n, 32)
    return quants * scale + least


def _q8_0(rows: np.ndarray) -> np.ndarray:
    return rows[:, 2:].view(np.int8).astype(np.float32) * _half(rows[:, :2])


_DECODE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda rows: rows.view("<f4").astype(np.float32),
    "F16": _half,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}


def _aligned(at: int, to: int) -> int:
    return -(-at // to) * to
