"""A cohort of 120 small phantoms and its questions, made once for all tests that ask about it."""

from functools import cache

import pytest

from ctvlm_lib.records import phantom
from ctvlm_lib.records.questions import ask, candidates

HALVES = {"train": 0.5, "test": 0.5}


@cache  # a session's fixture that two modules import is made twice
def _patients():
    return tuple(phantom.cohort(120, seed=21))


@cache
def _asked():
    return tuple(ask(_patients(), fractions=HALVES))


@pytest.fixture
def cohort():
    return list(_patients())


@pytest.fixture
def loose(cohort):
    """All candidates, before balancing."""
    return list(_loose())


@cache
def _loose():
    return tuple(record for one in _patients() for record in candidates(one))


@pytest.fixture
def asked():
    return list(_asked())
