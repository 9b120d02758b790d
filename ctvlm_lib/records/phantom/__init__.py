"""Phantom patients: a chest and upper abdomen drawn in HU with findings whose truth is known."""

from ctvlm_lib.records.phantom.canvas import Pose, PoseRange
from ctvlm_lib.records.phantom.draw import VERSION, Patient, fingerprint, patient
from ctvlm_lib.records.phantom.findings import LOBES, REGIONS, Finding, FindingRange
from ctvlm_lib.records.phantom.scanner import SCANNERS
from ctvlm_lib.records.phantom.store import cohort, cohort_folder, read_patient, write_patient

__all__ = [
    "LOBES",
    "REGIONS",
    "SCANNERS",
    "VERSION",
    "Finding",
    "FindingRange",
    "Patient",
    "Pose",
    "PoseRange",
    "cohort",
    "cohort_folder",
    "fingerprint",
    "patient",
    "read_patient",
    "write_patient",
]
