"""DICOM series: the same CT as its NIfTI, whatever the files' order and the plane; doubtful folders are refused."""

import numpy as np
import pytest
from helpers_ct import rotation, small_ct, write_dicom

from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import Volume


def test_a_series_loads_equal_to_the_nifti_of_the_same_ct(tmp_path):
    made = small_ct((6, 7, 9), turn=rotation(11))
    from_nifti = volumes.load(made.save(tmp_path / "ct.nii.gz"))
    from_dicom = volumes.load(write_dicom(tmp_path / "series", made))
    np.testing.assert_array_equal(from_dicom.hu, from_nifti.hu)
    # positions are written with 6 decimals, the NIfTI affine in float32
    np.testing.assert_allclose(from_dicom.affine, from_nifti.affine, atol=1e-4)
    assert from_dicom.orientation == "LPS" and from_dicom.name == "series"
    assert from_dicom.notes == ("DICOM series of 6 slices, 3 mm apart",)


def test_the_order_of_the_file_names_does_not_matter(tmp_path):
    made = small_ct((6, 7, 9))
    names = [f"{9 - k}.dcm" for k in range(6)]
    np.testing.assert_array_equal(volumes.load(write_dicom(tmp_path / "series", made, names=names)).hu, made.hu)


@pytest.mark.parametrize("intercept", [-1024, 0, -8192])
def test_the_rescale_intercept_is_applied_once(tmp_path, intercept):
    made = small_ct((4, 5, 6))
    folder = write_dicom(tmp_path / "s", made, intercept=intercept)
    stored = np.frombuffer((folder / "001.dcm").read_bytes()[-2 * 5 * 6 :], np.int16).reshape(5, 6)
    np.testing.assert_array_equal(stored, made.hu[1] - intercept)
    np.testing.assert_array_equal(volumes.load(folder).hu, made.hu)


@pytest.mark.parametrize(
    ("plane", "columns"),
    [
        ("coronal", {0: (0, 1.5, 0), 1: (0, 0, -0.7), 2: (0.9, 0, 0)}),  # stacked backwards, rows downwards
        ("sagittal", {0: (2.0, 0, 0), 1: (0, 0, -0.7), 2: (0, 0.9, 0)}),
        ("feet first", {0: (0, 0, -3.0), 1: (0, -1.1, 0), 2: (0.9, 0, 0)}),
    ],
)
def test_a_series_cut_in_another_plane_has_every_voxel_in_its_place(tmp_path, plane, columns):
    acquired = small_ct((5, 6, 7))
    affine = np.eye(4)
    for axis, step in columns.items():
        affine[:3, axis] = step
    affine[:3, 3] = -12, 20, 33
    acquired = Volume(acquired.hu, affine)
    loaded = volumes.load(write_dicom(tmp_path / plane, acquired))
    steps = loaded.affine[:3, :3]
    assert steps[2, 0] > 0 and steps[1, 1] > 0 and steps[0, 2] > 0  # axes are LPS
    for index in [(0, 0, 0), (4, 5, 6), (1, 4, 2), (3, 0, 5)]:
        voxel = loaded.voxel_of(acquired.mm_of(index))
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
        assert loaded.hu[tuple(np.rint(voxel).astype(int))] == acquired.hu[index]
    assert volumes.load(loaded.save(tmp_path / "back.nii")).orientation == loaded.orientation != "LPS"


def test_other_files_in_the_folder_are_passed_over(tmp_path):
    made = small_ct((4, 5, 6))
    folder = write_dicom(tmp_path / "series", made)
    (folder / "readme.txt").write_text("not DICOM")
    np.testing.assert_array_equal(volumes.load(folder).hu, made.hu)


def _two_series(folder):
    first, second = small_ct((4, 5, 6), seed=1), small_ct((5, 5, 6), seed=2)
    write_dicom(folder, first, uid="1.2.3.41", description="lung")
    names = [f"b{k}.dcm" for k in range(5)]
    write_dicom(folder, second, uid="1.2.3.4", description="soft tissue", names=names)
    return first, second


def test_two_series_are_refused_with_both_listed(tmp_path):
    _two_series(tmp_path / "both")
    with pytest.raises(BadInput) as problem:
        volumes.load(tmp_path / "both")
    assert "holds 2 series" in str(problem.value) and "series=UID" in str(problem.value)
    assert "1.2.3.41 (4 × CT lung)" in str(problem.value) and "1.2.3.4 (5 × CT soft tissue)" in str(problem.value)


