"""A miniature M3D-Cap in its real layout, a tiny ClinicalBERT in the hub's, and a recipe that trains on both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers_ct import write_nifti
from safetensors.torch import save_file

from ctvlm_lib.alignment.recipe import paper

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . a the is in no liver kidney spleen lung cyst mass nodule stone left right"
SIZE = (64, 64, 64)
CASES = {  # case: (split, phases, text); one case lies in two splits, as in the published lists
    "ct_case/000001": ("train", 2, "A cyst in the liver. No mass."),
    "ct_case/000002": ("train", 3, "A mass in the left kidney."),
    "ct_quizze/000003": ("train", 2, "A nodule in the right lung."),
    "ct_case/000004": ("train", 2, "A stone in the kidney."),
    "ct_case/000005": ("validation", 2, "The spleen is in the left."),
    "ct_case/000006": ("test", 2, "A mass in the liver."),
    "ct_quizze/000007": ("test", 2, "No nodule in the lung."),
}


def make_copy(folder: Path) -> Path:
    """Nine training volumes, three of validation and four of test, of several sizes; one lies there as .nii.gz."""
    lists = {"train": [], "validation": [], "test": [], "test1k": []}
    for number, (case, (split, phases, text)) in enumerate(CASES.items()):
        for phase in range(phases):
            path = folder / "M3D_Cap_npy" / case / f"Axial_phase_{phase}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([number, phase])
            np.save(path, random.random((1, 32 + phase, 40, 48), dtype=np.float32))
            lists[split].append(entry(folder, path))
        path.with_name("text.txt").write_text(text, encoding="utf-8")
    again = folder / "M3D_Cap_npy/ct_case/000001/Coronal.npy"
    np.save(again, np.random.default_rng(9).random((1, 20, 30, 30), dtype=np.float32))
    lists["validation"].append(entry(folder, again))
    as_med3dvlm(folder / lists["train"][0]["image"])
    (folder / "M3D_Cap_npy/M3D_Cap.json").write_text(json.dumps(lists), encoding="utf-8")
    return folder


def entry(folder: Path, path: Path) -> dict[str, str]:
    """A line of M3D_Cap.json."""
    inside = path.relative_to(folder)
    return {"image": str(inside), "text": str(inside.with_name("text.txt"))}


def as_med3dvlm(path: Path) -> Path:
    """Store a volume as Med3DVLM does; the list goes on naming the .npy."""
    array = np.load(path)[0]
    path.unlink()
    return write_nifti(path.with_suffix(".nii.gz"), np.transpose(array, (2, 1, 0)), np.eye(4))


def make_bert(folder: Path) -> Path:
    """A DistilBERT with random weights: config.json, model.safetensors, vocab.txt, tokenizer_config.json."""
    from transformers import DistilBertConfig, DistilBertModel

    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS.split()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True, "model_max_length": 24}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shape = {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "max_position_embeddings": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DistilBertConfig(vocab_size=len(words), dropout=0.0, attention_dropout=0.0, **shape)
        DistilBertModel(config).save_pretrained(folder)
    return folder


def tiny(copy: Path, bert: Path, **corpus):
    """The paper's recipe with DCFormer nano at 64×64×64, batches of four and one epoch: two steps."""
    usual = {"variant": "nano", "size_dhw_vox": SIZE, "epochs": 1, "workers": 2}
    config = paper("tiny", copy, **usual | corpus)
    return replace(config, batch=4, width=16, text=str(bert), training=replace(config.training, checkpoint_every=1))


def released_file(path, bert, encoder, size=SIZE, **scalars):
    """A contrastive checkpoint with random weights, put together by hand from its published names."""
    from transformers import AutoModel

    tensors = {f"vision_encoder.{k}": t for k, t in encoder.state_dict().items()}
    tensors |= {f"language_encoder.{k}": t for k, t in AutoModel.from_pretrained(bert).state_dict().items()}
    random, wide = torch.Generator().manual_seed(5), encoder.eval().encode(torch.zeros(1, 1, *size))[1].shape[1]
    for name, shape in (("mm_vision_proj", (12, wide)), ("mm_language_proj", (12, 16))):
        tensors |= {f"{name}.weight": torch.randn(shape, generator=random),
                    f"{name}.bias": torch.randn(12, generator=random)}  # fmt: skip
    tensors |= {name: torch.tensor(value) for name, value in scalars.items()}
    save_file({k: t.clone() for k, t in tensors.items()}, path)
    return tensors
