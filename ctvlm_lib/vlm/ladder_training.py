"""Pretraining of the ladder's language models on text alone, and what they know of answers afterwards: nothing."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from ctvlm_lib.checkpoints import circumstances
from ctvlm_lib.records.phantom import VERSION
from ctvlm_lib.training import Curve, Step, Training, train
from ctvlm_lib.vlm import ladder
from ctvlm_lib.vlm.ladder_blind import blind_accuracy
from ctvlm_lib.vlm.ladder_text import IGNORED, REPORT_EVERY, Corpus, Text, corpora, packed, sequence, strings
from ctvlm_lib.vlm.ladder_tokenizer import save_tokenizer, train_tokenizer

BATCH = 36  # texts a step, about 1,900 tokens: a multiple of the six styles and of REPORT_EVERY
SETTINGS = {  # the rate falls as the width grows; with one rate for all, the large one learnt less than the small one
    size: Training(400, lr=0.512 / one.width, weight_decay=0.05, precision="bf16", checkpoint_every=50)
    for size, one in ladder.SIZES.items()
}
SCORED = 1440  # texts of each split that the perplexity is computed on
_AT_ONCE = 48  # texts in a batch without gradients


def pretrain(
    size: str,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    settings: Training | None = None,
    *,
    batch: int = BATCH,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[Qwen2ForCausalLM, Curve]:
    """Train a size from random weights to foretell the next token, of the question as of the answer.

    Args:
        size: of :data:`ctvlm_lib.vlm.ladder.SIZES`.
        corpus: the training split's.
        tokenizer: of the ladder.
        settings: steps, learning rate, seed; None takes the size's own.
        batch: texts a step.
        folder, progress: as :func:`ctvlm_lib.training.train`.
    """
    settings = settings or SETTINGS[size]
    model = ladder.build(size, settings.seed)

    def loss(network: torch.nn.Module, step: Step) -> torch.Tensor:
        texts = corpus.draw(step.rng("texts"), batch)
        weight = step.weight(texts, lambda text: len(sequence(tokenizer, text)[0]) - 1)  # the first isn't learnt
        return _losses(network, tokenizer, step.mine(texts))[0].mean() * weight

    curve = train(model, loss, settings, folder=folder, progress=progress)
    return model, curve


@torch.no_grad()
def perplexity(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text]) -> dict[str, float]:
    """exp of the mean loss: of all tokens but each text's first, and of the tokens of answers with their EOS.

    Args:
        model: in evaluation mode.
        tokenizer: its.
        texts: worded, e.g. drawn from a corpus.

    Returns:
        ``all``, ``answers`` (without reports), ``reports``, and how many texts there were. A kind that isn't among the
        texts is left out.
    """
    found: dict[str, list[torch.Tensor]] = {"all": [], "answers": [], "reports": []}
    reports = [text for text in texts if is_report(text)]
    for kind, those in (("answers", [text for text in texts if not is_report(text)]), ("reports", reports)):
        for first in range(0, len(those), _AT_ONCE):
            losses, answers = _losses(model, tokenizer, those[first : first + _AT_ONCE])
            found["all"].append(losses)
            found[kind].append(losses[answers])
    means = {kind: float(torch.cat(losses).double().mean()) for kind, losses in found.items() if losses}
    return {kind: round(math.exp(mean), 4) for kind, mean in means.items()} | {"texts": len(texts)}


def is_report(text: Text) -> bool:
    """Whether a text's answer is a report."""
    return "Impression:" in text.answer


def make(
    folder: str | Path,
    work: str | Path,
    *,
    size: str = "small",
    seed: int = 0,
    settings: Training | None = None,
    patients: int | None = None,
    held_out: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the tokenizer and one of the ladder's models, score it on validation texts and write both.

    Args:
        folder: where the folders ``ladder-tokenizer`` and ``ladder-SIZE`` are made.
        work: for intermediate states; the same call goes on from there.
        size: of :data:`ctvlm_lib.vlm.ladder.SIZES`.
        seed: of the training; takes the place of the settings' own.
        settings: steps and learning rate; None takes the size's own.
        patients, held_out: how many of the training and of the validation split; None takes all.
        progress: print a line now and then.
    """
    corpus, validation = corpora(patients, held_out)
    tokenizer = make_tokenizer(corpus, folder)
    settings = replace(settings or SETTINGS[size], seed=seed)
    model, curve = pretrain(size, corpus, tokenizer, settings, folder=Path(work) / size, progress=progress)
    model = _in_16_bits(model)
    record = {
        "what": f"Qwen2 in miniature, stands for {ladder.SIZES[size].stands_for}; a language model of the training"
        " split's questions, answers and reports, without images",
        "training": asdict(settings) | {"texts_a_step": BATCH, "a_report_in": REPORT_EVERY},
        "trained_on": _counted(corpus, "train"),
        "held_out": _counted(validation, "validation"),
        "perplexity": {
            "train": perplexity(model, tokenizer, _sample(corpus)),
            "validation": perplexity(model, tokenizer, _sample(validation)),
        },
        "blind_accuracy": blind_accuracy(model, tokenizer, validation.questions, confidence=0.95),
    }
    return ladder.save(size, model, record | circumstances({"language model": curve}), folder)


def make_tokenizer(corpus: Corpus, folder: str | Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer on all texts of the training split and write it; the same texts give the same bytes."""
    parts = [part for text in corpus.every_text for part in strings(text)]
    tokenizer = train_tokenizer(parts)
    save_tokenizer(tokenizer, {"what": "byte-level BPE", "trained_on": _counted(corpus, "train")}, folder)
    return tokenizer


def _losses(model, tokenizer, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token that is learnt, ``(n,)``, and whether it is one of an answer's."""
    batch = packed([sequence(tokenizer, text) for text in texts], tokenizer.pad_token_id)
    device = model.get_input_embeddings().weight.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    states = model.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)[0]
    learnt = batch["labels"][:, 1:] != IGNORED  # position t foretells token t + 1
    logits = model.lm_head(states[:, :-1][learnt]).float()
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][learnt], reduction="none")
    return losses, batch["answers"][:, 1:][learnt]


def _in_16_bits(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """The model as its file will hold it, so that the record's scores are those of the file."""
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.half().float())
    return model


def _sample(corpus: Corpus) -> list[Text]:
    return corpus.draw(np.random.default_rng(0), SCORED)


def _counted(corpus: Corpus, split: str) -> dict:
    patients = {record.patient for record in corpus.reports}
    return {
        "split": split, "patients": len(patients), "questions": len(corpus.questions), "reports": len(corpus.reports),
        "generator": VERSION,
    }  # fmt: skip
