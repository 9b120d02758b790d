"""Geometry of a volume: whatever the file's axes, a voxel stays where it is in the patient."""

import nibabel as nib
import numpy as np
import pytest
from helpers_ct import ORIENTATIONS, SYNTHETIC, lps_affine, rotation, small_ct, write_nifti
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume, grid


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("turn", [None, rotation(17.0)], ids=["straight", "oblique"])
def test_a_volume_saved_in_any_orientation_loads_to_the_same_array_and_affine(tmp_path, turn):
    made = small_ct(turn=turn)
    for orientation in ORIENTATIONS:
        file = Volume(made.hu, made.affine, orientation).save(tmp_path / f"{orientation}.nii")
        assert "".join(nib.aff2axcodes(nib.load(file).affine)) == orientation
        loaded = volumes.load(file)
        np.testing.assert_array_equal(loaded.hu, made.hu, err_msg=orientation)
        # an affine is stored in float32: about 1e-5 mm on coordinates of 100 mm
        np.testing.assert_allclose(loaded.affine, made.affine, atol=2e-5, err_msg=orientation)
        assert loaded.orientation == orientation


def test_a_file_written_by_nibabel_keeps_every_voxels_millimetres(tmp_path):
    rng = np.random.default_rng(1)
    stored = rng.integers(-1000, 300, (6, 4, 5)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = rotation(25.0) @ np.array([[0, -0.8, 0], [0, 0, 2.5], [1.2, 0, 0]])  # permuted, flipped, oblique
    affine[:3, 3] = 30, -40, 50
    loaded = volumes.load(write_nifti(tmp_path / "ct.nii.gz", stored, affine))
    for index in [(0, 0, 0), (5, 3, 4), (2, 1, 3)]:
        ras = (nib.load(tmp_path / "ct.nii.gz").affine @ [*index, 1])[:3]
        voxel = loaded.voxel_of(ras * [-1, -1, 1])
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-4)
        assert loaded.hu[tuple(np.rint(voxel).astype(int))] == stored[index]


def test_axes_grow_upwards_backwards_and_to_the_left(tmp_path):
    stored = np.full((4, 5, 6), -1000, np.int16)
    stored[3, 4, 5] = 200  # RAS: the patient's right-most column is x = 0, so this is left, anterior, superior
    loaded = volumes.load(write_nifti(tmp_path / "ct.nii.gz", stored, np.diag([-2.0, 1.0, 3.0, 1.0])))
    assert loaded.orientation == "LAS"
    assert np.argwhere(loaded.hu == 200).tolist() == [[5, 0, 3]]
    assert loaded.spacing_mm == (3.0, 1.0, 2.0)


def test_synthetic_ct_loads_as_its_file_says():
    loaded = volumes.load(SYNTHETIC / "ct.nii.gz")
    image = nib.load(SYNTHETIC / "ct.nii.gz")
    assert loaded.shape == (40, 64, 72) and loaded.spacing_mm == (3.0, 1.5, 1.5) and loaded.orientation == "RAS"
    np.testing.assert_array_equal(loaded.hu, np.asanyarray(image.dataobj)[::-1, ::-1].transpose(2, 1, 0))
    assert repr(loaded) == "Volume(40×64×72, 3.00×1.50×1.50 mm, LPS (file: RAS), HU −1000…" + f"{loaded.hu.max():.0f})"


def test_nifti_affine_is_the_files_restated_for_lps_axes(tmp_path):
    file = small_ct(turn=rotation(9)).save(tmp_path / "ct.nii")  # orientation LPS: no axis is turned
    np.testing.assert_allclose(volumes.load(file).nifti_affine, nib.load(file).affine, atol=1e-5)


@given(
    st.floats(-180, 180), st.tuples(*[st.floats(0.3, 6.0)] * 3), st.tuples(*[st.floats(-300, 300)] * 3),
    st.tuples(*[st.floats(-50, 600)] * 3),
)  # fmt: skip
def test_voxel_to_mm_and_back_is_the_identity(degrees, spacing, origin, voxel):
    volume = Volume(np.zeros((2, 2, 2)), lps_affine(spacing, origin, rotation(degrees)))
    np.testing.assert_allclose(volume.voxel_of(volume.mm_of(voxel)), voxel, atol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-9)


def test_slope_and_intercept_are_applied_exactly_once(tmp_path):
    stored = np.arange(2 * 3 * 4, dtype=np.int16).reshape(4, 3, 2) * 50
    loaded = volumes.load(write_nifti(tmp_path / "ct.nii", stored, slope=2.0, intercept=-1024.0))
    expected = (2.0 * stored - 1024)[::-1, ::-1].transpose(2, 1, 0)  # RAS file to LPS axes
    np.testing.assert_array_equal(loaded.hu, expected)
    assert loaded.notes == ("header slope 2 and intercept -1024 applied once",)
    again = volumes.load(loaded.save(tmp_path / "again.nii"))
    np.testing.assert_array_equal(again.hu, expected)
    assert again.notes == ()


