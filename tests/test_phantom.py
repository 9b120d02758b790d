"""Phantom patients: the same bytes everywhere, sides and labels that are true, findings inside their regions."""

import json
import os
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest

from ctvlm_lib import anatomy
from ctvlm_lib.errors import BadInput
from ctvlm_lib.mask import load as load_mask
from ctvlm_lib.records import phantom
from ctvlm_lib.records.phantom import FindingRange, PoseRange, cohort, fingerprint, patient
from ctvlm_lib.records.phantom.canvas import Canvas, Draws, Pose, edge
from ctvlm_lib.records.phantom.findings import long_axis_mm
from ctvlm_lib.volume import check_hu
from ctvlm_lib.volume import load as load_volume

SMALL, ODD = (32, 64, 64), (40, 72, 80)
# Raise draw.VERSION when one of these changes: caches are keyed by it.
FINGERPRINTS = {
    (0, 0, SMALL, "A"): "bcdb26e5ff3e395b425bb91e30d262bfb29569cd14d3bf099e8e417fb55bf0b2",
    (7, 3, SMALL, "B"): "45adb2171e4d019446a7b0ba051b62e14abf463bcf5f59317d64f68cd0c1c2f2",
    (3, 4, SMALL, "A"): "ca5e15a35aff47f954e9fee3e45edc00b71c35b0a61c60cbb570465c2bdf116c",  # prone
    (2, 1, ODD, "A"): "cf8cbd9a3bdb52e5b42be9028f48957acee56bbf262a62263dac875b9a5cb523",
}
FOCAL = set(FindingRange().in_lung)


@pytest.fixture(scope="module")
def sixty():
    return list(cohort(60, seed=11))


@pytest.fixture(scope="module")
def upright():
    """Twelve patients without findings at middle size, none turned or shifted."""
    still = PoseRange(prone_share=0, rotation_sd_deg=0, scale=(1, 1), shift_share=0)
    none = FindingRange(prevalence=0, effusion=0, cardiomegaly=0)
    return list(cohort(12, seed=5, shape=(64, 128, 128), pose=still, findings=none))


# ------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("key", FINGERPRINTS, ids=str)
def test_fingerprints_are_fixed(key):
    assert fingerprint(patient(*key)) == FINGERPRINTS[key]