def test_one_of_two_series_can_be_chosen_even_if_its_uid_begins_the_others(tmp_path):
    first, second = _two_series(tmp_path / "both")
    np.testing.assert_array_equal(volumes.load(tmp_path / "both", series="1.2.3.41").hu, first.hu)
    np.testing.assert_array_equal(volumes.load(tmp_path / "both", series="1.2.3.4").hu, second.hu)


@pytest.mark.parametrize("series", ["9.9", "1.2.3"])
def test_a_series_that_is_not_there_or_not_single_is_refused_with_the_list(tmp_path, series):
    _two_series(tmp_path / "both")
    with pytest.raises(BadInput, match=f"no single series {series}; found: .*lung.*"):
        volumes.load(tmp_path / "both", series=series)


def test_a_missing_slice_is_named_with_its_millimetres(tmp_path):
    made = small_ct((8, 5, 6))  # slices at z = 100, 103 … 121 mm
    with pytest.raises(BadInput, match=r"1 missing: 6\.00 mm between 109\.0 and 115\.0 mm, 3\.00 mm elsewhere"):
        volumes.load(write_dicom(tmp_path / "s", made, skip=[4]))
    with pytest.raises(BadInput, match=r"2 missing: 9\.00 mm between 103\.0 and 112\.0 mm"):
        volumes.load(write_dicom(tmp_path / "t", made, skip=[2, 3]))


def test_unevenly_spaced_slices_are_refused(tmp_path):
    made = small_ct((6, 5, 6))
    positions = [made.mm_of([k + 0.3 * (k == 3), 0, 0]) for k in range(6)]
    with pytest.raises(BadInput, match=r"unevenly spaced: .* 3\.00 mm elsewhere"):
        volumes.load(write_dicom(tmp_path / "s", made, positions=positions))


def test_two_slices_at_one_position_are_refused(tmp_path):
    made = small_ct((6, 5, 6))
    positions = [made.mm_of([min(k, 4), 0, 0]) for k in range(6)]
    with pytest.raises(BadInput, match="1 slices at the position of another"):
        volumes.load(write_dicom(tmp_path / "s", made, positions=positions))


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    made = small_ct((6, 5, 6))
    lean = np.tan(np.radians(12.0))
    positions = [made.mm_of([k, 0, 0]) + [0, 3.0 * k * lean, 0] for k in range(6)]
    with pytest.raises(BadInput, match=r"tilted by 12\.0 degrees"):
        volumes.load(write_dicom(tmp_path / "s", made, positions=positions))


def test_an_mr_series_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is MR, and CT is expected"):
        volumes.load(write_dicom(tmp_path / "s", small_ct((4, 5, 6)), modality="MR"))


def test_a_single_slice_is_refused(tmp_path):
    with pytest.raises(BadInput, match="single slice"):
        volumes.load(write_dicom(tmp_path / "s", small_ct((4, 5, 6)), skip=[1, 2, 3]))


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(BadInput, match="holds no DICOM series"):
        volumes.load(tmp_path)


@pytest.mark.parametrize("slices", [4, 7])
def test_a_slice_that_is_cut_short_leaves_a_gap_that_is_refused(tmp_path, slices):
    folder = write_dicom(tmp_path / "s", small_ct((slices, 40, 40)))
    _cut(folder / "002.dcm")
    with pytest.raises(BadInput, match=r"1 missing: 6\.00 mm between 103\.0 and 109\.0 mm, 3\.00 mm elsewhere"):
        volumes.load(folder)


def test_a_last_slice_that_is_cut_short_is_told_because_it_leaves_no_gap(tmp_path):
    folder = write_dicom(tmp_path / "s", small_ct((5, 40, 40)))
    _cut(folder / "004.dcm")
    loaded = volumes.load(folder)
    assert loaded.shape == (4, 40, 40)
    assert loaded.notes[1] == "1 DICOM files are no readable images and were passed over: 004.dcm"


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1500])


def test_a_broken_slice_is_named_where_it_leaves_a_gap(tmp_path):
    folder = write_dicom(tmp_path / "series", small_ct((6, 12, 14)))
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(BadInput, match=f"1 missing.*no readable images.*{broken.name}"):
        volumes.load(folder)
