"""The contrasts: each can be measured, the published numbers are consistent, and verdicts follow the rule."""

import csv
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.paired import paired_difference
from ctvlm_lib.ledger import contrasts as ledger
from ctvlm_lib.ledger.contrasts import KEYS, Contrast, judge, judge_all, load, parse_side

CLAIM = Contrast("claim", "contour", "T1", "condition=contour", "condition=none", "closed", "named", 1, primary=True)
ON_PAR = replace(CLAIM, name="on par", sign=0)


def difference(mean: float, spread: float = 0.1, patients: int = 200, seed: int = 0):
    """A paired difference with exactly this mean and spread of the patients' differences."""
    d = np.random.default_rng(seed).normal(size=patients)
    d = mean + spread * (d - d.mean()) / d.std(ddof=1)
    ids = range(patients)
    return paired_difference(
        dict(enumerate(d)), dict.fromkeys(ids, 0.0), {k: k for k in ids}, resamples=400, flips=2000
    )


def by_name(name: str) -> Contrast:
    return next(contrast for contrast in load() if contrast.name == name)


def test_every_contrast_can_be_measured():
    for contrast in load():
        left, right = contrast.sides
        assert left.keys() == right.keys() and left != right, contrast.name
        no_region = contrast.kind == "phase" or contrast.metric.startswith(("retrieval", "report"))
        assert (contrast.stratum == "") == no_region, contrast.name


