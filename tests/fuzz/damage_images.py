"""Damage to NIfTI, DICOM and MetaImage: extreme header fields, and packed files that unpack to something else."""

import gzip
import random
import struct
from functools import cache

from fuzz.damage_bytes import NUMBERS, Unfit, bytewise

WHOLE = (0, -1, 1, 2, 3, 7, 8, 16, 1000, 32767, -32768)
REAL = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e38, 1e-38, 352.5, 1e9, 3.0)
# field: (offset, struct code, how many, values)
NIFTI_FIELDS = {
    "sizeof_hdr": (0, "i", 1, (0, 349, 540, -1)), "dim": (40, "h", 8, WHOLE),
    "datatype": (70, "h", 1, (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2048, 2304, -1, 99)),
    "bitpix": (72, "h", 1, WHOLE), "pixdim": (76, "f", 8, REAL), "vox_offset": (108, "f", 1, REAL),
    "scl_slope": (112, "f", 1, REAL), "scl_inter": (116, "f", 1, REAL), "xyzt_units": (123, "b", 1, (0, 1, 3, -1)),
    "qform_code": (252, "h", 1, WHOLE), "sform_code": (254, "h", 1, WHOLE), "quatern": (256, "f", 6, REAL),
    "srow": (280, "f", 12, REAL), "magic": (344, "i", 1, (0, -1)), "extension": (348, "i", 1, (0, 1, -1)),
    "extension size": (352, "i", 2, (0, -1, 8, 16, 17, 2**31 - 1, -(2**31))),
}  # fmt: skip
GIGA = (3, 1000, 1000, 1000, 1, 1, 1, 1)  # dim of 10⁹ voxels
DICOM_TAGS = {  # (group, element) that the reader looks at, and those that say how much there is
    "Modality": (8, 0x60), "Position": (0x20, 0x32), "Orientation": (0x20, 0x37), "Samples": (0x28, 2),
    "Rows": (0x28, 0x10), "Columns": (0x28, 0x11), "Spacing": (0x28, 0x30), "Bits": (0x28, 0x100),
    "Stored": (0x28, 0x101), "High": (0x28, 0x102), "Sign": (0x28, 0x103), "Intercept": (0x28, 0x1052),
    "Slope": (0x28, 0x1053), "Pixels": (0x7FE0, 0x10), "Syntax": (2, 0x10), "Group length": (2, 0), "UID": (0x20, 0xE),
    "Frames": (0x28, 8), "Photometric": (0x28, 4),
}  # fmt: skip
META = (
    "DimSize = 1000 1000 1000", "DimSize = 0 5 6", "DimSize = -1 5 6", "DimSize = 4 5", "NDims = 2", "NDims = 4",
    "NDims = 11",
    "NDims = 0", "ElementType = MET_DOUBLE", "ElementType = MET_FLOAT", "ElementType = MET_NONE",
    "ElementType = nothing",
    "ElementSpacing = 0 0 0", "ElementSpacing = nan 1 1", "ElementSpacing = -1 1 1", "ElementSpacing = 1e300 1 1",
    "TransformMatrix = 0 0 0 0 0 0 0 0 0", "TransformMatrix = 1 0 0 1 0 0 0 0 1", "Offset = nan 0 inf",
    "CompressedData = False", "CompressedData = True", "CompressedDataSize = 1000000000", "CompressedDataSize = -5",
    "ElementNumberOfChannels = 3", "ElementNumberOfChannels = 1000000", "ElementDataFile = /etc/passwd",
    "ElementDataFile = LIST", "ElementDataFile = %d.raw 1 9999999 1", "HeaderSize = -1", "HeaderSize = 999999999",
    "BinaryDataByteOrderMSB = True", "ObjectType = Mesh",
)  # fmt: skip


