"""SSA and MSSA: the equations in both forms, what each position sees, and decoders with and without them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from helpers_finetune import lessons
from helpers_vlm import tiny, volumes
from hypothesis import given, settings
from transformers import AutoModelForCausalLM, StaticCache

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.finetune import Finetuning, build
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.projector import PROJECTORS
from ctvlm_lib.vlm.projector_merged import merged
from ctvlm_lib.vlm.short_answers import short_answers
from ctvlm_lib.vlm.slice_attention import attach, slices_of
from ctvlm_lib.vlm.slice_heads import MultiHeadSliceAttention, seen_by, slice_attention
from ctvlm_lib.vlm.splice import image_positions

LENGTH, IMAGE = 12, slice(1, 6)  # a word, five image vectors, six words
SETTINGS = [(kind, form) for kind in ("SSA", "MSSA") for form in ("as meant", "as printed")]


def decoder(kind: str = "qwen2", seed: int = 0):
    """Random, three blocks, 32 wide; weights large enough that each position depends on the rest."""
    from transformers import AutoConfig

    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": None, "pad_token_id": 0,
        "bos_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.ndim == 2:
                tensor.mul_(5)
    return made.eval()


def attached(to, kind: str, form: str = "as meant", **options):
    """With an effect: W_O isn't zero, R neither, and what isn't softened by softmax is small."""
    made = attach(to, kind, form=form, **options)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith(("out.weight", "relative")):
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
    return made


def positions(rows: int = 2) -> torch.Tensor:
    where = torch.zeros(rows, LENGTH, dtype=torch.bool)
    where[:, IMAGE] = True
    return where


def embeddings(to, rows: int = 2, seed: int = 0, size: float = 0.3) -> torch.Tensor:
    width = to.config.hidden_size
    return torch.randn(rows, LENGTH, width, generator=torch.Generator().manual_seed(seed)) * size


def logits(to, x, **options):
    with torch.no_grad():
        return to(inputs_embeds=x, use_cache=False, **options).logits


@pytest.mark.parametrize("form", ["as printed", "as meant"])
def test_equation_2_equals_a_plain_loop(form):
    draw = torch.Generator().manual_seed(0)
    v, t = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (3, 5))
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for i in range(3):
        scores = [sum(float(v[i, c]) * float(t[j, c]) for c in range(4)) for j in range(5)]
        if form == "as printed":
            weights = [s * math.sqrt(4) for s in scores]
        else:
            powers = [math.exp(s / math.sqrt(4)) for s in scores]
            weights = [p / sum(powers) for p in powers]
        expected[i] = sum(w * t[j] for j, w in enumerate(weights))
    torch.testing.assert_close(slice_attention(v, t, form), expected)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 20), st.integers(0, 1000))
def test_as_printed_grows_with_the_cube_and_as_meant_is_a_mean(scale, seed):
    draw = torch.Generator().manual_seed(seed)
    v, t = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (4, 3))
    printed = slice_attention(v, t, "as printed")
    torch.testing.assert_close(slice_attention(scale * v, scale * t, "as printed"), scale**3 * printed)
    meant = slice_attention(scale * v, scale * t, "as meant")
    assert (meant <= scale * t.amax(dim=0) + 1e-9).all() and (meant >= scale * t.amin(dim=0) - 1e-9).all()


@pytest.mark.parametrize("form", ["as printed", "as meant"])
def test_equations_3_and_4_equal_a_plain_loop(form):
    draw = torch.Generator().manual_seed(0)
    block = MultiHeadSliceAttention(8, heads=2, slices=3, form=form).double()
    with torch.no_grad():
        for tensor in block.parameters():
            tensor.requires_grad_(False).copy_(torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    z = torch.randn(1, 5, 8, generator=draw, dtype=torch.float64)
    slices = [0, 1, 2, None, None]  # three image vectors, two words
    image = torch.tensor([[s is not None for s in slices]])
    seen = seen_by(image, torch.ones_like(image), 0)
    expected = []
    for i in range(5):
        heads = []
        for h in range(2):
            rows = slice(4 * h, 4 * h + 4)
            q, scores = block.query.weight[rows] @ z[0, i], {}
            for j in range(5):
                if not (j <= i or (slices[i] is not None and slices[j] is not None)):
                    continue
                both = slices[i] is not None and slices[j] is not None
                r = float(block.relative[h, slices[i] - slices[j] + 2]) if both else 0.0
                dot = float(q @ (block.key.weight[rows] @ z[0, j]))
                scores[j] = dot * math.sqrt(4) + r if form == "as printed" else dot / math.sqrt(4) + r
            if form == "as meant":
                whole = sum(math.exp(s) for s in scores.values())
                scores = {j: math.exp(s) / whole for j, s in scores.items()}
            heads.append(sum(w * (block.value.weight[rows] @ z[0, j]) for j, w in scores.items()))
        joined = heads[0] * heads[1] if form == "as printed" else torch.cat(heads)
        expected.append(block.out.weight @ joined)
    slice_of = torch.tensor([[-1 if s is None else s for s in slices]])
    torch.testing.assert_close(block(z, seen, slice_of)[0], torch.stack(expected))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize(("what", "form"), SETTINGS)
def test_off_is_the_decoder_bit_for_bit(kind, what, form):
    plain = decoder(kind)
    x, before = embeddings(plain), dict(plain.state_dict())
    without = logits(plain, x)
    added = attached(plain, what, form).image_at(positions())
    assert not torch.equal(logits(plain, x), without)
    added.enabled = False
    assert torch.equal(logits(plain, x), without)
    added.enabled = True
    added.detach()
    assert torch.equal(logits(plain, x), without)
    after = plain.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_mssa_starts_as_nothing_and_ssa_does_with_a_gate():
    plain = decoder()
    x = embeddings(plain)
    without = logits(plain, x)
    for options in ({"kind": "MSSA"}, {"kind": "SSA", "gate": True}):
        added = attach(plain, **options).image_at(positions())
        assert torch.equal(logits(plain, x), without), options
        plain(inputs_embeds=x).logits.square().sum().backward()
        learns = [
            p.grad is not None and bool(p.grad.any()) for n, p in added.named_parameters() if "gate" in n or "out" in n
        ]
        assert learns and all(learns)
        added.detach()


@pytest.mark.parametrize(("what", "form"), SETTINGS)
def test_no_word_learns_of_a_later_word(what, form):
    plain = decoder()
    attached(plain, what, form).image_at(positions(1))
    x = embeddings(plain, rows=1, size=0.1)
    whole = logits(plain, x)[0]
    for place in [0, *range(IMAGE.stop, LENGTH)]:
        changed = x.clone()
        changed[0, place] += torch.randn(32, generator=torch.Generator().manual_seed(place))
        moved = (logits(plain, changed)[0] - whole).abs().amax(dim=-1)
        assert (moved[:place] == 0).all(), place
        assert moved[place] > 0


@pytest.mark.parametrize(("what", "form"), SETTINGS)
def test_a_word_before_the_image_doesnt_see_it_and_words_behind_do(what, form):
    plain = decoder()
    added = attached(plain, what, form)
    x = embeddings(plain, rows=1, size=0.1)
    added.enabled = False
    without = logits(plain, x)[0]
    added.enabled = True
    moved = (logits_with(plain, added, x)[0] - without).abs().amax(dim=-1)
    assert (moved[IMAGE.stop :] > 1e-6).all()
    if what == "SSA":
        assert (moved[: IMAGE.stop] == 0).all()  # the image itself isn't updated
    changed = x.clone()
    changed[0, IMAGE] += 1
    assert torch.equal(logits(plain, changed)[0, 0], logits(plain, x)[0, 0])


def logits_with(plain, added, x):
    added.image_at(positions(len(x)))
    return logits(plain, x)


@pytest.mark.parametrize(("what", "form"), SETTINGS)
def test_with_a_cache_each_step_equals_the_whole(what, form):
    plain = decoder()
    attached(plain, what, form).image_at(positions())
    prompt = embeddings(plain, size=0.1)
    later = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(9)) * 0.1
    with torch.no_grad():
        out = plain(inputs_embeds=prompt, use_cache=True)
        steps = [out.logits[:, -1]]
        for k in range(4):
            out = plain(inputs_embeds=later[:, k : k + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[:, -1])
    whole = logits(plain, torch.cat([prompt, later], dim=1))[:, LENGTH - 1 :]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=1e-4)  # float32, other orders


@pytest.mark.parametrize(("kind", "what", "form"), [("qwen2", *s) for s in SETTINGS] + [("llama", *SETTINGS[2])])
def test_generation_with_a_cache_writes_the_same_tokens(kind, what, form):
    plain = decoder(kind)
    attached(plain, what, form).image_at(positions())
    x = embeddings(plain, size=0.1)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones(2, LENGTH, dtype=torch.long)}
    cached = plain.generate(inputs_embeds=x, use_cache=True, **options)
    table, grown, slow = plain.get_input_embeddings(), x, []
    for _ in range(5):
        slow.append(logits(plain, grown)[:, -1].argmax(dim=-1))
        grown = torch.cat([grown, table(slow[-1])[:, None].detach()], dim=1)
    assert torch.equal(cached, torch.stack(slow, dim=1))
    assert len(set(cached.flatten().tolist())) > 1


def test_a_second_generation_forgets_the_first():
    plain = decoder()
    added = attached(plain, "MSSA").image_at(positions())
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones(2, LENGTH, dtype=torch.long)}
    x = embeddings(plain)
    first = plain.generate(inputs_embeds=x, **options)
    plain.generate(inputs_embeds=embeddings(plain, seed=3), **options)
    assert torch.equal(plain.generate(inputs_embeds=x, **options), first)
    added.image_at(None)
    assert plain.generate(inputs_embeds=x, **options).shape == first.shape


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_beams_carry_the_memory_and_their_rows_positions_with_them(what):
    plain = decoder()
    x, mask, where = embeddings(plain), torch.ones(2, LENGTH, dtype=torch.long), positions()
    mask[0, :2] = 0  # the first row begins two later
    where[0] = where[0].roll(2)
    added = attached(plain, what).image_at(where, mask)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "attention_mask": mask}
    cached = plain.generate(inputs_embeds=x, use_cache=True, **options)
    assert torch.equal(cached, plain.generate(inputs_embeds=x, use_cache=False, **options))
    for row in (slice(0, 1), slice(1, 2)):
        added.image_at(where[row], mask[row])
        alone = plain.generate(inputs_embeds=x[row], **options | {"attention_mask": mask[row]})
        assert torch.equal(alone, cached[row])


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_rows_that_are_repeated_keep_their_positions(what):
    plain = decoder()
    x, mask, where = embeddings(plain), torch.ones(2, LENGTH, dtype=torch.long), positions()
    mask[0, :2] = 0
    where[0] = where[0].roll(2)
    attached(plain, what).image_at(where, mask)
    repeated = logits(plain, x.repeat_interleave(3, dim=0))
    torch.testing.assert_close(repeated, logits(plain, x).repeat_interleave(3, dim=0), rtol=1e-4, atol=1e-4)


def test_in_a_decoder_r_changes_nothing_at_words():
    plain = decoder()
    added = attached(plain, "MSSA", first=1).image_at(positions())
    seen = []
    added.blocks[0].register_forward_hook(lambda block, args, out: seen.append(out))
    x = embeddings(plain)
    logits(plain, x)
    with torch.no_grad():
        added.blocks[0].heads.relative.mul_(-3)
    logits(plain, x)
    moved = (seen[0] != seen[1]).any(dim=-1)
    assert torch.equal(moved, positions())


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_a_cache_that_was_emptied_takes_another_image(what):
    plain = decoder()
    attached(plain, what).image_at(positions())
    x, other = embeddings(plain), embeddings(plain, seed=3)
    with torch.no_grad():
        cache = plain(inputs_embeds=x, use_cache=True).past_key_values
        cache.crop(-LENGTH)
        again = plain(inputs_embeds=other, past_key_values=cache).logits
        step = plain(inputs_embeds=x[:, :1], past_key_values=cache).logits[:, -1]
    assert torch.equal(again, logits(plain, other))
    whole = logits(plain, torch.cat([other, x[:, :1]], dim=1))[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-4)  # float32, other orders


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_padding_on_the_left_changes_no_answer(what):
    plain = decoder()
    added = attached(plain, what)
    x = embeddings(plain, rows=1)
    alone = logits_with(plain, added, x)
    pad = 3
    padded = torch.cat([torch.randn(1, pad, 32, generator=torch.Generator().manual_seed(1)), x], dim=1)
    mask = torch.tensor([[0] * pad + [1] * LENGTH])
    where = torch.nn.functional.pad(positions(1), (pad, 0))
    added.image_at(where, mask)
    place = (mask.cumsum(dim=1) - 1).clamp(min=0)
    shifted = logits(plain, padded, attention_mask=mask, position_ids=place)[:, pad:]
    torch.testing.assert_close(shifted, alone, rtol=1e-4, atol=1e-4)  # float32, other orders


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_the_whole_model_answers_with_it_as_without_a_cache(what):
    model, _ = tiny()
    place, n = model.config.image_token_id, model.config.image_tokens
    ids = torch.tensor([[7] + [place] * n + [11, 12, 13], [8] + [place] * n + [14, 15, 16]])
    images = volumes(2)
    without = model.generate(ids, images=images, max_new_tokens=4)
    where = image_positions(ids, place, n)
    added = attached(model.decoder, what).image_at(where)
    cached = model.generate(ids, images=images, max_new_tokens=4)
    assert torch.equal(cached, model.generate(ids, images=images, max_new_tokens=4, use_cache=False))
    added.detach()
    assert torch.equal(model.generate(ids, images=images, max_new_tokens=4), without)


def test_r_counts_only_between_image_vectors():
    block = MultiHeadSliceAttention(8, heads=2, slices=4)
    with torch.no_grad():
        block.relative.copy_(torch.arange(14.0).reshape(2, 7) + 1)
    slice_of = torch.tensor([[-1, 0, 0, 3, -1]])
    bias = block.bias(slice_of, slice_of)[0]
    assert (bias[:, 0] == 0).all() and (bias[:, :, 4] == 0).all()
    assert torch.equal(bias[:, 1, 1], block.relative[:, 3]) and torch.equal(bias[:, 1, 2], block.relative[:, 3])
    assert torch.equal(bias[:, 3, 1], block.relative[:, 6]) and torch.equal(bias[:, 1, 3], block.relative[:, 0])


def test_slices_of_ones_own_change_only_what_r_does():
    plain = decoder()
    added = attached(plain, "MSSA")
    x, one_slice = embeddings(plain), torch.zeros(5, dtype=torch.long)
    by_vector = logits_with(plain, added, x)
    added.image_at(positions(), slices=one_slice)
    assert not torch.equal(logits(plain, x), by_vector)
    with torch.no_grad():
        for block in added.blocks:
            block.heads.relative.zero_()
    flat = logits(plain, x)
    assert torch.equal(logits_with(plain, added, x), flat)


def plain_slice(middle_of: tuple[int, int, int], grid: tuple[int, int, int], depth: int) -> int:
    """The slice in the middle of what a cell of a grid covers."""
    voxels = depth // grid[0]
    return middle_of[0] * voxels + voxels // 2


def test_each_image_vector_has_the_slice_in_its_middle_position_by_position():
    low, high, block, depth = (8, 4, 6), (2, 2, 3), (2, 2, 2), 32
    made = merged((8 * 4 * 6, 3), (2 * 2 * 3, 5), hidden_size=8, grid=low, block=block)
    cells = tuple(n // b for n, b in zip(low, block, strict=True))
    expected = [plain_slice((i, j, k), grid, depth) for grid in (cells, high)
                for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])]  # fmt: skip
    assert slices_of(made, low, high, depth).tolist() == expected
    assert set(expected) == {4, 12, 20, 28, 8, 24}  # four layers of blocks, two of coarse tokens
    assert slices_of(made, low, high, depth, by="vector") is None


@pytest.mark.parametrize("name", [name for name in PROJECTORS if not name.startswith("mixer")])
def test_perceptrons_keep_their_tokens_slices(name):
    model, _ = tiny(projector=name)
    grids = model.encoder.grids(model.config.size_dhw_vox)[-2:]
    found = slices_of(model.projector, *grids, model.config.size_dhw_vox[0])
    assert len(found) == model.config.image_tokens
    assert 0 <= int(found.min()) <= int(found.max()) < model.config.size_dhw_vox[0]


def test_behind_a_mixer_each_vector_stays_a_slice_of_its_own():
    bodies = {}
    for by in ("vector", "slice"):
        model, _ = tiny(slice_attention={"kind": "MSSA", "by": by})
        assert model.slices is None
        ids = torch.tensor([[7] + [model.config.image_token_id] * model.config.image_tokens + [11]])
        model.embed(ids, images=volumes(1))
        bodies[by] = model.slice_attention._where.slices.tolist()
    assert bodies["vector"] == bodies["slice"] == list(range(model.config.image_tokens))


def test_in_the_finetuned_model_r_goes_by_the_distance_between_slices():
    model, processor = build(Finetuning(projector="merged", slice_attention="MSSA", slice_by="slice"))
    ids = torch.tensor([processor.sequence("?")[0]])
    rows, columns = model.config.streams()
    model.embed(ids, features=(torch.zeros(1, *rows), torch.zeros(1, *columns)))
    heads, where = model.slice_attention.blocks[0].heads, model.slice_attention._where
    with torch.no_grad():
        heads.relative.copy_(torch.randn(heads.relative.shape, generator=torch.Generator().manual_seed(0)))
    slice_of = where.slice_of(where.image(1, ids.shape[1], ids.device))
    bias = heads.bias(slice_of, slice_of)[0]
    middle = [plain_slice((i, 0, 0), grid, 32) for grid in ((4, 4, 4), (2, 4, 4)) for i in range(grid[0])
              for _ in range(grid[1] * grid[2])]  # fmt: skip
    vectors = (ids[0] == processor.image_token_id).nonzero()[:, 0].tolist()
    assert len(vectors) == len(middle) == 96
    for p, one in zip(vectors, middle, strict=True):
        for q, other in zip(vectors, middle, strict=True):
            assert torch.equal(bias[:, p, q], heads.relative[:, one - other + heads.slices - 1])
    assert torch.equal(bias[:, vectors[0]], bias[:, vectors[15]])  # of one slice: the same bias to everyone
    assert not torch.equal(bias[:, vectors[0]], bias[:, vectors[16]])


def test_behind_any_projector_of_the_cohort_r_has_a_distance_for_each_two_vectors():
    sizes = {}
    for name in (*PROJECTORS, "merged"):
        model, processor = build(Finetuning(projector=name, slice_attention="MSSA"))
        rows, columns = model.config.streams()
        features = (torch.zeros(1, *rows), torch.zeros(1, *columns))
        model.embed(torch.tensor([processor.sequence("?")[0]]), features=features)
        sizes[model.config.image_tokens] = model.slice_attention.blocks[0].heads.relative.shape[1]
    assert sizes == {vectors: 2 * max(256, vectors) - 1 for vectors in sizes}
    assert sizes[96] == 511 and max(sizes) > 256  # what merged's stored arms have; the mixer's needs more


def test_slices_are_part_of_the_configuration_and_survive_the_disk(tmp_path):
    model, _ = tiny(projector="mlp", slice_attention={"kind": "MSSA", "by": "slice"})
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).slices, model.slices)


def test_only_the_first_k_blocks_are_changed():
    plain = decoder()
    added = attached(plain, "SSA", first=1)
    hooked = [bool(layer._forward_pre_hooks) for layer in plain.model.layers]
    assert hooked == [True, False, False]
    added.detach()
    assert not any(layer._forward_pre_hooks for layer in plain.model.layers)


def test_gradients_reach_all_weights_also_with_checkpointing():
    grads = []
    for checkpointing in (False, True):
        plain = decoder().train()
        if checkpointing:
            plain.gradient_checkpointing_enable()
        added = attached(plain, "MSSA").image_at(positions())
        plain(inputs_embeds=embeddings(plain).requires_grad_()).logits.square().mean().backward()
        grads.append([p.grad for p in added.parameters()])
    assert all(bool(g.any()) for g in grads[0])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_it_goes_onto_a_decoder_with_lora():
    plain = decoder()
    x = embeddings(plain)
    added = attached(plain, "SSA").image_at(positions())
    expected = logits(plain, x)
    added.detach()
    adapted = with_lora(plain, rank=2).eval()
    attached(adapted, "SSA").image_at(positions())
    assert torch.equal(logits(adapted, x), expected)


def test_the_decoder_refuses_to_run_before_it_knows_the_image():
    plain = decoder()
    attach(plain)
    with pytest.raises(BadInput, match=r"call image_at\(positions\)"):
        logits(plain, embeddings(plain))


def test_a_cache_from_before_attach_is_refused():
    plain = decoder()
    x = embeddings(plain)
    cache = plain(inputs_embeds=x, use_cache=True).past_key_values
    attach(plain).image_at(positions())
    with pytest.raises(BadInput, match="start generating after attach"):
        plain(inputs_embeds=x[:, :1], past_key_values=cache)


def test_a_cache_of_fixed_length_is_refused():
    plain = decoder()
    attach(plain).image_at(positions())
    with pytest.raises(BadInput, match="StaticCache"):
        plain(inputs_embeds=embeddings(plain), past_key_values=StaticCache(plain.config, max_cache_len=32))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "XSA"}, "'SSA', 'MSSA'"),
        ({"form": "better"}, "as printed"),
        ({"first": 4}, "3 blocks"),
        ({"kind": "MSSA", "heads": 5}, "5 heads"),
        ({"kind": "MSSA", "gate": True}, "W_O"),
    ],
)
def test_what_isnt_there_is_refused(options, says):
    with pytest.raises(BadInput, match=says):
        attach(decoder(), **options)
    with pytest.raises(BadInput, match="'vector', 'slice'"):
        tiny(slice_attention={"kind": "MSSA", "by": "row"})


def test_positions_that_are_no_image_are_refused():
    added = attach(decoder(), "MSSA", slices=4)
    gap = positions()
    gap[0, 3] = False
    gap[0, 8] = True
    uneven = positions()
    uneven[0, 1] = False
    for where in (gap, uneven, torch.zeros_like(gap)):
        with pytest.raises(BadInput, match="one image a row"):
            added.image_at(where)
    with pytest.raises(BadInput, match="no bias"):
        added.image_at(positions())
    with pytest.raises(BadInput, match="one whole number"):
        added.image_at(positions(), slices=torch.zeros(3, dtype=torch.long))
    with pytest.raises(BadInput, match="bool"):
        added.image_at(positions().long())


def test_positions_of_another_batch_are_refused():
    plain = decoder()
    attach(plain).image_at(positions(3))
    with pytest.raises(BadInput, match="for each batch"):
        logits(plain, embeddings(plain))


def test_a_module_without_blocks_is_refused():
    with pytest.raises(BadInput, match="causal language model"):
        attach(torch.nn.Linear(4, 4))


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_it_is_part_of_the_models_configuration_and_survives_the_disk(what, tmp_path):
    model, _ = tiny(slice_attention={"kind": what, "first": 1, "gate": what == "SSA"})
    with torch.no_grad():
        for tensor in model.slice_attention.parameters():
            tensor.add_(0.3)
    place, n = model.config.image_token_id, model.config.image_tokens
    ids = torch.tensor([[7] + [place] * n + [11, 12, 13]])
    answer = model.generate(ids, images=volumes(1), max_new_tokens=4)
    plain, _ = tiny()
    assert not torch.equal(
        plain(ids, images=volumes(1)).logits, model(ids, images=volumes(1)).logits
    )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.generate(ids, images=volumes(1), max_new_tokens=4), answer)


@pytest.mark.parametrize("what", ["SSA", "MSSA"])
def test_packed_questions_are_asked_and_answered_as_one_by_one(what):
    model, processor = tiny(slice_attention={"kind": what})
    with torch.no_grad():
        for name, tensor in model.slice_attention.named_parameters():
            if name.endswith("out.weight"):
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    asked = [list(lesson.records) for lesson in lessons(3)]
    features = model.image_features(volumes(3))
    closed = [[record for record in group if record.form == "closed"] for group in asked]
    together = log_likelihoods(model, processor, closed, features)
    written = short_answers(model, processor, asked, features, most=6)
    for k, group in enumerate(asked):
        mine = features.rows([k])
        alone = [log_likelihoods(model, processor, [[record]], mine)[0][0] for record in closed[k]]
        for one, other in zip(together[k], alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # float32, other orders
        for record, text in zip(group, written[k], strict=True):
            batch = processor.of_records([record], None, answers=False)
            tokens = model.generate(batch["input_ids"], features=mine, max_new_tokens=6)
            assert processor.decode(tokens)[0] == text
