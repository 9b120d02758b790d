"""Which data set lies in a folder, told by its files; used by ``ctvlm doctor --data``."""

import importlib
from pathlib import Path
from types import ModuleType

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.table import existing_folder

# data set: (module with read(folder, split=None) -> Reading, patterns of files of which one is enough)
READERS = {
    "CT-RATE": ("ct_rate", ("radiology_text_reports/*_reports.csv", "multi_abnormality_labels/*_predicted_labels.csv")),
    "RadGenome-ChestCT": (
        "radgenome",
        ("radgenome_files/*_vqa_*.csv", "radgenome_files/*_re*.csv", "radgenome_files/subset_2000/*_vqa_*.csv"),
    ),
    "M3D-Cap and M3D-VQA": ("m3d", ("M3D_Cap_npy/M3D_Cap.json", "M3D-VQA/M3D_VQA_*.csv", "M3D_VQA/M3D_VQA_*.csv")),
    "AbdomenAtlas 3.0": ("abdomen_atlas", ("AbdomenAtlas3.0MiniWithMeta.csv",)),
    "TotalSegmentator": ("totalsegmentator", ("s[0-9]*/segmentations",)),
    "ReXGroundingCT": ("rex_grounding", ("segmentations/train_*.nii.gz", "MICCAI_challenge_dataset.json")),
    "PMC-VQA": ("pmc_vqa", ("train_2.csv", "test_2.csv", "images/PMC*")),
    "Rad-ChestCT": ("rad_chestct", ("img*_Abnormality_and_Location_Labels.csv",)),
    "STOIC2021": ("stoic", ("metadata/reference.csv",)),
}


def recognise(folder: str | Path) -> dict[str, ModuleType]:
    """Give the data sets that lie in a folder and their readers.

    Raises:
        BadInput: there is no such folder, or none that is known lies in it.
    """
    folder = existing_folder(folder)
    found = {}
    for name, (module, patterns) in READERS.items():
        if any(next(base.glob(pattern), None) for base in (folder, folder / "dataset") for pattern in patterns):
            found[name] = importlib.import_module(f"ctvlm_lib.records.{module}")
    if not found:
        known = ", ".join(f"{name} ({patterns[0]})" for name, (_, patterns) in READERS.items())
        raise BadInput(f"no data set that is known lies in {folder}; known by their files are: {known}")
    return found
