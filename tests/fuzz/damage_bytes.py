"""Damage that knows no format: bits, runs, chunks, extreme numbers."""

import random
import struct


class Unfit(Exception):
    """This damage doesn't suit this content."""


def bytewise(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One of the ways below."""
    if not content:
        return bytes(rng.randrange(256) for _ in range(9)), "nine bytes where there were none"
    return rng.choice((flipped, overwritten, cut, doubled, removed, exchanged, extreme))(content, rng)


def flipped(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One to eight bits, rather in the first kilobyte, where headers are."""
    made, places = bytearray(content), []
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = _place(len(made), rng)
        made[place] ^= 1 << rng.randrange(8)
        places.append(place)
    return bytes(made), f"bits flipped in bytes {places}"


def overwritten(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A run of one value, or of noise."""
    made, start, length = bytearray(content), _place(len(content), rng), rng.choice((1, 2, 4, 8, 64, 512))
    value = rng.choice((0, 255, 127, 32, None))
    run = bytes(rng.randrange(256) if value is None else value for _ in range(length))
    made[start : start + length] = run[: len(made) - start]
    return bytes(made), f"{length} bytes of {'noise' if value is None else value} at {start}"


def cut(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The end is lost."""
    kept = rng.choice((rng.randrange(len(content)), min(len(content), rng.randrange(400)), len(content) - 1))
    return content[:kept], f"cut to {kept} of {len(content)} bytes"


def doubled(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A chunk stands twice."""
    start, stop = _chunk(len(content), rng)
    return content[:stop] + content[start:stop] + content[stop:], f"bytes {start} to {stop} twice"


def removed(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A chunk is lost."""
    start, stop = _chunk(len(content), rng)
    return content[:start] + content[stop:], f"bytes {start} to {stop} removed"


def exchanged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Two halves of a chunk change places."""
    start, stop = _chunk(len(content), rng)
    middle = (start + stop) // 2
    made = content[:start] + content[middle:stop] + content[start:middle] + content[stop:]
    return made, f"bytes {start} to {stop}: halves exchanged"


def extreme(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A number at an end of its range, at a place where headers have numbers."""
    code, value = rng.choice([(c, v) for c, values in NUMBERS.items() for v in values])
    order = rng.choice("<>")
    number = struct.pack(order + code, value)
    place = rng.choice((rng.randrange(0, 64, 2), _place(len(content), rng)))
    made = bytearray(content)
    made[place : place + len(number)] = number
    return bytes(made), f"{order}{code} {value!r} at {place}"


NUMBERS = {
    "h": (0, 1, -1, 32767, -32768), "i": (0, -1, 2**31 - 1, -(2**31), 10**9),
    "q": (0, -1, 2**63 - 1, -(2**63), 10**9, 2**40), "f": (float("nan"), float("inf"), -1.0, 3e38),
    "d": (float("nan"), float("inf"), 1e308),
}  # fmt: skip


def _place(length: int, rng: random.Random) -> int:
    return rng.randrange(min(length, 1024) if rng.random() < 0.6 else length)


def _chunk(length: int, rng: random.Random) -> tuple[int, int]:
    start = _place(length, rng)
    return start, min(length, start + rng.choice((1, 4, 16, 128, 1024)))