def test_a_processor_without_vector_instructions_draws_the_same_patient():
    """NumPy's fast loops are switched off in another process, as on an old or foreign processor."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    code = "from ctvlm_lib.records.phantom import *; print(fingerprint(patient(4, 9)))"
    plain = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__)}
    plain["PYTHONWARNINGS"] = "ignore"  # it warns of features that this processor lacks anyway
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain)
    assert done.stdout.strip() == fingerprint(patient(4, 9))


def test_index_and_seed_change_the_patient(sixty):
    assert len({fingerprint(p) for p in [*sixty, patient(0, 12)]}) == 61


def test_hu_are_whole_and_pass_the_check(sixty):
    for one in sixty[:8]:
        check_hu(one.volume.hu)
        assert one.hu.dtype == np.int16 and np.array_equal(one.hu, one.volume.hu)
        assert one.labels.labels.dtype == np.uint16


def test_the_random_bytes_of_the_noise_have_its_standard_deviation():
    from ctvlm_lib.records.phantom.scanner import noise

    grain = noise((64, 64, 65), 10.0, Draws(0, 0, 3))
    inner = grain[:, 1:-1, 1:-1]  # at the border a voxel stands in for its missing neighbour
    assert abs(inner.std() - 10.0) < 0.1 and abs(inner.mean()) < 0.1  # standard error of the first about 0.02


# ------------------------------------------------------------------------------------------------------- anatomy


def test_labels_are_the_anatomy_table_s(sixty):
    table = anatomy.vocabulary("vista3d")
    for one in sixty[:10]:
        used = {int(i) for i in np.unique(one.labels.labels)} - {0}
        assert set(one.labels.names) == used
        assert all(one.labels.names[i] == table[i] for i in used)
        assert set(phantom.REGIONS) <= set(one.labels.present)
        assert {"trachea", "aorta", "esophagus", "sternum", "spinal cord", "left rib 5"} <= set(one.labels.present)


def test_left_is_left_in_millimetres_prone_and_supine(sixty):
    assert {one.pose.prone for one in sixty} == {True, False}
    for one in sixty:
        at = {name: _middle(one, name) for name in one.labels.present}
        for name in at:
            if name.startswith("left ") and "right" + name[4:] in at:
                assert at[name][0] > at["right" + name[4:]][0], (one.name, name)
        assert at["spleen"][0] > at["liver"][0]
        assert at["heart"][1] < at["vertebrae T8"][1]  # in front of the spine
        assert at["liver"][2] < at["heart"][2] < at["trachea"][2]


def test_every_array_is_in_the_patients_own_axes_and_a_prone_one_was_scanned_upside_down(sixty):
    for one in sixty[:20]:
        liver, spleen = (np.argwhere(one.labels.binary(name)).mean(axis=0)[2] for name in ("liver", "spleen"))
        assert liver < spleen
        assert np.array_equal(one.as_scanned, one.hu[:, ::-1, ::-1] if one.pose.prone else one.hu)
        assert (np.diag(one.volume.affine[:3, 2::-1]) > 0).all()


def test_a_saved_prone_patient_is_loaded_as_it_was(sixty, tmp_path):
    one = next(p for p in sixty if p.pose.prone)
    again = load_volume(one.volume.save(tmp_path / "ct.nii.gz"))
    labels = load_mask(one.labels.save(tmp_path / "labels.nii.gz"), like=again, names="vista3d")
    assert np.array_equal(again.hu, one.volume.hu)
    assert np.array_equal(labels.labels, one.labels.labels)
    np.testing.assert_allclose(again.affine, one.volume.affine, atol=1e-4)  # NIfTI stores the affine in float32


def test_apex_of_the_heart_points_left_and_the_aorta_runs_left_of_the_spine(upright):
    for one in upright:
        heart, spine = _middle(one, "heart"), _middle(one, "vertebrae T9")
        assert heart[0] > spine[0] + 5
        level = np.argwhere(one.labels.binary("aorta"))
        low = level[(level[:, 0] > 15) & (level[:, 0] < 30)]
        assert one.volume.mm_of(low)[:, 0].mean() > spine[0]


def test_lobes_lie_as_they_should(upright):
    for one in upright:
        at = {name: _middle(one, name) for name in phantom.LOBES}
        for side in ("left", "right"):
            upper, lower = at[f"{side} lung upper lobe"], at[f"{side} lung lower lobe"]
            assert upper[2] > lower[2] and upper[1] < lower[1]
        middle = at["right lung middle lobe"]
        assert middle[1] < at["right lung lower lobe"][1] and middle[2] < at["right lung upper lobe"][2]


def test_phases_are_drawn_as_asked_for():
    assert {one.attributes["phase"] for one in cohort(5, phases={"arterial": 1, "delayed": 0})} == {"arterial"}


def test_volumes_are_an_adult_s(upright):
    """Wide textbook bounds, ml."""
    bounds = {"liver": (900, 2400), "spleen": (80, 420), "left kidney": (90, 260), "right kidney": (90, 260)}
    bounds |= {"heart": (350, 1000), "lung": (2500, 6500)}
    for one in upright:
        for name, (low, high) in bounds.items():
            assert low < one.labels.volume_ml(name) < high, (one.name, name, one.labels.volume_ml(name))


def test_hu_medians_are_near_those_of_the_real_abdomen_ct(asset, upright):
    """The real CT has no contrast medium. Soft tissue within 25 HU, lung within 80 (inspiration), bone within 110."""
    real = load_volume(asset("abdomen_ct") / "ct.nii.gz")
    masks = load_mask(asset("abdomen_ct") / "labels.nii.gz", like=real)
    plain = [one for one in upright if not one.attributes["contrast"]]
    assert plain
    tolerance = dict.fromkeys(["liver", "spleen", "left kidney", "right kidney", "aorta", "left iliopsoas"], 25)
    tolerance |= {"gallbladder": 25, "inferior vena cava": 25, "right lung lower lobe": 80, "left lung lower lobe": 80}
    tolerance |= {"vertebrae L1": 110, "left rib 9": 110}
    for name, most in tolerance.items():
        theirs = np.median(real.hu[masks.binary(name)])
        ours = np.mean([np.median(one.volume.hu[one.labels.binary(name)]) for one in plain])
        print(f"{name}: real {theirs:.0f}, phantom {ours:.0f} HU")
        assert abs(theirs - ours) <= most, name


def test_contrast_phases_order_the_tissues(sixty):
    by_phase = {one.attributes["phase"]: one for one in sixty}
    aorta = {phase: np.median(one.volume.hu[one.labels.binary("aorta")]) for phase, one in by_phase.items()}
    liver = {phase: np.median(one.volume.hu[one.labels.binary("liver")]) for phase, one in by_phase.items()}
    assert aorta["non-contrast"] < aorta["delayed"] < aorta["portal venous"] < aorta["arterial"]
    assert liver["non-contrast"] < liver["portal venous"]


@pytest.mark.parametrize("radius", [20.0, 47.3])
def test_partial_volume_keeps_a_ball_s_volume(radius):
    """The sum of the coverage is the analytic volume, even where a voxel is half as long as the radius."""
    pose = Pose(prone=False, rotation_deg=0.0, scale=1.0, shift_mm=(3.1, -7.7, 1.9), half_turn=0.1)
    canvas = Canvas(SMALL, pose)
    cover = canvas.ellipsoid_cover((slice(None),) * 3, (5.0, 3.0, -4.0), (radius,) * 3)
    measured = cover.sum() * np.prod(canvas.spacing_mm)
    assert measured == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)


def test_edge_is_half_at_the_border():
    np.testing.assert_array_equal(edge(np.array([-1.0, -0.5, 0.0, 0.25, 0.5, 9.0]), 1.0), [0, 0, 0.5, 0.75, 1, 1])


# ------------------------------------------------------------------------------------------------------ findings


def test_findings_lie_inside_their_region(sixty):
    for one in sixty:
        for finding in one.findings:
            mask = finding.mask
            assert mask.shape == one.volume.shape and mask.sum() == finding.voxels > 0
            if finding.region == "pleura":
                assert not one.labels.labels[mask].any()  # fluid is no lung
            else:
                assert (one.labels.labels[mask] == anatomy.structure(finding.region).vista3d).all()
            assert finding.side == (finding.side if finding.region == "pleura" else _side(finding.region))
            assert finding.lobe == (finding.region if finding.region in phantom.LOBES else None)


def test_lesions_keep_a_voxel_away_from_their_region_s_border(sixty):
    for one in sixty[:20]:
        for finding in (f for f in one.findings if f.kind in FOCAL):
            region, mask = one.labels.labels == anatomy.structure(finding.region).vista3d, finding.mask
            for axis in range(3):
                for step in (1, -1):
                    assert region[np.roll(mask, step, axis)].all()


def test_findings_don_t_overlap(sixty):
    for one in sixty:
        masks = [finding.mask for finding in one.findings if finding.kind != "cardiomegaly"]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_distractors_exist(sixty):
    several = [one for one in sixty if len({finding.region for finding in one.findings}) >= 2]
    assert len(several) > 50
    assert 4.3 < np.mean([len(one.findings) for one in sixty]) < 6.2  # about 5: ten halves, and some fluid


def test_prevalence_is_what_was_asked_for(sixty):
    """Four standard errors of a binomial; the few lesions that don't fit make it a little smaller."""
    regions = [finding.region for one in sixty for finding in one.findings if finding.kind in FOCAL]
    assert _near(len(regions), 600, 0.5)
    for region in phantom.REGIONS:
        assert _near(regions.count(region), 60, 0.5), region
    assert _near(sum(one.pose.prone for one in sixty), 60, 0.3)
    assert _near(sum(one.attributes["cardiomegaly"] for one in sixty), 60, 0.15)
    wet = [one for one in sixty if any(finding.kind == "pleural effusion" for finding in one.findings)]
    assert _near(len(wet), 60, 0.2)
    every = {finding.kind for one in sixty for finding in one.findings}
    assert every == FOCAL | {"pleural effusion", "cardiomegaly"}


