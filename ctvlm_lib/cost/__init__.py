"""What the models cost: counted on shapes alone, measured where there is a GPU, and followed over what grows.

``counting`` (the counter of operations beside counts by hand), ``layouts`` (a DCFormer's convolutions as released) and
``passes`` (of a decoder) serve ``exact``: parameters, bytes and operations of every encoder, projector and decoder, and
the papers' claims beside them.
``timing`` (seconds and peak memory of a call) and ``trials`` (an answer, a LoRA step, an encoder's pass) serve ``gpu``,
the arm ``ctvlm arm cost``, whose record the ledger reads. ``measure`` and ``stages`` follow a CPU's seconds and memory
over sizes, and ``curves`` tells how each grows.
"""

ARM = "cost"  # of `ctvlm arm`
