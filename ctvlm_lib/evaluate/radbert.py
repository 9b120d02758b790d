"""CT-CLIP's report → label classifier: RadBERT-RoBERTa-4m with one linear layer to the 18 labels of CT-RATE.

Reports of people are labelled by it, so its mistakes are in every "truth" that comes from it. The peer's training code
stores the classifier's ``state_dict``, so that its tensors are called ``model.…`` (a RoBERTa with its pooler) and
``classifier.{weight,bias}``. Not established: the released file RadBertClassifier.pth itself, which wasn't at hand.
Names that wrappers put in front are taken off, the same tensors under ``roberta.`` or ``bert.`` are taken too, and the
report of the import says what was renamed, left out or missing.

Source: CT-CLIP at a2a155c, text_classifier (classifier.py, dataset.py, model_trainer.py).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, RobertaConfig, RobertaModel

from ctvlm_lib.encoder.checks import refuse_non_finite
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import CT_RATE
from ctvlm_lib.weights import SUFFIXES, Fit, find, read_tensors

BACKBONE = "zzxslp/RadBERT-RoBERTa-4m"  # its configuration and tokenizer; the file brings all weights
HUB_EXAMPLE = "ibrahimhamamci/CT-RATE"
EXPECTED = "CT-CLIP's RadBertClassifier.pth"
THRESHOLD = 0.5  # the released inference calls a label present from here on
HEAD = "classifier.weight"

# (its name begins with, ours begins with); the first that fits counts
KEY_MAP = (("model.", "model."), ("classifier.", "classifier."), ("roberta.", "model."), ("bert.", "model."))
_COMPUTED = re.compile(r"embeddings\.(position_ids|token_type_ids)$")


class RadBert(nn.Module):
    """RoBERTa's pooled first token, and a logit for each label."""

    def __init__(self, config: RobertaConfig, labels: int):
        super().__init__()
        self.model = RobertaModel(config)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(texts, labels)`` of tokens ``(texts, length)``."""
        return self.classifier(self.model(input_ids, attention_mask=attention_mask).pooler_output)


class ReportLabeller:
    """Reads labels from reports.

    Attributes:
        names: of the labels.
        limit: longest text, tokens with the two special ones.
    """

    def __init__(self, network: RadBert, tokenizer, names: Sequence[str]):
        self.network, self.tokenizer, self.names = network.eval().requires_grad_(False), tokenizer, tuple(names)
        config = network.model.config
        self.limit = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts places from there

    @torch.inference_mode()
    def labels(self, texts: Sequence[str], *, cut: bool = False, batch: int = 16) -> np.ndarray:
        """Probability of each label.

        Args:
            texts: reports; the released training read findings and impression.
            cut: whether longer texts than ``limit`` may lose their ends, as they do in the released code.
            batch: texts at a time; no result depends on it beyond rounding.

        Returns:
            float32 ``(len(texts), len(names))``, 0…1; the released code calls a label present from ``THRESHOLD`` on.

        Raises:
            BadInput: no text, an empty one, or one that is too long and may not be cut.
        """
        if isinstance(texts, str) or not len(texts):
            raise BadInput(f"texts are {texts!r:.60}; give a list with at least one report")
        empty = [k for k, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if empty:
            raise BadInput(
                f"{len(empty)} of {len(texts)} reports are empty, the first is number {empty[0]}; leave it out"
            )
        lengths = [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        long = sum(length > self.limit for length in lengths)
        if long and not cut:
            raise BadInput(
                f"{long} of {len(texts)} reports are longer than {self.limit} tokens, the longest has {max(lengths)};"
                " shorten them, or let them be cut with cut=True"
            )
        parts = [self._logits(list(texts[k : k + batch])) for k in range(0, len(texts), batch)]
        return torch.cat(parts).sigmoid().numpy()

    def _logits(self, texts: list[str]) -> Tensor:
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.limit)
        return self.network(inputs["input_ids"], inputs["attention_mask"])


class Imported(NamedTuple):
    """A loaded labeller, and how the file's tensors fitted it; ``print(fit.table())`` shows that."""

    labeller: ReportLabeller
    fit: Fit


