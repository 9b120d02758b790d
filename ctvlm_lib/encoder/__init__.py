"""Image encoders, and what they can see of their input.

Names that need PyTorch are imported when they are first used, so that :func:`seen_by_stem` stays light.
"""

from importlib import import_module

from ctvlm_lib.encoder.visibility import seen_by_stem

_WHERE = {
    "DCFormer": "model", "Streams": "model", "TokenEncoder": "model", "dcformer": "model",
    "DCFormerConfig": "config", "PRESETS": "config", "VARIANTS": "config", "RELEASED_VARIANTS": "config",
    "variant_config": "config", "freeze": "frozen", "unfreeze": "frozen", "inflate": "channels",
    "ViT3D": "vit", "ViT3DConfig": "vit", "vit3d": "vit", "load_released": "released",
    "parameter_table": "counts", "for_inference": "inference",
}  # fmt: skip

__all__ = ["seen_by_stem", *_WHERE]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
