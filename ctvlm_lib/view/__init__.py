"""Figures of CT slices as a radiologist expects them; they are returned, and a notebook shows what a cell returns.

Display: the patient's right is on the left of the screen (axial, coronal), superior is up (coronal, sagittal), anterior
is on the left (sagittal). Rows and columns are chosen from the affine, and so are the letters at the edges.
"""

from ctvlm_lib.view.compare import compare
from ctvlm_lib.view.figures import montage, orthogonal
from ctvlm_lib.view.histogram import histogram
from ctvlm_lib.view.one import SliceView, rgb_slice, slice_figure
from ctvlm_lib.view.panel import COLOURS, Picture, png
from ctvlm_lib.view.screen import PLANES, edge_letters, frame, position_text, scale_bar_mm, slice_index, window_text

__all__ = [
    "COLOURS",
    "PLANES",
    "Picture",
    "SliceView",
    "compare",
    "edge_letters",
    "frame",
    "histogram",
    "montage",
    "orthogonal",
    "png",
    "position_text",
    "rgb_slice",
    "scale_bar_mm",
    "slice_figure",
    "slice_index",
    "window_text",
]
