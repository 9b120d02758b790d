"""Image vectors among the words: where they stand in the sequence, what they replace, and what a loss is taken on.

A sequence holds one placeholder for each image vector, in front of the question. The released code was written for
tokenizers that begin with BOS: it keeps the first embedding and replaces the N behind it. Qwen2.5 adds no BOS, so there
the first placeholder's own embedding stays and the question loses its first token:

    position       0          1 … N−1     N          N+1
    with BOS       BOS        image       image N    question's first token
    without BOS    <im_patch> image       image N    question's second token; the first is gone

Weights that were trained so need it (``splice="as released"``); everything else is trained with "placeholders".
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ctvlm_lib.errors import BadInput
from ctvlm_lib.vlm.config import SPLICES

if TYPE_CHECKING:
    import pandas

IGNORED = -100  # label of a position that the loss leaves out


def image_positions(
    input_ids: Tensor, image_token_id: int, image_tokens: int, splice: str = "placeholders",
    attention_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where image vectors go.

    Args:
        input_ids: ``(B, length)``.
        image_token_id: of the placeholder.
        image_tokens: N, vectors an image.
        splice: "placeholders" or "as released".
        attention_mask: ``(B, length)``, read by "as released", which counts from the first attended position; None
            counts from the first.

    Returns:
        bool ``(B, length)`` with N true positions a row.

    Raises:
        BadInput: a row whose number of placeholders isn't N, or a sequence too short for the released splice.
    """
    if splice not in SPLICES:
        raise BadInput(f"splice is {splice!r}; choose one of {', '.join(map(repr, SPLICES))}")
    placeholder = input_ids == image_token_id
    counts = placeholder.sum(dim=1)
    wrong = (counts != image_tokens).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise BadInput(
            f"row {row} holds {int(counts[row])} placeholders (id {image_token_id}) and the projector gives"
            f" {image_tokens} vectors; make the sequences with this model's processor"
        )
    if splice == "placeholders":
        return placeholder
    if attention_mask is None or attention_mask.ndim != 2:
        start = torch.zeros_like(counts)
    else:
        start = (attention_mask != 0).int().argmax(dim=1)
    place = torch.arange(input_ids.shape[1], device=input_ids.device) - start[:, None]
    if int(start.max()) + image_tokens >= input_ids.shape[1]:
        raise BadInput(
            f"the released splice replaces positions 1…{image_tokens}, and a row of {input_ids.shape[1]} tokens has no"
            " room for that; a question must follow the placeholders"
        )
    return (place >= 1) & (place <= image_tokens)


def splice_embeddings(embeddings: Tensor, positions: Tensor, image: Tensor) -> Tensor:
    """Put image vectors at the marked positions.

    Args:
        embeddings: ``(B, length, width)`` of the tokens.
        positions: bool ``(B, length)``, of :func:`image_positions`.
        image: ``(B, N, width)``; vector k goes to a row's k-th marked position.

    Returns:
        ``(B, length, width)`` in the embeddings' type; gradients flow to both.

    Raises:
        BadInput: shapes that don't fit.
    """
    if len(image) != len(embeddings) or image.shape[2] != embeddings.shape[2]:
        raise BadInput(
            f"image vectors are {tuple(image.shape)} (B, N, width) and embeddings {tuple(embeddings.shape)}"
            " (B, length, width); give one image a row, projected to the decoder's width"
        )
    return embeddings.masked_scatter(positions[..., None], image.to(embeddings.dtype))


def lost_positions(input_ids: Tensor, positions: Tensor, image_token_id: int) -> Tensor:
    """Where an image vector takes the place of a word: bool ``(B, length)``, all false for "placeholders"."""
    return positions & (input_ids != image_token_id)


