"""U-VLM's injection: equations (4) and (5) against plain loops, who sees whom, and decoders with and without it."""

import copy
from collections import Counter
from math import ceil, floor

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from ctvlm_lib.encoder import frozen
from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import decoder_sizes
from ctvlm_lib.vlm import hybrid_mask as hybrid_module
from ctvlm_lib.vlm.hybrid_mask import additive, attend, hybrid_mask
from ctvlm_lib.vlm.injection import AS_PRINTED, AS_RELEASED, inject
from ctvlm_lib.vlm.lora import lora_parameters, with_lora
from ctvlm_lib.vlm.stage_tokens import StageProjection, align, layer_map, own_tokens, pool
from ctvlm_lib.vlm.uvlm import UvlmDecoder
from ctvlm_lib.vlm.uvlm_config import UvlmConfig, decoder_parts, paper_decoder

KINDS = ("qwen2", "qwen3", "llama", "starcoder2")
CHANNELS, WIDTH, VOCABULARY = (3, 4, 5, 6), 32, 60
GRIDS = ((4, 6, 8), (2, 3, 4), (1, 2, 3), (1, 1, 2))  # 192, 24, 6 and 2 cells
START, END, IMAGE = 1, 2, 99  # the placeholder lies beyond the vocabulary
BEFORE, AFTER = "before the layer", "after attention"


def shape(kind: str = "qwen2", layers: int = 4, **options):
    """A decoder 32 wide; StarCoder2 is what the paper's becomes."""
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 96, "eos_token_id": None,
        "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "qwen3":
        sizes["head_dim"] = 8
    return AutoConfig.for_model(kind, **sizes | options)


@torch.no_grad()
def louder(module, by: float = 5, biases: float = 0.05, seed: int = 3):
    """Weights with which each position depends on the rest, and biases that aren't zero."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if tensor.ndim == 2:
            tensor.mul_(40 if "embed_tokens" in name else by)
        elif name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * biases)
    return module


def decoder(kind: str = "qwen2", seed: int = 0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return louder(AutoModelForCausalLM.from_config(shape(kind, **options))).eval()


def maps(rows: int = 2, seed: int = 0, grids=GRIDS) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, c, *grid, generator=draw) for c, grid in zip(CHANNELS, grids, strict=True)]


def writer(kind="qwen2", attention="hybrid", layers: int = 4, tied: bool = False, **injection) -> UvlmDecoder:
    """A report writer whose every part has an effect; K is 6."""
    config = UvlmConfig(
        shape(kind, layers, tie_word_embeddings=tied), CHANNELS, {"reference": -2, **injection}, attention,
        vision_start_id=START, vision_end_id=END, image_token_id=IMAGE,
    )  # fmt: skip
    model = UvlmDecoder.with_seed(config)
    louder(model.decoder)
    with torch.no_grad():
        louder(model.injection, by=1, biases=0.3)
        for name, tensor in model.injection.gates.named_parameters():
            tensor.fill_(0.7) if name.endswith("factor") else tensor.mul_(20)
    return model.eval()


def words(rows: int = 2, length: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ equation (4)


def plain_pool(map_: torch.Tensor, grid: tuple) -> torch.Tensor:
    """Mean over each of the reference's cells, one by one: ``(B, C, D, H, W)`` to ``(B, K, C)``."""
    cells = []
    for place in [(d, h, w) for d in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])]:
        spans = [
            slice(floor(i * n / g), ceil((i + 1) * n / g)) for i, n, g in zip(place, map_.shape[2:], grid, strict=True)
        ]
        cells.append(map_[(slice(None), slice(None), *spans)].mean(dim=(2, 3, 4)))
    return torch.stack(cells, dim=1)


@pytest.mark.parametrize("reference", [1, 2, 3, 4, -1, -2])
def test_equation_4_equals_a_plain_loop(reference):
    features = maps()
    number = reference if reference > 0 else 5 + reference
    length = features[number - 1][0, 0].numel()
    for stage, (tokens, map_) in enumerate(zip(align(features, reference), features, strict=True), start=1):
        if stage < number:
            expected = plain_pool(map_, GRIDS[number - 1])
        else:
            expected = torch.zeros(2, length, map_.shape[1])
            for place, (d, h, w) in enumerate(torch.ones(map_.shape[2:]).nonzero().tolist()):
                expected[:, place] = map_[:, :, d, h, w]
        torch.testing.assert_close(tokens, expected)


@settings(max_examples=25)
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.integers(0, 100),
)
def test_pooling_keeps_the_mean_where_it_comes_out_even_and_is_the_loops_where_it_does_not(grid, more, seed):
    fine = tuple(g + m for g, m in zip(grid, more, strict=True))
    draw = torch.Generator().manual_seed(seed)
    map_ = torch.randn(1, 2, *fine, generator=draw)
    tokens = align([map_, torch.zeros(1, 3, *grid)], -1)[0]
    torch.testing.assert_close(tokens, plain_pool(map_, grid))
    if all(f % g == 0 for f, g in zip(fine, grid, strict=True)):
        torch.testing.assert_close(tokens.mean(dim=1), map_.mean(dim=(2, 3, 4)))


