"""The paper audit: every item is complete, every switch leads somewhere, and every computed difference obeys a law."""

import inspect
import re
from pathlib import Path

import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger import audit
from ctvlm_lib.ledger.published import PAPERS

ITEMS = {item.id: item for item in audit.load()}
SWITCHES = sorted({switch for item in ITEMS.values() for switch in item.switches})
VERDICTS = re.compile(r"\b(errors?|wrong|sloppy|mistakes?|careless)\b", re.IGNORECASE)
LIBRARY = Path(audit.__file__).parents[1]


def test_each_paper_has_at_least_five_items_and_every_topic_some():
    assert len(ITEMS) == len(audit.load())
    for paper in PAPERS:
        assert sum(paper in item.papers for item in ITEMS.values()) >= 5, paper
    assert {item.topic for item in ITEMS.values()} == set(audit.TOPICS)


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_quotes_one_to_three_times_and_judges_nobody(name):
    item = ITEMS[name]
    assert 1 <= len(item.quotes) <= 3
    for quote in item.quotes:
        assert quote.words == " ".join(quote.words.split()) and quote.where
    for text in (item.what, item.code, item.here):
        assert not VERDICTS.search(text), text
    assert item.what.endswith(".") and item.here.endswith(".")


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_leads_to_something_in_the_library(switch):
    assert audit.resolve(switch) is not inspect.Parameter.empty


@pytest.mark.parametrize("switch", [switch for switch in SWITCHES if '="' in switch])
def test_every_text_that_a_switch_is_set_to_stands_in_its_package(switch):
    value, package = re.search(r'="(.+)"', switch)[1], LIBRARY / switch.split(".")[1]
    sources = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
    assert any(f'"{value}"' in source.read_text(encoding="utf-8") for source in sources)


@pytest.mark.parametrize(
    "switch",
    ["ctvlm_lib.prompt.contour(colour=1)", "ctvlm_lib.nowhere", "arm vlm-Z", "protocol cohort.cats", "two words", "("],
)
def test_a_switch_that_leads_nowhere_is_a_sentence(switch):
    with pytest.raises(BadInput, match="leads to nothing"):
        audit.resolve(switch)


def test_every_effect_is_computed_for_some_item_and_says_something():
    assert {item.difference for item in ITEMS.values()} - {""} == set(audit.EFFECTS)
    for name, found in audit.effects().items():
        assert found and all(isinstance(key, str) for key in found), name
        assert found == audit.effect(ITEMS[name]) == audit.effect(name)
    assert audit.effect("interior") == {}


def test_a_line_covers_more_of_a_ball_on_both_sides_of_its_edge_and_when_it_is_thicker():
    found = audit.effect("contour-thickness")
    assert found["1 px, inner"] < found["1 px, both"] < found["3 px, inner"] < found["3 px, both"]
    assert audit.effect("largest-part")["largest part"] == 0.5


def test_a_box_of_the_volume_is_nowhere_smaller_than_that_of_the_slice():
    found = audit.effect("box-per-slice")
    assert found["box of the slice"] < found["box of the volume"]
    assert found["box of the slice, highest slice"] < found["box of the volume, highest slice"]


def test_the_released_stem_reads_the_same_small_share_of_a_line_as_of_everything():
    found = audit.effect("stem-stride")
    assert found["all voxels"] == pytest.approx((3 / 4**2) - 2 / 4**3, abs=1e-3)  # two of three places 0 mod 4
    assert all(abs(share - found["all voxels"]) < 0.03 for share in found.values())
    grey = audit.effect("colour-channels")
    assert grey["blue"] < grey["red"] < grey["green"] and sum(grey.values()) == pytest.approx(1)


def test_the_answer_prefix_alone_gives_half_of_bleu():
    found = audit.effect("answer-prefix")
    assert found["BLEU-4, without prefix"] == 0 and found["BLEU-4, with prefix"] > 40
    assert found["BLEU-1, with prefix"] > found["BLEU-4, with prefix"]


def test_one_answer_has_as_many_scores_as_there_are_rules():
    found = audit.effect("bleu-order")
    assert found["BLEU-4"] < found["BLEU-1"] < found["BLEU-1 (sentence mean)"]
    assert audit.effect("letter-rule")["released rule counts"] == ["A", "B"]
    assert audit.effect("letter-rule")["read here as"] is None
    assert audit.effect("equal-texts") == {"equal texts count": 1.0, "only the diagonal counts": 0.5}
    averages = audit.effect("f1-average")
    assert averages["macro"] < averages["weighted by positives"] < averages["both classes of a label"]


def test_with_label_0_the_other_pairs_teach_nothing_and_the_printed_bias_begins_far_off():
    found = audit.effect("siglip-labels")
    assert found["labels 1, 0"] == 0 < found["labels +1, −1"]
    found = audit.effect("siglip-bias")
    assert found["t x·y − b"] - found["t x·y + b"] > abs(found["b"])


def test_a_temperature_behind_the_exponential_weakens_the_pull_by_itself():
    found = audit.effect("temperature-outside")
    assert found["τ inside, pull"] == pytest.approx(10 * found["τ outside, pull"])
    assert found["τ inside, loss"] != found["τ outside, loss"]


def test_slice_attention_as_printed_grows_with_the_cube_and_as_meant_with_the_states():
    found = audit.effect("slice-attention")
    assert found["as printed"] == pytest.approx(10**3, rel=1e-3)
    assert found["as meant"] == pytest.approx(10, rel=0.1)  # the softmax has almost chosen


