"""Rad-ChestCT: chest CTs, each with a matrix of 84 abnormalities × 52 locations that was read from its report.

Layout, below the folder::

    img{train,valid,test}_Abnormality_and_Location_Labels.csv      NoteAcc_DEID, and "nodule*left_upper", …, 0 or 1
    CT_Scan_Metadata_Complete_35747.csv                            NoteAcc_DEID, MRN_DEID (the patient), and more
    trn00001.npz, val00001.npz, tst00001.npz                       key "ct": (slices, rows, columns) int16

The record of the data set names its four metadata files and says that there are three of labels; their names, the
column names and the three prefixes are those that independent users of it read. Some copies keep the volumes in a
folder of their own: say where with ``volumes=``. Not established: the licence, and whether every one of the 84 × 52
columns is there; each abnormality must have at least one, and a column that isn't of the 84 and 52 is refused.

A volume holds HU, clipped to ±1000, resampled to 0.8 mm; slices run from head to feet, rows backwards, columns to the
patient's left (its table of lung borders calls the first slice superior, the first row anterior, the first column
right). The place in the scanner isn't kept.

A location is given without saying of which organ ("left upper"), so that it isn't a region of a mask here.

Sources: Zenodo 6406114; rachellea/ct-volume-preprocessing at fe533e7 (array, spacing, clipping) and its author's table
of lung borders; for the names, public loaders that agree with each other (RadHarmony's among them).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctvlm_lib.damaged import load_npz
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import table
from ctvlm_lib.records.record import Record
from ctvlm_lib.volume import Volume, check_hu

ABNORMALITIES = tuple(  # verbatim
    "air_trapping airspace_disease aneurysm arthritis aspiration atelectasis atherosclerosis bandlike_or_linear"
    " breast_implant breast_surgery bronchial_wall_thickening bronchiectasis bronchiolectasis bronchiolitis bronchitis"
    " cabg calcification cancer cardiomegaly catheter_or_port cavitation chest_tube clip congestion consolidation"
    " coronary_artery_disease cyst debris deformity density dilation_or_ectasia distention emphysema fibrosis fracture"
    " gi_tube granuloma groundglass hardware heart_failure heart_valve_replacement hemothorax hernia honeycombing"
    " infection infiltrate inflammation interstitial_lung_disease lesion lucency lung_resection lymphadenopathy mass"
    " mucous_plugging nodule nodulegr1cm opacity other_path pacemaker_or_defib pericardial_effusion"
    " pericardial_thickening plaque pleural_effusion pleural_thickening pneumonia pneumonitis pneumothorax postsurgical"
    " pulmonary_edema reticulation scarring scattered_calc scattered_nod secretion septal_thickening soft_tissue staple"
    " stent sternotomy suture tracheal_tube transplant tree_in_bud tuberculosis".split()
)
LOCATIONS = tuple(  # verbatim
    "abdomen adrenal_gland airways anterior aorta aortic_valve axilla bone breast centrilobular chest_wall diaphragm"
    " esophagus gallbladder heart hilum inferior interstitial intestine ivc kidney lateral left left_lower left_lung"
    " left_mid left_upper liver lung medial mediastinum mitral_valve other_location pancreas posterior pulmonary_artery"
    " pulmonary_valve pulmonary_vein rib right right_lower right_lung right_mid right_upper spine spleen stomach"
    " subpleural superior svc thyroid tricuspid_valve".split()
)
WORDS = {  # where the label by itself isn't a phrase
    "bandlike_or_linear": "band-like or linear opacity", "cabg": "coronary artery bypass graft",
    "gi_tube": "gastrointestinal tube", "groundglass": "ground-glass opacity", "ivc": "inferior vena cava",
    "nodulegr1cm": "nodule larger than 1 cm", "pacemaker_or_defib": "pacemaker or defibrillator",
    "postsurgical": "postsurgical change", "scattered_calc": "scattered calcifications",
    "scattered_nod": "scattered nodules", "soft_tissue": "soft tissue abnormality", "svc": "superior vena cava",
    "tree_in_bud": "tree-in-bud pattern",
}  # fmt: skip
UNASKED = ("other_path", "other_location")  # "other than these" is no question and no answer
METADATA = "CT_Scan_Metadata_Complete_35747.csv"
SPACING_MM = 0.8
_ID = "NoteAcc_DEID"
_SPLITS = {"train": ("imgtrain", "trn"), "validation": ("imgvalid", "val"), "test": ("imgtest", "tst")}


def read(
    folder: str | Path, split: str | None = None, *, volumes: str = "{id}.npz", check_volumes: bool = False
) -> table.Reading:
    """Ask of each CT that is there for each abnormality, and where those that it shows lie.

    Args:
        folder: the folder with the tables.
        split: "train", "validation" or "test"; all by default.
        volumes: where a volume lies below the folder; ``{id}`` stands for its name in the tables.
        check_volumes: read every CT to its end, so that a damaged one is listed (slow).

    Raises:
        BadInput: no table of labels, a column is missing or unknown, a cell isn't 0 or 1, a scan stands twice with
            different contents or in the wrong split's table, ``volumes`` without ``{id}``.
    """
    folder = table.existing_folder(folder)
    if "{id}" not in volumes:
        raise BadInput(
            f"volumes={volumes!r} doesn't say where the name goes; give a pattern such as 'images/{{id}}.npz'"
        )
    paths = {name: folder / f"{file}_Abnormality_and_Location_Labels.csv" for name, (file, _) in _SPLITS.items()}
    if not any(path.is_file() for path in paths.values()):
        raise BadInput(
            f"{folder} holds no labels of Rad-ChestCT; {paths['train'].name} (or imgvalid…, imgtest…) is expected"
        )
    files = table.Files(folder, check=load_volume if check_volumes else None)
    notes: list[str] = []
    patients = _patients(folder / METADATA, notes)
    refused: dict[str, str] = {}
    records: list[Record] = []
    for name in table.wanted_splits(split, tuple(_SPLITS)):
        if not paths[name].is_file():
            notes.append(f"{paths[name].name} is not there")
            continue
        for scan, found in _scans(paths[name], _SPLITS[name][1], notes).items():
            shared = {"dataset": "Rad-ChestCT", "patient": patients.get(scan, scan), "split": name}
            records += [r for r in _about(scan, found, files, volumes, shared, refused) if r]
    notes += table.refused_note(refused) + table.crossing_note(records)
    return table.Reading("Rad-ChestCT", folder, records, dict(files.missing), files.unreadable, tuple(notes))


def load_volume(path: str | Path) -> Volume:
    """Read one ``.npz`` volume into LPS axes; its origin is unknown and set to 0.

    Raises:
        BadInput: not a readable ``.npz`` with the key "ct", not three axes, or not in HU.
    """
    path = Path(path)
    try:
        array = load_npz(path)["ct"]
    except KeyError:
        raise BadInput(f"{path.name} has no array called ct; is it of Rad-ChestCT?") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path.name} is not a readable .npz: {error}; fetch it again") from error
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = SPACING_MM, 1.0
    note = f"axes and {SPACING_MM} mm as the data set documents them; HU clipped to ±1000; origin unknown, set to 0"
    found = Volume(array[::-1], affine, name=path.stem, notes=(note,))  # from head to feet → upwards
    check_hu(found.hu, path.name)
    return found


def words(label: str) -> str:
    """A label or location as a phrase: "pleural_effusion" → "pleural effusion"."""
    return WORDS.get(label, label.replace("_", " "))


def _patients(path: Path, notes: list[str]) -> dict[str, str]:
    """Scan → patient; {} and a note where the metadata isn't there."""
    if not path.is_file():
        notes.append(f"{path.name} is not there: each scan counts as its own patient, so don't split anew")
        return {}
    return {row[_ID]: row["MRN_DEID"] for _, row in table.rows(path, (_ID, "MRN_DEID")) if row[_ID] and row["MRN_DEID"]}


