"""Label maps and masks: names, folders of binary masks, other grids, components, volumes, overlap."""

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import SYNTHETIC, block, labels_of, lps_affine, rotation, small_ct
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from ctvlm_lib import mask as masks
from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import largest_component
from ctvlm_lib.mask.labels import label_counts
from ctvlm_lib.volume import Volume, save_nifti

SHAPE = (5, 7, 9)


def _save(path, array, orientation="LPS", **geometry):
    return save_nifti(path, np.asarray(array, np.uint8), lps_affine(**geometry), orientation)


# --- reading -------------------------------------------------------------------------------------------------


def test_a_label_map_is_read_by_name_in_any_vocabulary():
    labels = masks.load(SYNTHETIC / "labels.nii.gz", names="vista3d")
    stored = np.asanyarray(nib.load(SYNTHETIC / "labels.nii.gz").dataobj)[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(labels.labels, stored)
    np.testing.assert_array_equal(labels.binary("liver"), stored == 1)
    np.testing.assert_array_equal(labels.binary("kidney_left"), stored == 14)  # TotalSegmentator's name
    assert labels.orientation == "RAS" and labels.labels.dtype == np.uint16
    assert repr(labels).startswith("LabelMap(40×64×72, 3.00×1.50×1.50 mm, 16 structures: liver, spleen")


def test_a_group_is_the_union_of_its_parts():
    labels = masks.load(SYNTHETIC / "labels.nii.gz", names="vista3d")
    np.testing.assert_array_equal(labels.binary("lung"), np.isin(labels.labels, [28, 29, 30, 31, 32]))
    np.testing.assert_array_equal(labels.binary("kidney"), np.isin(labels.labels, [5, 14]))


def test_the_same_id_means_what_the_vocabulary_says(tmp_path):
    file = _save(tmp_path / "map.nii.gz", block(SHAPE, ((0, 0, 0), (2, 2, 2))) * 5)
    assert masks.load(file, names="totalsegmentator").present == ["liver"]
    assert masks.load(file, names="vista3d").present == ["right kidney"]
    assert masks.load(file, names={5: "gallbladder"}).present == ["gallbladder"]


def test_names_in_the_header_extension_are_read(tmp_path):
    table = (
        '<?xml version="1.0"?><CaretExtension><LabelTable>'
        '<Label Key="2" Red="1"><![CDATA[kidney_right]]></Label><Label Key="7" Red="0"><![CDATA[my_lesion]]></Label>'
        "</LabelTable></CaretExtension>"
    )
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 2 * 2, np.eye(4))
    image.dataobj[0, 0, 0] = 7
    for code in (0, 30):
        image.header.extensions.clear()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, table.encode()))
        nib.save(image, tmp_path / f"seg{code}.nii.gz")
        labels = masks.load(tmp_path / f"seg{code}.nii.gz")
        assert labels.names == {2: "right kidney", 7: "my lesion"}  # the table's name, or the file's own
        assert labels.binary("my_lesion").sum() == 1


def test_a_binary_mask_is_named_after_its_file_whatever_its_value(tmp_path):
    mask = block(SHAPE, ((1, 1, 1), (3, 4, 5)))
    for value in (1, 255):
        labels = masks.load(_save(tmp_path / "kidney_left.nii.gz", mask * value))
        np.testing.assert_array_equal(labels.binary("left kidney"), mask)


def test_labels_without_a_name_are_refused(tmp_path):
    file = _save(tmp_path / "map.nii.gz", np.arange(np.prod(SHAPE)).reshape(SHAPE) % 4)
    with pytest.raises(BadInput, match=r"labels without a name: 1, 2, 3; give names="):
        masks.load(file)
    with pytest.raises(BadInput, match="labels without a name: 3"):
        masks.load(file, names={1: "liver", 2: "spleen"})


