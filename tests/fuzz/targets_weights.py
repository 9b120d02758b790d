"""Readers of weights: checkpoints with their records, released files, adapters, GGUF, models in the hub's layout."""

import json
import shutil
from pathlib import Path

import helpers_finetune
import helpers_gguf
import helpers_m3d_cap
import helpers_own
import numpy as np
import test_lora
import test_training
import torch
from helpers_roberta import make_roberta
from helpers_vlm import decoder_config, encoder_config, tiny
from safetensors.torch import save_file

from ctvlm_lib import checkpoints, weights
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment.text import text_network
from ctvlm_lib.alignment.text_vectors import TextVectors
from ctvlm_lib.encoder import released as encoder_released
from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.evaluate import radbert
from ctvlm_lib.evaluate.bert_score import layers_like_roberta_large
from ctvlm_lib.run import PROJECT
from ctvlm_lib.segment.small import load_small
from ctvlm_lib.training import _groups
from ctvlm_lib.training_checkpoint import resume
from ctvlm_lib.vlm import gguf_file, ladder, ladder_tokenizer, released, smollm2
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.lora import load_adapter, save_adapter, with_lora
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.parts import from_hub
from ctvlm_lib.vlm.processor import CtvlmProcessor
from fuzz.target import Target

SHIPPED = PROJECT / "data_samples" / "checkpoints"
NANO = {"variant": "nano", "channels": (4, 4, 8, 8, 12)}
FLAT = {"a.weight": (3, 4), "b.bias": (5,), "module.c.count": ()}


def _tensors() -> dict[str, torch.Tensor]:
    return {name: torch.linspace(-1, 1, max(1, int(np.prod(shape)))).reshape(shape) for name, shape in FLAT.items()}


def _flat(folder: Path) -> None:
    torch.save(_tensors(), folder / "zipped.pt")
    torch.save({"state_dict": _tensors(), "step": 3}, folder / "wrapped.pth")
    torch.save(_tensors(), folder / "old.bin", _use_new_zipfile_serialization=False)
    save_file(_tensors(), folder / "model.safetensors", {"format": "pt"})


def _checkpoint(folder: Path) -> None:
    checkpoints.save("tiny", _tensors(), {"steps": 3}, folder)


def _renew(name: str):
    """Let a record agree with damaged weights, or the other way round: damage beyond the hash is looked at."""

    def mend(folder: Path, file: Path) -> None:
        path = folder / name / checkpoints.RECORD
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weights"] = checkpoints._facts(folder / name / checkpoints.WEIGHTS)
        path.write_text(json.dumps(content), encoding="utf-8")

    return mend


def _renew_tokenizer(folder: Path, file: Path) -> None:
    path = folder / ladder_tokenizer.NAME / ladder_tokenizer.RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    record["sha256"] = ladder_tokenizer.tokenizer_hash(folder)
    path.write_text(json.dumps(record), encoding="utf-8")
    model = json.loads((folder / "ladder-small" / "record.json").read_text(encoding="utf-8"))
    model["tokenizer"] = record["sha256"]
    (folder / "ladder-small" / "record.json").write_text(json.dumps(model), encoding="utf-8")
    _renew("ladder-small")(folder, file)


def _shipped(*names: str):
    def make(folder: Path) -> None:
        for name in names:
            shutil.copytree(SHIPPED / name, folder / name)

    return make


def _encoder(folder: Path) -> None:
    DCFormer.with_seed(encoder_config(), 1).save_pretrained(folder / "ours")
    made = DCFormer.with_seed(variant_config(NANO["variant"], channels=NANO["channels"]), 1).state_dict()
    torch.save(made, folder / "pretrained_ViT.bin")


def _read_encoder(folder: Path, file: Path) -> None:
    if file.parent.name == "ours":
        DCFormer.from_pretrained(folder / "ours")
    else:
        encoder_released.load_released(folder / "pretrained_ViT.bin", **NANO)


