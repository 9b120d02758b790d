"""MedVista3D in profile paper, end to end on a miniature CT-RATE and RadGenome-ChestCT and a tiny CXR-BERT."""

import json
import shutil
import weakref
from dataclasses import replace

import helpers_pairs
import numpy as np
import pandas as pd
import pytest
import torch
from helpers_ct import command_line, write_nifti
from helpers_data import SHAPE, chest_hu, write

from ctvlm_lib import sources
from ctvlm_lib.alignment import radgenome_pairs, radgenome_training
from ctvlm_lib.alignment.clip import clip_loss
from ctvlm_lib.alignment.m3d_cap import drawn
from ctvlm_lib.alignment.radgenome_cost import cost, kept_by_block
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome, on_radgenome
from ctvlm_lib.alignment.radgenome_texts import region_by_presences, report_by_labels
from ctvlm_lib.alignment.radgenome_training import PairLoader, StreamedObjective, build
from ctvlm_lib.alignment.radgenome_volumes import Volumes, field_of, prepare_all
from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.alignment.text_vectors import TextVectors
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import local_global, local_global_real
from ctvlm_lib.experiments.local_global import Said
from ctvlm_lib.experiments.local_global_real_data import read
from ctvlm_lib.experiments.local_global_real_tables import table
from ctvlm_lib.ledger import published, rows
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.records import ct_rate
from ctvlm_lib.training import Step
from ctvlm_lib.volume import load, recipe