def test_what_was_pooled_can_be_kept_and_gives_the_same():
    features = maps()
    kept = pool(features, -2)
    assert [tuple(m.shape[2:]) for m in kept] == [GRIDS[2], GRIDS[2], GRIDS[2], GRIDS[3]]
    for one, other in zip(align(kept, -2), align(features, -2), strict=True):
        assert torch.equal(one, other)
    assert own_tokens(kept, -2) == own_tokens(features, -2) == [6, 6, 6, 2]


def test_the_papers_size_gives_its_numbers_of_tokens():
    halved = [(192 // 2**k, 256 // 2**k, 256 // 2**k) for k in range(6)]
    with torch.device("meta"):
        features = [torch.empty(1, 1, *grid) for grid in halved]
        assert [one.shape[1] for one in align(features, -1)] == [384] * 6
        assert [one.shape[1] for one in align(features, 5)] == [3072] * 6


@pytest.mark.parametrize(
    ("features", "reference", "says"),
    [
        (maps(), 5, "stage 5 isn't there: the encoder has 4"),
        (maps(), 0, "counted from 1"),
        (maps()[::-1], -1, "finest stage first"),
        ([torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 3)], 1, "6 tokens and the reference, stage 1, only 4"),
        ([torch.zeros(1, 2, 2, 2, 2), torch.zeros(2, 2, 1, 1, 1)], -1, "the same volumes"),
        ([torch.zeros(1, 2, 8), torch.zeros(1, 2, 4)], -1, r"\(B, C, D, H, W\)"),
    ],
)
def test_maps_that_cannot_be_aligned_are_refused(features, reference, says):
    for function in (align, own_tokens):
        with pytest.raises(BadInput, match=says):
            function(features, reference)


# ------------------------------------------------------------------------------------------ which stage goes where


def test_layer_maps_for_the_papers_six_stages():
    assert layer_map(6, 8, "as printed") == [6, 5, 4, 3, 2, 1, None, None]
    assert layer_map(6, 8, "spread") == [6, 6, 5, 5, 4, 3, 2, 1]
    assert layer_map((3, 4, 5, 6), 8, "layers per stage") == [6, 6, 5, 5, 4, 4, 3, 3]
    assert layer_map(6, 8, "input only") == [None] * 8
    assert layer_map((2, 5), 3, "spread") == [5, 5, 2]
    for kind in ("as printed", "spread", "layers per stage"):
        assert layer_map(6, 6, kind) == [6, 5, 4, 3, 2, 1]


@given(st.sets(st.integers(1, 9), min_size=1), st.integers(1, 24))
def test_each_stage_serves_consecutive_layers_from_deep_to_shallow(stages, layers):
    if layers < len(stages):
        with pytest.raises(BadInput, match="choose at most"):
            layer_map(tuple(stages), layers, "spread")
        return
    spread = layer_map(tuple(stages), layers, "spread")
    assert spread == sorted(spread, reverse=True) and set(spread) == stages
    counts = [Counter(spread)[stage] for stage in sorted(stages, reverse=True)]
    assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1
    if layers % len(stages) == 0:  # the released rule: layer number // k, in the list turned round
        k = layers // len(stages)
        released = [sorted(stages)[::-1][number // k] for number in range(layers)]
        assert layer_map(tuple(stages), layers, "layers per stage") == spread == released
    else:
        with pytest.raises(BadInput, match="aren't a multiple"):
            layer_map(tuple(stages), layers, "layers per stage")


@pytest.mark.parametrize(
    ("stages", "layers", "kind", "says"),
    [
        (4, 3, "as printed", "4 stages are injected and the decoder has 3 layers"),
        (4, 8, "evenly", "'as printed', 'spread'"),
        ((), 8, "spread", "counted from 1"),
        ((2, 2), 8, "spread", "different ones"),
        ((0, 1), 8, "spread", "counted from 1"),
    ],
)
def test_layer_maps_that_make_no_sense_are_refused(stages, layers, kind, says):
    with pytest.raises(BadInput, match=says):
        layer_map(stages, layers, kind)


# ------------------------------------------------------------------------------------------------- the projection


def plain_projection(p: StageProjection, token: torch.Tensor) -> torch.Tensor:
    """One token ``(C,)`` through the released projection, written out."""
    x = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt() * p.norm.weight + p.norm.bias
    x = p.inner.weight @ x + p.inner.bias
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    x = p.out.weight @ x + p.out.bias
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt() * p.out_norm.weight + p.out_norm.bias


def test_the_projection_equals_its_formula_and_pads_with_zeros_or_with_one_vector():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made, tokens = (
            louder(StageProjection(5, 8, 7), by=1, biases=0.3).double(),
            torch.randn(1, 4, 5, dtype=torch.float64),
        )
    tokens[:, 3:] = 0
    expected = [plain_projection(made, token) for token in tokens[0]]
    masked = made(tokens, 3)[0]
    torch.testing.assert_close(masked[:3], torch.stack(expected[:3]))
    assert not masked[3].any()
    made.masked = False
    torch.testing.assert_close(made(tokens, 3)[0], torch.stack(expected))
    assert expected[3].abs().max() > 0.1  # biases and norms make something of zeros


def test_fresh_projections_make_nothing_of_zeros_either_way():
    fresh = StageProjection(5, 8, masked=False)
    assert not fresh(torch.zeros(1, 4, 5), 0).any()
    assert fresh.inner.out_features == 16 and fresh.out_norm.eps == 1e-6
    bound = (6 / (5 + 16)) ** 0.5  # Xavier
    assert bound / 2 < fresh.inner.weight.abs().max() <= bound


# ---------------------------------------------------------------------------------------------------- the hybrid mask


def plain_mask(vision: list[bool], padding: list[bool], as_released: bool) -> list[list[bool]]:
    """Position by position; a place counts as image if it, or as released the next one, holds an image vector."""
    length = len(vision)
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            if as_released:
                both = i + 1 < length and vision[i + 1] and j + 1 < length and vision[j + 1]
            else:
                both = vision[i] and vision[j]
            row.append(not padding[j] and (j <= i or both))
        rows.append(row)
    return rows


@settings(max_examples=60)
@given(st.data(), st.booleans(), st.integers(1, 3))
def test_the_hybrid_mask_equals_a_double_loop(data, as_released, rows):
    length = data.draw(st.integers(2, 9))
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    vision = [data.draw(flags) for _ in range(rows)]
    padding = [data.draw(flags) for _ in range(rows)]
    if as_released:
        vision = [[False, *one[1:]] for one in vision]
    attended = (~torch.tensor(padding)).long()
    mask = hybrid_mask(torch.tensor(vision), attended, as_released)
    assert mask.shape == (rows, 1, length, length)
    for k in range(rows):
        assert mask[k, 0].tolist() == plain_mask(vision[k], padding[k], as_released)
    whole = hybrid_mask(torch.tensor(vision), None, as_released)
    assert torch.equal(whole, hybrid_mask(torch.tensor(vision), torch.ones_like(attended), as_released))
    added = additive(mask)
    assert torch.equal(added == 0, mask) and (added[~mask] == torch.finfo(torch.float32).min).all()


def test_the_pictures_in_the_modules_docstring_are_its_masks():
    vision = torch.tensor([[False, True, True, True, False, False]])
    marks = [
        [c == "■" for c in line if c in "■·"] for line in hybrid_module.__doc__.splitlines() if line.count("■") > 1
    ]
    for columns, as_released in ((slice(0, 6), False), (slice(6, 12), True)):
        assert [row[columns] for row in marks] == hybrid_mask(vision, None, as_released)[0, 0].tolist()


def test_masks_of_what_does_not_fit_are_refused():
    vision = torch.tensor([[True, True, False]])
    with pytest.raises(BadInput, match="put vision_start in front"):
        hybrid_mask(vision, None, as_released=True)
    with pytest.raises(BadInput, match="must be bool"):
        hybrid_mask(vision.long())
    with pytest.raises(BadInput, match="one value a position"):
        hybrid_mask(vision, torch.ones(1, 4))


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_with_the_hook_equals_one_that_is_given_the_mask(kind, as_released):
    plain = decoder(kind)
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    vision, padding = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.long)
    vision[0, 2:6], vision[1, 4:8], padding[1, :2] = True, True, 0
    where = (padding.cumsum(dim=1) - 1).clamp(min=0)
    expected = []
    for backend in ("eager", "sdpa"):
        plain.set_attn_implementation(backend)
        mask = additive(hybrid_mask(vision, padding, as_released))
        with torch.no_grad():
            expected.append(plain(inputs_embeds=x, attention_mask=mask, position_ids=where).logits[padding != 0])
            causal = plain(inputs_embeds=x, attention_mask=padding, position_ids=where).logits[padding != 0]
            hook = attend(plain, as_released).image_at(vision)
            hooked = plain(inputs_embeds=x, attention_mask=padding, position_ids=where).logits[padding != 0]
            hook.detach()
            again = plain(inputs_embeds=x, attention_mask=padding, position_ids=where).logits[padding != 0]
        torch.testing.assert_close(hooked, expected[-1], rtol=1e-4, atol=1e-4)  # float32, other orders
        assert torch.equal(again, causal) and (causal - hooked).abs().max() > 1e-2
    torch.testing.assert_close(*expected, rtol=1e-4, atol=1e-4)


def test_decoders_that_cannot_take_the_mask_are_refused():
    with pytest.raises(BadInput, match="only a window"):
        attend(decoder("starcoder2", sliding_window=4))
    with pytest.raises(BadInput, match="causal language model"):
        attend(torch.nn.Linear(2, 2))
    plain = decoder()
    plain.config._attn_implementation = "flash_attention_2"
    with pytest.raises(BadInput, match="attn_implementation='sdpa'"):
        attend(plain)


def test_the_hook_refuses_to_guess():
    plain = decoder()
    x = torch.zeros(1, 6, WIDTH)
    vision = torch.tensor([[False, True, True, False, False, False]])
    hook = attend(plain)
    with pytest.raises(BadInput, match=r"call image_at\(positions\)"):
        plain(inputs_embeds=x)
    hook.image_at(vision)
    with pytest.raises(BadInput, match="prepared mask"):
        plain(inputs_embeds=x, attention_mask=hybrid_mask(vision))
    with pytest.raises(BadInput, match="for each batch"):
        plain(inputs_embeds=x[:, :4])
    hook.enabled = False
    cache = plain(inputs_embeds=x[:, :2], use_cache=True).past_key_values
    hook.enabled = True
    with pytest.raises(BadInput, match="in one piece"):
        plain(inputs_embeds=x[:, 2:], past_key_values=cache)


# ------------------------------------------------------------------------------------------------ equation (5)


def by_hand(model: UvlmDecoder, features, ids, padding, mask=None) -> torch.Tensor:
    """Logits of rows with placeholders, layer by layer and position by position, without any hook."""
    injection, base = model.injection, model.decoder.get_decoder()
    tokens, own = align(features, injection.reference), own_tokens(features, injection.reference)
    vision = ids == IMAGE
    hidden = base.embed_tokens(ids.masked_fill(vision, 0)) * ~vision[..., None]
    seen = plain_masks(vision, padding, model.config.attention)
    places = (padding.cumsum(dim=1) - 1).clamp(min=0)
    angles = base.rotary_emb(hidden, places)

    def plus(x, key, stage, gate=None):
        vectors, x = injection.projections[key](tokens[stage - 1], own[stage - 1]), x.clone()
        for row in range(len(x)):
            for k, place in enumerate(vision[row].nonzero().flatten().tolist()):
                x[row, place] = x[row, place] + vectors[row, k] * (1 if gate is None else gate(x[row, place]))
        return x

    def key(name, stage):
        return f"stage_{stage}" if injection.shared else name

    if injection.at_input:
        hidden = plus(hidden, key("input", injection.reference), injection.reference)
    for number, (layer, stage) in enumerate(zip(base.layers, injection.map, strict=True), start=1):
        gate = injection.gates[f"layer_{number}"] if injection.gates else None
        if stage and injection.where == BEFORE:
            hidden = plus(hidden, key(f"layer_{number}", stage), stage, gate)
        read, _ = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=angles, attention_mask=seen)
        hidden = hidden + read
        if stage and injection.where == AFTER:
            hidden = plus(hidden, key(f"layer_{number}", stage), stage, gate)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.decoder.lm_head(base.norm(hidden))


def plain_masks(vision, padding, attention) -> torch.Tensor:
    rows = []
    for row, pad in zip(vision.tolist(), (padding == 0).tolist(), strict=True):
        row = [False] * len(row) if attention == "causal" else row
        rows.append(plain_mask(row, pad, attention == "as released"))
    return additive(torch.tensor(rows)[:, None])


CASES = {
    "as printed": dict(AS_PRINTED),
    "as released": dict(AS_RELEASED),
    "released gate": AS_RELEASED | {"gate": "sigmoid"},
    "gated before the layer": {"gate": "sigmoid", "masked": False, "at_input": True},
    "gated by a number": {"gate": "number", "where": AFTER, "stages": (2, 4)},
    "input only": {"mapping": "input only"},
    "few stages, shared": {"stages": (-1, 1), "shared": True, "where": BEFORE},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["hybrid", "as released", "causal"])
def test_equation_5_equals_a_pass_by_hand(case, attention):
    kind = KINDS[(list(CASES).index(case) + len(attention)) % 4]
    model = writer(kind, attention, layers=5 if case == "as printed" else 4, **CASES[case])
    features = maps()
    ids = torch.tensor([[7, START, *[IMAGE] * 6, END, 11, 12, 13], [0, 0, START, *[IMAGE] * 6, END, 14, 15]])
    padding = torch.ones_like(ids)
    padding[1, :2] = 0
    with torch.no_grad():
        expected = by_hand(model, features, ids, padding)
        given = model(features, ids, padding).logits
    here = padding != 0
    torch.testing.assert_close(given[here], expected[here], rtol=1e-4, atol=1e-4)  # float32, other orders


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_layer_and_after_attention_differ_in_every_decoder(kind):
    features, ids = maps(), words()
    both = [writer(kind, where=where) for where in (BEFORE, AFTER)]
    both[1].load_state_dict(both[0].state_dict())
    with torch.no_grad():
        one, other = (model(features, ids).logits for model in both)
    assert (one - other).abs().max() > 1e-2


def test_the_first_layer_after_attention_has_not_looked_at_the_image_yet():
    """With nothing at the input, words behind the image read only zeros there in the first layer."""
    seen = {}
    for where in (BEFORE, AFTER):
        model = writer("llama", where=where, mapping="as printed", layers=4)
        model.decoder.model.layers[1].register_forward_pre_hook(lambda m, args, where=where: seen.update({where: args}))
        outputs = []
        for seed in (0, 1):
            model(maps(seed=seed), words())
            outputs.append(seen[where][0])
        moved = (outputs[0] != outputs[1]).any(dim=-1)
        assert moved[:, 1:3].all() and not moved[:, 0].any()  # stage 4 has two tokens of its own, and zeros
        assert moved[:, 3:].all() == moved[:, 3:].any() == (where == BEFORE)


@pytest.mark.parametrize("where", [BEFORE, AFTER])
@pytest.mark.parametrize(("attention", "start_knows"), [("hybrid", False), ("causal", False), ("as released", True)])
def test_words_in_front_of_the_image_know_nothing_of_it(attention, start_knows, where):
    model = writer(attention=attention, where=where)
    ids = torch.tensor([[7, 8, START, *[IMAGE] * 6, END, 11, 12]])
    one, other = (model(maps(1, seed), ids).logits[0] for seed in (0, 1))
    moved = (one != other).any(dim=-1).tolist()
    assert moved[:2] == [False, False]
    assert moved[2] == start_knows  # as released, vision_start looks at the image that stands behind it
    assert all(moved[3:])


@pytest.mark.parametrize("attention", ["hybrid", "causal", "as released"])
def test_no_position_knows_of_later_words(attention):
    model = writer(attention=attention, where=AFTER)
    ids = torch.tensor([[7, START, *[IMAGE] * 6, END, 11, 12]])
    other = ids.clone()
    other[0, -1] = 33
    one, two = model(maps(1), ids).logits[0], model(maps(1), other).logits[0]
    assert torch.equal(one[:-1], two[:-1]) and not torch.equal(one[-1], two[-1])


@pytest.mark.parametrize(("attention", "seen_by"), [("hybrid", 6), ("causal", 1), ("as released", 1)])
def test_who_sees_the_last_image_vector(attention, seen_by):
    model = writer(attention=attention, mapping="input only", reference=3)
    moved = []
    for change in (0.0, 1.0):
        features = maps(1)
        features[2][0, 0, -1, -1, -1] += change
        moved.append(model(features, torch.tensor([[START, *[IMAGE] * 6, END, 5]])).logits[0])
    differs = (moved[0] != moved[1]).any(dim=-1).tolist()
    assert differs[:7] == [False] * (7 - seen_by) + [True] * seen_by and differs[7:] == [True, True]


# ------------------------------------------------------------------------------------- decoders with and without it


@pytest.mark.parametrize("where", [BEFORE, AFTER])
@pytest.mark.parametrize("kind", KINDS)
def test_off_or_with_a_gate_at_zero_or_a_last_layer_at_zero_it_is_the_decoder_bit_for_bit(kind, where):
    plain = decoder(kind)
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    vision = torch.zeros(2, 9, dtype=torch.bool)
    vision[:, 1:7] = True
    with torch.no_grad():
        alone = plain(inputs_embeds=x).logits
        gated = inject(plain, CHANNELS, reference=-2, where=where, gate="number").image_at(vision, maps())
        assert torch.equal(plain(inputs_embeds=x).logits, alone)
        gated.detach()
        added = inject(plain, CHANNELS, reference=-2, where=where).image_at(vision, maps())
        with_it = plain(inputs_embeds=x).logits
        assert (with_it - alone).abs().max() > 1e-2
        added.enabled = False
        assert torch.equal(plain(inputs_embeds=x).logits, alone)
        added.enabled = True
        for projection in added.projections.values():
            projection.out.weight.zero_()
        added.image_at(vision, maps())
        assert torch.equal(plain(inputs_embeds=x).logits, alone)
        added.image_at(None)
        assert torch.equal(plain(inputs_embeds=x).logits, alone)
        added.detach()
    hooks = [h for m in plain.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    assert not hooks


def test_input_only_is_a_decoder_that_is_given_projected_features():
    model = writer("qwen3", mapping="input only")
    features, ids = maps(), torch.tensor([[START, *[IMAGE] * 6, END, 9, 10]] * 2)
    vision = ids == IMAGE
    table = model.get_input_embeddings()
    with torch.no_grad():
        given = model(features, ids).logits
        (vectors,) = model.injection.vectors(features).values()
        model.injection.detach()
        model.hybrid.detach()
        x = table(ids.masked_fill(vision, 0)).masked_scatter(vision[..., None], vectors)
        expected = model.decoder(inputs_embeds=x, attention_mask=additive(hybrid_mask(vision))).logits
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_words_alone_are_read_as_the_decoder_reads_them():
    model = writer("llama", where=AFTER)
    ids = words()
    alone = model(input_ids=ids).logits
    model.injection.detach()
    model.hybrid.detach()
    assert torch.equal(model.decoder(input_ids=ids).logits, alone)


def test_projections_are_one_a_layer_or_one_a_stage():
    per_layer = writer(layers=5, at_input=True).injection
    assert list(per_layer.projections) == [*(f"layer_{n}" for n in range(1, 6)), "input"]
    assert per_layer.read == {"layer_1": 4, "layer_2": 4, "layer_3": 3, "layer_4": 2, "layer_5": 1, "input": 3}
    shared = writer(layers=8, **AS_RELEASED).injection
    assert sorted(shared.projections) == ["stage_1", "stage_2", "stage_3", "stage_4"]
    assert shared.map == [4, 4, 3, 3, 2, 2, 1, 1]
    assert list(writer(mapping="input only").injection.projections) == ["input"]


# ---------------------------------------------------------------------------------------------------- generation


def recomputed(model, features, ids, padding, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy words and their logits, each from the whole sequence anew."""
    start, logits = ids.shape[1], []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(features, ids, padding, use_cache=False).logits[:, -1])
        following = logits[-1].argmax(dim=-1, keepdim=True)
        ids, padding = torch.cat([ids, following], dim=1), torch.cat([padding, torch.ones_like(following)], dim=1)
    return ids[:, start:], torch.stack(logits, dim=1)


@pytest.mark.parametrize(
    ("kind", "where", "attention"),
    [
        ("qwen2", BEFORE, "hybrid"),
        ("qwen3", AFTER, "hybrid"),
        ("llama", BEFORE, "as released"),
        ("llama", AFTER, "causal"),
        ("starcoder2", AFTER, "as released"),
    ],
)
def test_with_a_cache_it_writes_what_it_writes_without(kind, where, attention):
    model = writer(kind, attention, where=where, at_input=True)
    features, ids, padding = maps(), words(2, 5), torch.ones(2, 5, dtype=torch.long)
    padding[0, :2] = 0  # the first row is padded on the left
    options = {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(features, ids, padding, **options)
    written, logits = recomputed(model, features, ids, padding, 6)
    assert torch.equal(cached.sequences, written)
    torch.testing.assert_close(torch.stack(cached.logits, dim=1), logits, rtol=1e-4, atol=1e-4)  # float32, other orders
    assert torch.equal(model.generate(features, ids, padding, max_new_tokens=6, use_cache=False), written)
    for row, begins in ((slice(0, 1), 2), (slice(1, 2), 0)):
        alone = model.generate([m[row] for m in features], ids[row, begins:], max_new_tokens=6)
        assert torch.equal(alone, written[row])
    assert len(set(written.flatten().tolist())) > 4  # not one word for ever
    moved = torch.stack(model.generate(maps(seed=1), ids, padding, **options).logits, dim=1) - logits
    assert moved.abs().amax(dim=-1).min() > 1e-2  # each step depends on the image


@pytest.mark.parametrize("where", [BEFORE, AFTER])
def test_rows_that_are_repeated_as_beams_are_keep_their_image(where):
    plain = decoder("llama")
    vision, padding = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.long)
    vision[0, 3:9], vision[1, 1:7], padding[0, :2] = True, True, 0
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    inject(plain, CHANNELS, reference=-2, where=where, gate="sigmoid").image_at(vision, maps())
    attend(plain).image_at(vision)
    with torch.no_grad():
        once = plain(inputs_embeds=x, attention_mask=padding).logits
        rows = torch.tensor([0, 0, 0, 1, 1, 1])
        repeated = plain(inputs_embeds=x[rows], attention_mask=padding[rows]).logits
    here = padding[rows] != 0
    torch.testing.assert_close(repeated[here], once[rows][here], rtol=1e-4, atol=1e-4)  # float32, other orders


def test_beams_and_a_report_from_nothing_but_the_image():
    model = writer(where=AFTER, gate="sigmoid")
    features = maps()
    options = {"max_new_tokens": 5, "num_beams": 3}
    beams = model.generate(features, **options)
    assert beams.shape == (2, 5)
    assert torch.equal(beams, model.generate(features, use_cache=False, **options))
    for row in (slice(0, 1), slice(1, 2)):
        assert torch.equal(model.generate([m[row] for m in features], **options), beams[row])


def test_a_cache_of_fixed_length_is_refused_with_a_sentence():
    model = writer()
    with pytest.raises(BadInput, match="DynamicCache"):
        model.generate(maps(), words(), past_key_values=StaticCache(model.decoder.config, max_cache_len=40))


# ----------------------------------------------------------------------------------------- the sequence, the loss


def test_words_alone_get_the_image_in_front_whatever_their_padding():
    model = writer()
    features, ids = maps(), words(2, 4)
    padding, labels = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), ids.clone()
    labels[padding == 0] = -100
    whole, mask, learnt = model.with_image(features, ids, padding, labels)
    image = [START, *[IMAGE] * 6, END]
    assert whole.tolist() == [[*ids[0, :2].tolist(), *image, *ids[0, 2:].tolist()], [*image, *ids[1].tolist()]]
    assert mask.tolist() == [[0, 0] + [1] * 10, [1] * 11 + [0]]
    assert learnt.tolist() == [[-100] * 10 + labels[0, 2:].tolist(), [-100] * 8 + labels[1].tolist()]
    read = []
    model.decoder.model.rotary_emb.register_forward_hook(lambda m, args, out: read.append(args[1]))
    with torch.no_grad():
        short = model(features, ids, padding, labels)
        long = model(features, whole, mask, learnt)
    assert short.logits.shape == (2, 4, VOCABULARY)
    here = padding != 0
    torch.testing.assert_close(short.logits[here], long.logits[:, 8:][here])
    assert read[0].tolist() == [[0, 0, *range(10)], [*range(11), 10]]  # positions begin behind padding
    torch.testing.assert_close(short.loss, long.loss)


def test_the_loss_is_equation_3_also_for_the_first_word():
    model, features, ids = writer("llama"), maps(), words(2, 4)
    padded, mask = functional.pad(ids, (2, 0)), functional.pad(torch.ones_like(ids), (2, 0))
    losses = []
    for tokens, attended in ((ids, None), (padded, mask)):
        labels = tokens if attended is None else tokens.masked_fill(attended == 0, -100)
        with torch.no_grad():
            losses.append(model(features, tokens, attended, labels).loss)
    row = torch.tensor([[START, *[IMAGE] * 6, END]] * 2)
    with torch.no_grad():
        logits = model(features, torch.cat([row, ids], dim=1)).logits[:, 7:-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected, rtol=1e-4, atol=1e-4)  # padding changes the order of sums


# -------------------------------------------------------------------------------------------------------- training


def reaching(model) -> list[torch.nn.Parameter]:
    """Weights of the injection that have a way to a word; see the test that follows."""
    last = f"layer_{len(model.injection.map)}."
    dead = last if model.injection.where == AFTER and not model.injection.shared else "none"
    return [p for name, p in model.injection.named_parameters() if dead not in name]


def test_what_the_last_layer_gets_after_its_attention_reaches_no_word():
    ids, features = words(), maps()
    for where in (BEFORE, AFTER):
        model = writer("llama", where=where)  # layer 4 gets stage 1, and nobody else does
        model(features, ids, labels=ids).loss.backward()
        reached = [bool(p.grad.any()) for p in model.injection.projections["layer_4"].parameters()]
        assert set(reached) == {where == BEFORE}
        others = [features[0] + 1, *features[1:]]
        others[0][:, 0] *= 3
        assert torch.equal(model(features, ids).logits, model(others, ids).logits) == (where == AFTER)


@pytest.mark.parametrize("options", [{"where": BEFORE}, {"where": AFTER, "gate": "sigmoid"}, AS_RELEASED])
def test_gradients_reach_all_projections_and_the_encoder_also_with_checkpointing(options):
    gradients = []
    for checkpointing in (False, True):
        model = writer("qwen3", layers=8, **options).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        features = [map_.requires_grad_() for map_ in maps()]
        # two batches before one backward pass: a layer that is computed again must get its own batch's vectors
        loss = model(features, words(), labels=words()).loss + model(maps(seed=4), words(), labels=words()).loss
        loss.backward()
        gradients.append([map_.grad for map_ in features] + [p.grad for p in reaching(model)])
    assert all(grad is not None and bool(grad.any()) for grad in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", [BEFORE, AFTER])
def test_a_frozen_decoder_with_lora_starts_as_it_was_and_learns_beside_it(where):
    model = writer("qwen3", where=where)
    features, ids = maps(), words()
    without = model(features, ids).logits
    model.decoder = with_lora(model.decoder, rank=64, alpha=128, targets="attention", dropout=0)
    assert torch.equal(model(features, ids).logits, without)
    model(features, ids, labels=ids).loss.backward()
    adapters = lora_parameters(model.decoder)
    learns = {id(p) for p in (*adapters, *model.injection.parameters())}
    assert all((p.grad is not None) == (id(p) in learns) for p in model.parameters())
    assert any(bool(p.grad.any()) for p in adapters) and all(bool(p.grad.any()) for p in reaching(model))
    with torch.no_grad():
        for p in adapters:
            p.add_(0.05)
    written = model.generate(features, ids, max_new_tokens=6)
    assert torch.equal(written, recomputed(model, features, ids, torch.ones_like(ids), 6)[0])
    assert not torch.equal(model(features, ids).logits, without)


def test_hooks_go_onto_a_decoder_that_has_adapters_already():
    plain = decoder("llama")
    vision = torch.tensor([[False, *[True] * 6, False, False]] * 2)
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    results = []
    for made in (plain, with_lora(plain, rank=64, alpha=128, targets="attention").eval()):
        added, mask = inject(made, CHANNELS, reference=-2, where=AFTER), attend(made)
        added.image_at(vision, maps())
        mask.image_at(vision)
        results.append(made(inputs_embeds=x).logits)
        added.detach()
        mask.detach()
    assert torch.equal(*results)


def test_padding_on_the_left_gives_finite_gradients():
    model = writer("qwen2").train()
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model(maps(), words(), padding, words().masked_fill(padding == 0, -100)).loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


# ---------------------------------------------------------------------------------------------- the model as a whole


@pytest.mark.parametrize("options", [{}, dict(AS_RELEASED, gate="sigmoid")])
def test_it_survives_the_disk_and_a_copy(options, tmp_path):
    model = writer("starcoder2", attention="as released", tied=True, **options)
    features, ids = maps(), words()
    expected = model(features, ids).logits
    model.save_pretrained(tmp_path)
    again = UvlmDecoder.from_pretrained(tmp_path).eval()
    assert again.config.injection == model.config.injection and again.config.attention == "as released"
    assert torch.equal(again(features, ids).logits, expected)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    assert torch.equal(copied(features, ids).logits, expected)


def test_the_papers_decoder_is_mostly_its_embeddings():
    counted = decoder_parts(paper_decoder(decoder_sizes.UVLM_VOCABULARY))
    assert counted == decoder_sizes.uvlm_parts()
    assert round(sum(counted.values()) / 1e9, 1) == 0.1
    assert counted["embeddings"] / sum(counted.values()) > 0.75
    untied = decoder_parts(shape("llama", tie_word_embeddings=False))
    assert untied["embeddings"] == 2 * VOCABULARY * WIDTH


def test_a_decoder_with_its_own_weights_keeps_them():
    ready = decoder("qwen3", seed=5)
    config = UvlmConfig(ready.config, CHANNELS, None, vision_start_id=START, vision_end_id=END, image_token_id=IMAGE)
    weights = {name: tensor.clone() for name, tensor in ready.state_dict().items()}
    model = UvlmDecoder.with_seed(config, 1, ready)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.decoder.state_dict().items())
    other = UvlmDecoder.with_seed(config, 2, ready)
    assert not torch.equal(*(m.injection.projections["layer_1"].out.weight for m in (model, other)))


# ------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "inside"}, "'before the layer', 'after attention'"),
        ({"gate": "tanh"}, "'sigmoid', 'number'"),
        ({"reference": 5}, "stage 5 isn't there"),
        ({"stages": (1, 7)}, "stage 7 isn't there"),
        ({"mapping": "evenly"}, "'spread'"),
        ({"inner": 0}, "1 or more"),
    ],
)
def test_options_that_are_not_there_are_refused(options, says):
    with pytest.raises(BadInput, match=says):
        inject(decoder(), CHANNELS, **options)


def test_decoders_of_another_kind_are_refused():
    with pytest.raises(BadInput, match="list of layers"):
        inject(torch.nn.Linear(2, 2), CHANNELS)
    with pytest.raises(BadInput, match="4 stages are injected and the decoder has 3 layers"):
        inject(decoder(layers=3), CHANNELS)
    normed_behind = AutoModelForCausalLM.from_config(shape("gemma2", head_dim=8))
    with pytest.raises(BadInput, match="inject 'before the layer'"):
        inject(normed_behind, CHANNELS, where=AFTER)


def test_batches_that_do_not_fit_are_refused():
    plain = decoder()
    added = inject(plain, CHANNELS, reference=-2)
    vision = torch.tensor([[False, *[True] * 6, False]] * 2)
    with pytest.raises(BadInput, match="call image_at"):
        plain(inputs_embeds=torch.zeros(2, 8, WIDTH))
    for positions, features, says in [
        (vision, None, "together"),
        (vision, maps()[:3], "3, 4, 5\\) channels"),
        (vision.long(), maps(), "must be bool"),
        (vision[:1], maps(), "2 volumes"),
        (vision & (torch.arange(8) != 3), maps(), "5, 5"),
        (vision, [maps()[0] * float("nan"), *maps()[1:]], "stage 1 hold values that are NaN"),
    ]:
        with pytest.raises(BadInput, match=says):
            added.image_at(positions, features)
    added.image_at(vision, maps())
    with pytest.raises(BadInput, match="3 rows of 8 tokens"):
        plain(inputs_embeds=torch.zeros(3, 8, WIDTH))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attention": "full"}, "'hybrid', 'as released', 'causal'"),
        ({"vision_start_id": VOCABULARY}, "vocabulary has 60"),
        ({"image_token_id": END}, "its own"),
        ({"image_token_id": None}, "give all"),
        ({"decoder": None}, "give all"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(options, says):
    ids = {"vision_start_id": START, "vision_end_id": END, "image_token_id": IMAGE}
    with pytest.raises(BadInput, match=says):
        UvlmConfig(**{"decoder": shape(), "channels": CHANNELS} | ids | options)


def test_sequences_that_do_not_fit_are_refused():
    model = writer()
    ids = torch.tensor([[START, *[IMAGE] * 5, END, 9]] * 2)
    with pytest.raises(BadInput, match="5 placeholders"):
        model(maps(), ids)
    with pytest.raises(BadInput, match="no features were given"):
        model(input_ids=ids)
    with pytest.raises(BadInput, match="positions for 96"):
        model(maps(), words(2, 90))
    with pytest.raises(BadInput, match="one shape"):
        model(maps(), words(), torch.ones(2, 4))
    with pytest.raises(BadInput, match="padded on the right"):
        model.generate(maps(), words(), torch.tensor([[1, 1, 1, 1, 0]] * 2))
    with pytest.raises(BadInput, match="neither features nor words"):
        model.generate()
    with pytest.raises(BadInput, match="not volumes"):
        model.embed(ids, images=torch.zeros(2, 1, 4, 4, 4))
    frozen.freeze(model.decoder)
    assert model.train().decoder.training is False
