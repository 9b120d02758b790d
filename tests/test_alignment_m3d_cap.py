"""Pretraining in profile paper, end to end on a miniature M3D-Cap with tiny random towers; and the released layout."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_m3d_cap import SIZE, make_bert, make_copy, released_file, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ctvlm_lib import __main__ as command_line
from ctvlm_lib.alignment import arms
from ctvlm_lib.alignment.m3d_cap import Captioned, Corpus, Loader, augmented, drawn, read, resized
from ctvlm_lib.alignment.m3d_pretrain import Retrieved, build_for, predict_captions
from ctvlm_lib.alignment.pretrain import Data, pretrain
from ctvlm_lib.alignment.recipe import Pretraining, paper
from ctvlm_lib.alignment.two_towers import load_two_towers, released_tensors
from ctvlm_lib.encoder import dcformer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import m3d
from ctvlm_lib.training import Step

NANO = {"variant": "nano"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.set_num_threads(1)
    return make_bert(tmp_path_factory.mktemp("hub") / "ClinicalBERT")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return make_copy(tmp_path_factory.mktemp("data") / "M3D")


@pytest.fixture
def config(copy, bert):
    return tiny(copy, bert)


@pytest.fixture(scope="module")
def finished(copy, bert, tmp_path_factory):
    """What `ctvlm arm dcformer-siglip-m3d --profile paper --data DIR` leaves, at miniature size."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        recipe = replace(tiny("", bert), name="dcformer-siglip-m3d")
        patch.setattr(arms, "ARMS", arms.ARMS | {recipe.name: recipe})
        arm = ["arm", recipe.name, "--profile", "paper", "--data", str(copy), "--seed", "3", "--out", str(out)]
        assert command_line.main(arm) == 0
    return out / "paper"


NAME = "dcformer-siglip-m3d-seed3"


def test_the_arm_leaves_tables_that_follow_from_its_predictions(finished):
    home = finished / "results" / NAME
    assert {p.name for p in home.iterdir()} == {"record.json", "test.csv", "test.safetensors", "validation.csv",
                                                "validation.safetensors"}  # fmt: skip
    again = Retrieved.load(home / "test.safetensors").table(arm=NAME, split="test")
    pd.testing.assert_frame_equal(pd.read_csv(home / "test.csv"), again, check_dtype=False)
    assert set(again["direction"]) == {"image→text", "text→image"} and set(again["gallery"]) == {4}


def test_the_record_says_what_was_trained_and_on_what_and_no_folder(finished, copy, bert):
    text = (finished / "results" / NAME / "record.json").read_text()
    record = json.loads(text)
    used = record["config"]["training"]
    assert (used["steps"], used["lr"], used["weight_decay"], used["warmup_share"], used["seed"]) == (
        2,
        1e-4,
        0.1,
        0.03,
        3,
    )
    assert {split: row["volumes"] for split, row in record["data"]["splits"].items()} == {
        "train": 9, "validation": 3, "test": 4
    }  # fmt: skip
    assert any("split anew by patient" in note for note in record["data"]["notes"])
    assert len(record["curve"]) == 2 and record["config"]["corpus"]["folder"] == "M3D"
    assert str(copy) not in text and str(bert) not in text


def test_both_towers_learn_and_what_is_stored_is_read_back(finished, config, copy, bert):
    file = finished / "checkpoints" / NAME
    model, fit = load_two_towers(file, **NANO)
    assert fit.exact and not model.training
    before, after = (
        released_tensors(build_for(replace(config, training=replace(config.training, seed=3)))),
        released_tensors(model),
    )
    for part in ("vision_encoder.encoder.s4", "language_encoder.transformer", "mm_vision_proj", "mm_language_proj"):
        assert any(k.startswith(part) and not torch.equal(before[k], after[k]) for k in after), part
    assert not torch.equal(before["t_prime"], after["t_prime"]) and not torch.equal(before["bias"], after["bias"])
    said = Retrieved.load(finished / "results" / NAME / "test.safetensors")
    again = predict_captions(model, read(config.corpus)[0]["test"], batch=3)
    assert all(np.array_equal(getattr(said, k), getattr(again, k)) for k in ("image", "text", "identity"))