def test_a_ct_is_no_label_map(tmp_path):
    with pytest.raises(BadInput, match="whole labels from 0 to 65535 are expected; is it a CT"):
        masks.load(small_ct().save(tmp_path / "ct.nii.gz"))


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_values_that_are_no_labels_are_refused(tmp_path, value):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3], array[1, 2, 4] = value, 1
    with pytest.raises(BadInput, match="whole labels"):
        masks.load(save_nifti(tmp_path / "map.nii", array, lps_affine()))


@pytest.fixture
def folder(tmp_path):
    """Liver, a spleen that overlaps it by 2 voxels, and an empty gallbladder; values 1 and 255."""
    folder = tmp_path / "segmentations"
    liver, spleen = block(SHAPE, ((1, 1, 1), (4, 5, 4))), block(SHAPE, ((2, 4, 3), (4, 6, 8)))
    _save(folder / "liver.nii.gz", liver, "RAS")
    _save(folder / "spleen.nii.gz", spleen * 255, "LIA")
    _save(folder / "gallbladder.nii.gz", np.zeros(SHAPE))
    return folder, liver, spleen


def test_a_folder_with_overlapping_masks_loses_nothing(folder):
    path, liver, spleen = folder
    assert (liver & spleen).sum() == 2
    for like in (None, small_ct()):
        labels = masks.load(path, like=like)
        np.testing.assert_array_equal(labels.binary("liver"), liver)
        np.testing.assert_array_equal(labels.binary("spleen"), spleen)
        assert labels.present == ["liver", "spleen"]
        assert "empty masks: gallbladder" in labels.notes
        assert "masks that overlap another, kept whole: spleen" in labels.notes


def test_overlapping_masks_survive_another_grid(folder):
    path, liver, spleen = folder
    fine = small_ct().resample((1.5, 0.55, 0.45))
    labels = masks.load(path, like=fine)
    assert (labels.binary("liver") & labels.binary("spleen")).sum() == 8 * 2  # every voxel becomes eight
    assert labels.volume_ml("spleen") == pytest.approx(spleen.sum() * 3 * 1.1 * 0.9 / 1000)


def test_masks_of_a_folder_on_different_grids_need_the_ct(folder):
    path, liver, _ = folder
    save_nifti(path / "aorta.nii.gz", block((4, 7, 9), ((1, 1, 6), (3, 3, 8))).astype(np.uint8), lps_affine())
    with pytest.raises(BadInput, match="gallbladder.nii.gz is on another grid .* than aorta.nii.gz .* give the CT"):
        masks.load(path)
    labels = masks.load(path, like=small_ct())
    np.testing.assert_array_equal(labels.binary("aorta"), block(SHAPE, ((1, 1, 6), (3, 3, 8))))


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no .nii"):
        masks.load(tmp_path)
    with pytest.raises(BadInput, match="there is no file or folder"):
        masks.load(tmp_path / "none.nii.gz")


# --- looking up ----------------------------------------------------------------------------------------------


def test_a_misspelt_name_is_answered_with_a_suggestion():
    labels = labels_of(block(SHAPE, ((0, 0, 0), (1, 1, 1))), {1: "liver", 2: "spleen"})
    with pytest.raises(BadInput, match="no structure 'livr' in these masks; did you mean liver"):
        labels.binary("livr")
    with pytest.raises(BadInput, match="no structure 'sternum' in these masks; there are: liver"):
        labels.binary("sternum")


def test_a_structure_without_voxels_is_refused_with_those_that_have_some():
    labels = labels_of(block(SHAPE, ((0, 0, 0), (1, 1, 1))), {1: "liver", 2: "spleen"})
    assert labels.present == ["liver"]
    with pytest.raises(BadInput, match="'spleen' is empty here; structures with voxels: liver"):
        labels.binary("spleen")


def test_masks_that_do_not_meet_the_ct_are_told_apart_from_an_empty_structure(tmp_path):
    file = _save(tmp_path / "liver.nii.gz", block(SHAPE, ((0, 0, 0), (2, 3, 4))), origin=(4000.0, 0.0, 0.0))
    labels = masks.load(file, like=small_ct())
    with pytest.raises(BadInput, match="the mask of 'liver' is empty here; no other has any either: .* another scan"):
        labels.binary("liver")


