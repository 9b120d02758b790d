"""Stage 3 of U-VLM: an encoder and a decoder that write reports, their training and their words.

A frozen encoder's maps are computed once, pooled to the grid that the decoder reads, and kept in 16 bits. An encoder
that is tuned reads each volume anew. Nothing is asked: a report begins behind the image, and only it is learnt.
The released code puts a chat between the two, the line "You are a radiologist …", a request and the assistant's turn.
It writes behind that, and learns all of its tokens but the first as well.

Source: uvlm.txt §2.1, equation (3), and §3.1; U-VLM's released code (5d7fde9), nnUNetTrainer_UVLM.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ctvlm_lib.alignment.classification import pictures
from ctvlm_lib.alignment.scans import Scans, drawn_batch
from ctvlm_lib.encoder import frozen
from ctvlm_lib.encoder.unet import UNetEncoder
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Curve, Step, Training, train
from ctvlm_lib.vlm import ladder
from ctvlm_lib.vlm.ladder_tokenizer import EOS_ID, PAD_ID, VOCABULARY, load_tokenizer
from ctvlm_lib.vlm.lora import with_lora
from ctvlm_lib.vlm.splice import IGNORED
from ctvlm_lib.vlm.stage_tokens import pool
from ctvlm_lib.vlm.uvlm import UvlmDecoder
from ctvlm_lib.vlm.uvlm_config import UvlmConfig, paper_decoder

VISION_START, VISION_END, PLACEHOLDER = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2  # behind the ladder's words
AROUND = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")  # of another tokenizer, under Qwen3's names
LONGEST = 400  # tokens of a report; the cohort's longest has fewer


class ReportWriter(nn.Module):
    """Encoder and decoder.

    Args:
        encoder: whose maps are read.
        decoder: made for the encoder's channels.
        tokenizer: the decoder's.
    """

    def __init__(self, encoder: UNetEncoder, decoder: UvlmDecoder, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.encoder, self.decoder, self.tokenizer = encoder, decoder, tokenizer
        if tuple(encoder.config.channels) != decoder.config.channels:
            raise BadInput(
                f"the encoder's stages have {encoder.config.channels} channels and the decoder reads"
                f" {decoder.config.channels}; build it for this encoder"
            )

    @property
    def reference(self) -> int:
        """The stage, from 1, whose grid gives the image's tokens."""
        return self.decoder.injection.reference

    def features(self, volume: Tensor) -> list[Tensor]:
        """What the decoder reads of volumes ``(B, 1, D, H, W)``: all stages, the finer ones pooled."""
        return pool(self.encoder.features(volume), self.reference)

    def words(self, text: str) -> list[int]:
        """A report's tokens, all of which are learnt: the end is the last one."""
        return [*self.tokenizer(text)["input_ids"], self.decoder.config.eos_token_id]

    def forward(self, features: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of reports, equation (3)."""
        pad, tokens = self.decoder.config.pad_token_id, [self.words(text) for text in texts]
        longest, device = max(map(len, tokens)), features[0].device
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=device)
        return self.decoder(features, ids, mask, labels=ids.masked_fill(mask == 0, IGNORED)).loss

    @torch.inference_mode()
    def write(self, features: Sequence[Tensor], longest: int = 0) -> list[str]:
        """Reports of volumes whose features these are, greedily; of ``longest`` tokens at most, 0 is LONGEST."""
        tokens = self.decoder.generate(features, max_new_tokens=longest or LONGEST)
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def from_scratch(
    encoder: UNetEncoder, shape: Mapping[str, int], injection: Mapping, attention: str, seed: int = 0
) -> ReportWriter:
    """A writer whose decoder has the paper's kind of blocks, random weights, and the ladder's words.

    Args:
        encoder: whose maps are read.
        shape: arguments of :func:`ctvlm_lib.vlm.uvlm_config.paper_decoder`.
        injection, attention: see :class:`ctvlm_lib.vlm.uvlm_config.UvlmConfig`.
        seed: of all the decoder's weights.
    """
    width = shape["hidden_size"]  # the paper's spread of .02 suits 512; so narrow, attention would begin blind
    decoder = paper_decoder(VOCABULARY + 2, initializer_range=width**-0.5, **shape)
    config = _config(decoder, encoder, injection, attention)
    return ReportWriter(encoder, UvlmDecoder.with_seed(config, seed), load_tokenizer())


def with_tokenizer(
    encoder: UNetEncoder, tokenizer: PreTrainedTokenizerBase, shape: Mapping, injection: Mapping, attention: str,
    seed: int = 0,
) -> ReportWriter:  # fmt: skip
    """A writer whose decoder has random weights and another tokenizer's words, as the paper's has Qwen3's.

    Args:
        encoder: whose maps are read.
        tokenizer: gets the tokens around the image and its placeholder if it hasn't them, as Qwen3's has.
        shape, injection, attention, seed: see :func:`from_scratch`; the spread of the weights is the paper's.

    Raises:
        BadInput: a tokenizer without an end of text.
    """
    around = _around(tokenizer)
    config = UvlmConfig(paper_decoder(len(tokenizer), **shape), encoder.config.channels, injection, attention, **around)
    return ReportWriter(encoder, UvlmDecoder.with_seed(config, seed), tokenizer)


def with_pretrained(
    encoder: UNetEncoder, size: str, injection: Mapping, attention: str, rank: int, alpha: float, seed: int = 0
) -> ReportWriter:
    """A writer whose decoder was pretrained on text and gets LoRA; the projections and adapters learn.

    Args:
        encoder: whose maps are read.
        size: of the ladder.
        injection, attention: see :class:`ctvlm_lib.vlm.uvlm_config.UvlmConfig`.
        rank, alpha: of LoRA; the paper's are 64 and 128.
        seed: of projections and adapters.
    """
    language, tokenizer = ladder.load(size)
    _widen(language, VOCABULARY + 2, seed)
    config = _config(language.config, encoder, injection, attention)
    return _adapted(encoder, language, tokenizer, config, rank, alpha, seed)


def with_language(
    encoder: UNetEncoder, language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, injection: Mapping,
    attention: str, rank: int, alpha: float, seed: int = 0,
) -> ReportWriter:  # fmt: skip
    """A writer around a user's language model, such as Qwen3, with LoRA; projections and adapters learn, in 32 bits.

    Args:
        encoder: whose maps are read.
        language: changed in place. tokenizer: its own; see :func:`with_tokenizer`.
        injection, attention, rank, alpha, seed: see :func:`with_pretrained`.

    Raises:
        BadInput: a tokenizer without an end of text, or a language model that can't be read into.
    """
    around = _around(tokenizer)
    _widen(language, len(tokenizer), seed)
    config = UvlmConfig(language.config, encoder.config.channels, injection, attention, **around)
    return _adapted(encoder, language, tokenizer, config, rank, alpha, seed)


def _adapted(encoder, language, tokenizer, config: UvlmConfig, rank: int, alpha: float, seed: int) -> ReportWriter:
    model = UvlmDecoder.with_seed(config, seed, language)
    model.injection.float()  # made in the language model's type; steps of 2e-5 are lost in 16 bits
    model.decoder = with_lora(model.decoder, rank, alpha, dropout=0.0, seed=seed)
    return ReportWriter(encoder, model, tokenizer)


def _around(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Numbers of the tokens around the image, its placeholder, the end and the padding; what lacks is added."""
    if tokenizer.eos_token_id is None:
        raise BadInput("the tokenizer has no token that ends a text; give another, such as Qwen3's")
    tokenizer.add_tokens(list(AROUND), special_tokens=True)
    names = ("vision_start_id", "vision_end_id", "image_token_id")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(AROUND)), strict=True)) | {
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad,
    }  # fmt: skip