def _scans(path: Path, prefix: str, notes: list[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Scan → abnormality → where it is, () if it isn't. Each row, of up to 4,369 cells, is reduced at once."""
    scans: dict[str, dict[str, tuple[str, ...]]] = {}
    repeated, columns = 0, None
    for line, row in table.rows(path, (_ID,)):
        columns = columns or _columns(path, [name for name in row if name != _ID])
        scan = row[_ID]
        if not re.fullmatch(rf"{prefix}\w+", scan):
            raise BadInput(
                f"{path.name}, line {line}: the scan {scan!r} doesn't begin with {prefix}; the splits must not mix:"
                " mend the table"
            )
        found = {label: _where(row, there, path, line) for label, there in columns.items()}
        if scans.setdefault(scan, found) != found:
            raise BadInput(
                f"{path.name}, line {line}: {_ID} {scan} is there twice with different contents; remove the wrong row"
            )
        repeated += scans[scan] is not found
    if repeated:
        notes.append(f"{path.name}: {table.plural(repeated, 'row')} repeated word for word, kept once")
    return scans


def _columns(path: Path, names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Abnormality → (location, column), checked against the published lists."""
    columns: dict[str, list[tuple[str, str]]] = {label: [] for label in ABNORMALITIES}
    unknown = []
    for name in names:
        label, _, place = name.partition("*")
        if label in columns and place in LOCATIONS:
            columns[label].append((place, name))
        else:
            unknown.append(name)
    if unknown:
        raise BadInput(
            f"{path.name} has the unknown label {table.some(unknown)}; one of the 84 abnormalities, * and one of the 52"
            " locations is expected, such as nodule*left_upper"
        )
    lacking = [label for label, there in columns.items() if not there]
    if lacking:
        raise BadInput(
            f"{path.name} has no column {table.some([f'{label}*…' for label in lacking])};"
            " is it the data set's own file?"
        )
    return columns


def _where(row: dict[str, str], columns: list[tuple[str, str]], path: Path, line: int) -> tuple[str, ...]:
    there = []
    for place, name in columns:
        if row[name] in ("1", "1.0"):
            there.append(place)
        elif row[name] not in ("0", "0.0"):
            raise BadInput(f"{path.name}, line {line}: {name} of {row[_ID]} is {row[name]!r}; 0 or 1 is expected")
    return tuple(there)


def _about(
    scan: str,
    found: dict[str, tuple[str, ...]],
    files: table.Files,
    pattern: str,
    shared: dict,
    refused: dict[str, str],
) -> Iterator[Record | None]:
    asked = []
    for label, places in found.items():
        if label in UNASKED:
            continue
        presence = ("presence", "closed", f"Does this CT show {words(label)}?", "Yes" if places else "No")
        asked.append((label, *presence))
        named = [words(place) for place in places if place not in UNASKED]
        if named:
            asked.append((label, "location", "open", f"Where does this CT show {words(label)}?", ", ".join(named)))
    path = files.find(pattern.replace("{id}", scan), count=len(asked))
    for label, kind, form, question, answer in asked if path else ():
        yield table.make_record(
            refused, f"{scan}, {label}", id=f"rad-chestct:{scan}:{label}:{kind}", **shared, volume=path, kind=kind,
            form=form, question=question, answer=answer,
        )  # fmt: skip
