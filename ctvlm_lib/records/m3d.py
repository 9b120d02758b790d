"""M3D-Cap and M3D-VQA: volumes from teaching cases, their texts, and questions with four choices.

Layout, below the folder::

    M3D_Cap_npy/M3D_Cap.json          {"train": [{"image": "M3D_Cap_npy/ct_case/000001/Axial_….npy", "text": "…"}], …}
    M3D_Cap_npy/ct_case/000001/Axial_non_contrast.npy, text.txt        also ct_quizze
    M3D-VQA/M3D_VQA_{train,val,test}.csv, M3D_VQA_yn_train.csv         also M3D_VQA/; M3D_VQA_test5k.csv for test
        Image Path, Question, Question Type (1 plane, 2 phase, 3 organ, 4 abnormality, 5 location),
        Choice A … Choice D, Answer, Answer Choice

The volumes are ``.npy`` (1, 32, 256, 256) in [0, 1], made from JPEG or PNG slices: they have **no HU, no spacing and no
orientation**, so that windows, millimetres and masks mean nothing on them. Med3DVLM stores them again as ``.nii.gz``
(128, 256, 256) with an identity affine, but its ``M3D_Cap.json`` still lists ``.npy``: its own loader then fails on
every sample and draws another at random. Here the file that lies there under the other ending is taken, and said.

One case gives several volumes (axial, coronal, phases …), about 2.8 a text, and the published split is by volume: the
patient of a record is therefore the case's folder, and :func:`read` says how many cases are in two splits.

Sources: M3D at 63e7200; Med3DVLM at cbbd633; GoodBaiBai88/M3D-Cap and M3D-VQA on their hub.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ctvlm_lib.damaged import load_npy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import naming, table
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume.hu import check_finite
from ctvlm_lib.volume.read import read_nifti

QUESTION_TYPES = {1: "plane", 2: "phase", 3: "organ", 4: "abnormality", 5: "location"}
CAPTION_QUESTION = "Describe the findings of this CT."  # ours: M3D draws one of its templates for each sample
_LETTERS = "ABCD"
_CHOICES = tuple(f"Choice {letter}" for letter in _LETTERS)
_VQA = {  # split: tables in order of preference, below M3D-VQA
    "train": ("M3D_VQA_train.csv",),
    "validation": ("M3D_VQA_val.csv",),
    "test": ("M3D_VQA_test.csv", "M3D_VQA_test5k.csv"),
}
_YES_NO = {"train": "M3D_VQA_yn_train.csv"}  # there are none for validation and test


def read(folder: str | Path, split: str | None = None, *, check_volumes: bool = False) -> table.Reading:
    """Read captions and questions on the volumes that are there; either part may be absent.

    Args:
        folder: the folder that holds ``M3D_Cap_npy`` and ``M3D-VQA``.
        split: "train", "validation" or "test"; all by default.
        check_volumes: read every volume to its end, so that a damaged one is listed (slow).

    Raises:
        BadInput: neither part is there; a column or key is missing; a question type is unknown; an image stands twice
            in one split of the captions.
    """
    folder = table.existing_folder(folder)
    reader = _Reader(folder, table.Files(folder, load_array if check_volumes else None))
    splits = table.wanted_splits(split, table.SPLITS)
    records = [*reader.captions(splits), *(record for name in splits for record in reader.questions(name))]
    if not reader.parts:
        raise BadInput(
            f"{folder} holds neither M3D_Cap_npy/M3D_Cap.json nor M3D-VQA/M3D_VQA_train.csv (…_val.csv, …_test.csv);"
            " give the folder that holds M3D_Cap_npy and M3D-VQA"
        )
    missing = dict(reader.files.missing + reader.texts.missing)
    unreadable = reader.files.unreadable | reader.texts.unreadable
    notes = (*reader.notes(), *table.crossing_note(records))
    return table.Reading(" and ".join(reader.parts), folder, records, missing, unreadable, notes)


def load_array(path: str | Path) -> np.ndarray:
    """Load one M3D volume.

    Args:
        path: ``.npy``, or ``.nii.gz`` as Med3DVLM stores it.

    Returns:
        float32 ``(D, H, W)`` in [0, 1], slices first. Not a Volume: it has no HU, spacing or orientation.

    Raises:
        BadInput: unreadable, not one 3-D frame, or not in [0, 1].
    """
    path = Path(path)
    array = _load_npy(path) if path.suffix == ".npy" else _load_nifti(path)
    if array.ndim != 3 or min(array.shape) < 1:
        raise BadInput(f"{path.name} has shape {array.shape}; (1, D, H, W) or (D, H, W) is expected")
    check_finite(array, path.name)
    low, high = float(array.min()), float(array.max())
    if low < -0.01 or high > 1.01:
        raise BadInput(
            f"{path.name} runs from {low:.4g} to {high:.4g}, and M3D's volumes are scaled to [0, 1]; if it is a CT in"
            " HU, load it with ctvlm_lib.volume and scale it by M3D's recipe"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _load_npy(path: Path) -> np.ndarray:
    try:
        array = load_npy(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path.name} is not a readable .npy array: {error}; fetch it again") from error
    return array[0] if array.ndim == 4 and array.shape[0] == 1 else array


def _load_nifti(path: Path) -> np.ndarray:
    """The bare array that was written: read_nifti reorients by an identity affine that says nothing, so turn back."""
    if not path.exists():
        raise BadInput(f"there is no file {path}")
    array, _, orientation, _ = read_nifti(path, np.float32)
    # the stored axes are (w, h, d); what reading flipped to reach left, posterior, up is flipped back
    for axis, letter, wanted in ((2, orientation[0], "L"), (1, orientation[1], "P"), (0, orientation[2], "S")):
        array = array if letter == wanted else np.flip(array, axis)
    return array


class _Reader:
    """Reads the parts and counts what is worth a note."""

    def __init__(self, folder: Path, files: table.Files) -> None:
        self.folder, self.files, self.texts = folder, files, table.Files(folder)
        self.parts: list[str] = []
        self.seen: Counter[str] = Counter()
        self.refused: dict[str, str] = {}

    def captions(self, splits: tuple[str, ...]) -> Iterator[Record]:
        """One report record for each volume whose text is there."""
        path = self.folder / "M3D_Cap_npy" / "M3D_Cap.json"
        if not path.is_file():
            return
        self.parts.append("M3D-Cap")
        lists = table.read_json(path, dict)
        lacking = [name for name in splits if name not in lists]
        if lacking:
            raise BadInput(f"{path.name} has no split {table.some(lacking)}; it has {table.some(lists)}")
        for split in splits:
            known = set()
            if not isinstance(lists[split], list):
                raise BadInput(f"{path.name}: {split} is {str(lists[split])[:80]}; a list of images is expected")
            for entry in lists[split]:
                image, text = _entry(entry, split, path)
                if image in known:
                    raise BadInput(f"{path.name}: {image} stands twice in {split}; remove one")
                known.add(image)
                record = self._caption(image, text, split)
                if record:
                    yield record

    def _caption(self, image: str, text: str, split: str) -> Record | None:
        volume = self._volume(image)
        written = self.texts.find(text)
        if volume is None or written is None:
            return None
        try:
            answer = (self.folder / written).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self.texts.unreadable[written] = f"not text in UTF-8: {error}"
            return None
        if not answer:
            self.texts.unreadable[written] = "there is no text in it"
            return None
        name = f"m3d-cap:{split}:{PurePosixPath(image).with_suffix('')}"
        return self._record(name, "M3D-Cap", image, split, volume, "report", "open", CAPTION_QUESTION, answer, ())

    def questions(self, split: str) -> Iterator[Record]:
        """The records of a split's tables."""
        for path in self._tables(split):
            self.parts += [] if "M3D-VQA" in self.parts else ["M3D-VQA"]
            yes_no = path.name in _YES_NO.values()
            columns = ("Image Path", "Question", "Answer")
            columns += () if yes_no else ("Question Type", *_CHOICES, "Answer Choice")
            for line, row in table.rows(path, columns):
                record = self._question(row, split, path, line, yes_no)
                if record:
                    yield record

    def _question(self, row: dict[str, str], split: str, path: Path, line: int, yes_no: bool) -> Record | None:
        where = f"{path.name}, line {line}"
        kind = _kind(row["Question Type"], where) if row.get("Question Type") or not yes_no else "presence"
        answer = (naming.yes_or_no(row["Answer"]) or "") if yes_no else row["Answer"]
        choices = () if yes_no else tuple(row[name] for name in _CHOICES)
        if not answer or not row["Question"]:
            self.seen["empty"] += 1
            return None
        if choices and not _consistent(choices, row["Answer Choice"], answer):
            self.seen["inconsistent"] += 1
            return None
        image = row["Image Path"]
        volume = self._volume(image)
        if volume is None:
            return None
        name = f"m3d-vqa:{path.stem}:{line}"
        return self._record(name, "M3D-VQA", image, split, volume, kind, "closed", row["Question"], answer, choices)

    def _record(self, name, dataset, image, split, volume, kind, form, question, answer, choices) -> Record | None:
        region = naming.structure_in(question)
        return table.make_record(
            self.refused, name, id=name, dataset=dataset, patient=str(PurePosixPath(image).parent), split=split,
            volume=volume, region=region, kind=kind, form=form, question=question, answer=answer, choices=choices,
            names_region=region is not None,
        )  # fmt: skip

    def _tables(self, split: str) -> Iterator[Path]:
        folders = [self.folder / name for name in ("M3D-VQA", "M3D_VQA") if (self.folder / name).is_dir()]
        for group in (_VQA[split], (_YES_NO[split],) if split in _YES_NO else ()):
            there = [folder / name for folder in folders for name in group if (folder / name).is_file()]
            if there:
                self.seen[f"file:{there[0].name}"] += there[0].name == "M3D_VQA_test5k.csv"
                yield there[0]

    def _volume(self, image: str) -> str | None:
        """The file that is there for a listed image: the same, or with Med3DVLM's ending."""
        image = table.inside(image)
        stem, listed = image.removesuffix(".npy").removesuffix(".nii.gz"), image.endswith(".npy")
        other = stem + (".nii.gz" if listed else ".npy")
        found = self.files.find(image, other)
        if found == other:
            self.seen["other ending"] += 1
        return found

    def notes(self) -> Iterator[str]:
        seen = self.seen
        yield "M3D's volumes have no HU, spacing or orientation: load them with m3d.load_array"
        if seen["other ending"]:
            yield f"{table.plural(seen['other ending'], 'record')} list a file that is here with the other ending"
        if seen["inconsistent"]:
            yield f"{table.plural(seen['inconsistent'], 'question')} whose Answer isn't its Answer Choice, left out"
        if seen["empty"]:
            yield f"{table.plural(seen['empty'], 'question')} without a question or a usable answer, left out"
        if seen["file:M3D_VQA_test5k.csv"]:
            yield "M3D_VQA_test.csv isn't there: its part of 5,000, M3D_VQA_test5k.csv, is read"
        yield from table.refused_note(self.refused)


def _entry(entry: object, split: str, path: Path) -> tuple[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "text")):
        raise BadInput(f'{path.name}: an entry of {split} is {str(entry)[:80]}; {{"image": …, "text": …}} is expected')
    return entry["image"], entry["text"]


def _kind(cell: str, where: str) -> str:
    try:
        return QUESTION_TYPES[float(cell)]
    except (KeyError, ValueError):
        raise BadInput(f"{where}: Question Type is {cell!r}; 1 (plane) to 5 (location) is expected") from None


def _consistent(choices: tuple[str, ...], letter: str, answer: str) -> bool:
    at = _LETTERS.find(letter.rstrip(".").upper()) if letter else -1
    return at >= 0 and all(choices) and choices.count(answer) == 1 and choices[at] == answer
