"""Notebook 60: the released vision–language model, tensor by tensor."""

from ctvlm_lib.own_data import begin
from ctvlm_lib.vlm import load_released


def show(profile: str, seed: int = 0, out_dir: str = "") -> None:
    """Load Med3DVLM and print how its file fits the model here."""
    begun = begin("60_vlm_assembly", profile, seed, out_dir)
    if begun:
        _, given = begun
        encoder = {"kind": "dcformer", "variant": given.variant}
        model, fit = load_released(given.med3dvlm, encoder=encoder, size_dhw_vox=given.size_dhw_vox, profile=profile)
        print(fit.table())
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, splice {model.config.splice!r}")
