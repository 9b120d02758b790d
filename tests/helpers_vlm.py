"""What the tests of the vision–language model share: tiny random parts, and a tokenizer trained on the spot."""

import torch

from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.vlm.config import CtvlmConfig, count_image_tokens
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import CtvlmProcessor, with_placeholder

SIZE = (16, 32, 32)  # 64 low and 4 high tokens of the tiny encoder
QUESTIONS = ["What is within the blue-outlined area?", "Is there a mass?", "Which organ is it, and where does it lie?"]
ANSWERS = ["a large mass in the liver", "no", "the spleen"]


def tokenizer(bos: bool = False):
    """A byte-level BPE as Qwen's, which adds no BOS; with one it behaves as Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *(["<s>"] if bos else [])]
    trainer = trainers.BpeTrainer(
        show_progress=False,
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([*QUESTIONS, *ANSWERS] * 3, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def encoder_config(channels: int = 1, **switches):
    """5,000 parameters, with BatchNorm, as the cohort's encoders have."""
    return variant_config("phantom", channels=(4, 4, 8, 12), in_channels=channels, **switches)


def decoder_config(kind: str = "qwen2", vocab: int = 420, **options):
    """Two layers, 32 wide."""
    from transformers import AutoConfig

    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 200, "vocab_size": vocab,
        "bos_token_id": 1 if kind == "llama" else None, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    return AutoConfig.for_model(kind, **sizes | options)


def tiny(kind: str = "qwen2", *, channels: int = 1, seed: int = 0, decoder: dict | None = None, **options):
    """A random model, and its processor; "llama" comes with BOS."""
    words = with_placeholder(tokenizer(bos=kind == "llama"))
    config = CtvlmConfig(
        encoder_config(channels),
        decoder_config(kind, **decoder or {}),
        size_dhw_vox=SIZE,
        image_token_id=words.convert_tokens_to_ids("<im_patch>"),
        **options,
    )
    config.image_tokens = count_image_tokens(config)
    model = CtvlmModel.with_seed(config, seed)
    louder(model.decoder)
    return model.eval(), CtvlmProcessor.for_config(config, words, scale="cohort")


@torch.no_grad()
def louder(decoder) -> None:
    """Weights of 0.02 give a decoder that says one token for ever; larger ones make each step depend on the rest."""
    for tensor in decoder.parameters():
        if tensor.ndim == 2:
            tensor.mul_(6)


def volumes(count: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Noise in −1…1, ``(count, channels, D, H, W)``."""
    return torch.rand(count, channels, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
