"""Released checkpoints: tiny random ones, saved in each published layout by the test, load by name with a report."""

import re

import pytest
import torch
from helpers_encoder import lived_in
from safetensors.torch import save_file

from ctvlm_lib.encoder import dcformer
from ctvlm_lib.encoder.released import load_released
from ctvlm_lib.errors import BadInput

TINY = {"blocks": (1, 2, 1, 1), "channels": (4, 4, 6, 8, 10), "kernels_vox": (5, 5, 3, 3)}
PREFIXES = {
    "the bare encoder": "",
    "the contrastive model": "vision_encoder.",
    "the vision-language model": "model.vision_tower.vision_tower.",
    "the DCFormer repository's CLIP": "visual_transformer.",
}


@pytest.fixture(scope="module")
def original():
    return lived_in(dcformer("nano", seed=0, **TINY))


@pytest.fixture(scope="module")
def tensors(original):
    return {k: t.clone() for k, t in original.state_dict().items()}


def load(path, **switches):
    return load_released(path, "nano", **(TINY | switches))


def repository_naming(tensors):
    """As the DCFormer repository stores them: gamma, every BatchNorm twice, a codebook."""
    renamed = {k.replace(".scale", ".gamma"): t for k, t in tensors.items()}
    for name, tensor in tensors.items():
        for i in (1, 2, 3):
            renamed[name.replace(f".c{i}.1.", f".norm.{i - 1}.")] = tensor.clone()
    renamed = {k: t for k, t in renamed.items() if not k.endswith(".scale")}
    return renamed | {"vq._codebook.embed": torch.zeros(1, 16, 10)}


