"""Label maps: structures by their anatomical names, read from files, put on other grids, measured."""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume, grid, save_nifti
from ctvlm_lib.volume.read import NIFTI, open_nifti, read_nifti, stem

NOTHING_HERE = "no other has any either: the masks are empty or don't meet the CT; are they of another scan?"


@dataclass(frozen=True, eq=False, repr=False)
class LabelMap:
    """Structures of one patient on one grid, each by its anatomical name.

    Attributes:
        labels: ``(D, H, W)`` uint16 in LPS axes, 0 = background.
        affine: index (d, h, w) → LPS mm.
        names: label id → canonical name of :mod:`ctvlm_lib.anatomy`, or the file's own name if the table has none.
        orientation: axes of the file, used by :meth:`save`.
        notes: what reading found worth saying (resampled, overlapping masks, empty masks).
        overlapping: whole masks of the structures that share voxels with an earlier one, which a label map can't hold.
    """

    labels: np.ndarray
    affine: np.ndarray
    names: dict[int, str]
    orientation: str = "LPS"
    notes: tuple[str, ...] = ()
    overlapping: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        spacing = "×".join(f"{s:.2f}" for s in self.spacing_mm)
        present = self.present
        return f"LabelMap({grid.size_text(self.shape)}, {spacing} mm, {len(present)} structures: {_some(present)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) in voxels."""
        return self.labels.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x), mm."""
        return grid.spacing_mm(self.affine)

    @property
    def present(self) -> list[str]:
        """Names of the structures that have at least one voxel."""
        found = set(np.flatnonzero(label_counts(self.labels)).tolist())
        return [name for key, name in self.names.items() if key in found or name in self.overlapping]

    def binary(self, name: str) -> np.ndarray:
        """The mask of one structure, or of all the parts of a group such as ``lung``.

        Args:
            name: in any vocabulary that :mod:`ctvlm_lib.anatomy` knows, or as the file has it.

        Returns:
            bool ``(D, H, W)``.

        Raises:
            BadInput: no such structure here (the message lists what there is), or it has no voxels.
        """
        canonical = name if name in self.names.values() else _canonical(name)
        wanted = [canonical] if canonical in self.names.values() else self._parts(canonical)
        if not wanted:
            near = get_close_matches(name, list(self.names.values()), 3, 0.5)
            there = f"there are: {_some(sorted(self.present), 12)}" if self.present else NOTHING_HERE
            hint = f"did you mean {' or '.join(near)}?" if near else there
            raise BadInput(f"no structure {name!r} in these masks; {hint}")
        mask = self._union(wanted)
        if wanted == [canonical] and not mask.any():  # a vocabulary names the group too, but the map holds its parts
            mask = self._union(self._parts(canonical))
        if not mask.any():
            others = f"structures with voxels: {_some(sorted(self.present), 12)}"
            if not self.present:
                others = NOTHING_HERE
            raise BadInput(f"the mask of {name!r} is empty here; {others}")
        return mask

    def _parts(self, canonical: str) -> list[str]:
        """The names here that lie within a group: both lungs, or the lobes, for ``lung``; empty if it is no group."""
        whole = _vista3d_ids(canonical)
        return [n for n in self.names.values() if n != canonical and _vista3d_ids(n) and _vista3d_ids(n) <= whole]

    def _union(self, names: list[str]) -> np.ndarray:
        keys = [key for key, label in self.names.items() if label in names]
        mask = self.labels == keys[0] if len(keys) == 1 else np.isin(self.labels, keys)
        for name in names:
            if name in self.overlapping:
                mask |= self.overlapping[name]
        return mask

    def volume_ml(self, name: str) -> float:
        """Volume of a structure, millilitres."""
        return float(self.binary(name).sum() * abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def to(self, volume: Volume) -> "LabelMap":
        """Put the structures on a volume's grid by the affine, nearest neighbour; the same if the grids agree."""
        if grid.same_grid(self.shape, self.affine, volume.shape, volume.affine):
            return self

        def moved(array):
            return grid.resample(array, self.affine, volume.shape, volume.affine, order="nearest", fill=0)

        labels = moved(self.labels)
        kept, before = np.count_nonzero(labels), np.count_nonzero(self.labels)
        share = 1.0 if before == 0 else kept * _voxel_ml(volume.affine) / (before * _voxel_ml(self.affine))
        note = (
            f"masks resampled by their affine from {_grid_text(self)} to {_grid_text(volume)}, nearest neighbour;"
            f" labelled volume is {share:.1%} of what it was"
        )
        overlapping = {k: moved(m.astype(np.uint8)).astype(bool) for k, m in self.overlapping.items()}
        return LabelMap(labels, volume.affine.copy(), self.names, self.orientation, (*self.notes, note), overlapping)

    def save(self, path: str | Path) -> Path:
        """Write the label map as NIfTI in the file's own orientation (uint8 where the ids fit).

        Its names go into the header, in the form that TotalSegmentator writes, so that :func:`load` needs no table.
        """
        small = self.labels.max(initial=0) < 256
        rows = "".join(f'<Label Key="{i}"><![CDATA[{name}]]></Label>' for i, name in sorted(self.names.items()))
        table = f"<LabelTable>{rows}</LabelTable>"
        stored = self.labels.astype(np.uint8 if small else np.uint16)
        return save_nifti(path, stored, self.affine, self.orientation, extension=table)


