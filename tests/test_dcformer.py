"""DCFormer: shapes and names as released, equations (1)–(4), the switches, the phantom variant, what stays frozen."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers_encoder import lived_in, plain_way
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ctvlm_lib.encoder import (
    RELEASED_VARIANTS,
    DCFormer,
    dcformer,
    freeze,
    inflate,
    parameter_table,
    seen_by_stem,
    unfreeze,
)
from ctvlm_lib.encoder.axis_conv import BANDED_UP_TO, depthwise
from ctvlm_lib.encoder.config import PRESETS, DCFormerConfig
from ctvlm_lib.encoder.decomposed import DecomposedConv
from ctvlm_lib.errors import BadInput

PHANTOM = (32, 64, 64)
TINY = {"blocks": (1, 1, 1, 1), "channels": (4, 4, 6, 8, 10), "kernels_vox": (5, 5, 3, 3)}


def tiny(**switches):
    return dcformer("nano", seed=0, **(TINY | switches))


def volume(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_of_small_have_the_released_shapes():
    with torch.device("meta"):
        tokens = dcformer("small")(torch.empty(1, 1, 128, 256, 256))
    shapes = [tuple(t.shape) for t in tokens]
    assert shapes == [(1, 131072, 64), (1, 16384, 96), (1, 2048, 192), (1, 256, 384), (1, 32, 768)]


def test_tensors_of_small_have_the_released_names_and_shapes():
    with torch.device("meta"):
        tensors = {k: tuple(t.shape) for k, t in dcformer("small").state_dict().items()}
    wanted = {
        "encoder.s0.0.0.c1.0.weight": (64, 1, 7, 1, 1), "encoder.s0.0.0.c2.0.weight": (64, 1, 1, 7, 1),
        "encoder.s0.0.0.c3.0.weight": (64, 1, 1, 1, 7), "encoder.s0.0.0.c1.1.num_batches_tracked": (),
        "encoder.s0.0.3.c1.0.weight": (64, 64, 3, 1, 1), "encoder.s1.0.scale": (96,),
        "encoder.s1.0.proj.weight": (96, 64, 1, 1, 1), "encoder.s1.0.dwconv.c1.0.weight": (96, 1, 13, 1, 1),
        "encoder.s1.0.mlp.mlp.0.weight": (384, 96), "encoder.s1.0.mlp.mlp.3.weight": (96, 384),
        "encoder.s3.5.dwconv.c3.0.weight": (384, 1, 1, 1, 9), "encoder.s4.0.mlp.mlp.0.weight": (3072, 768),
    }  # fmt: skip
    assert wanted.items() <= tensors.items()
    assert "encoder.s1.1.proj.weight" not in tensors and len(tensors) == 426


def test_tokens_run_over_d_then_h_then_w():
    """A bright voxel must be found again where its tokens say it is."""
    encoder = lived_in(tiny())
    dark, bright = torch.zeros(1, 1, 64, 128, 192), torch.zeros(1, 1, 64, 128, 192)
    bright[0, 0, 40, 84, 152] = 100.0
    stem = (encoder(bright)[0] - encoder(dark)[0]).abs().sum(-1)[0].view(encoder.grids((64, 128, 192))[0])
    centre = np.array(np.unravel_index(int(stem.argmax()), tuple(stem.shape)))
    assert np.abs(4 * centre - (40, 84, 152)).max() <= 8


def test_c1_acts_along_h_c2_along_w_and_c3_along_d():
    encoder = tiny().eval()
    for axis, name in ((3, "c1"), (4, "c2"), (2, "c3")):  # axes of (B, 1, D, H, W)
        layer = getattr(encoder.encoder.s0[0][0], name)[0]
        image = torch.zeros(1, 1, 64, 64, 64)
        image[(0, 0, *(slice(None) if a == axis else 32 for a in (2, 3, 4)))] = 1.0
        moved = layer(image.permute(0, 1, 3, 4, 2)) - layer.bias.view(-1, 1, 1, 1)
        assert moved[:, :, 8, 8, 8].abs().max() > 0
        assert torch.allclose(moved[0, :, 8, 8, 8], layer.weight.flatten(1).sum(1), atol=1e-6)


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([1, 3, 7, 13]),
    st.sampled_from([0, 1, 2]),
)
def test_the_fast_depthwise_convolution_is_conv3d_forward_and_backward(shape, k, axis):
    compare_with_conv3d(shape, k, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_a_long_axis_too(axis):
    shape = [2, 3, 4, 5, 6]
    shape[2 + axis] = BANDED_UP_TO + 5
    compare_with_conv3d(shape, 7, axis)


def compare_with_conv3d(shape, k, axis):
    c = shape[1]
    size, padding = [1, 1, 1], [0, 0, 0]
    size[axis], padding[axis] = k, k // 2
    x, weight, bias = volume(*shape), volume(c, k, seed=1), volume(c, seed=2)
    for t in (x, weight, bias):
        t.requires_grad_()
    ours = depthwise(x, weight, bias, axis)
    plain = functional.conv3d(x, weight.view(c, 1, *size), bias, padding=padding, groups=c)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    toward = volume(*shape, seed=3)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), toward) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1, x.numel() / c))


def test_the_whole_encoder_equals_the_plain_way(monkeypatch):
    encoder, x = lived_in(dcformer("phantom", seed=0)), volume(2, 1, *PHANTOM)
    fast = encoder(x)
    plain_way(monkeypatch)
    for ours, plain in zip(fast, encoder(x), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_equation_4_with_and_without_its_residual(preset):
    config = DCFormerConfig(**PRESETS[preset])
    block = lived_in(DecomposedConv(3, 3, 5, config, groups=3))
    x = volume(2, 3, 6, 7, 8)
    parts = [branch[1](branch[0](x)) for branch in (block.c1, block.c2, block.c3)]
    total = sum(parts) + (x if preset == "as_in_paper" else 0)
    torch.testing.assert_close(block(x), total, rtol=1e-5, atol=1e-5)


def test_each_switch_changes_the_network_and_nothing_but_itself():
    released = tiny()
    for name, value in PRESETS["as_in_paper"].items():
        one = tiny(**{name: value})
        differ = {k for k in PRESETS["as_released"] if getattr(one.config, k) != getattr(released.config, k)}
        assert differ == ({name} if value != PRESETS["as_released"][name] else set())
    names = set(released.state_dict())
    assert names - set(tiny(layer_scale=None).state_dict()) == {f"encoder.s{i}.0.scale" for i in (1, 2, 3, 4)}
    assert set(tiny(inner_residual=True, stem_activation=True).state_dict()) == names
    assert tiny(stem_depthwise=True).encoder.s0[0][1].c1[0].weight.shape == (4, 1, 3, 1, 1)


def test_the_released_stem_is_linear_and_the_papers_is_not():
    x, y = volume(1, 1, 64, 64, 64), volume(1, 1, 64, 64, 64, seed=1)
    for preset, linear in (("as_released", True), ("as_in_paper", False)):
        stem = lived_in(tiny(preset=preset)).encoder.s0
        zero = stem(torch.zeros_like(x))
        difference = (stem(x + y) - stem(x) - stem(y) + zero).abs().max().item()
        assert (difference < 1e-3) is linear


def test_parameter_counts_beside_the_published_ones():
    rows = {row["variant"]: row for row in parameter_table()}
    assert rows["small"]["parameters"] == 18_244_800 and rows["phantom"]["parameters"] < 300_000
    assert {v: rows[v]["parameters agree"] for v in ("nano", "naive", "tiny")} == {
        "nano": False,
        "naive": True,
        "tiny": False,
    }
    assert all(rows[v]["operations agree"] for v in ("nano", "naive", "tiny"))  # so the networks are the published ones
    for name in ("nano", "naive", "tiny"):
        assert rows[name]["operations, G"] == pytest.approx(rows[name]["published, G"], rel=2e-3)


def test_the_phantom_variant_gives_512_low_and_32_high_tokens():
    encoder = dcformer("phantom", seed=0)
    x = volume(2, 1, *PHANTOM)
    low, high, low_grid, high_grid = encoder.eval().streams(x)
    assert (low.shape, high.shape) == ((2, 512, 64), (2, 32, 128))
    assert (low_grid, high_grid) == ((8, 8, 8), (2, 4, 4))
    tokens, summary = encoder.encode(x)
    assert [t.shape[1] for t in tokens] == [np.prod(g) for g in encoder.grids(PHANTOM)]
    torch.testing.assert_close(summary, high.mean(1))


def test_the_released_stem_reads_what_notebook_30_says_and_the_others_read_every_voxel():
    shape = (64, 64, 64)
    for switches, every in (({}, False), ({"stem": "every_voxel"}, True)):
        assert np.array_equal(read_by(tiny(**switches), shape), seen_by_stem(shape) | every)
    assert read_by(dcformer("phantom", seed=0), PHANTOM).all()
    assert seen_by_stem(shape).mean() == 0.15625


def read_by(encoder, shape):
    """Voxels that have a gradient to the first layer's output."""
    x = volume(1, 1, *shape).requires_grad_()
    first = encoder.eval().encoder.s0[0][0]
    first(x.permute(0, 1, 3, 4, 2)).square().sum().backward()
    return x.grad[0, 0].numpy() != 0


