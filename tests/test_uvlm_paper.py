"""U-VLM in profile paper, end to end: miniatures of CT-RATE with ReXGroundingCT and of AbdomenAtlas, tiny networks."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_ct import command_line
from helpers_data import METADATA, REPORT, SHAPE, chest_hu, metadata_row, write, write_csv
from helpers_roberta import make_roberta
from helpers_vlm import decoder_config, tokenizer
from transformers import AutoModelForCausalLM

from ctvlm_lib import checkpoints, sources, volume
from ctvlm_lib.encoder.unet import unet, unet_encoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import prepared_arms, uvlm_arms, uvlm_real, uvlm_real_networks, uvlm_said
from ctvlm_lib.experiments.uvlm_real_cost import cost
from ctvlm_lib.experiments.uvlm_real_data import LABELS
from ctvlm_lib.experiments.uvlm_real_listed import SPLITS, held_out, listed, usable
from ctvlm_lib.experiments.uvlm_real_options import RANK, OnReal, arm_of, chain, config_of
from ctvlm_lib.experiments.uvlm_real_scores import by_key_words, labeller_of, read_labels, table
from ctvlm_lib.ledger import published, real_places, rows
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.records import abdomen_atlas, ct_rate
from ctvlm_lib.segment import unet_training
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.segment.containment import content
from ctvlm_lib.training import Training
from ctvlm_lib.vlm.ladder_tokenizer import load_tokenizer
from ctvlm_lib.vlm.parts import from_hub
from ctvlm_lib.vlm.report_writer import with_language

TRAIN, TEST = 12, 4  # scans, each of a patient of its own
CASES = 9, 3  # of the abdomen
ABDOMEN_MASKS = tuple(content()["released"]["abdomen"]["config"])
LESIONS = ("pulmonary nodules or masses", "pleural effusion or thickening")
OPTIONS = """
size_dhw_vox = [8, 16, 16]
patch_dhw_vox = [8, 8, 8]
precision = "no"
held_out = 0.3
workers = 2
longest = 6
checkpoint_every = 1
encoder = {channels = [4, 8, 8], blocks = [1, 1, 1], stage_strides_dhw = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
decoder = {hidden_size = 16, num_hidden_layers = 3, num_attention_heads = 2, num_key_value_heads = 2, intermediate_size = 32}
segmentation = {steps = 3}
classification = {epochs = 1}
report = {steps = 3}
"""  # noqa: E501
CHAIN = ("uvlm-seg-CL", "uvlm-cls-CL", "uvlm-rep-CL-cls-skip")
ADAPTED = "uvlm-rep-CL-cls-lora"


def make_ct_rate(folder: Path) -> Path:
    """CT-RATE and ReXGroundingCT in one folder, with TotalSegmentator's labels; one scan lacks its report."""
    data, names = folder / "dataset", {"train": TRAIN, "valid": TEST}
    for short, count in names.items():
        split = {"train": "train", "valid": "validation"}[short]
        scans = [f"{short}_{n}_a_1" for n in range(1, count + 1)]
        for n, name in enumerate(scans):
            write(ct_of(folder, name), chest_hu() + np.random.default_rng(n).integers(-9, 9, SHAPE).astype(np.int16))
        said = [(f"{name}.nii.gz", "", "CT", f"Nodule {n} in the lung.", "Not given.") for n, name in enumerate(scans)]
        write_csv(data / f"radiology_text_reports/{split}_reports.csv", REPORT, said[:-1] if short == "train" else said)
        labels = [(f"{name}.nii.gz", *[n >> k % 2 & 1 for k in range(18)]) for n, name in enumerate(scans)]
        path = data / f"multi_abnormality_labels/{short}_predicted_labels.csv"
        write_csv(path, ("VolumeName", *ct_rate.LABELS), labels)
        facts = [tuple(metadata_row(VolumeName=f"{name}.nii.gz").values()) for name in scans]
        write_csv(data / f"metadata/{split}_metadata.csv", METADATA, facts)
    findings = {"findings": {"0": "Nodule.", "1": "Effusion."}, "categories": {"0": "2d", "1": "2e"}}
    rex = {"train": [f"train_{n}_a_1" for n in range(1, 8)], "val": ["train_9_a_1", "train_10_a_1"]}
    lists = {home: [{"name": f"{name}.nii.gz"} | findings for name in some] for home, some in rex.items()}
    (folder / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
    masks, ids = np.zeros((2, *SHAPE), np.uint8), np.zeros(SHAPE, np.uint8)
    masks[0, 2:4, 4:6, 2:5], masks[1, 7:9, 2:4, 3:6] = 1, 1
    ids[:6, 2:], ids[6:, 2:], ids[:, 1] = 10, 12, 51  # lobes of both lungs, heart
    for name in [*rex["train"][:-1], *rex["val"]]:  # the last one lacks its mask
        write(folder / f"segmentations/{name}.nii.gz", masks, np.eye(4))
        write(folder / "dataset/ts_seg/ts_total/train_fixed" / place(name), ids)
    return folder


def place(name: str) -> str:
    patient = name.rsplit("_", 2)[0]
    return f"{patient}/{patient}_a/{name}.nii.gz"


def ct_of(folder: Path, name: str) -> Path:
    return folder / "dataset" / f"{name.split('_')[0]}_fixed" / place(name)


def make_atlas(folder: Path) -> Path:
    """AbdomenAtlas 3.0 Mini; every second case has a liver lesion, the last training case lacks a mask."""
    train, test = CASES
    cases = [f"BDMAP_{n:08d}" for n in range(1, train + test + 1)]
    lesions = tuple(f"total {word} lesion volume (cm^3)" for word in ("liver", "kidney", "pancreatic"))
    said = [f"Liver lesion {n}: hypoattenuating." if n % 2 else "No lesion in the liver." for n in range(len(cases))]
    told = [(case, said[n], "-", "-", "-", n % 2, n % 3 // 2, 0) for n, case in enumerate(cases)]
    write_csv(folder / abdomen_atlas.TABLE, ("BDMAP ID", *abdomen_atlas.REPORTS, *lesions), told)
    for split, some in (("train", cases[:train]), ("test", cases[train:])):
        write_csv(folder / f"TrainTestIDS/IID_{split}.csv", ("BDMAP ID",), [(case,) for case in some])
    for n, case in enumerate(cases):
        write(folder / f"image_only/{case}/ct.nii.gz", chest_hu())
        for k, name in enumerate(ABDOMEN_MASKS):
            mask = np.zeros(SHAPE, np.uint8)
            if not name.endswith("lesion") or n % 2:
                mask.reshape(-1)[20 * k : 20 * k + 20] = 1
            write(folder / f"mask_only/{case}/segmentations/{name}.nii.gz", mask)
    (folder / f"mask_only/{cases[train - 1]}/segmentations/rectum.nii.gz").unlink()
    return folder


def make_qwen3(folder: Path, seed: int = 0) -> Path:
    """A random Qwen3 of three layers with its tokenizer, whose words lack those around an image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        shape = decoder_config("qwen3", len(words), hidden_size=16, num_hidden_layers=3, head_dim=8)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    make_ct_rate(folder / "CT-RATE"), make_atlas(folder / "Atlas")
    load_tokenizer().save_pretrained(folder / "tokenizer")
    make_qwen3(folder / "Qwen3")
    path = folder / "sources.toml"
    data = 'ct_rate = "CT-RATE"\nrex_grounding = "CT-RATE"\nabdomen_atlas = "Atlas"'
    weights = '[weights]\ntokenizer = "tokenizer"\n[decoders]\n"Qwen3-4B" = "Qwen3"'
    path.write_text(f'[data]\n{data}\n{weights}\n[run]\nprepared = "prepared"\n[run.uvlm]{OPTIONS}', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def given(file):
    return sources.load(file)


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """What `ctvlm arm uvlm-rep-CL-cls-skip --profile paper --sources FILE` leaves and prints; what was there before."""
    out, told, before = tmp_path_factory.mktemp("out"), [], hashes(file.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: told.append(" ".join(map(str, words))))
        assert command_line("arm", CHAIN[-1], "--profile", "paper", "--sources", file, "--out", out) == 0
    return out / "paper", "\n".join(told), before


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "prepared" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table_of(home: Path, arm: str) -> pd.DataFrame:
    return pd.read_csv(home / "results" / arm / "table.csv").set_index("measure")


# end to end


def test_what_it_costs_is_said_before_anything_is_read(finished):
    told = finished[1]
    first, rest = told.split("without a volume or mask", 1)
    for stage, volumes in (("segmentation", 2_628), ("classification", 24_128), ("report", 24_128)):
        assert f"{stage}, with the paper's {volumes:,} volumes of CT-RATE:" in first
    assert first.count("TFLOP a ") == first.count("GB for volumes that are made ready") == 3
    assert "in place of nnU-Net's augmentation" in first and "volumes ready" not in first
    assert "with yours" in rest and "uvlm-seg-CL, with yours" in rest


def test_what_is_missing_gets_a_sentence(finished):
    told = finished[1]
    assert "train: without a volume or mask, left out: segmentations/train_7_a_1.nii.gz" in told
    assert f"train: without a report or its labels, left out: train_{TRAIN}_a_1" in told
    assert "of the training split held out" in told and "test: every volume can be used" in told


def test_no_file_of_the_user_is_touched(finished, file):
    assert hashes(file.parent) == finished[2]


def test_a_chain_hands_its_encoder_on_and_each_arm_is_scored(finished):
    folder = finished[0] / "checkpoints"
    encoders = []
    for arm in CHAIN:
        tensors, record = checkpoints.load(arm, folder)
        encoders.append({name: one for name, one in tensors.items() if name.startswith("encoder.")})
        assert record["profile"] == "paper" and record["data"]["splits"]["train"]["volumes"] > 0
    assert all(torch.equal(one, encoders[2][name]) for name, one in encoders[1].items())  # frozen in stage 3
    assert not all(torch.equal(one, encoders[1][name]) for name, one in encoders[0].items())
    assert {"Dice of anatomy", "Dice of lesions"} == set(table_of(finished[0], CHAIN[0]).index)
    assert set(table_of(finished[0], CHAIN[1]).index) == {f"labels {s}" for s in ("F1", "precision", "recall")}
    assert {"labels F1", "BLEU-1", "BLEU-mean"} < set(table_of(finished[0], CHAIN[2]).index)


def test_tables_follow_from_what_was_said(finished):
    for name in CHAIN:
        folder, (arm, scope) = finished[0] / "results" / name, arm_of(name)
        splits = [split for split in ("validation", "test") if (folder / f"{split}.npz").is_file()]
        said, truth = ({s: uvlm_said.read_said(folder / f"{start}{s}.npz") for s in splits} for start in ("", "truth-"))
        again, _ = table(said, truth, arm, scope)
        stored = pd.read_csv(folder / "table.csv")
        assert np.allclose(stored["value"], again["value"], atol=1e-6) and stored["value"].between(0, 1).all()
        assert len(truth["test"]["name"]) == stored["patients"].max() == {CHAIN[0]: 2}.get(name, TEST)


def test_the_ledger_shows_them_beside_the_published_numbers_with_what_is_otherwise(finished):
    found = rows.ledger(published.table("uvlm.T5"), Results(real=finished[0] / "results"))
    row = found[(found["arm"] == CHAIN[-1]) & (found["column"] == "BLEU-mean")].iloc[0]
    assert row["ours"] == pytest.approx(table_of(finished[0], CHAIN[-1]).loc["BLEU-mean", "value"])
    assert row["kind"] == "data" and row["command"] == f"ctvlm arm {CHAIN[-1]} --profile paper --sources FILE"
    assert "SGD" not in row["why"] and "AdamW" not in row["why"]  # each stage has the paper's
    for told in ("nnU-Net's", "labels of reports by key words", "size_dhw_vox", "reports written greedily"):
        assert told in row["why"]


def test_the_record_names_data_and_settings_and_no_folder(finished, file):
    text = (finished[0] / "results" / CHAIN[-1] / "record.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["labels of reports"] == "key words" and record["on_real"]["steps"] == 3
    assert record["arm"]["start"] == CHAIN[1] and record["cost"]["steps"] == 3 and str(file.parent) not in text


def test_a_finished_arm_is_not_trained_again_and_other_settings_are_told(finished, given, monkeypatch):
    monkeypatch.setattr(uvlm_real, "_train", lambda *_, **__: pytest.fail("trained again"))
    found = uvlm_real.run(CHAIN[-1], given, home=finished[0], progress=False)
    assert found["value"].tolist() == table_of(finished[0], CHAIN[-1])["value"].tolist()
    with pytest.raises(BadInput, match="was trained otherwise: steps was 3 and is 9"):
        uvlm_real.run(CHAIN[-1], given, home=finished[0], changes={"steps": 9}, progress=False)


def test_an_arm_from_before_an_option_counts_as_trained_by_its_default(finished, given, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    for name in CHAIN[:2]:
        path = tmp_path / "checkpoints" / name / "record.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        for option in ("optimizer", "schedule", "warmup_share"):
            del record["on_real"][option]
        path.write_text(json.dumps(record), encoding="utf-8")
    first, second, _ = chain(CHAIN[-1], CHAIN[-1], given, 0, None)
    assert uvlm_real._is_trained(second, tmp_path)
    with pytest.raises(BadInput, match="was trained otherwise: optimizer was 'AdamW' and is 'SGD'"):
        uvlm_real._is_trained(first, tmp_path)


def test_a_killed_run_goes_on_to_the_same_weights(finished, given, tmp_path):
    class Killed(Exception):
        pass

    seen = []

    def in_the_second_step_of_stage_1(row):
        seen.append(row["loss"])
        if row["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        uvlm_real.run(CHAIN[0], given, home=tmp_path, progress=False, on_step=in_the_second_step_of_stage_1)
    uvlm_real.run(CHAIN[0], given, home=tmp_path, progress=False, on_step=lambda row: seen.append(row["loss"]))
    assert len(seen) == 4  # the second step twice: its checkpoint wasn't there yet
    one, two = (checkpoints.record(CHAIN[0], home / "checkpoints") for home in (finished[0], tmp_path))
    assert one["weights"] == two["weights"] and seen[1] == seen[2]


def test_stage_1_learns_and_is_asked_as_nnunet_does(given, tmp_path, monkeypatch):
    seen = []
    for name in ("segmentation_loss", "segment"):
        real = getattr(unet_training, name)
        monkeypatch.setattr(unet_training, name, lambda *a, real=real, **k: seen.append(k) or real(*a, **k))
    uvlm_real.run(CHAIN[0], given, home=tmp_path, progress=False)
    assert {"as_nnunet": True} in seen and {"gaussian": True} in seen
    assert all(one in ({"as_nnunet": True}, {"gaussian": True}) for one in seen)


def test_the_abdomen_s_stages_run_and_tell_the_lesions_of_three_organs(given, tmp_path):
    reports = ("uvlm-rep-CL-cls-skip-abdomen", f"{ADAPTED}-abdomen")
    for name in ("uvlm-seg-CL-abdomen", *reports):
        uvlm_real.run(name, given, home=tmp_path, progress=False)
    for name in ("uvlm-seg-CL-abdomen", "uvlm-cls-CL-abdomen", *reports):
        measures = set(table_of(tmp_path, name).index)
        assert {"lesions F1", "liver lesions F1", "kidney lesions recall", "pancreas lesions precision"} <= measures
    found = rows.ledger(published.table("uvlm.T3"), Results(real=tmp_path / "results"))
    shown = found[found["kind"] == "data"]
    assert {"U-VLM Seg(C+L)", "nnU-Net Seg(C+L)"} == set(shown[shown["ours"].notna()]["row"])
    record = checkpoints.record("uvlm-seg-CL-abdomen", tmp_path / "checkpoints")
    assert any("rectum.nii.gz" in note for note in record["data"]["notes"])


# a pretrained decoder


@pytest.fixture(scope="module")
def adapted(finished, given, tmp_path_factory):
    """Where an arm with LoRA was trained behind the chain's first two stages; what was printed."""
    home, told = tmp_path_factory.mktemp("adapted"), []
    shutil.copytree(finished[0], home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: told.append(" ".join(map(str, words))))
        uvlm_real.run(ADAPTED, replace(given, tokenizer="none is read"), home=home)
    return home, "\n".join(told)


def test_adapters_and_projections_learn_and_are_stored_without_the_decoder(adapted, given):
    tensors, record = checkpoints.load(ADAPTED, adapted[0] / "checkpoints")
    kinds = {"encoder.", "decoder.injection."}
    rest = [name for name in tensors if not name.startswith(tuple(kinds))]
    assert rest and all(".lora_A." in name or ".lora_B." in name for name in rest)
    assert all(any(name.startswith(kind) for name in tensors) for kind in kinds)
    assert record["arm"]["lora"] == "Qwen3-4B" and record["seed"] == 0
    [task] = [one for one in chain(ADAPTED, ADAPTED, given, 0, None) if one.arm.lora]
    begun = uvlm_real_networks.build(task, given, 0, adapted[0])
    for name, one in begun.state_dict().items():
        if name in tensors and one.ndim > 1:  # to 16 bits, in which they are stored
            assert torch.equal(one.half().float(), tensors[name]) == name.startswith("encoder."), name
    assert all(tensors[name].shape[0 if ".lora_A." in name else 1] == RANK for name in rest)
    before = checkpoints.load(CHAIN[1], adapted[0] / "checkpoints")[0]
    assert all(torch.equal(one, tensors[name]) for name, one in before.items() if name.startswith("encoder."))


def test_an_arm_with_lora_is_scored_and_stands_in_the_ledger_with_what_is_otherwise(adapted):
    assert {"labels F1", "BLEU-1", "BLEU-mean"} < set(table_of(adapted[0], ADAPTED).index)
    assert f"{ADAPTED}, report, with the paper's 24,128 volumes" in adapted[1]
    found = rows.ledger(published.table("uvlm.T5"), Results(real=adapted[0] / "results"))
    row = found[(found["arm"] == ADAPTED) & (found["column"] == "BLEU-mean")].iloc[0]
    assert row["ours"] == pytest.approx(table_of(adapted[0], ADAPTED).loc["BLEU-mean", "value"])
    assert "decoder: qwen3, 16 wide, in place of Qwen3-4B" in row["why"] and "LoRA on attention and MLP" in row["why"]
    tuned = found[found["condition"].str.startswith(("line 13", "line 15"))]
    adapters = found[found["condition"].str.contains("Q4B-L")]
    assert len(adapters) == 8 and not adapters["why"].str.contains("all of it tuned").any()
    assert len(tuned) == 8 and (tuned["command"] == "").all() and tuned["why"].str.contains("all of it tuned").all()


def test_what_is_asked_again_is_said_again_and_another_decoder_is_told(adapted, given, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(adapted[0], home)
    shutil.rmtree(home / "results" / ADAPTED)
    torch.rand(1)  # whatever was drawn before
    uvlm_real.run(ADAPTED, given, home=home, progress=False)
    one, two = (uvlm_said.read_said(place / "results" / ADAPTED / "test.npz") for place in (adapted[0], home))
    assert one["report"].tolist() == two["report"].tolist() and any(one["report"])
    shutil.rmtree(home / "results" / ADAPTED)
    other = replace(given, decoders={**given.decoders, "Qwen3-4B": str(make_qwen3(tmp_path / "other", seed=1))})
    with pytest.raises(BadInput, match="was trained on another decoder than .*other; name that one"):
        uvlm_real.run(ADAPTED, other, home=home, progress=False)


def test_a_decoder_that_is_not_there_is_told_before_anything_is_trained(given, tmp_path):
    lost = replace(given, decoders={**given.decoders, "Qwen3-4B": str(tmp_path / "none")})
    with pytest.raises(BadInput, match="none can't be had as a language model"):
        uvlm_real.run(ADAPTED, lost, home=tmp_path / "home", progress=False)
    assert not (tmp_path / "home").exists()


def test_qwen3_4b_is_the_paper_s_and_costs_what_is_counted_by_hand():
    shape = decoder_config(
        "qwen3", 151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, tie_word_embeddings=True,
    )  # fmt: skip
    task = chain("uvlm-rep-FL-cls-lora", "", sources.Sources(), 0, None)[-1].reading(shape)
    assert not any("in place of Qwen3-4B" in remark for remark in task.otherwise)
    found = cost(task.arm, task.scope, task.config, 24_128, language=shape)
    width, inner, heads, pairs = 2560, 9728, 32 * 128, 8 * 128
    matrices = [(width, heads), (width, pairs), (width, pairs), (heads, width), *[(width, inner)] * 2, (inner, width)]
    assert found.parameters == 36 * RANK * sum(a + b for a, b in matrices)
    places, said = 384 + 2 + 512, 512 + 1
    frozen = 2 * (36 * places * sum(a * b for a, b in matrices) + said * width * 151_936)
    attention = 36 * 4 * places**2 * heads
    wanted = operations_by_hand((192, 256, 256)) + 2 * (frozen + attention) + 3 * 2 * places * found.parameters
    assert found.operations_each == pytest.approx(wanted, rel=5e-3)
    weights = 2 * (36 * sum(a * b for a, b in matrices) + width * 151_936)  # in 16 bits
    assert weights + 18 * found.parameters < found.memory_bytes < 80e9  # of one A100


def test_in_16_bits_the_decoder_alone_is_kept_so(tmp_path):
    language, words = from_hub(str(make_qwen3(tmp_path)), torch.bfloat16)
    encoder = unet_encoder(channels=(4, 8), blocks=(1, 1), stage_strides_dhw=((1, 1, 1), (2, 2, 2)), seed=0)
    how = uvlm_arms.injection_of(uvlm_arms.Arm(uvlm_arms.REP, injected=True))
    writer = with_language(encoder, language, words, how, "hybrid", 4, 8)
    kinds = {one.dtype for one in writer.decoder.parameters() if one.requires_grad}
    assert kinds == {torch.float32} and language.dtype == torch.bfloat16
    volume = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        writer(writer.features(volume), ["a mass", "no"]).backward()
    gradients = {name: one.grad for name, one in writer.decoder.named_parameters() if one.requires_grad}
    assert all(one is not None and torch.isfinite(one).all() for one in gradients.values())
    assert len(writer.write(writer.features(volume), 3)) == 2


# parts


def split_of(given, stage: str, granularity: str = "", scope: str = "chest", **changes):
    return listed(stage, granularity, scope, given, config_of(stage, given, changes))


def test_a_volume_is_the_paper_s_recipe_and_its_target_lies_on_the_same_grid(given):
    known = split_of(given, uvlm_arms.SEG, "C+L")["train"]
    assert known.prepare(known.scans[0]) == ("", ())
    scan, small = volume.load(known.scans[0].ct), known.store.size_dhw
    wanted = (scan.resize(small).hu - scan.hu.mean()) / scan.hu.std()
    assert np.abs(known.pictures([0])[0, 0] - wanted).max() <= 0.51 / scan.hu.std()  # kept as whole HU
    full, target = known.scans[0].masks.target("C+L"), known.target[0]
    at = [np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1) for n, m in zip(small, full.shape, strict=True)]
    same = target == full[np.ix_(*at)]
    assert target.dtype == np.uint8 and same.mean() > 0.85  # where a centre lies between two voxels, either is nearest
    classes = ClassMap.of("chest", "C+L")
    assert {classes.names.index(name) for name in LESIONS} <= set(np.unique(target))


def test_volumes_are_read_one_at_a_time_and_moved_with_air_behind(given):
    known = split_of(given, uvlm_arms.CLS)["test"]
    for scan in known.scans:
        assert known.prepare(scan) == ("", ())
    assert known.hu.shape == (TEST, 8, 16, 16) and len(list(known.hu)) == TEST
    still, moved = known.pictures([1, 2]), known.pictures([1, 2], np.array([[0, 3, 0], [0, 0, 0]]))
    assert np.array_equal(moved[1], still[1]) and np.array_equal(moved[0, 0, :, 3:], still[0, 0, :, :-3])
    assert np.allclose(moved[0, 0, :, :3], known.as_input(1, np.array(-1000)))


def test_workers_of_a_scheduler_make_ready_what_the_arm_then_finds(given, scheduler, tmp_path):
    given = replace(given, prepared=str(tmp_path))
    cases = prepared_arms.cases_of(CHAIN[-1], given)
    assert len(cases) == TRAIN + TEST - 1  # one has neither report nor masks
    assert max(len(case.parts) for case in cases) == 3  # one for each stage
    assert max(len(pickle.dumps(case)) for case in cases) < 24_000  # not the other scans, too
    for status in ("done", "kept"):
        rows, _ = prepared_arms.prepare_all(CHAIN[-1], given, scheduler=scheduler, say=len)
        assert {row["status"] for row in rows} == {status}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    for stage, granularity in ((uvlm_arms.SEG, "C+L"), (uvlm_arms.CLS, ""), (uvlm_arms.REP, "")):
        for known in split_of(given, stage, granularity).values():
            assert not any(known.prepare(scan)[0] for scan in known.scans)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_a_prepared_file_is_made_anew_when_it_is_cut_short_or_a_mask_changes(given, tmp_path):
    known = split_of(replace(given, prepared=str(tmp_path)), uvlm_arms.SEG, "C")["train"]
    scan = known.scans[0]
    with pytest.raises(BadInput, match="can't be read any more; give the same command again"):
        known.hu[0]
    known.prepare(scan)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    known.prepare(scan)
    assert len(made) == 2 and all(path.stat().st_mtime_ns == when for path, when in made.items())
    before = known.hu[0]
    [path] = (path for path in made if ".C." not in path.name)
    path.write_bytes(path.read_bytes()[:-7])
    known.prepare(scan)
    assert np.array_equal(known.hu[0], before)
    ct, masks, anatomy, codes = scan.masks._load.args
    own = tmp_path / "own" / anatomy.name
    write(own, np.zeros(SHAPE, np.uint8))  # a copy, as the user's own isn't touched
    load = partial(scan.masks._load.func, ct, masks, own, codes)
    changed = replace(scan, masks=replace(scan.masks, masks=(masks, own), _load=load))
    known = replace(known, scans=(changed, *known.scans[1:]))
    lungs_and_heart = np.count_nonzero(known.target[0])
    known.prepare(changed)
    assert 0 < np.count_nonzero(known.target[0]) < lungs_and_heart / 4  # the lung behind its nodule is left
    assert np.array_equal(known.hu[0], before)


def test_a_damaged_volume_is_left_out_with_a_sentence(given, tmp_path):
    known = split_of(replace(given, prepared=str(tmp_path)), uvlm_arms.CLS)["test"]
    copy = tmp_path / "valid_1_a_1.nii.gz"
    copy.write_bytes(known.scans[0].ct.read_bytes()[:-60])
    known = replace(known, scans=(replace(known.scans[0], ct=copy), *known.scans[1:]))
    found = [known.prepare(scan) for scan in known.scans]
    kept = usable(known, "test", found)
    assert len(kept) == TEST - 1 and kept.notes[-1].startswith("test: valid_1_a_1 left out: ")
    assert copy.stat().st_size and not list(tmp_path.rglob("*.partial*"))


def test_who_is_held_out_is_the_same_in_every_stage_and_never_trained_on(given):
    stages = {stage: split_of(given, stage, "C" if stage == uvlm_arms.SEG else "") for stage in uvlm_arms.STAGES}
    for stage, found in stages.items():
        assert all(not held_out(scan.patient, 0.3) for scan in found["train"].scans)
        assert set(found) == set(SPLITS) - ({"validation"} if stage == uvlm_arms.SEG else set())
    scored = {scan.patient for scan in stages[uvlm_arms.SEG]["test"].scans}
    assert scored == {"train_9", "train_10"} and not scored & {s.patient for s in stages[uvlm_arms.SEG]["train"].scans}
    share = np.mean([held_out(f"train_{n}", 0.02) for n in range(20_000)])
    assert share == pytest.approx(0.02, abs=0.005)


def test_key_words_read_what_a_report_affirms():
    said = (
        "Millimetric nodules are seen in the right lung. No pleural effusion. Calcific plaques in the coronary"
        " arteries. The heart is normal. Hiatal hernia; emphysema is not observed."
    )
    found = {label for label, there in zip(LABELS["chest"], by_key_words(said, "chest"), strict=True) if there}
    assert found == {"Lung nodule", "Coronary artery wall calcification", "Hiatal hernia"}
    text = "Liver lesion 1: a cyst of 2 cm.\nKidney lesions: none.\nThe pancreas shows a mass."
    assert by_key_words(text, "abdomen") == [True, False, True]
    assert not read_labels([" "], "chest").any()


@pytest.mark.parametrize(
    ("sentence", "affirmed"),
    [
        ("A hypodense nodule is seen in the left lobe of the thyroid gland.", False),
        ("There is a nodule in the segment 4 of the liver.", False),
        ("Nodular lesion in the adrenal gland's lateral segment.", False),
        ("A hepatic nodule lies in the right lobe.", False),
        ("Nodule of 9 mm in the breast parenchyma.", False),
        ("Accessory spleen: a nodule beside the lower segment of the splenic hilum.", False),
        ("Nodules in the left lobe of the thyroid and in both lungs.", True),
        ("A nodule in the right lower lobe, next to the dome of the liver.", True),
        ("A subpleural nodule lies over the spleen.", True),
        ("A nodule of 4 mm in the lateral segment of the middle lobe.", True),
        ("Nodules were delivered to pathology from the apical segment.", True),
    ],
)
def test_a_nodule_of_another_organ_is_none_of_the_lung(sentence, affirmed):
    assert by_key_words(sentence, "chest")[LABELS["chest"].index("Lung nodule")] == affirmed


@pytest.mark.parametrize(
    ("sentence", "affirmed"),
    [
        ("Number of kidney lesions: 0.", False),
        ("Kidney lesions: 0", False),
        ("Total volume of kidney lesions: 0.0 cm3.", False),
        ("Kidney lesions: zero.", False),
        ("Number of kidney lesions: 2.", True),
        ("Number of kidney lesions: 10.", True),
        ("Kidney lesion 1, volume: 0.5 cm3.", True),
        ("Kidney lesion 1, volume: 0.05 cm3.", True),
    ],
)
def test_a_count_of_nothing_denies(sentence, affirmed):
    assert by_key_words(sentence, "abdomen") == [False, affirmed, False]


def test_a_classifier_reads_the_labels_where_there_is_one():
    class Labeller:
        def labels(self, texts, cut):
            return np.array([[len(text) > 3] * 18 for text in texts], np.float32)

    called = read_labels(["", "abc", "abcd"], "chest", Labeller())
    assert called.sum(axis=1).tolist() == [0, 0, 18]


def operations_by_hand(size: tuple[int, int, int]) -> int:
    """Of the encoder's convolutions: a multiplication and an addition for each neighbour of each channel."""
    channels, blocks, total, before = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6), 0, 32
    for stage, (width, count) in enumerate(zip(channels, blocks, strict=True)):
        places = np.prod([n // 2**stage for n in size])
        total += 2 * places * 27 * width * (before + (2 * count - 1) * width)  # two convolutions a block
        total += 2 * places * width * before * (before != width)  # the skip's projection
        before = width
    return total + 2 * np.prod(size) * 27 * 32  # the stem, of one channel


def test_a_split_is_learnt_from_disk_as_from_memory(given):
    known = split_of(given, uvlm_arms.SEG, "C")["train"]
    assert all(known.prepare(scan) == ("", ()) for scan in known.scans)

    class InMemory:
        names, classes, as_input = known.names, known.classes, staticmethod(known.as_input)
        hu, target = np.stack(list(known.hu)), np.stack(list(known.target))

        def __len__(self):
            return len(self.names)

    curves = []
    for one in (known, InMemory()):
        model = unet(known.classes, seed=0, **config_of(uvlm_arms.SEG, given).switches)
        curve = unet_training.fit(model, one, Training(2, 1e-3), 2, (8, 8, 8), False, progress=False)
        curves.append([row["loss"] for row in curve])
    assert curves[0] == curves[1]


def test_ct_clip_s_classifier_reads_the_labels_where_its_weights_are_named(tmp_path):
    from safetensors.torch import save_file
    from transformers import RobertaModel

    assert labeller_of("chest", sources.Sources()) is None
    backbone = make_roberta(tmp_path / "backbone", ["nodule", "heart"], layers=1)
    tensors = {f"model.{name}": 8 * one for name, one in RobertaModel.from_pretrained(backbone).state_dict().items()}
    head = torch.randn(18, 16, generator=torch.Generator().manual_seed(0))
    tensors |= {"classifier.weight": head, "classifier.bias": torch.zeros(18)}
    save_file(tensors, tmp_path / "RadBertClassifier.safetensors")
    given = sources.Sources(radbert=str(tmp_path / "RadBertClassifier.safetensors"), radbert_backbone=str(backbone))
    labeller = labeller_of("chest", given)
    assert labeller_of("abdomen", given) is None
    called = read_labels(["nodule", " ", "heart"], "chest", labeller)
    wanted = labeller.labels(["nodule", "heart"]) >= 0.5
    assert np.array_equal(called[[0, 2]], wanted) and wanted.any() and not called[1].any()
    with pytest.raises(BadInput, match="there is no weights file"):
        labeller_of("chest", replace(given, radbert=str(tmp_path / "no.pth")))


def test_the_paper_s_sizes_and_what_they_cost():
    given = sources.Sources()
    arms = {name: (arm_of(name)[0], config_of(arm_of(name)[0].stage, given)) for name in CHAIN}
    steps = [config.training(24_128).steps for _, config in arms.values()]
    assert steps == [250_000, 120_640, 120_640]
    assert [config.lr for _, config in arms.values()] == [0.01, 2e-5, 2e-5]
    first, *later = (config.training(24_128) for _, config in arms.values())
    assert (first.optimizer, first.schedule, first.warmup_share) == ("SGD", "polynomial", 0)
    assert first.weight_decay == 3e-5 and first.lr_at(0) == 0.01 and first.clip == 12
    assert all((one.optimizer, one.schedule, one.weight_decay) == ("AdamW", "cosine", 0.01) for one in later)
    costs = [cost(arm, "chest", config, 24_128) for arm, config in arms.values()]
    voxels = 192 * 256 * 256
    assert [one.prepared_bytes // 24_128 for one in costs] == [3 * voxels, 2 * voxels, 2 * voxels]
    encoder = operations_by_hand((192, 256, 256))
    assert costs[1].operations_each == pytest.approx(3 * encoder, rel=1e-3)  # the head takes next to nothing
    assert costs[0].operations_each > 3 * encoder / 8  # a patch is an eighth, and there is a decoder
    assert encoder < costs[2].operations_each < 1.2 * encoder  # frozen in stage 3
    assert costs[2].memory_bytes < costs[1].memory_bytes < 80e9 and costs[0].memory_bytes < 80e9  # of one A100
    shape = {"channels": (4, 8), "blocks": (1, 1), "stage_strides_dhw": ((1, 1, 1), (2, 2, 2))}
    small = replace(arms[CHAIN[0]][1], patch_dhw_vox=(8, 8, 8), encoder=shape)
    by_sgd, by_adamw = (cost(arms[CHAIN[0]][0], "chest", replace(small, optimizer=one), 9) for one in ("SGD", "AdamW"))
    assert by_adamw.memory_bytes - by_sgd.memory_bytes == 4 * by_sgd.parameters  # a mean less
    tuned = cost(arm_of("uvlm-rep-CL-cls-tuned")[0], "chest", arms[CHAIN[-1]][1], 24_128)
    assert tuned.operations_each > 2.9 * encoder


def test_every_number_of_the_user_s_data_stands_beside_an_arm_that_there_is():
    found = {cell: real_places.quantity(cell) for cell in published.load() if cell.paper == "uvlm"}
    there = {cell: one for cell, one in found.items() if one is not None}
    assert all(arm_of(one.arm) for one in there.values()) and len(there) > 90
    assert {cell.table for cell in there} == {"T2", "T3", "T4", "T5"}
    for cell, one in there.items():
        assert one.arm.endswith("-abdomen") == cell.group.startswith("AbdomenAtlas") and "spleen" not in one.measure


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"depth": 3}, "uvlm has no option 'depth'; there are: attention"),
        ({"batch": 0}, "at least 1"),
        ({"held_out": 1}, "held_out is a share"),
        ({"size_dhw_vox": [4, 4, 4]}, "is larger than volumes of"),
        ({"encoder": {"depth": 2}}, "the encoder has no option 'depth'"),
        ({"decoder": 12}, "decoder is 12; give a table of options"),
        ({"steps": "many"}, "wrong kind"),
    ],
)
def test_options_that_do_not_fit_are_told(given, wrong, said):
    with pytest.raises(BadInput, match=said):
        config_of(uvlm_arms.REP, given, wrong)


def test_what_cannot_be_run_is_told_before_anything_is_trained(file, given, tmp_path, capsys):
    words = ("--profile", "paper", "--sources", file, "--out", tmp_path)
    assert command_line("arm", "uvlm-rep-all", *words) == 2
    assert "no arm is called 'uvlm-rep-all'" in capsys.readouterr().err
    assert command_line("arm", CHAIN[-1], *words, "--variant", "tiny") == 2
    assert f"{CHAIN[-1]} takes --seed, --sources, --patients" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"\[run\] prepared"):
        split_of(replace(given, prepared=""), uvlm_arms.CLS)
    with pytest.raises(BadInput, match=r"\[data\] abdomen_atlas"):
        split_of(replace(given, abdomen_atlas=""), uvlm_arms.CLS, scope="abdomen")
    with pytest.raises(BadInput, match="no scan of CT-RATE is left for report"):
        split_of(replace(given, ct_rate=str(tmp_path)), uvlm_arms.REP)
    with pytest.raises(BadInput, match="none of 11 training scans is; enlarge held_out"):
        split_of(given, uvlm_arms.CLS, held_out=1e-6)
    with pytest.raises(BadInput, match="a batch of 2 is larger than the 1 training volumes"):
        OnReal().training(1)


@pytest.mark.parametrize(
    ("arm", "weights", "options", "said"),
    [
        (CHAIN[-1], {"tokenizer": "nowhere"}, {}, "no tokenizer can be had from 'nowhere'.*fetch its files"),
        (CHAIN[-1], {}, {"attention": "full"}, "attention is 'full'; choose one of 'hybrid'"),
        (CHAIN[-1], {}, {"num_hidden_layers": 2}, "3 stages are injected and the decoder has 2 layers"),
        (CHAIN[-1], {}, {"hidden_sise": 16}, "the decoder has no option 'hidden_sise'; it has hidden_size"),
        (CHAIN[-1], {}, {"num_attention_heads": 3}, "3 heads, 2 of keys and values, can't share a width of 16"),
        (CHAIN[-1], {}, {"num_attention_heads": 16}, "each gets an even number of channels"),
        (CHAIN[-1], {}, {"num_hidden_layers": 0}, "a decoder of 0 layers"),
        (CHAIN[-1], {}, {"hidden_size": "wide"}, "an option of the decoder has a value of the wrong kind"),
        (CHAIN[-1], {}, {"hidden_act": "gelo"}, "no activation 'gelo'"),
        (CHAIN[-1], {}, {"max_position_embeddings": 20}, "the decoder has positions for 20"),
        (CHAIN[-1], {}, {"vocab_size": 9}, "the decoder has no option 'vocab_size'"),
        (ADAPTED, {}, {"attention": "full"}, "attention is 'full'; choose one of 'hybrid'"),
    ],
)
def test_settings_of_stage_3_are_told_before_stage_1_is_trained(
    given, tmp_path, monkeypatch, arm, weights, options, said
):
    monkeypatch.setattr(uvlm_real, "_train", lambda *_, **__: pytest.fail("trained before it was told"))
    monkeypatch.setattr(uvlm_real, "_ready", lambda *_, **__: pytest.fail("volumes made ready before it was told"))
    attention = {name: options[name] for name in options if name == "attention"}
    decoder = {**given.uvlm["decoder"], **{name: one for name, one in options.items() if name not in attention}}
    wrong = replace(given, **weights, uvlm={**given.uvlm, **attention, "decoder": decoder})
    with pytest.raises(BadInput, match=said):
        uvlm_real.run(arm, wrong, home=tmp_path / "home", progress=False)
    assert not (tmp_path / "home").exists()