def load_radbert(
    weights: str | Path, backbone: str | Path, names: Sequence[str] = CT_RATE, profile: str = "quick"
) -> Imported:
    """Load the classifier from its file, and configuration and tokenizer of its backbone.

    Args:
        weights: the file, or in profile ``paper`` a repository of the model hub that holds it.
        backbone: a folder with RoBERTa's config.json and tokenizer, or in profile ``paper`` a repository, ``BACKBONE``.
        names: of the labels, in the order of the file's rows.
        profile: quick, full or paper.

    Returns:
        the labeller in eval mode, float32, and the report.

    Raises:
        BadInput: no such file or backbone, another number of labels than names, tensors missing or of another shape
            (with the table), or values that are not finite.
    """
    path = find(str(weights), profile, EXPECTED, _choose, HUB_EXAMPLE)
    tensors, renamed, ignored = translate(read_tensors(path, EXPECTED))
    config, tokenizer = _backbone(backbone, profile)
    if HEAD in tensors and len(tensors[HEAD]) != len(names):
        raise BadInput(
            f"{path.name} was trained for {len(tensors[HEAD])} labels and {len(names)} names are given; name its labels"
            " in the order of its training table"
        )
    with torch.device("meta"):  # the file replaces all weights
        wanted = RadBert(config, len(names)).state_dict()
    fit = Fit.of(tensors, wanted, ignored, renamed)
    if not fit.complete:
        raise BadInput(f"{path.name} doesn't fit {backbone}; give {EXPECTED} and its own backbone\n{fit.table()}")
    refuse_non_finite({name: tensors[name] for name in fit.matched}, path.name)
    with torch.random.fork_rng(devices=[]):
        network = RadBert(config, len(names))
    network.load_state_dict({name: tensors[name] for name in fit.matched})
    return Imported(ReportLabeller(network, tokenizer, names), fit)


def translate(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Names as the network here has them: tensors in float32, what was renamed, and what was left out and why.

    A tensor that no rule of KEY_MAP knows keeps its name, so that the report shows it as unexpected.
    """
    tensors, renamed, ignored = {}, {}, {}
    for name, tensor in stored.items():
        if _COMPUTED.search(name):
            ignored[name] = "computed from the length"
            continue
        own = next((ours + name.removeprefix(its) for its, ours in KEY_MAP if name.startswith(its)), name)
        if own in tensors:
            raise BadInput(f"{name} and another tensor both mean {own}; give {EXPECTED} unchanged")
        tensors[own] = tensor.float() if tensor.is_floating_point() else tensor
        if own != name:
            renamed[name] = own
    return tensors, renamed, ignored


def _backbone(where: str | Path, profile: str):
    """Configuration and tokenizer; a hub is asked in profile paper only."""
    folder = Path(where).expanduser()
    if not folder.is_dir() and profile != "paper":
        raise BadInput(
            f"there is no folder {str(where)!r}, and a model hub is asked only in profile paper; give a folder with the"
            f" config.json and tokenizer of {BACKBONE}"
        )
    source = folder if folder.is_dir() else str(where)
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source, config=config)
    except Exception as error:  # transformers and tokenizers raise kinds of their own, or a plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"no backbone can be had from {str(where)!r} ({reason}); give a folder with the config.json and"
            f" tokenizer of {BACKBONE}"
        ) from error
    if not isinstance(config, RobertaConfig):
        raise BadInput(f"{where} is a {config.model_type}, and a roberta is expected; give the backbone {BACKBONE}")
    if not config.vocab_size / 2 <= len(tokenizer) <= config.vocab_size:
        # transformers makes an empty tokenizer of a folder without its files
        raise BadInput(
            f"the tokenizer of {where} has {len(tokenizer)} entries and the configuration {config.vocab_size}; give a"
            f" folder with the tokenizer files of {BACKBONE} too"
        )
    return config, tokenizer


def _choose(files: list[str]) -> list[str]:
    """The classifier's file of a repository, wherever it lies in it."""
    return [name for name in files if "radbertclassifier" in name.lower() and name.endswith(SUFFIXES)][:1]
