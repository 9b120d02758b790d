"""Prompt-aware pretraining: volumes with a prompt drawn in, captions about the region that it marks.

A grey encoder becomes one of three channels by inflation, so that it answers to a grey picture as before. Most volumes
then carry a contour, a box or two boxes. Beside what ``dense`` asks, their tokens are told apart into those of the
marked region and those of others, and the volume's vector is compared with captions of the marked region alone
("focused").
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import center_of_mass

from ctvlm_lib.alignment.heads import Aligned, Pairing
from ctvlm_lib.alignment.objectives import CAPTIONS, Objective, dense_parts, region_positives
from ctvlm_lib.alignment.tokens import shares
from ctvlm_lib.prompt import box_outline, contour
from ctvlm_lib.prompt.overlay import COLOURS
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.training import Step

STYLES = ("contour", "box", "dual")
PROMPTED_SHARE = 0.9
PLACE_CAPTIONS = ("the marked region", "another region")
FOCUS_WEIGHTS = {"place": 4.0, "focus": 2.0}


def as_picture(image: np.ndarray) -> np.ndarray:
    """Grey ``(B, 1, D, H, W)`` in −1…1 → the same in three equal channels ``(B, 3, D, H, W)``."""
    return np.repeat(image, 3, axis=1)


def paint(picture: np.ndarray, line: np.ndarray, colour: str) -> None:
    """Draw a line into a picture ``(3, D, H, W)`` in −1…1, in place."""
    for channel, value in zip(picture, COLOURS[colour], strict=True):
        channel[line] = value / 127.5 - 1


def draw_prompt(picture: np.ndarray, region: np.ndarray, asked: int, style: str, other: int | None) -> None:
    """Draw a prompt of one-voxel lines, in place.

    Args:
        picture: float32 ``(3, D, H, W)`` in −1…1.
        region: uint8 ``(D, H, W)``, k + 1 for ``REGIONS[k]``.
        asked: index of the region that is marked.
        style: "contour" (blue), "box" (green) or "dual" (green, and red around ``other``).
        other: index of the distractor; None draws none.
    """
    mask = region == asked + 1
    if style == "contour":
        paint(picture, contour(mask, thickness=1), "blue")
        return
    paint(picture, box_outline(mask, thickness=1), "green")
    if style == "dual" and other is not None:
        paint(picture, box_outline(region == other + 1, thickness=1), "red")


def distractor_of(region: np.ndarray, found: np.ndarray, asked: int) -> int | None:
    """The nearest other region, of those with a finding if there are any; what the asked one has plays no part.

    Args:
        region: uint8 ``(D, H, W)``.
        found: ``(10,)``, as :class:`Scans` holds it.
        asked: index of the region that is marked.
    """
    voxels = np.bincount(region.ravel(), minlength=len(REGIONS) + 1)[1:]
    there = [k for k in np.flatnonzero(voxels) if k != asked]
    candidates = [k for k in there if found[k] > 0] or there
    if not candidates:
        return None
    which = [*candidates, asked]
    middles = np.array(center_of_mass(np.ones_like(region), region, [k + 1 for k in which])) * (2, 1, 1)
    return which[int(np.argmin(np.linalg.norm(middles[:-1] - middles[-1], axis=1)))]


def inflate_in_place_of(model: Aligned, encoder: torch.nn.Module) -> Aligned:
    """The same pairings around an encoder of three channels, and two further ones for prompts.

    Args:
        model: trained on grey volumes with the objective "dense".
        encoder: the inflated copy of its encoder.
    """
    caption = model.pairings["caption"]
    sizes = (caption.text.in_features, caption.text.out_features)
    low = model.pairings["token"].image.in_features
    more = {"place": Pairing(low, *sizes, len(PLACE_CAPTIONS), seed=90)}
    high = model.pairings["report"].image.in_features
    more["focus"] = Pairing(high, *sizes, len(CAPTIONS), seed=91)
    return Aligned(encoder, dict(model.pairings.items()) | more)


@dataclass(eq=False)
class PromptedObjective(Objective):
    """:class:`Objective` ``dense`` on prompted volumes.

    ``captions`` holds ``place`` (PLACE_CAPTIONS) and ``focus`` (as ``caption``) as well. Tokens of the marked region
    belong to "the marked region", tokens of the others to "another region"; the volume's vector is compared with the
    short captions of the marked region.
    """

    def __call__(self, model: Aligned, step: Step) -> dict[str, torch.Tensor]:
        """The parts of the loss of this step's share."""
        batch = self.draw(step)
        rng = step.own_rng("prompts")
        picture, asked = prompted_pictures(batch.image, batch.region, self.scans.found[batch.index], rng)
        device = next(model.parameters()).device
        tokens, vectors = model(torch.from_numpy(picture).to(device))
        grid = model.encoder.grids(batch.region.shape[1:])[-2]
        parts = dense_parts(model, batch, self.scans, self.captions, tokens, step)
        parts["report"] = model.pairings["report"].pairs(
            vectors, self.reports[batch.index].to(device), self._identity[batch.index].to(device)
        )
        weighted = {name: self.weights[name] * value for name, value in parts.items()}
        return weighted | self._focused(model, batch, asked, tokens[-2], vectors, grid)

    def _focused(self, model: Aligned, batch, asked: np.ndarray, low, vectors, grid) -> dict[str, torch.Tensor]:
        marked = np.flatnonzero(asked >= 0)
        if not len(marked):
            return {}
        share = shares(batch.region, len(REGIONS) + 1, grid)[:, 1:]
        rows, positive = place_rows(share, asked)
        flat = low.reshape(-1, low.shape[-1])[torch.from_numpy(rows).to(low.device)]
        texts = {name: self.captions[name].to(low.device) for name in ("place", "focus")}
        place = model.pairings["place"].against(flat, texts["place"], torch.from_numpy(positive).to(low.device))
        which = np.stack([marked, asked[marked]], axis=1)
        true = region_positives(which, self.scans.found[batch.index])["caption"]
        focus = model.pairings["focus"].against(
            vectors[torch.from_numpy(marked).to(low.device)], texts["focus"], torch.from_numpy(true).to(low.device)
        )
        return {"place": FOCUS_WEIGHTS["place"] * place, "focus": FOCUS_WEIGHTS["focus"] * focus}


