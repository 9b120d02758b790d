"""A miniature SmolLM2 as a GGUF file, written by the gguf package with its own quantisation."""

from pathlib import Path

import numpy as np

WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "s"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "is"))
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    head = WIDTH // HEADS
    layer = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (KV_HEADS * head, WIDTH), "attn_v": (KV_HEADS * head, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    made = {f"blk.{k}.{part}.weight": shape for k in range(LAYERS) for part, shape in layer.items()}
    return {"token_embd.weight": (len(tokens()), WIDTH), "output_norm.weight": (WIDTH,)} | made


def tokens() -> list[str]:
    """The vocabulary: three control tokens, all bytes, and what the merges make."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]


def write(path: Path, seed: int = 0, architecture: str = "llama", pre: str = "smollm") -> Path:
    """Write the file: matrices as Q4_1, embeddings as Q8_0, norms as F32, as in the asset."""
    import gguf
    from gguf import GGMLQuantizationType as Kind

    rng, writer = np.random.default_rng(seed), gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens())
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens()])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    for add, number in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_pad_token_id, 2),
                        (writer.add_unk_token_id, 0)):  # fmt: skip
        add(number)
    writer.add_chat_template(TEMPLATE)
    for name, shape in shapes().items():
        values = rng.normal(0, 0.3, shape).astype(np.float32) + (len(shape) == 1)
        kind = Kind.F32 if len(shape) == 1 else Kind.Q8_0 if name.startswith("token_embd") else Kind.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
