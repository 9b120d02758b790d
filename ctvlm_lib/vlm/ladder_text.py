"""What the ladder's language models are pretrained on: questions, choices, answers and reports, worded in every style.

A text is worded and laid out as the processor does it for the vision–language model, only without the image.
Questions are the protocol's balanced ones, so that no answer is more frequent than another behind the same words: a
language model learns how answers sound, not which one is likely.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ctvlm_lib.errors import BadInput
from ctvlm_lib.prompt.wording import STYLES, rewrite
from ctvlm_lib.records import protocol
from ctvlm_lib.records.package import target_text, user_text
from ctvlm_lib.records.record import Record

REPORT_EVERY = 12  # one text in so many is a report: eight times as long as a question, so a third of the tokens
ROW = 384  # tokens of a packed row; the longest worded report takes 382
IGNORED = -100  # label that counts in no loss


@dataclass(frozen=True)
class Text:
    """A question, its choices and its answer, worded in a style."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Corpus:
    """The texts of one split.

    Attributes:
        questions: balanced records that aren't reports.
        reports: those that are.
    """

    questions: tuple[Record, ...]
    reports: tuple[Record, ...]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Corpus":
        """Take plain records of one split.

        Raises:
            BadInput: no questions or no reports, several splits, or a record that isn't plain.
        """
        records = tuple(records)
        if len({record.split for record in records}) > 1:
            raise BadInput("the records are of several splits; a language model learns from the training split alone")
        if any(record.style != "plain" for record in records):
            raise BadInput("a record isn't plain; give the protocol's records, which are worded here")
        reports = tuple(record for record in records if record.kind == "report")
        questions = tuple(record for record in records if record.kind != "report")
        if not reports or not questions:
            raise BadInput(
                f"there are {len(questions)} questions and {len(reports)} reports; give at least one of each"
            )
        return cls(questions, reports)

    @cached_property
    def every_text(self) -> tuple[Text, ...]:
        """Each different text once, in every style; the order of a question's choices doesn't make it another."""
        plain = {(r.question, r.answer, tuple(sorted(r.choices)), r.form) for r in (*self.questions, *self.reports)}
        return tuple(_worded(*text, style) for text in sorted(plain) for style in STYLES)

    def draw(self, rng: np.random.Generator, count: int) -> list[Text]:
        """Draw texts: every twelfth a report, and the styles one after the other, so that they have equal shares."""
        styles, drawn = list(STYLES), []
        begin = int(rng.integers(len(styles) * REPORT_EVERY))  # else few texts would give reports of few styles
        for place in range(begin, begin + count):
            turn = place // len(styles)  # a report's turn goes through the styles, too
            pool = self.reports if (place + turn) % REPORT_EVERY == 0 else self.questions
            record = pool[int(rng.integers(len(pool)))]
            style = styles[place % len(styles)]
            drawn.append(_worded(record.question, record.answer, record.choices, record.form, style))
        return drawn


def corpora(patients: int | None = None, held_out: int | None = None) -> tuple[Corpus, Corpus]:
    """The protocol's training and validation texts; no patient of the test split is read.

    Args:
        patients, held_out: the first so many of the training and of the validation split; None takes all of them.
    """
    fixed = protocol.load()
    sizes = {"train": patients, "validation": held_out}
    asked = fixed.records({split: fixed.patients(split, "full", n=n) for split, n in sizes.items()})
    train, validation = (Corpus.of(r for r in asked if r.split == split) for split in sizes)
    return train, validation


def strings(text: Text) -> tuple[str, str]:
    """The two strings that are tokenised apart: the question with its choices, and the answer."""
    return " " + user_text(text), " " + target_text(text)


def sequence(tokenizer: PreTrainedTokenizerFast, text: Text) -> tuple[list[int], int]:
    """Tokens of a text with EOS behind it, as the processor puts them behind the image, and where the answer begins."""
    asked, said = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in strings(text))
    return [*asked, *said, tokenizer.eos_token_id], len(asked)


def packed(rows: Sequence[tuple[list[int], int]], pad: int, length: int = ROW) -> dict[str, torch.Tensor]:
    """Put several texts into each row of a batch; positions begin anew with each, and none sees another.

    Args:
        rows: of :func:`sequence`.
        pad: token id behind a row's last text.
        length: of a row, tokens.

    Returns:
        ``input_ids``, ``position_ids`` (transformers reads from them where a text begins), ``labels`` (all tokens but
        the first of each text, which nothing foretells) and ``answers`` (whether a label is one of an answer's
        tokens), each ``(B, length)``.

    Raises:
        BadInput: a text longer than a row.
    """
    longest = max(len(ids) for ids, _ in rows)
    if longest > length:
        raise BadInput(f"a text has {longest} tokens and a row {length}; make the rows longer")
    places, ends = [], []
    for ids, _ in rows:
        row = next((k for k, end in enumerate(ends) if end + len(ids) <= length), len(ends))
        ends += [0] * (row == len(ends))
        places.append((row, ends[row]))
        ends[row] += len(ids)
    shape = (len(ends), length)
    batch = {"input_ids": torch.full(shape, pad), "position_ids": torch.zeros(shape, dtype=torch.long),
             "labels": torch.full(shape, IGNORED), "answers": torch.zeros(shape, dtype=torch.bool)}  # fmt: skip
    for (ids, start), (row, begin) in zip(rows, places, strict=True):
        end = begin + len(ids)
        batch["input_ids"][row, begin:end] = torch.tensor(ids)
        batch["position_ids"][row, begin:end] = torch.arange(len(ids))
        batch["labels"][row, begin + 1 : end] = torch.tensor(ids[1:])
        batch["answers"][row, begin + start : end] = True
    for row, end in enumerate(ends):
        batch["position_ids"][row, end:] = torch.arange(length - end)
    return batch


@lru_cache(maxsize=200_000)
def _worded(question: str, answer: str, choices: tuple[str, ...], form: str, style: str) -> Text:
    made = rewrite(question, answer, style, form=form)
    return Text(made.question, made.answer, choices)
