"""Masks made here: VISTA-3D on MONAI's own class with random weights, its prompts and geometry; lungs by threshold."""

from dataclasses import replace

import numpy as np
import pytest

from ctvlm_lib import anatomy, segment, volume
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import dice

WIDTH = 8
SMALL = {"patch": (32, 32, 32), "device": "cpu"}


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A file of random weights for MONAI's VISTA3D, six times narrower than the released network."""
    import torch
    from monai.networks.nets.vista3d import vista3d132

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(vista3d132(encoder_embed_dim=WIDTH, in_channels=1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tensors(tiny_weights):
    import torch

    return torch.load(tiny_weights, weights_only=True)


@pytest.fixture(scope="module")
def network(tiny_weights):
    return segment.load_vista3d(tiny_weights)


def bright_as_class(*windows):
    """A network that gives a class to each range of HU: what comes out can be told voxel by voxel."""
    import torch

    low, high = -963.8247715525971, 1053.678477684517

    class Bright(torch.nn.Module):
        def forward(self, image, class_vector, transpose):
            assert transpose and class_vector.shape == (len(windows), 1)
            hu = image * (high - low) + low
            return torch.cat([(b - a) / 2 - (hu - (a + b) / 2).abs() for a, b in windows], dim=1)

    return Bright()


def test_preprocessing_gives_1_5_mm_unit_range_and_ras(synthetic_case):
    tensor, fine = segment.preprocess(synthetic_case.volume)
    assert fine.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert tensor.shape == (1, 1, *fine.shape[::-1]) and tensor.dtype == np.float32
    assert 0 <= tensor.min() and tensor.max() <= 1
    wanted = volume.scale_range(fine.hu, -963.8247715525971, 1053.678477684517)
    np.testing.assert_allclose(tensor[0, 0, ::-1, ::-1].T, wanted, atol=1e-6)  # RAS (x, y, z) → LPS (d, h, w)


def test_preprocessing_crops_air_and_keeps_positions(synthetic_case):
    wide = synthetic_case.volume.crop_or_pad((60, 41, 90))
    _, narrow = segment.preprocess(synthetic_case.volume)
    _, cropped = segment.preprocess(wide)
    assert np.prod(cropped.shape) < 0.6 * np.prod(wide.resample((1.5, 1.5, 1.5)).shape)
    middle = np.argwhere(cropped.hu > 200).mean(axis=0)  # the aorta
    assert np.abs(cropped.mm_of(middle) - narrow.mm_of(np.argwhere(narrow.hu > 200).mean(axis=0))).max() < 1.5


def test_names_become_class_prompts():
    assert segment.class_ids(["lung", "spleen", "left lung upper lobe"]) == (28, 29, 30, 31, 32, 3)
    assert segment.class_ids("kidney") == (14, 5)
    assert segment.class_ids(1) == (1,)
    assert segment.class_ids("everything") == anatomy.label_lists()["117"]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ("splen", "did you mean spleen"),
        ("pleura", "no class for pleura"),
        ("rectum", r"rectum \(18\) but doesn't support it"),
        (133, "no id 133"),
        ([], "no class was given"),
    ],
)
def test_what_can_not_be_prompted_is_said(classes, sentence):
    with pytest.raises(BadInput, match=sentence):
        segment.class_ids(classes)


def test_monais_network_gives_a_label_map_on_the_cts_grid(synthetic_case, network):
    found = segment.segment(synthetic_case.volume, ["liver", "kidney"], network, **SMALL)
    assert found.shape == synthetic_case.volume.shape and found.labels.dtype == np.uint16
    np.testing.assert_array_equal(found.affine, synthetic_case.volume.affine)
    assert found.names == {1: "liver", 14: "left kidney", 5: "right kidney"}
    assert set(np.unique(found.labels)) <= {0, 1, 5, 14}
    assert "3 class prompts" in found.notes[0]


