"""Masks made here: VISTA-3D through MONAI, prompted by class or by points, lungs by threshold, and U-VLM's U-Net.

The network class, its blocks and the sliding window are MONAI's; the weights are the user's, and nothing is fetched
unless profile ``paper`` is asked for. Whatever made a mask, it comes back as a :class:`ctvlm_lib.mask.LabelMap` on the
CT's own grid, with a note that says how it was made. Stage 1 of U-VLM: ``class_maps`` says which structure is which
class at three granularities, by what ``containment`` knows of anatomy; ``unet_training`` trains and asks.
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