def nifti(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One to three header fields at the ends of their ranges, or 10⁹ voxels."""
    if len(content) < 352:
        raise Unfit
    made, told = bytearray(content), []
    order = "<" if struct.unpack("<i", content[:4])[0] == 348 else ">"
    if rng.random() < 0.08:
        made[40:56] = struct.pack(f"{order}8h", *GIGA)
        return bytes(made), "dim of 10⁹ voxels"
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(NIFTI_FIELDS))
        offset, code, count, values = NIFTI_FIELDS[name]
        which, value = rng.randrange(count), rng.choice(values)
        place = offset + which * struct.calcsize(code)
        number = struct.pack(order + code, value)
        made[place : place + len(number)] = number
        told.append(f"{name}[{which}] = {value:g}")
    return bytes(made), "NIfTI " + ", ".join(told)


def packed_nifti(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage within a packed NIfTI, or of the packing."""
    if rng.random() < 0.25:
        return packed(content, rng)
    inner, what = rng.choice((nifti, nifti, bytewise))(gzip.decompress(content), rng)
    return gzip.compress(inner, 1, mtime=0), f"packed: {what}"


def packed(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A gzip file that is no longer what it says, or unpacks to far more than it should."""
    inner = gzip.decompress(content)
    ways = {
        "a bomb behind the content": lambda: content + bomb(), "a bomb in place of the content": bomb,
        "a second member": lambda: content + content, "garbage behind the end": lambda: content + b"garbage" * 9,
        "a wrong checksum": lambda: content[:-8] + b"\0\0\0\0" + content[-4:],
        "a wrong length": lambda: content[:-4] + b"\xff\xff\xff\x7f", "not packed": lambda: inner,
        "packed twice": lambda: gzip.compress(content, 1, mtime=0),
        "nothing packed": lambda: gzip.compress(b"", mtime=0),
        "a flag that nobody knows": lambda: content[:3] + b"\xff" + content[4:],
    }  # fmt: skip
    name = rng.choice(sorted(ways))
    return ways[name](), f"gzip: {name}"


@cache
def bomb() -> bytes:
    """An eighth of a megabyte that unpacks to 128 MB of zeros."""
    return gzip.compress(bytes(1 << 27), 6, mtime=0)


def dicom(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The value or the length of one element."""
    name = rng.choice(sorted(DICOM_TAGS))
    place = content.find(struct.pack("<HH", *DICOM_TAGS[name]), 132)
    if place < 0:
        raise Unfit
    made = bytearray(content)
    way = rng.choice(("value", "value", "length", "number", "kind"))
    if way == "length":
        made[place + 6 : place + 8] = struct.pack("<H", rng.choice((0, 1, 3, 65535, 65534, 4000)))
    elif way == "kind":
        made[place + 4 : place + 6] = rng.choice((b"OB", b"SQ", b"UN", b"??", b"OW", b"US", b"\0\0"))
    elif way == "number":
        code, value = rng.choice([(c, v) for c in "hi" for v in NUMBERS[c]])
        number = struct.pack("<" + code, value)
        made[place + 8 : place + 8 + len(number)] = number
    else:
        length = struct.unpack("<H", content[place + 6 : place + 8])[0]
        text = rng.choice((b"nan", b"1e999", b"\\\\", b"abc", b"0", b"-1", b"1\\2", b"\xff\xfe",
                           b" ")).ljust(length)[:length]
        made[place + 8 : place + 8 + length] = text
    return bytes(made), f"DICOM {name}: another {way}"


def meta_image(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A line of a MetaImage's header."""
    head, mark, data = content.partition(b"ElementDataFile = LOCAL\n")
    if not mark:
        raise Unfit
    line = rng.choice(META)
    key = line.split(" ")[0].encode()
    if key == b"ElementDataFile":
        return head + line.encode() + b"\n" + data, f"MetaImage: {line}"
    lines = [one for one in head.split(b"\n") if not one.startswith(key + b" ")]
    lines.insert(rng.randrange(len(lines)), line.encode())
    return b"\n".join(lines) + mark + data, f"MetaImage: {line}"