def test_the_label_is_the_best_class_above_background(synthetic_case, network):
    """One window as large as the image: the plain forward pass must give the same labels."""
    import torch

    tensor, fine = segment.preprocess(synthetic_case.volume)
    patch = (48, 48, 64)
    padded = np.pad(
        tensor[0, 0],
        [((p - n) // 2, p - n - (p - n) // 2) for n, p in zip(fine.shape[::-1], patch, strict=True)],
        "edge",
    )
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded)[None, None], class_vector=torch.tensor([[1], [3]]), transpose=True)[0]
    best = torch.where((logits > 0).any(0), logits.argmax(0) + 1, 0).numpy()
    start = [(p - n) // 2 for n, p in zip(fine.shape[::-1], patch, strict=True)]
    best = best[tuple(slice(s, s + n) for s, n in zip(start, fine.shape[::-1], strict=True))]
    found = segment.segment(fine, ["liver", "spleen"], network, patch=patch, device="cpu")
    wanted = np.array([0, 1, 3])[best][::-1, ::-1].T
    assert np.mean(found.labels == wanted) > 0.999  # rounding may turn a tie


def test_several_passes_give_what_one_pass_gives(synthetic_case, network):
    classes = ["liver", "spleen", "aorta", "stomach"]
    whole = segment.segment(synthetic_case.volume, classes, network, **SMALL)
    passes = segment.segment(synthetic_case.volume, classes, network, memory_gb=1e-6, **SMALL)
    assert whole.present and np.mean(whole.labels == passes.labels) > 0.999


def test_masks_lie_where_the_organs_lie(synthetic_case):
    """Liver on the patient's right, anisotropic voxels, several windows: compared with the known organs."""
    found = segment.segment(synthetic_case.volume, ["aorta"], bright_as_class((220, 400)), **SMALL)
    assert dice(found.binary("aorta"), synthetic_case.labels.binary("aorta")) > 0.7  # 4 mm wide at 1.5 mm
    both = segment.segment(synthetic_case.volume, ["liver", "spleen"], bright_as_class((80, 120), (120, 160)), **SMALL)
    assert dice(both.binary("liver"), synthetic_case.labels.binary("liver")) > 0.8


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
def test_the_same_anatomy_in_another_files_axes_gets_the_same_labels(synthetic_case, network, tmp_path, orientation):
    file = replace(synthetic_case.volume, orientation=orientation).save(tmp_path / "ct.nii.gz")
    here = segment.segment(synthetic_case.volume, ["liver", "spleen"], network, **SMALL)
    there = segment.segment(volume.load(file), ["liver", "spleen"], network, **SMALL)
    assert there.orientation == orientation
    assert len(here.present) == 2
    np.testing.assert_array_equal(there.labels, here.labels)


def test_windows_are_those_of_monais_inferer():
    import torch
    from monai.inferers import sliding_window_inference

    seen = []
    image = torch.zeros(1, 1, 70, 20, 45)
    sliding_window_inference(image, (32, 32, 32), 1, lambda x: seen.append(x.shape) or x, overlap=0.3)
    assert len(segment.windows((70, 20, 45), (32, 32, 32))) == len(seen) == 6
    covered = np.zeros((70, 32, 45), bool)
    for part in segment.windows((70, 20, 45), (32, 32, 32)):
        covered[part] = True
    assert covered.all()


@pytest.mark.parametrize("how", [{"patch": (100, 128, 128)}, {"patch": (0, 16, 16)}, {"overlap": 1.0}])
def test_impossible_windows_are_refused(synthetic_case, network, how):
    with pytest.raises(BadInput):
        segment.segment(synthetic_case.volume, "liver", network, **how)


def test_weights_load_from_pt_and_safetensors_and_with_a_wrappers_prefix(tensors, network, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({f"network.{k}": v.half() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "checkpoint.pt")
    for file, tolerance in (("model.safetensors", 1e-3), ("checkpoint.pt", 0)):
        loaded = segment.load_vista3d(tmp_path / file)
        assert type(loaded) is type(network) and not loaded.training
        for name, value in network.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=tolerance, atol=tolerance)


def test_the_released_width_is_expected_where_the_file_does_not_say(tensors, tmp_path):
    import torch

    torch.save({k: v for k, v in tensors.items() if not k.startswith("class_head")}, tmp_path / "half.pt")
    with pytest.raises(BadInput, match=r"encoder_embed_dim=48") as told:
        segment.load_vista3d(tmp_path / "half.pt")
    assert "missing" in str(told.value) and "another shape" in str(told.value) and "not expected" not in str(told.value)


def test_a_mismatch_is_told_as_a_table(tensors, tmp_path):
    import torch

    broken = {**tensors, "decoder.weight": torch.zeros(2)}
    del broken["point_head.mask_tokens.weight"]
    broken["class_head.mlp.0.bias"] = torch.zeros(5)
    torch.save(broken, tmp_path / "other.pt")
    with pytest.raises(BadInput) as told:
        segment.load_vista3d(tmp_path / "other.pt")
    lines = str(told.value).splitlines()
    assert "other.pt doesn't fit vista3d132(encoder_embed_dim=8" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["missing", "not", "another"]
    assert "point_head.mask_tokens.weight" in lines[1] and "decoder.weight" in lines[2] and "(5,), not (8,)" in lines[3]


def test_names_of_monai_1_3_are_recognised(tensors, tmp_path):
    import torch

    old = {k.replace(".mlp.linear", ".mlp.lin") if "point_head.transformer" in k else k: v for k, v in tensors.items()}
    old |= {f"point_head.output_add_hypernetworks_mlps.0.layers.{i}.bias": torch.zeros(WIDTH) for i in range(3)}
    torch.save(old, tmp_path / "model_monai1.3.pt")
    with pytest.raises(BadInput, match=r"names of MONAI 1\.3 .*vista3d_pretrained_model/model\.pt"):
        segment.load_vista3d(tmp_path / "model_monai1.3.pt")


@pytest.mark.parametrize("weights", ["nowhere/model.pt", "", "a/b/c"])
def test_a_weights_file_that_is_not_there(weights, synthetic_case):
    with pytest.raises(BadInput, match="no weights file"):
        segment.segment(synthetic_case.volume, "liver", weights)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_file_without_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"no weights here")
    with pytest.raises(BadInput, match="can't be read as weights"):
        segment.load_vista3d(tmp_path / name)


def test_a_pickle_with_code_is_never_run(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInput, match="can't be read as weights"):
        segment.load_vista3d(tmp_path / "model.pt")


def test_the_hub_is_asked_only_in_profile_paper(tiny_weights, monkeypatch):
    import huggingface_hub

    asked = []
    files = ["README.md", "vista3d_pretrained_model/model_monai1.3.pt", "vista3d_pretrained_model/model.pt"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision=None: asked.append(name) or files)
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda name, file, revision=None: asked.append((file, revision)) or tiny_weights,
    )
    for profile in ("quick", "full"):
        with pytest.raises(BadInput, match="only in profile paper"):
            segment.load_vista3d("nvidia/NV-Segment-CT", profile)
    assert asked == []
    assert segment.load_vista3d("nvidia/NV-Segment-CT@v1", "paper") is not None
    assert asked == ["nvidia/NV-Segment-CT", ("vista3d_pretrained_model/model.pt", "v1")]


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    with pytest.raises(BadInput, match=r"can't be had from the model hub \(no route to the hub\)"):
        segment.load_vista3d("nvidia/NV-Segment-CT", "paper")


