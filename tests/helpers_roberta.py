"""A tiny random model in the layout of roberta-large, whose tokenizer bert-score treats by itself."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch


def make_roberta(folder: Path, words: Sequence[str], layers: int = 3) -> Path:
    """Write config.json, model.safetensors, vocab.json and merges.txt; the vocabulary is the words' letters."""
    from transformers import RobertaConfig, RobertaModel

    folder.mkdir(exist_ok=True)
    letters = sorted({letter for word in words for letter in word}) + ["Ġ"]
    vocabulary = {token: k for k, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 60}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=64, pad_token_id=1, hidden_size=16,
                               num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32)  # fmt: skip
        RobertaModel(config).save_pretrained(folder)
    return folder
