"""The synthetic case in data_samples is what its maker makes, and is the phantom that its docstring describes."""

import gzip
import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

DATA = Path(__file__).resolve().parents[1] / "data_samples"


def _maker():
    spec = importlib.util.spec_from_file_location("make_synthetic_case", DATA / "make_synthetic_case.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case():
    hu, labels, affine, names = _maker().build()
    return {"hu": hu, "labels": labels, "affine": affine, "names": names}


@pytest.mark.parametrize("name", ["ct.nii.gz", "labels.nii.gz", "names.json"])
def test_committed_files_are_what_the_maker_writes(tmp_path, name):
    _maker().write(tmp_path)
    made, committed = (tmp_path / name).read_bytes(), (DATA / "synthetic" / name).read_bytes()
    if name.endswith(".gz"):  # the packed bytes depend on the zlib at hand, what they hold must not
        made, committed = gzip.decompress(made), gzip.decompress(committed)
    assert made == committed


def test_making_it_twice_gives_the_same_bytes_without_a_time(tmp_path):
    for folder in ("one", "two"):
        _maker().write(tmp_path / folder)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert (tmp_path / "one" / "ct.nii.gz").read_bytes()[3:8] == bytes(5)  # no flags (no file name), mtime 0


@pytest.mark.parametrize("name", ["ct.nii.gz", "labels.nii.gz"])
def test_files_hold_the_arrays_and_the_geometry(case, name):
    image = nib.load(DATA / "synthetic" / name)
    expected = case["hu"] if name.startswith("ct") else case["labels"]
    assert image.get_data_dtype() == expected.dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
    np.testing.assert_array_equal(image.affine, case["affine"])
    assert "".join(nib.aff2axcodes(image.affine)) == "RAS"
    assert image.header.get_zooms() == (1.5, 1.5, 3.0)


def test_it_is_small():
    assert sum(file.stat().st_size for file in (DATA / "synthetic").iterdir()) < 150_000


def test_air_is_air_and_the_trunk_is_not(case):
    hu, labels = case["hu"], case["labels"]
    assert hu.dtype == np.int16 and hu.min() == -1000 and hu.max() < 400
    corners = hu[:: hu.shape[0] - 1, :: hu.shape[1] - 1]
    assert (corners == -1000).all()
    assert hu[labels > 0].min() > -1000


def test_every_name_has_voxels_and_each_structure_is_one_piece(case):
    present = set(np.unique(case["labels"]).tolist()) - {0}
    assert present == set(case["names"])
    for number in present:
        assert ndimage.label(case["labels"] == number)[1] == 1, case["names"][number]


def test_names_file_agrees(case):
    stored = json.loads((DATA / "synthetic" / "names.json").read_text(encoding="utf-8"))
    assert {int(number): name for number, name in stored.items()} == case["names"]
    assert case["names"][1] == "liver" and case["names"][14] == "left kidney" and case["names"][115] == "heart"


def test_sides_are_the_patients(case):
    def centre(name):
        number = next(n for n, own in case["names"].items() if own == name)
        index = np.argwhere(case["labels"] == number).mean(axis=0)
        return (case["affine"] @ [*index, 1.0])[:3]  # RAS mm: + is Right, Anterior, Superior

    assert centre("liver")[0] > 10 and centre("right kidney")[0] > 10 and centre("right lung lower lobe")[0] > 10
    assert centre("spleen")[0] < -10 and centre("left kidney")[0] < -10 and centre("heart")[0] < -5
    assert centre("heart")[1] > centre("aorta")[1] > centre("vertebrae L1")[1]
    assert centre("heart")[2] > centre("liver")[2] > centre("left kidney")[2]
    assert centre("left lung upper lobe")[2] > centre("left lung lower lobe")[2]
    assert centre("vertebrae T10")[2] > centre("vertebrae L2")[2]
