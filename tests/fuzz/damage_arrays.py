"""Damage to NumPy's files and to zip archives."""

import io
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np

from fuzz.damage_bytes import bytewise

HEADERS = (  # of an .npy file: what it may claim
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 1000, 1000), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }",
    "{'descr': '<i2', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<i2', 'fortran_order': False, 'shape': (), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<U100000', 'fortran_order': False, 'shape': (9,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (9,), }",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '<i2'), ('b', 'O')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i2', 'shape': (2,), }",
    "{'descr': '<c8', 'fortran_order': True, 'shape': (1, 1, 2), }",
    "{'descr': 'nothing', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i2', 'fortran_order': False, 'shape': (True,), }", "[" * 5000, "{'descr': '<i2',", "__import__('os')",
    "",
    "{'descr': '<i2', 'fortran_order': False, 'shape': (1, 0, 3), }",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (4,), }",
)  # fmt: skip


class Written:
    """A pickle of it writes a file beside the damaged one, if anybody loads it."""

    def __reduce__(self):
        return Path.touch, (Path("written-by-a-pickle"),)


def npy(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Another header before the same numbers, another array, or bytes."""
    way = rng.choice(("header", "header", "version", "array", "objects", "bytes"))
    if way == "bytes":
        return bytewise(content, rng)
    if way == "objects":
        return content[:6] + _saved(np.array([Written(), "x"], dtype=object))[6:], "npy: pickled objects"
    length = struct.unpack("<H", content[8:10])[0]
    if way == "version":
        version = rng.choice(((0, 0), (1, 1), (2, 0), (3, 0), (255, 255)))
        return content[:6] + bytes(version) + content[8:], f"npy: version {version}"
    if way == "array":
        made = rng.choice((
            np.zeros((2, 3)), np.zeros(0), np.array(7), np.full((3, 4, 5), np.nan), np.array(["a", "b"]),
            np.zeros((4, 6, 5), bool), np.array([2**63], np.uint64), np.zeros((1, 4, 6, 5), np.complex64),
            np.array([-1, -2], np.int8), np.zeros(4, "M8[s]"), np.full((2, 2), 1e308), np.full((9,), 255, np.uint8),
        ))  # fmt: skip
        return _saved(made), f"npy: another array, {made.dtype} {made.shape}"
    header = rng.choice(HEADERS).encode()
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return content[:8] + struct.pack("<H",
                                     len(padded)) + padded + content[10 + length :], f"npy: header {header[:70]!r}"


def npz(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One array of an archive damaged, missing, doubled or another's; or the archive itself."""
    return _archive(content, rng, npy)


def zipped(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The same of any archive."""
    return _archive(content, rng, bytewise)


def _archive(content: bytes, rng: random.Random, of_entry) -> tuple[bytes, str]:
    if rng.random() < 0.2:
        return _listing(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, entry.compress_type, archive.read(entry)) for entry in archive.infolist()]
    number = rng.randrange(len(entries))
    name, packing, inner = entries[number]
    way = rng.choice(("content", "content", "content", "content", "removed", "renamed", "moved", "bomb"))
    what = way
    if way == "content":
        inner, what = of_entry(inner, rng)
        entries[number] = (name, packing, inner)
    elif way == "removed":
        del entries[number]
    elif way == "renamed":
        entries[number] = (rng.choice(("x.npy", "../x", "/x", "", "a" * 300, name + "/")), packing, inner)
    elif way == "moved":
        entries[number] = (name, packing, rng.choice(entries)[2])
    else:
        entries[number] = (name, zipfile.ZIP_DEFLATED, inner + bytes(1 << 26))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for one, kind, inside in entries:
            archive.writestr(zipfile.ZipInfo(one), inside, compress_type=kind)
    return buffer.getvalue(), f"archive entry {name}: {what}"


def _listing(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Sizes, packing and places in the list of contents."""
    places = [k for k in range(len(content)) if content.startswith(b"PK\x01\x02", k)]
    place = rng.choice(places)
    field, offset, code = rng.choice((
        ("packing", 10, "H"), ("checksum", 16, "I"), ("packed size", 20, "I"), ("size", 24, "I"),
        ("name length", 28, "H"),
        ("place", 42, "I"), ("flags", 8, "H"),
    ))  # fmt: skip
    value = rng.choice((0, 1, 8, 14, 99, 65535) if code == "H" else (0, 1, 2**31, 2**32 - 1, 2**30))
    made = bytearray(content)
    number = struct.pack("<" + code, value)
    made[place + offset : place + offset + len(number)] = number
    return bytes(made), f"archive: {field} is {value}"


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def pickled() -> bytes:
    """A pickle that writes a file when it is loaded."""
    return pickle.dumps(Written())
