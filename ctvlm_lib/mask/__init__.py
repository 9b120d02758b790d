"""Masks: label maps with anatomical names, binary masks, components, volumes, Dice and surface distance."""

from ctvlm_lib.mask.binary import bounding_box, dice, largest_component, largest_in, surface_distance_mm
from ctvlm_lib.mask.labels import LabelMap, label_table, load

__all__ = [
    "LabelMap",
    "bounding_box",
    "dice",
    "label_table",
    "largest_component",
    "largest_in",
    "load",
    "surface_distance_mm",
]
