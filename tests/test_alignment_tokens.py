"""Tokens and regions: shares and pooling equal a plain loop; shifts and labels move together."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ctvlm_lib.alignment import objectives
from ctvlm_lib.alignment.scans import KINDS, KNOTS_HU, Scans, as_input, batch_of, drawn_batch
from ctvlm_lib.alignment.tokens import Pooling, shares
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import phantom
from ctvlm_lib.records.phantom import REGIONS


@pytest.fixture(scope="module")
def scans() -> Scans:
    return Scans.of(phantom.cohort(4, 77))


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_shares_equal_counting_voxel_by_voxel(seed):
    labels = np.random.default_rng(seed).integers(0, 3, (2, 4, 6, 4)).astype(np.uint8)
    got = shares(labels, 3, (2, 3, 1))
    for b in range(2):
        for token, (z, y, x) in enumerate(np.ndindex(2, 3, 1)):
            block = labels[b, 2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4]
            assert got[b, :, token] == pytest.approx([(block == k).mean() for k in range(3)])


def test_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(BadInput, match="doesn't divide"):
        shares(np.zeros((1, 4, 4, 4), np.uint8), 2, (3, 4, 4))


def test_pooling_equals_a_loop_over_regions():
    rng = np.random.default_rng(0)
    share = rng.random((2, 3, 8)).astype(np.float32) * (rng.random((2, 3, 8)) < 0.4)
    share[1, 2] = 0  # not there
    share[0, 1] = [0.05, 0.02, 0, 0, 0, 0, 0, 0]  # fills no token: its fullest one counts
    tokens = torch.from_numpy(rng.normal(size=(2, 8, 5))).float()
    pooling = Pooling.of(share, least=0.1)
    pooled = pooling(tokens)
    assert [1, 2] not in pooling.rows.tolist()
    for (b, r), got in zip(pooling.rows, pooled, strict=True):
        weight = torch.from_numpy(share[b, r])
        chosen = weight >= min(0.1, float(weight.max()))
        mean = (tokens[b][chosen] * weight[chosen, None]).sum(0) / weight[chosen].sum()
        torch.testing.assert_close(got, torch.cat([mean, tokens[b][chosen].max(dim=0).values]))


def test_hu_and_labels_shift_together(scans):
    index, by = np.array([2]), np.array([[1, -3, 2]])
    still, moved = batch_of(scans, index), batch_of(scans, index, by)
    inside = np.s_[0, 1:, :-3, 2:]
    came = np.s_[0, :-1, 3:, :-2]
    for name in ("region", "kind"):
        assert np.array_equal(getattr(moved, name)[inside], getattr(still, name)[came])
    assert np.array_equal(moved.image[:, 0][inside], still.image[:, 0][came])
    assert (moved.image[0, 0, 0] == -1).all() and not moved.region[0, 0].any()  # air comes in


def test_a_batch_is_a_function_of_its_generator(scans):
    first, again = (drawn_batch(scans, np.random.default_rng(5), 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(BadInput, match="larger than the cohort"):
        drawn_batch(scans, np.random.default_rng(0), 5)


def test_input_grows_with_hu_and_stays_in_range():
    hu = np.arange(-1500, 3000, dtype=np.int16)
    values = as_input(hu)
    assert values.min() == -1 and values.max() == 1 and (np.diff(values) >= 0).all()
    steepest = hu[:-1][np.diff(values) > np.diff(values).max() - 1e-4]
    assert KNOTS_HU[2] <= steepest.min() and steepest.max() <= KNOTS_HU[3]


def test_labels_are_the_patients_own(scans):
    for k, one in enumerate(phantom.cohort(4, 77)):
        for finding in one.findings:
            if finding.kind in KINDS:
                assert (scans.kind[k][finding.mask] > 0).all()
        liver = one.labels.binary("liver")
        assert np.array_equal(scans.region[k] == REGIONS.index("liver") + 1, liver)


def test_every_finding_captions_a_token_with_its_kind(scans):
    batch = batch_of(scans, np.arange(4))
    grid = (8, 8, 8)
    kind, region = shares(batch.kind, len(KINDS) + 1, grid), shares(batch.region, len(REGIONS) + 1, grid)
    rows, positive = objectives.token_rows(kind, region, 256, np.random.default_rng(0))
    told = {
        (row // 512, k - 1)
        for row, k in zip(*[rows[np.nonzero(positive)[0]], np.nonzero(positive)[1]], strict=True)
        if k
    }
    there = {(b, k) for b in range(4) for k in range(len(KINDS)) if (batch.kind[b] == k + 1).any()}
    assert told == there
    clean = rows[positive[:, 0]]
    assert not kind[clean // 512, 1:, clean % 512].any()


def test_each_region_is_true_of_one_sentence_and_one_caption(scans):
    rows = np.argwhere(scans.found >= 0)
    found = objectives.region_positives(rows, scans.found)
    assert (found["sentence"].sum(axis=1) == 1).all() and (found["caption"].sum(axis=1) == 1).all()
    for (patient, region), sentence, caption in zip(rows, found["sentence"], found["caption"], strict=True):
        name, kind = objectives.SENTENCES[int(np.argmax(sentence))]
        assert name == REGIONS[region] and kind == objectives.CAPTIONS[int(np.argmax(caption))]
        assert kind.split()[-1] in scans.reports[patient] or kind == "no focal finding"


def test_captions_are_all_different():
    for texts in objectives.vocabulary().values():
        assert len(set(texts)) == len(texts)
