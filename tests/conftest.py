"""What all tests share: a quiet headless setting, a small synthetic case, and the fetched CTs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Set before any test imports them: no window is opened, and no test may ask a model hub.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine can be slow for a moment, which is not a failure; the same examples are drawn each time on CI.
settings.register_profile("workbook", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("workbook")

# name: (HU, centre (d, h, w), radii (d, h, w)), in voxels. Odd places, no symmetry, so that a swapped or
# flipped axis can't go unseen. The liver is on the patient's right: at small w.
ORGANS = {
    "liver": (110, (12, 20, 13), (7, 9, 8)),
    "spleen": (130, (14, 25, 35), (4, 5, 4)),
    "aorta": (300, (11, 28, 24), (30, 2, 2)),
}


@dataclass(frozen=True)
class SyntheticCase:
    """A tiny CT and its label map on one anisotropic grid."""

    volume: object
    labels: object


@pytest.fixture(scope="session")
def synthetic_case() -> SyntheticCase:
    """23×41×47 voxels of 3.0×1.1×0.9 mm: a body with liver, spleen and aorta, in air, with 8 HU of noise."""
    from ctvlm_lib.mask import LabelMap
    from ctvlm_lib.volume import Volume

    shape = (23, 41, 47)
    hu = np.where(_ellipsoid(shape, (11, 20, 23), (99, 18, 21)), 40.0, -1000.0)
    labels = np.zeros(shape, np.uint16)
    for number, (value, centre, radii) in enumerate(ORGANS.values(), start=1):
        inside = _ellipsoid(shape, centre, radii)
        hu[inside], labels[inside] = value, number
    hu += np.random.default_rng(0).normal(0, 8, shape)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[:, 3] = 3.0, 1.1, 0.9, (-20.0, -15.0, 100.0, 1.0)
    names = dict(enumerate(ORGANS, start=1))
    return SyntheticCase(Volume(hu.astype(np.float32), affine, name="synthetic"), LabelMap(labels, affine, names))


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """Give the path of a fetched asset; where it can't be had the test is skipped, with the reason.

    On a CI machine it fails instead: a skip there would hide that the download is broken.
    """
    from ctvlm_lib import assets
    from ctvlm_lib.errors import BadInput

    def path(name: str) -> Path:
        try:
            return assets.path(name)
        except BadInput as problem:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(problem))

    return path


def _ellipsoid(shape: tuple[int, ...], centre: tuple[int, ...], radii: tuple[int, ...]) -> np.ndarray:
    offsets = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((o - c) / r) ** 2 for o, c, r in zip(offsets, centre, radii, strict=True)) <= 1


@pytest.fixture(scope="module")
def scheduler():
    """Address of a Dask scheduler and a worker inside this process: starting processes would take seconds a test."""
    from dask.distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 40}
    with LocalCluster(processes=False, **options) as cluster:
        yield cluster.scheduler_address
