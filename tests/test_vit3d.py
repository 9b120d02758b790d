"""The ViT3D baseline: M3D's size and names, the same interface as DCFormer's, from MONAI's blocks."""

import pytest
import torch
from torch.nn import functional

from ctvlm_lib.encoder import ViT3D, freeze, inflate, vit3d
from ctvlm_lib.errors import BadInput

PHANTOM = (32, 64, 64)
TINY = {
    "size_dhw_vox": (8, 16, 16), "patch_dhw_vox": (2, 4, 4), "pool_dhw": (2, 2, 1), "hidden_size": 24, "mlp_size": 32,
    "layers": 2, "heads": 2,
}  # fmt: skip


def tiny(**switches):
    return vit3d("phantom", seed=0, **(TINY | switches)).eval()


def volume(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_m3d_reads_32x256x256_and_gives_2048_and_256_tokens():
    with torch.device("meta"):
        encoder = vit3d("m3d")
        tokens = encoder(torch.empty(1, 1, 32, 256, 256))
    assert [tuple(t.shape) for t in tokens] == [(1, 2048, 768), (1, 256, 768)]
    names = {k: tuple(t.shape) for k, t in encoder.state_dict().items()}
    assert names["patch_embedding.patch_embeddings.1.weight"] == (768, 1024)
    assert names["cls_token"] == (1, 1, 768) and names["blocks.11.attn.qkv.weight"] == (2304, 768)
    assert 85e6 < sum(p.numel() for p in encoder.parameters()) < 90e6


def test_the_phantom_size_gives_dcformers_streams():
    low, high, low_grid, high_grid = vit3d("phantom", seed=0).eval().streams(volume(2, 1, *PHANTOM))
    assert (low.shape[:2], high.shape[:2]) == ((2, 512), (2, 32))
    assert (low_grid, high_grid) == ((8, 8, 8), (2, 4, 4))


def test_it_equals_monais_vit():
    """MONAI's ViT with the same weights gives the same patch tokens and class token."""
    from monai.networks.nets import ViT

    encoder = tiny()
    monai = ViT(
        in_channels=1, img_size=(8, 16, 16), patch_size=(2, 4, 4), hidden_size=24, mlp_dim=32, num_layers=2,
        num_heads=2, proj_type="perceptron", classification=True,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(encoder.cls_token)
    monai.classification_head = torch.nn.Identity()
    missing, unexpected = monai.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected and all("norm_cross_attn" in name for name in missing)
    x = volume(2, 1, 8, 16, 16)
    tokens, summary = encoder.encode(x)
    torch.testing.assert_close(summary, monai(x)[0])
    normed = monai.norm(monai(x)[1][-1])
    torch.testing.assert_close(tokens[0], normed[:, 1:])


def test_the_coarse_tokens_are_averages_of_the_fine_ones():
    fine, coarse = tiny()(volume(2, 1, 8, 16, 16))
    grid = fine.view(2, 4, 4, 4, 24)  # (B, D, H, W, C)
    mean = torch.stack([grid[:, 2:4, 0:2, 3].mean((1, 2))], 1)
    torch.testing.assert_close(coarse.view(2, 2, 2, 4, 24)[:, 1, 0, 3], mean[:, 0])
    pooled = functional.avg_pool3d(grid.permute(0, 4, 1, 2, 3), (2, 2, 1)).flatten(2).mT
    torch.testing.assert_close(coarse, pooled)


def test_a_grey_volume_in_three_channels_gives_the_grey_tokens():
    grey, x = tiny(), volume(2, 1, 8, 16, 16)
    for noise in (0.0, 0.15):
        colour = inflate(grey, colour_noise=noise)
        for a, b in zip(grey(x), colour(x.repeat(1, 3, 1, 1, 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_a_frozen_one_does_not():
    encoder = tiny().train()
    tokens, summary = encoder.encode(volume(2, 1, 8, 16, 16))
    (tokens[0].square().sum() + summary.sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())  # DDP stops at a parameter without gradient
    assert not any(p.requires_grad for p in freeze(encoder).parameters())


def test_saved_and_loaded_the_encoder_is_the_same(tmp_path):
    encoder, x = tiny(), volume(1, 1, 8, 16, 16)
    encoder.save_pretrained(tmp_path)
    loaded = ViT3D.from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(encoder(x), loaded(x), strict=True))


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"variant": "vit-g"}, "choose one of 'm3d', 'phantom'"),
        ({"size_dhw_vox": (8, 16, 18)}, r"multiples of \(4, 8, 4\)"),
        ({"heads": 5}, "multiple of 5"),
        ({"in_channels": 2}, "1 for grey"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(switches, sentence):
    with pytest.raises(BadInput, match=sentence):
        vit3d(**({"variant": "phantom"} | TINY | switches))


def test_another_size_than_its_positions_is_refused():
    with pytest.raises(BadInput, match=r"has positions for \(8, 16, 16\) .* size_dhw_vox=\(8, 16, 20\)"):
        tiny()(volume(1, 1, 8, 16, 20))
    with pytest.raises(BadInput, match="reads 1 channel"):
        tiny()(volume(1, 3, 8, 16, 16))
