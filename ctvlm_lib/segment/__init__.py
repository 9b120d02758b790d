"""Masks made here: VISTA-3D through MONAI, prompted by class or by points, and lungs by threshold.

The network class, its blocks and the sliding window are MONAI's; the weights are the user's, and nothing is fetched
unless profile ``paper`` is asked for. Whatever made a mask, it comes back as a :class:`ctvlm_lib.mask.LabelMap` on the
CT's own grid, with a note that says how it was made.
"""

from ctvlm_lib.segment.lungs import lungs_by_threshold
from ctvlm_lib.segment.small import SmallVista, Trained, load_small
from ctvlm_lib.segment.vista3d import OVERLAP, PATCH, class_ids, preprocess, segment, segment_at, windows
from ctvlm_lib.segment.weights import load_vista3d

__all__ = [
    "OVERLAP",
    "PATCH",
    "SmallVista",
    "Trained",
    "class_ids",
    "load_small",
    "load_vista3d",
    "lungs_by_threshold",
    "preprocess",
    "segment",
    "segment_at",
    "windows",
]
