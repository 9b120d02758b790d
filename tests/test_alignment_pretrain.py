"""Pretraining on a handful of phantoms: it learns, resumes, stores what it scores; prompts lie where they belong."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ctvlm_lib import __main__ as command_line
from ctvlm_lib import alignment
from ctvlm_lib.alignment import arms, checkpoints, objectives
from ctvlm_lib.alignment.attributes import facts_of, similarity_by_facts
from ctvlm_lib.alignment.ceiling import ceiling, perfect_features, read_out
from ctvlm_lib.alignment.heads import Pairing
from ctvlm_lib.alignment.pretrain import Data, Pretraining, build, pretrain, thinned
from ctvlm_lib.alignment.prompted import (
    PLACE_CAPTIONS,
    as_picture,
    distractor_of,
    place_rows,
    prompted_pictures,
)
from ctvlm_lib.alignment.scans import Scans, batch_of
from ctvlm_lib.alignment.scoring import Predictions, marked_accuracy, marked_tokens, predict, recall_by_facts
from ctvlm_lib.alignment.tokens import shares
from ctvlm_lib.encoder import vit3d
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.retrieval import recalls
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.records import phantom
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.training import Training

TINY = Pretraining("tiny", batch=4, width=16, training=Training(steps=4, lr=3e-3, checkpoint_every=2))


def vectors(texts) -> torch.Tensor:
    """Stand-ins for a text tower's vectors: a function of each text, of unit spread."""
    seeds = [[*text.encode()] for text in texts]
    return torch.tensor(np.array([np.random.default_rng(seed).normal(size=24) for seed in seeds]), dtype=torch.float32)


@pytest.fixture(scope="module")
def data() -> Data:
    torch.set_num_threads(1)
    cohort = list(phantom.cohort(18, 5))
    scans = {"train": Scans.of(cohort[:10]), "validation": Scans.of(cohort[10:14]), "test": Scans.of(cohort[14:])}
    words = objectives.vocabulary() | {"place": list(PLACE_CAPTIONS), "focus": list(objectives.CAPTIONS)}
    reports = {split: vectors(some.reports) for split, some in scans.items()}
    return Data(scans, reports, {name: vectors(texts) for name, texts in words.items()})


@pytest.fixture(scope="module")
def dense(data):
    return pretrain(TINY, data, progress=False)


@pytest.fixture(scope="module")
def stored(dense, tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("stored") / "tiny", dense.model, dense.record)


def test_the_loss_falls_when_a_batch_is_seen_again_and_again(data):
    few = Data({"train": Scans.of(phantom.cohort(2, 5))}, {"train": data.reports["train"][:2]}, data.captions)
    again = replace(TINY, batch=2, training=Training(steps=14, lr=3e-3))
    losses = [row["loss"] for row in pretrain(again, few, progress=False).curve]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_every_part_of_the_dense_objective_trains_its_pairing(dense, data):
    before = build(TINY, data)
    for name in ("fine", "token", "organ", "sentence", "caption", "report"):
        assert all(name in row for row in dense.curve)
        assert not torch.equal(before.pairings[name].image.weight, dense.model.pairings[name].image.weight)


