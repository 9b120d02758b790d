"""Tables and contrasts of the vision–language models follow from stored answers as a plain count gives them."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers_finetune import small_cohort

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate import text_scores
from ctvlm_lib.experiments import answers
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.experiments.reliance import truth_at
from ctvlm_lib.experiments.vlm_contrasts import judged, measure
from ctvlm_lib.experiments.vlm_tables import by_kind, load, of_table, paper_table
from ctvlm_lib.ledger import contrasts
from ctvlm_lib.records import protocol

SPLIT = "validation"
TABLES = protocol.load().content["tables"]


def asked() -> Asked:
    cohort = small_cohort()
    return Asked.of(cohort.records[SPLIT], cohort.scans[SPLIT])


def arm(label: str, share: float, seed: int = 0):
    """Answers of which about a share is right: the truth, else another answer to a question of the same kind."""
    records, rng = small_cohort().records[SPLIT], np.random.default_rng([seed, len(label)])
    said = []
    for record in records:
        wrong = [c for c in (record.choices or ("Yes", "No")) if c != record.answer]
        other = wrong[0] if record.form == "closed" else "nothing at all"
        said.append(record.answer if rng.random() < share else other)
    condition = label.split("-")[2]
    return of_table(label, answers.answer_table(records, said, condition=condition, seed=seed), seed)


def test_a_paper_table_counts_what_the_protocol_pools():
    mine = arm("vlm-B-contour-small", 0.6)
    [row] = paper_table([mine], "contour-T1").to_dict("records")
    rows = mine.table[(mine.table["form"] == "closed") & (mine.table["stratum"] == "named")]
    rows = rows[rows["kind"].isin(TABLES["contour-T1"]["closed"])]
    assert row["closed accuracy"] == pytest.approx(100 * np.mean([a in (t,) or a.endswith(f". {t}") for a, t in zip(
        rows["answer"], rows["truth"], strict=True)]))  # fmt: skip
    assert row["low"] <= row["closed accuracy"] <= row["high"]
    texts = mine.table[(mine.table["form"] == "open") & (mine.table["stratum"] == "named")]
    texts = texts[texts["kind"].isin(TABLES["contour-T1"]["open"])]
    expected = text_scores(texts["answer"].tolist(), texts["truth"].tolist(), metrics=["BLEU-4", "ROUGE-L"])
    assert row["open BLEU-4"] == pytest.approx(expected["BLEU-4"])
    assert row["open ROUGE-L"] == pytest.approx(expected["ROUGE-L"])


def test_strata_are_tables_of_their_own():
    mine = arm("vlm-B-contour-small", 0.6)
    named, unnamed = (paper_table([mine], "dualbox-T1", stratum) for stratum in ("named", "unnamed"))
    assert named["closed accuracy"].item() != unnamed["closed accuracy"].item()
    assert "organ" not in by_kind([mine])  # asked only of regions that the words don't name
    assert "organ" in by_kind([mine], stratum="unnamed")


def test_a_contrast_over_all_decoders_averages_each_question():
    contrast = next(c for c in contrasts.load() if c.name == "contour-helps")
    arms = [arm(f"vlm-B-{condition}-{size}", share)
            for condition, share in (("none", 0.5), ("contour", 0.8)) for size in ("small", "large")]  # fmt: skip
    [found] = measure(contrast, arms, asked()).values()
    rows = [a.rows("closed", TABLES["contour-T1"]["closed"], "named").set_index("id")["correct"] for a in arms]
    assert found.value == pytest.approx(float(((rows[2] + rows[3]) / 2 - (rows[0] + rows[1]) / 2).mean()))
    assert found.low < found.value < found.high


def test_a_size_that_one_side_lacks_is_left_out():
    contrast = next(c for c in contrasts.load() if c.name == "contour-helps")
    arms = [arm("vlm-B-none-small", 0.5), arm("vlm-B-contour-small", 0.8), arm("vlm-B-contour-large", 0.0)]
    [found] = measure(contrast, arms, asked()).values()
    [alone] = measure(contrast, arms[:2], asked()).values()
    assert found.value == alone.value
    assert measure(contrast, arms[1:], asked()) == {}


def test_a_decoder_that_the_protocol_does_not_name_moves_no_contrast():
    contrast = next(c for c in contrasts.load() if c.name == "contour-helps")
    arms = [arm("vlm-B-none-small", 0.5), arm("vlm-B-contour-small", 0.8)]
    more = [arm("vlm-B-none-smollm2", 0.9), arm("vlm-B-contour-smollm2", 0.1)]
    [found], [alone] = (measure(contrast, those, asked()).values() for those in (arms + more, arms))
    assert found.value == alone.value
    assert measure(contrast, more, asked()) == {}


def test_corpus_scores_are_compared_as_corpus_scores():
    contrast = next(c for c in contrasts.load() if c.name == "contour-T1-small-open-BLEU-4")
    arms = [arm("vlm-B-none-small", 0.5), arm("vlm-B-contour-small", 0.8)]
    [found] = measure(contrast, arms, asked()).values()
    rows = [a.rows("open", TABLES["contour-T1"]["open"], "named") for a in arms]
    bleu = [text_scores(r["answer"].tolist(), r["truth"].tolist(), metrics=["BLEU-4"])["BLEU-4"] for r in rows]
    assert found.value == pytest.approx((bleu[1] - bleu[0]) / 100)


def test_an_answer_with_its_letter_follows_a_moved_prompt():
    contrast = next(c for c in contrasts.load() if c.name == "contour-followed-when-moved")
    of, own, there = asked(), [], []
    for record in small_cohort().records[SPLIT]:
        if record.form == "closed" and record.kind in ("presence", "abnormality", "organ"):
            other = "heart" if record.region != "heart" else "liver"
            truth = truth_at(record, other, of.found[of.names.index(record.patient)])
            if truth not in (None, record.answer):
                own.append(record)
                letter = f"{'ABCD'[record.choices.index(truth)]}. " if record.choices else ""
                there.append((other, letter + truth))
    marked, said = zip(*there, strict=True)
    table = answers.answer_table(own, list(said), condition="contour", control="moved", marked=list(marked))
    [found] = measure(contrast, [of_table("vlm-B-contour-small", table)], of).values()
    assert found.value == 1 and {r.kind for r in own} == {"presence", "abnormality", "organ"}


def test_blind_models_are_the_readers_of_text_only():
    contrast = next(c for c in contrasts.load() if c.name == "image-helps")
    arms = [arm("vlm-B-none-small", 0.9), arm("vlm-B-none-small-blind", 0.3)]
    [found] = measure(contrast, arms, asked()).values()
    assert found.value > 0.3


def test_seeds_stay_apart_and_quick_gives_no_verdict():
    arms = [arm(f"vlm-B-{condition}-small", share, seed)
            for condition, share in (("none", 0.5), ("contour", 0.95)) for seed in (0, 1)]  # fmt: skip
    contrast = [c for c in contrasts.load() if c.name == "contour-helps"]
    assert sorted(measure(contrast[0], arms, asked())) == [0, 1]
    [row] = judged(arms, asked(), "quick", only=contrast).to_dict("records")
    assert (row["seeds"], row["verdict"]) == (2, contrasts.NO_VERDICT)
    [row] = judged(arms, asked(), "full", only=contrast).to_dict("records")
    assert row["verdict"] == "2 of 3 seeds"  # nothing is judged before all seeds of the protocol are there
    more = [arm(f"vlm-B-{condition}-small", share, 2) for condition, share in (("none", 0.5), ("contour", 0.95))]
    [row] = judged(arms + more, asked(), "full", only=contrast).to_dict("records")
    assert row["verdict"] == contrasts.UNDETERMINED  # of four patients, the smallest p there is exceeds 5 %


def test_stored_arms_are_read_in_their_order(tmp_path):
    for label in ("vlm-B-none-middle", "vlm-B-contour-small-seed1", "vlm-B-none-small"):
        made = arm(label, 0.5)
        (tmp_path / label).mkdir()
        answers.save(made.table, small_cohort().records[SPLIT], tmp_path / label / f"{SPLIT}.npz")
        record = {"seed": int(label[-1]) if "seed" in label else 0}
        (tmp_path / label / "record.json").write_text(json.dumps(record), encoding="utf-8")
    arms = load(asked(), SPLIT, tmp_path)
    assert [(a.decoder, a.condition, a.seed) for a in arms] == [
        ("small", "none", 0), ("small", "contour", 1), ("middle", "none", 0)
    ]  # fmt: skip


def test_what_is_no_arm_is_refused(tmp_path):
    with pytest.raises(BadInput, match="vlm-C-none-small isn't the answers of an arm"):
        of_table("vlm-C-none-small", pd.DataFrame())
    (tmp_path / "vlm-B-none-small").mkdir()
    with pytest.raises(BadInput, match="no record that can be read"):
        load(asked(), SPLIT, tmp_path)