SIZE, GRID = (8, 8, 8), (4, 4, 4)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.set_num_threads(1)
    return helpers_pairs.make_all(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def given(file):
    return sources.load(file)


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """What `ctvlm arm align-global --profile paper --sources FILE` leaves, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("builtins.print", lambda *words, **_: told.append(" ".join(map(str, words))))
        assert command_line("arm", "align-global", "--profile", "paper", "--sources", file, "--out", out) == 0
    return out / "paper", "\n".join(told)


@pytest.fixture(scope="module")
def corpora(given, tmp_path_factory):
    return read(config_of(given), given, tmp_path_factory.mktemp("home"))


def config_of(given, **changes) -> OnRadGenome:
    return local_global_real.config_of("align-full", given, changes=changes)


def pair_of(pairs, name: str):
    return next(pair for split in pairs.values() for pair in split.each if pair.name == name)


@pytest.fixture
def pairs(given):
    return radgenome_pairs.read(given.ct_rate, given.radgenome, config_of(given))


def test_the_command_says_what_it_costs_and_what_is_not_there(finished):
    told = finished[1]
    assert "with all of the paper's training volumes:\n12,064 steps of 4" in told and "TFLOP a volume" in told
    assert "train: 1 volume without any region's sentence, aligned with the report alone: train_3_a_1" in told
    assert "train: 10 volumes without a mask of the pleura, where that region isn't aligned: train_1_a_1" in told
    assert "validation: 3 volumes of 3 patients held out of training" in told
    assert "test: volumes ready: 5 of 5" in told


def test_scores_are_stored_and_the_table_follows_from_them(finished):
    folder = finished[0] / "results" / "align-global"
    assert sorted(path.name for path in folder.iterdir()) == [
        "record.json", "table.csv", "test.npz", "truth-test.npz", "truth-validation.npz", "validation.npz",
    ]  # fmt: skip
    said = [Said.load(folder / f"{split}.npz") for split in ("validation", "test")]
    truth = [dict(np.load(folder / f"truth-{split}.npz")) for split in ("validation", "test")]
    assert said[1].volume.shape == (2, 5, 18) and said[1].region.shape == said[1].cut_out.shape == (2, 5, 16)
    again, notes = table(said[0], truth[0], said[1], truth[1])
    stored = pd.read_csv(folder / "table.csv")
    assert np.allclose(stored["value"], again["value"], atol=1e-6) and not notes
    assert set(stored["reading"]) == {"mask pooled", "cut out"} and len(stored) == 2 * 2 * 12
    for k, pair in enumerate(truth[1]["names"]):
        assert truth[1]["labels"][k].tolist() == [bool(int(pair.split("_")[1]) >> n % 3 & 1) for n in range(18)]


def test_the_ledger_shows_them_beside_the_published_numbers_with_what_is_otherwise(finished):
    results = Results(real=finished[0] / "results")
    found = rows.ledger(published.table("medvista3d.T4"), results).set_index(["row", "column"])
    row = found.loc[("Global Alignment", "AUC")]
    stored = pd.read_csv(finished[0] / "results" / "align-global" / "table.csv")
    wanted = stored[(stored["measure"] == "global AUROC") & (stored["wording"] == "affirmed")]["value"].iloc[0]
    assert row["ours"] == pytest.approx(wanted) and row["kind"] == "data" and row["patients"] == 5
    assert row["command"] == "ctvlm arm align-global --profile paper --sources FILE"
    assert "text tower frozen, thresholds from held-out training patients, bank, batch" in row["why"]


def test_the_record_names_data_and_recipe_and_no_folder(finished, given):
    text = (finished[0] / "results" / "align-global" / "record.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert {split: one["volumes"] for split, one in record["data"]["splits"].items()} == {
        "train": 7, "validation": 3, "test": 5,
    }  # fmt: skip
    assert record["data"]["splits"]["train"]["RadGenome-ChestCT's own volumes"] == 6
    assert record["on_radgenome"]["recipe"]["parts"] == ["global"] and record["cost"]["steps"] == 2
    assert given.ct_rate not in text and given.cxr_bert not in text


def test_a_killed_run_goes_on_to_the_same_model_with_volumes_kept_or_not(corpora, given, tmp_path):
    config = config_of(given, epochs=4).for_volumes(7)
    whole, curve, _ = radgenome_training.fit(config, corpora["train"], progress=False)

    class Killed(Exception):
        pass

    def in_the_third(row):
        if row["step"] == 3:
            raise Killed

    unkept = replace(corpora["train"], volumes=replace(corpora["train"].volumes, folder=""))
    with pytest.raises(Killed):
        radgenome_training.fit(config, corpora["train"], folder=tmp_path, on_step=in_the_third, progress=False)
    again, resumed, measured = radgenome_training.fit(config, unkept, folder=tmp_path, progress=False)
    assert len(resumed) == 4 and [row["loss"] for row in resumed] == [row["loss"] for row in curve]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert 0 <= measured["own_text_share"] <= 1 and len(again.bank) > 0


def test_the_first_loss_is_that_of_the_drawn_volumes_and_their_reports(corpora, given):
    config = config_of(given).for_volumes(7)
    config = replace(config, recipe=replace(config.recipe, parts=("global",)))
    corpus, model = corpora["train"], build(config, corpora["train"].texts.channels)
    with PairLoader(corpus, 4, 2) as loader:
        loss = StreamedObjective(config.recipe, corpus, loader)(model, Step(0, 0))["global"].detach()
    index = drawn(7, 4, Step(0, 0))
    pictures = torch.from_numpy(np.stack([corpus.item(k).volume.astype(np.float32) for k in index]))[:, None]
    tower = TextTower(given.cxr_bert, "paper", cache=corpus.texts.file.parent)
    reports = model.pairing.texts(tower.embed([corpus.pairs.each[k].report for k in index], cut=True))
    whole = clip_loss(model.volumes(pictures), reports, model.pairing.log_temperature)
    assert float(loss) == pytest.approx(0.5 * float(whole.detach()))


def test_no_more_volumes_are_held_than_two_batches_however_many_there_are(corpora, monkeypatch):
    seen, one = [], PairLoader._one

    def watched(self, *where):
        array = one(self, *where)
        seen.append(weakref.ref(array))
        return array

    monkeypatch.setattr(PairLoader, "_one", watched)
    with PairLoader(corpora["train"], 2, 1) as loader:
        for number in range(9):
            loader(Step(number, 0))
            assert sum(ref() is not None for ref in seen) <= 4 and len(loader._shares) <= 2
    assert 18 <= len(seen) <= 20  # nine steps, and what was read ahead when the loader was closed


def test_the_field_is_that_of_the_paper_s_recipe(given, pairs):
    scan = load(pair_of(pairs, "train_1_a_1").volume)
    values = recipe.scale_range(field_of(scan, (96, 320, 320)).hu, -1000, 1000, to=(-1, 1))
    assert np.array_equal(values, recipe.RECIPES["MedVista3D"](scan)[0, 0])


def test_shares_and_boxes_are_counted_as_a_plain_loop_counts(given, pairs):
    pair, r = pair_of(pairs, "train_1_a_1"), 10
    item = Volumes(config_of(given).regions, SIZE, GRID).item(pair)
    scan, inside = load(pair.volume), np.zeros(SIZE, bool)
    field = field_of(scan, SIZE)
    array = np.zeros(SHAPE, bool)
    array[helpers_pairs.PLACES["aorta"][2]] = True
    marked = array.transpose(2, 1, 0)  # (x, y, z), x and y from the patient's left and back, as LPS has them
    for at in np.ndindex(SIZE):
        k, j, i = np.rint(scan.voxel_of(field.mm_of(at))).astype(int)
        inside[at] = all(0 <= n < m for n, m in zip((k, j, i), marked.shape, strict=True)) and marked[k, j, i]
    assert inside.any()
    for token, (d, h, w) in enumerate(np.ndindex(GRID)):
        cell = inside[2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        assert item.share()[r, token] == cell.mean()
    low, high = np.argwhere(inside).min(axis=0), np.argwhere(inside).max(axis=0) + 1
    assert item.boxes[r].tolist() == np.stack([low, high], axis=1).tolist()
    cut, sides = item.cut_out(r), high - low
    first = (np.array(SIZE) - sides) // 2
    middle = tuple(slice(a, a + s) for a, s in zip(first, sides, strict=True))
    assert (
        np.array_equal(cut[middle], item.volume[tuple(map(slice, low, high))])
        and (cut == -1).sum() >= 512 - sides.prod()
    )


@pytest.fixture
def changed(given, pairs, tmp_path):
    """One pair, with its files where they can be changed, and volumes that are kept in a folder of their own."""
    pair = pair_of(pairs, "train_1_a_1")
    masks = tuple(None if m is None else tmp_path / f"{k}_{m.name}" for k, m in enumerate(pair.masks))
    for old, new in ((pair.volume, tmp_path / pair.volume.name), *zip(pair.masks, masks, strict=True)):
        if old is not None:
            shutil.copy(old, new)
    moved = replace(pair, volume=tmp_path / pair.volume.name, masks=masks)
    return moved, Volumes(config_of(given).regions, SIZE, GRID, str(tmp_path / "kept"))


HEART = 4


def test_a_mask_without_geometry_stands_voxel_for_voxel_and_another_scan_s_is_told(changed):
    pair, volumes = changed
    right = volumes.item(pair)
    array = np.zeros(SHAPE, np.uint8)
    array[helpers_pairs.PLACES["heart"][2]] = 1
    write_nifti(pair.masks[HEART], array)  # an affine that says nothing
    again = volumes.item(pair)
    assert np.array_equal(right.voxels, again.voxels) and right.voxels[HEART].any() and not again.notes
    for own, affine in ((False, np.eye(4)), (True, np.diag([-0.8, -0.7, 2.5, 1.0]) + np.eye(4, k=3) * 90)):
        write_nifti(pair.masks[HEART], array, affine)
        other = volumes.item(replace(pair, own=own))
        assert not other.voxels[HEART].any() and "covers another part of the patient" in other.notes[0]


def test_a_region_outside_the_field_is_told_once_and_not_aligned(changed):
    pair, volumes = changed
    write(pair.masks[HEART], np.zeros(SHAPE, np.uint8))
    item = volumes.item(pair)
    assert item.notes == ("train_1_a_1: no voxel of the heart lies in the field, so it isn't aligned",)
    assert volumes.prepare(pair) == ("", item.notes) and not item.voxels[HEART].any()


def test_a_damaged_volume_is_left_out_where_volumes_are_kept_and_stops_where_they_are_not(changed):
    pair, volumes = changed
    pair.volume.write_bytes(pair.volume.read_bytes()[:-60])
    with pytest.raises(BadInput, match="train_1_a_1 can't be used: .*No other volume is taken in its place"):
        replace(volumes, folder="").item(pair)
    [(why, _)] = prepare_all([pair], volumes, 1, (0, 1), lambda done: None)
    assert "fetch or" in why and volumes.prepare(pair)[0] == why  # the second time it is known
    write(pair.volume, chest_hu())
    assert volumes.prepare(pair) == ("", ())  # mended


def test_a_kept_volume_is_read_and_made_anew_when_it_is_cut_short_or_its_files_change(changed, monkeypatch):
    pair, volumes = changed
    first = volumes.item(pair)
    [file] = (path for path in volumes._file(pair).parent.iterdir())
    assert file.stat().st_size >= volumes.bytes_each()
    with monkeypatch.context() as patch:
        patch.setattr(Volumes, "_made", lambda *_: pytest.fail("made again"))
        assert np.array_equal(volumes.item(pair).volume, first.volume)
    file.write_bytes(file.read_bytes()[:-9])
    assert np.array_equal(volumes.item(pair).volume, first.volume)
    write(pair.volume, chest_hu() + np.int16(100))
    assert volumes.item(pair).volume.mean() > first.volume.mean()


def test_volumes_come_from_radgenome_else_from_ct_rate_and_texts_from_both(given, pairs):
    one, other = pair_of(pairs, "train_1_a_1"), pair_of(pairs, helpers_pairs.FROM_CT_RATE)
    assert one.own and "train_preprocessed" in str(one.volume) and not other.own and "train_fixed" in str(other.volume)
    assert one.report == "Nodule 1. The heart is normal."
    regions = config_of(given).regions
    said = dict(zip(regions, one.sentences, strict=True))
    assert said["lung"] == "The lung is normal, 1." and said["pleura"] == "-"
    assert said["mediastinum"] == said["aorta"] == "The aorta is normal, 1."
    enriched = dict(zip(regions, one.enriched, strict=True))
    assert enriched["heart"] == "The heart shows nodule, opacity. The heart shows no effusion."
    assert enriched["mediastinum"] == said["mediastinum"]  # the table of presences says nothing of it
    held = {pair.patient for pair in pairs["validation"].each}
    assert not held & {pair.patient for pair in pairs["train"].each} and len(held) == 3


def test_statements_name_what_is_there_and_what_is_not():
    labels = [label in ("Lung nodule", "Hiatal hernia") for label in ct_rate.LABELS]
    said = report_by_labels(labels)
    assert said.startswith("There is hiatal hernia. There is lung nodule. There is no medical material, arterial wall")
    assert said.count("lung nodule") == 1 and said.endswith(" or interlobular septal thickening.")
    assert report_by_labels([True] * 18).count("There is no") == 0
    both = region_by_presences("lung", [("mass", False), ("nodule", True), ("mass", True)])
    assert both == "The lung shows mass. The lung shows nodule." and region_by_presences("lung", []) == ""


def test_a_user_s_own_rewrites_are_taken_and_what_has_none_is_counted(given, tmp_path):
    path = tmp_path / "rewrites.json"
    path.write_text(json.dumps({"The lung is normal, 1.": "No finding in the lung."}), encoding="utf-8")
    found = radgenome_pairs.read(given.ct_rate, given.radgenome, config_of(given, enriched=str(path)))
    pair = pair_of(found, "train_1_a_1")
    assert pair.enriched[0] == "No finding in the lung." and pair.enriched_report == pair.report
    assert any("10 reports that nothing could be enriched from" in note for note in found["train"].notes)
    path.write_text('{"a": 3}', encoding="utf-8")
    with pytest.raises(BadInput, match="rewrites.json has no rewrite of 'a'"):
        radgenome_pairs.read(given.ct_rate, given.radgenome, config_of(given, enriched=str(path)))


def test_vectors_are_the_tower_s_whatever_the_blocks_and_go_on_where_they_stopped(given, tmp_path, monkeypatch):
    texts = [f"nodule {n} in the lung" for n in range(10)] + ["the heart " * 40, "nodule 3 in the lung"]
    plain = TextTower(given.cxr_bert, "paper", cache=tmp_path / "plain").embed(texts, cut=True)
    monkeypatch.setattr("ctvlm_lib.alignment.text_vectors.BLOCK", 3)
    lines = []
    first = TextVectors.of(texts, given.cxr_bert, tmp_path, tell=lines.append, share=(1, 2))
    assert torch.allclose(first.at(first.rows(texts)), plain, atol=1e-6) and first.too_long == 1 and len(lines) == 4
    counts = np.bincount(first.rows(texts), minlength=11).astype(float)
    centre, scale = first.centre_and_scale(counts)
    assert torch.allclose(centre, plain.mean(dim=0), atol=1e-5)
    assert float(scale) == pytest.approx(float((plain - plain.mean(dim=0)).square().mean().sqrt()), rel=1e-4)
    monkeypatch.setattr(TextTower, "_computed", lambda *_: pytest.fail("computed again"))
    first.file.with_suffix(".json").unlink()  # stopped before the last file was there: the blocks are kept
    assert TextVectors.of(texts, given.cxr_bert, tmp_path).too_long == 1


def test_cxr_bert_is_read_without_its_own_code_as_the_bert_that_it_is(given, tmp_path):
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForMaskedLM

    whole = BertForMaskedLM(BertConfig.from_pretrained(given.cxr_bert)).eval()
    whole.load_state_dict(load_file(f"{given.cxr_bert}/model.safetensors"), strict=False)
    words = helpers_pairs.WORDS.split()
    ids = torch.tensor([[words.index(word) for word in ("[CLS]", "no", "nodule", "[SEP]")]])
    with torch.no_grad():
        wanted = whole.bert(input_ids=ids).last_hidden_state[:, 0]
    tower = TextTower(given.cxr_bert, "paper", cache=tmp_path)
    assert torch.allclose(tower.embed(["No nodule"]), wanted, atol=1e-6) and tower.limit == 48


def test_places_are_counted_as_sorting_counts_them(corpora, given):
    config, corpus = config_of(given).for_volumes(7), corpora["test"]
    model = build(config, corpus.texts.channels).eval()
    said = local_global_real.ask(model, corpus, config)
    items = [corpus.item(k) for k in range(len(corpus))]
    share = torch.from_numpy(np.stack([item.share() for item in items]))
    with torch.inference_mode():
        pictures = torch.from_numpy(np.stack([item.volume.astype(np.float32) for item in items]))[:, None]
        masks = radgenome_training.region_masks(share, GRID, config.recipe)
        volume, region = model.images(pictures, masks)
        reports, sentences = (model.pairing.texts(corpus.texts.at(corpus.rows[n])) for n in ("report", "region"))
    alike = volume @ reports.T
    assert said.report[0].tolist() == [(row > row[n]).sum() for n, row in enumerate(alike)]
    gallery = {text: sentences[n, r] for n, pair in enumerate(corpus.pairs.each)
               for r, text in enumerate(pair.sentences) if text != "-"}  # fmt: skip
    n, r = 2, config.regions.index("heart")
    scores = {text: float(region[n, r] @ vector) for text, vector in gallery.items()}
    own = scores[corpus.pairs.each[n].sentences[r]]
    assert said.sentence[n, r] == pytest.approx(sum(value > own + 1e-7 for value in scores.values()), abs=0.5)
    assert np.isnan(said.sentence[n, config.regions.index("pleura")]) and said.cut_out.shape == (2, 0, 16)
    assert np.isnan(said.region).sum() == 0  # lung, heart, esophagus and aorta are seen in every scan


def test_the_paper_s_recipe_and_what_it_costs():
    config = OnRadGenome().for_volumes(24_128)
    training = config.recipe.training
    assert (training.steps, training.lr, training.weight_decay, config.recipe.batch) == (16 * 754, 5e-5, 1e-5, 32)
    assert training.lr_at(199) == training.lr > training.lr_at(198) and config.recipe.bank == 65_536
    found = cost(OnRadGenome())
    width, tokens = 768, 4800
    block = 2 * (tokens + 1) * width * (4 * width + 2 * 3072) + 4 * (tokens + 1) ** 2 * width
    local = 11 * (2 * 437 * width * (4 * width + 2 * 3072) + 4 * 437**2 * width)  # 1 + 4,800 / 11 tokens a region
    assert found.operations_each == 3 * (12 * block + local + 2 * tokens * 2048 * width)
    assert found.tokens == tokens and found.prepared_bytes // 24_128 == 2 * 96 * 320 * 320 + 11 * (2 * tokens + 12)
    assert "2.0 EFLOP in all" in str(found) and "477 GB" in str(found)
    alone = cost(on_radgenome(local_global.ARMS["align-global"]))
    assert alone.operations_each == found.operations_each - 3 * local and alone.memory_bytes < found.memory_bytes


def test_a_block_keeps_so_many_bytes_of_a_token_whatever_the_length():
    encoder = on_radgenome(local_global.ARMS["align-full"], options={"encoder": helpers_pairs.OPTIONS["encoder"]})
    kept = kept_by_block(encoder.build_encoder())
    assert 20 * 16 < kept < 60 * 16  # 34 bytes for each channel is the usual sum in 16 bits; norms are kept in 32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"depth": 3}, "alignment has no option 'depth'; there are: accumulate"),
        ({"bank": 45}, "smaller than the 48 texts of a batch"),
        ({"epochs": 0}, "epochs and workers are at least 1"),
        ({"held_out": 1}, "held_out is a share"),
        ({"regions": ["lung", "lung"]}, "each once"),
        ({"encoder": {"layers": 5, "depth": 2}}, "the encoder has no option 'depth'"),
        ({"lr": "fast"}, "a value of the wrong kind"),
    ],
)
def test_options_that_do_not_fit_are_told(given, wrong, said):
    with pytest.raises(BadInput, match=said):
        config_of(given, **wrong)


def test_what_cannot_be_run_is_told_before_anything_is_trained(file, given, tmp_path, capsys):
    assert command_line("arm", "align-all", "--profile", "paper", "--sources", file, "--out", tmp_path) == 2
    assert "no arm is called 'align-all'" in capsys.readouterr().err
    assert command_line("arm", "align-full", "--profile", "paper", "--sources", file, "--variant", "tiny") == 2
    assert "align-full takes --seed, --sources, --patients" in capsys.readouterr().err
    with pytest.raises(BadInput, match="larger than the 3 training volumes"):
        config_of(given).for_volumes(3)
    with pytest.raises(BadInput, match=r"\[data\] radgenome"):
        read(config_of(given), replace(given, radgenome=""), tmp_path)
    with pytest.raises(BadInput, match="holds no radgenome_files/train_region_report.csv"):
        radgenome_pairs.read(given.ct_rate, tmp_path, config_of(given))