def test_killed_pretraining_resumes_to_the_same_curve(data, dense, tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        pretrain(TINY, data, folder=tmp_path, on_step=kill, progress=False)
    resumed = pretrain(TINY, data, folder=tmp_path, progress=False)
    for a, b in zip(resumed.curve, dense.curve, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.parametrize("encoder,loss", [("dcformer", "clip"), ("vit3d", "siglip")])
def test_reports_alone_train_either_encoder_with_either_loss(data, encoder, loss):
    config = replace(TINY, objective="report", encoder=encoder, loss=loss, training=Training(steps=1, lr=1e-3))
    result = pretrain(config, data, progress=False)
    assert set(result.model.pairings) == {"report"} and np.isfinite(result.curve[0]["loss"])


def test_a_prompted_encoder_starts_with_the_answers_of_the_grey_one(data, stored):
    grey, _ = checkpoints.load(stored)
    config = replace(TINY, objective="prompted", start=str(stored))
    coloured = build(config, data).eval()
    image = batch_of(data.scans["validation"], np.arange(2)).image
    with torch.inference_mode():
        a = grey.encoder.encode(torch.from_numpy(image))[1]
        b = coloured.encoder.encode(torch.from_numpy(as_picture(image)))[1]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # a third of each weight three times, in float32
    result = pretrain(replace(config, training=Training(steps=2, lr=1e-3)), data, progress=False)
    assert {"place", "focus"} <= set(result.curve[0])
    shares = marked_accuracy(result.model, data.scans["test"], data.captions["focus"])
    assert set(shares) == {"majority", "none", "contour", "box", "dual"}
    assert all(4 * share == int(4 * share) and 0 <= share <= 1 for share in shares.values())  # of four patients


def test_prompts_change_nothing_but_their_lines(data):
    batch = batch_of(data.scans["train"], np.arange(6))
    found = data.scans["train"].found[:6]
    picture, asked = prompted_pictures(batch.image, batch.region, found, np.random.default_rng(0), share=1.0)
    assert (asked >= 0).all()
    for k, region in enumerate(asked):
        changed = (picture[k] != as_picture(batch.image)[k]).any(axis=0)
        mask = batch.region[k] == region + 1
        lines = contour(mask, thickness=1) | box_outline(mask, thickness=1)
        other = distractor_of(batch.region[k], found[k], region)
        lines |= box_outline(batch.region[k] == other + 1, thickness=1)
        assert changed.any() and not (changed & ~lines).any()


def test_prompts_are_a_function_of_the_generator_and_left_out_as_often_as_asked(data):
    batch = batch_of(data.scans["train"], np.arange(4))
    found = data.scans["train"].found[:4]
    first, again = (prompted_pictures(batch.image, batch.region, found, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    plain, asked = prompted_pictures(batch.image, batch.region, found, np.random.default_rng(3), share=0.0)
    assert np.array_equal(plain, as_picture(batch.image)) and (asked == -1).all()


def test_a_distractor_is_chosen_without_looking_at_the_marked_region(data):
    scans = data.scans["train"]
    for k in range(4):
        for region in range(len(REGIONS)):
            healthy, ill = scans.found[k].copy(), scans.found[k].copy()
            healthy[region], ill[region] = 0, 1
            other = distractor_of(scans.region[k], healthy, region)
            assert other == distractor_of(scans.region[k], ill, region) != region
            assert scans.found[k][other] > 0 or not (np.delete(healthy, region) > 0).any()


def test_marked_and_other_tokens_are_told_apart(data):
    batch = batch_of(data.scans["train"], np.arange(2))
    share = shares(batch.region, len(REGIONS) + 1, (8, 8, 8))[:, 1:]
    liver = REGIONS.index("liver")
    rows, positive = place_rows(share, np.array([liver, -1]))
    assert (rows < 512).all()  # the second volume has no prompt
    assert np.array_equal(positive[:, 0], share[0, liver, rows] >= 0.5) and (positive.sum(axis=1) == 1).all()


class Seer:
    """Tokens that say how colourful the brightest voxel below them is, and nothing else."""

    encoder = SimpleNamespace(grids=lambda size: [(8, 8, 8), (2, 4, 4)])
    place = SimpleNamespace(texts=lambda captions: torch.eye(2), images=lambda tokens: tokens)
    pairings = {"place": place}

    def eval(self):
        return self

    def __call__(self, picture):
        colour = picture.amax(dim=1) - picture.amin(dim=1)  # 0 where grey
        seen = torch.nn.functional.max_pool3d(colour[:, None], (4, 8, 8)).flatten(2).mT  # (B, 512, 1)
        return [torch.cat([seen, torch.zeros_like(seen)], dim=2), None], None


def test_only_a_reader_who_sees_the_colours_tells_marked_tokens(data):
    areas = marked_tokens(Seer(), data.scans["train"], data.captions["place"])
    assert areas["none"] == 0.5
    assert min(areas["contour"], areas["box"], areas["dual"]) > 0.7


def test_prompted_training_needs_a_dense_start(data, tmp_path):
    with pytest.raises(BadInput, match="name it in start"):
        replace(TINY, objective="prompted")
    reports = pretrain(replace(TINY, objective="report", training=Training(steps=1, lr=1e-3)), data, progress=False)
    checkpoints.save(tmp_path / "r", reports.model, reports.record)
    with pytest.raises(BadInput, match="reports alone"):
        build(replace(TINY, objective="prompted", start=str(tmp_path / "r")), data)


def test_a_stored_model_is_the_same_to_16_bits_and_names_its_hash(dense, stored, data):
    model, record = checkpoints.load(stored)
    for name, tensor in dense.model.state_dict().items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(rounded, model.state_dict()[name])
    assert record["config"]["name"] == "tiny" and len(record["weights"]["sha256"]) == 64
    assert not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_that_does_not_fit_is_refused(dense, stored, tmp_path):
    with pytest.raises(BadInput, match="no checkpoint 'nowhere'"):
        checkpoints.load("nowhere")
    checkpoints.save(tmp_path / "a", dense.model, {})
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    record["model"]["encoder"]["class"] = "ResNet"
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="an encoder 'ResNet'"):
        checkpoints.load(tmp_path / "a")
    del record["model"]
    (tmp_path / "a" / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="isn't of an aligned encoder"):
        checkpoints.load(tmp_path / "a")
    wanted = {"a": torch.zeros(2), "b": torch.zeros(1), "d": torch.zeros(1)}
    given = {"a": torch.zeros(3), "c": torch.zeros(1), "d": torch.full((1,), float("nan"))}
    with pytest.raises(BadInput) as told:
        checkpoints.check_tensors(given, wanted, "x")
    for row in ("missing          1  b", "not expected     1  c", "a (3,), not (2,)", "not finite       1  d"):
        assert row in str(told.value)


def test_predictions_hold_what_the_tables_say(dense, data, tmp_path):
    found = predict(dense.model, data.scans["train"], data.scans["test"], data.reports["test"])
    again = Predictions.load(found.save(tmp_path / "p.safetensors"))
    assert again.ceiling() == found.ceiling() and again.recalls() == found.recalls()
    with pytest.raises(BadInput, match="can't be read"):
        (tmp_path / "q").write_bytes(b"")
        Predictions.load(tmp_path / "q")


def test_the_ceiling_of_perfect_features_is_high_and_of_none_is_chance(data):
    cohort = data.scans["train"]
    perfect = (cohort, perfect_features(cohort, (8, 8, 8)))
    assert ceiling(read_out(perfect, perfect), resamples=20).four_way > 0.9
    rows, features = perfect[1]
    rng = np.random.default_rng(0)
    blank, scored = ((cohort, (rows, rng.normal(size=features.shape))) for _ in range(2))
    assert ceiling(read_out(blank, scored), resamples=20).four_way == pytest.approx(0.25, abs=0.2)  # 100 regions


def invented(n: int, seed: int) -> Scans:
    """Patients without images: random findings and poses."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 4, (n, len(REGIONS))).astype(np.int8)
    facts = tuple(
        {"prone": bool(rng.integers(2)), "rotation_deg": rng.normal(), "scale": rng.normal(), "fat_mm": rng.normal(),
         "shift_mm": tuple(rng.normal(size=3)), "phase": "arterial", "effusion": False, "cardiomegaly": False}
        for _ in range(n)
    )  # fmt: skip
    nothing = np.zeros((n, 1, 1, 1), np.uint8)
    return Scans(tuple(map(str, range(n))), nothing, nothing, nothing, found, tuple(map(str, found.tolist())), facts)


def test_findings_find_reports_better_than_pose_does():
    train, test = invented(200, 0), invented(60, 1)
    mix = np.random.default_rng(2).normal(size=(facts_of(test, ("findings",)).shape[1], 24)).astype(np.float32)
    told = [torch.from_numpy(facts_of(scans, ("findings",)) @ mix) for scans in (train, test)]
    first = {}
    for which in ("pose", "findings"):
        similarity = similarity_by_facts(train, told[0], test, told[1], (which,))
        first[which] = recalls(similarity, test.reports, (60,), (1,), resamples=10)[0].recall
    assert first["findings"] > 0.9 and first["pose"] < 0.2
    with pytest.raises(BadInput, match="facts are any of"):
        facts_of(test, ("colour",))


def test_at_first_a_pair_is_held_for_true_as_often_as_pairs_are():
    pairing = Pairing(8, 8, 8, rivals=12)
    assert torch.sigmoid(pairing.bias).item() == pytest.approx(1 / 12)
    assert pairing.log_temperature.exp().item() == pytest.approx(10)


def test_a_long_curve_is_thinned_and_keeps_its_end():
    curve = [{"step": k + 1, "loss": 1 / (k + 1), "seconds": 0.0} for k in range(1003)]
    rows = thinned(curve)
    assert len(rows) <= 64 and rows[-1]["step"] == 1003


def test_the_arms_are_matched():
    assert arms.ARMS["B"].training == arms.ARMS["A-continued"].training
    assert arms.ARMS["B"].batch == arms.ARMS["A-continued"].batch
    seen = {a.batch * a.training.steps for a in arms.ARMS.values() if a.objective == "report" and not a.corpus}
    assert len(seen) == 1
    with pytest.raises(BadInput, match="no arm is called"):
        arms.run("C")


@pytest.mark.parametrize("objective", ["dense", "prompted"])
def test_an_encoder_of_two_grids_is_refused_where_three_are_asked(objective):
    assert len(vit3d("phantom").strides_dhw()) == 2  # the sentence's reason
    with pytest.raises(BadInput, match=f"the objective {objective} asks three grids of tokens, and vit3d has two"):
        replace(TINY, objective=objective, encoder="vit3d", start="A")


@pytest.mark.parametrize("patients", [-1, 5000])
def test_more_patients_than_there_are_are_refused(patients):
    with pytest.raises(BadInput, match=f"{patients} patients to learn from, but there are 800"):
        Data.of(replace(TINY, patients=patients))


def test_readers_without_an_image_are_an_arm_of_the_command(tmp_path, monkeypatch):
    some = Scans.of(phantom.cohort(50, 5))  # the smallest gallery
    train = some, vectors(some.reports)
    data = Data(*(dict.fromkeys(("train", "validation", "test"), one) for one in train), {})
    monkeypatch.setattr(arms.Data, "of", lambda config, splits: data)
    assert command_line.main(["arm", "retrieval-by-facts", "--out", str(tmp_path)]) == 0
    stored = pd.read_csv(next(tmp_path.rglob("retrieval-by-facts/test.csv")))
    assert len(stored)
    pd.testing.assert_frame_equal(stored, recall_by_facts(*train, *train))


def test_an_arm_takes_changes_by_the_name_of_the_setting():
    config = arms.recipe_of("A", "quick", 5, {"steps": 3, "patients": 7, "lr": 1e-3})
    assert (config.training.steps, config.training.lr, config.patients, config.training.seed) == (3, 1e-3, 7, 5)
    with pytest.raises(BadInput, match="A has no setting 'epochs'"):
        arms.recipe_of("A", "quick", 0, {"epochs": 1})


def test_a_light_import_of_the_package_gives_the_names_that_stay():
    assert callable(alignment.siglip_loss)


def test_a_finished_arm_leaves_what_its_table_is_computed_from(data, tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "ARMS", {"tiny": replace(TINY, training=Training(steps=1, lr=1e-3))})
    places = {"checkpoint_folder": tmp_path / "checkpoints", "results": tmp_path / "results"}
    result = arms.run("tiny", data, progress=False, **places)
    home = tmp_path / "results" / "tiny"
    table = pd.read_csv(home / "test.csv")
    again = Predictions.load(home / "test.safetensors").table(arm="tiny", split="test")
    pd.testing.assert_frame_equal(table, again, check_dtype=False)
    assert (table["ceiling"] == round(result.record["test"]["ceiling"]["four_way"], 4)).all()
    assert sum(file.stat().st_size for file in home.iterdir()) < 200_000
    _, record = checkpoints.load(tmp_path / "checkpoints" / "tiny")
    assert record["data"]["splits"]["train"]["patients"] == 10 and record["test"] == result.record["test"]