def test_the_first_columns_are_the_protocols():
    with open(ledger.PATH, newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert header[:8] == ["name", "paper", "table", "left", "right", "metric", "stratum", "sign"]


def test_keys_are_the_words_of_the_experiments():
    from ctvlm_lib.experiments import answers, conditions, controls
    from ctvlm_lib.vlm import ladder, projector

    assert set(KEYS["decoder"]) == {*ladder.SIZES, "all"}
    assert set(KEYS["projector"]) == set(projector.IN_THE_PAPER.values())
    assert KEYS["condition"] == conditions.CONDITIONS
    assert KEYS["control"] == (
        answers.AS_ASKED, controls.REMOVED, controls.MOVED, controls.RECOLOURED, controls.NEIGHBOUR,
    )  # fmt: skip


def test_few_contrasts_are_primary():
    primary = [c for c in load() if c.primary]
    families = {paper: sum(c.paper == paper for c in primary) for paper in {c.paper for c in primary}}
    assert set(families) == {"contour", "dualbox", "med3dvlm", "workbook"} and max(families.values()) <= 4
    assert all(c.kind in ("", "mean") for c in primary)


def test_signs_are_those_of_the_published_differences():
    for contrast in load():
        if contrast.paper in ("contour", "dualbox", "med3dvlm"):
            assert contrast.paper_difference is not None and contrast.paper_unit == "%", contrast.name
        if contrast.paper_difference is not None and contrast.sign:
            assert np.sign(contrast.paper_difference) == contrast.sign, contrast.name
    assert [c.name for c in load() if c.sign == 0] == ["small-with-contour-on-par-with-large-without"]


def test_published_differences_of_two_steps_add_up():
    for size, metric in product(("small", "middle", "large"), ("closed", "open-BLEU-4", "open-ROUGE-L", "open-METEOR")):
        steps = [
            by_name(f"dualbox-T1-{size}-{step}-{metric}").paper_difference
            for step in ("box-over-none", "dual-over-box")
        ]
        assert sum(steps) == pytest.approx(by_name(f"dualbox-T1-{size}-dual-over-none-{metric}").paper_difference)


def test_both_papers_share_their_rows_without_a_prompt():
    for size, metric in product(("small", "middle", "large"), ("closed", "open-BLEU-4", "open-ROUGE-L", "open-METEOR")):
        one, other = by_name(f"contour-T1-{size}-{metric}"), by_name(f"dualbox-T1-{size}-box-over-none-{metric}")
        assert one.paper_right == other.paper_right


def test_means_over_sizes_are_means_of_the_rows():
    sizes = [by_name(f"contour-T1-{size}-closed") for size in ("small", "middle", "large")]
    whole = by_name("contour-helps")
    assert whole.paper_left == pytest.approx(np.mean([c.paper_left for c in sizes]), abs=5e-4)
    assert whole.paper_right == pytest.approx(np.mean([c.paper_right for c in sizes]), abs=5e-4)


def test_a_side_is_read_in_any_spacing_and_refused_where_it_says_nothing():
    assert parse_side("condition=contour; decoder=middle") == {"condition": "contour", "decoder": "middle"}
    assert parse_side(" control = as asked ") == {"control": "as asked"}
    for side in ("", "contour", "condition=contour; condition=box", "colour=red"):
        with pytest.raises(BadInput, match="once at most"):
            parse_side(side)
    with pytest.raises(BadInput, match="condition is one of none, contour, box, dual"):
        parse_side("condition=circle")


@pytest.mark.parametrize(
    ("contrast", "mean", "said"),
    [
        (CLAIM, 0.05, "same sign"),
        (CLAIM, -0.05, "opposite"),
        (CLAIM, 0.005, "undetermined"),
        (replace(CLAIM, sign=-1), -0.05, "same sign"),
        (replace(CLAIM, sign=-1), 0.05, "opposite"),
        (ON_PAR, 0.001, "same sign"),
        (ON_PAR, 0.06, "opposite"),
        (ON_PAR, -0.06, "opposite"),
        (ON_PAR, 0.02, "undetermined"),
        (replace(CLAIM, primary=False), 0.05, "described"),
    ],
)
def test_verdicts_follow_the_rule(contrast, mean, said):
    verdict = judge(contrast, difference(mean), "full")
    assert verdict.verdict == said and verdict.value == pytest.approx(mean)
    assert (verdict.low > 0 or verdict.high < 0) == (abs(mean) > 0.014)  # 0.1 / √200, twice
    assert judge(contrast, difference(mean), "quick").verdict == "no verdict"


def test_a_wide_interval_is_not_on_par():
    assert judge(ON_PAR, difference(0.0, spread=0.5), "full").verdict == "undetermined"


def test_every_seed_has_to_agree():
    agree = judge(CLAIM, {0: difference(0.05), 1: difference(0.03, seed=1), 2: difference(0.04, seed=2)}, "full")
    assert agree.verdict == "same sign" and agree.seeds == (0, 1, 2) and agree.value == pytest.approx(0.04)
    one_lacks = judge(CLAIM, {0: difference(0.05), 1: difference(0.002, seed=1)}, "full")
    assert one_lacks.verdict == "undetermined" and one_lacks.p > 0.05
    opposed = judge(CLAIM, {0: difference(0.05), 1: difference(-0.05, seed=1)}, "full")
    assert opposed.verdict == "undetermined" and opposed.p < 0.01 and opposed.low < 0 < opposed.high
    with pytest.raises(BadInput, match="other questions or patients"):
        judge(CLAIM, {0: difference(0.05), 1: difference(0.05, patients=50)}, "full")
    with pytest.raises(BadInput, match="no difference to judge"):
        judge(CLAIM, {}, "full")


def test_holm_runs_over_the_primary_contrasts_of_one_paper():
    claims = [replace(CLAIM, name=f"claim {k}") for k in range(4)]
    others = [replace(CLAIM, name="elsewhere", paper="dualbox"), replace(CLAIM, name="described", primary=False)]
    near = difference(0.0155)  # significant by itself, not among four
    measured = [(claims[0], difference(0.05)), (claims[1], near), *((c, near) for c in others)]
    verdicts = judge_all(measured, "full", claims + others)
    assert judge(claims[1], near, "full").verdict == "same sign" and 0.05 / 3 < verdicts[1].p < 0.05
    assert [v.verdict for v in verdicts] == ["same sign", "undetermined", "same sign", "described"]
    assert [v.family for v in verdicts] == [4, 4, 1, 0]
    assert verdicts[1].p_holm == pytest.approx(3 * verdicts[1].p) and np.isnan(verdicts[3].p_holm)
    assert "after Holm over 4 primary contrasts" in str(verdicts[0]) and "Holm" not in str(verdicts[3])


def test_leaving_contrasts_out_gains_nothing():
    claims = [replace(CLAIM, name=f"claim {k}") for k in range(5)]
    near = difference(0.0155)
    alone = judge_all([(claims[0], near)], "full", claims)[0]
    among = judge_all([(claims[0], near)] + [(c, difference(0.0)) for c in claims[1:]], "full", claims)[0]
    assert alone.p_holm == among.p_holm == pytest.approx(5 * alone.p) and alone.verdict == "undetermined"


def test_detectable_difference_grows_with_the_family():
    claims = [replace(CLAIM, name=f"claim {k}") for k in range(4)]
    alone = judge(CLAIM, difference(0.0), "full")
    among = judge_all([(claims[0], difference(0.0))], "full", claims)[0]
    assert (
        alone.detectable == pytest.approx(2.8016 * 0.1 / np.sqrt(200), rel=1e-3) and among.detectable > alone.detectable
    )


def test_the_margin_is_the_protocols():
    from ctvlm_lib.records import protocol

    assert (
        ledger.margin() == protocol.load().content["metrics"]["on_par"] == judge(ON_PAR, difference(0), "full").margin
    )
    assert np.isnan(judge(CLAIM, difference(0), "full").margin)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "F1"}, "has metric 'F1'"),
        ({"sign": "+"}, "has sign"),
        ({"stratum": "all"}, "has stratum"),
        ({"left": "contour"}, "has the part 'contour'"),
        ({"name": "contour-T1-small-closed"}, "twice"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, change, said):
    with open(ledger.PATH, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= change
    with open(tmp_path / "contrasts.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(BadInput, match=said):
        load(tmp_path / "contrasts.csv")
    with pytest.raises(BadInput, match="there is no list"):
        load(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("name,paper\na,b\n")
    with pytest.raises(BadInput, match="other columns"):
        load(tmp_path / "other.csv")
