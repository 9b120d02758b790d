"""The model of two towers: released checkpoints, loaded by name, give the similarities of the plain formula."""

import math

import numpy as np
import pytest
import torch
from helpers_encoder import lived_in
from helpers_m3d_cap import SIZE, make_bert, released_file, tiny
from safetensors.torch import load_file, save_file

from ctvlm_lib.alignment.m3d_pretrain import build_for
from ctvlm_lib.alignment.two_towers import fitting, load_two_towers, save_two_towers
from ctvlm_lib.encoder import dcformer, vit3d
from ctvlm_lib.errors import BadInput

NANO = {"variant": "nano"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.set_num_threads(1)
    return make_bert(tmp_path_factory.mktemp("hub") / "ClinicalBERT")


def plain_similarity(tensors, encoder, bert, volumes, texts):
    """Cosine of projected vectors, a pair at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    rows = []
    for volume in volumes:
        image = encoder.encode(volume[None])[1][0] @ tensors["mm_vision_proj.weight"].T + tensors["mm_vision_proj.bias"]
        for text in texts:
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
            said = hidden @ tensors["mm_language_proj.weight"].T + tensors["mm_language_proj.bias"]
            rows.append(torch.cosine_similarity(image, said, dim=0))
    return torch.stack(rows).reshape(len(volumes), len(texts))


TEXTS = ["a cyst in the liver", "no nodule", "a stone in the left kidney . no mass"]


@torch.inference_mode()
def test_a_released_siglip_model_is_loaded_whole(bert, tmp_path):
    encoder = lived_in(dcformer("nano", seed=1))
    tensors = released_file(tmp_path / "model.safetensors", bert, encoder, t_prime=[1.7], bias=-2.5)
    model, fit = load_two_towers(tmp_path / "model.safetensors", str(bert), **NANO)
    volumes = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    alike = plain_similarity(tensors, encoder, bert, volumes, TEXTS)
    torch.testing.assert_close(model.logits(volumes, TEXTS), math.exp(1.7) * alike - 2.5, rtol=1e-4, atol=1e-4)
    assert fit.exact and len(fit.matched) == len(tensors) and not any(p.requires_grad for p in model.parameters())


@torch.inference_mode()
def test_a_released_clip_model_with_a_transformer_is_loaded_whole(bert, tmp_path):
    switches = {"size_dhw_vox": SIZE, "patch_dhw_vox": (16, 16, 16), "hidden_size": 24, "mlp_size": 32, "layers": 1}
    encoder = vit3d("m3d", seed=1, **switches)
    tensors = released_file(tmp_path / "model.safetensors", bert, encoder, logit_scale=14.0)
    model, _ = load_two_towers(tmp_path, str(bert), encoder="vit3d", variant="m3d", **switches)
    volumes = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    alike = plain_similarity(tensors, encoder.eval(), bert, volumes, TEXTS)
    torch.testing.assert_close(model.logits(volumes, TEXTS), 14 * alike, rtol=1e-4, atol=1e-4)
    save_two_towers(tmp_path / "again", model, {})
    assert load_file(tmp_path / "again" / "model.safetensors")["logit_scale"] == pytest.approx(14)


def test_of_a_repository_the_whole_model_is_fetched(bert, tmp_path, monkeypatch):
    import huggingface_hub

    tensors = released_file(tmp_path / "a.safetensors", bert, dcformer("nano", seed=1), t_prime=2.0, bias=0.5)
    torch.save({k: t.clone() for k, t in tensors.items()}, tmp_path / "pytorch_model.bin")
    files = ["README.md", "config.json", "pretrained_ViT.bin", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision=None: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, revision=None: str(tmp_path / file))
    with pytest.raises(BadInput, match="only in profile paper"):
        load_two_towers("MagicXin/DCFormer_SigLIP", str(bert), **NANO)
    model, fit = load_two_towers("MagicXin/DCFormer_SigLIP", str(bert), profile="paper", **NANO)
    assert fit.exact and model.pairings["report"].bias == 0.5


def test_a_checkpoint_without_both_towers_or_of_another_shape_is_refused(bert, tmp_path):
    file = tmp_path / "model.safetensors"
    tensors = released_file(file, bert, dcformer("nano", seed=1), t_prime=2.0, bias=0.0)
    with pytest.raises(BadInput, match="doesn't fit variant 'small'; its blocks and channels are those of .*'nano'"):
        load_two_towers(file, str(bert))
    with pytest.raises(BadInput, match="only in profile paper; give a folder"):
        load_two_towers(file, **NANO)
    save_file({k: t.clone() for k, t in tensors.items() if not k.startswith("language")}, file)
    with pytest.raises(BadInput, match="has no language_encoder.; give a contrastive checkpoint"):
        load_two_towers(file, str(bert), **NANO)
    with pytest.raises(BadInput, match="no text tower can be had from"):
        build_for(tiny(tmp_path, tmp_path))


def test_a_long_report_keeps_its_first_sentence_and_fits(bert):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert)
    text = ". ".join(["A cyst in the liver", *("No mass in the spleen" for _ in range(8)), "A stone in the kidney."])
    said = {fitting(text, tokenizer, 24, np.random.default_rng(k)) for k in range(20)}
    assert all(t.startswith("A cyst in the liver.") and len(tokenizer(t)["input_ids"]) <= 24 for t in said)
    assert any("stone" in t for t in said) and any("stone" not in t for t in said)
    assert fitting("No mass.", tokenizer, 24, None) == "No mass."