@pytest.mark.parametrize("switches", [{}, {"stem": "every_voxel"}, {"stem_depthwise": True}])
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_a_grey_volume_in_three_channels_gives_the_grey_tokens(switches, noise):
    grey = lived_in(tiny(**switches))
    colour = inflate(grey, colour_noise=noise)
    x = volume(1, 1, 64, 64, 64)
    for a, b in zip(grey(x), colour(x.repeat(1, 3, 1, 1, 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    red, green = torch.zeros(2, 1, 3, 64, 64, 64)
    red[:, 0] = green[:, 1] = x[:, 0]
    apart = (colour(red)[0] - colour(green)[0]).abs().max()
    assert apart > 1e-3 if noise else apart < 1e-5


def test_frozen_means_frozen_in_a_training_step():
    encoder, head = freeze(lived_in(tiny())), torch.nn.Linear(10, 1)
    model = torch.nn.ModuleDict({"encoder": encoder, "head": head})
    before = {k: t.clone() for k, t in encoder.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(2):
        model.train()
        head(encoder(volume(2, 1, 64, 64, 64, seed=step))[-1]).square().sum().backward()
        optimiser.step()
    assert all(torch.equal(t, before[k]) for k, t in encoder.state_dict().items())
    assert head.training and not any(m.training for m in encoder.modules())
    unfreeze(encoder)
    model.train()
    encoder(volume(2, 1, 64, 128, 64))
    assert not torch.equal(
        encoder.state_dict()["encoder.s0.0.0.c1.1.running_mean"], before["encoder.s0.0.0.c1.1.running_mean"]
    )


def test_saved_and_loaded_the_encoder_is_the_same(tmp_path):
    encoder = lived_in(dcformer("phantom", seed=0, in_channels=3, layer_scale=0.1))
    encoder.save_pretrained(tmp_path)
    loaded = DCFormer.from_pretrained(tmp_path).eval()
    assert (tmp_path / "model.safetensors").is_file() and loaded.config.variant == "phantom"
    x = volume(1, 3, *PHANTOM)
    assert all(torch.equal(a, b) for a, b in zip(encoder(x), loaded(x), strict=True))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, second = tiny().state_dict(), tiny().state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 32, 65, 64), r"multiples of 16×16×16; the nearest size that fits is 32×64×64"),
        ((1, 1, 8, 64, 64), r"fits is 16×64×64"),
        ((1, 3, 32, 64, 64), r"reads 1 channel\(s\), got 3; use .*inflate"),
        ((32, 64, 64), r"volume\[None, None\]"),
    ],
)
def test_a_volume_that_does_not_fit_is_refused_with_what_would(shape, sentence):
    with pytest.raises(BadInput, match=sentence):
        dcformer("phantom")(torch.zeros(shape))


