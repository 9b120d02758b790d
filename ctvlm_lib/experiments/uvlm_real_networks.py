"""The network of an arm of :mod:`ctvlm_lib.experiments.uvlm_real`: before its first step, or on shapes alone.

On shapes alone nothing is read but the tokenizer, and nothing is computed: so stage 3's settings are tried before
stages 1 and 2 are trained, by the functions that build it afterwards.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ctvlm_lib.alignment.classification import QueryClassifier
from ctvlm_lib.encoder.unet import UNetEncoder, unet, unet_encoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import uvlm
from ctvlm_lib.experiments.uvlm_arms import CLS, SEG, injection_of
from ctvlm_lib.experiments.uvlm_real_data import LABELS
from ctvlm_lib.experiments.uvlm_real_options import ALPHA, RANK, Task
from ctvlm_lib.segment.class_maps import ClassMap
from ctvlm_lib.sources import Sources
from ctvlm_lib.vlm import parts, report_writer
from ctvlm_lib.vlm.report_writer import ReportWriter
from ctvlm_lib.vlm.stage_tokens import own_tokens


def build(task: Task, given: Sources, seed: int, home: Path) -> nn.Module:
    """An arm's network before its first step.

    Raises:
        BadInput: an arm that it begins with that isn't there, or a tokenizer or decoder that can't be read.
    """
    arm, config = task.arm, task.config
    if arm.stage == SEG:
        return unet(ClassMap.of(task.scope, arm.granularity).names, seed=seed, **config.switches)
    encoder = uvlm.begun(unet_encoder(seed=seed, **config.switches), arm, seed, home / "checkpoints")
    if arm.stage == CLS:
        return QueryClassifier(encoder, LABELS[task.scope], seed=seed)
    if arm.lora:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        return _writer(task, encoder, *reversed(parts.from_hub(given.decoders[arm.lora], dtype)), seed)
    return _writer(task, encoder, tokenizer_of(given.tokenizer), None, seed)


def try_out(task: Task, given: Sources) -> None:
    """Build stage 3 on shapes alone, and see that the decoder has room for the image and the longest report.

    Args:
        task: of stage 3; one with LoRA knows its decoder's shape, see :meth:`Task.reading`.
        given: names the tokenizer, which is read.

    Raises:
        BadInput: a tokenizer that isn't there, an attention, a layer map or a decoder that can't be.
    """
    arm, config = task.arm, task.config
    tokenizer = parts.tokenizer_of(given.decoders[arm.lora]) if arm.lora else tokenizer_of(given.tokenizer)
    with torch.device("meta"):
        encoder, volume = unet_encoder(**config.switches), torch.empty(1, 1, *config.size_dhw_vox)
        writer = _writer(task, encoder, tokenizer, _on_shapes(task) if arm.lora else None, seed=0)
        image = max(own_tokens(encoder.features(volume), arm.reference)) + 2  # and the two tokens around it
    writer.decoder.check_length(image + config.longest)


def tokenizer_of(where: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, or from the hub's cache on this machine.

    Raises:
        BadInput: it isn't there.
    """
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise kinds of their own, or a plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"no tokenizer can be had from {where!r} on this machine ({reason}); fetch its files (`hf download {where}"
            " --include 'tokenizer*' config.json vocab.json merges.txt`), or name a folder: [weights] tokenizer = …"
        ) from None


def _writer(
    task: Task, encoder: UNetEncoder, tokenizer: PreTrainedTokenizerBase, language: PreTrainedModel | None, seed: int
) -> ReportWriter:
    """Stage 3 around an encoder: with a pretrained decoder and LoRA, or with the paper's own from random weights."""
    how, config = injection_of(task.arm), task.config
    if language is None:
        return report_writer.with_tokenizer(encoder, tokenizer, config.decoder, how, config.attention, seed)
    return report_writer.with_language(encoder, language, tokenizer, how, config.attention, RANK, ALPHA, seed)


def _on_shapes(task: Task) -> PreTrainedModel:
    """The pretrained decoder without its numbers."""
    try:
        return AutoModelForCausalLM.from_config(task.language)
    except (ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{task.arm.lora} stands for a {task.language.model_type!r}, which isn't a causal language model"
            f" ({reason}); name another one in the sources file: [decoders] {task.arm.lora} = …"
        ) from None
