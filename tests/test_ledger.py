"""The ledger: each published number has one kind, ours stands beside it where there is something, and none is typed."""

import argparse
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ctvlm_lib import arm_command
from ctvlm_lib.__main__ import main
from ctvlm_lib.alignment import arms as pretraining
from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import Interval
from ctvlm_lib.experiments import real_arms, uvlm_real
from ctvlm_lib.experiments.chat_arms import ARMS as CHATS
from ctvlm_lib.experiments.local_global import ARMS as ALIGNED
from ctvlm_lib.experiments.uvlm_arms import ARMS as STAGED
from ctvlm_lib.experiments.vlm_arms import ARMS
from ctvlm_lib.ledger import decoder_sizes, places, published, rows, stored_scores, table_command
from ctvlm_lib.ledger.ours import Results, check_protocol
from ctvlm_lib.ledger.quantities import Recall, Score, Size
from ctvlm_lib.ledger.table_command import train_missing
from ctvlm_lib.ledger.verdicts import verdicts
from ctvlm_lib.run import PROJECT

ARM = "vlm-B-contour-small"
CLOSED = Score("contour", "small", kinds=("presence", "abnormality", "location", "size"))


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return rows.ledger()


@pytest.fixture
def results(tmp_path):
    """A folder with one arm's answers, which a test may damage."""
    shutil.copytree(RESULTS / ARM, tmp_path / ARM)
    return tmp_path


def test_every_published_number_has_one_kind_and_a_reason(found):
    assert len(found) == 973
    assert set(found["kind"]) == set(places.KINDS)
    assert (found["why"] != "").all()
    assert rows.counts(found).iloc[-1]["rows"] == 973


def test_no_row_is_blank(found):
    told = found["ours"].notna() | (found["status"] != "") | found["kind"].isin(places.KINDS[2:])
    assert told.all()


def test_each_analogue_names_an_arm_and_its_command(found):
    own = found[found["kind"] == "analogue"]
    assert (own["command"] == "ctvlm arm " + own["arm"]).all()
    assert set(own["notebook"]) == {"50", "55", "65", "70"}


def test_counted_numbers_round_to_the_printed_ones_or_the_reason_says_why_not(found):
    exact = found[found["kind"] == "exact"]
    assert len(exact) == 7
    assert set(exact["status"]) <= {rows.AGREES, rows.DIFFERS}
    differs = exact[exact["status"] == rows.DIFFERS]
    assert differs["row"].tolist() == ["CT-CHAT"]  # named 70B
    assert differs["why"].str.contains("prints what the name says").all()


@pytest.mark.parametrize(
    ("printed", "ours", "same"),
    [(7, 6.74, True), (7, 6.4, False), (0.1, 0.103, True), (0.1, 0.16, False), (70, 70.55, False), (2.4, 2.449, True)],
)
def test_a_number_agrees_if_it_rounds_to_the_printed_one(printed, ours, same):
    assert rows.agrees(printed, ours) is same


def test_what_is_lost_has_no_value_and_what_has_no_value_is_never_compared(found):
    nothing = found[found["published"].isna()]
    assert len(nothing) == 8
    assert set(nothing["kind"]) == {"lost in the source text", "not computable"}
    assert nothing["ours"].isna().all()


def test_a_printed_number_whose_condition_is_a_guess_says_so(found):
    cells = [(cell, k) for k, cell in enumerate(published.load()) if cell.value is not None]
    doubtful = [(cell, k) for cell, k in cells if cell.note.startswith(("UNCERTAIN", "condition from prose"))]
    assert all(found["why"].iloc[k].endswith(f"; {cell.note}") for cell, k in doubtful)
    marks = {cell.condition.split(";")[0] for cell, _ in doubtful if cell.paper == "uvlm"}
    assert marks == {f"line {n}" for n in range(1, 18)}  # all of Table 5's check-marks
    assert {cell.paper for cell, _ in doubtful} == {"uvlm", "medvista3d"}


def test_sizes_prompts_and_projectors_of_the_papers_are_those_of_the_arms():
    for cell in published.load():
        quantity = places.place(cell).quantity
        if isinstance(quantity, Score):
            assert quantity.arm in ARMS
            config = ARMS[quantity.arm]
            assert ("no prompt" in cell.row or cell.paper == "med3dvlm") == (config.condition == "none")
            assert ("dual" in cell.row) == (config.condition == "dual")
            size = re.search(r"Qwen2\.5-(\S+)", cell.row)
            assert not size or places.SIZES[size[1]] == config.decoder


