"""Image encoders, and what they can see of their input."""

from ctvlm_lib.encoder.visibility import seen_by_stem

__all__ = ["seen_by_stem"]
