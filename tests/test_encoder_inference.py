"""The fast form of a DCFormer gives the tokens of the plain one: every switch, odd grids, batches, grey and RGB."""

import pytest
import torch
from helpers_encoder import lived_in
from torch.nn import functional

from ctvlm_lib.encoder import dcformer, for_inference, freeze, vit3d
from ctvlm_lib.encoder.cross_conv import PaddedRows, cross_conv
from ctvlm_lib.encoder.folding import Folded, fold_decomposed
from ctvlm_lib.errors import BadInput

TINY = {"blocks": (1, 2, 1, 1), "channels": (4, 4, 6, 8, 10), "kernels_vox": (5, 5, 3, 3)}


def tiny(**switches):
    return lived_in(dcformer("nano", seed=0, **(TINY | switches)))


def volume(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"in_channels": 3},
        {"stem": "every_voxel", "in_channels": 3},
        {"preset": "as_in_paper"},
        {"stem_activation": True, "layer_scale": None},
        {"inner_residual": True},
    ],
)
def test_the_fast_form_gives_the_same_tokens(switches):
    encoder = tiny(**switches)
    fast, x = for_inference(encoder), volume(2, encoder.config.in_channels, 64, 192, 128)
    for ours, plain in zip(fast(x), encoder(x), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)  # sums in another order, float32


def test_the_fast_phantom_gives_the_same_streams():
    encoder = lived_in(dcformer("phantom", seed=0))
    x = volume(3, 1, 48, 64, 96)
    ours, plain = for_inference(encoder).streams(x), encoder.streams(x)
    assert ours[2:] == plain[2:] == ((12, 8, 12), (3, 4, 6))
    torch.testing.assert_close(ours[:2], plain[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(for_inference(encoder).encode(x)[1], encoder.encode(x)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 4), (30, 25, 31)])
def test_the_cross_of_seven_products_is_three_convolutions(grid):
    """Borders between volumes, planes and lines are zeros, also where blocks of rows meet."""
    h, w, d = (volume(5, 5, 3, seed=s) for s in (1, 2, 3))
    bias, x = volume(5, seed=4), volume(2, 5, *grid)
    source, target = (PaddedRows(2, grid, 5, x) for _ in range(2))
    source.volume.copy_(x.permute(0, 2, 3, 4, 1))
    target.data.fill_(7.0)  # what a buffer held before must not matter
    cross_conv(source, target, Folded(h, w, d, bias))
    plain = functional.conv3d(x, d[..., None, None], padding=(1, 0, 0)) + bias.view(-1, 1, 1, 1)
    plain += functional.conv3d(x, h[:, :, None, :, None], padding=(0, 1, 0))
    plain += functional.conv3d(x, w[:, :, None, None], padding=(0, 0, 1))
    torch.testing.assert_close(target.volume.permute(0, 4, 1, 2, 3), plain, rtol=1e-4, atol=1e-4)
    assert not target.inner.view(target.padded)[:, -1].any()


@pytest.mark.parametrize("switches", [{}, {"inner_residual": True}, {"inner_residual": True, "stem_depthwise": True}])
def test_eq_4_folded_is_three_kernels_and_a_bias(switches):
    layer = tiny(**switches).encoder.s0[0][1]
    folded, x = fold_decomposed(layer), volume(1, 4, 6, 7, 8)
    out = folded.bias.view(-1, 1, 1, 1)
    for axis, kernel in enumerate(folded[:3]):
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = 3, 1
        groups = layer.c1[0].groups
        out = out + functional.conv3d(x, kernel.reshape(*kernel.shape[:2], *shape), padding=padding, groups=groups)
    torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-5)


def test_the_fast_form_is_a_copy_in_eval_mode_without_gradients():
    encoder, x = tiny(), volume(1, 1, 64, 64, 64)
    before = {k: t.clone() for k, t in encoder.state_dict().items()}
    fast = for_inference(freeze(encoder))
    first = [t.clone() for t in fast(x)]
    assert not any(t.requires_grad for t in first)
    assert all(torch.equal(t, before[k]) for k, t in encoder.state_dict().items())
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, fast(x), strict=True))


def test_what_has_no_fast_form_is_refused():
    with pytest.raises(BadInput, match="only BatchNorm can be folded"):
        for_inference(tiny(norm="layer"))
    with pytest.raises(BadInput, match="only a DCFormer has a fast form, got ViT3D"):
        for_inference(vit3d("phantom", layers=1))
    broken = tiny()
    broken.encoder.s1[0].scale.data[0] = float("nan")
    with pytest.raises(BadInput, match="not finite"):
        for_inference(broken)
    with pytest.raises(BadInput, match="multiples of 64×64×64"):
        for_inference(tiny())(volume(1, 1, 64, 64, 32))