def test_a_killed_run_resumes_to_the_same_losses(config, tmp_path):
    class Killed(Exception):
        pass

    whole = pretrain(config, progress=False).curve
    first = []

    def cut_in_the_second(row):
        first.append(row)
        if len(first) == 2:
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, folder=tmp_path / "run", on_step=cut_in_the_second, progress=False)
    resumed = pretrain(config, folder=tmp_path / "run", progress=False).curve
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


def test_the_first_loss_is_the_papers_equation_on_that_batch(config):
    config = replace(config, training=replace(config.training, precision="no"))
    loss = pretrain(config, progress=False).curve[0]["loss"]
    data, model = read(config.corpus)[0]["train"], build_for(config).train()
    with Loader(data, 4, "released", 1) as loader:
        index, volumes = loader(Step(0, 0))
    tensors = released_tensors(model)
    vectors = [model.encoder.encode(volumes)[1], model.text_vectors([data.reports[k] for k in index])]
    x, y = (
        torch.nn.functional.normalize(v @ tensors[f"mm_{part}_proj.weight"].T + tensors[f"mm_{part}_proj.bias"], dim=1)
        for v, part in zip(vectors, ("vision", "language"), strict=True)
    )
    total = 0.0
    for i, row in enumerate(x):
        for j, column in enumerate(y):
            z = 1 if data.reports[index[i]] == data.reports[index[j]] else -1
            total -= math.log(1 / (1 + math.exp(-z * ((row @ column).item() / 0.07))))
    assert loss == pytest.approx(total / 4, rel=1e-4)  # float32 in another order


def test_the_transformer_with_clips_loss_trains_and_has_no_bias(config):
    shape = {"variant": "phantom", "size_dhw_vox": (32, 64, 64)}
    other = replace(config, encoder="vit3d", loss="clip", corpus=replace(config.corpus, **shape))
    before, after = released_tensors(build_for(other)), released_tensors(pretrain(other, progress=False).model)
    assert "bias" not in after and float(before["logit_scale"]) == pytest.approx(1 / 0.07)
    assert {k.split(".")[0] for k in after if not torch.equal(before[k], after[k])} == {k.split(".")[0] for k in after}


def test_temperature_and_bias_start_as_the_recipe_says(config):
    started = released_tensors(build_for(replace(config, init="siglip")))
    assert (float(started["t_prime"]), float(started["bias"])) == pytest.approx((math.log(10), -10))


def test_a_frozen_text_tower_stays_and_the_rest_learns(config):
    frozen = replace(config, corpus=replace(config.corpus, train_text=False))
    before, after = released_tensors(build_for(frozen)), released_tensors(pretrain(frozen, progress=False).model)
    moved = {k.split(".")[0] for k in after if not torch.equal(before[k], after[k])}
    assert moved == {"vision_encoder", "mm_vision_proj", "mm_language_proj", "t_prime", "bias"}


def test_released_weights_are_a_start_or_only_scored(config, bert, tmp_path):
    tensors = released_file(tmp_path / "model.safetensors", bert, dcformer("nano", seed=1), t_prime=2.0, bias=-1.0)
    start = replace(config, start=str(tmp_path / "model.safetensors"))
    scored = pretrain(replace(start, corpus=replace(config.corpus, epochs=0)), progress=False)
    assert scored.curve == [] and torch.equal(released_tensors(scored.model)["bias"], tensors["bias"])
    trained = pretrain(start, progress=False)
    moved = released_tensors(trained.model)["bias"] - tensors["bias"]
    assert 0 < abs(float(moved)) < 1e-3 and trained.record["config"]["start"] == "model.safetensors"
    with pytest.raises(BadInput, match="with another loss than 'clip'"):
        build_for(replace(start, loss="clip"))


def test_an_arm_that_only_scores_stores_tables_and_no_weights(finished, bert, copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arms, "ARMS", {"x": replace(tiny(copy, bert), name="x")})
    options = ["--profile", "paper", "--epochs", "0", "--start", str(finished / "checkpoints" / NAME)]
    assert command_line.main(["arm", "x", *options, "--out", str(tmp_path)]) == 0
    home = tmp_path / "paper"
    assert not (home / "checkpoints").exists() and "weights" not in capsys.readouterr().out
    scored = home / "results" / "x-epochs0-startdcformer_siglip_m3d_seed3"
    said, before = (Retrieved.load(p / "test.safetensors") for p in (scored, finished / "results" / NAME))
    assert np.array_equal(said.image, before.image) and np.array_equal(said.text, before.text)


