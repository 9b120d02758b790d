"""Med3DVLM's contrastive model: an image encoder and a text tower that is trained as well, in the released layout.

    image = mean of the last tokens → Linear → length 1        (vision_encoder, mm_vision_proj)
    text  = token 0 of the last layer → Linear → length 1      (language_encoder, mm_language_proj)
    logit = exp(t') · image · text + b                         (t_prime, bias)

M3D's CLIP has the same names with its own vision transformer, and ``logit_scale`` instead of ``t_prime`` and ``bias``.
A checkpoint written here has these names too, so that one loader reads both.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ctvlm_lib.alignment.heads import Aligned, Pairing
from ctvlm_lib.alignment.text import TOWERS, text_network
from ctvlm_lib.checkpoints import write_record
from ctvlm_lib.encoder import dcformer, vit3d
from ctvlm_lib.encoder.checks import refuse_non_finite
from ctvlm_lib.encoder.released import HUB_EXAMPLE, advice, translate
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.weights import Fit, find, read_tensors

EXPECTED = "a contrastive checkpoint with both towers, such as DCFormer_SigLIP's pytorch_model.bin or model.safetensors"
TEXT_FOLDER = "text"  # in a checkpoint written here: the text tower's configuration and tokenizer
NEEDED = ("vision_encoder.", "language_encoder.", "mm_vision_proj.weight", "mm_language_proj.weight")


class TwoTowers(Aligned):
    """An aligned encoder that brings its text tower along.

    Args:
        encoder: gives one vector a volume by ``encode``.
        pairing: of volumes and reports.
        text: a BERT of transformers.
        tokenizer: its tokenizer.
    """

    def __init__(self, encoder: torch.nn.Module, pairing: Pairing, text: torch.nn.Module, tokenizer):
        super().__init__(encoder, {"report": pairing})
        self.text, self.tokenizer = text, tokenizer

    @property
    def limit(self) -> int:
        """Largest number of tokens of a text, special ones included."""
        return int(self.text.config.max_position_embeddings)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Token 0 of each text, float32 ``(n, channels)``, before the projection; what is too long is cut off."""
        inputs = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.limit,
            return_token_type_ids=False,
        )  # fmt: skip
        return self.text(**inputs.to(self.text.device)).last_hidden_state[:, 0].float()

    def logits(self, volumes: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """``(volumes, texts)``: how surely each text belongs to each volume; through a sigmoid where SigLIP trained."""
        pairing = self.pairings["report"]
        alike = pairing.images(self(volumes)[1]) @ pairing.texts(self.text_vectors(texts)).mT
        return pairing.log_temperature.exp() * alike + getattr(pairing, "bias", 0.0)


class Loaded(NamedTuple):
    """A loaded model, and how the file's tensors fitted it; ``print(fit.table())`` shows that."""

    model: TwoTowers
    fit: Fit


def fitting(text: str, tokenizer, limit: int, rng: np.random.Generator) -> str:
    """Shorten a text that has too many tokens: its first sentence, and others drawn at random, in their order.

    Source: Med3DVLM's and M3D's training code, which cuts long reports so.
    """
    if len(tokenizer(text, verbose=False)["input_ids"]) <= limit:
        return text
    sentences = [part.strip().rstrip(".") + "." for part in text.split(". ") if part.strip()]
    lengths = [len(ids) for ids in tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]]
    kept, room = [0], limit - 2 - lengths[0]
    for k in rng.permutation(np.arange(1, len(sentences))):
        if lengths[k] <= room:
            kept.append(int(k))
            room -= lengths[k]
    return " ".join(sentences[k] for k in sorted(kept))


def build_two_towers(
    encoder: torch.nn.Module,
    text: str,
    *,
    width: int = 768,
    train_text: bool = True,
    **options,
) -> TwoTowers:
    """The model before training: an encoder, a pretrained text tower, random projections.

    Args:
        encoder: as it starts.
        text: one of :data:`~ctvlm_lib.alignment.text.TOWERS`, a folder in the hub's layout, or a repository.
        width: of the common space.
        train_text: False freezes the text tower.
        options: ``loss``, ``init``, ``rivals`` and ``seed`` of the :class:`~ctvlm_lib.alignment.heads.Pairing`;
            temperature and bias start as in Med3DVLM's code (ln 1/0.07, 0) if nothing else is said.
    """
    tokenizer, network = text_network(TOWERS.get(text, (text,))[0])
    vector = encoder.config.hidden_size if hasattr(encoder.config, "hidden_size") else encoder.config.channels[-1]
    pairing = Pairing(vector, network.config.hidden_size, width, **{"init": "released"} | options)
    return TwoTowers(encoder, pairing, network.requires_grad_(train_text), tokenizer)


