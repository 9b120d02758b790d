"""What is attacked: a reader, the good files that are damaged for it, and how it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def content_of(file: Path) -> bytes:
    """The bytes of a file that something else opens before the reader gets them; none where that fails."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        name: of the reader, as the summary has it.
        make: writes good files into an empty folder.
        read: called with the folder and the damaged file in it; raises BadInput, or anything else for a fault.
        files: patterns of the files that are damaged.
        mend: called with the folder and the damaged file in half of the cases, e.g. to renew a hash that would
            otherwise stop every damage at the first check.
        share: of the cases of a usual reader; less for one that takes long.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path, Path], object]
    files: tuple[str, ...] = ("**/*",)
    mend: Callable[[Path, Path], object] | None = None
    share: float = 1.0

    def victims(self, folder: Path) -> list[Path]:
        """The files that may be damaged, in a fixed order."""
        return sorted({path for pattern in self.files for path in folder.glob(pattern) if path.is_file()})
