"""The claims of the papers' prose: each can be looked into, and what is computed agrees or says why not."""

import csv
import json
from dataclasses import replace

import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import claims, contrasts, decoder_sizes, published
from ctvlm_lib.ledger.claims import Claim, check, load

CLAIM = Claim("contour", "1", "gain", "2", "points", "…", "exact", "contour gain, open, mean", "0.5", "")
LATENCY = replace(CLAIM, kind="measured", computed="measured:latency", unit="s", tolerance="<")
BY_NAME = {claim.name: claim for claim in load() if claim.kind in ("exact", "measured")}


def written(path, *rows: dict) -> str:
    """A file of claims, for the ways in which it can be wrong."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Claim.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def ours(name: str) -> float:
    return check(BY_NAME[name]).ours


def test_each_paper_has_claims_and_each_kind_is_there():
    assert {claim.paper for claim in load()} == {*published.PAPERS}
    assert {claim.kind for claim in load()} == {*claims.KINDS}


def test_what_is_computed_agrees_or_the_note_says_why_not():
    for claim in load():
        if claim.kind == "exact":
            found = check(claim)
            assert found.agrees or claim.note, f"{claim.quantity} {claim.value}: ours is {found.ours}, and no note"
            assert found.how and found.status == (claims.AGREES if found.agrees else claims.DISAGREES)


def test_no_function_is_without_a_claim():
    from ctvlm_lib.ledger.claims_exact import COMPUTED

    assert {*COMPUTED} == {name for name in BY_NAME if name in COMPUTED}


def test_each_contrast_beside_a_claim_exists():
    beside = {claim.name for claim in load() if claim.kind == "analogue"}
    assert beside <= {contrast.name for contrast in contrasts.load()}
    assert all(check(claim).agrees is None for claim in load() if claim.kind == "analogue")


def test_one_reading_of_the_trainable_share_rounds_to_the_claim():
    agreeing = [c.name for c in load() if "share learning" in c.name and check(c).agrees]
    assert agreeing == ["share learning, 0.5B: LoRA + projector + norms"]


def test_a_count_on_shapes_is_the_decoder_of_qwens_report():
    assert ours("decoder 7B") == pytest.approx(7.61, abs=0.01)  # Qwen2.5 report, table 1: 7.61 B, 6.53 B without
    assert ours("7B decoder without embeddings") == pytest.approx(6.53, abs=0.01)
    assert ours("Llama-3.1 decoder") == pytest.approx(8.03, abs=0.005)  # as its model card says


def test_a_quarter_of_uvlms_decoder_is_no_embedding_and_the_table_counts_the_same_decoder():
    assert 4 * ours("U-VLM decoder without embeddings") == pytest.approx(ours("U-VLM decoder"), rel=0.05)
    assert ours("U-VLM decoder") == decoder_sizes.parameters(decoder_sizes.UVLM) / 1e9


def test_splits_are_the_sums_of_what_the_papers_print():
    assert ours("sum of RadGenome volumes") == 14440 + 2032 + 4084 == 20556
    assert ours("sum of PMC-VQA questions") == 72240 + 9030 + 9030 == 90300
    assert ours("sum of CT-RATE volumes") == claims.said("contour", "RadGenome-ChestCT volumes")


def test_the_gains_are_the_contrasts_published_differences():
    by_name = {contrast.name: contrast for contrast in contrasts.load()}
    gains = [by_name[f"contour-T1-{size}-closed"].paper_difference for size in ("small", "middle", "large")]
    assert (ours("contour gain, closed, smallest"), ours("contour gain, closed, largest")) == (min(gains), max(gains))
    assert ours("two boxes, 1.5B over 3B without") == pytest.approx(
        by_name["small-with-two-boxes-beats-large-without"].paper_difference
    )


@pytest.mark.parametrize(
    ("tolerance", "number", "allowed"),
    [("0.5", 2.5, True), ("0.5", 1.4, False), ("0", 2, True), (">", 2, False), (">=", 2, True), ("<", 1.9, True),
     ("<= 1", 1.5, False), ("> 0", 0.1, True), ("> 0", 0, False)],
)  # fmt: skip
def test_a_tolerance_is_a_distance_or_a_side(tolerance, number, allowed):
    assert replace(CLAIM, tolerance=tolerance).allows(number) is allowed


def test_what_a_machine_has_to_show_waits_until_it_is_measured(tmp_path):
    path = tmp_path / "record.json"
    waiting = check(LATENCY, path)
    assert (waiting.ours, waiting.agrees, waiting.status) == (None, None, claims.WAITS)
    path.write_text(json.dumps({"measured": {"latency": {"value": 1.5, "unit": "s", "hardware": "a GPU"}}}))
    found = check(LATENCY, path)
    assert (found.ours, found.unit, found.agrees) == (1.5, "s", True) and "a GPU" in found.how
    with pytest.raises(BadInput, match="record it in these"):
        check(replace(LATENCY, unit="ms"), path)


def test_a_measurement_goes_before_what_a_cpu_can_do(tmp_path):
    path, drawing = tmp_path / "record.json", BY_NAME["seconds to draw a contour"]
    assert check(drawing, path).ours > 0
    path.write_text(json.dumps({"measured": {drawing.name: {"value": 9, "unit": "s", "hardware": "a slow one"}}}))
    assert check(drawing, path).agrees is False


@pytest.mark.parametrize("text", ["{", "[]", '{"measured": {"latency": 3}}', '{"measured": {"latency": {"value": 3}}}'])
def test_a_damaged_record_is_a_sentence(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(BadInput, match="or remove it"):
        check(LATENCY, path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"kind": "guess"}, "kinds exact"), ({"paper": "another"}, "papers are contour"), ({"tolerance": "±1"}, "'> 0'"),
     ({"value": "many"}, "of a word"), ({"computed": ""}, "give a name"),
     ({"kind": "analogue"}, "contrast:"), ({"kind": "analogue", "computed": "contrast:none"}, "add it there"),
     ({"kind": "data"}, "or nothing"), ({"kind": "not computable", "computed": ""}, "say why")],
)  # fmt: skip
def test_a_wrong_row_is_a_sentence(tmp_path, wrong, told):
    with pytest.raises(BadInput, match=told):
        load(written(tmp_path / "claims.csv", vars(CLAIM) | wrong))


def test_a_row_that_stands_twice_and_a_damaged_file_are_sentences(tmp_path):
    with pytest.raises(BadInput, match="twice"):
        load(written(tmp_path / "twice.csv", vars(CLAIM), vars(CLAIM)))
    (tmp_path / "damaged.csv").write_text("paper,value\ncontour,2\n")
    with pytest.raises(BadInput, match="other columns"):
        load(tmp_path / "damaged.csv")
    with pytest.raises(BadInput, match="restore it"):
        load(tmp_path / "none.csv")


def test_an_unknown_name_is_answered_with_those_that_are_like_it():
    with pytest.raises(BadInput, match="contour gain, open, mean"):
        check(replace(CLAIM, computed="contour gain, open, means"))
    with pytest.raises(BadInput, match="0 values"):
        claims.said("contour", "volumes on the moon")


def test_the_table_has_a_row_for_each_claim_of_a_paper():
    frame = claims.table("dualbox")
    assert len(frame) == sum(claim.paper == "dualbox" for claim in load())
    with pytest.raises(BadInput, match="contour, dualbox"):
        claims.table("another")
