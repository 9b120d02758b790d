"""The small VISTA-3D: MONAI's class, trained on phantoms, prompted by class and by clicks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctvlm_lib import __main__ as command_line
from ctvlm_lib import segment, train_command
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.phantom import patient
from ctvlm_lib.segment import small_training as training
from ctvlm_lib.segment.small import SmallVista, Trained, load_small, save_small
from ctvlm_lib.training import Step, Training
from ctvlm_lib.volume import RECIPES, Volume, recipe, scale_range

TINY = SmallVista(width=8, filters=8, blocks=(1, 1))


@pytest.fixture(scope="module")
def drawn():
    return patient(3, 5, training.SHAPE)


@pytest.fixture(scope="module")
def scans(drawn):
    return training.Scans.of([drawn])


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    network = TINY.build().eval()
    return Trained(network, "untrained", ("liver", "spleen"), training.SPACING_MM, training.SHAPE)


class Ball(torch.nn.Module):
    """A network that marks what lies within three voxels of the first click, and the liver's slice 5."""

    def forward(self, image, point_coords=None, point_labels=None, class_vector=None, patch_coords=None, **_):
        if class_vector is not None:
            logits = torch.full((1, len(class_vector), *image.shape[2:]), -1.0)
            logits[:, 0, :, :, 5] = 1
            return logits
        start = torch.tensor([s.start for s in patch_coords[0][-3:]])
        grid = torch.stack(torch.meshgrid(*map(torch.arange, image.shape[2:]), indexing="ij"), dim=-1)
        return (3 - torch.linalg.norm(grid - (point_coords[0, 0] - start), dim=-1))[None, None]


def test_at_full_size_it_is_the_released_network():
    from monai.networks.nets.vista3d import vista3d132

    with torch.device("meta"):
        ours, released = SmallVista(48, 48, (1, 2, 2, 4, 4)).build().state_dict(), vista3d132().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in released.items()}


def test_training_sees_what_the_recipe_shows(drawn, scans):
    at_spacing = recipe.vista3d(drawn.volume, training.SPACING_MM)[0, 0]
    np.testing.assert_allclose(scale_range(scans.hu[0], *RECIPES["VISTA-3D"].range_hu), at_spacing, atol=1e-6)


def test_an_example_is_a_function_of_seed_and_step(scans):
    image, labels = scans.example(Step(7, 0))
    again, _ = scans.example(Step(7, 0))
    other, _ = scans.example(Step(8, 0))
    np.testing.assert_array_equal(image, again)
    assert image.shape == labels.shape and set(image.shape) <= set(training.SIDES)
    assert other.shape != image.shape or not np.array_equal(other, image)
    assert image.min() >= 0 and image.max() <= 1


def test_clicks_lie_where_their_signs_say(scans):
    ids, points, signs = training._clicks(scans.labels[0], np.array(training.IDS), np.random.default_rng(0))
    assert len(ids) == training.OBJECTS and (signs[:, 0] == 1).all()
    for i, clicks, kinds in zip(ids, points.int().tolist(), signs.tolist(), strict=True):
        for click, sign in zip(clicks, kinds, strict=True):
            assert sign == -1 or (scans.labels[0][tuple(click)] == i) == bool(sign)


@pytest.mark.parametrize(("prompts", "learns"), [("class", "class_head.mlp"), ("clicks", "point_head.transformer")])
def test_a_branch_learns_and_nothing_else_changes(scans, untrained, monkeypatch, prompts, learns):
    monkeypatch.setattr(training, "SIDES", (16,))
    monkeypatch.setattr(training, "SMALLEST_VOX", 1)
    before = {k: v.clone() for k, v in untrained.network.state_dict().items()}
    trained, curve = training.train_small(scans, Training(2, lr=1e-2), untrained, TINY, prompts=prompts, progress=False)
    after = trained.network.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert len(curve) == 2 and any(k.startswith(learns) for k in changed)
    assert all(k.startswith(training.INTERACTIVE) == (prompts == "clicks") for k in changed)
    assert all(torch.equal(before[k], v) for k, v in untrained.network.state_dict().items())


def test_inside_and_outside_weigh_alike_for_clicks():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:2, :2, :2] = 3
    flat = [torch.full((1, 1, 8, 8, 8), value) for value in (-4.0, 4.0)]
    nowhere, everywhere = (training._dice_and_entropy(logits, labels, np.array([3]), balanced=True) for logits in flat)
    plain = training._dice_and_entropy(flat[0], labels, np.array([3]))
    entropy = torch.nn.functional.softplus(torch.tensor(4.0))
    assert nowhere - 0.98 > entropy / 2 - 0.1 and everywhere - 0.98 > entropy / 2 - 0.1 and plain < 1.1


