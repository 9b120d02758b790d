"""What the encoder tests share: the plain way to compute a DCFormer, and random BatchNorm statistics."""

import torch

from ctvlm_lib.encoder.decomposed import DecomposedConv


def plain_way(monkeypatch):
    """Let every decomposed convolution be three calls of conv3d, as eqs. (1)–(4) are written."""
    monkeypatch.setattr(DecomposedConv, "_convolve", staticmethod(lambda x, conv, axis: conv(x)))


@torch.no_grad()
def lived_in(model, seed=0):
    """Random running statistics, norms and layer scales, as after training: fresh ones hide mistakes."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.uniform_(0.5, 1.5, generator=random)
            module.bias.normal_(0, 0.2, generator=random)
        if getattr(module, "scale", None) is not None:
            module.scale.uniform_(0.1, 0.5, generator=random)
    return model.eval()