def test_the_stored_scores_are_those_of_the_answers():
    fresh, kept = Results(stored=False), Results()
    wanted = [score for score in rows.quantities_of(ARM) if score.metric in ("accuracy", "BLEU-4", "ROUGE-L")]
    assert {score.form for score in wanted} == {"closed", "open", "report"}
    for score in wanted:
        one, other = fresh.measure(score), kept.measure(score)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-3)
        assert (one.n, one.seeds) == (other.n, other.seeds)


def test_scores_of_other_answers_are_not_taken(results):
    folder = results / ARM
    stored_scores.write(folder, {CLOSED: Interval(12.0, 11.0, 13.0, 5, 2)})
    assert Results((results,)).measure(CLOSED).value == 12.0
    table = (folder / stored_scores.FILE).read_text(encoding="utf-8")
    (folder / stored_scores.FILE).write_text(table.replace(stored_scores.of_answers(folder), "0" * 16))
    assert Results((results,)).measure(CLOSED).value > 50


def test_several_seeds_are_shown_by_mean_and_the_span_of_their_intervals():
    score = replace(CLOSED, condition="none")
    every = [Results().measure(score)]
    folders = Results().folders(score.arm)
    alone = [Results().score(score, path) for path in folders.values()]
    assert every[0].value == pytest.approx(np.mean([one.value for one in alone]))
    assert (every[0].low, every[0].high) == (min(a.low for a in alone), max(a.high for a in alone))
    assert every[0].seeds == tuple(sorted(folders))


def test_recalls_are_those_of_the_stored_table():
    told = Results().measure(Recall("dcformer-siglip-32", "image→text", 100, 10))
    tables = [pd.read_csv(path / "test.csv") for path in Results().folders("dcformer-siglip-32").values()]
    own = [t[(t.direction == "image→text") & (t.gallery == 100) & (t.k == 10)]["recall"].item() for t in tables]
    assert told.value == pytest.approx(100 * np.mean(own))
    assert told.seeds == (0, 1, 2)


def test_a_half_finished_arm_is_told_and_not_averaged(results):
    (results / ARM / "test.npz").unlink()
    with pytest.raises(BadInput, match="half finished: test.npz"):
        Results((results,)).measure(Score("contour", "small"))


def test_answers_under_another_protocol_are_refused(results):
    record = json.loads((results / ARM / "record.json").read_text(encoding="utf-8"))
    for change, said in (({"version": 2}, "version 2 instead of"), ({}, "sha256 0000 instead of")):
        other = record | {"protocol": record["protocol"] | {"sha256": "0000"} | change}
        with pytest.raises(BadInput, match=said):
            check_protocol(ARM, other)
    check_protocol(ARM, record)


def test_a_later_root_replaces_what_an_earlier_one_has(results):
    both = Results((RESULTS, results)).folders(ARM)
    assert both[0].parent == results
    assert set(both) == set(Results().folders(ARM))


def test_decoders_are_counted_as_published():
    assert decoder_sizes.parameters("LLaMA-2-7B") == 6_738_415_616  # as its own checkpoint
    parts = decoder_sizes.uvlm_parts()
    assert parts["embeddings"] / sum(parts.values()) == pytest.approx(0.75, abs=0.02)
    with pytest.raises(BadInput, match="LLaMA-2-7B"):
        decoder_sizes.parameters("LLaMA-9")
    assert Results().measure(Size("LLaMA-3.1-8B")).value == pytest.approx(8.03, abs=0.005)


def test_a_verdict_waits_for_all_seeds_and_what_is_unmeasured_stays_in_the_list(tmp_path):
    for name in (ARM, "vlm-B-none-small"):  # seed 0 alone
        shutil.copytree(RESULTS / name, tmp_path / name)
    early = verdicts("contour", Results((tmp_path,))).set_index("name")
    assert early.loc["contour-helps", "verdict"] == "1 of 3 seeds"
    assert early.loc["contour-helps", "decoders"] == "small"
    assert early.loc["small-with-contour-on-par-with-large-without", "verdict"] == "not measured yet"
    told = verdicts("med3dvlm")
    done = told[told["metric"] == "retrieval"]
    assert (done["seeds"] == 3).all()
    assert done["verdict"].isin(["same sign", "opposite", "undetermined"]).all()


