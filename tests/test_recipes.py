"""What each paper's system is fed: shape, range, axes, left and right, and parity with the released steps."""

import numpy as np
import pytest
from helpers_ct import lps_affine

from ctvlm_lib import volume as volumes
from ctvlm_lib.volume import RECIPES, Volume

RANGES = {"Med3DVLM": (0, 1), "CT-CLIP": (-1, 1), "MedVista3D": (-1, 1), "Merlin": (0, 1), "VISTA-3D": (0, 1)}


@pytest.fixture(scope="module")
def marked() -> Volume:
    """A trunk of 240×200×180 mm in air with a dense ball in the patient's right, anterior, upper part."""
    shape = (40, 50, 60)
    d, h, w = (np.indices(shape) - (np.array(shape) / 2 - 0.5).reshape(3, 1, 1, 1)) / np.reshape(shape, (3, 1, 1, 1))
    hu = np.where(h**2 + w**2 < 0.2, 40.0, -1000.0)
    hu[(d - 0.2) ** 2 * 2 + (h + 0.2) ** 2 + (w + 0.15) ** 2 < 0.004] = 1000.0
    hu[0, 0, 0] = -1000
    return Volume(hu, lps_affine((6.0, 4.0, 3.0), (-88.5, -98.0, 40.0)))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_gives_its_shape_range_and_axes_and_leaves_the_right_lung_on_the_right(marked, name):
    recipe = RECIPES[name]
    tensor = recipe(marked)
    assert tensor.dtype == np.float32 and tensor.shape[:2] == (1, 1)
    assert tensor.shape[2:] == (recipe.shape or (120, 133, 160))  # 180×200×240 mm at 1.5 mm, as (x, y, z)
    if name in RANGES:
        assert (tensor.min(), tensor.max()) == pytest.approx(RANGES[name], abs=0.05)
    else:
        assert abs(tensor.mean()) < 0.05 and tensor.std() == pytest.approx(1, abs=0.05)
    shown = recipe.for_display(tensor)
    place = np.argwhere(shown > shown.min() + 0.8 * (shown.max() - shown.min())).mean(axis=0) / shown.shape
    # up, in front, and on the left of the screen, which is the patient's right
    assert place[0] > 0.52 and place[1] < 0.48 and place[2] < 0.48
    own = np.argwhere(tensor[0, 0] > tensor.min() + 0.8 * (tensor.max() - tensor.min())).mean(axis=0) / tensor.shape[2:]
    # each axis grows in the direction of its letter; the ball is right (R), anterior (A) and superior (S)
    for position, letter in zip(own, recipe.axes, strict=True):
        assert (position > 0.5) == (letter in "RAS"), (name, letter)


@pytest.mark.parametrize("name", ["CT-CLIP", "MedVista3D", "Merlin"])
def test_recipes_with_a_fixed_field_keep_millimetres(marked, name):
    """The ball lies as far from the trunk's middle as in the patient, whatever the grid; padding is air."""
    spacing = {"CT-CLIP": (1.5, 0.75, 0.75), "MedVista3D": (3, 1, 1), "Merlin": (3, 1.5, 1.5)}[name]
    shown = RECIPES[name].for_display(RECIPES[name](marked))
    assert (shown[:, 0] == RANGES[name][0]).all()
    ball = np.argwhere(shown > 0.9 * shown.max()).mean(axis=0) - (np.array(shown.shape) - 1) / 2
    true = np.argwhere(marked.hu > 900).mean(axis=0) - (np.array(marked.shape) - 1) / 2
    np.testing.assert_allclose(ball * spacing, true * marked.spacing_mm, atol=2)  # a third of the largest old voxel


