"""What arms of one kind share: which are stored with which seeds, and the splits that they are trained and asked on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from ctvlm_lib.alignment.arm_tables import RESULTS, name_and_seed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.records.table import read_json

T = TypeVar("T")


def folders(prefix: str, roots: Sequence[str | Path] = (RESULTS,)) -> dict[str, dict[int, Path]]:
    """Arm → seed → folder of what is stored.

    Args:
        prefix: that the arms' names begin with.
        roots: folders with a folder for each arm and seed; what a later one has replaces an earlier one's.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in (path for root in roots for path in sorted(Path(root).glob(f"{prefix}*"))):
        if (path / "record.json").is_file():
            name, seed = name_and_seed(path.name)
            found.setdefault(name, {})[seed] = path
    return found


@dataclass
class StoredArms:
    """Stored arms of one kind and what is true of the splits that they were asked about, each read once.

    Attributes:
        roots: see :func:`folders`.
    """

    roots: Sequence[str | Path] = (RESULTS,)
    _kept: dict = field(default_factory=dict, repr=False)
    prefix: ClassVar[str] = ""

    def arms(self) -> dict[str, tuple[int, ...]]:
        """Arm → its seeds, in the order of names."""
        return {name: tuple(sorted(seeds)) for name, seeds in sorted(folders(self.prefix, self.roots).items())}

    def folder(self, arm: str, seed: int) -> Path:
        """Where an arm lies.

        Raises:
            BadInput: it isn't stored.
        """
        found = folders(self.prefix, self.roots).get(arm, {}).get(seed)
        if found is None:
            raise BadInput(f"{arm} with seed {seed} isn't stored; run `ctvlm arm {arm} --seed {seed}`")
        return found

    def record(self, arm: str, seed: int) -> dict:
        """An arm's record."""
        return read_json(self.folder(arm, seed) / "record.json", dict)

    def truth_file(self, split: str) -> Path:
        """The file that says what is true of a split.

        Raises:
            BadInput: it isn't stored.
        """
        places = [Path(root) / f"{self.prefix}truth" / f"{split}.npz" for root in reversed(self.roots)]
        path = next((one for one in places if one.is_file()), None)
        if path is None:
            told = f"what is true of the split {split!r} isn't stored"
            raise BadInput(f"{told}; run one of the arms whose name begins with {self.prefix} again")
        return path


@dataclass(frozen=True, eq=False)
class Splits(Generic[T]):
    """What all arms of a profile share; a split is made when it is first asked for, and kept.

    Attributes:
        profile: says how many patients.
        patients: split → the first so many; what isn't named, and None, takes all.
    """

    profile: str = "full"
    patients: Mapping[str, int] | None = None

    def split(self, name: str) -> T:
        """A split."""
        kept = self.__dict__.setdefault("_splits", {})
        if name not in kept:
            n = (self.patients or {}).get(name)
            kept[name] = self._made(protocol.load().patients(name, self.profile, **({"n": n} if n else {})))
        return kept[name]

    def _made(self, patients: Iterable[Patient]) -> T:
        raise NotImplementedError