def test_prevalence_zero_and_one():
    assert patient(3, findings=FindingRange(prevalence=0, effusion=0, cardiomegaly=0)).findings == ()
    full = patient(3, findings=FindingRange(prevalence=1, effusion=0, cardiomegaly=0))
    assert [finding.region for finding in full.findings] == list(phantom.REGIONS)


def test_each_kind_has_its_density(sixty):
    """Median HU of the masks, over the cohort, ordered as the words are."""
    seen = {}
    for one in sixty:
        for finding in one.findings:
            place = "lung" if finding.lobe else "organ"
            seen.setdefault((finding.kind, place), []).append(np.median(one.volume.hu[finding.mask]))
            expected = {"calcification": "calcified", "emphysema": "air", "pleural effusion": "fluid"}
            assert finding.density == expected.get(finding.kind, finding.density)
    median = {key: np.median(values) for key, values in seen.items()}
    assert median["calcification", "organ"] > 400 and median["calcification", "lung"] > 300
    assert -30 < median["cyst", "organ"] < 30 and abs(median["pleural effusion", "organ"]) < 30
    assert median["emphysema", "lung"] < -930 and median["cyst", "lung"] < -600
    assert -700 < median["ground-glass opacity", "lung"] < -450
    assert -60 < median["mass", "lung"] < 80 and -100 < median["consolidation", "lung"] < 60