@pytest.mark.parametrize("name", ["contour.T1", "dualbox.T1", "med3dvlm.T4", "uvlm.T1", "medvista3d.T5"])
def test_the_command_prints_the_papers_numbers_beside_ours(name, tmp_path, capsys):
    assert main(["table", name, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for cell in published.table(name):
        if cell.value is not None:
            assert f"{cell.value:g}" in said
    written = pd.read_csv(tmp_path / "quick" / "tables" / f"{name}.csv")
    assert len(written) == len(published.table(name))
    assert ("ceiling of the four-way finding" in said) == any(arm in ARMS for arm in written["arm"])


def test_an_unknown_table_is_a_sentence_with_suggestions(tmp_path, capsys):
    assert main(["table", "dualbox.T2", "--out", str(tmp_path)]) == 2
    assert "did you mean dualbox.T1" in capsys.readouterr().err


def test_the_page_holds_every_table_and_escapes_what_it_shows(tmp_path, capsys):
    assert main(["ledger", "--out", str(tmp_path)]) == 0
    assert "973" in capsys.readouterr().out
    page = (tmp_path / "quick" / "report" / "ledger.html").read_text(encoding="utf-8")
    for name in (*published.names(), *(f"{paper}-claims" for paper in published.PAPERS)):
        assert f'id="{name}"' in page
    assert len(pd.read_csv(tmp_path / "quick" / "ledger.csv")) == 973
    assert "nan" not in re.findall(r"<td[^>]*>(nan)</td>", page)


def test_the_readme_counts_the_kinds_as_the_ledger_does(found):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"<!-- kinds -->(.*?)<!-- /kinds -->", readme, re.DOTALL)[1]
    counted = found["kind"].value_counts()
    assert [int(number) for number in re.findall(r"\b\d+\b", said)] == [counted[kind] for kind in places.KINDS]


def test_full_trains_what_is_missing_and_nothing_that_is_there(tmp_path, monkeypatch, capsys):
    called, stored, there = [], tmp_path / "stored", ("vlm-B-none-small", 0)
    shutil.copytree(RESULTS / there[0], stored / there[0])
    monkeypatch.setattr(table_command, "RESULTS", stored)
    monkeypatch.setattr(arm_command, "command", called.append)
    table = rows.ledger(published.table("contour.T1"))
    train_missing(table, tmp_path / "full")
    assert {(args.profile, args.out) for args in called} == {("full", str(tmp_path))}
    wanted = {(arm, seed) for arm in set(table["arm"]) for seed in (0, 1, 2)}
    assert there in wanted and {(args.name, args.seed) for args in called} == wanted - {there}


def test_every_command_that_the_ledger_names_is_an_arm_with_its_options(found):
    parser = argparse.ArgumentParser()
    arm_command.add_arguments(parser)
    for told in set(found["command"]) - {""}:
        words = told.split()
        assert words[:2] == ["ctvlm", "arm"]
        args = parser.parse_args(words[2:])
        on_real = uvlm_real.arm_of if args.name.startswith("uvlm-") else real_arms.arm_of
        assert args.name in {*ARMS, *pretraining.ARMS, *ALIGNED, *CHATS, *STAGED} or on_real(args.name)
        real = args.name.endswith(("-m3d", "-abdomen")) or args.name.startswith(("m3d-", "radgenome-"))
        assert (args.profile == "paper") == real


def test_by_seed_has_the_tables_numbers_seed_by_seed(found):
    table = rows.by_seed("contour.T1")
    small = table[(table["decoder"] == "small") & (table["condition"] == "contour")]
    own = found[(found["arm"] == ARM) & (found["table"] == "T1") & (found["paper"] == "contour")]
    accuracy = own[own["column"] == "accuracy"].iloc[0]
    assert small["closed accuracy"].mean() == pytest.approx(accuracy["ours"])
    assert small["low"].min() == pytest.approx(accuracy["low"])
    assert small["seed"].tolist() == [int(seed) for seed in accuracy["seeds"].split()]
    sizes = [size for size in places.SIZES.values() if size in set(table["decoder"])]
    assert table["decoder"].drop_duplicates().tolist() == sizes
