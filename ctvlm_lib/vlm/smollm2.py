"""SmolLM2-135M-Instruct, a pretrained chat decoder that is fetched from a package: the model, its tokenizer, and chat.

It has never seen an image nor, on purpose, a medical text: what it says of a CT that it can't see is the level of a
decoder's general knowledge, not medical information. Its weights were quantised to about 5 bits; here they are plain
matrices again, so that adapters can be trained on them, merged and saved, which a model that transformers loads from
GGUF refuses.

Source: the file's own values; llama.cpp's ``convert_hf_to_gguf`` for names and for the order of the heads' channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from ctvlm_lib import assets
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import computes_bf16
from ctvlm_lib.vlm import gguf_file

ASSET = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # type of a token that stands for no text
PARTS = {  # llama.cpp's name of a layer's matrix → transformers'
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def load(
    path: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Read the decoder; its asset is fetched if it isn't there.

    Args:
        path: of the GGUF file; None takes the asset.
        dtype: of the weights; None takes bfloat16 where this machine's CPU computes in it, else float32.

    Returns:
        The model in evaluation mode, on the CPU, its parameters trainable, and the tokenizer.

    Raises:
        BadInput: the asset can't be had, or the file isn't a Llama in GGUF.
    """
    read = gguf_file.read(assets.path(f"{ASSET}/{FILE}") if path is None else path)
    if read.values.get("general.architecture") != "llama":
        raise BadInput(f"the GGUF file holds a {read.values.get('general.architecture')}; give one with a Llama")
    try:
        return _built(read, dtype)
    except BadInput:
        raise
    except Exception as error:  # values of another kind: transformers and tokenizers raise kinds of their own
        raise BadInput(f"the GGUF file's values make no Llama ({type(error).__name__}); give another one") from error


def _built(read: gguf_file.Gguf, dtype: torch.dtype | None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    dtype = dtype or (torch.bfloat16 if computes_bf16(torch.device("cpu")) else torch.float32)
    config = config_of(read.values, tied="output.weight" not in read.tensors)
    state = {name: torch.from_numpy(array) for name, array in renamed(read.tensors, config).items()}
    with _quiet():
        model, info = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    lost = {*map(str, info["missing_keys"]), *map(str, info["unexpected_keys"])}
    if lost:
        raise BadInput(f"the GGUF file lacks tensors of a Llama or has others, such as {min(lost)}; give another one")
    return model.eval(), tokenizer_of(read.values)


def config_of(values: Mapping[str, object], tied: bool = True) -> LlamaConfig:
    """The network's sizes.

    Args:
        values: of the file.
        tied: words are read and written with one matrix.

    Raises:
        BadInput: a size that the file doesn't state.
    """

    def size(name: str):
        return _stated(values, f"llama.{name}")

    # the unknown token is the tokenizer's alone
    ids = {f"{name}_id": _special_id(values, name) for name in SPECIAL if name != "unk_token"}
    return LlamaConfig(
        vocab_size=len(_stated(values, "tokenizer.ggml.tokens")), hidden_size=size("embedding_length"),
        intermediate_size=size("feed_forward_length"), num_hidden_layers=size("block_count"),
        num_attention_heads=size("attention.head_count"), num_key_value_heads=size("attention.head_count_kv"),
        rms_norm_eps=size("attention.layer_norm_rms_epsilon"), max_position_embeddings=size("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": size("rope.freq_base")}, tie_word_embeddings=tied, **ids,
    )  # fmt: skip


def renamed(tensors: Mapping[str, np.ndarray], config: LlamaConfig) -> dict[str, np.ndarray]:
    """llama.cpp's tensors under transformers' names, the heads' channels in transformers' order.

    Rotary positions turn pairs of a head's channels: of 64, transformers pairs k with k + 32 and GGUF 2 k with 2 k + 1.

    Raises:
        BadInput: a tensor that a Llama doesn't have.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    made = {}
    for name, values in tensors.items():
        what, _, ending = name.rpartition(".")
        block, number, part = (*what.split("."), "", "")[:3]
        if what in WHOLE:
            made[f"{WHOLE[what]}.{ending}"] = values
        elif block == "blk" and part in PARTS:
            ordered = _halved(values, heads[part]) if part in heads else values
            made[f"model.layers.{number}.{PARTS[part]}.{ending}"] = ordered
        else:
            raise BadInput(f"a Llama has no tensor {name!r}; give a GGUF file with one")
    return made


def tokenizer_of(values: Mapping[str, object]) -> PreTrainedTokenizerFast:
    """The byte-level BPE of a file's values, with its chat template.

    Digits are parted from all else before words are, as the file's "smollm" says. transformers' conversion leaves that
    out, and then two blanks or line breaks before a number give other tokens than SmolLM2 was trained on.

    Raises:
        BadInput: words are cut in another way, or a value isn't there.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if values.get("tokenizer.ggml.pre") != "smollm":
        raise BadInput(f"the GGUF file cuts words as {values.get('tokenizer.ggml.pre')!r}; give one of SmolLM2")
    tokens, kinds = _stated(values, "tokenizer.ggml.tokens"), _stated(values, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _stated(values, "tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=_stated(values, "llama.context_length"),
        clean_up_tokenization_spaces=False, **{name: tokens[_special_id(values, name)] for name in SPECIAL},
    )  # fmt: skip
    tokenizer.chat_template = _stated(values, "tokenizer.chat_template")
    return tokenizer


@dataclass
class Chat:
    """Asks the decoder by itself, without any image: "SmolLM2 without vision".

    Attributes:
        model, tokenizer: of :func:`load`.
        system: what it is told first; "" leaves the chat template's own sentence.
        at_once: questions in a batch.
    """

    model: LlamaForCausalLM = field(repr=False)
    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    system: str = ""
    at_once: int = 16

    def prompt(self, question: str) -> str:
        """A question in the form that it was trained to answer.

        Raises:
            BadInput: an empty question.
        """
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"the question is {question!r}; give a text with at least one letter")
        said = [{"role": "system", "content": self.system}] if self.system else []
        said.append({"role": "user", "content": question})
        return self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)

    def ask(self, question: str, max_new_tokens: int = 32) -> str:
        """Answer one question, greedily; see :meth:`ask_all`."""
        return self.ask_all([question], max_new_tokens)[0]

    @torch.inference_mode()
    def ask_all(self, questions: Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Answer questions, each by itself, greedily; one that is given twice is answered once.

        Args:
            questions: any number.
            max_new_tokens: most tokens of an answer; a longer one is cut there.
        """
        prompts = {question: self.prompt(question) for question in questions}
        order = sorted(prompts, key=lambda question: len(prompts[question]))  # those of like length together
        said: dict[str, str] = {}
        for start in range(0, len(order), self.at_once):
            some = order[start : start + self.at_once]
            batch = self.tokenizer([prompts[q] for q in some], padding=True, padding_side="left", return_tensors="pt")
            ids, mask = batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)
            tokens = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens
            )
            texts = self.tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
            said |= {question: text.strip() for question, text in zip(some, texts, strict=True)}
        return [said[question] for question in questions]


def _stated(values: Mapping[str, object], key: str):
    if key not in values:
        raise BadInput(f"the GGUF file doesn't state {key}; give a file of SmolLM2")
    return values[key]


def _special_id(values: Mapping[str, object], name: str) -> int:
    return _stated(values, f"tokenizer.ggml.{SPECIAL[name]}_token_id")


def _halved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, 0, 1, 2, 3 … as llama.cpp pairs them, as 0, 2, 4 … 1, 3, 5 …"""
    rows = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for weights that are in memory already."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