def _interpolated(hu, size) -> np.ndarray:
    """What the released codes of CT-CLIP and Med3DVLM call to change a grid."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, size=tuple(size), mode="trilinear", align_corners=False)
    return resized[0, 0].numpy()


def _noise(shape, spacing) -> Volume:
    hu = np.random.default_rng(0).uniform(-3024, 1800, shape).round()
    return Volume(hu, lps_affine(spacing))


def test_ct_clip_equals_the_plain_formula():
    """Clip, trilinear, divide by 1000, centre-crop or pad with −1; here z is padded by an odd number, rows cropped."""
    made = _noise((21, 250, 30), (4.5, 1.5, 1.5))
    resized = _interpolated(made.hu.clip(-1000, 1000), (63, 500, 60)) / 1000
    expected = np.full((240, 480, 480), -1, np.float32)
    expected[88 : 88 + 63, :, 210:270] = resized[:, 10:490]  # (240 − 63) // 2 = 88 before
    # float32 interpolation weights on steps of 2000 HU, divided by 1000
    np.testing.assert_allclose(RECIPES["CT-CLIP"](made)[0, 0], expected, atol=2e-4)


def test_medvista3d_is_ct_clips_formula_on_its_own_grid():
    made = _noise((20, 40, 30), (6.0, 2.0, 3.0))
    resized = _interpolated(made.hu.clip(-1000, 1000), (40, 80, 90)) / 1000
    expected = np.full((96, 320, 320), -1, np.float32)
    expected[28:68, 120:200, 115:205] = resized
    np.testing.assert_allclose(RECIPES["MedVista3D"](made)[0, 0], expected, atol=2e-4)


def test_med3dvlm_equals_min_max_foreground_crop_and_resize():
    made = _noise((20, 24, 26), (3.0, 1.0, 1.0))
    hu = made.hu.copy()
    hu[:, :5], hu[17:], hu[..., 20:] = -3024, -3024, -3024  # background on three sides
    unit = (hu + 3024) / (hu.max() + 3024)
    expected = _interpolated(unit[:17, 5:, :20], (128, 256, 256))
    np.testing.assert_allclose(RECIPES["Med3DVLM"](Volume(hu, made.affine))[0, 0], expected, atol=1e-4)


def test_uvlm_is_the_z_score_of_the_whole_volume_resized():
    made = _noise((20, 24, 26), (3.0, 1.0, 1.0))
    expected = _interpolated((made.hu - made.hu.mean()) / made.hu.std(), (192, 256, 256))
    np.testing.assert_allclose(RECIPES["U-VLM"](made)[0, 0], expected, atol=1e-3)


# --- parity with MONAI -----------------------------------------------------------------------------------------


def _monai(name: str, file):
    """The released MONAI transforms, without what only chooses a part of the image or handles point prompts."""
    from monai.transforms import (
        CenterSpatialCropd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
        SpatialPadd,
    )  # fmt: skip

    key = {"keys": ["image"]}
    read = [LoadImaged(**key), EnsureChannelFirstd(**key)]
    turn = Orientationd(**key, axcodes="RAS", labels=None)
    if name == "VISTA-3D":  # bundle: spacing, intensity, orientation
        unit = {"a_min": -963.8247715525971, "a_max": 1053.678477684517, "b_min": 0.0, "b_max": 1.0, "clip": True}
        steps = [Spacingd(**key, pixdim=(1.5, 1.5, 1.5), mode="bilinear"), ScaleIntensityRanged(**key, **unit), turn]
    else:
        unit = {"a_min": -1000, "a_max": 1000, "b_min": 0.0, "b_max": 1.0, "clip": True}
        field = {"spatial_size": (224, 224, 160)}
        steps = [turn, Spacingd(**key, pixdim=(1.5, 1.5, 3), mode="bilinear"), ScaleIntensityRanged(**key, **unit)]
        steps += [SpatialPadd(**key, **field), CenterSpatialCropd(**key, roi_size=field["spatial_size"])]
    return Compose(read + steps)({"image": str(file)})["image"]


@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [("VISTA-3D", (15, 22, 31), (1.5, 1.5, 1.5)), ("Merlin", (170, 30, 240), (3.0, 1.5, 1.5))],
)
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "IRP"])
def test_recipe_equals_monai_where_no_resampling_is_needed(tmp_path, name, shape, spacing, orientation):
    """Same axes, direction, intensities, crop and padding, voxel by voxel."""
    made = Volume(_noise(shape, spacing).hu, lps_affine(spacing), orientation)
    theirs = _monai(name, made.save(tmp_path / "ct.nii"))
    ours = RECIPES[name](volumes.load(tmp_path / "ct.nii", check=False))
    # MONAI passes the image through an interpolation even here: float32 weights of about 1e-7 on steps of 2.4 ranges
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-3)


def _field(mm: np.ndarray) -> np.ndarray:
    """A smooth field in HU over LPS millimetres ``(…, 3)``."""
    x, y, z = np.moveaxis(mm, -1, 0)
    return 250 * np.sin(x / 14) + 200 * np.cos(y / 11) + 150 * np.sin((x + z) / 17)


@pytest.mark.parametrize("name", ["VISTA-3D", "Merlin"])
def test_recipe_and_monai_give_each_millimetre_the_same_value(tmp_path, name):
    """MONAI lays a new grid from the first voxel's centre, the recipe from its edge: voxels differ by a part of one.

    What must agree is the value at a place. The place of each voxel is read by passing coordinates through the steps.
    """
    grid = Volume(np.zeros((24, 40, 44)), lps_affine((2.5, 1.25, 1.1), (-25.0, -24.0, -30.0)))
    places = grid.mm_of(np.indices(grid.shape).transpose(1, 2, 3, 0))
    low, high = (-963.8247715525971, 1053.678477684517) if name == "VISTA-3D" else (-1000, 1000)

    def both(hu):
        volume = Volume(hu, grid.affine, "RAS")
        theirs = _monai(name, volume.save(tmp_path / "ct.nii"))
        return [t[0] * (high - low) + low for t in (theirs.numpy(), RECIPES[name](volume)[0])]

    found = both(_field(places))
    where = [both(10 * places[..., axis]) for axis in range(3)]
    for which in (0, 1):
        mm = np.stack([axis[which] / 10 for axis in where], axis=-1)
        # about the grid's middle, without its rim
        inner = (np.abs(mm - [-1.35, 0.375, -1.25]) < [21, 21, 26]).all(axis=-1)
        assert inner.sum() > 5000
        # linear interpolation of a field with second derivatives up to 2 HU/mm² on steps of 2.5 mm: about 2 HU
        np.testing.assert_allclose(found[which][inner], _field(mm[inner]), atol=3)
        if which == 0:
            monai_mm = mm
    size = tuple(min(a, b) for a, b in zip(monai_mm.shape, mm.shape, strict=True))[:3]
    near = tuple(slice(0, n) for n in size)
    shift = np.abs(monai_mm[near] - mm[near])[(inner[near])]
    voxel = (1.5, 1.5, 1.5 if name == "VISTA-3D" else 3.0)
    assert (shift.max(axis=0) < voxel).all()


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.range_hu])
def test_the_stated_range_is_what_the_recipe_gives(name):
    """Water, and values beyond both ends of the range, come out where the recipe's record says."""
    recipe = RECIPES[name]
    hu = np.zeros((24, 24, 24), np.float32)
    hu[:8], hu[16:] = -3000, 3000
    spacing = recipe.spacing_mm
    tensor = recipe(Volume(hu, np.diag([*spacing, 1.0])[[2, 1, 0, 3]]))
    low, high = recipe.range_values
    water = low + (0 - recipe.range_hu[0]) / (recipe.range_hu[1] - recipe.range_hu[0]) * (high - low)
    assert (tensor.min(), tensor.max()) == pytest.approx((low, high), abs=1e-6)
    assert np.median(tensor[(tensor > low) & (tensor < high)]) == pytest.approx(water, abs=1e-5)
