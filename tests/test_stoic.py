"""The reader of STOIC2021."""

import numpy as np
import pytest
import SimpleITK as sitk
from helpers_data import write_csv

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import readers, stoic

ROWS = [("11", 1, 1), ("12", 1.0, 0.0), ("13", 0, 0)]


def write_mha(path, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    """A CT of 6 slices, 5 rows and 4 columns, whose one bright voxel lies left, posterior and up in the patient."""
    hu = np.full((6, 5, 4), -1000, np.int16)
    hu[1:5, 1:4, 1:3] = 40
    hu[4, 3, 2] = 900
    signs = np.diag(np.reshape(direction, (3, 3)))  # of x, y, z
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:: signs[2], :: signs[1], :: signs[0]]))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetDirection([float(d) for d in direction])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.fixture
def public(tmp_path):
    write_csv(tmp_path / "metadata/reference.csv", ("PatientID", "probCOVID", "probSevere"), ROWS)
    for patient, *_ in ROWS:
        write_mha(tmp_path / f"data/mha/{patient}.mha")
    return tmp_path


def test_covid_is_asked_of_all_and_severity_of_the_positive(public):
    reading = stoic.read(public)
    told = {(r.patient, r.kind): r.answer for r in reading.records}
    assert told == {("11", "disorder"): "Yes", ("12", "disorder"): "Yes", ("13", "disorder"): "No",
                    ("11", "other"): "Yes", ("12", "other"): "No"}  # fmt: skip
    assert {r.split for r in reading.records} == {"train"} and "no published split" in repr(reading)
    assert {r.volume for r in reading.records} == {f"data/mha/{p}.mha" for p in ("11", "12", "13")}
    with pytest.raises(BadInput, match="'test' is no split"):
        stoic.read(public, "test")


def test_a_ct_that_is_not_there_is_listed_and_not_replaced(public):
    (public / "data/mha/11.mha").unlink()
    reading = stoic.read(public)
    assert reading.missing == {"data/mha/11.mha": 2} and {r.patient for r in reading.records} == {"12", "13"}


def test_other_names_are_the_users_to_give(public):
    write_csv(public / "labels.csv", ("who", "pcr", "outcome"), ROWS)
    with pytest.raises(BadInput, match=r"no column .*who, pcr, outcome.* give them: columns=\{\"patient\": \"…\""):
        stoic.read(public, reference="labels.csv")
    (public / "data").rename(public / "ct")
    names = {"patient": "who", "covid": "pcr", "severe": "outcome"}
    reading = stoic.read(public, columns=names, reference="labels.csv", volumes="ct/mha/{id}.mha")
    assert len(reading.records) == 5 and not reading.missing
    for wrong in ({"columns": {"age": "PatientAge"}}, {"volumes": "ct"}):
        with pytest.raises(BadInput, match="give columns for patient, covid, severe only, and a pattern with {id}"):
            stoic.read(public, **wrong)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("11", 0.7, 0)], "probCOVID of 11 is '0.7'; 0 or 1 is expected"),
        ([("11", 1, "")], "probSevere of 11 is ''"),
        ([("11", 0, 1)], "11 is severe without COVID-19; are the two columns exchanged"),
        ([("11", 1, 0), ("11", 1, 1)], "line 3: PatientID 11 is there twice"),
        ([("../11", 1, 0)], "path within the data set's folder is expected"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(public, rows, message):
    write_csv(public / "metadata/reference.csv", ("PatientID", "probCOVID", "probSevere"), rows)
    with pytest.raises(BadInput, match=message):
        stoic.read(public)


@pytest.mark.parametrize(
    "direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0, 0, 0, 1)]
)
def test_a_volume_is_the_same_in_whatever_axes_it_is_stored(tmp_path, direction):
    found = stoic.load_volume(write_mha(tmp_path / "1.mha", direction))
    assert found.shape == (6, 5, 4) and found.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert found.hu[4, 3, 2] == 900
    step = found.mm_of(np.eye(3)) - found.mm_of(np.zeros((3, 3)))
    np.testing.assert_allclose(step, [[0, 0, 2.5], [0, 0.8, 0], [0.7, 0, 0]], atol=1e-6)


def test_the_place_of_a_voxel_is_the_one_that_simpleitk_gives(tmp_path):
    path = write_mha(tmp_path / "1.mha", (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image, found = sitk.ReadImage(str(path)), stoic.load_volume(path)
    bright = np.argwhere(sitk.GetArrayFromImage(image) == 900)[0]
    place = image.TransformIndexToPhysicalPoint([int(i) for i in bright[::-1]])
    np.testing.assert_allclose(found.mm_of(np.argwhere(found.hu == 900)[0]), place, atol=1e-6)


def test_a_damaged_volume_is_listed_with_the_reason(public):
    path = public / "data/mha/11.mha"
    path.write_bytes(path.read_bytes()[:-30])
    reading = stoic.read(public, check_volumes=True)
    assert "fetch it again" in reading.unreadable["data/mha/11.mha"] and len(reading.records) == 3


def test_a_folder_of_stoic_is_recognised_and_an_empty_one_refused(public, tmp_path_factory):
    assert readers.recognise(public) == {"STOIC2021": stoic}
    with pytest.raises(BadInput, match="holds no metadata/reference.csv"):
        stoic.read(tmp_path_factory.mktemp("empty"))
