"""Aligning images with texts: losses, the text tower, pretraining, and the ceiling of what features know."""

from importlib import import_module

_WHERE = {
    "siglip_loss": "siglip", "siglip_loss_across": "siglip", "same_text": "siglip",
    "SIGLIP_INIT": "siglip", "RELEASED_INIT": "siglip",
    "clip_loss": "clip", "clip_loss_across": "clip", "TextTower": "text", "Pairing": "heads", "Aligned": "heads",
    "Scans": "scans",
}  # fmt: skip

__all__ = list(_WHERE)


def __getattr__(name: str):  # torch is imported when a name is first used
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
