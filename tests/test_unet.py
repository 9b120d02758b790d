"""nnU-Net's U-Net: its tensor names, its shapes, its start, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from make_resenc_reference import DIGITS, FILE, by_formula, wave
from torch import nn

from ctvlm_lib.encoder.unet import UNet, UNetConfig, from_nnunet, unet, unet_encoder
from ctvlm_lib.errors import BadInput

SMALL = {
    "channels": (4, 8, 8), "blocks": (1, 2, 1), "stage_strides_dhw": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
}  # fmt: skip
CLASSES = ("background", "liver", "spleen")


@pytest.fixture(scope="module")
def reference() -> dict:
    """Names, shapes and outputs of the published networks, stored, as their package can't come into this environment.

    ``python3 -m venv ENV; ENV/bin/pip install torch==2.13.0 dynamic-network-architectures==0.4.4;
    ENV/bin/python tests/make_resenc_reference.py`` makes the file again.
    """
    return json.loads(FILE.read_text(encoding="ascii"))


def small(seed: int = 0, **switches) -> UNet:
    return unet(CLASSES, seed=seed, **SMALL | switches)


def aliased(model: UNet) -> dict[str, torch.Tensor]:
    """A state dict with each tensor under all the names that nnU-Net's modules give it."""
    given = {}
    for name, tensor in model.state_dict().items():
        second = name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        for one in {name, second} if name.split(".")[-2] in ("conv", "norm") else {name}:
            given[one] = tensor
            if one.startswith("encoder."):
                given[f"decoder.{one}"] = tensor
    return given


def test_tensor_names_are_those_of_nnunet():
    names = set(small().state_dict())
    for name in (
        "encoder.stem.convs.0.conv.weight", "encoder.stem.convs.0.norm.bias",
        "encoder.stages.0.blocks.0.conv1.conv.weight", "encoder.stages.1.blocks.1.conv2.norm.weight",
        "encoder.stages.1.blocks.0.skip.1.conv.weight", "encoder.stages.1.blocks.0.skip.1.norm.weight",
        "decoder.stages.0.convs.0.conv.weight", "decoder.transpconvs.1.bias", "decoder.seg_layers.0.weight",
    ):  # fmt: skip
        assert name in names
    assert not any("skip" in name for name in names if "stages.0." in name or "stages.2." in name)  # no new channels
    assert "encoder.stages.1.blocks.0.skip.1.conv.bias" not in names


