"""Cohorts of phantom patients, kept on disk so that each is drawn once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ctvlm_lib.damaged import NOT_JSON, load_npz
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.records.phantom.canvas import Pose, PoseRange
from ctvlm_lib.records.phantom.draw import VERSION, Patient, assembled, check_arguments, check_phases, patient
from ctvlm_lib.records.phantom.findings import Finding, FindingRange

_FACTS = ("kind", "region", "side", "lobe", "size_mm", "density", "severity", "box")


def cohort(
    n: int,
    seed: int = 0,
    shape: tuple[int, int, int] = (32, 64, 64),
    scanner: str = "A",
    *,
    pose: PoseRange | None = None,
    findings: FindingRange | None = None,
    phases: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Patient]:
    """Give patients 0 … n − 1 of a cohort, one at a time, so that memory holds one.

    Args:
        n: number of patients, ≥ 1.
        seed, shape, scanner, pose, findings, phases: as :func:`patient`.
        cache: folder; a patient that lies there is read, any other is drawn and stored. A cohort that was interrupted,
            or is asked for with a larger ``n``, goes on where it stopped. None stores nothing.
        progress: called with (done, n) after each patient.

    Yields:
        Patients in the order of their index, the same whether they were drawn or read.

    Raises:
        BadInput: at the call: ``n`` below 1, impossible arguments; later: a cache folder that can't be written.
    """
    if isinstance(n, bool) or n != int(n) or n < 1:
        raise BadInput(f"a cohort has at least one patient, got n={n!r}")
    shape = check_arguments(0, seed, shape, scanner)
    pose, findings, phases = pose or PoseRange(), findings or FindingRange(), check_phases(phases)
    folder = None if cache is None else cohort_folder(cache, seed, shape, scanner, pose, findings, phases)

    def patients() -> Iterator[Patient]:
        for index in range(int(n)):
            one = None if folder is None else read_patient(folder / f"{index:05d}.npz")
            if one is None:
                one = patient(index, seed, shape, scanner, pose=pose, findings=findings, phases=phases)
                if folder is not None:
                    write_patient(one, folder / f"{index:05d}.npz")
            if progress is not None:
                progress(index + 1, int(n))
            yield one

    return patients()


def cohort_folder(
    cache: str | Path,
    seed: int,
    shape: tuple[int, int, int],
    scanner: str,
    pose: PoseRange | None = None,
    findings: FindingRange | None = None,
    phases: Mapping[str, float] | None = None,
) -> Path:
    """Where a cohort lies in a cache: a folder named by the hash of the generator's version and of every argument."""
    arguments = {
        "version": VERSION,
        "seed": int(seed),
        "shape": [int(n) for n in shape],
        "scanner": scanner,
        "pose": asdict(pose or PoseRange()),
        "findings": asdict(findings or FindingRange()),
        "phases": check_phases(phases),
    }
    # the order of the kinds decides which of them a random number means, so the keys stay as they are
    key = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]
    size = "x".join(str(n) for n in shape)
    return Path(cache) / f"phantom-{size}-{scanner}-seed{seed}-{key}"


def write_patient(one: Patient, path: Path) -> Path:
    """Store a patient as ``.npz`` (int16 HU, uint8 labels, packed masks, the facts as JSON), whole or not at all."""
    facts = {
        "name": one.name,
        "pose": asdict(one.pose),
        "attributes": one.attributes,
        "findings": [{key: getattr(finding, key) for key in _FACTS} for finding in one.findings],
    }
    arrays = {f"mask{k}": np.packbits(finding.inside.ravel()) for k, finding in enumerate(one.findings)}
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            hu=one.hu,
            labels=one.labels.labels.astype(np.uint8),  # VISTA-3D ids end at 132
            affine=one.volume.affine,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            **arrays,
        )
    return path


def read_patient(path: Path) -> Patient | None:
    """Read a stored patient; None if there is none or the file is damaged."""
    try:
        stored = load_npz(path)
        facts = json.loads(stored["facts"].tobytes())
        hu, labels = stored["hu"], stored["labels"].astype(np.uint16)
        found = [_finding(fact, stored[f"mask{k}"], hu.shape) for k, fact in enumerate(facts["findings"])]
        affine = stored["affine"]
    except (OSError, KeyError, TypeError, *NOT_JSON):
        return None
    shift = tuple(facts["pose"].pop("shift_mm"))
    pose = Pose(**facts["pose"], shift_mm=shift)
    return assembled(facts["name"], hu, labels, affine, tuple(found), pose, facts["attributes"])


def _finding(fact: dict, packed: np.ndarray, shape: tuple[int, int, int]) -> Finding:
    box = tuple(tuple(pair) for pair in fact["box"])
    size = [stop - start for start, stop in box]
    inside = np.unpackbits(packed, count=size[0] * size[1] * size[2]).reshape(size).astype(bool)
    return Finding(**(fact | {"box": box}), inside=inside, shape=shape)
