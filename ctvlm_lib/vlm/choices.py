"""How likely a model finds each answer that is offered.

A small decoder may write the letter before it knows which choice the letter stands for, and then the right words; the
likelihood of the whole answer weighs both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import visible
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.packed import ROOM, Row, offered, rows, segments_of, table
from ctvlm_lib.vlm.processor import CtvlmProcessor


@torch.no_grad()
def log_likelihoods(
    model: CtvlmModel,
    processor: CtvlmProcessor,
    asked: Sequence[Sequence[Record]],
    features: Features,
    *,
    room: int = ROOM,
    at_once: int = 16,
) -> list[list[Tensor]]:
    """Log-likelihood of every offered answer, its EOS included; or what a head for closed questions says of it.

    Args:
        model: in evaluation mode. processor: its.
        asked: closed questions about each picture, worded as the model reads them; without choices yes and no are
            offered.
        features: ``(B, …)``, of the pictures.
        room, at_once: tokens of a row behind the image, and rows in a batch, see :mod:`ctvlm_lib.vlm.packed`.

    Returns:
        for each question of each picture float32 ``(choices,)``, at most 0.

    Raises:
        BadInput: an offered answer that the head doesn't know.
    """
    if model.closed_head is not None:
        found = iter(_of_head(model, processor, asked, features, room, at_once))
        return [[next(found) for _ in group] for group in asked]
    sums = [torch.zeros(len(offered(record))) for group in asked for record in group]
    packed = list(rows(processor, asked, room))
    for start in range(0, len(packed), at_once):
        some = packed[start : start + at_once]
        found = _of_tokens(model, some, processor.pad_token_id, features)
        of = [(question, choice) for row in some for _, _, question, choice in row.foretold]
        for (question, choice), value in zip(of, found.tolist(), strict=True):
            sums[question][choice] += value
    rest = iter(sums)
    return [[next(rest) for _ in group] for group in asked]


def _of_tokens(model: CtvlmModel, some: list[Row], pad: int, features: Features) -> Tensor:
    """Log-likelihoods of all foretold tokens of some rows, in order."""
    states, decoder = _states(model, some, pad, features)
    wanted = [(k, source, token) for k, row in enumerate(some) for source, token, _, _ in row.foretold]
    place, source, token = torch.tensor(wanted, device=states.device).T
    logits = decoder.get_output_embeddings()(states[place, source]).float()
    return logits.log_softmax(1).gather(1, token[:, None])[:, 0].cpu()


def _of_head(model: CtvlmModel, processor, asked, features: Features, room: int, at_once: int) -> list[Tensor]:
    """The head's log-probability of each offered answer, question by question; no answer has to be read for it."""
    records, found = [record for group in asked for record in group], []
    packed = list(rows(processor, asked, room, answers=False))
    for start in range(0, len(packed), at_once):
        some = packed[start : start + at_once]
        states, _ = _states(model, some, processor.pad_token_id, features)
        for k, row in enumerate(some):
            for question, end in zip(row.questions, row.ends, strict=True):
                found.append(model.closed_head.chances(states[k, end], offered(records[question])))
    return found


def _states(model: CtvlmModel, some: list[Row], pad: int, features: Features) -> tuple[Tensor, torch.nn.Module]:
    """The decoder's last states of some rows, ``(rows, length, width)``, and the decoder without adapters around it."""
    device = features.low.device
    ids = table([row.ids for row in some], pad, device)
    sees = visible(segments_of(some, device), table([row.parts for row in some], 0, device))
    decoder = model.decoder.get_base_model() if hasattr(model.decoder, "get_base_model") else model.decoder
    states = decoder.base_model(
        inputs_embeds=model.embed(ids, features=features.rows([row.picture for row in some])), attention_mask=sees,
        position_ids=table([row.positions for row in some], 0, device), use_cache=False,
    )[0]  # fmt: skip
    return states, decoder