def test_ba_has_no_product_in_the_printed_shapes_and_ab_has_that_of_w():
    found = audit.effect("lora-shapes")
    assert found["BA"] == "none" and found["AB"] == found["W"]


def test_a_projector_has_other_parameters_for_every_decoder():
    assert len(set(audit.effect("frozen-projector").values())) == 4
    found = audit.effect("decomposed-conv")
    assert found["as in paper"] < found["as released"]


def test_one_reading_of_what_learns_rounds_to_the_printed_share_and_it_is_the_smallest_decoders():
    found = audit.effect("share-trained")
    printed = float(re.search(r"[\d.]+(?= %)", ITEMS["share-trained"].quotes[0].words)[0])
    assert [name for name, share in found.items() if round(share, 1) == printed] == [
        "Qwen2.5-0.5B, LoRA + projector + norms"
    ]
    assert all(0 < share < 100 for share in found.values())


def test_the_largest_of_the_small_decoders_saves_least():
    found = audit.effect("decoder-memory")
    saved = [found[f"Qwen2.5-{size} saves"] for size in ("0.5B", "1.5B", "3B")]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 6.8
    assert found["Qwen2.5-7B"] > 13


def test_the_released_splice_loses_the_first_token_of_the_question():
    assert audit.effect("question-start") == {"placeholders, lost tokens": [], "as released, lost tokens": [1]}


def test_the_parts_of_the_split_are_fewer_than_the_whole():
    found = audit.effect("split-sizes")
    assert found["volumes, parts"] == 14440 + 2032 + 4084 < found["volumes, whole"] == 25692
    assert found["questions, parts"] == 1_072_000 < found["questions, whole"] == 1_300_000


def test_printed_gains_shrink_with_the_decoder_and_3b_loses_on_reports():
    found = audit.effect("prompt-gains")
    for part in ("open", "closed", "report"):
        gains = [found[f"{part}, {size}"] for size in ("0.5B", "1.5B", "3B")]
        assert gains == sorted(gains, reverse=True)
        assert found[f"{part}, mean of sizes"] == pytest.approx(sum(gains) / 3, abs=0.01)
    assert found["report, 3B"] < 0 and 2 < found["open, mean of sizes"] < 5


def test_other_arithmetic_on_the_printed_tables():
    found = audit.effect("same-numbers")
    assert found["printed in both"] == found["numbers without a prompt"] == 21
    assert audit.effect("against-7b")["1.5B above 7B, columns of 8"] == 0
    assert list(audit.effect("negative-gain"))[-1] == "PMC-VQA, METEOR"  # the smallest gain stands last
    found = audit.effect("closed-accuracy")
    assert found["mean of five kinds"] == pytest.approx(found["table, mean"], abs=0.006) != found["abstract"]
    found = audit.effect("unimiss-gains")
    assert (found["MedVista3D-ViT, AUC"], found["MedVista3D-ViT, F1 (weighted)"]) == (7.4, 6.9)
    assert found["MedVista3D-UniMISS, AUC"] > 7.4
    found = audit.effect("segmentation-baseline")
    assert found["nnU-Net Seg(C+L)"] < found["nnU-Net Seg(F+L)"] < found["U-VLM Seg(C+L)"]
    found = audit.effect("decoder-comparison")
    assert found["4B, Seg(F+L)"] < found["4B, Seg(C+L)"] < found["0.1B"]
    assert len(set(audit.effect("ct-chat-bleu").values())) == 2


def test_the_table_shows_a_paper_or_a_topic_alone():
    whole, of_uvlm = audit.table(), audit.table("uvlm")
    assert len(whole) == len(ITEMS) and 5 <= len(of_uvlm) < len(whole)
    assert of_uvlm["papers"].str.contains("uvlm").all()
    assert set(audit.table(topic="metrics")["topic"]) == {"metrics"}
    for asked in ({"paper": "uvlms"}, {"topic": "colour"}):
        with pytest.raises(BadInput, match="choose one of"):
            audit.table(**asked)
    with pytest.raises(BadInput, match="choose one of"):
        audit.item("contour-color")


GOOD = 'id = "x"\npapers = ["contour"]\ntopic = "data"\nwhat = "w"\nhere = "h"\nquotes = [["contour", "§1", "words"]]\n'


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('["contour"]\n', '["contuor"]\n', "paper of 'x' is 'contuor'"),
        ('"data"', '"dates"', "topic of 'x' is 'dates'"),
        ('[["contour", "§1", "words"]]', "[]", "no quote"),
        ('"words"', '" "', "an empty one"),
        ('[["contour", "§1"', '[["dualbox", "§1"', "paper quoted by 'x' is 'dualbox'"),
        ('here = "h"', 'here = ""', "was chosen here"),
        ('here = "h"', 'here = "h"\ndifference = "magic"', "difference of 'x' is 'magic'"),
        ('here = "h"', 'here = "h"\nverdict = "bad"', "its fields are"),
        ("quotes = [[", "quotes = [", "restore it"),
        (GOOD, f"{GOOD}[[item]]\n{GOOD}", "twice"),
    ],
)
def test_an_item_that_can_not_be_used_is_a_sentence(tmp_path, old, new, told):
    path = tmp_path / "audit.toml"
    path.write_text("[[item]]\n" + GOOD, encoding="utf-8")
    assert len(audit.load(path)) == 1
    changed = tmp_path / "changed.toml"
    changed.write_text("[[item]]\n" + GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(told)):
        audit.load(changed)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="restore it"):
        audit.load(tmp_path / "none.toml")
