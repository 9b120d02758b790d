"""Med3DVLM's released checkpoint: its tensors by name in our model, with a report of every one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ctvlm_lib.encoder.checks import NOT_A_MODEL, refuse_non_finite
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens, decoder_config
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.weights import Fit, find, read_tensors

HUB_EXAMPLE = "MagicXin/Med3DVLM-Qwen-2.5-7B"
EXPECTED = "the folder of Med3DVLM-Qwen's safetensors files"
EMBEDDINGS, HEAD = "decoder.model.embed_tokens.weight", "decoder.lm_head.weight"

# (its name begins with, ours begins with); the first that fits counts
KEY_MAP = (
    ("model.vision_tower.vision_tower.", "encoder."),
    ("model.mm_projector.", "projector."),
    ("model.", "decoder.model."),
    ("lm_head.", "decoder.lm_head."),
)


class Imported(NamedTuple):
    """A loaded model, and how the file's tensors fitted it; ``print(fit.table())`` shows that."""

    model: CtvlmModel
    fit: Fit


def load_released(
    weights: str | Path,
    decoder: PretrainedConfig | Mapping | None = None,
    *,
    encoder: PretrainedConfig | Mapping | None = None,
    size_dhw_vox: tuple[int, int, int] = (128, 256, 256),
    image_token_id: int | None = None,
    dtype: torch.dtype | None = None,
    profile: str = "quick",
) -> Imported:
    """Load a checkpoint in the layout of Med3DVLM-Qwen-2.5-7B.

    The model gets the splice that the weights were trained with. Its vocabulary is the file's: the released training
    shrinks Qwen's padded matrix to the tokenizer's length, 151,666 rows with the placeholder as the last.

    Args:
        weights: folder of shards, a file, or in profile ``paper`` a repository of the model hub.
        decoder: its configuration; None reads the folder's ``config.json`` as a Qwen2's.
        encoder: configuration or dict as :class:`CtvlmConfig` takes it; None is DCFormer ``small``.
        size_dhw_vox: of the volumes that it was trained on; the projector's shapes depend on it.
        image_token_id: None takes the last row of the embeddings.
        dtype: of the model; None keeps the file's, bfloat16 for the released one.
        profile: quick, full or paper.

    Returns:
        the model in eval mode, and the report.

    Raises:
        BadInput: no such weights, tensors missing or of another shape (with the table), or values not finite.
    """
    path = find(str(weights), profile, EXPECTED, _choose, HUB_EXAMPLE)
    stored = read_tensors(path, EXPECTED)
    tensors, renamed, ignored = translate(stored)
    config = _config(path, tensors, decoder, encoder, size_dhw_vox, image_token_id)
    if config.tied and HEAD not in tensors and EMBEDDINGS in tensors:
        tensors[HEAD] = tensors[EMBEDDINGS]
        ignored[HEAD] = "not in the file: the decoder writes with its embeddings"
    try:
        with torch.device("meta"):
            wanted = CtvlmModel(config).state_dict()
    except BadInput:
        raise
    except NOT_A_MODEL as error:
        raise BadInput(f"config.json of {path.name} describes no decoder that can be built ({type(error).__name__});"
                       " restore it") from error  # fmt: skip
    fit = Fit.of(tensors, wanted, ignored, renamed)
    if not fit.complete:
        raise BadInput(f"{path.name} doesn't fit this model; {_advice(tensors, config)}\n{fit.table()}")
    matched = {name: tensors[name] for name in fit.matched}
    refuse_non_finite(matched, path.name)
    dtype = matched[EMBEDDINGS].dtype if dtype is None else dtype
    model = CtvlmModel.from_pretrained(None, config=config, state_dict=matched, dtype=dtype)
    return Imported(model.eval(), fit)


def translate(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Names as our model has them: tensors, what was renamed, and what was left out and why.

    A tensor that no rule of KEY_MAP knows keeps its name, so that the report shows it as unexpected.
    """
    tensors, renamed, ignored = {}, {}, {}
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq"):
            ignored[name] = "computed from the configuration"
            continue
        own = next((ours + name.removeprefix(its) for its, ours in KEY_MAP if name.startswith(its)), name)
        tensors[own], renamed[name] = tensor, own
    return tensors, {its: ours for its, ours in renamed.items() if its != ours}, ignored


def _config(path, tensors, decoder, encoder, size_dhw_vox, image_token_id) -> CtvlmConfig:
    decoder = _qwen(path) if decoder is None else decoder_config(decoder)
    if EMBEDDINGS in tensors:
        decoder.vocab_size = len(tensors[EMBEDDINGS])
    last = decoder.vocab_size - 1
    config = CtvlmConfig(
        {"kind": "dcformer", "variant": "small"} if encoder is None else encoder,
        decoder,
        projector="mixer",
        size_dhw_vox=size_dhw_vox,
        image_token_id=last if image_token_id is None else image_token_id,
        splice="as released",
    )
    config.image_tokens = count_image_tokens(config)
    return config


def _qwen(path: Path) -> PretrainedConfig:
    """The released config.json names a model class of its own; its fields are Qwen2's."""
    from transformers import Qwen2Config

    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {*Qwen2Config().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "dtype", "architectures"}
        return Qwen2Config(**{name: value for name, value in content.items() if name in known})
    except NOT_A_MODEL as error:
        raise BadInput(
            f"no configuration of the decoder in {file} ({type(error).__name__}); give it with decoder=, for example"
            " transformers.AutoConfig.from_pretrained of Qwen2.5-7B-Instruct"
        ) from None


def _advice(tensors: Mapping[str, Tensor], config: CtvlmConfig) -> str:
    """The likeliest reason."""
    ends = [int(m[1]) for name in tensors if (m := re.match(r"projector\.low_mixer\.(\d+)\.", name))]
    last = tensors.get(f"projector.low_mixer.{max(ends)}.mlp2.mm_projector.0.weight") if ends else None
    if last is not None and len(last) != config.hidden_size:
        return (
            f"its projector writes vectors of {len(last)} and the decoder is {config.hidden_size} wide: a projector"
            " is made for one decoder, take the decoder that it was trained with"
        )
    if not any(name.startswith("encoder.") for name in tensors):
        return "it holds no vision tower under model.vision_tower.vision_tower; give the whole checkpoint"
    return "check the decoder's configuration, the encoder's variant and size_dhw_vox"


def _choose(files: list[str]) -> list[str]:
    safe = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    return [*safe, "config.json"] if safe and "config.json" in files else safe
