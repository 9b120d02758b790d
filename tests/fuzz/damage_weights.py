"""Damage to safetensors, files of torch.save and GGUF."""

import json
import random
import struct

from fuzz import damage_arrays, damage_text
from fuzz.damage_bytes import NUMBERS, bytewise


def safetensors(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The header's length, a value in it, or where a tensor lies."""
    length = struct.unpack("<Q", content[:8])[0]
    way = rng.choice(("length", "header", "header", "offsets", "shape", "dtype", "renamed", "values"))
    if way == "length":
        value = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, 10**8, len(content)))
        return struct.pack("<Q", value) + content[8:], f"safetensors: header of {value} bytes"
    if way == "values":
        made = bytearray(content)
        place = rng.randrange(8 + length, len(content))
        made[place : place + 4] = rng.choice((b"\xff" * 4, b"\x00\x7c\x00\x7c", b"\x00\x00\xc0\x7f"))
        return bytes(made), f"safetensors: NaN at {place}"
    header, what = content[8 : 8 + length], ""
    if way == "header":
        header, what = damage_text.json_value(header, rng)
    else:
        found = json.loads(header)
        name = rng.choice([key for key in found if key != "__metadata__"])
        if way == "offsets":
            found[name]["data_offsets"] = rng.choice(([0, 2**40], [9, 3], [-4, 0], [2**64, 2**65], [0, 0], [1, 2, 3],
                                                      "x"))
        elif way == "shape":
            found[name]["shape"] = rng.choice(([10**9], [10**9] * 5, [-1], [0], [2**63], [1.5], [], [[1]]))
        elif way == "dtype":
            found[name]["dtype"] = rng.choice(("F64", "I8", "F8_E4M3", "BOOL", "X", "", "BF16", "U64"))
        else:
            found[rng.choice(("x", "", "a" * 5000, "__metadata__", "\u2028"))] = found.pop(name)
        header, what = json.dumps(found).encode(), f"{way} of {name}"
    return struct.pack("<Q", len(header)) + header + content[8 + length :], f"safetensors: {what}"


def torch_zip(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of one entry, of its pickle rather than of its numbers; a pickle with a function in it; or plain bytes."""
    way = rng.random()
    if way < 0.1:
        return damage_arrays.pickled(), "a pickle that writes a file"
    if not content.startswith(b"PK"):
        return bytewise(content, rng)
    return damage_arrays.zipped(content, rng)


def gguf(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Version, counts, or a number among the values and tensor tables, which come before the tensors."""
    field, place, code = rng.choice((("version", 4, "i"), ("tensors", 8, "q"), ("values", 16, "q"),
                                     ("other", None, "q"),
                                     ("other", None, "i"), ("other", None, "i"), ("other", None, "q")))  # fmt: skip
    value = rng.choice(NUMBERS[code])
    place = rng.randrange(24, min(len(content) - 8, 8000)) if place is None else place
    made = bytearray(content)
    made[place : place + struct.calcsize(code)] = struct.pack("<" + code, value)
    return bytes(made), f"GGUF: {field} at {place} is {value}"