def test_a_checkpoint_predicts_as_the_network_did(untrained, drawn, tmp_path):
    save_small(replace(untrained, name="tiny"), TINY, {}, tmp_path)
    half = {k: v.half().float() if v.is_floating_point() else v for k, v in untrained.network.state_dict().items()}
    loaded = load_small("tiny", tmp_path)
    assert all(torch.equal(half[k], v) for k, v in loaded.network.state_dict().items())
    assert (loaded.classes, loaded.spacing_mm, loaded.patch) == (("liver", "spleen"), training.SPACING_MM, (64, 64, 64))
    found = segment.segment(drawn.volume, ["liver"], loaded)
    assert found.labels.shape == drawn.volume.shape and found.notes[0].startswith("segmented by VISTA-3D (tiny)")


def test_a_class_that_it_never_saw_is_refused(untrained, drawn):
    with pytest.raises(BadInput, match="never trained for bladder; it knows liver, spleen"):
        segment.segment(drawn.volume, ["bladder"], untrained)


def test_the_networks_own_spacing_places_the_labels():
    """Slice 5 of the network's grid from below, on a CT of another spacing."""
    hu = np.full((64, 40, 40), 40.0, np.float32)  # 32 slices of 4 mm: the window pads nothing
    affine = np.array([[0, 0, 2.0, -30], [0, 2.0, 0, 50], [2.0, 0, 0, -400], [0, 0, 0, 1]])
    ct = Volume(hu, affine, name="block")
    found = segment.segment(ct, ["liver"], Trained(Ball(), "ball", ("liver",), (4.0, 4.0, 4.0), (32, 32, 32)))
    np.testing.assert_array_equal(np.flatnonzero(found.labels.any(axis=(1, 2))), [10, 11])


@pytest.mark.parametrize("click", [(12, 30, 9), (40, 11, 33)])
def test_a_click_is_marked_where_it_was_made(click):
    hu = np.full((60, 44, 48), 40.0, np.float32)
    affine = np.array([[0, 0, 2.0, -30], [0, 2.0, 0, 50], [3.0, 0, 0, -400], [0, 0, 0, 1]])
    ball = Trained(Ball(), "ball", ("liver",), (2.0, 2.0, 2.0), (48, 48, 48))
    found = segment.segment_at(Volume(hu, affine, name="block"), [click], ball, name="lesion")
    middle = np.argwhere(found.binary("lesion")).mean(axis=0)
    np.testing.assert_allclose(middle, click, atol=0.5)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [([], "no point was given"), ([(0, 0, 500)], "lies outside the part of the CT that holds the body")],
)
def test_clicks_that_cant_be_are_refused(untrained, drawn, points, sentence):
    with pytest.raises(BadInput, match=sentence):
        segment.segment_at(drawn.volume, points, untrained)


def test_a_reader_clicks_at_the_deepest_voxel():
    region = np.zeros((9, 12, 15), dtype=bool)
    region[1:8, 2:9, 3:12] = True
    d, h, w = training.deepest(region)
    assert (d, h) == (4, 5) and 6 <= w <= 8


def test_other_kinds_of_prompts_are_refused(scans):
    with pytest.raises(BadInput, match="prompts must be 'class' or 'clicks'"):
        training.train_small(scans, Training(1, lr=1e-3), prompts="text")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [(lambda: training.Scans.of([]), "no patients"), (lambda: training.Scans.of([patient(0)]), "shape=")],
)
def test_patients_that_cant_be_trained_on_are_refused(given, sentence):
    with pytest.raises(BadInput, match=sentence):
        given()


def test_the_train_command_lists_what_it_can_train_and_refuses_the_rest(capsys):
    assert command_line.main(["train"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in train_command.TRAININGS)
    assert command_line.main(["train", "gpt"]) == 2
    assert "there are: " in capsys.readouterr().err


def test_what_can_be_trained_ships_and_has_its_function():
    import importlib

    for name, one in train_command.TRAININGS.items():
        assert callable(importlib.import_module(one.module).make), name


def test_the_command_trains_scores_and_writes_a_checkpoint(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CTVLM_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("CTVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "SIDES", (16,))
    stages = (Training(2, lr=1e-3), Training(1, lr=1e-3))
    few = {"seed": 0, "stages": stages, "patients": 1, "held_out": 1, "progress": False}
    monkeypatch.setattr(training.make, "__kwdefaults__", few)
    monkeypatch.setattr(training, "CLASSES", ("liver", "heart"))
    monkeypatch.setattr(training, "IDS", (1, 115))
    assert command_line.main(["train", "vista3d_phantom", "--out", str(tmp_path / "made")]) == 0
    assert "vista3d_phantom: " in capsys.readouterr().out
    record = load_small(folder=tmp_path / "made").record
    assert set(record["dice_by_class_prompt"]) == set(record["dice_by_one_click"]) == {"liver", "heart"}
    assert record["training"]["class prompts"]["steps"] == 2
    assert {stage: len(curve) for stage, curve in record["curves"].items()} == {"class prompts": 2, "clicks": 1}