def test_bf16_autocast_stays_close():
    encoder, x = lived_in(dcformer("phantom", seed=0)), volume(2, 1, *PHANTOM)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = encoder(x)
    for a, b in zip(rough, encoder(x), strict=True):
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()  # bf16 keeps 8 bits


def test_a_frozen_encoder_can_be_copied_and_saved(tmp_path):
    twin = copy.deepcopy(freeze(lived_in(tiny())))
    unfreeze(twin).save_pretrained(tmp_path)
    assert twin.train().training and DCFormer.from_pretrained(tmp_path).config.channels == (4, 4, 6, 8, 10)


def test_the_package_is_light_until_a_network_is_asked_for():
    code = "import sys, ctvlm_lib.encoder as e; e.seen_by_stem((4, 4, 4)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_refused():
    for arguments in (
        {"variant": "huge"}, {"preset": "as_hoped"}, {"stem": "dense"}, {"kernel": 7}, {"in_channels": 2},
        {"kernels_vox": (4, 5, 5, 5)}, {"blocks": (1, 1)}, {"stem_stride_dhw_vox": (2, 4, 4)}, {"norm": None},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            dcformer(**({"variant": "nano"} | arguments))
    assert len(RELEASED_VARIANTS) == 6


def test_weights_that_are_not_finite_are_refused(tmp_path):
    encoder = tiny()
    with torch.no_grad():
        encoder.encoder.s2[0].scale[1] = float("nan")
    encoder.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"not finite \(encoder\.s2\.0\.scale\)"):
        DCFormer.from_pretrained(tmp_path)


def test_colours_are_inflated_once():
    with pytest.raises(BadInput, match="reads 3 channels"):
        inflate(tiny(in_channels=3))
    with pytest.raises(BadInput, match="0 or more"):
        inflate(tiny(), colour_noise=-1)