def assert_same(encoder, tensors):
    given = encoder.state_dict()
    assert set(given) == set(tensors)
    assert all(torch.equal(given[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize("layout", PREFIXES)
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_each_layout_of_med3dvlm_loads(tensors, layout, suffix, tmp_path):
    stored = {PREFIXES[layout] + k: t.clone() for k, t in tensors.items()}
    if PREFIXES[layout]:
        stored |= {"mm_vision_proj.weight": torch.zeros(3, 3), "t_prime": torch.zeros(1)}
    file = tmp_path / f"weights.{suffix}"
    save_file(stored, file) if suffix == "safetensors" else torch.save(stored, file)
    encoder, fit = load(file)
    assert_same(encoder, tensors)
    assert fit.exact and len(fit.matched) == len(tensors) and not encoder.training
    assert len(fit.ignored) == (2 if PREFIXES[layout] else 0)


def test_the_dcformer_repositorys_naming_loads_with_a_report(tensors, original, tmp_path):
    torch.save({"model": repository_naming(tensors)}, tmp_path / "dcformer.pth")
    encoder, fit = load(tmp_path / "dcformer.pth")
    assert_same(encoder, tensors)
    assert fit.renamed["encoder.s1.0.gamma"] == "encoder.s1.0.scale" and len(fit.renamed) == 5
    assert sorted(set(fit.ignored.values())) == ["another part of the model", "stored twice"]
    table = fit.table()
    assert re.search(rf"matched +{len(tensors)} ", table) and "gamma → encoder" in table and "(stored twice)" in table
    x = torch.randn(1, 1, 64, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(original(x), encoder(x), strict=True))


def test_the_second_name_of_a_norm_alone_is_enough(tensors, tmp_path):
    """safetensors keeps only one of two names that share their memory."""
    stored = {k: t for k, t in repository_naming(tensors).items() if not re.search(r"\.c[123]\.1\.", k)}
    save_file(stored, tmp_path / "w.safetensors")
    encoder, fit = load(tmp_path / "w.safetensors")
    assert_same(encoder, tensors)
    assert fit.renamed["encoder.s4.0.dwconv.norm.2.running_var"] == "encoder.s4.0.dwconv.c3.1.running_var"


def test_twins_that_differ_are_refused(tensors, tmp_path):
    stored = repository_naming(tensors)
    stored["encoder.s1.0.dwconv.norm.0.weight"] += 1
    torch.save(stored, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="should be one tensor and differ"):
        load(tmp_path / "w.pth")


def test_shards_in_a_folder_load_as_one(tensors, tmp_path):
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({k: tensors[k] for k in part}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert_same(load(tmp_path).encoder, tensors)


def test_half_precision_becomes_float32(tensors, tmp_path):
    save_file({k: t.bfloat16() if t.is_floating_point() else t for k, t in tensors.items()}, tmp_path / "w.safetensors")
    assert {p.dtype for p in load(tmp_path / "w.safetensors").encoder.parameters()} == {torch.float32}


def test_an_every_voxel_stem_starts_as_the_released_one(tensors, original, tmp_path):
    torch.save(tensors, tmp_path / "w.bin")
    encoder, fit = load(tmp_path / "w.bin", stem="every_voxel")
    assert "starts at zero" in fit.table()
    x = torch.randn(1, 1, 64, 64, 64)
    for a, b in zip(original(x), encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    encoder.train()(torch.randn(2, 1, 64, 64, 64))[-1].square().sum().backward()
    assert encoder.encoder.s0[0][0].c4[1].weight.grad.abs().sum() > 0  # and it can learn


def test_what_does_not_fit_is_told_as_a_table(tensors, tmp_path):
    broken = {**tensors, "encoder.s9.0.scale": torch.zeros(2), "encoder.s1.0.scale": torch.zeros(7)}
    del broken["encoder.s2.0.proj.weight"]
    torch.save(broken, tmp_path / "w.bin")
    with pytest.raises(BadInput) as told:
        load(tmp_path / "w.bin")
    first, *rows = str(told.value).splitlines()
    assert "w.bin doesn't fit dcformer('nano')" in first
    assert [r.split()[0] for r in rows] == ["matched", "missing", "not", "another"]
    assert "encoder.s2.0.proj.weight" in rows[1] and "encoder.s9" in rows[2] and "(7,), not (4,)" in rows[3]


def test_what_is_left_over_is_reported_and_not_refused(tensors, tmp_path):
    torch.save({**tensors, "encoder.s9.0.scale": torch.zeros(2)}, tmp_path / "w.bin")
    encoder, fit = load(tmp_path / "w.bin")
    assert fit.unexpected == ("encoder.s9.0.scale",) and fit.complete and not fit.exact
    assert_same(encoder, tensors)


def test_another_variant_is_recognised(tmp_path):
    torch.save(dcformer("nano").state_dict(), tmp_path / "w.bin")
    with pytest.raises(BadInput, match="its blocks and channels are those of variant 'nano'"):
        load_released(tmp_path / "w.bin")


def test_weights_that_are_not_finite_or_no_dcformer_are_refused(tensors, tmp_path):
    torch.save({**tensors, "encoder.s1.0.scale": torch.full((4,), float("inf"))}, tmp_path / "w.bin")
    with pytest.raises(BadInput, match=r"w\.bin holds weights that are not finite \(encoder\.s1\.0\.scale\)"):
        load(tmp_path / "w.bin")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.bin")
    with pytest.raises(BadInput, match=r"holds 0 tensors named .*its first tensors are layer\.weight"):
        load(tmp_path / "other.bin")
    with pytest.raises(BadInput, match="no weights file"):
        load(tmp_path / "none.bin")


def test_the_hub_is_asked_only_in_profile_paper(tensors, tmp_path, monkeypatch):
    import huggingface_hub

    for part in (1, 2):
        names = sorted(tensors)[part - 1 :: 2]
        save_file({k: tensors[k] for k in names}, tmp_path / f"model-{part}.safetensors")
    files = ["README.md", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision=None: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, revision=None: str(tmp_path / file))
    with pytest.raises(BadInput, match="only in profile paper"):
        load("MagicXin/DCFormer_SigLIP")
    assert_same(load("MagicXin/DCFormer_SigLIP", profile="paper").encoder, tensors)