def test_weights_of_nnunet_come_in_whatever_name_they_have():
    source, target = small(1), small(2)
    from_nnunet(aliased(source), target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_a_file_whose_names_of_one_tensor_differ_is_refused():
    given = aliased(small())
    name = "decoder.encoder.stem.convs.0.all_modules.0.weight"
    given[name] = given[name] + 1
    with pytest.raises(BadInput, match="another name of encoder.stem.convs.0.conv.weight"):
        from_nnunet(given, small())


def flat(tree: dict, before: str = "") -> dict[str, list[int]]:
    """Names with points of a tree of names; the other way round than in make_resenc_reference.py."""
    made = {}
    for name, one in tree.items():
        made |= flat(one, f"{before}{name}.") if isinstance(one, dict) else {before + name: one}
    return made


def test_names_and_shapes_are_those_of_nnunet_s_own_resenc_l(reference):
    """What dynamic-network-architectures 0.4.4 builds, see :func:`reference`."""
    theirs, classes = flat(reference["large"]["tensors"]), CLASSES[: reference["classes"]]
    with torch.device("meta"):
        ours = unet(classes, "uvlm")
    assert {name: list(tensor.shape) for name, tensor in aliased(ours).items()} == theirs
    assert len(theirs) > 2 * len(ours.state_dict()) > 400


def test_a_network_with_the_same_weights_gives_what_nnunet_gives(reference):
    """At every scale, with weights by a formula; see :func:`reference`."""
    there = reference["small"]
    ours = unet(CLASSES, **{name: there[name] for name in SMALL}).double()
    by_formula(ours)
    with torch.no_grad():
        scales = ours(wave(tuple(there["volume"])))
    assert [list(one.shape) for one in scales] == there["shapes"]
    for one, wanted in zip(scales, there["outputs"], strict=True):
        assert np.abs(one.flatten().numpy() - wanted).max() < 10**-DIGITS  # half of a last digit, and rounding


def test_maps_have_the_grids_that_the_strides_say():
    model, volume = small(), torch.randn(2, 1, 4, 8, 12)
    maps = model.encoder.features(volume)
    assert [tuple(one.shape) for one in maps] == [(2, 4, 4, 8, 12), (2, 8, 4, 4, 6), (2, 8, 2, 2, 3)]
    assert [tuple(one.shape[2:]) for one in maps] == model.encoder.grids((4, 8, 12))
    assert [tuple(one.shape) for one in model(volume)] == [(2, 3, 4, 8, 12), (2, 3, 4, 4, 6)]


def test_tokens_are_the_places_of_the_maps():
    encoder, volume = unet_encoder(seed=0, **SMALL), torch.randn(1, 1, 4, 8, 8)
    tokens, pooled = encoder.encode(volume)
    deep = encoder.features(volume)[-1]
    assert torch.equal(tokens[-1][0, 3], deep[0, :, 0, 1, 1])  # D slowest, W fastest: 2×2×2
    assert torch.allclose(pooled, deep.mean(dim=(2, 3, 4)), atol=1e-6)


def test_the_paper_s_encoder_has_the_paper_s_tokens():
    with torch.device("meta"):
        encoder = unet_encoder("uvlm")
    grids = encoder.grids((192, 256, 256))
    assert [int(np.prod(grid)) for grid in grids[-2:]] == [3072, 384]


def test_blocks_begin_as_their_skip_alone():
    encoder, volume = unet_encoder(seed=3, **SMALL), torch.randn(1, 1, 4, 8, 8)
    stem = encoder.stem.convs(volume)
    assert torch.equal(encoder.features(volume)[0], nn.functional.leaky_relu(stem, 0.01))


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = small(7), small(7)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_network_comes_back(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    again, volume = UNet.from_pretrained(tmp_path), torch.randn(1, 1, 4, 8, 8)
    assert again.config.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(model.eval()(volume)[0], again.eval()(volume)[0])


def test_the_size_that_is_advised_is_read():
    maps = small().encoder.features(torch.randn(2, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)))
    assert maps[-1].shape[2:] == (1, 1, 2) and all(torch.isfinite(one).all() for one in maps)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: unet(("background",), **SMALL), "the background and a class at least"),
        (lambda: UNetConfig(**SMALL | {"blocks": (1, 2)}), "each with channels, blocks and a stride"),
        (lambda: UNetConfig(**SMALL | {"channels": (4, 0, 8)}), "must be 1 or more"),
        (lambda: unet_encoder("large"), "variant is 'large'"),
        (lambda: unet_encoder("phantom", chanels=(4, 8)), "no option 'chanels'; it has channels, blocks"),
        (lambda: unet(CLASSES, dropout=0.1), "no option 'dropout'"),
        (lambda: small().encoder.features(torch.zeros(1, 1, 4, 8, 9)), "9"),
        (lambda: small().encoder.features(np.zeros((1, 1, 4, 8, 8), np.float32)), r"ndarray.*torch\.from_numpy"),
        (lambda: small()(torch.zeros(2, 1, 2, 4, 4)), "2×4×4 voxels.*a single place.* such as 2×4×8, or fewer stages"),
        (lambda: unet_encoder("phantom").features(torch.zeros(1, 1, 8, 8, 8)), "the last of 5 stages has a single"),
    ],
)
def test_bad_input_gets_a_sentence(make, told):
    with pytest.raises(BadInput, match=told):
        make()