def test_options_of_the_arm_are_changes_of_its_recipe(monkeypatch):
    seen = {}

    def run(name, **options):
        seen.update(options)
        raise BadInput("enough")

    monkeypatch.setattr(arms, "run", run)
    options = ["--data", "D", "--size", "64x32x16", "--batch", "64", "--frozen-text", "--check", "--workers", "3"]
    assert command_line.main(["arm", "dcformer-siglip-m3d", "--profile", "paper", *options]) == 2
    assert seen["changes"] == {"folder": "D", "size_dhw_vox": (64, 32, 16), "batch": 64, "train_text": False,
                               "check": True, "workers": 3}  # fmt: skip
    assert seen["label"] == "dcformer-siglip-m3d-batch64-size64x32x16-textTrainedFalse"
    config = arms.recipe_of("dcformer-siglip-m3d", "paper", 0, seen["changes"])
    assert (config.batch, config.corpus.size_dhw_vox, config.corpus.train_text) == (64, (64, 32, 16), False)


def test_reading_lists_what_is_there_and_loads_nothing(config, monkeypatch):
    monkeypatch.setattr(m3d, "load_array", lambda path: pytest.fail("read a volume"))
    data, notes = read(config.corpus)
    assert repr(data["train"]) == "Captioned(9 volumes of 4 cases, 4 texts, read as 64×64×64)"
    assert data["train"].volumes[0].endswith("Axial_phase_0.nii.gz")
    whole, told = read(replace(config.corpus, whole_cases=True))
    assert len(whole["train"]) == 7 and "2 training volumes of cases in other splits left out" in told
    assert data["train"].digest() != whole["train"].digest() and notes != told


def test_only_this_step_and_the_next_are_in_memory(config, monkeypatch):
    seen, load = [], m3d.load_array
    monkeypatch.setattr(m3d, "load_array", lambda path: (seen.append(path), load(path))[1])
    with Loader(read(config.corpus)[0]["train"], 2, "none", 1) as loader:
        loader(Step(0, 0))
    assert len(seen) <= 4


def test_missing_volumes_are_named_and_damaged_ones_stop_training(bert, tmp_path):
    folder = make_copy(tmp_path)
    gone, broken = (f"M3D_Cap_npy/ct_case/000002/Axial_phase_{k}.npy" for k in (0, 1))
    (folder / gone).unlink()
    (folder / broken).write_bytes((folder / broken).read_bytes()[:500])
    data, notes = read(tiny(folder, bert).corpus)
    assert gone not in data["train"].volumes and f"1 file not there, left out: {gone}" in notes
    with pytest.raises(BadInput, match="000002/Axial_phase_1.npy can't be used: .*No other volume is taken"):
        pretrain(replace(tiny(folder, bert), batch=8), progress=False)
    data, notes = read(tiny(folder, bert, check=True).corpus)
    assert broken not in data["train"].volumes and f"1 file damaged, left out: {broken}" in notes
    for file in (*folder.glob("M3D_Cap_npy/ct_case/000006/*.npy"), *folder.glob("M3D_Cap_npy/ct_quizze/*/*.npy")):
        file.unlink()
    with pytest.raises(BadInput, match="no volume of M3D-Cap's test split with its text is there; 7 files are missing"):
        read(tiny(folder, bert).corpus)


def test_a_step_is_the_same_in_any_number_of_processes_parts_and_threads(config):
    data = read(config.corpus)[0]["train"]

    def batch(world, parts, workers, number=1):
        found = []
        for part in range(parts):
            for rank in range(world):
                with Loader(data, 4, "released", workers) as loader:
                    found.append(loader(Step(number, 7, rank, world, part, parts)))
        return np.concatenate([k for k, _ in found]), torch.cat([v for _, v in found])

    index, volumes = batch(1, 1, 1)
    for other in (batch(2, 1, 3), batch(1, 2, 1), batch(2, 2, 2)):
        assert np.array_equal(index, other[0]) and torch.equal(volumes, other[1])


