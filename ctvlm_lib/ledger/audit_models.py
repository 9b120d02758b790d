"""What the paper audit's choices on models and losses change; see :mod:`ctvlm_lib.ledger.audit_effects`."""

import math

PAIRS, WIDTH, SCALE = 8, 16, 10.0  # of the contrastive losses; SCALE is t, and 1/τ


def siglip_labels() -> dict[str, float]:
    """Length of the loss' gradient that the pairs off the diagonal give, with labels ±1 and with 1 and 0 as printed."""
    import torch

    from ctvlm_lib.alignment.siglip import RELEASED_INIT, siglip_loss

    (t, b), found = RELEASED_INIT, {}
    for how, zero in (("labels +1, −1", -1.0), ("labels 1, 0", 0.0)):
        image, text = (x.requires_grad_() for x in _features())
        z = torch.full((PAIRS, PAIRS), zero).fill_diagonal_(1.0)
        terms = -torch.nn.functional.logsigmoid(z * (math.exp(t) * image @ text.mT + b))
        if zero:  # the same loss as the one that is trained
            torch.testing.assert_close(terms.sum() / PAIRS, siglip_loss(image, text, t, b))
        off = terms.masked_fill(torch.eye(PAIRS, dtype=torch.bool), 0.0).sum() / PAIRS
        found[how] = round(float(torch.autograd.grad(off, image)[0].norm()), 4)
    return found


def siglip_bias() -> dict[str, float]:
    """The loss of random features with the usual starting bias, by the usual sign and by the printed one."""
    from ctvlm_lib.alignment.siglip import SIGLIP_INIT, siglip_loss

    image, text = _features()
    t, b = SIGLIP_INIT
    losses = {"t x·y + b": siglip_loss(image, text, t, b), "t x·y − b": siglip_loss(image, text, t, -b)}
    return {"b": b} | {how: round(float(loss), 2) for how, loss in losses.items()}


def temperature_outside() -> dict[str, float]:
    """InfoNCE with τ in the numerator's exponential and behind it: value, and pull of an image towards its own text."""
    import torch

    from ctvlm_lib.alignment.siglip import similarities

    image, text = _features()
    found = {}
    for how in ("inside", "outside"):
        alike = (image @ text.mT).requires_grad_()
        own, tempered = alike.diagonal(), SCALE * alike  # τ = 1 / SCALE
        torch.testing.assert_close(tempered, similarities(image, text, math.log(SCALE)))
        numerator = SCALE * own if how == "inside" else own + math.log(SCALE)  # log(exp(s) / τ)
        (numerator.sum() / PAIRS).backward(retain_graph=True)
        found[f"τ {how}, pull"] = round(float(alike.grad.diagonal().mean()) * PAIRS, 3)
        found[f"τ {how}, loss"] = round(float((tempered.logsumexp(dim=1) - numerator).mean().detach()), 3)
    return found


def slice_attention_growth() -> dict[str, float]:
    """Factor by which slice attention grows when all states are ten times as large."""
    from ctvlm_lib.vlm.slice_heads import FORMS, slice_attention

    queries, answers = _features()
    sizes = {form: [float(slice_attention(k * queries, k * answers, form).norm()) for k in (10, 100)] for form in FORMS}
    return {form: round(large / small, 1) for form, (small, large) in sizes.items()}


def lora_shapes() -> dict[str, object]:
    """Whether BA can be multiplied with the printed shapes, and the shape of an adapted output as built here."""
    import torch

    from ctvlm_lib.vlm.lora import lora_linear

    d, k, r = 6, 4, 2  # W₀ is d × k
    a, b = torch.ones(d, r), torch.ones(r, k)
    try:
        printed = tuple((b @ a).shape)
    except RuntimeError:
        printed = "none"
    made = lora_linear(torch.ones(1, k), torch.ones(d, k), a=b, b=a, alpha=2 * r, rank=r)  # the two letters swapped
    return {"W": (d, k), "BA": printed, "AB": tuple((a @ b).shape), "output here": tuple(made.shape)}


def projector_widths() -> dict[str, float]:
    """Million parameters of the same projector for each decoder: other widths, so other tensors."""
    from ctvlm_lib.vlm.projector import QWEN_WIDTHS, parameters

    return {f"{name}, width {width}": round(parameters("mixer", width) / 1e6, 2) for name, width in QWEN_WIDTHS.items()}


def encoder_presets() -> dict[str, float]:
    """Million parameters of DCFormer-small, as released and as its equations say."""
    import torch

    from ctvlm_lib.encoder import PRESETS, dcformer

    with torch.device("meta"):
        sizes = {preset: sum(p.numel() for p in dcformer("small", preset=preset).parameters()) for preset in PRESETS}
    return {preset.replace("_", " "): round(size / 1e6, 3) for preset, size in sizes.items()}


def trainable_percent() -> dict[str, float]:
    """Share of the whole model that learns, under each reading, for the two decoders that 2.4 % is said of."""
    from ctvlm_lib.vlm.lora_counts import CLAIMED_FOR, lora_table

    table = lora_table()
    rows = table[table["decoder"].isin(CLAIMED_FOR)].to_dict("records")
    return {f"{row['decoder']}, {row['what learns']}": round(row["share, %"], 3) for row in rows}


def weights_gb() -> dict[str, float]:
    """GB of each decoder's weights in 16 bits, and what is saved against the largest."""
    from ctvlm_lib.vlm.lora_counts import part_sizes
    from ctvlm_lib.vlm.memory import GB, IN_16_BITS
    from ctvlm_lib.vlm.projector import QWEN_WIDTHS

    sizes = {name: part_sizes(name)["decoder"] * IN_16_BITS / GB for name in QWEN_WIDTHS}
    largest = max(sizes.values())
    saved = {f"{name} saves": round(largest - size, 2) for name, size in sizes.items() if size < largest}
    return {name: round(size, 2) for name, size in sizes.items()} | saved


def question_start() -> dict[str, object]:
    """Which tokens of a question make room for image vectors, without BOS, by both splices."""
    import torch

    from ctvlm_lib.vlm.config import SPLICES
    from ctvlm_lib.vlm.splice import image_positions, lost_positions

    ids = torch.tensor([[9, 9, 9, 1, 2, 3]])  # three placeholders, then a question of three tokens
    found = {}
    for splice in SPLICES:
        where = image_positions(ids, 9, 3, splice)
        found[f"{splice}, lost tokens"] = ids[lost_positions(ids, where, 9)].tolist()
    return found


def _features():
    """Image and text vectors of length one ``(PAIRS, WIDTH)``, a text a little like its image."""
    import torch

    draw = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(PAIRS, WIDTH, generator=draw) for _ in range(2))
    return [torch.nn.functional.normalize(x, dim=1) for x in (image, image + noise)]


OF_MODELS = (
    siglip_labels, siglip_bias, temperature_outside, slice_attention_growth, lora_shapes, projector_widths,
    encoder_presets, trainable_percent, weights_gb, question_start,
)  # fmt: skip
