"""Hounsfield units: windows are the standard's formula, and what can't be HU is refused with the likely cause."""

import numpy as np
import pytest
from helpers_ct import small_ct
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctvlm_lib.errors import BadInput
from ctvlm_lib.volume import WINDOWS, check_hu, hu_window, scale_range, window_levels


def _windowed(value: float, level: float, width: float) -> float:
    """DICOM PS3.3 C.11.2.1.3.2, one value at a time."""
    if value <= level - width / 2:
        return 0.0
    if value > level + width / 2:
        return 1.0
    return (value - level) / width + 0.5


@given(arrays(np.float32, 20, elements=st.floats(-2000, 3000, width=32)), st.floats(-700, 500), st.floats(1, 3000))
def test_window_is_the_standards_formula(hu, level, width):
    expected = [_windowed(float(v), level, width) for v in hu]
    # float32 of values up to 3000 HU divided by the width: 2·10⁻⁴ HU of rounding
    np.testing.assert_allclose(hu_window(hu, level, width), expected, atol=5e-4 / width + 1e-6)


def test_window_maps_its_level_to_one_half_and_keeps_the_shape():
    out = hu_window(np.array([[[40.0, -160.0, 240.0, -1000.0, 3000.0]]]), 40, 400)
    assert out.shape == (1, 1, 5) and out.dtype == np.float32
    np.testing.assert_allclose(out.ravel(), [0.5, 0, 1, 0, 1])
    assert hu_window(np.float32(40), 40, 400) == 0.5


def test_window_leaves_its_input_alone():
    hu = np.array([0.0, 5000.0], dtype=np.float32)
    hu_window(hu, 40, 400)
    assert hu.tolist() == [0.0, 5000.0]


def test_scale_range_maps_the_ends_to_the_ends_and_clips():
    out = scale_range(np.array([-2000.0, -1000.0, 0.0, 500.0, 1000.0, 2000.0]), -1000, 1000, to=(-1, 1))
    np.testing.assert_allclose(out, [-1, -1, 0, 0.5, 1, 1], atol=1e-6)


def test_presets_are_the_house_styles():
    assert WINDOWS["soft tissue"] == (40, 400) and WINDOWS["lung"] == (-600, 1500)
    assert all(width > 0 for _, width in WINDOWS.values())
    assert window_levels("lung") == (-600, 1500) and window_levels((1, 2)) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ("lungs", "choose one of soft tissue, lung"), ((40, 0), "positive, got 0"), ((40, -5), "positive, got -5"),
        ((40,), "neither a preset"), (7, "neither a preset"), ((40, float("nan")), "positive"),
        ((float("nan"), 400), "finite"), ((40, float("inf")), "finite"),
    ],
)  # fmt: skip
def test_a_window_that_is_none_is_refused(window, told):
    with pytest.raises(BadInput, match=told):
        window_levels(window)


def _ct(seed=0) -> np.ndarray:
    """Air around 40 HU of tissue with noise."""
    hu = np.random.default_rng(seed).normal(40, 30, (12, 20, 20)).astype(np.float32)
    hu[:, :6] = -1000
    return hu


@pytest.mark.parametrize(
    "hu",
    [
        _ct(), np.where(_ct() < -900, -2048, _ct()), np.where(_ct() < -900, -3024, _ct()),
        _ct() - 0.5, np.rint(_ct()), small_ct().hu,
    ],
    ids=["plain", "padded -2048", "padded -3024", "fractions", "whole", "noise"],
)  # fmt: skip
def test_a_ct_passes(hu):
    check_hu(hu)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((_ct() + 1000) / 1300, r"already scaled to \[0, 1\]"),
        (np.clip(_ct() / 1000, -1, 1), r"already scaled to \[0, 1\] or \[-1, 1\]"),
        (np.rint(np.clip((_ct() + 20) / 120, 0, 1) * 255), "looks like an 8-bit image"),
        (_ct() + 1024, "CT without its rescale intercept"),
        (np.abs(_ct()) * 3, "it is an MR"),
        (np.random.default_rng(0).integers(0, 20, (5, 6, 7)).astype(float), "looks like a label map"),
        (_ct() - 1024, "applied twice"),
        (np.full((3, 4, 5), -1000.0), "same value -1000 everywhere"),
        (np.where(_ct() > 100, np.nan, _ct()), "NaN or infinite"),
        (np.where(_ct() > 100, np.inf, _ct()), "NaN or infinite"),
    ],
    ids=["0…1", "-1…1", "8 bit", "no intercept", "MR", "labels", "intercept twice", "constant", "NaN", "inf"],
)
def test_what_cannot_be_hu_is_refused_with_the_likely_cause(values, told):
    with pytest.raises(BadInput, match=told) as problem:
        check_hu(values.astype(np.float32), "scan.nii.gz")
    assert str(problem.value).startswith("scan.nii.gz")


def test_slope_applied_twice_is_refused():
    """Stored values times a slope of 2, twice, with the intercept each time: air falls to −3072."""
    stored = (_ct() + 1024) / 2
    check_hu((stored * 2 - 1024).astype(np.float32))
    with pytest.raises(BadInput):
        check_hu(((_ct()) * 2 - 1024).astype(np.float32))


def test_the_number_of_bad_voxels_is_told():
    hu = _ct()
    hu[3, 4, :5] = np.nan
    with pytest.raises(BadInput, match="holds 5 voxels"):
        check_hu(hu)
