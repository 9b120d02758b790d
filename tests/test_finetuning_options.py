"""Options of finetuning end to end: from an arm's name or a sources file to stored answers. About 20 s on one core."""

import json
from dataclasses import replace

import helpers_own
import numpy as np
import pytest
import torch
from helpers_finetune import small_cohort

from ctvlm_lib import sources
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, real_arms, vlm_arms, vlm_lessons, vlm_run
from ctvlm_lib.experiments.real_cohort import RealCohort
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.training import Training
from ctvlm_lib.vlm import finetune, finetune_loss
from ctvlm_lib.volume import load

EARLY = {"checkpointing": True, "accumulate": 2, "patience": 1, "look_every": 1}
SHORT = {"projector_steps": 1, "lora_steps": 6, "pictures": 4, "regions": 1, "kinds": ["presence", "organ"]}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def rising(monkeypatch):
    """The held-out loss rises from look to look; returns how many questions it looked at each time."""
    seen = []

    def loss(model, lessons, features, **options):
        assert all(row.key in features for row in lessons.rows)
        seen.append(sum(len(row.words) for row in lessons.rows))
        return float(len(seen))

    monkeypatch.setattr(finetune_loss, "held_out_loss", loss)
    return seen


def test_an_arm_with_a_head_that_stops_early_is_trained_asked_and_stored(tmp_path, monkeypatch, rising):
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path / "cache"))
    cohort = small_cohort()
    said = vlm_run.run(
        "vlm-A-contour-small-focal-head", "quick", cohort=cohort, splits=("validation",),
        checkpoint_folder=tmp_path / "weights", results=tmp_path / "results", changes=SHORT | EARLY, progress=False,
    )["validation"]  # fmt: skip
    assert len(rising) == 2  # at the second look the loss has risen
    home = tmp_path / "results" / "vlm-A-contour-small-focal-head"
    stored = answers.load(home / "validation.npz", cohort.records["validation"])
    assert stored["answer"].tolist() == said["answer"].tolist()
    closed = score_closed(stored)
    assert closed["parsed"].notna().all() and closed["confidence"].notna().all()
    record = json.loads((home / "record.json").read_text(encoding="utf-8"))
    assert record["finetuning"]["class_balanced"] and record["finetuning"]["accumulate"] == 2
    lessons = vlm_lessons.held_out_of(cohort, vlm_arms.recipe_of("vlm-A-contour-small", changes=SHORT | EARLY))
    assert rising[0] == sum(len(lesson.records) for lesson in lessons)
    assert {r.patient for lesson in lessons for r in lesson.records} <= set(cohort.scans["validation"].names)


def test_without_validation_patients_stopping_early_is_refused():
    cohort = small_cohort()
    some = replace(cohort, scans={"train": cohort.scans["train"]})
    with pytest.raises(BadInput, match="the cohort has none"):
        vlm_lessons.held_out_of(some, vlm_arms.recipe_of("vlm-B-none-small", changes=EARLY))
    assert vlm_lessons.held_out_of(some, vlm_arms.recipe_of("vlm-B-none-small")) == []


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return helpers_own.make_all(tmp_path_factory.mktemp("own"))


def test_the_sources_file_reaches_every_option_of_the_loop(own, tmp_path, monkeypatch, rising):
    made, train = [], finetune.train
    monkeypatch.setattr(finetune, "train", lambda model, loss, settings, **options: made.append(
        (settings, model.decoder.is_activation_checkpointing)) or train(model, loss, settings, **options))  # fmt: skip
    text = own.read_text(encoding="utf-8").replace("lora_steps = 2\n", "lora_steps = 6\n")
    options = 'colour = "out of window"\n' + "".join(f"{name} = {json.dumps(value)}\n" for name, value in EARLY.items())
    path = own.with_name("early.toml")
    path.write_text(text + options, encoding="utf-8")
    given = replace(sources.load(path), bert_score="")
    table = real_arms.run("radgenome-dual-0.5B", given, home=tmp_path, progress=False)
    assert len(table) and len(rising) == 2
    assert all(isinstance(settings, Training) and settings.accumulate == 2 and again for settings, again in made)
    record = json.loads((tmp_path / "results" / "radgenome-dual-0.5B" / "record.json").read_text(encoding="utf-8"))
    assert record["finetuning"]["patience"] == 1 and record["finetuning"]["train_norms"]
    assert {"patience", "no slice attention"} & set(record["otherwise"]) == {"patience"}
    assert "projector trained in both stages" in record["otherwise"]
    kept = [path.name for path in (tmp_path / "features").iterdir()]
    assert len(kept) == 2 and all("-dual-out-of-window-" in name for name in kept)  # training and validation


def test_the_radgenome_recipe_is_the_contour_papers_objective(own):
    config = real_arms.recipe_of("radgenome-contour-0.5B", replace(sources.load(own), finetuning={}), pictures=8)
    assert (config.focal_gamma, config.class_balanced, config.weights) == (2.0, True, (1.0, 1.0, 1e-4))
    focal = vlm_arms.recipe_of("vlm-B-contour-small-focal")
    assert (focal.focal_gamma, focal.class_balanced, focal.weights) == (2.0, True, (1.0, 1.0, 1e-4))


@pytest.mark.parametrize("condition", ["contour", "box"])
def test_lines_on_real_scans_are_three_pixels_wide(own, condition):
    cohort = RealCohort.of("radgenome", sources.load(own).radgenome)
    record, drawn = next(r for r in cohort.records["test"] if r.region == "heart"), []
    cohort.picture(record, condition, lambda scan, lines: drawn.extend(line for line, _ in lines))
    target = cohort.drawing(record, condition, load(cohort.folder / record.volume, check=False)).target
    line = {"contour": contour, "box": box_outline}[condition]
    assert np.array_equal(drawn[0], line(target, 3)) and not np.array_equal(drawn[0], line(target, 1))
