"""The parts that a finetuning begins with: what ships with the workbook, or a user's own in the hub's layouts."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.checkpoints import load as load_aligned
from ctvlm_lib.encoder.model import TokenEncoder
from ctvlm_lib.encoder.released import load_released
from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm import ladder, smollm2

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ctvlm_lib.vlm.finetune import Finetuning


def encoder_of(config: "Finetuning", folder: str | Path) -> TokenEncoder:
    """The encoder: a checkpoint of the workbook, or with ``variant`` a DCFormer in one of its released layouts.

    Args:
        config: names it; of an arm of local and global alignment, "align-full", it comes with its stem.
        folder: of checkpoints.

    Raises:
        BadInput: there is none, or it doesn't fit.
    """
    if config.variant:
        return load_released(config.encoder, config.variant, profile="paper").encoder
    if "recipe" in checkpoints.record(config.encoder, folder):  # of a local–global arm
        from ctvlm_lib.alignment.local_global_saving import read_encoder  # brings MONAI along, which takes seconds

        return read_encoder(Path(folder) / config.encoder)
    return load_aligned(Path(folder) / config.encoder)[0].encoder


def decoder_of(config: "Finetuning", folder: str | Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The decoder and its tokenizer: of the ladder, SmolLM2, or a user's, in 16 bits if the training is.

    Args:
        config: names it; with ``variant``, as in profile ``paper``, it may also be a repository of the model hub.
        folder: of checkpoints.

    Raises:
        BadInput: there is none.
    """
    name = config.decoder
    if name == smollm2.ASSET:
        return smollm2.load(dtype=torch.float32)
    if name in ladder.SIZES or not (config.variant or Path(name).is_dir()):
        decoder, tokenizer = ladder.load(name, folder)
        return (ladder.build(name, config.seed) if config.from_scratch else decoder), tokenizer
    if config.from_scratch:
        raise BadInput(f"from_scratch is for the sizes of the ladder ({', '.join(ladder.SIZES)}), not for {name}")
    return from_hub(name, torch.bfloat16 if config.precision == "bf16" else torch.float32)


def from_hub(name: str, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model that transformers knows, and its tokenizer; no code of a repository is run.

    Raises:
        BadInput: no such folder or repository, or it holds no such model.
    """
    from transformers import AutoModelForCausalLM

    try:  # transformers, safetensors and tokenizers raise kinds of their own, or a plain Exception
        decoder = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        raise _no_model(name, error) from error
    return decoder.eval(), tokenizer_of(name)


def shape_from_hub(name: str) -> "PretrainedConfig":
    """The configuration of what :func:`from_hub` gives, of which nothing else is read.

    Raises:
        BadInput: no such folder or repository, or a model that transformers doesn't know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # as in from_hub
        raise _no_model(name, error) from error


def _no_model(name: str, error: Exception) -> BadInput:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BadInput(f"{name} can't be had as a language model ({reason}); give its folder or repository")


def tokenizer_of(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or repository.

    Raises:
        BadInput: there is none.
    """
    from transformers import AutoTokenizer, PretrainedConfig

    try:  # Med3DVLM's config.json names a model that transformers doesn't know; a tokenizer needs none of it
        return AutoTokenizer.from_pretrained(name, config=PretrainedConfig(), trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{name} holds no tokenizer ({reason}); give the folder or repository that has it") from error
