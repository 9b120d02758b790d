"""Closed questions put to a language model that never saw an image: on balanced records it has to be at chance."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.intervals import Interval, patient_bootstrap
from ctvlm_lib.records.package import LETTERS, user_text
from ctvlm_lib.records.record import Record

_AT_ONCE = 128


def options(record: Record) -> tuple[str, ...]:
    """What a closed answer begins with: the letters of the choices, else Yes and No."""
    return tuple(LETTERS[: len(record.choices)]) if record.choices else ("Yes", "No")


@torch.no_grad()
def blind_answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, records: Sequence[Record]
) -> tuple[list[str], list[float]]:
    """Answer closed questions from their words alone, by the likeliest first token among those possible.

    Args:
        model: in evaluation mode.
        tokenizer: its; each option must be one token.
        records: closed, in any style.

    Returns:
        The answers as the records word them, and the probability of each among the options.

    Raises:
        BadInput: an open question, or an option of several tokens.
    """
    if any(record.form != "closed" for record in records):
        raise BadInput("an open question has no fixed options; give closed ones")
    answers, confidence = [""] * len(records), [0.0] * len(records)
    order = sorted(range(len(records)), key=lambda k: len(user_text(records[k])))  # rows of like length: little padding
    for first in range(0, len(order), _AT_ONCE):
        those = order[first : first + _AT_ONCE]
        logits = _next_token(model, tokenizer, [" " + user_text(records[k]) for k in those])
        for k, row in zip(those, logits, strict=True):
            offered = options(records[k])
            chance = row[[_token(tokenizer, option) for option in offered]].softmax(0)
            best = int(chance.argmax())
            answers[k] = records[k].choices[best] if records[k].choices else offered[best]
            confidence[k] = float(chance[best])
    return answers, confidence


def blind_accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, records: Sequence[Record], confidence: float = 0.95
) -> dict[str, dict]:
    """Accuracy of :func:`blind_answers`, by kind and stratum; open questions are left out.

    Args:
        model, tokenizer: as there.
        records: of another split than the model's.
        confidence: of all intervals together: each gets its share of the misses (Bonferroni).

    Returns:
        Group such as "presence, named" → accuracy, low, high, n, patients, chance and whether the interval holds it.
    """
    closed = [record for record in records if record.form == "closed"]
    said, _ = blind_answers(model, tokenizer, closed)
    groups: dict[str, list[tuple[bool, Record]]] = defaultdict(list)
    for answer, record in zip(said, closed, strict=True):
        stratum = "" if record.region is None else ", named" if record.names_region else ", unnamed"
        groups[record.kind + stratum].append((answer == record.answer, record))
    level = 1 - (1 - confidence) / max(1, len(groups))
    return {group: _row(rows, level) for group, rows in sorted(groups.items())}


def _row(rows: list[tuple[bool, Record]], level: float) -> dict:
    hits, patients = [float(right) for right, _ in rows], [record.patient for _, record in rows]
    found: Interval = patient_bootstrap(hits, patients, confidence=level, resamples=20_000)
    chance = float(np.mean([1 / len(options(record)) for _, record in rows]))
    return {
        "accuracy": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n,
        "patients": found.patients, "chance": chance, "at_chance": bool(found.low <= chance <= found.high),
    }  # fmt: skip


def _token(tokenizer: PreTrainedTokenizerFast, option: str) -> int:
    ids = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise BadInput(f"the option {option!r} is {len(ids)} tokens, so its first one doesn't tell it from others")
    return ids[0]


def _next_token(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """Logits ``(B, vocabulary)`` behind each text."""
    rows = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    rows = rows.to(model.get_input_embeddings().weight.device)
    states = model.model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False)[0]
    last = rows["attention_mask"].sum(1) - 1
    return model.lm_head(states[torch.arange(len(texts), device=last.device), last]).float()
