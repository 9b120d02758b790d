"""Projectors: the released names, shapes and counts; equal to plain loops; rivals under one interface."""

import math

import pytest
import torch

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.projector import PROJECTORS, QWEN_WIDTHS, check_width, mixer, mixer_1x, parameters, projector_table

# measured on the released code (Med3DVLM cbbd633), million parameters
RELEASED_COUNTS_M = {3584: 47.22, 2048: 16.04, 1536: 9.32, 896: 3.50}


def released_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released projector, from the widths that its checkpoint shows."""
    steps = {
        "low_mixer.0": ((256, 384), (192, width // 2)),
        "low_mixer.1": ((192, width // 2), (128, width)),
        "high_mixer.0": ((32, 768), (64, width // 2)),
        "high_mixer.1": ((64, width // 2), (128, width)),
    }
    shapes = {}
    for layer, ((tokens, channels), (tokens_out, channels_out)) in steps.items():
        for norm in ("ln1", "ln2"):
            shapes |= {f"{layer}.{norm}.weight": (channels,), f"{layer}.{norm}.bias": (channels,)}
        for step, inside, outside in (("mlp1", tokens, tokens_out), ("mlp2", channels, channels_out)):
            for linear, shape in (("0", (outside, inside)), ("1.1", (outside, outside))):
                name = f"{layer}.{step}.mm_projector.{linear}"
                shapes |= {f"{name}.weight": shape, f"{name}.bias": (outside,)}
    return shapes


def on_meta(name: str, **options):
    with torch.device("meta"):
        return PROJECTORS[name](**options)


def streams(low=(256, 384), high=(32, 768), batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, *low, generator=draw), torch.randn(batch, *high, generator=draw)


def seeded(build, *args, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build(*args, **options)


@pytest.mark.parametrize("width", RELEASED_COUNTS_M)
def test_mixer_has_the_released_names_and_shapes(width):
    state = on_meta("mixer", hidden_size=width).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == released_shapes(width)


def test_the_names_that_were_read_off_the_release_are_there():
    state = on_meta("mixer", hidden_size=3584).state_dict()
    read = {
        "low_mixer.0.ln1.weight": (384,), "low_mixer.0.ln2.weight": (384,),
        "low_mixer.0.mlp1.mm_projector.0.weight": (192, 256), "low_mixer.0.mlp1.mm_projector.1.1.weight": (192, 192),
        "low_mixer.0.mlp2.mm_projector.0.weight": (1792, 384), "low_mixer.0.mlp2.mm_projector.1.1.weight": (1792, 1792),
        "low_mixer.1.ln1.weight": (1792,), "low_mixer.1.mlp1.mm_projector.0.weight": (128, 192),
        "low_mixer.1.mlp1.mm_projector.1.1.weight": (128, 128), "low_mixer.1.mlp2.mm_projector.0.weight": (3584, 1792),
        "low_mixer.1.mlp2.mm_projector.1.1.weight": (3584, 3584), "high_mixer.0.mlp1.mm_projector.0.weight": (64, 32),
        "high_mixer.0.mlp2.mm_projector.0.weight": (1792, 768), "high_mixer.1.mlp1.mm_projector.0.weight": (128, 64),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in read} == read


@pytest.mark.parametrize(("width", "published"), RELEASED_COUNTS_M.items())
def test_mixer_has_as_many_parameters_as_the_released_one(width, published):
    assert round(parameters("mixer", width) / 1e6, 2) == published


@torch.no_grad()
def plain_mixer(state: dict, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """One volume, a token and a channel at a time: equations (6) and (7) with weights from the right."""

    def dense(name, row):
        for linear in ("0", "1.1"):
            weight, bias = state[f"{name}.mm_projector.{linear}.weight"], state[f"{name}.mm_projector.{linear}.bias"]
            if linear == "1.1":
                row = torch.tensor([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row.tolist()])
            row = torch.stack([weight[k] @ row + bias[k] for k in range(len(bias))])
        return row

    def norm(name, rows):
        out = []
        for row in rows:
            centred = row - row.mean()
            out.append(
                centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
            )
        return torch.stack(out)

    ends = []
    for stream, x in (("low_mixer", low), ("high_mixer", high)):
        for layer in (0, 1):
            name = f"{stream}.{layer}"
            columns = norm(f"{name}.ln1", x).T
            x = torch.stack([dense(f"{name}.mlp1", column) for column in columns]).T
            x = torch.stack([dense(f"{name}.mlp2", row) for row in norm(f"{name}.ln2", x)])
        ends.append(x)
    return torch.cat(ends)


def test_mixer_equals_a_plain_loop():
    low, high = streams((8, 6), (4, 10), batch=1)
    built = seeded(mixer, (8, 6), (4, 10), hidden_size=8)
    expected = plain_mixer(built.state_dict(), low[0], high[0])
    torch.testing.assert_close(built(low, high)[0], expected, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize(
    ("low", "high", "tokens"),
    [((256, 384), (32, 768), 256), ((512, 64), (32, 128), 384), ((2048, 768), (256, 768), 2048), ((7, 5), (3, 9), 15)],
)
def test_tokens_keep_the_released_proportions(low, high, tokens):
    built = on_meta("mixer", low=low, high=high, hidden_size=32)
    given = built(torch.empty(1, *low, device="meta"), torch.empty(1, *high, device="meta"))
    assert built.tokens == tokens
    assert given.shape == (1, tokens, 32)


def test_a_schedule_of_ones_own_is_kept():
    built = mixer((512, 64), (32, 128), hidden_size=32, low_tokens=(192, 128), high_tokens=(64, 128))
    assert built.tokens == built(*streams((512, 64), (32, 128))).shape[1] == 256


@pytest.mark.parametrize("name", PROJECTORS)
def test_every_projector_gives_its_tokens_and_width(name):
    built = seeded(PROJECTORS[name], hidden_size=16)
    given = built(*streams())
    assert given.shape == (2, built.tokens, 16)
    assert given.isfinite().all()


@pytest.mark.parametrize("name", PROJECTORS)
def test_volumes_of_a_batch_dont_mix(name):
    built, (low, high) = seeded(PROJECTORS[name], hidden_size=16), streams()
    together, alone = built(low, high), built(low[1:], high[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)  # other order of float32 sums


def reads_low(name: str) -> bool:
    built, (low, high) = seeded(PROJECTORS[name], hidden_size=16), streams()
    return not torch.equal(built(low, high), built(low + 1 + low.flip(1), high))


@pytest.mark.parametrize("name", PROJECTORS)
def test_only_hybrid_projectors_read_the_low_stream(name):
    assert reads_low(name) == (name not in ("mlp", "linear"))


def test_only_mixers_let_tokens_see_one_another():
    low, high = streams(batch=1)
    changed = high.clone()
    changed[0, 5] += torch.randn(768, generator=torch.Generator().manual_seed(2))
    for name in PROJECTORS:
        built = seeded(PROJECTORS[name], hidden_size=16)
        moved = (built(low, high) != built(low, changed)).any(dim=-1).sum()
        assert moved == (128 if name.startswith("mixer") else 1), name


def test_low_tokens_come_first():
    low, high = streams()
    built = seeded(mixer, hidden_size=16)
    moved = (built(low, high) != built(low, high.flip(1))).any(dim=-1)[0]
    assert not moved[:128].any() and moved[128:].all()


def test_as_released_no_step_adds_its_input():
    assert on_meta("mixer", hidden_size=32).skips() == []


def test_with_residual_the_second_layers_skip_both_steps():
    built = on_meta("mixer", hidden_size=32, residual=True)
    both = [f"{stream}_mixer.1 {step}" for stream in ("high", "low") for step in ("channels", "tokens")]
    assert built.skips() == both
    assert built.tokens == 256


@torch.no_grad()
def test_a_skipping_layer_whose_matrices_are_zero_does_nothing():
    built = seeded(mixer, (8, 6), (4, 10), hidden_size=8, residual=True)
    layer = built.low_mixer[1]
    for step in (layer.mlp1, layer.mlp2):
        torch.nn.init.zeros_(step.mm_projector[1][1].weight)
        torch.nn.init.zeros_(step.mm_projector[1][1].bias)
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), x)


def test_residual_that_could_skip_nothing_is_refused():
    with pytest.raises(BadInput, match="take two layers"):
        mixer_1x(hidden_size=32, residual=True)


def test_the_table_counts_every_projector_for_every_decoder():
    table = projector_table().set_index("projector")
    assert table.loc["mixer", "Qwen2.5-7B, M"] == RELEASED_COUNTS_M[QWEN_WIDTHS["Qwen2.5-7B"]]
    assert dict(table["image vectors"]) == {
        "mixer": 256, "mixer_1x": 256, "low_high_mlp": 288, "mlp": 32, "linear": 32, "mixer, with skips": 256,
    }  # fmt: skip
    width = 896
    assert parameters("mlp", width) == 768 * width + width + width * width + width
    assert parameters("low_high_mlp", width) == (384 + 768 + 2 + width + 1) * width


def test_the_7b_projector_fits_no_smaller_decoder():
    frozen = on_meta("mixer", hidden_size=QWEN_WIDTHS["Qwen2.5-7B"])
    check_width(frozen, 3584)
    for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B"):
        with pytest.raises(BadInput, match=f"hidden_size={QWEN_WIDTHS[name]} and train it"):
            check_width(frozen, QWEN_WIDTHS[name])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden_size": 30}, "multiple of 4"),
        ({"hidden_size": 0}, "multiple of 4"),
        ({"hidden_size": 32, "low": (256,)}, r"\(tokens, channels\)"),
        ({"hidden_size": 32, "high": (0, 768)}, r"\(tokens, channels\)"),
        ({"hidden_size": 32, "layers": 3}, "choose 2"),
        ({"hidden_size": 32, "low_tokens": (128,)}, "each of the 2 layers"),
    ],
)
def test_sizes_that_dont_fit_are_refused(options, says):
    with pytest.raises(BadInput, match=says):
        mixer(**options)


@pytest.mark.parametrize(
    ("low", "high"),
    [((256, 64), (32, 768)), ((200, 384), (32, 768)), ((256, 384), (32, 128))],
)
def test_streams_of_another_encoder_are_refused(low, high):
    with pytest.raises(BadInput, match="build one with"):
        on_meta("mixer", hidden_size=32)(*streams(low, high))


def test_streams_of_different_batches_are_refused():
    low, high = streams()
    with pytest.raises(BadInput, match="both of each volume"):
        on_meta("mlp", hidden_size=32)(low, high[:1])


def test_gradients_reach_every_matrix():
    built = seeded(mixer, (8, 6), (4, 10), hidden_size=8)
    built(*streams((8, 6), (4, 10))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())