def chest(gap: int, lung_hu: float = -860) -> volume.Volume:
    """A body with two lungs that are ``gap`` voxels apart, a trachea between them, bowel gas below; 2 mm voxels."""
    d, h, w = np.ogrid[:60, :70, :90]
    hu = np.full((60, 70, 90), -1000.0)
    hu[np.broadcast_to(((h - 35) / 32) ** 2 + ((w - 45) / 42) ** 2 < 1, hu.shape)] = 40
    for low, high in ((12, 45 - gap), (45 + gap, 78)):
        hu[20:58, 18:50, low:high] = lung_hu
    hu[40:60, 25:33, 42:48] = -1000
    hu[42:45, 27:31, 30:60] = -1000  # main bronchi open into the lungs
    hu[3:15, 20:45, 20:70] = -1005
    affine = np.array([[0, 0, 2.0, -90], [0, 2.0, 0, -70], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    return volume.Volume(
        (hu + np.random.default_rng(0).normal(0, 15, hu.shape)).astype(np.float32), affine, name="chest"
    )


def test_lungs_are_told_from_bowel_gas_and_from_the_airway():
    ct = chest(gap=5)
    found = segment.lungs_by_threshold(ct)
    assert sorted(found.present) == ["left lung", "right lung"]
    assert found.binary("left lung")[40, 30, 60] and found.binary("right lung")[40, 30, 25]
    assert not found.labels[3:15].any(), "bowel gas"
    assert not found.labels[50, 27:31, 44:46].any(), "trachea"
    assert found.volume_ml("left lung") == pytest.approx(38 * 32 * 28 * 8e-3, rel=0.1)
    assert "not by a model" in found.notes[0]


def test_lungs_that_touch_are_parted():
    found = segment.lungs_by_threshold(chest(gap=0))
    assert not found.binary("left lung")[..., :44].any() and not found.binary("right lung")[..., 46:].any()


def test_without_lungs_the_sentence_asks_for_the_chest(synthetic_case):
    with pytest.raises(BadInput, match="looks like lung"):
        segment.lungs_by_threshold(synthetic_case.volume)


@pytest.mark.assets
def test_lungs_by_threshold_agree_with_totalsegmentators_on_the_abdomen_ct(asset):
    from ctvlm_lib import mask

    ct = volume.load(asset("abdomen_ct") / "ct.nii.gz")
    file = mask.load(asset("abdomen_ct") / "labels.nii.gz", like=ct)
    found = segment.lungs_by_threshold(ct)
    for side in ("left lung", "right lung"):
        assert dice(found.binary(side), file.binary(side)) > 0.9
