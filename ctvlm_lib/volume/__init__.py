"""CT volumes: reading, geometry, Hounsfield units, windows, and what each paper's system is fed."""

from ctvlm_lib.volume.core import Volume, save_nifti
from ctvlm_lib.volume.hu import WINDOWS, check_hu, hu_window, scale_range, window_levels
from ctvlm_lib.volume.read import load, read_nifti
from ctvlm_lib.volume.recipe import RECIPES

__all__ = [
    "RECIPES",
    "WINDOWS",
    "Volume",
    "check_hu",
    "hu_window",
    "load",
    "read_nifti",
    "save_nifti",
    "scale_range",
    "window_levels",
]
