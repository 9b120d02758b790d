"""A miniature CT-RATE and RadGenome-ChestCT that belong together, a tiny CXR-BERT, and a sources file."""

import json
from pathlib import Path

import numpy as np
import torch
from helpers_data import METADATA, REPORT, SHAPE, chest_hu, metadata_row, write, write_csv

from ctvlm_lib.records import ct_rate

SPLITS = {"train": ("train", 10), "validation": ("valid", 5)}  # split: (what names begin with, scans)
FROM_CT_RATE = "train_2_a_1"  # the one volume that isn't there in RadGenome-ChestCT's own copy
SILENT = "train_3_a_1"  # the one scan of which no region's sentence is there
PLACES = {  # region: (tree of its mask, path in the tables, its voxels (x, y, z))
    "lung": ("region", "lung/lung/left lung", (slice(2, 6), slice(2, 5), slice(1, 5))),
    "heart": ("region", "heart/heart", (slice(5, 8), slice(3, 6), slice(2, 5))),
    "esophagus": ("region", "esophagus/esophagus", (slice(8, 9), slice(5, 6), slice(2, 4))),
    "aorta": ("anatomy", "mediastinum/aorta", (slice(7, 10), slice(5, 8), slice(0, 8))),
}
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , a the is in no or there shows lung heart esophagus aorta pleura normal nodule"
    " effusion calcification hernia cardiomegaly emphysema atelectasis opacity wall lymphadenopathy consolidation 0 1 2"
    " 3 4 5 6 7 8 9"
)
OPTIONS = {  # of training, in miniature
    "epochs": 2, "warmup_steps": 2, "batch": 4, "bank": 60, "width": 8, "lr": 1e-3, "precision": "no", "workers": 2,
    "held_out": 0.3, "checkpoint_every": 1,
    "encoder": {"size_dhw_vox": [8, 8, 8], "patch_dhw_vox": [2, 2, 2], "hidden_size": 16, "mlp_size": 32, "layers": 2,
                "heads": 2},
}  # fmt: skip


def make_all(folder: Path, prepared: str = "prepared", **options) -> Path:
    """Write data, text tower and ``sources.toml``; returns the file."""
    make_pairs(folder)
    make_cxr_bert(folder / "CXR-BERT")
    made = OPTIONS | options
    encoder = "".join(f"{name} = {json.dumps(value)}\n" for name, value in made.pop("encoder").items())
    settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in made.items())
    path = folder / "sources.toml"
    path.write_text(
        f'[data]\nct_rate = "CT-RATE"\nradgenome = "RadGenome"\n[weights]\ncxr_bert = "CXR-BERT"\n'
        f'[run]\nprepared = "{prepared}"\n[run.alignment]\n{settings}[run.alignment.encoder]\n{encoder}',
        encoding="utf-8",
    )
    return path


def make_pairs(folder: Path) -> None:
    """Fifteen scans, each of a patient of its own, in both data sets."""
    rate, genome = folder / "CT-RATE" / "dataset", folder / "RadGenome" / "dataset"
    for split, (short, count) in SPLITS.items():
        names = [f"{short}_{number}_a_1" for number in range(1, count + 1)]
        reports, labels, metadata, sentences, presences = [], [], [], [], []
        for number, name in enumerate(names, start=1):
            write(_place(rate / f"{short}_fixed", name, "_a") if name == FROM_CT_RATE
                  else _place(genome / f"{short}_preprocessed", name, "a"), _chest(number))  # fmt: skip
            reports.append((f"{name}.nii.gz", "", "CT", f"Nodule {number}. The heart is normal.", "Not given."))
            labels.append((f"{name}.nii.gz", *[number >> k % 3 & 1 for k in range(18)]))
            metadata.append(tuple(metadata_row(VolumeName=f"{name}.nii.gz").values()))
            for region, (tree, path, voxels) in PLACES.items():
                _mask(genome / f"{short}_{tree}_mask/seg_{name}/{region}.nii.gz", voxels)
                for level in (region if region == "lung" else path.split("/")[0], path) if name != SILENT else ("",):
                    sentences.append((f"{name}.nii.gz", level, f"The {region} is normal, {number % 4}."))
                presences.append((f"{name}.nii.gz", f"{path.split('/')[0]}/{region}", "nodule, opacity", "Yes."))
                presences.append((f"{name}.nii.gz", f"{path.split('/')[0]}/{region}", "effusion", "No."))
        write_csv(rate / f"radiology_text_reports/{split}_reports.csv", REPORT, reports)
        write_csv(rate / f"multi_abnormality_labels/{short}_predicted_labels.csv", ("VolumeName", *ct_rate.LABELS),
                  labels)  # fmt: skip
        write_csv(rate / f"metadata/{split}_metadata.csv", METADATA, metadata)
        files = genome / "radgenome_files"
        write_csv(files / f"{split}_region_report.csv", ("Volumename", "Anatomy", "Sentence"), sentences)
        write_csv(files / f"{split}_vqa_presence.csv", ("Volumename", "Anatomy", "Finding", "Presence"), presences)


def make_cxr_bert(folder: Path) -> Path:
    """In the hub's layout: a config.json that asks for code of its own, and the weights of the whole language model."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS.split()), max_position_embeddings=48, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = BertForMaskedLM(config).state_dict()
    tensors |= {"cls_projection_head.dense_to_hidden.weight": torch.zeros(8, 16)}
    kept = {name: tensor.clone() for name, tensor in tensors.items() if "decoder" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    own = {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 8,
           "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict() | own, default=str), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _place(tree: Path, name: str, scan: str) -> Path:
    patient = name.rsplit("_", 2)[0]
    return tree / patient / f"{patient}{scan}" / f"{name}.nii.gz"


def _mask(path: Path, voxels) -> Path:
    inside = np.zeros(SHAPE, np.uint8)
    inside[voxels] = 1
    return write(path, inside)


def _chest(seed: int) -> np.ndarray:
    return chest_hu() + np.random.default_rng(seed).integers(-9, 9, SHAPE).astype(np.int16)
