"""What is counted on shapes is what a count by hand gives, and the papers' claims stand beside it."""

import json

import pytest
import torch
from helpers_vlm import decoder_config
from torch import nn

from ctvlm_lib.cost import exact, passes
from ctvlm_lib.cost.counting import by_hand
from ctvlm_lib.cost.layouts import in_released_layout
from ctvlm_lib.cost.measure import operations
from ctvlm_lib.encoder.config import RELEASED_VARIANTS
from ctvlm_lib.encoder.model import dcformer
from ctvlm_lib.ledger import claims as ledger_claims
from ctvlm_lib.vlm import lora_counts, memory
from ctvlm_lib.vlm.projector import PROJECTORS, QWEN_WIDTHS, parameters

SIZE = exact.MED3DVLM


@pytest.fixture(scope="module")
def decoders():
    return exact.decoders().set_index("decoder")


@pytest.fixture(scope="module")
def encoders():
    return exact.encoders().set_index("encoder")


def test_the_counter_agrees_with_counts_by_hand_but_for_what_is_done_once_a_number():
    table = by_hand().set_index("layer")
    assert list(table.index[~table["agrees"]]) == ["batch norm"]
    assert table.loc["batch norm", "counted"] == 0 and (table["by hand"] > 0).all()
    assert table.loc["conv3d, 2 groups", "by hand"] > table.loc["conv3d along one axis, depthwise", "by hand"]


def test_every_weight_of_a_released_dcformer_is_used_once_at_each_place_of_its_stage():
    with torch.device("meta"):
        encoder, volume = in_released_layout(dcformer("small")), torch.empty(1, 1, *SIZE)
    wanted = 0
    for stage, grid in zip(encoder.encoder.children(), encoder.grids(SIZE), strict=True):
        for layer in stage.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                wanted += 2 * torch.Size(grid).numel() * layer.weight.numel()
    with torch.no_grad():
        assert operations(lambda: encoder(volume)) == wanted


def test_the_released_layout_gives_the_tokens_that_ours_gives():
    encoder = dcformer("phantom", seed=0).eval()
    volume = torch.rand(2, 1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, released = encoder(volume), in_released_layout(encoder)(volume)
    for one, other in zip(ours, released, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # sums in another order


def test_every_encoder_has_a_row_and_only_a_dcformer_runs_otherwise_than_as_released(encoders):
    assert {f"DCFormer-{name}" for name in RELEASED_VARIANTS} < {*encoders.index}
    assert {*encoders["whose"]} == {"Med3DVLM", "M3D", "MedVista3D", "U-VLM", "ours"}
    otherwise = encoders["as run here, G"] - encoders["forward, G"]
    dcformers = encoders.index.str.startswith("DCFormer")
    assert (otherwise[~dcformers] == 0).all() and (otherwise[dcformers] > 0).all()
    assert len(exact.encoders(ours=False)) == (encoders["whose"] != "ours").sum()


def test_regions_add_operations_and_no_weights_to_medvista3d(encoders):
    whole, local = (encoders.loc[name] for name in encoders.index if name.startswith("MedVista3D,"))
    assert local["forward, G"] > whole["forward, G"] and local["parameters, M"] == whole["parameters, M"]
    assert whole["tokens"] == "4,800 + 600"


def test_ratios_are_to_dcformer_small_and_weights_take_two_bytes(encoders):
    small = encoders.loc["DCFormer-small"]
    assert small["forward, ratio"] == small["parameters, ratio"] == 1 and small["tokens"] == "256 + 32"
    assert ((encoders["weights, MB"] - 2 * encoders["parameters, M"]).abs() <= 0.06).all()  # of one decimal


def test_every_projector_is_counted_for_every_decoder():
    table = exact.projectors().set_index(["projector", "decoder"])
    for decoder, width in QWEN_WIDTHS.items():
        for name in PROJECTORS:
            assert table.loc[(name, decoder), "parameters, M"] == round(parameters(name, width) / 1e6, 3)
        assert table.loc[("mixer", decoder), "image vectors"] == exact.IMAGE_TOKENS
        assert table.loc[("linear", decoder), "forward, G"] == round(2 * 32 * 768 * width / 1e9, 3)
        assert table.loc[("mixer", decoder), "forward, ratio"] == 1
    assert {"mlp on averages", "merged"} < {*table.index.get_level_values(0)}  # our own


@pytest.mark.parametrize("count", [passes.question, passes.token, lambda c, tokens: passes.step(c, tokens, 4)])
def test_two_layers_tell_what_many_take(count):
    config = decoder_config(num_hidden_layers=5)
    assert passes.by_layers(config, lambda few: count(few, 9)) == count(config, 9)


def test_a_question_takes_its_matrices_and_its_attention():
    config, tokens = lora_counts.qwen_config("Qwen2.5-0.5B"), 10
    decoder = lora_counts.qwen_on_meta("Qwen2.5-0.5B").model
    matrices = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear))
    attention = 2 * tokens * tokens * config.hidden_size * config.num_hidden_layers  # two products
    wanted = 2 * (tokens * matrices + attention + config.hidden_size * config.vocab_size)  # one row of logits
    angles = config.hidden_size // config.num_attention_heads // 2 * tokens  # of rotary positions: an outer product
    assert passes.by_layers(config, lambda few: passes.question(few, tokens)) - wanted in (0, 2 * angles)