def test_sizes_are_measured_on_the_mask(sixty):
    for one in sixty[:20]:
        for finding in (f for f in one.findings if f.kind in FOCAL):
            assert finding.size_mm == round(long_axis_mm(finding.mask, one.volume.spacing_mm), 1)
            if finding.lobe and finding.kind in ("nodule", "mass"):
                assert (finding.size_mm <= 30) == (finding.kind == "nodule")


def test_long_axis_is_the_longest_diameter_in_a_slice():
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 4:8, 3:15] = True
    mask[2, 9, 9] = True
    # corners 11 columns and 3 rows apart, and one voxel for the two halves at the ends
    assert long_axis_mm(mask, (9.0, 2.0, 2.0)) == pytest.approx(sqrt(22**2 + 6**2) + 2)


def test_fluid_lies_towards_the_table(sixty):
    """In a prone patient that is the front of the chest."""
    seen = set()
    for one in sixty:
        for finding in (f for f in one.findings if f.kind == "pleural effusion"):
            lung = one.labels.binary(f"{finding.side} lung")
            fluid = np.argwhere(finding.mask).mean(axis=0)
            assert (fluid[1] < np.argwhere(lung).mean(axis=0)[1]) == one.pose.prone
            seen.add(one.pose.prone)
            assert (_middle(one, f"{finding.side} lung")[1] > one.volume.mm_of(fluid)[1]) == one.pose.prone
    assert seen == {True, False}


def test_an_enlarged_heart_is_larger(sixty):
    ratio = {True: [], False: []}
    for one in sixty:
        assert one.attributes["cardiomegaly"] == any(finding.kind == "cardiomegaly" for finding in one.findings)
        ratio[one.attributes["cardiomegaly"]].append(one.attributes["cardiothoracic_ratio"])
    assert np.median(ratio[True]) > 0.5 > np.median(ratio[False])


# ------------------------------------------------------------------------------------------------------ scanners


def test_scanner_b_changes_the_image_and_not_the_patient(sixty):
    other = patient(0, 11, scanner="B")
    assert np.array_equal(other.labels.labels, sixty[0].labels.labels)
    facts = [[(f.kind, f.size_mm, f.box) for f in one.findings] for one in (other, sixty[0])]
    assert facts[0] == facts[1]
    assert not np.array_equal(other.hu, sixty[0].hu)
    air = {one: drawn.hu[:, :2].std() for one, drawn in (("A", sixty[0]), ("B", other))}
    assert air["B"] > 1.2 * air["A"]  # the same grains, 1.7 times as strong, cut at −1024


# --------------------------------------------------------------------------------------------------------- cache