def load_two_towers(
    weights: str | Path,
    text: str = "",
    *,
    encoder: str = "dcformer",
    variant: str = "small",
    profile: str = "quick",
    **switches,
) -> Loaded:
    """Load a contrastive model whole: both towers, both projections, temperature and bias.

    Args:
        weights: a file or folder of weights; in profile ``paper`` a repository such as ``MagicXin/DCFormer_SigLIP``.
        text: where the text tower's configuration and tokenizer lie, as for :func:`build_two_towers`; its weights come
            from the checkpoint. Empty: with a checkpoint written here those it holds, else ClinicalBERT's.
        encoder: "dcformer" or "vit3d".
        variant: of the encoder; Med3DVLM released ``small``.
        profile: quick, full or paper.
        switches: of the encoder.

    Returns:
        The model in evaluation mode, frozen, float32, and the report. ``model.logits(volumes, texts)`` is the formula.

    Raises:
        BadInput: no such file, a part of the model isn't in it, tensors are missing or of another shape (with the
            table), or values aren't finite.
    """
    path = find(str(weights), profile, EXPECTED, _choose, HUB_EXAMPLE)
    stored = read_tensors(path, EXPECTED)
    lacking = [name for name in NEEDED if not any(key.startswith(name) for key in stored)]
    if lacking or not {"t_prime", "logit_scale"} & set(stored):
        what = ", ".join(lacking) or "t_prime or logit_scale"
        raise BadInput(f"{path.name} has no {what}; give {EXPECTED}, or take load_released for the encoder alone")
    tensors, renamed, ignored = _encoder_renamed(stored) if encoder == "dcformer" else (stored, {}, {})
    own = (path if path.is_dir() else path.parent) / TEXT_FOLDER
    tokenizer, network = text_network(_tower(text, own, profile), weights=False)
    made = dcformer(variant, seed=0, **switches) if encoder == "dcformer" else vit3d(variant, seed=0, **switches)
    width, vector = stored["mm_vision_proj.weight"].shape
    loss = "siglip" if "t_prime" in stored else "clip"
    pairing = Pairing(vector, stored["mm_language_proj.weight"].shape[1], width, loss=loss)
    model = TwoTowers(made, pairing, network, tokenizer)
    return Loaded(model, _fill(model, tensors, renamed, ignored, path.name, variant))


def save_two_towers(folder: str | Path, model: TwoTowers, record: Mapping) -> Path:
    """Write a model in the released layout, with the text tower's configuration, the tokenizer and a record.

    Args:
        folder: appears whole.
        model: what to write, in float32.
        record: what made it, as JSON can hold it.
    """
    from safetensors.torch import save_file

    with atomic_path(folder) as partial:
        partial.mkdir()
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in released_tensors(model).items()}
        save_file(tensors, partial / "model.safetensors", {"format": "pt"})
        model.text.config.save_pretrained(partial / TEXT_FOLDER)
        model.tokenizer.save_pretrained(partial / TEXT_FOLDER)
        write_record(dict(record), partial)
    return Path(folder)


def released_tensors(model: TwoTowers) -> dict[str, torch.Tensor]:
    """All tensors by their released names; those of modules are the model's own memory."""
    pairing = model.pairings["report"]
    parts = {"vision_encoder": model.encoder, "language_encoder": model.text,
             "mm_vision_proj": pairing.image, "mm_language_proj": pairing.text}  # fmt: skip
    tensors = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    if pairing.loss == "clip":  # the released code multiplies by logit_scale itself, without exponential
        return tensors | {"logit_scale": pairing.log_temperature.detach().exp()}
    return tensors | {"t_prime": pairing.log_temperature.detach(), "bias": pairing.bias.detach()}


def _choose(files: list[str]) -> list[str]:
    """The whole model's files of a repository, which may hold its encoder alone as well."""
    safe = [f for f in files if f.endswith(".safetensors") and "/" not in f]
    return safe or [f for f in files if f.startswith("pytorch_model") and f.endswith(".bin")]


def _tower(text: str, own: Path, profile: str) -> str | Path:
    if not text and own.is_dir():
        return own
    name = text or "clinicalbert"
    where = TOWERS.get(name, (name,))[0]
    if not Path(where).is_dir() and profile != "paper":
        raise BadInput(f"text tower {name!r} lies on a model hub, which is asked only in profile paper; give a folder")
    return where


def _encoder_renamed(stored: Mapping[str, torch.Tensor]):
    """The encoder's tensors under the names that the encoder here has, all others as they are."""
    encoder, renamed, ignored = translate(stored, "vision_encoder.")
    others = {k: t for k, t in stored.items() if not k.startswith("vision_encoder.")}
    left_out = {k: why for k, why in ignored.items() if k not in others}
    return {f"vision_encoder.{k}": t for k, t in encoder.items()} | others, renamed, left_out


@torch.no_grad()
def _fill(model: TwoTowers, tensors: Mapping, renamed: Mapping, ignored: Mapping, file: str, variant: str) -> Fit:
    wanted = released_tensors(model)
    shaped = {k: t.reshape(wanted[k].shape) if t.numel() == 1 and k in wanted else t for k, t in tensors.items()}
    fit = Fit.of(shaped, wanted, ignored, renamed)
    if not fit.complete:
        of_encoder = {k.removeprefix("vision_encoder."): t for k, t in tensors.items()}
        raise BadInput(f"{file} doesn't fit variant {variant!r}; {advice(of_encoder, variant)}\n{fit.table()}")
    refuse_non_finite({name: shaped[name] for name in fit.matched}, file)
    for name in fit.matched:
        wanted[name].copy_(shaped[name])
    if "logit_scale" in wanted:
        scale = float(shaped["logit_scale"])
        if scale <= 0:
            raise BadInput(
                f"{file} has a logit_scale of {scale:g}; similarities are multiplied by it, so it must be > 0"
            )
        model.pairings["report"].log_temperature.fill_(math.log(scale))
    model.requires_grad_(False).eval()
    return fit