def _vlm(folder: Path) -> None:
    model, processor = tiny()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _released(folder: Path) -> None:
    model, _ = tiny()
    parts = {"model.vision_tower.vision_tower.": model.encoder, "model.mm_projector.": model.projector,
             "model.": model.decoder.model, "lm_head.": model.decoder.lm_head}  # fmt: skip
    tensors = {prefix + name: t.clone() for prefix, part in parts.items() for name, t in part.state_dict().items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    content = {key: value for key, value in decoder_config().to_dict().items() if key != "dtype"}
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "vlm_qwen"}, default=str), encoding="utf-8")


def _read_released(folder: Path, file: Path) -> None:
    released.load_released(folder, encoder=encoder_config(), size_dhw_vox=(16, 32, 32))


def _adapter(folder: Path) -> None:
    save_adapter(test_lora.trained(with_lora(test_lora.decoder(), rank=2)), folder)


def _run(folder: Path) -> None:
    test_training.run(folder)


def _resume(folder: Path, file: Path) -> None:
    model = test_training.small_model()
    optimizer = torch.optim.AdamW(_groups(model, test_training.SETTINGS), lr=0.1)
    resume(model, optimizer, test_training.SETTINGS, folder)


def _features(folder: Path) -> None:
    *_, kept = helpers_finetune.school(count=3)
    kept.save(folder / "features.safetensors")




def _vectors(folder: Path) -> None:
    np.save(folder / "texts.npy", np.random.default_rng(0).random((3, 8), dtype=np.float32))


def _read_vectors(folder: Path, file: Path) -> None:
    TextVectors(file, {"a": 0, "b": 1, "c": 2}, 0).at(np.array([0, 2]))




def _roberta(folder: Path, file: Path) -> None:
    radbert._backbone(folder, "quick")
    layers_like_roberta_large(folder)


WEIGHTS = (
    Target("weights.read_tensors", _flat, lambda folder, file: weights.read_tensors(file, "weights")),
    Target("checkpoints.load", _checkpoint, lambda folder, file: checkpoints.load("tiny", folder), mend=_renew("tiny")),
    Target("aligned encoder", _shipped("dcformer-siglip-8"),
           lambda folder, file: aligned.load(folder / "dcformer-siglip-8"),
           mend=_renew("dcformer-siglip-8")),
    Target("small VISTA-3D", _shipped("vista3d_phantom"), lambda folder, file: load_small("vista3d_phantom", folder),
           mend=_renew("vista3d_phantom")),
    Target("language model", _shipped("ladder-small", "ladder-tokenizer"),
           lambda folder, file: ladder.load("small", folder), mend=_renew_tokenizer),
    Target("encoder", _encoder, _read_encoder),
    Target("vision-language model", _vlm, lambda folder, file: CtvlmModel.from_pretrained(folder),
           ("config.json", "generation_config.json", "*.safetensors"), share=0.4),
    Target("processor", _vlm, lambda folder, file: CtvlmProcessor.from_pretrained(folder),
           ("*token*.json", "ctvlm_processor.json")),
    Target("released Med3DVLM", _released, _read_released, share=0.3),
    Target("LoRA adapter", _adapter, lambda folder, file: load_adapter(test_lora.decoder(), folder)),
    Target("resumed training", _run, _resume),
    Target("GGUF", lambda folder: helpers_gguf.write(folder / "a.gguf"), lambda folder, file: gguf_file.read(file)),
    Target("SmolLM2", lambda folder: helpers_gguf.write(folder / "a.gguf"), lambda folder, file: smollm2.load(file)),
    Target("features", _features, lambda folder, file: FeatureCache.load(file)),
    Target("text tower", helpers_m3d_cap.make_bert, lambda folder, file: text_network(folder)),
    Target("decoder of the hub", helpers_own.make_qwen, lambda folder, file: from_hub(str(folder), torch.float32),
           share=0.6),
    Target("RoBERTa of the hub", lambda folder: make_roberta(folder, ["abc"]), _roberta, ("*.json", "*.txt")),
    Target("text vectors", _vectors, _read_vectors),
)  # fmt: skip