def test_whole_values_are_saved_as_int16_and_others_as_float32(tmp_path):
    made = small_ct()
    file = made.save(tmp_path / "whole.nii.gz")
    assert nib.load(file).get_data_dtype() == np.int16
    np.testing.assert_array_equal(volumes.load(file).hu, made.hu)
    halves = Volume(made.hu + 0.5, made.affine)
    file = halves.save(tmp_path / "half.nii.gz")
    assert nib.load(file).get_data_dtype() == np.float32
    np.testing.assert_array_equal(volumes.load(file).hu, halves.hu)


def test_one_frame_in_four_dimensions_is_a_volume_and_several_are_refused(tmp_path):
    stored = np.random.default_rng(0).integers(-1000, 200, (4, 5, 6, 1)).astype(np.int16)
    flat = volumes.load(write_nifti(tmp_path / "flat.nii", stored[..., 0]))
    np.testing.assert_array_equal(volumes.load(write_nifti(tmp_path / "one.nii", stored)).hu, flat.hu)
    with pytest.raises(BadInput, match="4×5×6×3 .3 frames."):
        volumes.load(write_nifti(tmp_path / "three.nii", np.repeat(stored, 3, axis=3)))
    with pytest.raises(BadInput, match="a single picture"):
        volumes.load(write_nifti(tmp_path / "flat.nii", stored[..., 0, 0]))


def test_a_header_without_geometry_is_said(tmp_path):
    image = nib.Nifti1Image(small_ct().hu, np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "ct.nii")
    assert any("neither sform nor qform" in note for note in volumes.load(tmp_path / "ct.nii").notes)


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(small_ct().hu, np.eye(4))
    image.set_qform(None, code=0)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (1, 0, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0)
    image.header["sform_code"] = 1
    (tmp_path / "ct.nii").write_bytes(image.header.binaryblock + bytes(4) + small_ct().hu.tobytes("F"))
    with pytest.raises(BadInput, match="ct.nii: the affine is singular"):
        volumes.load(tmp_path / "ct.nii")


def _sampled(volume: Volume, at: Volume) -> np.ndarray:
    """Linear interpolation by scipy at another volume's voxel centres."""
    centres = at.mm_of(np.indices(at.shape).transpose(1, 2, 3, 0))
    return ndimage.map_coordinates(volume.hu, np.moveaxis(volume.voxel_of(centres), -1, 0), order=1, mode="nearest")


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2.0, 0.7, 2.3), (3.0, 1.1, 0.9)])
def test_linear_resampling_equals_scipy(spacing):
    made = small_ct((9, 11, 13), turn=rotation(12))
    new = made.resample(spacing)
    np.testing.assert_allclose(new.spacing_mm, spacing)
    # float32 weights on steps of up to 1400 HU
    np.testing.assert_allclose(new.hu, _sampled(made, new), atol=0.02)


def test_resampling_keeps_the_extent_edge_to_edge():
    made = small_ct((10, 12, 14), spacing=(3.0, 1.0, 2.0))
    new = made.resample((1.5, 2.0, 1.0))
    assert new.shape == (20, 6, 28)
    for corner in [(0, 0, 0), (1, 1, 1), (1, 0, 1)]:
        old_edge = np.array(corner) * made.shape - 0.5
        new_edge = np.array(corner) * new.shape - 0.5
        np.testing.assert_allclose(made.mm_of(old_edge), new.mm_of(new_edge), atol=1e-9)


def test_resample_like_is_scipy_inside_and_air_outside():
    made = small_ct((9, 11, 13))
    other = small_ct((6, 8, 20), spacing=(2.2, 1.7, 1.1), origin=(-24.0, -14.0, 101.0), turn=rotation(8))
    moved = made.resample_like(other)
    assert moved.shape == other.shape and np.array_equal(moved.affine, other.affine)
    index = made.voxel_of(other.mm_of(np.indices(other.shape).transpose(1, 2, 3, 0)))
    outside = ((index < -0.51) | (index > np.array(made.shape) - 0.49)).any(axis=-1)
    inside = ((index > 0) & (index < np.array(made.shape) - 1)).all(axis=-1)
    assert inside.sum() > 100 and outside.sum() > 100
    assert (moved.hu[outside] == -1000).all()
    np.testing.assert_allclose(moved.hu[inside], _sampled(made, other)[inside], atol=0.02)


@given(st.integers(0, 9), st.tuples(*[st.floats(0.6, 4.0)] * 3))
def test_nearest_never_makes_new_labels(seed, spacing):
    labels = np.random.default_rng(seed).choice([0, 3, 7, 200], (5, 6, 7)).astype(np.uint16)
    affine = lps_affine()
    shape, new = grid.respaced(labels.shape, affine, spacing)
    assert set(np.unique(grid.resample(labels, affine, shape, new, order="nearest"))) <= {0, 3, 7, 200}


