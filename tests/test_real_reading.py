"""Real CTs on the cohort's grid, and what is asked about them: place, sides, partial volume, questions, scores."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import map_coordinates

from ctvlm_lib import volume as volumes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import real_field, real_records
from ctvlm_lib.experiments import real_reading as reading
from ctvlm_lib.experiments.conditions import CONDITIONS
from ctvlm_lib.experiments.real_field import FINER, in_field
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.prompt import contour
from ctvlm_lib.records import phantom, questions
from ctvlm_lib.records.measured import ask_about
from ctvlm_lib.records.package import target_text
from ctvlm_lib.records.phantom.body import T12_MIDDLE
from ctvlm_lib.records.phantom.canvas import FIELD_MM, PoseRange
from ctvlm_lib.records.real_cases import RealCase
from ctvlm_lib.volume import Volume

SHAPE, SPACING = (71, 43, 53), (4.0, 7.0, 6.5)
BLOCKS = {  # name: first and last voxel (d, h, w), HU; w grows to the patient's left
    "liver": ((36, 8, 6), (56, 28, 24), 60),
    "spleen": ((42, 24, 40), (54, 33, 46), 50),
    "left kidney": ((24, 27, 33), (40, 33, 39), 35),
    "right kidney": ((20, 27, 12), (36, 33, 18), 33),
    "aorta": ((5, 26, 25), (60, 28, 27), 41),
    "vertebrae T12": ((30, 30, 23), (37, 35, 29), 300),
    "gallbladder": ((34, 8, 19), (39, 12, 23), 8),
}


def make_case(changes: dict | None = None, without: tuple[str, ...] = ()) -> RealCase:
    """A trunk of soft tissue in air with blocks for organs, 284 mm high."""
    rng = np.random.default_rng(0)
    hu, labels = np.full(SHAPE, -1000.0), np.zeros(SHAPE, np.uint16)
    hu[:, 4:40, 2:51] = 20
    blocks = {k: v for k, v in (BLOCKS | (changes or {})).items() if k not in without}
    for number, (first, last, value) in enumerate(blocks.values(), start=1):
        place = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        hu[place], labels[place] = value, number
    hu = np.rint(hu + rng.normal(0, 5, SHAPE))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[:, 3] = *SPACING, (-160, -140, 310, 1)
    ct = Volume(hu, affine, name="blocks")
    masks = LabelMap(labels, affine, dict(enumerate(blocks, start=1)))
    asked = ask_about(ct, masks, patient="blocks", dataset="blocks", volume_path="a/ct.nii.gz", mask_path="a/m.nii.gz")
    return RealCase("blocks", ct, masks, {}, "blocks, drawn for a test", asked)


@pytest.fixture(scope="module")
def case() -> RealCase:
    return make_case()


@pytest.fixture(scope="module")
def seen(case):
    return real_records.seen(case)


class Says:
    """A reader that answers by a rule, and keeps what it was shown."""

    channels = 3

    def __init__(self, rule):
        self.rule, self.shown = rule, []

    def answer(self, pictures, asked, condition):
        self.shown.append((pictures, asked))
        return [[(self.rule(record), 0.5) for record in group] for group in asked]


# ------------------------------------------------------------------------------------------ the field


def test_left_is_left_and_up_is_up(seen):
    middle = {name: np.argwhere(mask).mean(axis=0) for name, mask in seen.field.masks.items()}
    for right, left in (("liver", "spleen"), ("right kidney", "left kidney")):
        assert middle[right][2] + 10 < middle[left][2]  # w grows to the patient's left
    assert middle["liver"][0] > middle["right kidney"][0] + 2  # d grows upwards
    assert middle["spleen"][1] > middle["liver"][1] + 5  # h grows to the back


def test_structures_stay_where_they_are_in_the_patient(case, seen):
    for name, mask in seen.field.masks.items():
        there = case.volume.mm_of(np.argwhere(case.labels.binary(name)).mean(axis=0))
        here = seen.field.volume.mm_of(np.argwhere(mask).mean(axis=0))
        half = np.array(seen.field.volume.spacing_mm[::-1]) / 2  # x, y, z: a border is off by so much at most
        assert (abs(here - there) <= half).all()


def test_t12_lies_where_a_phantoms_does(case, seen):
    field = seen.field.volume
    there = case.volume.mm_of(np.argwhere(case.labels.binary("vertebrae T12")).mean(axis=0))[2]
    middle = field.mm_of((np.array(field.shape) - 1) / 2)[2]
    limit = PoseRange().shift_share * FIELD_MM
    assert abs(there - middle - T12_MIDDLE) <= limit + 1e-6
    assert seen.field.body_share == 1  # 284 mm fit into 340 within that range
    assert seen.field.scan_share == pytest.approx(284 / FIELD_MM, abs=1 / 32)


def test_phantoms_have_their_t12_there_too():
    found = []
    for patient in (phantom.patient(k, 7) for k in range(4)):
        field, pose = patient.volume, patient.pose
        middle = field.mm_of((np.array(field.shape) - 1) / 2)[2]
        t12 = field.mm_of(np.argwhere(patient.labels.binary("vertebrae T12")).mean(axis=0))[2]
        found.append((t12 - middle - pose.shift_mm[2]) / pose.scale)
    np.testing.assert_allclose(found, T12_MIDDLE, atol=8)  # mm; its arch and processes pull the centre down


def test_without_t12_the_bodys_middle_is_the_fields(case):
    labels = make_case(without=("vertebrae T12",)).labels
    field = in_field(case.volume, labels, ["liver"]).volume
    body = [(a + b) / 2 for a, b in ((0, SHAPE[0] - 1), (4, 39), (2, 50))]
    np.testing.assert_allclose(field.mm_of((np.array(field.shape) - 1) / 2), case.volume.mm_of(body), atol=1e-6)


def test_a_coarse_voxel_is_the_mean_of_finer_ones(case, seen):
    field, (depth, height, width) = seen.field.volume, FINER
    rng = np.random.default_rng(1)
    for place in zip(rng.integers(6, 24, 20), rng.integers(12, 52, 20), rng.integers(12, 52, 20), strict=True):
        fine = [
            (d + (a + 0.5) / depth - 0.5, h + (b + 0.5) / height - 0.5, w + (c + 0.5) / width - 0.5)
            for d, h, w in [place] for a in range(depth) for b in range(height) for c in range(width)
        ]  # fmt: skip
        at = case.volume.voxel_of(field.mm_of(fine))
        expected = map_coordinates(case.volume.hu.astype(float), at.T, order=1, mode="nearest").mean()
        assert field.hu[place] == pytest.approx(expected, abs=0.51)  # whole HU


def test_what_the_scan_does_not_cover_is_air(seen):
    assert (seen.field.volume.hu[-1] == -1000).all()
    assert seen.field.volume.hu[16, 32, 32] > -100


def test_a_mask_has_the_voxels_that_it_fills_by_half(case, seen):
    fine = real_field.FINER
    for name in ("liver", "spleen"):
        ml = seen.field.masks[name].sum() * np.prod([FIELD_MM / n for n in seen.field.volume.shape]) / 1000
        assert ml == pytest.approx(case.labels.volume_ml(name), rel=0.15)
    counts = np.zeros([n * k for n, k in zip((3, 4, 5), fine, strict=True)], np.float32)
    counts[:2, :2, :2], counts[4:8, :1, :2] = 1, 1  # half of the first voxel, half of one above it
    means = real_field._means(counts)
    assert means[0, 0, 0] == means[1, 0, 0] == 0.5
    assert np.count_nonzero(means) == 2


def test_another_orientation_of_the_file_changes_nothing(case, seen, tmp_path):
    for orientation in ("RAS", "PIR"):
        stored = replace(case.volume, orientation=orientation).save(tmp_path / f"{orientation}.nii.gz")
        field = in_field(volumes.load(stored), case.labels, ["liver"])
        np.testing.assert_allclose(field.volume.hu, seen.field.volume.hu, atol=1)  # a half may round the other way
        np.testing.assert_array_equal(field.masks["liver"], seen.field.masks["liver"])


def test_a_structure_that_is_not_there_or_a_ct_without_a_body_is_refused(case):
    with pytest.raises(BadInput, match="no structure 'pancreas'"):
        in_field(case.volume, case.labels, ["pancreas"])
    empty = replace(case.volume, hu=np.full(SHAPE, -1000.0))
    with pytest.raises(BadInput, match="give a CT in HU"):
        in_field(empty, case.labels)


# ------------------------------------------------------------------------------------------ the questions


def test_each_structure_is_right_once_at_each_letter(seen):
    closed = [r for r in seen.records if r.kind == "organ" and r.form == "closed"]
    for region in ("liver", "spleen", "left kidney", "right kidney"):
        mine = [r for r in closed if r.region == region]
        assert sorted(target_text(r)[0] for r in mine) == list("ABCD")
        assert [r.answer for r in seen.records if r.region == region and r.form == "open"] == [region]
    assert {r.region for r in closed} == {"liver", "spleen", "left kidney", "right kidney"}  # no gallbladder, no T12
    assert len({r.id for r in seen.records}) == len(seen.records)


def test_the_cohort_asks_in_the_same_words(seen):
    asked = [r for k in range(4) for r in questions.candidates(phantom.patient(k, 3))]
    known = {(r.kind, r.form, r.question) for r in asked if not r.names_region}
    assert {(r.kind, r.form, r.question) for r in seen.records} <= known
    assert {r.choices for r in seen.records} <= set(questions.ORGAN_SETS) | {questions.PHASES, ()}


def test_the_phase_is_asked_only_where_the_aorta_leaves_no_doubt(case):
    place, found = BLOCKS["aorta"], {}
    for hu in (41, 140, 400):
        other = make_case({"aorta": (*place[:2], hu)})
        found[hu] = real_records.phase_of(other.volume, other.labels)
    assert found == {41: "non-contrast", 140: None, 400: "arterial"}
    assert real_records.phase_of(case.volume, make_case(without=("aorta",)).labels) is None
    assert "phase" not in {r.kind for r in real_records.seen(make_case({"aorta": (*place[:2], 140)})).records}


def test_the_limits_of_phases_lie_between_the_cohorts_own():
    from ctvlm_lib.records.phantom.organs import PHASES

    aorta = {phase: values[0] for phase, values in PHASES.items()}
    assert aorta["non-contrast"] < real_records.NATIVE_BELOW_HU < aorta["delayed"]
    assert aorta["portal venous"] < real_records.ARTERIAL_ABOVE_HU < aorta["arterial"]


def test_a_ct_that_shows_nothing_the_cohort_knows_is_refused():
    other = make_case(without=("liver", "spleen", "left kidney", "right kidney"))
    with pytest.raises(BadInput, match="blocks shows none of left lung upper lobe"):
        real_records.seen(other)


# ------------------------------------------------------------------------------------------ prompts and answers


def test_the_lines_are_drawn_where_the_region_is(seen):
    plain = reading.model_input(seen, "none", "liver")
    drawn = reading.model_input(seen, "contour", "liver")
    line = contour(seen.field.masks["liver"], thickness=1)
    np.testing.assert_array_equal(drawn[:, line], np.repeat([[-1.0], [-1.0], [1.0]], line.sum(), axis=1))  # blue
    np.testing.assert_array_equal(drawn[:, ~line], plain[:, ~line])
    assert reading.model_input(seen, "contour", "liver", channels=1).shape == (1, 32, 64, 64)


def test_the_red_box_is_on_another_structure(seen):
    for region in seen.field.masks:
        prompt = reading.drawing(seen, "dual", region)
        assert prompt.distractor is not None
        assert not (prompt.distractor & prompt.target).any()


def test_a_region_that_is_not_in_the_field_is_refused(seen):
    for ask in (reading.drawing, reading.picture):
        with pytest.raises(BadInput, match="shows no heart in the field"):
            ask(seen, "box", "heart")
    with pytest.raises(BadInput, match="'circle'"):
        reading.drawing(seen, "circle", "liver")


def test_each_region_is_shown_with_its_own_prompt_and_the_phase_with_none(seen):
    reader = Says(target_text)
    table = reading.read(reader, seen, "contour")
    [(pictures, asked)] = reader.shown
    for picture, group in zip(pictures, asked, strict=True):
        region = group[0].region
        assert {record.region for record in group} == {region}
        condition = "none" if region is None else "contour"
        np.testing.assert_array_equal(picture, reading.model_input(seen, condition, region))
    assert table["correct"].all()
    assert sorted(table["truth"]) == sorted(record.answer for record in seen.records)


def test_always_the_same_letter_is_right_one_time_in_four(seen):
    table = reading.read(Says(lambda record: "A"), seen, "box")
    organs = table[(table["kind"] == "organ") & (table["form"] == "closed")]
    assert organs["correct"].mean() == 0.25
    said = reading.summary(table).set_index(["kind", "form"])
    assert said.loc[("organ", "closed"), "constant"] == said.loc[("organ", "closed"), "chance"] == 0.25
    assert said.loc[("organ", "open"), "accuracy"] == 0
    assert said.loc[("organ", "open"), "constant"] == pytest.approx(1 / 4)


def test_open_answers_are_compared_by_their_words(seen):
    table = reading.read(Says(lambda r: "The Liver." if r.form == "open" else "A"), seen, "none")
    opened = table[table["form"] == "open"].set_index("region")["correct"]
    assert opened["liver"] and not opened["spleen"]


def test_the_summary_shows_a_reader_that_says_one_thing_only(seen):
    table = pd.concat([reading.read(Says(lambda r: "spleen"), seen, condition) for condition in ("none", "dual")])
    said = reading.summary(table)
    assert set(said["condition"]) == {"none", "dual"}
    opened = said[said["form"] == "open"]
    assert (opened["says"] == "spleen").all()
    assert (opened["share"] == 1).all()


def test_blind_answers_stand_beside_and_are_scored_alike(seen):
    class Beside:
        def ask_all(self, asked, max_new_tokens):
            assert any("Choices: A." in question for question in asked)
            return ["B" if "Choices" in question else "the spleen" for question in asked]

    blind = reading.blind_answers(Beside(), [seen])
    table = reading.read(Says(target_text), seen, "none", blind)
    closed, opened = table[table["form"] == "closed"], table[table["form"] == "open"].set_index("region")
    assert closed[closed["kind"] == "organ"]["SmolLM2 correct"].mean() == 0.25
    assert opened["SmolLM2 correct"].to_dict() == {name: name == "spleen" for name in opened.index}
    assert reading.summary(table)["SmolLM2"].between(0, 1).all()


def test_every_condition_has_its_picture(seen):
    for condition in CONDITIONS:
        figure = reading.picture(seen, condition, "liver")
        said = [text.get_text() for text in figure.texts]
        assert f"blocks, liver: {condition}" in said
        assert said.count("R") == said.count("L") == 2  # axial and coronal
        legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
        assert len(legend) == {"none": 0, "contour": 1, "box": 1, "dual": 2}[condition]


# ------------------------------------------------------------------------------------------ the real ones


@pytest.mark.assets
@pytest.mark.slow
def test_the_real_cts_lie_as_they_should(asset):
    for name in ("abdomen_ct", "chest_cta"):
        asset(name)
    abdomen, chest = reading.cases()
    middle = {name: np.argwhere(mask).mean(axis=0) for name, mask in (abdomen.field.masks | chest.field.masks).items()}
    assert middle["liver"][2] < 26 and middle["spleen"][2] > 38  # w of 64: the patient's right, the patient's left
    assert middle["right kidney"][2] < 26 and middle["left kidney"][2] > 38
    assert middle["left kidney"][0] < middle["spleen"][0] < middle["heart"][0]
    assert middle["right lung"][2] < middle["heart"][2] < middle["left lung"][2]
    assert {r.answer for case in (abdomen, chest) for r in case.records if r.kind == "phase"} == {
        "non-contrast", "arterial"
    }  # fmt: skip
    assert {r.region for r in chest.records if r.region} == {"heart"}
    assert chest.field.body_share > 0.95
