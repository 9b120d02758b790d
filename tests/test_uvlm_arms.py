"""U-VLM's three stages in miniature: what each learns from, what it says, what is stored, and what follows from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.classification import QueryClassifier, fit, fit_head
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.encoder.unet import unet, unet_encoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text import text_scores
from ctvlm_lib.experiments import uvlm, uvlm_arms
from ctvlm_lib.experiments.uvlm import World, read, run
from ctvlm_lib.experiments.uvlm_arms import ARMS, PREFIX
from ctvlm_lib.experiments.uvlm_said import ORGANS, read_said, write_said
from ctvlm_lib.experiments.uvlm_tables import BLEU, Store, f1_of, measures_of, organ_lesions, read_labels, read_table
from ctvlm_lib.ledger import published
from ctvlm_lib.ledger import uvlm as ledger
from ctvlm_lib.ledger.quantities import Staged
from ctvlm_lib.mask import dice
from ctvlm_lib.records.report import LABELS
from ctvlm_lib.segment import unet_training
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.segment.unet_training import (
    Segmented,
    class_weights,
    dice_of,
    lesion_voxels,
    scale_weights,
    segmentation_loss,
)
from ctvlm_lib.training import Training
from ctvlm_lib.vlm import report_writer

FEW = {"train": 6, "validation": 10, "test": 12}
STEPS = {"steps": 2, "batch": 2}
HEAD = {"head_steps": 2, "head_batch": 4, "views": 2}
CHAIN = (("cls", "", HEAD), ("rep", "-cls-skip", {}), ("rep", "-cls-lora", {}))


@pytest.fixture(scope="module")
def world() -> World:
    return World("quick", FEW)


@pytest.fixture(scope="module")
def home(tmp_path_factory, world):
    """A chain of arms: stage 1, 2 and 3; the test split is asked, as nothing of it is kept."""
    folder = tmp_path_factory.mktemp("uvlm")
    places = {"checkpoint_folder": folder / "checkpoints", "results": folder / "results", "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_writer, "LONGEST", 24)  # nothing was learnt that would end a report
        for name, more in (("seg-CL", {"patients": 6}), *((f"{arm}-CL{rest}", more) for arm, rest, more in CHAIN)):
            run(PREFIX + name, 0, world, changes=STEPS | more, **places)
    uvlm.store_truth(world, folder / "results")
    return folder


@pytest.fixture(scope="module")
def store(home) -> Store:
    return Store((home / "results",))


# stage 1


def test_the_loss_is_dice_and_entropy_at_every_scale_weighted_by_halves():
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 8, 8))
    logits = [torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 4, 4)]
    one = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    coarse = target[:, :, 1::2, 1::2]  # of two voxels side by side the second lies nearer to the middle
    wanted = one(logits[0], target[:, None]) + 0.5 * one(logits[1], coarse[:, None])
    assert segmentation_loss(logits, target).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_as_in_nnunet_the_loss_is_the_formula_in_a_plain_loop():
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 8, 8))
    target[1][target[1] == 2] = 0  # a class that one patch hasn't
    grids = (4, 8, 8), (4, 4, 4), (2, 2, 2)
    logits = [torch.randn(2, 3, *grid, dtype=torch.float64) for grid in grids]
    coarse = [target, target[:, :, 1::2, 1::2], target[:, 1::2, 2::4, 2::4]]  # the nearest to each cell's middle
    halves = np.array([1 / 2**k for k in range(3)])  # as nnU-Net's trainer writes it
    halves[-1] = 0
    halves = halves / halves.sum()
    wanted = 0.0
    for weight, scale, true in zip(halves, logits, coarse, strict=True):
        p, dice, entropy = scale.softmax(dim=1), [], []
        for b in range(2):
            for c in (1, 2):
                both, sizes = p[b, c][true[b] == c].sum(), p[b, c].sum() + (true[b] == c).sum()
                dice.append((2 * both + 1e-5) / (sizes + 1e-5))
            entropy += [-p[b, c][true[b] == c].log() for c in range(3)]
        wanted += weight * (torch.cat(entropy).mean() - torch.stack(dice).mean())
    found = segmentation_loss(logits, target, as_nnunet=True).item()
    assert found == pytest.approx(wanted.item() + 1, rel=1e-5)  # 1 − Dice; MONAI goes to 32 bits
    assert abs(found - segmentation_loss(logits, target).item()) > 0.1


def test_weights_of_the_scales_are_nnunet_s():
    assert np.allclose(scale_weights(5), np.array([1, 1 / 2, 1 / 4, 1 / 8, 0]) / 1.875)
    assert scale_weights(2) == [1, 0] and scale_weights(1) == [1]


@pytest.mark.parametrize("gaussian", [False, True])
def test_sliding_windows_are_added_up_as_in_a_plain_loop(gaussian):
    model, patch = unet(("background", "liver", "spleen"), "phantom", seed=0).eval(), (8, 16, 16)
    hu = np.random.default_rng(0).integers(-1000, 1000, (1, 8, 24, 32)).astype(np.int16)
    away = [(np.arange(n) - (n - 1) / 2) / (n / 8) for n in patch]  # from the middle, in eighths of the window
    weight = np.exp(-0.5 * sum(one**2 for one in np.meshgrid(*away, indexing="ij"))).clip(1e-3)  # MONAI's floor
    votes = np.zeros((3, *hu.shape[1:]))
    for y in (0, 8):
        for x in (0, 8, 16):
            place = (slice(None), slice(y, y + 16), slice(x, x + 16))
            with torch.inference_mode():
                logits = model(torch.from_numpy(as_input(hu[0][place]))[None, None])[0][0]
            votes[(slice(None), *place)] += logits.numpy() * (weight if gaussian else 1)
    found = unet_training.segment(model, hu, patch, gaussian=gaussian)[0]
    assert np.mean(found == votes.argmax(axis=0)) > 0.999  # 32 bits can tell ties apart otherwise
    other = unet_training.segment(model, hu, patch, gaussian=not gaussian)[0]
    assert np.mean(found != other) > 0.01


def test_rare_classes_weigh_more():
    target = np.repeat(np.uint8([0, 1, 2]), [90, 9, 1])
    weights = class_weights(target, 4)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(10), rel=1e-5)
    assert weights[3] == weights[2]  # a class that nobody has counts as the rarest


def test_dice_of_a_class_is_the_masks_and_nothing_where_it_is_not():
    rng = np.random.default_rng(0)
    true, found = rng.integers(0, 3, (2, 3, 4, 5)).astype(np.uint8)[:, None], None
    true = np.concatenate([true[0], np.zeros_like(true[0])])
    found = rng.integers(0, 3, true.shape).astype(np.uint8)
    known = Segmented(("a", "b"), true.astype(np.int16), true, ("background", "liver", "spleen"))
    got = dice_of(found, known)
    for k in (1, 2):
        assert got[0, k - 1] == pytest.approx(dice(found[0] == k, true[0] == k))
    assert np.isnan(got[1]).all()


def test_a_lesion_belongs_to_the_organ_next_to_it():
    classes = ClassMap.of("phantom", "C+L")
    liver, kidney, cyst = (classes.names.index(name) for name in ("liver", "kidney", "cyst"))
    found = np.zeros((3, 4, 12), np.uint8)
    found[:, :, :4], found[:, :, 8:] = liver, kidney
    found[1, 1, 1:3], found[1, 2, 8] = cyst, cyst
    assert lesion_voxels(found, classes, ORGANS).tolist() == [2, 1, 0]
    assert lesion_voxels(np.zeros_like(found), classes, ORGANS).tolist() == [0, 0, 0]
    with pytest.raises(BadInput, match="no lesions to count"):
        lesion_voxels(found, ClassMap.of("phantom", "C"), ORGANS)


def test_a_patch_holds_the_foreground_more_often_than_by_chance():
    target = np.zeros((8, 32, 32), np.uint8)
    target[0, 0, 0] = 1
    rng = np.random.default_rng(0)
    hits = np.mean([target[unet_training._patch(target, rng, (2, 4, 4))].any() for _ in range(300)])
    assert hits > 0.5 * unet_training.OF_FOREGROUND


def test_sliding_windows_of_the_whole_size_are_the_whole(world):
    model = unet(("background", "liver"), "phantom", seed=0).eval()
    hu = world.split("test").scans.hu[:2]
    assert np.array_equal(unet_training.segment(model, hu), unet_training.segment(model, hu, hu.shape[1:]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": ("background", "spleen", "liver")}, "the targets have"),
        ({"batch": 9}, "larger than the cohort"),
        ({"patch_dhw_vox": (64, 32, 32)}, "smaller than the patch"),
    ],
)
def test_stage_1_refuses_what_does_not_fit(world, changes, told):
    known = world.split("train").segmented("C")
    model = unet(changes.pop("classes", known.classes), "phantom", seed=0)
    with pytest.raises(BadInput, match=told):
        unet_training.fit(model, known, Training(1, 1e-3), **{"batch": 2} | changes)


def test_labels_outside_of_the_class_map_are_refused():
    with pytest.raises(BadInput, match="a target holds label 2 and there are 2 classes"):
        Segmented(("a",), np.zeros((1, 2, 2, 2), np.int16), np.full((1, 2, 2, 2), 2, np.uint8), ("background", "liver"))
    with pytest.raises(BadInput, match="a target holds label -1 and there are 2 classes"):
        Segmented(("a",), np.zeros((1, 2, 2, 2), np.int16), np.full((1, 2, 2, 2), -1, np.int8), ("background", "liver"))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_hu_that_are_no_numbers_are_not_segmented(wrong):
    hu = np.full((1, 8, 8, 16), -1000, np.float32)
    model = unet(("background", "liver"), "phantom", seed=0)
    assert unet_training.segment(model, hu).shape == hu.shape
    hu[0, 1, 2, 3] = wrong
    with pytest.raises(BadInput, match="HU that are NaN or infinite"):
        unet_training.segment(model, hu)


# stage 2


def test_the_classifier_is_equation_2_by_hand():
    model = QueryClassifier(unet_encoder("phantom", seed=0), ("a", "b", "c"), seed=1)
    torch.manual_seed(0)
    features = torch.randn(1, 64, 2, 2, 2)
    tokens = features[0].flatten(1).T
    weight, bias = model.attention.in_proj_weight.chunk(3), model.attention.in_proj_bias.chunk(3)
    query, key, value = ((x @ w.T + b) for x, w, b in zip((model.queries, tokens, tokens), weight, bias, strict=True))
    heads = []
    for head in range(4):
        part = slice(16 * head, 16 * (head + 1))
        share = (query[:, part] @ key[:, part].T / 4).softmax(dim=1)
        heads.append(share @ value[:, part])
    taken = model.norm(model.attention.out_proj(torch.cat(heads, dim=1)))
    assert torch.allclose(model.head(features)[0], model.linear(taken.flatten()), atol=1e-5)


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        ({"queries": -1}, "queries is -1; give how many, or 0"),
        ({"heads": 5}, "64 channels can't be shared by 5 heads"),
        ({"heads": 0}, "64 channels can't be shared by 0 heads"),
        ({"labels": ()}, "there are no labels"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(switches, told):
    with pytest.raises(BadInput, match=told):
        QueryClassifier(unet_encoder("phantom", seed=0), **{"labels": ("a", "b")} | switches)


@pytest.mark.parametrize(("rate", "moves"), [(0.0, False), (0.1, True)])
def test_the_encoder_learns_only_at_a_rate(world, rate, moves):
    split = world.split("train")
    model = QueryClassifier(unet_encoder("phantom", seed=0), LABELS)
    before = model.encoder.stem.convs[0].conv.weight.detach().clone()
    fit(model, split.scans, split.labels, Training(1, 1e-3, warmup_share=0), 2, rate, progress=False)
    moved = (model.encoder.stem.convs[0].conv.weight - before).abs().max().item()
    assert (moved > 0) == moves
    assert moved <= 1.1 * rate * 1e-3  # AdamW's first step is as long as the rate


def test_the_head_learns_alone_on_maps_that_are_those_of_the_volumes(world):
    split = world.split("train")
    model = QueryClassifier(unet_encoder("phantom", seed=0), LABELS)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    curve = fit_head(model, split.scans, split.labels, Training(1, 1e-3, warmup_share=0), 6, progress=False)
    volume = torch.from_numpy(as_input(split.scans.hu))[:, None]
    head = {name: one for name, one in before.items() if not name.startswith("encoder.")}
    moved = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert moved and moved <= set(head)
    model.load_state_dict(before)
    with torch.no_grad():
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(
            model(volume), torch.from_numpy(split.labels).float()
        )
    assert curve[0]["loss"] == pytest.approx(wanted.item(), rel=1e-3)  # maps are kept in 16 bits
    with pytest.raises(BadInput, match="larger than the 12 kept maps"):
        fit_head(model, split.scans, split.labels, Training(1, 1e-3), 64, views=2, progress=False)


# stage 3


def test_a_patient_without_findings_in_words_is_refused(world):
    scans = world.split("train").scans
    silent = replace(scans, reports=("", *scans.reports[1:]))
    writer = uvlm.build(uvlm_arms.Arm(uvlm_arms.REP))
    with pytest.raises(BadInput, match="has no findings in words"):
        report_writer.fit(writer, silent, Training(1, 1e-3), 2, progress=False)


def test_kept_features_give_the_loss_of_the_volumes(world):
    split, writer = world.split("train"), uvlm.build(uvlm_arms.Arm(uvlm_arms.REP, injected=True)).eval()
    kept = [stage[:2].float() for stage in report_writer.kept_features(writer, split.scans)]
    volume = torch.from_numpy(as_input(split.scans.hu[:2]))[:, None]
    with torch.no_grad():
        one, two = writer(kept, split.scans.reports[:2]), writer(writer.features(volume), split.scans.reports[:2])
    assert one.item() == pytest.approx(two.item(), rel=1e-3)  # kept in 16 bits


def test_injection_reads_every_stage_and_the_input_alone_only_the_last():
    for injected, read_stages in ((True, {1, 2, 3, 4, 5}), (False, {5})):
        writer = uvlm.build(uvlm_arms.Arm(uvlm_arms.REP, injected=injected))
        assert {stage for stage in writer.decoder.injection.map if stage} | (set() if injected else {5}) == read_stages


# arms


def test_every_arm_begins_with_an_arm_of_an_earlier_stage():
    order = {stage: k for k, stage in enumerate(uvlm_arms.STAGES)}
    for name, arm in ARMS.items():
        if arm.start:
            assert order[ARMS[arm.start].stage] < order[arm.stage], name
        assert uvlm_arms.described(arm)


def test_a_chain_hands_its_encoder_on(home):
    folder = home / "checkpoints"
    tensors = [checkpoints.load(f"{PREFIX}{name}", folder)[0] for name in ("cls-CL", "rep-CL-cls-skip")]
    shared = [name for name in tensors[0] if name.startswith("encoder.")]
    assert shared and all(torch.equal(tensors[0][name], tensors[1][name]) for name in shared)  # frozen in stage 3
    other = checkpoints.load(f"{PREFIX}seg-CL", folder)[0]
    assert not all(torch.equal(tensors[0][name], other[name]) for name in shared)  # tuned in stage 2


def test_a_pretrained_decoder_is_not_stored_but_what_learnt_is(home):
    tensors, record = checkpoints.load(f"{PREFIX}rep-CL-cls-lora", home / "checkpoints")
    assert any("lora_A" in name for name in tensors) and not any("embed_tokens" in name for name in tensors)
    assert record["arm"]["lora"] == "large"


def test_what_of_a_pretrained_decoder_is_not_stored_is_the_same_when_it_is_read(home):
    name, (arm, folder) = f"{PREFIX}rep-CL-cls-lora", (ARMS[f"{PREFIX}rep-CL-cls-lora"], home / "checkpoints")
    torch.rand(1)  # whatever was drawn before
    built, again = uvlm.build(arm, 0, folder).state_dict(), read(name, folder).state_dict()
    stored = checkpoints.load(name, folder)[0]
    rest = [one for one in again if one not in stored]
    assert any(one.endswith("embed_tokens.weight") for one in rest)
    assert all(torch.equal(built[one], again[one]) for one in rest)


def test_the_minutes_of_a_resumed_arm_hold_all_of_its_training(world, tmp_path, monkeypatch):
    monkeypatch.setattr(uvlm, "ask", lambda *_: {"dice": np.zeros((1, 2))})
    name, changes = f"{PREFIX}seg-C", {"steps": 2, "batch": 2, "patients": 2}
    places = {one: tmp_path / one for one in ("folder", "checkpoint_folder", "results")}
    run(name, 0, world, splits=["validation"], changes=changes, progress=False, **places)
    [file] = (tmp_path / "folder" / name).glob("step-*/curve.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["curve"][-1]["seconds"] = 720.0
    file.write_text(json.dumps(content), encoding="utf-8")
    run(name, 0, world, splits=["validation"], changes=changes, progress=False, **places)
    record = json.loads((tmp_path / "results" / name / "record.json").read_text(encoding="utf-8"))
    assert record["seconds"] == 720 and 12 <= record["minutes"] < 14


def test_what_is_asked_again_says_the_same(home, world, store):
    model = read(f"{PREFIX}cls-CL", home / "checkpoints")
    said = uvlm.ask(model, world.split("test"), ARMS[f"{PREFIX}cls-CL"])
    assert np.allclose(said["logits"], store.said(f"{PREFIX}cls-CL", 0, "test")["logits"], atol=2e-3)


def test_what_was_said_comes_back_from_its_file(tmp_path):
    said = {"dice": np.array([[0.5, np.nan]]), "lesion": np.array([[3, 0, 12]]), "report": np.array(["a b", "ü"])}
    back = read_said(write_said(said, tmp_path / "test.npz"))
    assert np.array_equal(back["dice"], said["dice"], equal_nan=True)
    assert back["lesion"].tolist() == said["lesion"].tolist() and back["report"].tolist() == ["a b", "ü"]


def test_shares_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    called, truth = rng.random((2, 40, 5)) < 0.4
    wanted = precision_recall_fscore_support(truth, called, average="macro", zero_division=0)
    for measure, value in zip(("precision", "recall", "F1"), wanted, strict=False):
        assert f1_of(called, truth, np.ones((1, 40)), measure)[0] == pytest.approx(value)


def test_a_classifier_s_area_is_scikit_learn_s_and_needs_no_threshold(store):
    truth, said = (one.astype(float) for one in (store.truth("test")["labels"],
                                                 store.said(f"{PREFIX}cls-CL", 0, "test")["logits"]))  # fmt: skip
    mixed = [j for j in range(len(LABELS)) if 0 < truth[:, j].sum() < len(truth)]
    found = store.scores(f"{PREFIX}cls-CL", 0)["labels AUROC"]
    assert found.value == pytest.approx(np.mean([roc_auc_score(truth[:, j], said[:, j]) for j in mixed]))
    assert found.labels == len(mixed)


def test_calling_everything_is_a_floor_of_f1(store):
    truth, floor = store.truth("test")["labels"], store.everything_called()
    wanted = f1_score(truth, np.ones_like(truth), average="macro", zero_division=0)
    assert floor["labels F1"].value == pytest.approx(wanted)
    frequent = organ_lesions(truth).mean(axis=0)
    assert floor["lesions F1"].value == pytest.approx(np.mean(2 * frequent / (1 + frequent)))
    assert floor["labels recall"].value == pytest.approx((truth.sum(axis=0) > 0).mean())


def test_a_report_s_measures_are_those_of_its_texts(store):
    said = store.said(f"{PREFIX}rep-CL-cls-skip", 0, "test")["report"]
    truth = store.truth("test")
    found = store.scores(f"{PREFIX}rep-CL-cls-skip", 0)
    wanted = text_scores(list(said), list(truth["report"]), metrics=list(BLEU))
    assert found["BLEU-mean"].value == pytest.approx(np.mean(list(wanted.values())) / 100)
    called = np.array([read_labels(text) for text in said])
    assert found["lesions F1"].value == f1_of(
        organ_lesions(called), organ_lesions(truth["labels"]), np.ones((1, len(said)))
    )
    assert read_labels(truth["report"][0]) == truth["labels"][0].astype(bool).tolist()


def test_a_table_follows_from_what_was_said_and_is_checked(home, store):
    folder = home / "results" / f"{PREFIX}seg-CL"
    text = ledger.table_text(folder)
    ledger.write_table(folder)
    assert ledger.compare((folder / ledger.NAME).read_text(), text) == []
    changed = text.replace(",12,", ",11,", 1)
    assert ledger.compare(changed, text)
    rows = measures_of(store, f"{PREFIX}seg-CL", 0)
    assert {"Dice of anatomy", "Dice of lesions", "liver lesions F1"} <= set(rows["measure"])
    shown = ledger.interval(read_table(folder), Staged(f"{PREFIX}seg-CL", "Dice of anatomy", percent=True))
    assert shown.value == pytest.approx(100 * store.scores(f"{PREFIX}seg-CL", 0)["Dice of anatomy"].value, abs=1e-4)
    assert shown.low <= shown.value <= shown.high


def test_every_number_of_ours_stands_beside_an_arm_and_a_measure_that_there_are():
    shown = {f"BLEU-{n}" for n in (1, 2, 3, 4, "mean")}
    shown |= {f"{what} {share}" for what in ("labels", "lesions", *(f"{o} lesions" for o in ORGANS))
              for share in ("F1", "precision", "recall")}  # fmt: skip
    there = 0
    for table in ("T2", "T3", "T4", "T5"):
        for cell in published.table(f"uvlm.{table}"):
            found = ledger.quantity(cell)
            if found is not None:
                assert found.arm in ARMS and found.measure in shown, cell
                there += 1
    assert there > 60


def test_contrasts_compare_arms_that_there_are():
    for one in ledger.listed_contrasts():
        assert {PREFIX + one.left, PREFIX + one.right} <= set(ARMS), one.name
    table = ledger.verdicts(Store(()))
    assert set(table["verdict"]) == {"not measured yet"}


def test_a_record_says_by_which_arm_and_settings(home):
    record = json.loads((home / "results" / f"{PREFIX}cls-CL" / "record.json").read_text())
    assert record["arm"]["start"] == f"{PREFIX}seg-CL" and record["settings"]["steps"] == 2
    assert "uvlm_protocol" in record and record["seed"] == 0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: run("uvlm-rep-all"), "no arm is called"),
        (lambda: run(f"{PREFIX}cls-none", changes={"speed": 1}, splits=("validation",)), "no setting 'speed'"),
        (lambda: read("A"), "isn't of an arm of U-VLM"),
    ],
)
def test_bad_input_gets_a_sentence(call, told):
    with pytest.raises(BadInput, match=told):
        call()