def test_decoders_weigh_two_bytes_a_parameter_and_keep_their_cache(decoders):
    for name in QWEN_WIDTHS:
        parts = lora_counts.part_sizes(name)
        assert decoders.loc[name, "parameters, M"] == pytest.approx(parts["decoder"] / 1e6, abs=1e-4)
        assert decoders.loc[name, "weights, GB"] == pytest.approx(2 * parts["decoder"] / 1e9, abs=1e-4)
        kept = memory.cache_bytes(lora_counts.qwen_config(name), exact.IMAGE_TOKENS + exact.WORDS)
        assert decoders.loc[name, "cache, MB"] == pytest.approx(kept / 1e6, abs=1e-4)
        whole = decoders.loc[name, "model, GB"] + kept / 1e9
        assert decoders.loc[name, "to answer, GB"] == pytest.approx(whole, abs=2e-4)


def test_a_share_with_norms_is_larger_and_both_are_the_lora_tables(decoders):
    table = lora_counts.lora_table().set_index(["decoder", "what learns"])
    for name in QWEN_WIDTHS:
        for column, reading in exact._READINGS.items():
            assert decoders.loc[name, f"{column}, %"] == table.loc[(name, reading), "share, %"]
            assert decoders.loc[name, f"{column}, M"] == table.loc[(name, reading), "trainable, M"]
        assert decoders.loc[name, "LoRA + norms, M"] > decoders.loc[name, "LoRA, M"]


def test_ratios_are_to_7b_and_grow_with_size(decoders):
    ratios = decoders.loc[list(QWEN_WIDTHS), [c for c in decoders.columns if c.endswith("ratio to 7B")]]
    assert (ratios.loc["Qwen2.5-7B"] == 1).all() and (ratios.diff().iloc[1:] > 0).all().all()
    assert ratios.loc["Qwen2.5-1.5B", "cache, ratio to 7B"] == 0.5  # 2 against 4 pairs of keys and values, 28 layers


def test_a_lora_step_takes_more_than_its_two_passes_and_less_than_three(decoders):
    """Backwards through frozen matrices only the inputs' gradients are needed; the logits of all places come on top."""
    for name in QWEN_WIDTHS:
        config = lora_counts.qwen_config(name)
        logits = 2 * (exact.IMAGE_TOKENS + exact.WORDS - 1) * config.hidden_size * config.vocab_size / 1e12
        forward = decoders.loc[name, "question, T"] + logits
        assert 1.9 < decoders.loc[name, "LoRA step, T"] / forward < 2.2  # below the first adapter nothing goes back


def test_uvlms_decoder_has_no_mixer_and_no_lora(decoders):
    row = decoders.loc["U-VLM decoder"]
    assert row[["model, M", "LoRA, %", "LoRA step, T", "to answer, GB"]].isna().all()
    assert row["parameters, M"] / 1e3 == pytest.approx(ledger_claims.said("uvlm", "decoder size"), abs=0.05)


def test_more_words_take_a_larger_cache_and_more_operations(decoders):
    before, name = decoders.loc["Qwen2.5-0.5B"], "Qwen2.5-0.5B"
    more = exact._decoder_row(name, exact.IMAGE_TOKENS, 2 * exact.WORDS, 16)
    assert all(more[column] > before[column] for column in ("cache, MB", "question, T", "token, G", "LoRA step, T"))
    assert more["parameters, M"] == pytest.approx(before["parameters, M"], abs=1e-4)


def test_claims_about_cost_are_the_ledgers_own_rows(tmp_path, decoders):
    table = exact.claims(tmp_path / "none.json")
    whole = ledger_claims.table(record=tmp_path / "none.json", chosen=exact.is_about_cost)
    assert len(table) == len(whole) and list(table.columns) == list(whole.columns)
    said = {(row.paper, row.value, row.unit) for row in table.itertuples()}
    for paper, quantity, unit in (
        ("contour", "7B decoder memory in half precision (more than)", "GB"),
        ("contour", "VRAM saved vs 7B (up to)", "GB"), ("contour", "GPU said to be enough", "GB"),
        ("contour", "trainable share in the smallest configuration", "%"), ("uvlm", "decoder size", "B parameters"),
    ):  # fmt: skip
        assert (paper, f"{ledger_claims.said(paper, quantity):g}", unit) in said
    larger = table[table["claim"] == "7B decoder memory in half precision (more than)"].iloc[0]
    assert larger["ours"] == pytest.approx(decoders.loc["Qwen2.5-7B", "weights, GB"], abs=1e-4)
    assert larger["status"] == ledger_claims.AGREES


def test_a_claim_about_a_gpu_waits_for_a_record_and_is_judged_by_it(tmp_path):
    path, name = tmp_path / "record.json", "peak training memory, 1.5B"
    rows = exact.claims(path)
    waiting = rows[(rows["claim"] == name) & (rows["kind"] == "measured")]
    assert list(waiting["status"]) == [ledger_claims.WAITS]
    path.write_text(json.dumps({"measured": {name: {"value": 99, "unit": "GB", "hardware": "a large GPU"}}}))
    rows = exact.claims(path)
    judged = rows[(rows["claim"] == name) & (rows["kind"] == "measured")].iloc[0]
    assert judged["status"] == ledger_claims.DISAGREES and "a large GPU" in judged["how"]
