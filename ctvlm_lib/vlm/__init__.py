"""Vision–language models, one concept a file.

Putting a model together: ``config`` (the parts), ``model`` (encoder, projector, decoder), ``splice`` (image vectors
among the words, labels), ``features`` (kept in place of volumes), ``generation`` (answers), ``saving`` (a folder),
``released`` (Med3DVLM's checkpoint). Its inputs: ``processor`` (sequences and batches),
``image`` (a CT at the encoder's size and scale), ``colour`` (three ways in which a coloured line gets in). Its bridges:
``projector`` (the two-stream mixer and its rivals), ``slice_attention`` (SSA, MSSA). Its training: ``lora``,
``losses``, ``closed_head``, ``parts`` (what it begins with), and the ``ladder`` of decoder sizes. A decoder that was
pretrained elsewhere: ``smollm2``, from its ``gguf_file``.
U-VLM's way of reading an encoder: ``stage_tokens`` (stages as tokens), ``injection`` into the decoder's layers at
``injection_sites``, ``hybrid_mask``, ``uvlm`` and ``uvlm_config`` (the writer), ``report_writer`` (its training).
What it takes: ``lora_counts`` (parameters), ``memory``.
"""

from importlib import import_module

_WHERE = {
    "CtvlmConfig": "config", "CtvlmModel": "model", "Features": "features", "CtvlmProcessor": "processor",
    "ImageInput": "image", "image_positions": "splice", "splice_embeddings": "splice", "sequence_table": "splice",
    "load_released": "released",
}  # fmt: skip

__all__ = list(_WHERE)


def __getattr__(name: str):  # torch is imported when a name is first used
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