def load(path: str | Path, like: Volume | None = None, names: dict[int, str] | str | None = None) -> LabelMap:
    """Read a label map, one binary mask, or a folder of binary masks named after their structures.

    Args:
        path: ``.nii``/``.nii.gz`` file, or a folder of such files.
        like: put the masks on this volume's grid.
        names: id → name, or a vocabulary (``"vista3d"``, ``"totalsegmentator"``); by default the file's own label
            table, and the file's name for a binary mask. Not read for a folder: its files' names are the structures'.

    Raises:
        BadInput: unreadable, not whole labels, no names for the labels, or masks on no common grid without ``like``.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no file or folder {path}")
    found = _load_folder(path, like) if path.is_dir() else _load_file(path, names)
    return found if like is None else found.to(like)


def _load_file(path: Path, names) -> LabelMap:
    array, affine, orientation, notes = read_nifti(path, None)
    labels = _whole(array, path.name)
    ids = [int(i) for i in np.flatnonzero(label_counts(labels)) if i]
    table = {int(k): _canonical(v) for k, v in _name_table(path, names, ids).items()}
    unnamed = [i for i in ids if i not in table]
    if unnamed:
        raise BadInput(
            f"{path.name} holds labels without a name: {_some(unnamed)}; give names= (--names vista3d, --names"
            " totalsegmentator or a table)"
        )
    return LabelMap(labels, affine, table, orientation, notes)


def _load_folder(folder: Path, like: Volume | None) -> LabelMap:
    files = sorted(f for f in folder.iterdir() if f.name.endswith(NIFTI) and not f.name.startswith("."))
    if not files:
        raise BadInput(f"{folder} holds no .nii or .nii.gz masks")
    result: LabelMap | None = None
    empty = []
    for key, file in enumerate(files, start=1):
        one = _load_file(file, None)
        one = one if like is None else one.to(like)
        if result is None:
            result = LabelMap(np.zeros(one.shape, np.uint16), one.affine, {}, one.orientation, one.notes)
        elif not grid.same_grid(one.shape, one.affine, result.shape, result.affine):
            raise BadInput(
                f"{file.name} is on another grid ({_grid_text(one)}) than {files[0].name} ({_grid_text(result)});"
                " give the CT as like="
            )
        name, mask = _canonical(stem(file)), one.labels > 0
        if not mask.any():
            empty.append(name)
        if (result.labels[mask] > 0).any():
            result.overlapping[name] = mask
        result.labels[mask & (result.labels == 0)] = key
        result.names[key] = name
    notes = list(result.notes)
    if empty:
        notes.append(f"empty masks: {_some(empty)}")
    if result.overlapping:
        notes.append(f"masks that overlap another, kept whole: {_some(list(result.overlapping))}")
    return LabelMap(result.labels, result.affine, result.names, result.orientation, tuple(notes), result.overlapping)


def _whole(array: np.ndarray, name: str) -> np.ndarray:
    """The array as uint16 labels, or a sentence why it is none."""
    whole = array.dtype.kind in "biu" or (np.all(np.isfinite(array)) and np.array_equal(array, np.rint(array)))
    if not whole or array.min() < 0 or array.max() > 65535:
        raise BadInput(
            f"{name} holds values from {np.nanmin(array):g} to {np.nanmax(array):g}, and whole labels from 0 to 65535"
            " are expected; is it a CT?"
        )
    return np.ascontiguousarray(array, dtype=np.uint16)


def label_counts(labels: np.ndarray, minlength: int = 1) -> np.ndarray:
    """How many voxels each label has, index = label; a slice at a time, as bincount copies its input to 64 bits."""
    counts = np.zeros(max(int(labels.max(initial=0)) + 1, minlength), dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.reshape(-1), minlength=counts.size)
    return counts


def _name_table(path: Path, names, ids: list[int]) -> dict[int, str]:
    if isinstance(names, dict):
        return names
    if isinstance(names, str):
        return anatomy.vocabulary(names)
    return label_table(path) or ({ids[0] if ids else 1: stem(path)} if len(ids) <= 1 else {})


def label_table(path: Path) -> dict[int, str]:
    """The names that TotalSegmentator and others write into the NIfTI header extension; empty if there are none."""
    extensions = [e for e in open_nifti(path, header_only=True).header.extensions if e.get_code() in (0, 30)]
    text = " ".join(bytes(e.content).decode("utf-8", "replace") for e in extensions)
    found = re.findall(r'<Label Key="([0-9]{1,5})"[^>]*>\s*<!\[CDATA\[(.*?)\]\]>', text)  # of at most five digits
    return {int(k): v for k, v in found if int(k)}


def _canonical(name: str) -> str:
    try:
        return anatomy.structure(name).name
    except BadInput:
        return _plain(name)


def _vista3d_ids(name: str) -> frozenset[int]:
    try:
        return frozenset(anatomy.expand(name))
    except BadInput:
        return frozenset()


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _some(items, limit: int = 6) -> str:
    items = [str(i) for i in items]
    return ", ".join(items[:limit]) + (f" … ({len(items)} in all)" if len(items) > limit else "")


def _grid_text(on) -> str:
    return f"{grid.size_text(on.shape)} at {'×'.join(f'{s:.2f}' for s in on.spacing_mm)} mm"


def _voxel_ml(affine: np.ndarray) -> float:
    return abs(np.linalg.det(affine[:3, :3])) / 1000
