"""Where images and texts meet: one pair of projections, a temperature and a bias for each kind of pairing."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ctvlm_lib.alignment.clip import clip_loss_across
from ctvlm_lib.alignment.siglip import RELEASED_INIT, SIGLIP_INIT, siglip_loss, siglip_loss_across
from ctvlm_lib.errors import BadInput

LOSSES = ("siglip", "clip")
INITS = ("siglip", "released", "base rate")


class Pairing(nn.Module):
    """Projects image vectors and text vectors to one space and compares them.

    Args:
        image_width, text_width: channels that come in.
        width: of the common space.
        rivals: how many texts an image is usually compared with, read by ``init="base rate"``.
        loss: "siglip" or "clip".
        init: of (t', b). "siglip" (ln 10, −10), made for batches of 32,768: −10 is about −ln 32,768. "released"
            (ln 1/0.07, 0) as Med3DVLM's code. "base rate": t' = ln 10 and b = −ln(rivals − 1), SigLIP's rule for the
            batch at hand: before anything is learned, a pair is held for true as often as pairs are.
        seed: of the projections.
    """

    def __init__(self, image_width, text_width, width, rivals=2, loss="siglip", init="base rate", seed=0):
        super().__init__()
        for name, value, known in (("loss", loss, LOSSES), ("init", init, INITS)):
            if value not in known:
                raise BadInput(f"{name} is {value!r}; choose one of {', '.join(known)}")
        self.loss = loss
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image, self.text = nn.Linear(image_width, width), nn.Linear(text_width, width)
        base_rate = (SIGLIP_INIT[0], -math.log(max(2, rivals) - 1))
        t, b = {"siglip": SIGLIP_INIT, "released": RELEASED_INIT, "base rate": base_rate}[init]
        self.log_temperature = nn.Parameter(torch.tensor(RELEASED_INIT[0] if loss == "clip" else t))
        if loss == "siglip":
            self.bias = nn.Parameter(torch.tensor(b))
        # sentences of one template lie close together: what they share is taken away, what is left is brought to size
        self.register_buffer("centre", torch.zeros(text_width))
        self.register_buffer("scale", torch.ones(()))

    def centre_on(self, texts: torch.Tensor) -> None:
        """Set what every text vector is shifted and divided by: mean and spread of these, ``(n, text_width)``."""
        self.centre.copy_(texts.mean(dim=0))
        self.scale.copy_((texts - self.centre).square().mean().sqrt().clamp_min(1e-6))

    def images(self, vectors: torch.Tensor) -> torch.Tensor:
        """``(…, image_width)`` → ``(…, width)`` of length one, float32."""
        return functional.normalize(self.image(vectors).float(), dim=-1)

    def texts(self, vectors: torch.Tensor) -> torch.Tensor:
        """``(…, text_width)`` → ``(…, width)`` of length one, float32."""
        return functional.normalize(self.text((vectors - self.centre) / self.scale).float(), dim=-1)

    def against(self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Sigmoid loss of image vectors against any captions; ``positive`` bool (images, captions)."""
        return siglip_loss(self.images(image), self.texts(text), self.log_temperature, self.bias, positive=positive)

    def pairs(self, image: torch.Tensor, text: torch.Tensor, identity: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of a batch of pairs, over all processes; ``identity`` tells which texts are the same."""
        image, text = self.images(image), self.texts(text)
        if self.loss == "clip":
            return clip_loss_across(image, text, self.log_temperature, identity=identity)
        return siglip_loss_across(image, text, self.log_temperature, self.bias, identity=identity)


class Aligned(nn.Module):
    """An image encoder with its pairings by name.

    Args:
        encoder: gives token sequences and one vector a volume by ``encode``.
        pairings: name → pairing.
    """

    def __init__(self, encoder: nn.Module, pairings: Mapping[str, Pairing]):
        super().__init__()
        self.encoder, self.pairings = encoder, nn.ModuleDict(pairings)

    def forward(self, volumes: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """``(B, channels, D, H, W)`` → token sequences, finest first, and vectors ``(B, C)``."""
        return self.encoder.encode(volumes)
