"""Readers are asked under every control, and the pointing reader answers as its parts say."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_questions import _patients, asked, cohort  # noqa: F401

from ctvlm_lib.alignment import checkpoints
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.encoder import for_inference
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import controls, pointing, reliance
from ctvlm_lib.experiments.conditions import PAPERS_COLOURS
from ctvlm_lib.experiments.controls import Control, ask, controls_for, picture_for
from ctvlm_lib.experiments.kept_answers import KeptAnswers, Said
from ctvlm_lib.experiments.linear import Linear
from ctvlm_lib.experiments.mask_quality import with_quality
from ctvlm_lib.prompt import contour
from ctvlm_lib.prompt.overlay import COLOURS
from ctvlm_lib.records.phantom import REGIONS


@pytest.fixture
def some(cohort):  # noqa: F811
    return Scans.of(cohort[60:80])


@pytest.fixture
def records(asked, some):  # noqa: F811
    return [r for r in asked if r.patient in some.names and r.form == "closed" and r.kind in pointing.ANSWERS]


@pytest.fixture(scope="module")
def reader():
    torch.set_num_threads(1)
    encoder = for_inference(checkpoints.load("B")[0].encoder)
    return pointing.fit(encoder, Scans.of(_patients()[:60]), ("none", "contour"), regions=3)


class Echo:
    """Answers with what it is shown: the share of voxels in a colour."""

    channels = 3

    def answer(self, pictures, questions, condition):
        wanted = np.array(COLOURS["blue"])[:, None, None, None] / 127.5 - 1
        return [
            [(str(int((p == wanted).all(axis=0).sum())), 0.5)] * len(q)
            for p, q in zip(pictures, questions, strict=True)
        ]


class Dies(Echo):
    """Is killed in its second batch."""

    asked = 0

    def answer(self, pictures, questions, condition):
        self.asked += 1
        if self.asked == 2:
            raise InterruptedError("killed")
        return super().answer(pictures, questions, condition)


def test_a_killed_asking_goes_on_behind_the_batches_that_were_answered(records, some, tmp_path):
    kept, again = KeptAnswers(tmp_path), Dies()
    with pytest.raises(InterruptedError):
        ask(Dies(), records, some, "contour", batch=30, kept=kept)
    assert len(list(tmp_path.iterdir())) == 1
    again.asked = 2  # and won't be killed
    table = ask(again, records, some, "contour", batch=30, kept=kept)
    pd.testing.assert_frame_equal(table, ask(Echo(), records, some, "contour", batch=30))
    batches = -(-len({(r.patient, r.region) for r in records}) // 30)
    assert again.asked - 2 == batches - 1
    assert len(list(tmp_path.iterdir())) == batches


def test_kept_answers_are_for_the_very_same_questions_and_come_back_to_the_last_bit(records, tmp_path):
    a, b = records[:2]
    kept, said = KeptAnswers(tmp_path / "new"), [Said("B. Cyst", 1 / 3, "liver"), Said("", float("nan"), "")]
    assert kept.read([a, b]) is None
    kept.write([a, b], said)
    (text, sure, on), (_, unsure, _) = kept.read([a, b])
    assert (text, sure, on) == said[0] and np.isnan(unsure)
    assert kept.read([b, a]) is None and kept.read([a]) is None
    assert kept.read([replace(a, question="In other words?"), b]) is None
    [file] = (tmp_path / "new").iterdir()
    for damage in (file.read_bytes()[:-9], b"{}", b"[[1]]", b"\xff", b"[]"):
        file.write_bytes(damage)
        assert kept.read([a, b]) is None  # asked again


def test_every_question_is_asked_once_whatever_the_batch(records, some):
    tables = [ask(Echo(), records, some, "contour", batch=batch) for batch in (3, 50)]
    assert tables[0].equals(tables[1])
    assert sorted(tables[0]["id"]) == sorted(r.id for r in records)


def test_the_contour_is_on_the_asked_region(records, some):
    table = ask(Echo(), records[:12], some, "contour").set_index("id")
    for record in records[:12]:
        k = some.names.index(record.patient)
        line = contour(some.region[k] == REGIONS.index(record.region) + 1, thickness=1)
        assert int(table.loc[record.id, "answer"]) == line.sum()
        assert table.loc[record.id, "marked"] == record.region


def test_a_removed_prompt_leaves_no_colour(records, some):
    table = ask(Echo(), records[:12], some, "contour", Control(controls.REMOVED))
    assert set(table["answer"]) == {"0"}
    assert set(table["marked"]) == {""}


@pytest.mark.parametrize("name", [controls.MOVED, controls.NEIGHBOUR])
def test_a_prompt_elsewhere_marks_another_region(records, some, name):
    table = ask(Echo(), records, some, "contour", Control(name))
    assert (table["marked"] != table["region"]).all()
    again = ask(Echo(), records[::-1], some, "contour", Control(name))
    assert table.sort_values("id")["marked"].tolist() == again.sort_values("id")["marked"].tolist()


def test_swapped_colours_draw_no_blue(records, some):
    table = ask(Echo(), records[:12], some, "contour", Control(controls.RECOLOURED))
    assert set(table["answer"]) == {"0"}
    assert table["marked"].tolist() == table["region"].tolist()


def test_a_question_about_no_region_is_asked_without_a_prompt(asked, some):  # noqa: F811
    phase = [r for r in asked if r.kind == "phase" and r.patient in some.names]
    assert set(ask(Echo(), phase, some, "contour")["answer"]) == {"0"}


def test_controls_that_change_a_mask_say_by_how_much():
    names = [str(c) for c in controls_for("contour", {"dilated": [6, 11], "shifted": [5.5]})]
    assert names == ["as asked", "removed", "moved", "colours swapped", "wrong neighbour", "dilated 6 mm",
                     "dilated 11 mm", "shifted 5.5 mm"]  # fmt: skip
    assert [str(c) for c in controls_for("none", {"dilated": [6]})] == ["as asked"]


def test_a_dilated_mask_has_a_longer_contour(records, some):
    plain, grown = (ask(Echo(), records[:12], some, "contour", c) for c in (None, Control("dilated", 11.0)))
    assert grown["answer"].astype(int).sum() > plain["answer"].astype(int).sum()


def test_dual_draws_the_distractor_in_the_papers_colour(records, some):
    k = some.names.index(records[0].patient)
    picture, _ = picture_for(records[0], some, k, "dual", Control("as asked"), 3)
    red = np.array(COLOURS[PAPERS_COLOURS["distractor"]])[:, None, None, None] / 127.5 - 1
    assert (picture == red).all(axis=0).any()


def test_the_prompt_tells_an_unnamed_region(reader, records, some):
    unnamed = [r for r in records if not r.names_region]
    right = {}
    for condition in ("none", "contour"):
        table = ask(reader, unnamed, some, condition)
        right[condition] = (table["answer"] == table["truth"]).mean()
    assert right["contour"] > right["none"] + 0.15  # two to three times what 20 patients' luck gives


def test_reliance_tells_readers_of_prompts_from_readers_of_words(reader, records, some):
    named, score = [r for r in records if r.names_region], {}
    for listens in ("prompt", "words"):
        heard = pointing.Pointing(reader.encoder, reader.read_outs, reader.prior, listens)
        table = ask(heard, named, some, "contour", Control(controls.MOVED))
        score[listens] = reliance.moved_rows(table, named, some)["reliance"].mean()
    assert score["words"] < -0.15 < 0.15 < score["prompt"]  # 20 patients' standard error is about .05


def test_a_guess_has_no_reliance(records, some):
    class Guess(Echo):
        def answer(self, pictures, questions, condition):
            rng = np.random.default_rng(0)
            return [[(str(rng.choice(r.choices or ("Yes", "No"))), 0.5) for r in q] for q in questions]

    rows = reliance.moved_rows(ask(Guess(), records, some, "contour", Control(controls.MOVED)), records, some)
    assert abs(rows["reliance"].mean()) < 4 * rows["reliance"].std() / len(rows) ** 0.5


def test_a_habit_has_reliance_but_is_not_turned_by_the_prompt(records, some):
    class Habit(Echo):
        def answer(self, pictures, questions, condition):
            return [[((r.choices or ("No",))[-1], 0.5) for r in q] for q in questions]

    both = [ask(Habit(), records, some, "contour", control) for control in (None, Control(controls.MOVED))]
    rows = reliance.moved_rows(pd.concat(both, ignore_index=True), records, some)
    assert rows["reliance"].abs().sum() > 0
    assert (rows["before"] == rows["reliance"]).all() and (rows["turned"] == 0).all()
    alone = reliance.moved_rows(both[1], records, some)
    assert alone["turned"].isna().all() and (alone["reliance"].to_numpy() == rows["reliance"].to_numpy()).all()


def test_who_is_always_right_about_what_is_marked_is_turned_by_one(records, some):
    rows = [ask(Echo(), records, some, "contour", control) for control in (None, Control(controls.MOVED))]
    place, by_id = {name: k for k, name in enumerate(some.names)}, {r.id: r for r in records}
    for table in rows:
        table["answer"] = [reliance.truth_at(by_id[row.id], row.marked, some.found[place[row.patient]]) or "–"
                           for row in table.itertuples()]  # fmt: skip
    told = reliance.moved_rows(pd.concat(rows, ignore_index=True), records, some)
    assert (told["turned"] == 1).all() and (told["before"] == -1).all()


def test_truth_at_the_own_region_is_the_answer(records, some):
    for record in records:
        found = some.found[some.names.index(record.patient)]
        assert reliance.truth_at(record, record.region, found) == record.answer


def test_reliance_needs_moved_prompts(records, some):
    with pytest.raises(BadInput, match="answers under the control 'moved'"):
        reliance.moved_rows(ask(Echo(), records[:3], some, "contour"), records, some)


def test_confidence_is_that_of_the_chosen_answer(reader, records, some):
    table = ask(reader, records, some, "contour")
    several = table["choices"].map(lambda c: len(c) or 2)
    assert (table["confidence"] >= 1 / several - 1e-6).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r, s, reader: ask(reader, [], s, "none"), "no questions to ask"),
        (lambda r, s, reader: ask(reader, r, Scans.of([]), "none"), "no patients"),
        (lambda r, s, reader: ask(reader, r[:2], s, "dual"), "fitted for none, contour, not dual"),
        (lambda r, s, reader: ask(reader, r[:2], s, "circle"), "no condition is called 'circle'"),
        (
            lambda r, s, reader: pointing.Pointing(reader.encoder, {}, reader.prior, "me"),
            "listens to 'me'; choose one of prompt, words, both",
        ),
    ],
)
def test_wrong_wishes_are_refused(records, some, reader, call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call(records, some, reader)


def test_too_few_patients_cannot_be_learnt_from(reader, some):
    two = Scans(*(getattr(some, field.name)[:2] for field in fields(Scans)))
    with pytest.raises(BadInput, match="2 patients don't show every region"):
        pointing.fit(reader.encoder, two)


def test_a_shifted_mask_has_a_lower_quality_than_the_true_one(reader, records, some):
    few = [r for r in records if r.kind == "presence"][:40]
    means = []
    for control in (Control("as asked"), Control("shifted", 42.0)):
        table = with_quality(ask(Echo(), few, some, "contour", control), reader, few, some, "contour", control)
        assert table["mask quality"].between(0, 1).all()
        means.append(table["mask quality"].mean())
    assert means[0] > means[1] + 0.1


def test_no_mask_has_no_quality(reader, records, some):
    with pytest.raises(BadInput, match="no mask is drawn"):
        with_quality(ask(Echo(), records[:2], some, "none"), reader, records[:2], some, "none", Control("as asked"))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_read_out_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (200, 6)).astype(np.float32)
    y = np.arange(200) % classes * 10
    x[:, 0] += y
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(Linear.fit(x, y)(x), theirs, atol=1e-4)  # float32 against float64