def prompted_pictures(
    image: np.ndarray, region: np.ndarray, found: np.ndarray, rng: np.random.Generator, share: float = PROMPTED_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a prompt into most volumes of a batch.

    Args:
        image: float32 ``(B, 1, D, H, W)`` in −1…1.
        region: uint8 ``(B, D, H, W)``.
        found: ``(B, 10)``.
        rng: which volumes, regions and styles.
        share: of the volumes that get a prompt.

    Returns:
        Pictures ``(B, 3, D, H, W)``, and the index of each one's marked region, −1 without a prompt.
    """
    picture, asked = as_picture(image), np.full(len(image), -1)
    for k in range(len(image)):
        wanted, style = rng.random() < share, STYLES[rng.integers(len(STYLES))]
        there = [r for r in range(len(REGIONS)) if (region[k] == r + 1).any()]
        choice = rng.integers(2**31)
        if wanted and there:
            asked[k] = there[choice % len(there)]
            other = distractor_of(region[k], found[k], asked[k]) if style == "dual" else None
            draw_prompt(picture[k], region[k], asked[k], style, other)
    return picture, asked


def place_rows(share: np.ndarray, asked: np.ndarray, least: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the regions in prompted volumes, and bool ``(rows, 2)``: in the marked region, in another one.

    Args:
        share: ``(B, regions, tokens)``.
        asked: ``(B,)``, −1 without a prompt.
    """
    top, of = share.max(axis=1), share.argmax(axis=1)  # (B, tokens)
    chosen = (top >= least) & (asked >= 0)[:, None]
    rows = np.flatnonzero(chosen)
    inside = (of == asked[:, None]).ravel()[rows]
    return rows, np.stack([inside, ~inside], axis=1)
