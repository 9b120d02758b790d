"""A GGUF file of llama.cpp as plain values and float32 arrays, through the gguf package.

transformers reads the same with ``gguf_file=``, but gives a model that says it is quantised and so can't be saved.

Source: the GGUF specification in ggml's repository (docs/gguf.md), version 3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctvlm_lib.errors import BadInput

MAGIC = b"GGUF"


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
    """Read a file whole; quantised tensors become float32.

    Args:
        path: of the file.

    Raises:
        BadInput: no such file, no GGUF, or one that is cut off or damaged.
    """
    import gguf

    path = Path(path)
    try:
        with open(path, "rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror}; give a GGUF file") from error
    if begins != MAGIC:
        raise BadInput(f"{path.name} begins with {begins!r}, not {MAGIC!r}; give a GGUF file")
    try:
        reader = _reader()(path)
        values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise BadInput(f"{path.name} is cut off or damaged ({error}); fetch it again") from error
    return Gguf(values, tensors)


def _reader() -> type:
    """The package's reader, which by itself reads nothing behind the file's end, and that 2⁶³ times if told so."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, *args, **options):
            found = super()._get(offset, dtype, count, *args, **options)
            if len(found) < count:
                raise IndexError(f"it ends before byte {offset}")
            return found

    return Reader
