"""The vision–language model is asked as every other reader, and its arms are trained, asked and stored by name."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_finetune import ORGANS, lessons, record, small_cohort
from helpers_vlm import SIZE, tiny

from ctvlm_lib.alignment.arm_tables import RESULTS, name_and_seed
from ctvlm_lib.alignment.checkpoints import load as load_aligned
from ctvlm_lib.checkpoints import FOLDER
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, vlm_arms, vlm_run
from ctvlm_lib.experiments.controls import MOVED, Control, ask
from ctvlm_lib.experiments.vlm_arms import ARMS, CLOSED_ANSWERS, recipe_of
from ctvlm_lib.experiments.vlm_lessons import features_of, held_out_of, key_of, lessons_of
from ctvlm_lib.experiments.vlm_reader import VlmReader, worded
from ctvlm_lib.records import committed, protocol
from ctvlm_lib.vlm import finetune, finetune_saving, ladder
from ctvlm_lib.vlm.choices import log_likelihoods
from ctvlm_lib.vlm.finetune import Finetuning
from ctvlm_lib.vlm.lessons import Lessons
from ctvlm_lib.vlm.packed import offered
from ctvlm_lib.vlm.short_answers import short_answers
from ctvlm_lib.vlm.splice import IGNORED

SMALL = {"projector_steps": 1, "lora_steps": 1, "pictures": 4, "regions": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def untrained():
    """The shipped parts, before the first step."""
    torch.set_num_threads(1)
    return finetune.build(recipe_of("vlm-B-contour-small"))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 32, 64, 64)).astype(np.float32)


def test_answers_do_not_depend_on_the_batch(untrained):
    asked = [lesson.records for lesson in lessons(3)]
    many = VlmReader(*untrained).answer(pictures(3), asked, "contour")
    few = [VlmReader(*untrained).answer(pictures(3)[k : k + 1], asked[k : k + 1], "contour")[0] for k in range(3)]
    assert [[text for text, _ in group] for group in many] == [[text for text, _ in group] for group in few]
    confidence = [[c for group in said for _, c in group] for said in (many, few)]
    np.testing.assert_allclose(*confidence, atol=1e-4)  # other padding, so another order of float32 sums


def test_with_the_released_splice_no_question_changes_another():
    """It overwrites the first token behind the image, so that in a shared row only the first question would lose it."""
    model, processor = tiny(splice="as released")
    model.freeze(encoder=True, projector=True, decoder=True)
    group = [record(k, question=text) for k, text in enumerate(("Is there a mass?", "Which organ is it?", "Where?"))]
    shown = np.random.default_rng(0).uniform(-1, 1, (1, 1, *SIZE)).astype(np.float32)
    reader = VlmReader(model, processor)
    together = [confidence for _, confidence in reader.answer(shown, [group], "none")[0]]
    alone = [reader.answer(shown, [[one]], "none")[0][0][1] for one in group]
    assert together == pytest.approx(alone, abs=1e-5)


def test_likelihoods_of_choices_are_those_of_each_answer_by_itself(untrained):
    model, processor = untrained
    asked = [record(1), record(2, "liver", "Which organ is it?", ORGANS)]
    features = model.image_features(torch.from_numpy(pictures(2)))
    found = [row for [row] in log_likelihoods(model, processor, [[one] for one in asked], features)]
    for k, one in enumerate(asked):
        for answer, value in zip(one.choices or ("Yes", "No"), found[k], strict=True):
            batch = processor.of_records([replace(one, answer=answer)], None)
            with torch.no_grad():
                loss = model(**batch, features=(features.low[k : k + 1], features.high[k : k + 1])).loss
            assert float(value) == pytest.approx(-float(loss) * int((batch["labels"] != IGNORED).sum()), rel=1e-4)


def test_many_questions_behind_one_image_are_as_likely_as_each_by_itself(untrained):
    model, processor = untrained
    asked = [list(lesson.records) for lesson in lessons(2)]
    asked = [[one for one in group if one.form == "closed"] for group in asked]
    assert min(map(len, asked)) > 1
    features = model.image_features(torch.from_numpy(pictures(2)))
    together = log_likelihoods(model, processor, asked, features)
    for k, group in enumerate(asked):
        alone = log_likelihoods(model, processor, [[one] for one in group], features.rows([k] * len(group)), room=1)
        for a, [b] in zip(together[k], alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_answers_written_side_by_side_are_those_of_generate(untrained):
    model, processor = untrained
    asked = [list(lesson.records) for lesson in lessons(2)]
    features = model.image_features(torch.from_numpy(pictures(2)))
    side_by_side = short_answers(model, processor, asked, features, most=8, room=40, at_once=2)
    for k, group in enumerate(asked):
        for one, text in zip(group, side_by_side[k], strict=True):
            batch = processor.of_records([one], None, answers=False)
            alone = model.generate(**batch, features=features.rows([k]), max_new_tokens=8)
            assert processor.decode(alone) == [text]


def test_pictures_that_were_seen_are_not_encoded_again(untrained, tmp_path, monkeypatch):
    model, processor = untrained
    first = VlmReader(model, processor, store=tmp_path).answer(pictures(1), [[record(1)]], "none")
    monkeypatch.setattr(model, "image_features", None)
    assert VlmReader(model, processor, store=tmp_path).answer(pictures(1), [[record(1)]], "none") == first


def test_confidence_is_the_probability_among_the_offered(untrained):
    model, processor = untrained
    [[(text, confidence)]] = VlmReader(model, processor, written=True).answer(pictures(1), [[record(1)]], "none")
    features = model.image_features(torch.from_numpy(pictures(1)))
    [[likely]] = log_likelihoods(model, processor, [[record(1)]], features)
    assert text in ("Yes", "No")
    assert confidence == pytest.approx(float(likely.softmax(0)[("Yes", "No").index(text)]), abs=1e-5)


def test_unreadable_answers_have_no_confidence(untrained):
    reader, chance = VlmReader(*untrained, written=True), torch.tensor([0.3, 0.7])
    assert np.isnan(reader._said(record(0), "liver", chance)[1])
    assert reader._said(record(0), "No", chance) == ("No", pytest.approx(0.7))


def test_open_answers_have_no_confidence(untrained):
    asked = record(0, "a mass in the liver", "What is it?")
    [[(_, confidence)]] = VlmReader(*untrained).answer(pictures(1), [[asked]], "none")
    assert np.isnan(confidence)


def test_a_chosen_answer_is_the_likeliest_of_those_offered(untrained):
    reader = VlmReader(*untrained)
    one = record(0, "liver", "Which organ is it?", ORGANS)
    assert reader._said(one, "", torch.tensor([0.1, 0.2, 0.6, 0.1])) == ("C. heart", pytest.approx(0.6))
    assert reader._said(record(0), "", torch.tensor([0.1, 0.9])) == ("No", pytest.approx(0.9))


def test_the_words_are_those_of_the_condition():
    asked = record(0)
    assert worded(asked, "none") == asked
    assert "blue-outlined" in worded(asked, "contour").question
    assert "red-outlined" in worded(asked, "dual").question
    assert worded(replace(asked, region=None, names_region=False), "dual").style == "plain"
    with pytest.raises(BadInput, match="'circle'"):
        worded(asked, "circle")


def test_the_model_is_asked_under_a_control_and_scored(untrained):
    cohort, reader = small_cohort(), VlmReader(*untrained)
    asked = cohort.questions("validation", form="closed", patients=1)
    table = ask(reader, asked, cohort.scans["validation"], "contour", Control(MOVED), batch=4)
    assert sorted(table["id"]) == sorted(r.id for r in asked)
    scored = score_closed(table)
    assert scored["parsed"].notna().all()
    assert (scored["confidence"] >= 1 / scored["choices"].map(lambda c: len(c) or 2) - 1e-6).all()


def test_a_budget_of_regions_takes_the_same_ones_under_every_condition():
    cohort = small_cohort()
    ids = {}
    for condition in ("none", "dual"):
        made = lessons_of(cohort, recipe_of(f"vlm-B-{condition}-small", changes={"regions": 2}))
        ids[condition] = [[r.id for r in one.records] for one in made]
        regions = {}
        for one in made:
            regions.setdefault(one.records[0].patient, []).append(one.records[0].region)
        assert all(len([r for r in there if r]) == 2 for there in regions.values())
    assert ids["none"] == ids["dual"]


def test_a_budget_that_the_cohort_cannot_fill_is_refused_and_none_is_negative():
    cohort = small_cohort()
    for budget in (9, 5000):
        with pytest.raises(BadInput, match=f"{budget} patients to learn from, but there are 8; give 1 to that, or 0"):
            lessons_of(cohort, recipe_of("vlm-B-none-small", changes={"patients": budget}))
    looking = recipe_of("vlm-B-none-small", changes={"patients": 8, "look_every": 1})
    assert lessons_of(cohort, looking) == lessons_of(cohort, recipe_of("vlm-B-none-small"))
    assert len(held_out_of(cohort, looking)) > 0  # the protocol asks more patients than this cohort has
    for wrong in ({"patients": -5}, {"regions": -1}):
        with pytest.raises(BadInput, match="give how many are learnt from, or 0 for all"):
            recipe_of("vlm-B-none-small", changes=wrong)
    with pytest.raises(BadInput, match="questions of -5 patients"):
        cohort.questions("train", patients=-5)


def test_without_a_prompt_a_patient_has_one_picture():
    asked = record(3)
    none, contour = (recipe_of(f"vlm-B-{condition}-small") for condition in ("none", "contour"))
    assert key_of(asked, none) == key_of(replace(asked, region=None), contour) != key_of(asked, contour)
    blind = recipe_of("vlm-B-none-small-blind")
    assert key_of(asked, blind) == key_of(record(4), blind)


def test_a_blind_model_answers_alike_whatever_it_is_shown(untrained):
    reader = VlmReader(*untrained, blind=True)
    asked = list(lessons(1)[0].records)
    first, second = reader.answer(pictures(2), [asked, asked], "none")
    assert repr(first) == repr(second)  # as text, since NaN equals nothing


def test_features_are_computed_once_and_read_back(tmp_path, untrained):
    cohort, (model, _) = small_cohort(), untrained
    config = recipe_of("vlm-B-contour-small", changes={"regions": 1, "patients": 2})
    some = lessons_of(cohort, config)
    seen = []
    told = {"store": tmp_path, "progress": lambda *done: seen.append(done)}
    for _ in range(2):
        kept = features_of(model, cohort.scans["train"], some, config, **told)
    assert len(seen) == 1
    assert set(kept.keys) == {lesson.key for lesson in some}


def test_lines_out_of_the_window_are_learnt_from_kept_apart_and_shown_when_it_is_asked(tmp_path, monkeypatch):
    cohort, shown = small_cohort(), []
    models = {}
    for variant in ("", "-out-of-window"):
        few = {"regions": 1, "patients": 1, "kinds": ["presence"]}
        config = recipe_of(f"vlm-A-contour-small{variant}", changes=few)
        model, processor = finetune.build(config)
        some = [one for one in lessons_of(cohort, config) if one.records[0].region]
        kept = features_of(model, cohort.scans["train"], some, config, store=tmp_path)
        models[variant] = kept.take([some[0].key]).low, model, processor
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.equal(models[""][0], models["-out-of-window"][0])

    reader = VlmReader(*models["-out-of-window"][1:])
    monkeypatch.setattr(reader, "answer", lambda pictures, groups, condition: shown.append(pictures) or [
        [("Yes", 0.5)] * len(group) for group in groups])  # fmt: skip
    ask(reader, some[0].records, cohort.scans["train"], "contour")
    assert shown[0].max() > 1  # no tissue lies there
    with torch.no_grad():
        seen = models["-out-of-window"][1].image_features(torch.from_numpy(shown[0]))
    torch.testing.assert_close(seen.low, models["-out-of-window"][0], rtol=1e-3, atol=1e-3)  # kept in 16 bits


def test_colours_for_an_encoder_of_one_channel_are_refused():
    with pytest.raises(BadInput, match="need an encoder of 3 channels"):
        finetune.build(recipe_of("vlm-A-contour-small", changes={"colour": "rgb"}))
    with pytest.raises(BadInput, match="colour is 'grey'"):
        recipe_of("vlm-A-contour-small", changes={"colour": "grey"})


def test_an_arm_is_trained_asked_and_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path / "cache"))
    cohort = small_cohort()
    said = vlm_run.run(
        "vlm-B-contour-small", "quick", 3, cohort=cohort, splits=("validation",),
        checkpoint_folder=tmp_path / "weights", results=tmp_path / "results",
        changes=SMALL | {"kinds": ["presence", "location"]}, progress=False,
    )["validation"]  # fmt: skip
    home = tmp_path / "results" / "vlm-B-contour-small-seed3"
    stored = answers.load(home / "validation.npz", cohort.records["validation"])
    assert stored["answer"].tolist() == said["answer"].tolist()
    assert set(said["seed"]) == {3}
    assert not said["id"].duplicated().any()
    asked = {r.id for r in cohort.questions("validation", kinds=("presence", "location"))}
    assert asked == set(said["id"])
    record = json.loads((home / "record.json").read_text(encoding="utf-8"))
    assert record["finetuning"]["rank"] == 16
    assert record["weights"] == finetune_saving.load(tmp_path / "weights" / home.name)[2]["weights"]


def test_long_asking_tells_how_far_it_is(untrained, monkeypatch):
    cohort, told = small_cohort(), []
    monkeypatch.setattr(vlm_run, "QUIET_S", 0.0)
    asked = cohort.questions("validation", kinds=("presence", "report"), patients=4)
    config = recipe_of("vlm-B-contour-small")
    tables = vlm_run.as_asked(VlmReader(*untrained), asked, cohort.scans["validation"], config, told.append)
    assert sum(map(len, tables)) == len(asked)
    assert told[0].startswith("as asked: 24 of ") and told[0].endswith(" left)")
    quiet = vlm_run.as_asked(VlmReader(*untrained), asked, cohort.scans["validation"], config)
    assert [table["answer"].tolist() for table in quiet] == [table["answer"].tolist() for table in tables]


def test_an_arm_that_is_killed_while_it_is_asked_keeps_its_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path / "cache"))
    cohort = small_cohort()

    def killed(*_):
        raise InterruptedError

    how = {"cohort": cohort, "splits": ("validation",), "checkpoint_folder": tmp_path / "weights",
           "folder": tmp_path / "way", "changes": SMALL | {"kinds": ["presence"]}, "progress": False}  # fmt: skip
    whole = vlm_run.run("vlm-B-contour-small", "quick", results=tmp_path / "whole", **how)["validation"]
    assert not (tmp_path / "way" / "asked").exists()  # all are stored
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(vlm_run, "store", killed)
        vlm_run.run("vlm-B-contour-small", "quick", results=tmp_path / "killed", **how)
    monkeypatch.setattr(VlmReader, "answer", None)  # not asked again
    again = vlm_run.run("vlm-B-contour-small", "quick", results=tmp_path / "again", **how)["validation"]
    pd.testing.assert_frame_equal(whole, again)


def test_the_test_split_is_not_asked_without_a_committed_protocol(monkeypatch):
    def refuse(files):
        raise BadInput("protocol.toml differs from the last commit")

    monkeypatch.setattr(committed, "check_committed", refuse)
    with pytest.raises(BadInput, match="differs from the last commit"):
        vlm_run.run("vlm-B-none-small", cohort=small_cohort())


def test_arms_are_encoder_condition_and_decoder():
    # all but smollm2 from scratch and with the pictures that it has anyway, large and smollm2 with a teacher, and lines
    # of another colour without a line
    assert len(ARMS) == 3 * 4 * (4 * len(vlm_arms.VARIANTS) - 2 - 2 * 2) - 3 * 4
    arm = ARMS["vlm-A-continued-dual-large"]
    assert (arm.encoder, arm.condition, arm.decoder, arm.from_scratch) == ("A-continued", "dual", "large", False)
    assert recipe_of("vlm-B-box-small-scratch", 2, {"lora_lr": 1e-3}).lora_lr == 1e-3


@pytest.mark.parametrize("folder", [RESULTS, FOLDER])
def test_stored_models_were_made_by_the_recipes_of_their_arms(folder):
    records = sorted(folder.glob("vlm-*/record.json"))
    assert records
    for path in records:
        told = json.loads(path.read_text(encoding="utf-8"))["finetuning"]
        name, seed = name_and_seed(path.parent.name)
        assert Finetuning.from_dict(told) == recipe_of(name, seed), path.parent.name


def test_a_heads_classes_are_all_that_the_cohorts_closed_questions_offer():
    closed = [r for some in small_cohort().records.values() for r in some if r.form == "closed"]
    assert {answer for r in closed for answer in offered(r)} <= set(CLOSED_ANSWERS)
    lists = small_cohort()
    config = recipe_of("vlm-B-contour-small-focal-head")
    _, processor = finetune.build(config)
    assert Lessons(processor, lessons_of(lists, config), config.head_answers).answers == CLOSED_ANSWERS


def test_an_arm_that_there_is_not_is_refused():
    with pytest.raises(BadInput, match="vlm-B-contour-small"):
        recipe_of("vlm-C-contour-small")


def test_budgets_are_those_of_the_protocol():
    fixed = protocol.load().content["vlm"]
    arm = ARMS["vlm-B-contour-small"]
    for name in ("projector_steps", "lora_steps", "pictures", "regions"):
        assert getattr(arm, name) == fixed[name]
    assert arm.projector_lr == arm.lora_lr == fixed["learning_rate"]
    million = {size: round(ladder.parameters(size)["parameters"] / 1e6, 2) for size in ladder.SIZES}
    assert million == fixed["decoders"]
    channels = {"RGB": 3, "luminance": 1}
    for encoder, colour in fixed["colour"].items():
        assert load_aligned(FOLDER / encoder)[0].encoder.config.in_channels == channels[colour]