def test_resampling_onto_its_own_grid_changes_nothing():
    made = small_ct(turn=rotation(30))
    np.testing.assert_allclose(made.resample(made.spacing_mm).hu, made.hu, atol=1e-3)
    np.testing.assert_allclose(made.resample_like(made).hu, made.hu, atol=1e-3)


def _marked() -> tuple[Volume, np.ndarray]:
    """A bright blob in air on an oblique grid, and its centre in mm."""
    affine = lps_affine(turn=rotation(14))
    index = np.indices((21, 31, 33))
    far = ((index - np.array([8, 19, 11]).reshape(3, 1, 1, 1)) ** 2 / np.array([9, 25, 25]).reshape(3, 1, 1, 1)).sum(0)
    volume = Volume(-1000 + 1400 * np.exp(-far), affine)
    return volume, volume.mm_of([8, 19, 11])


def _centre_mm(volume: Volume) -> np.ndarray:
    weight = volume.hu.astype(float) + 1000
    index = np.indices(volume.shape).reshape(3, -1)
    return volume.mm_of((index * weight.reshape(-1)).sum(1) / weight.sum())


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.resample((1.5, 1.5, 1.5)),
        lambda v: v.resize((40, 20, 25)),
        lambda v: v.crop((slice(1, 20), slice(5, 31), slice(0, 30))),
        lambda v: v.crop_or_pad((30, 28, 40)),
        lambda v: v.crop_or_pad((20, 31, 34)),
        lambda v: v.resample((2.0, 1.0, 1.3)).crop((slice(None), slice(3, None), slice(-40, None))),
    ],
    ids=["resample", "resize", "crop", "crop_or_pad", "by one", "resample and crop"],
)
def test_a_marker_stays_where_it_is_in_the_patient(change):
    volume, place = _marked()
    # a blob of a few voxels: its centre of mass is exact to a small part of a voxel
    np.testing.assert_allclose(_centre_mm(change(volume)), place, atol=0.05)


def test_crop_or_pad_keeps_the_middle_and_gives_the_odd_voxel_to_the_far_side():
    line = Volume(np.arange(5.0).reshape(1, 1, 5), np.eye(4))
    assert line.crop_or_pad((1, 1, 4)).hu.ravel().tolist() == [0, 1, 2, 3]
    assert line.crop_or_pad((1, 1, 3)).hu.ravel().tolist() == [1, 2, 3]
    assert line.crop_or_pad((1, 1, 6), fill=9).hu.ravel().tolist() == [0, 1, 2, 3, 4, 9]
    assert line.crop_or_pad((1, 1, 8), fill=9).hu.ravel().tolist() == [9, 0, 1, 2, 3, 4, 9, 9]


def test_resize_gives_the_shape_whatever_the_spacing():
    made = small_ct((9, 11, 13))
    new = made.resize((16, 5, 26))
    assert new.shape == (16, 5, 26)
    np.testing.assert_allclose(np.array(new.spacing_mm) * new.shape, np.array(made.spacing_mm) * made.shape)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1)])
def test_an_impossible_spacing_is_refused(spacing):
    with pytest.raises(BadInput, match="three positive lengths"):
        small_ct().resample(spacing)


def test_a_sheared_affine_is_refused_when_it_would_be_resampled():
    affine = lps_affine()
    affine[0, 0] = 0.4  # slices drift sideways, as under a tilted gantry
    with pytest.raises(BadInput, match="sheared"):
        Volume(small_ct().hu, affine).resample((1, 1, 1))


def test_arrays_that_are_no_volume_are_refused():
    with pytest.raises(BadInput, match="3 axes"):
        Volume(np.zeros((2, 3)), np.eye(4))


@pytest.mark.parametrize("orientation", ["LPX", "RAR", "LP", "RASS"])
def test_an_impossible_orientation_is_refused(tmp_path, orientation):
    with pytest.raises(BadInput, match="no orientation"):
        Volume(small_ct().hu, lps_affine(), orientation).save(tmp_path / "ct.nii")
    assert list(tmp_path.iterdir()) == []


def test_same_grid_compares_corners_in_mm():
    affine = lps_affine()
    turned = affine @ np.diag([1, 1, 1.001, 1])  # 0.0009 mm a voxel: nothing on 9 voxels, 0.4 mm on 500
    assert grid.same_grid((5, 7, 9), affine, (5, 7, 9), turned)
    assert not grid.same_grid((5, 7, 500), affine, (5, 7, 500), turned)
    assert not grid.same_grid((5, 7, 9), affine, (5, 7, 8), affine)
