"""Short answers to many questions about each picture, written greedily side by side.

``CtvlmModel.generate`` answers any question with transformers' own code, but reads the image again for each. Here all
questions about a picture stand in one row, and every step writes one more token of each of their answers; the texts are
the same (a test compares).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import PADDING, visible
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.packed import ROOM, Row, rows, segments_of, table
from ctvlm_lib.vlm.processor import CtvlmProcessor


@torch.no_grad()
def short_answers(
    model: CtvlmModel,
    processor: CtvlmProcessor,
    asked: Sequence[Sequence[Record]],
    features: Features,
    *,
    most: int = 16,
    room: int = ROOM,
    at_once: int = 16,
) -> list[list[str]]:
    """Answer questions about pictures.

    Args:
        model: in evaluation mode. processor: its.
        asked: questions about each picture, worded as the model reads them.
        features: ``(B, …)``, of the pictures.
        most: tokens of an answer.
        room, at_once: tokens of a row behind the image, and rows in a batch, see :mod:`ctvlm_lib.vlm.packed`.

    Returns:
        the answer to each question of each picture.
    """
    said = [""] * sum(map(len, asked))
    packed = list(rows(processor, asked, room, answers=False))
    for start in range(0, len(packed), at_once):
        some = packed[start : start + at_once]
        tokens = _written(model, some, processor, features, most)
        for k, row in enumerate(some):
            for question, text in zip(row.questions, processor.decode(tokens[k, : len(row.questions)]), strict=True):
                said[question] = text
    rest = iter(said)
    return [[next(rest) for _ in group] for group in asked]


def _written(model: CtvlmModel, some: list[Row], processor: CtvlmProcessor, features: Features, most: int) -> Tensor:
    """Tokens of the answers ``(B, questions, up to most)``, filled with padding behind their EOS."""
    from transformers import DynamicCache

    device, pad, end = features.low.device, processor.pad_token_id, processor.tokenizer.eos_token_id
    decoder = model.decoder.get_base_model() if hasattr(model.decoder, "get_base_model") else model.decoder
    segments = segments_of(some, device)
    ids = table([row.ids for row in some], pad, device)
    ends = table([row.ends for row in some], 0, device)
    mine = table([list(range(1, len(row.ends) + 1)) for row in some], PADDING, device)  # each answer's segment
    position = table([[row.positions[k] for k in row.ends] for row in some], 0, device)
    cache = DynamicCache()
    seen = decoder.base_model(
        inputs_embeds=model.embed(ids, features=features.rows([row.picture for row in some])),
        attention_mask=visible(segments), position_ids=table([row.positions for row in some], 0, device),
        past_key_values=cache, use_cache=True,
    )[0]  # fmt: skip
    states = seen.gather(1, ends[..., None].expand(-1, -1, seen.shape[-1]))
    done, written = mine == PADDING, []
    for _ in range(most):
        token = decoder.get_output_embeddings()(states).argmax(-1).masked_fill(done, pad)
        written.append(token)
        done = done | (token == end)
        if bool(done.all()):
            break
        segments, position = torch.cat([segments, mine], dim=1), position + 1
        sees = (segments[:, None, :] == mine[:, :, None]) | (segments[:, None, :] == 0)
        mask = torch.zeros(sees.shape, device=device).masked_fill(~sees, float("-inf"))[:, None]
        states = decoder.base_model(
            inputs_embeds=model.get_input_embeddings()(token), attention_mask=mask, position_ids=position,
            past_key_values=cache, use_cache=True,
        )[0]  # fmt: skip
    return torch.stack(written, dim=2)