# --- grids ---------------------------------------------------------------------------------------------------


def test_masks_on_the_cts_grid_are_left_as_they_are(tmp_path):
    labels = masks.load(_save(tmp_path / "liver.nii.gz", block(SHAPE, ((1, 1, 1), (3, 3, 3))), "RSA"), like=small_ct())
    assert labels.notes == ()


def test_masks_of_the_same_shape_but_another_affine_are_resampled_by_it_and_it_is_said(tmp_path):
    mask = block(SHAPE, ((1, 2, 2), (3, 5, 6)))
    # one voxel further left, two further down the body
    file = _save(tmp_path / "liver.nii.gz", mask, origin=(-20.0 + 0.9, -15.0, 100.0 - 6.0))
    labels = masks.load(file, like=small_ct())
    np.testing.assert_array_equal(labels.binary("liver"), np.roll(mask, (-2, 0, 1), (0, 1, 2)) & _not_rolled_in())
    assert "nearest neighbour" in labels.notes[0] and "50.0% of what it was" in labels.notes[0]


def _not_rolled_in() -> np.ndarray:
    return block(SHAPE, ((0, 0, 1), (3, 7, 9)))


def test_resampled_masks_cover_the_same_millimetres():
    """A ball on an oblique 1 mm grid, put on a coarse CT grid: volume and centre stay, within the coarse voxels."""
    affine = lps_affine((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), rotation(20))
    ball = ((np.indices((41, 41, 41)) - 20) ** 2).sum(0) <= 14**2
    labels = masks.LabelMap(ball.astype(np.uint16), affine, {1: "liver"})
    ct = Volume(np.zeros((30, 40, 40)), lps_affine((2.0, 1.5, 1.5), (-25.0, -20.0, -20.0)))
    moved = labels.to(ct)
    assert moved.volume_ml("liver") == pytest.approx(labels.volume_ml("liver"), rel=0.02)
    centre = ct.mm_of(np.argwhere(moved.binary("liver")).mean(axis=0))
    np.testing.assert_allclose(centre, (affine @ [20, 20, 20, 1])[:3], atol=0.1)


def test_a_label_map_saved_in_the_files_axes_loads_again(tmp_path):
    labels = masks.load(SYNTHETIC / "labels.nii.gz", names="vista3d")
    file = labels.save(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(nib.load(file).get_fdata(), nib.load(SYNTHETIC / "labels.nii.gz").get_fdata())
    assert nib.load(file).get_data_dtype() == np.uint8
    np.testing.assert_allclose(nib.load(file).affine, nib.load(SYNTHETIC / "labels.nii.gz").affine)


def test_a_saved_label_map_brings_its_names_along(tmp_path):
    labels = masks.load(SYNTHETIC / "labels.nii.gz", names="vista3d")
    again = masks.load(labels.save(tmp_path / "again.nii.gz"))
    assert again.names == labels.names and again.volume_ml("liver") == labels.volume_ml("liver")


def test_volume_is_voxels_times_their_size_also_on_an_oblique_grid():
    mask = block(SHAPE, ((1, 1, 1), (3, 4, 5)))
    labels = labels_of(mask, {1: "liver"}, turn=rotation(33))
    assert labels.volume_ml("liver") == pytest.approx(24 * 3 * 1.1 * 0.9 / 1000)


# --- components and overlap -----------------------------------------------------------------------------------


@settings(max_examples=150)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=8)))
def test_largest_component_equals_scipys_label(mask):
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = largest_component(mask)
    if count == 0:
        assert not kept.any()
        return
    sizes = np.bincount(parts.ravel())[1:]
    assert kept.sum() == sizes.max() and len(np.unique(parts[kept])) == 1
    if (sizes == sizes.max()).sum() == 1:
        np.testing.assert_array_equal(kept, parts == 1 + np.argmax(sizes))