def _widen(language: PreTrainedModel, words: int, seed: int) -> None:
    """Rows for the tokens around the image, random by the seed: LoRA freezes them, so they aren't stored."""
    if words > language.config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            language.resize_token_embeddings(words, mean_resizing=False)


def _config(decoder: PretrainedConfig, encoder: UNetEncoder, injection: Mapping, attention: str) -> UvlmConfig:
    return UvlmConfig(
        decoder, encoder.config.channels, injection, attention, VISION_START, VISION_END, PLACEHOLDER,
        eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip


@torch.inference_mode()
def kept_features(
    writer: ReportWriter, scans: Scans, batch: int = 10, index: Sequence[int] | None = None
) -> list[Tensor]:
    """What the decoder reads of all volumes, or of some, unshifted, float16, a tensor for each stage."""
    writer.encoder.eval()
    device, parts = next(writer.encoder.parameters()).device, []
    index = np.arange(len(scans)) if index is None else np.asarray(index)
    for start in range(0, len(index), batch):
        volume = pictures(scans, index[start : start + batch]).to(device)
        parts.append([one.half().cpu() for one in writer.features(volume)])
    return [torch.cat(stage) for stage in zip(*parts, strict=True)]


def fit(
    writer: ReportWriter,
    scans: Scans,
    settings: Training,
    batch: int = 8,
    encoder_rate: float = 0.0,
    *,
    keep: bool = True,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Curve:
    """Train a writer in place.

    Args:
        writer: to be trained.
        scans: volumes and reports, in memory or read as :func:`ctvlm_lib.alignment.classification.pictures` says.
        settings: how.
        batch: reports a step, over all processes.
        encoder_rate: of the decoder's rate; 0 freezes the encoder.
        keep: a frozen encoder's features are computed once and kept in memory; False: anew at each step, of shifted
            volumes.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: a patient without a report, or a batch larger than the cohort.
    """
    if empty := [name for name, text in zip(scans.names, scans.reports, strict=True) if not text.strip()]:
        raise BadInput(f"{empty[0]} has no findings in words ({len(empty)} such patients); leave those out")
    if encoder_rate:
        frozen.unfreeze(writer.encoder)
        settings = replace(settings, rates=(("encoder.", encoder_rate),))
        kept = None
    else:
        frozen.freeze(writer.encoder)
        kept = kept_features(writer, scans) if keep else None

    def loss(network: ReportWriter, step: Step) -> Tensor:
        everyone, shifts = drawn_batch(scans, step.rng("patients"), batch)
        index, shifts = step.mine(everyone), step.mine(shifts)
        weight = step.weight(everyone, lambda k: len(writer.words(scans.reports[k])))
        device = next(network.decoder.parameters()).device
        if kept is not None:
            features = [stage[torch.from_numpy(np.asarray(index))].float().to(device) for stage in kept]
        else:
            features = network.features(pictures(scans, index, shifts).to(device))
        return network(features, [scans.reports[k] for k in index]) * weight

    return train(writer, loss, settings, folder=folder, on_step=on_step, progress=progress)


def reports_of(writer: ReportWriter, scans: Scans, batch: int = 50, longest: int = 0, at_once: int = 10) -> list[str]:
    """A report for each patient.

    Args:
        writer: trained.
        scans: the patients.
        batch: reports that are written together.
        longest: tokens of a report, see :meth:`ReportWriter.write`.
        at_once: volumes that the encoder reads together.
    """
    writer.eval()
    device, said = next(writer.decoder.parameters()).device, []
    for start in range(0, len(scans), batch):
        kept = kept_features(writer, scans, at_once, range(start, min(start + batch, len(scans))))
        said += writer.write([stage.float().to(device) for stage in kept], longest)
    return said
