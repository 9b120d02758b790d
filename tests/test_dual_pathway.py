"""The dual-pathway encoder: mask pooling, what a region's vector can and can't see, the block of choice, files."""

import numpy as np
import pytest
import torch

from ctvlm_lib.encoder.dual_pathway import DualPathway, boxed_masks, dual_pathway, pooled_masks
from ctvlm_lib.encoder.vit import vit3d
from ctvlm_lib.errors import BadInput

SMALL = {
    "size_dhw_vox": (8, 16, 16), "patch_dhw_vox": (4, 4, 4), "pool_dhw": (2, 2, 2), "hidden_size": 16, "mlp_size": 24,
    "layers": 3, "heads": 2,
}  # fmt: skip
GRID = (2, 4, 4)


def small(**switches) -> DualPathway:
    return dual_pathway("medvista3d", seed=0, **SMALL | switches).eval()


def volumes(n=2, seed=0):
    return torch.rand(n, 1, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def masks(*tokens_of_regions):
    """``(1, R, 32)`` from token numbers."""
    made = torch.zeros(1, len(tokens_of_regions), 32, dtype=torch.bool)
    for k, tokens in enumerate(tokens_of_regions):
        made[0, k, list(tokens)] = True
    return made


def plain_local(model: DualPathway, volume: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """One region of one volume without padding or masks: the chosen tokens through MONAI's own blocks."""
    first = (model.config.pooled_before or model.config.layers) - 1
    x = torch.cat([model.cls_token, model.patch_embedding(volume)], dim=1)
    for block in model.blocks[:first]:
        x = block(x)
    x = x[:, [0, *(1 + t for t in tokens)]]
    for number in model.config.local_blocks():
        x = model.blocks[number](x)
    x = model.norm(x)
    return x[0, 0] if model.config.local_vector == "class token" else x[0, 1:].mean(dim=0)


@pytest.mark.parametrize("options", [{}, {"pooled_before": 1}, {"pooled_before": 2}, {"local_vector": "mean"},
                                     {"pooled_before": 1, "skip_to_last": True}])  # fmt: skip
@torch.inference_mode()
def test_regions_equal_a_plain_pass_of_their_tokens(options):
    model, picture = small(**options), volumes(1)
    wanted = [[3], [0, 5, 6, 31], list(range(20))]
    _, found = model.both(picture, masks(*wanted))
    for k, tokens in enumerate(wanted):
        assert torch.allclose(found[0, k], plain_local(model, picture, tokens), atol=1e-5)


@torch.inference_mode()
def test_the_global_pathway_is_the_plain_transformer():
    model, picture = small(), volumes()
    plain = vit3d("phantom", seed=0, **SMALL).eval()
    plain.load_state_dict(model.state_dict())
    tokens, vector = plain.encode(picture)
    assert torch.equal(model.both(picture, torch.ones(2, 1, 32, dtype=torch.bool))[0], vector)
    assert torch.equal(model.encode(picture)[0][0], tokens[0])


@torch.inference_mode()
def test_all_tokens_before_the_last_block_give_the_global_vector():
    model, picture = small(), volumes()
    volume, regions = model.both(picture, torch.ones(2, 3, 32, dtype=torch.bool))
    assert torch.allclose(regions, volume[:, None].expand_as(regions), atol=1e-5)


@torch.inference_mode()
def test_pooled_before_the_first_block_a_region_sees_nothing_else():
    tokens = [0, 1, 4, 5]
    one = volumes(1)
    other = one.clone()
    other[..., 8:] = 0.9  # the patches of these tokens end at 8 along the last axis
    first, last = small(pooled_before=1), small()
    assert torch.equal(first.both(one, masks(tokens))[1], first.both(other, masks(tokens))[1])
    # before the last block its tokens have looked at the whole volume twice: context, as the paper wants it
    assert not torch.allclose(last.both(one, masks(tokens))[1], last.both(other, masks(tokens))[1], atol=1e-4)


@torch.inference_mode()
def test_other_regions_and_their_number_change_nothing():
    model, picture = small(), volumes(1)
    alone = model.both(picture, masks([2, 3]))[1][0, 0]
    among = model.both(picture, masks([7], [2, 3], range(32), []))[1][0]
    assert torch.allclose(among[1], alone, atol=1e-5) and not among[3].any()
    turned = model.both(picture, masks(range(32), [2, 3], [7]))[1][0]
    assert torch.allclose(turned, among[[2, 1, 0]], atol=1e-5)


def test_a_mask_is_pooled_at_its_threshold():
    share = torch.tensor([0.0, 0.2, 0.5, 0.9])
    assert pooled_masks(share).tolist() == [False, False, True, True]
    assert pooled_masks(share, 0.0).tolist() == [False, True, True, True]  # any overlap, as fVLM
    assert pooled_masks(torch.zeros(4)).tolist() == [False] * 4


def test_a_region_that_fills_no_token_takes_its_fullest_or_is_missing():
    share = torch.tensor([[0.1, 0.3, 0.2], [0.0, 0.0, 0.0]])
    assert pooled_masks(share).tolist() == [[False, True, False], [False] * 3]
    assert not pooled_masks(share, empty="missing").any()


def test_a_box_is_the_smallest_that_holds_the_mask():
    rng = np.random.default_rng(0)
    volume = rng.random((6, *GRID)) < 0.08
    volume[5] = False
    boxed = boxed_masks(torch.from_numpy(volume.reshape(6, -1)), GRID).numpy().reshape(volume.shape)
    for one, box in zip(volume, boxed, strict=True):
        expected = np.zeros(GRID, bool)
        if one.any():
            expected[tuple(slice(w.min(), w.max() + 1) for w in np.nonzero(one))] = True
        assert (box == expected).all()


@torch.inference_mode()
def test_it_reads_another_encoder_s_tokens_in_place_of_patches():
    model = dual_pathway("phantom", seed=0).eval()
    volume, regions = model.both(torch.rand(2, 512, 64), torch.ones(2, 1, 512, dtype=torch.bool))
    assert volume.shape == (2, 64) and regions.shape == (2, 1, 64)
    with pytest.raises(BadInput, match=r"reads another encoder's tokens \(B, 512, 64\)"):
        model.both(torch.rand(2, 1, 32, 64, 64), torch.ones(2, 1, 512, dtype=torch.bool))


@torch.inference_mode()
def test_attention_is_what_the_last_block_weighs_its_values_with():
    model, picture = small(), volumes(1)
    weight = model.attention(picture)
    assert weight.shape == (1, 33) and torch.allclose(weight.sum(dim=1), torch.ones(1))
    attn = model.blocks[-1].attn
    attn.use_flash_attention, attn.save_attn = False, True  # MONAI's plain way, which keeps its weights
    model.encode(picture)
    assert torch.allclose(weight, attn.att_mat.mean(dim=1)[:, 0], atol=1e-6)


def test_it_is_saved_and_read_again(tmp_path):
    model = small(pooled_before=2, local_vector="mean")
    model.save_pretrained(tmp_path)
    again = DualPathway.from_pretrained(tmp_path)
    picture, region = volumes(1), masks([1, 2])
    with torch.inference_mode():
        assert torch.equal(again.eval().both(picture, region)[1], model.both(picture, region)[1])


def test_the_paper_s_size():
    with torch.device("meta"):
        model = DualPathway(dual_config())
    assert sum(p.numel() for p in model.blocks.parameters()) == pytest.approx(85e6, rel=0.01)
    assert model.grids((96, 320, 320))[0] == (12, 20, 20)


def dual_config():
    from ctvlm_lib.encoder.dual_pathway import DUAL_VARIANTS, DualPathwayConfig

    return DualPathwayConfig(**DUAL_VARIANTS["medvista3d"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: small(pooled_before=4), r"before block 1 to 3 \(0: the last\), got 4"),
        (lambda: small(local_vector="max"), "local_vector is 'max'"),
        (lambda: small(stem="tokens"), "needs token_width"),
        (lambda: small().both(volumes(), torch.ones(2, 1, 31, dtype=torch.bool)), r"\(2, R, 32\), got \(2, 1, 31\)"),
        (lambda: pooled_masks(torch.ones(3), 1.5), "0 to 1, got 1.5"),
        (lambda: pooled_masks(torch.ones(3), empty="zero"), "empty is 'zero'"),
        (lambda: dual_pathway("huge"), "variant is 'huge'"),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
