"""The ladder: three small Qwen2 language models that stand for the papers' three decoder sizes on a CPU.

Each is a thousandth of its counterpart: 0.50 M, 1.54 M and 3.08 M parameters for 0.494 B, 1.544 B and 3.086 B of
Qwen2.5. As there, the smaller a model the larger the share of its words; words are read and written with one matrix,
and two heads of keys and values serve all queries. They are transformers' own Qwen2, pretrained as language models on
the training split's text (:mod:`ctvlm_lib.vlm.ladder_training`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.checkpoints import check_tensors
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.vlm.ladder_tokenizer import CONTEXT, EOS_ID, PAD_ID, VOCABULARY, load_tokenizer, tokenizer_hash

CONFIG, TIED = "config.json", "lm_head.weight"


@dataclass(frozen=True)
class Size:
    """One rung of the ladder.

    Attributes:
        stands_for: the papers' decoder.
        width: of a token's vector.
        layers: decoder layers.
        heads: of queries, 32 wide each; two heads of keys and values serve them.
        inner: width inside an MLP.
    """

    stands_for: str
    width: int
    layers: int
    heads: int
    inner: int


SIZES = {
    "small": Size("Qwen2.5-0.5B", 128, 3, 4, 216),
    "middle": Size("Qwen2.5-1.5B", 192, 4, 6, 432),
    "large": Size("Qwen2.5-3B", 256, 5, 8, 536),
}
KEY_VALUE_HEADS = 2


def config(size: str) -> Qwen2Config:
    """The configuration of a size.

    Raises:
        BadInput: no such size.
    """
    if size not in SIZES:
        raise BadInput(f"the ladder has no size {size!r}; choose one of {', '.join(SIZES)}")
    one = SIZES[size]
    return Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=one.width, intermediate_size=one.inner, num_hidden_layers=one.layers,
        num_attention_heads=one.heads, num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS_ID, pad_token_id=PAD_ID, dtype="float32",
        initializer_range=one.width**-0.5,  # Qwen2's 0.02 suits 1,000 and more; so narrow, attention would begin blind
    )  # fmt: skip


def build(size: str, seed: int = 0) -> Qwen2ForCausalLM:
    """A size with random weights, float32, in evaluation mode: the row "from scratch".

    Args:
        size: of SIZES.
        seed: of the weights; the state of global random numbers is left as it was.

    Raises:
        BadInput: no such size.
    """
    made = config(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(made).eval()


def parameters(size: str) -> dict[str, float]:
    """Number of parameters of a size, those of the words among them, and the words' share, 0…1."""
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config(size))
    total = sum(p.numel() for p in model.parameters())
    words = model.get_input_embeddings().weight.numel()
    return {"parameters": total, "of_words": words, "share_of_words": round(words / total, 3)}


def name_of(size: str) -> str:
    """Name of a size's checkpoint."""
    return f"ladder-{size}"


def save(size: str, model: Qwen2ForCausalLM, record: dict, folder: str | Path = checkpoints.FOLDER) -> Path:
    """Write a checkpoint, weights in 16 bits, that :func:`load` and transformers' ``from_pretrained`` read.

    Args:
        size: of SIZES.
        model: of that size.
        record: how it was made; sizes and the tokenizer's hash are added.
        folder: of checkpoints; its ``ladder-tokenizer`` is the model's.
    """
    content = record | {"model": parameters(size), "tokenizer": tokenizer_hash(folder)}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != TIED}
    home = checkpoints.save(name_of(size), tensors, content, folder)
    with atomic_path(home / CONFIG) as partial:
        model.config.to_json_file(partial)
    return home


def load(size: str, folder: str | Path = checkpoints.FOLDER) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A pretrained size and its tokenizer.

    Args:
        size: of SIZES.
        folder: of checkpoints; by default those that ship with the workbook.

    Returns:
        The model in float32 and evaluation mode, its parameters trainable, and the tokenizer.

    Raises:
        BadInput: no such size or checkpoint, a damaged one, or a tokenizer that it wasn't trained with.
    """
    model = build(size)
    tensors, record = checkpoints.load(name_of(size), folder)
    if record.get("tokenizer") != tokenizer_hash(folder):
        raise BadInput(f"{name_of(size)} was trained with another tokenizer; restore both, or train both again")
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name != TIED}
    check_tensors(tensors, wanted, name_of(size))
    model.load_state_dict(tensors | {TIED: tensors["model.embed_tokens.weight"]})
    return model, load_tokenizer(folder)
