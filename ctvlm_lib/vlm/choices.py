"""How likely a model finds each answer that is offered: all of them in one row, behind one image and one question.

    row     image, question   "A. spleen" EOS          "B. heart" EOS           …
    sees    what is before    image, question, itself  image, question, itself

A small decoder may write the letter before it knows which choice the letter stands for, and then the right words; the
likelihood of the whole answer weighs both.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ctvlm_lib.evaluate.answers import YES_NO
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.features import Features
from ctvlm_lib.vlm.lessons import PADDING, visible
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import CtvlmProcessor


@torch.no_grad()
def log_likelihoods(
    model: CtvlmModel, processor: CtvlmProcessor, records: Sequence[Record], features: Features
) -> list[Tensor]:
    """Log-likelihood of every offered answer, its EOS included.

    Args:
        model: in evaluation mode. processor: its.
        records: closed questions, worded as the model reads them; without choices yes and no are offered.
        features: ``(B, …)``, of each question's picture.

    Returns:
        for each question float32 ``(choices,)``, at most 0.
    """
    offered = [record.choices or YES_NO for record in records]
    rows = [
        [processor.sequence(record.question, answer, record.choices) for answer in answers]
        for record, answers in zip(records, offered, strict=True)
    ]
    length = max(row[0][1] + sum(len(ids) - start for ids, start in row) for row in rows)
    ids, segments = np.full((len(rows), length), processor.pad_token_id), np.full((len(rows), length), PADDING)
    positions, wanted = np.zeros((len(rows), length), int), []
    for k, row in enumerate(rows):
        here = start = row[0][1]
        ids[k, :start], segments[k, :start], positions[k, :start] = row[0][0][:start], 0, range(start)
        for choice, (tokens, _) in enumerate(row):
            place = range(here, here + len(tokens) - start)
            ids[k, place], segments[k, place], positions[k, place] = (
                tokens[start:],
                choice + 1,
                range(start, len(tokens)),
            )
            sources = [start - 1, *place[:-1]]  # the first token is foretold by the question's last
            wanted += [(k, source, token, choice) for source, token in zip(sources, tokens[start:], strict=True)]
            here = place.stop
    tensors = [torch.from_numpy(array).to(features.low.device) for array in (ids, segments, positions)]
    found = _of_tokens(model, *tensors, features, np.array(wanted))
    sums = torch.zeros(len(rows), max(map(len, offered)))
    sums.index_put_(
        (torch.tensor([w[0] for w in wanted]), torch.tensor([w[3] for w in wanted])), found, accumulate=True
    )
    return [row[: len(answers)] for row, answers in zip(sums, offered, strict=True)]


def _of_tokens(model, ids: Tensor, segments: Tensor, positions: Tensor, features, wanted: np.ndarray) -> Tensor:
    """Log-likelihood of tokens ``(n,)``: in a row, foretold at a source, which token."""
    decoder = model.decoder.get_base_model() if hasattr(model.decoder, "get_base_model") else model.decoder
    states = decoder.base_model(
        inputs_embeds=model.embed(ids, features=features), attention_mask=visible(segments), position_ids=positions,
        use_cache=False,
    )[0]  # fmt: skip
    row, source, token, _ = torch.from_numpy(wanted.T).to(ids.device)
    logits = decoder.get_output_embeddings()(states[row, source]).float()
    return logits.log_softmax(1).gather(1, token[:, None])[:, 0].cpu()