def test_of_two_equal_parts_the_first_is_kept():
    mask = block((3, 9, 9), ((0, 5, 5), (1, 7, 7)), ((2, 0, 0), (3, 2, 2)))
    np.testing.assert_array_equal(largest_component(mask), block((3, 9, 9), ((0, 5, 5), (1, 7, 7))))


def test_parts_that_touch_by_a_corner_are_one():
    mask = block((4, 4, 4), ((0, 0, 0), (2, 2, 2)), ((2, 2, 2), (4, 4, 4)))
    np.testing.assert_array_equal(largest_component(mask), mask)


def test_dice_and_surface_distance_of_empty_masks():
    empty, full = np.zeros(SHAPE, bool), block(SHAPE, ((1, 1, 1), (3, 3, 3)))
    assert np.isnan(masks.dice(empty, empty)) and masks.dice(empty, full) == 0
    assert masks.surface_distance_mm(empty, full, (1, 1, 1)) == np.inf
    assert np.isnan(masks.surface_distance_mm(empty, empty, (1, 1, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_dice_equals_the_plain_formula(seed):
    a, b = np.random.default_rng(seed).random((2, *SHAPE)) > 0.6
    assert masks.dice(a, b) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)


def _surface(mask) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_distance_of_a_cube_shifted_by_one_voxel(axis):
    """Every surface voxel's way to the other surface, both ways, averaged: counted here without MONAI."""
    spacing = (3.0, 1.1, 0.9)
    cube = block((14, 14, 14), ((4, 4, 4), (9, 9, 9)))
    moved = np.roll(cube, 1, axis)
    pairs = [(_surface(cube), _surface(moved)), (_surface(moved), _surface(cube))]
    expected = np.concatenate([ndimage.distance_transform_edt(~b, sampling=spacing)[a] for a, b in pairs]).mean()
    assert masks.surface_distance_mm(cube, moved, spacing) == pytest.approx(expected, rel=1e-5)
    assert masks.surface_distance_mm(cube, cube, spacing) == 0
    assert 0 < expected < spacing[axis]


def test_masks_of_different_shapes_are_not_compared():
    with pytest.raises(BadInput, match="5×7×9 and 5×7×8; put both on one grid"):
        masks.dice(np.zeros(SHAPE, bool), np.zeros((5, 7, 8), bool))
    with pytest.raises(BadInput, match="put both on one grid"):
        masks.surface_distance_mm(np.zeros(SHAPE, bool), np.zeros((5, 7, 8), bool), (1, 1, 1))


def test_synthetic_ct_and_labels_lie_on_one_grid():
    ct = volumes.load(SYNTHETIC / "ct.nii.gz")
    labels = masks.load(SYNTHETIC / "labels.nii.gz", like=ct, names="vista3d")
    assert labels.notes == ()
    assert np.median(ct.hu[labels.binary("lung")]) < -500 < 0 < np.median(ct.hu[labels.binary("liver")])


def test_a_group_is_found_from_its_halves_as_well_as_from_its_smallest_parts():
    labels = np.zeros((4, 6, 6), np.uint16)
    labels[:, :, :2], labels[:, :, 4:] = 1, 2
    halves = masks.LabelMap(labels, np.eye(4), {1: "right lung", 2: "left lung"})
    assert np.array_equal(halves.binary("lung"), labels > 0)


def test_a_label_that_no_vocabulary_knows_is_found_by_its_own_name():
    labels = np.ones((3, 4, 5), np.uint16)
    assert masks.LabelMap(labels, np.eye(4), {1: "VOI A"}).binary("VOI A").all()


@pytest.mark.parametrize("length", [1, 9])
def test_voxels_are_counted_by_label(length):
    labels = np.random.default_rng(0).integers(0, 7, (4, 5, 6)).astype(np.uint16)
    counts = label_counts(labels, length)
    assert counts.tolist() == np.bincount(labels.ravel(), minlength=length).tolist()