def test_cache_gives_back_what_was_drawn(tmp_path):
    calls = []
    drawn = list(cohort(3, seed=2, cache=tmp_path, progress=lambda done, n: calls.append((done, n))))
    folder = phantom.cohort_folder(tmp_path, 2, SMALL, "A")
    assert sorted(f.name for f in folder.iterdir()) == ["00000.npz", "00001.npz", "00002.npz"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for a, b in zip(drawn, cohort(3, seed=2, cache=tmp_path), strict=True):
        assert fingerprint(a) == fingerprint(b) and a.pose == b.pose and a.attributes == b.attributes
        np.testing.assert_array_equal(a.volume.affine, b.volume.affine)
        for f, g in zip(a.findings, b.findings, strict=True):
            assert np.array_equal(f.mask, g.mask) and f.box == g.box
            assert (f.kind, f.region, f.side, f.lobe, f.size_mm) == (g.kind, g.region, g.side, g.lobe, g.size_mm)
        assert json.dumps(b.attributes)


def test_a_cached_patient_is_read_and_not_drawn(tmp_path, monkeypatch):
    list(cohort(2, cache=tmp_path))

    def refuse(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr("ctvlm_lib.records.phantom.store.patient", refuse)
    assert len(list(cohort(2, cache=tmp_path))) == 2


def test_an_interrupted_cohort_goes_on_and_a_damaged_file_is_drawn_again(tmp_path):
    started = cohort(4, cache=tmp_path)
    expected = [fingerprint(next(started)), fingerprint(next(started))]
    started.close()
    folder = phantom.cohort_folder(tmp_path, 0, SMALL, "A")
    assert len(list(folder.iterdir())) == 2
    whole = (folder / "00001.npz").read_bytes()
    (folder / "00001.npz").write_bytes(whole[: len(whole) // 2])
    again = [fingerprint(one) for one in cohort(3, cache=tmp_path)]
    assert again[:2] == expected
    assert len(list(folder.iterdir())) == 3


def test_arguments_change_the_cache_folder(tmp_path):
    folders = {
        phantom.cohort_folder(tmp_path, *rest)
        for rest in [
            (0, SMALL, "A"),
            (1, SMALL, "A"),
            (0, ODD, "A"),
            (0, SMALL, "B"),
            (0, SMALL, "A", PoseRange(prone_share=0)),
            (0, SMALL, "A", None, FindingRange(prevalence=0.3)),
            (0, SMALL, "A", None, None, {"arterial": 1}),
        ]
    }
    assert len(folders) == 7


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape", [(8, 64, 64), (32, 64), (32, 64, 10_000), (32, 64, 64.5), "big", (0, 0, 0)])
def test_impossible_shapes(shape):
    with pytest.raises(BadInput, match="16 to 512 voxels"):
        patient(0, shape=shape)
    with pytest.raises(BadInput, match="16 to 512 voxels"):
        cohort(2, shape=shape)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prevalence": 1.5}, "prevalence is a chance"),
        ({"radius_mm": {"mass": (90.0, 100.0, 0.0)}}, "larger than its region: the .* is about"),
        ({"radius_mm": {"cyst": (9.0, 3.0, 0.0)}}, "two growing lengths"),
        ({"in_organ": {"emphysema": 1}}, "no finding called 'emphysema'"),
        ({"in_lung": {"nodule": 0}}, "at least one must be positive"),
    ],
)
def test_impossible_findings(change, words):
    with pytest.raises(BadInput, match=words):
        FindingRange(**change)


def test_other_impossible_arguments():
    for call, words in (
        (lambda: cohort(0), "at least one patient"),
        (lambda: patient(-1), "index must be a whole number"),
        (lambda: patient(0, seed=0.5), "seed must be a whole number"),
        (lambda: patient(0, phases={"venous": 1}), "no contrast phase is called 'venous'"),
        (lambda: cohort(1, phases={"delayed": 0}), "at least one must be positive"),
        (lambda: patient(0, scanner="C"), "no scanner profile is called 'C'"),
        (lambda: PoseRange(scale=(2.0, 3.0)), "scale must be"),
        (lambda: PoseRange(prone_share=-1), "prone_share"),
        (lambda: PoseRange(rotation_sd_deg=90), "leaves the field"),
    ):
        with pytest.raises(BadInput, match=words):
            call()


# ------------------------------------------------------------------------------------------------------- helpers


def _middle(one, name):
    """Centre of a structure, LPS mm (x, y, z)."""
    return one.volume.mm_of(np.argwhere(one.labels.binary(name)).mean(axis=0))


def _side(region):
    return anatomy.structure(region).side


def _near(count, n, share):
    return abs(count - n * share) <= 4 * sqrt(n * share * (1 - share)) + 0.02 * n
