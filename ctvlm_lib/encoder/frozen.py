"""Frozen means frozen: no gradient, and no BatchNorm statistic that drifts because a parent was put in train mode."""

from types import MethodType

from torch import nn


def freeze(module: nn.Module) -> nn.Module:
    """Fix a module's weights and keep it in eval mode, whatever mode its parents are put in.

    ``requires_grad`` alone doesn't fix a model with BatchNorm: in train mode its running mean and variance move with
    every batch, and its output depends on the other volumes of the batch. Training loops call ``train()`` on the
    whole model, so the released training code lets a frozen encoder drift.

    Returns:
        the module itself; :func:`unfreeze` undoes it.
    """
    module.eval().requires_grad_(False)
    module.train = MethodType(_stay, module)
    return module


def unfreeze(module: nn.Module) -> nn.Module:
    """Let a module's weights learn again; its mode follows its parents', and starts as train."""
    vars(module).pop("train", None)
    return module.requires_grad_(True).train()


def is_frozen(module: nn.Module) -> bool:
    """Whether :func:`freeze` holds this module."""
    return "train" in vars(module)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Takes the place of ``train``, which parents call on their children."""
    return module
