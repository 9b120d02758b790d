"""Parameters, bytes and operations of every encoder, projector and decoder, counted on shapes alone.

No weights, no GPU, no measurement: the same numbers on any machine, in seconds. A multiplication and its addition are
two operations, counted in matrix products, convolutions and attention (:mod:`ctvlm_lib.cost.counting` says what that
leaves out). Weights take two bytes each; M and MB, G and GB are powers of ten. Bytes are what is needed at least.

Only the memory of training and its parts are elsewhere, in :mod:`ctvlm_lib.vlm.memory`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctvlm_lib.cost import passes
from ctvlm_lib.cost.layouts import in_released_layout
from ctvlm_lib.cost.measure import operations
from ctvlm_lib.encoder.config import RELEASED_VARIANTS, variant_config
from ctvlm_lib.encoder.model import TokenEncoder, dcformer
from ctvlm_lib.ledger import claims as ledger_claims
from ctvlm_lib.ledger import claims_exact, decoder_sizes
from ctvlm_lib.ledger.claims_shapes import MED3DVLM, UVLM
from ctvlm_lib.vlm import lora_counts, memory
from ctvlm_lib.vlm.projector import IN_THE_PAPER, PROJECTORS, QWEN_WIDTHS
from ctvlm_lib.vlm.projector_merged import merged
from ctvlm_lib.vlm.projector_streams import RELEASED_HIGH, RELEASED_LOW, Projector
from ctvlm_lib.vlm.uvlm_config import paper_decoder

if TYPE_CHECKING:
    import pandas

IMAGE_TOKENS, WORDS = 256, 128  # of a question: the mixer's image vectors, and a supposed number of tokens beside them
LARGEST, FIRST_ENCODER, RELEASED_PROJECTOR = "Qwen2.5-7B", "DCFormer-small", "mixer"
COST_UNITS = ("GB", "%", "B parameters")  # of claims about cost among those that are counted
_READINGS = {"LoRA": "LoRA on attention + MLP", "LoRA + norms": "LoRA + norms"}
_MERGED = (2, 2, 2)  # fine tokens along each axis that our own projectors make one vector of


def encoders(ours: bool = True) -> "pandas.DataFrame":
    """Every encoder of the library for one volume, forward.

    Args:
        ours: also the small ones that the cohort's arms have.

    Returns:
        columns encoder; whose; reads (D×H×W voxels); tokens of the streams that it gives to a projector; parameters
        in M; weights in MB; forward in G operations as released; the same as run here, where a DCFormer's convolutions
        along short axes are banded products; over DCFormer-small, both the parameters and the operations.
    """
    import pandas

    rows = [dict(row) for row in _all_encoders() if ours or row["whose"] != "ours"]
    first = next(row for row in rows if row["encoder"] == FIRST_ENCODER)
    for row in rows:
        row["parameters, ratio"] = round(row["parameters, M"] / first["parameters, M"], 2)
        row["forward, ratio"] = round(row["forward, G"] / first["forward, G"], 2)
    return pandas.DataFrame(rows)


def projectors(
    low: Sequence[int] = RELEASED_LOW, high: Sequence[int] = RELEASED_HIGH, grid: Sequence[int] | None = None
) -> "pandas.DataFrame":
    """Every projector for each decoder: the released mixer, its rivals of the ablation, and our own for a CPU.

    Args:
        low, high: (tokens, channels) of the encoder's two streams.
        grid: (D, H, W) of the low tokens; None takes DCFormer's for Med3DVLM's volumes.

    Returns:
        columns projector, in the paper, decoder, image vectors, parameters in M, weights in MB, forward in G
        operations, and both as ratios to the mixer of the same decoder.
    """
    import pandas

    grid = tuple(grid or variant_grid())
    rows = []
    for decoder, width in QWEN_WIDTHS.items():
        made = [_projector_row(name, decoder, build, low, high)
                for name, build in _projector_builds(low, high, grid, width)]  # fmt: skip
        first = next(row for row in made if row["projector"] == RELEASED_PROJECTOR)
        for row in made:
            row["parameters, ratio"] = round(row["parameters, M"] / first["parameters, M"], 3)
            row["forward, ratio"] = round(row["forward, G"] / first["forward, G"], 3)
        rows += made
    return pandas.DataFrame(rows)


def decoders(image_tokens: int = IMAGE_TOKENS, words: int = WORDS, rank: int = 16) -> "pandas.DataFrame":
    """The four Qwen2.5 decoders and U-VLM's, for one question of so many tokens.

    Args:
        image_tokens: image vectors. words: tokens beside them.
        rank: of LoRA on attention and MLP; α, the papers' 32, changes no count.

    Returns:
        columns decoder; parameters in M; weights in GB; model in M and in GB, with DCFormer-small and the mixer;
        LoRA and LoRA + norms, what learns of the model, in M and in %; cache of keys and values in MB; question, T
        operations that read it, with one row of logits; token, G operations of each further token; LoRA step, T
        operations forward and backward of one row, all logits; to answer, GB of the model's weights and the cache; and
        for weights, cache, question and token the ratio to 7B. U-VLM's decoder has no mixer and no LoRA.
    """
    import pandas

    rows = [_decoder_row(name, image_tokens, words, rank) for name in (*QWEN_WIDTHS, decoder_sizes.UVLM)]
    largest = next(row for row in rows if row["decoder"] == LARGEST)
    for row in rows:
        for column in ("weights, GB", "cache, MB", "question, T", "token, G"):
            row[f"{column.partition(',')[0]}, ratio to 7B"] = row[column] / largest[column]
    return pandas.DataFrame(rows).round(
        {column: 2 if column.endswith("%") else 4 for column in rows[0] if column != "decoder"}
    )


def claims(record: str | Path = ledger_claims.RECORD) -> "pandas.DataFrame":
    """What the papers claim of parameters, memory and time, each beside ours, as the ledger has them.

    Args:
        record: measurements of ``ctvlm arm cost``; a claim about a GPU waits where there are none.

    Returns:
        the columns of :func:`ctvlm_lib.ledger.claims.table`, of these claims alone.
    """
    return ledger_claims.table(record=record, chosen=is_about_cost)


def is_about_cost(claim: ledger_claims.Claim) -> bool:
    """Whether a claim's number is a size, a share that learns, a memory or a time."""
    if claim.kind == "measured":
        return True
    counted = claim.kind == "exact" and claims_exact.COMPUTED.get(claim.name)
    made_by = getattr(counted, "func", counted)  # some are partial
    return getattr(made_by, "__module__", "") == claims_exact.__name__ and claim.unit in COST_UNITS