def answer_labels(input_ids: Tensor, answer_from: Tensor, attention_mask: Tensor) -> Tensor:
    """Labels of right-padded rows: the answer and its EOS, and nothing else.

    Args:
        input_ids: ``(B, length)``.
        answer_from: ``(B,)``, position of each answer's first token.
        attention_mask: ``(B, length)``, 0 at padding.

    Returns:
        ``(B, length)``; −100 on image, question and padding.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    learnt = (place >= answer_from[:, None]) & (attention_mask != 0)
    return input_ids.masked_fill(~learnt, IGNORED)


class ReleasedRow(NamedTuple):
    """One training sequence as the released code makes it, ``(max_length,)`` each, and how many tokens were cut."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    cut: int


def released_row(
    prompt_ids: list[int], text_ids: list[int], eos_token_id: int, pad_token_id: int, max_length: int = 512
) -> ReleasedRow:
    """Make a training sequence as Med3DVLM does.

    Three differences from ours: everything is padded or cut to ``max_length``, image tokens included, so that with 256
    of them a long report loses its end, and its EOS too; EOS takes the first padded position, where the attention mask
    is 0; and the question's tokens are counted in a text without the answer, which may differ from those in the whole.
    The mask's 0 at EOS changes no loss: nothing comes after it, and it is a label at the position before.

    Args:
        prompt_ids: placeholders and question, tokenised without the answer; only their number counts.
        text_ids: placeholders, question and answer in one.
        eos_token_id, pad_token_id: of the tokenizer.
        max_length: of the sequence.

    Source: released code of Med3DVLM (cbbd633).
    """
    valid = min(len(text_ids), max_length)
    ids = torch.full((max_length,), pad_token_id)
    ids[:valid] = torch.tensor(text_ids[:valid])
    mask = (torch.arange(max_length) < valid).long()
    if valid < max_length:
        ids[valid] = eos_token_id
    labels = ids.clone()
    labels[valid + 1 :] = IGNORED
    labels[: min(len(prompt_ids), max_length)] = IGNORED
    return ReleasedRow(ids, mask, labels, len(text_ids) - valid)


def sequence_table(
    input_ids: Tensor, tokenizer, image_token_id: int, image_tokens: int, splice: str = "placeholders",
    attention_mask: Tensor | None = None, labels: Tensor | None = None, shown: int = 2,
) -> "pandas.DataFrame":  # fmt: skip
    """Show what a decoder reads, position by position.

    Args:
        input_ids: ``(length,)``, one sequence.
        tokenizer: names the tokens.
        image_token_id, image_tokens, splice: as for :func:`image_positions`.
        attention_mask: ``(length,)``; None attends everything.
        labels: ``(length,)``; adds a column of what is learnt.
        shown: of each run of image vectors that replace placeholders, so many are shown at either end; 0 shows all.

    Returns:
        position, token (as it stands in ``input_ids``), source ("text", "image k", "padding"), and lost: the token
        whose place an image vector took.
    """
    import pandas

    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    positions = image_positions(input_ids[None], image_token_id, image_tokens, splice, mask[None])[0]
    lost = lost_positions(input_ids, positions, image_token_id)
    tokens = tokenizer.convert_ids_to_tokens(input_ids.tolist())
    number, rows = 0, []
    for place, (token, is_image) in enumerate(zip(tokens, positions.tolist(), strict=True)):
        number += is_image
        source = f"image {number}" if is_image else "text" if mask[place] else "padding"
        row = {"position": place, "token": token, "source": source, "lost": token if lost[place] else ""}
        if labels is not None:
            row["label"] = "" if labels[place] == IGNORED else tokenizer.convert_ids_to_tokens(int(labels[place]))
        rows.append((row, is_image and not lost[place]))
    return pandas.DataFrame(_folded(rows, shown))


def _folded(rows: list[tuple[dict, bool]], shown: int) -> list[dict]:
    """Leave out the middle of the run of image vectors."""
    runs = [k for k, (_, foldable) in enumerate(rows) if foldable]
    if not shown or len(runs) <= 2 * shown + 1:
        return [row for row, _ in rows]
    out = set(runs[shown:-shown])
    gap = dict.fromkeys(rows[0][0], "") | {"position": "…", "source": f"… {len(out)} more"}
    return [gap if k == runs[shown] else row for k, (row, _) in enumerate(rows) if k not in out or k == runs[shown]]