@given(count=st.integers(4, 60), batch=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_an_epoch_shows_no_volume_twice_and_another_has_another_order(count, batch, seed):
    each = count // batch
    epochs = [np.concatenate([drawn(count, batch, Step(e * each + k, seed)) for k in range(each)]) for e in range(3)]
    assert all(len(set(e.tolist())) == each * batch and e.max() < count for e in epochs)
    assert count < 20 or not np.array_equal(epochs[0], epochs[1])


def test_resizing_is_that_of_monai():
    from monai.transforms import Resize

    array = np.random.default_rng(0).random((9, 20, 14), dtype=np.float32)
    theirs = Resize((16, 32, 32), mode="trilinear")(array[None])[0]
    np.testing.assert_allclose(resized(array, (16, 32, 32)), np.asarray(theirs), atol=1e-6)


@given(seed=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_augmenting_moves_voxels_and_changes_all_by_one_line(seed):
    volume = np.random.default_rng(1).random((3, 4, 4), dtype=np.float32)
    again = augmented(volume, np.random.default_rng(seed))
    assert again.shape == volume.shape
    a, b = np.sort(volume, axis=None), np.sort(again, axis=None)
    scale, shift = np.polyfit(a, b, 1)
    assert 0.89 < scale < 1.11 and -0.11 < shift < 0.11
    np.testing.assert_allclose(scale * a + shift, b, atol=1e-5)
    assert augmented(np.zeros((2, 3, 4), np.float32), np.random.default_rng(seed)).shape == (2, 3, 4)


def test_recall_counts_equal_texts_or_as_published_the_own_text():
    identity = np.array([0, 0, 1, 1], np.int32)
    vectors = np.eye(4, dtype=np.float16)[[1, 0, 3, 2]]
    said = Retrieved(np.eye(4, dtype=np.float16), vectors, identity)  # each volume finds its neighbour's equal text
    assert [r.recall for r in said.recalls("equal texts", 10) if r.k == 1] == [1, 1]
    assert [r.recall for r in said.recalls("own text", 10) if r.k == 1] == [0, 0]
    many = np.random.default_rng(0).normal(size=(520, 8)).astype(np.float16)
    table = Retrieved(many, many, np.arange(520, dtype=np.int32)).table()
    assert set(table["gallery"]) == {100, 500} and set(table["k"]) == {1, 5, 10}


def test_the_papers_recipe_is_the_default():
    config = arms.ARMS["dcformer-siglip-m3d"]
    assert (config.corpus, config.profile, config.objective) == (Corpus(), "paper", "report")
    assert (config.corpus.size_dhw_vox, config.corpus.variant, config.corpus.epochs) == ((128, 256, 256), "small", 100)
    assert (config.text, config.corpus.train_text, config.width, config.batch) == ("clinicalbert", True, 768, 8 * 64)
    assert (config.training.lr, config.training.weight_decay, config.training.warmup_share) == (1e-4, 0.1, 0.03)


def test_what_does_not_go_together_is_refused(copy):
    with pytest.raises(BadInput, match="has reports and no masks and belongs to profile paper"):
        Pretraining("x", "report", corpus=Corpus())
    with pytest.raises(BadInput, match="with epochs=0 nothing is trained"):
        paper("x", epochs=0)
    with pytest.raises(BadInput, match="augment is 'all'"):
        Corpus(augment="all")
    with pytest.raises(BadInput, match="epochs are 0 or more"):
        Corpus(workers=0)
    with pytest.raises(BadInput, match="say where your copy of M3D-Cap lies"):
        pretrain(paper("x"))
    with pytest.raises(BadInput, match="not on the cohort: run an arm whose name ends in -m3d"):
        Data.of(Pretraining("x", "report", profile="paper"))
    with pytest.raises(BadInput, match="in no other profile; got arm 'dcformer-siglip-m3d' and profile 'full'"):
        arms.run("dcformer-siglip-m3d")
    with pytest.raises(BadInput, match="goes by epochs over all volumes"):
        arms.run("dcformer-siglip-m3d", profile="paper", changes={"steps": 3})
    with pytest.raises(BadInput, match="larger than the 2 training volumes"):
        Loader(Captioned(copy, ("a", "b"), ("a", "b"), ("a", "b"), SIZE), 4)
    with pytest.raises(BadInput, match="can't be read as predictions"):
        Retrieved.load(copy / "M3D_Cap_npy" / "M3D_Cap.json")