def variant_grid(variant: str = "small", size_dhw: tuple[int, int, int] = MED3DVLM) -> tuple[int, int, int]:
    """(D, H, W) of a DCFormer's low tokens, the last stage but one, without building it."""
    stride = variant_config(variant).strides_dhw()[-2]
    return tuple(n // s for n, s in zip(size_dhw, stride, strict=True))


# encoders
@lru_cache
def _all_encoders() -> tuple[dict, ...]:
    """Counted once: it takes seconds."""
    return tuple(_encoder_rows())


def _encoder_rows() -> Iterator[dict]:
    from ctvlm_lib.alignment.radgenome_cost import forward_operations
    from ctvlm_lib.alignment.radgenome_recipe import REGIONS
    from ctvlm_lib.encoder.dual_pathway import dual_pathway
    from ctvlm_lib.encoder.unet import unet_encoder
    from ctvlm_lib.encoder.vit import vit3d  # MONAI takes seconds

    with torch.device("meta"):
        m3d, small_vit, dual, small_dual = vit3d(), vit3d("phantom"), dual_pathway(), dual_pathway("phantom")
        unet, small_unet = unet_encoder(), unet_encoder("phantom")
    small = small_vit.config.size_dhw_vox
    for variant in RELEASED_VARIANTS:
        yield _dcformer_row(f"DCFormer-{variant}", "Med3DVLM", variant, MED3DVLM)
    yield _encoder_row("ViT3D", "M3D", m3d, m3d.config.size_dhw_vox)
    row = _encoder_row("MedVista3D, whole volume", "MedVista3D", dual, dual.config.size_dhw_vox)
    yield row
    both = round(forward_operations(dual, len(REGIONS)) / 1e9, 2)
    yield row | {"encoder": f"MedVista3D, and {len(REGIONS)} regions", "forward, G": both, "as run here, G": both}
    yield _encoder_row("U-VLM's U-Net encoder", "U-VLM", unet, UVLM)
    yield _dcformer_row("DCFormer-phantom", "ours", "phantom", small)
    for name, encoder in (("ViT3D-phantom", small_vit), ("MedVista3D-phantom, on tokens", small_dual),
                          ("U-Net encoder, phantom", small_unet)):  # fmt: skip
        yield _encoder_row(name, "ours", encoder, small)


def _encoder_row(
    name: str, whose: str, encoder: TokenEncoder, size: Sequence[int], released: int | None = None
) -> dict:
    """One row; ``released``: operations as released, where they are others than here."""
    here = _forward(encoder, size)
    parameters = sum(p.numel() for p in encoder.parameters())
    tokens = [torch.Size(grid).numel() for grid in encoder.grids(tuple(size))[-2:]]
    return {
        "encoder": name,
        "whose": whose,
        "reads": "×".join(map(str, size)),
        "tokens": " + ".join(f"{n:,}" for n in tokens),
        "parameters, M": round(parameters / 1e6, 3),
        "weights, MB": round(parameters * memory.IN_16_BITS / memory.MB, 1),
        "forward, G": round((here if released is None else released) / 1e9, 2),
        "as run here, G": round(here / 1e9, 2),
    }


def _dcformer_row(name: str, whose: str, variant: str, size: Sequence[int]) -> dict:
    with torch.device("meta"):
        here, released = dcformer(variant), in_released_layout(dcformer(variant))
    return _encoder_row(name, whose, here, size, _forward(released, size))


@torch.no_grad()
def _forward(encoder: TokenEncoder, size: Sequence[int]) -> int:
    """Operations of one volume, or of another encoder's tokens where it reads these."""
    if getattr(encoder.config, "stem", "") == "tokens":
        shape = (1, torch.Size(encoder.grids(tuple(size))[0]).numel(), encoder.config.token_width)
    else:
        shape = (1, encoder.config.in_channels, *size)
    volume = torch.empty(shape, device="meta")
    return operations(lambda: encoder.eval().encode(volume))


# projectors
def _projector_builds(low, high, grid, width: int) -> Iterator[tuple[str, Callable[[], Projector]]]:
    for name, build in PROJECTORS.items():
        yield name, lambda build=build: build(low, high, hidden_size=width)
    yield "mixer, with skips", lambda: PROJECTORS["mixer"](low, high, hidden_size=width, residual=True)
    blocks = {"grid": grid, "block": _MERGED}
    yield "mlp on averages", lambda: PROJECTORS["mlp"](low, high, hidden_size=width, **blocks)
    yield "merged", lambda: merged(low, high, hidden_size=width, **blocks)


def _projector_row(name: str, decoder: str, build: Callable[[], Projector], low, high) -> dict:
    with torch.device("meta"):
        made, streams = build(), (torch.empty(1, *low), torch.empty(1, *high))
    parameters = sum(p.numel() for p in made.parameters())
    with torch.no_grad():
        forward = operations(lambda: made(*streams))
    return {
        "projector": name,
        "in the paper": IN_THE_PAPER.get(name, ""),
        "decoder": decoder,
        "image vectors": made.tokens,
        "parameters, M": round(parameters / 1e6, 3),
        "weights, MB": round(parameters * memory.IN_16_BITS / memory.MB, 2),
        "forward, G": round(forward / 1e9, 3),
    }


# decoders
def _decoder_row(name: str, image_tokens: int, words: int, rank: int) -> dict:
    tokens = image_tokens + words
    if name == decoder_sizes.UVLM:
        config, parameters = paper_decoder(decoder_sizes.UVLM_VOCABULARY), decoder_sizes.parameters(name)
        model = None
    else:
        config, parts = lora_counts.qwen_config(name), lora_counts.part_sizes(name, rank)
        parameters = parts["decoder"]
        model = sum(parts[part] for part in ("encoder", "projector", "decoder"))
    cache = memory.cache_bytes(config, tokens)
    gb = memory.IN_16_BITS / memory.GB
    row = {"decoder": name, "parameters, M": parameters / 1e6, "weights, GB": parameters * gb}
    row |= {"model, M": model and model / 1e6, "model, GB": model and model * gb}
    row |= _learning(name, rank) if model else {}
    return row | {
        "cache, MB": cache / memory.MB,
        "question, T": passes.by_layers(config, lambda few: passes.question(few, tokens)) / 1e12,
        "token, G": passes.by_layers(config, lambda few: passes.token(few, tokens)) / 1e9,
        "LoRA step, T": passes.by_layers(config, lambda few: passes.step(few, tokens, rank)) / 1e12 if model else None,
        "to answer, GB": model and model * gb + cache / memory.GB,
    }


def _learning(name: str, rank: int) -> dict:
    table = _shares(rank)
    rows = {short: table.loc[(name, reading)] for short, reading in _READINGS.items()}
    return {f"{short}, {unit}": float(row[column]) for short, row in rows.items()
            for unit, column in (("M", "trainable, M"), ("%", "share, %"))}  # fmt: skip


@lru_cache
def _shares(rank: int):
    return lora_counts.lora_table(rank).set_index(["decoder", "what learns"])
