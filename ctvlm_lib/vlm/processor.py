"""From a CT, a prompt and a question to the tensors that the model reads, and from its tokens back to words.

    {placeholders} {question}[ Choices: A. … B. … C. … D. …] {answer}{EOS}

with BOS in front where the tokenizer adds one. No chat template and no system prompt, as in Med3DVLM's released code.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records.package import target_text, user_text
from ctvlm_lib.records.record import Record
from ctvlm_lib.vlm.colour import Lines
from ctvlm_lib.vlm.config import CtvlmConfig
from ctvlm_lib.vlm.image import ImageInput
from ctvlm_lib.vlm.saving import into_folder
from ctvlm_lib.vlm.splice import ReleasedRow, answer_labels, released_row

FILE = "ctvlm_processor.json"
PLACEHOLDER = "<im_patch>"


@dataclass(frozen=True, eq=False)
class CtvlmProcessor:
    """Makes a model's inputs; it belongs to one model and is saved beside it.

    Attributes:
        tokenizer: of the decoder; the placeholder is added to a copy of it if it isn't there.
        image_tokens: placeholders an image.
        size_dhw_vox, channels, scale, colour: of :class:`ctvlm_lib.vlm.image.ImageInput`.
        context: most tokens of a sequence, image and answer included; None leaves it to the decoder.
        placeholder: text of the special token that holds an image vector's place.
        joint: between the placeholders and the question; Med3DVLM has " " for questions and "" for reports.

    Raises:
        BadInput: a value that isn't one.
    """

    tokenizer: object = field(repr=False)
    image_tokens: int = 256
    size_dhw_vox: tuple[int, int, int] = (128, 256, 256)
    channels: int = 1
    scale: str | tuple[float, float] = "Med3DVLM"
    colour: str = "rgb"
    context: int | None = None
    placeholder: str = PLACEHOLDER
    joint: str = " "

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_dhw_vox", tuple(int(n) for n in self.size_dhw_vox))
        if not isinstance(self.scale, str):
            object.__setattr__(self, "scale", tuple(self.scale))
        self.image_input  # noqa: B018 – it checks its values when it is made
        if self.placeholder not in self.tokenizer.get_vocab():
            object.__setattr__(self, "tokenizer", with_placeholder(self.tokenizer, self.placeholder))
        if self.tokenizer.eos_token_id is None:
            raise BadInput("the tokenizer has no EOS, so no answer could end; set tokenizer.eos_token")

    @classmethod
    def for_config(cls, config: CtvlmConfig, tokenizer, **options) -> "CtvlmProcessor":
        """The processor of a model: sizes, channels and context are its own.

        Args:
            config: of the model.
            tokenizer: of its decoder.
            options: other attributes, such as ``scale`` and ``colour``.

        Raises:
            BadInput: the placeholder's id in the tokenizer isn't the model's.
        """
        own = {
            "image_tokens": config.image_tokens, "size_dhw_vox": config.size_dhw_vox,
            "channels": config.encoder.in_channels, "context": config.context,
        }  # fmt: skip
        processor = cls(tokenizer, **own | options)
        processor.check(config)
        return processor

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder; what ``CtvlmConfig.image_token_id`` must be."""
        return self.tokenizer.convert_tokens_to_ids(self.placeholder)

    @property
    def image_input(self) -> ImageInput:
        """How volumes are made into the encoder's input."""
        return ImageInput(self.size_dhw_vox, self.channels, self.scale, self.colour)

    def check(self, config: CtvlmConfig) -> None:
        """Raise BadInput where this processor and a model disagree."""
        theirs = {
            "size_dhw_vox": config.size_dhw_vox, "channels": config.encoder.in_channels,
            "image_tokens": config.image_tokens, "image_token_id": config.image_token_id,
        }  # fmt: skip
        for what, value in theirs.items():
            if getattr(self, what) != value:
                raise BadInput(
                    f"the processor has {what} {getattr(self, what)} and the model {value}; take the processor that was"
                    " saved beside the model, or make one with CtvlmProcessor.for_config"
                )
        if self.context is not None and config.context is not None and self.context > config.context:
            raise BadInput(
                f"the processor allows {self.context} tokens and the decoder has {config.context} positions; lower it"
            )

    def __call__(
        self, volumes: Sequence | None, questions: Sequence[str], answers: Sequence[str] | None = None, *,
        choices: Sequence[Sequence[str]] | None = None, lines: Sequence[Lines] | None = None, room: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Make a batch.

        Args:
            volumes: one a question, as :class:`ctvlm_lib.vlm.image.ImageInput` takes them; None leaves them out where
                the model gets kept features in their place.
            questions: without choices.
            answers: for training, then rows are padded on the right and labelled; None pads on the left to generate.
            choices: of each question, () for none; the answer must be one of them and gets its letter.
            lines: the prompt of each volume, (line, colour) pairs on the volume's own grid.
            room: tokens to be left in the context for an answer that is to be generated.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(B, length)``, ``images`` ``(B, C, D, H, W)`` float32 if there are
            volumes, ``labels`` ``(B, length)`` if there are answers.

        Raises:
            BadInput: lists of different lengths, an empty question, one longer than the context, a volume or line that
                doesn't fit.
        """
        _check_lengths(len(questions), volumes=volumes, answers=answers, choices=choices, lines=lines)
        options = [()] * len(questions) if choices is None else choices
        said = [None] * len(questions) if answers is None else answers
        rows = [self.sequence(*row, room=room) for row in zip(questions, said, options, strict=True)]
        batch = self._padded(rows, left=answers is None)
        if volumes is not None:
            prompts = [()] * len(questions) if lines is None else lines
            made = [self.image_input(volume, prompt) for volume, prompt in zip(volumes, prompts, strict=True)]
            batch["images"] = torch.from_numpy(np.stack(made))
        return batch

    def of_records(
        self, records: Sequence[Record], volumes: Sequence | None, lines: Sequence[Lines] | None = None, *,
        style: str | None = None, answers: bool = True, room: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """A batch of grounded records, worded in ``style`` (None leaves each as it is); see :meth:`__call__`."""
        worded = [record if style is None else record.worded(style) for record in records]
        return self(
            volumes, [record.question for record in worded], [record.answer for record in worded] if answers else None,
            choices=[record.choices for record in worded], lines=lines, room=room,
        )  # fmt: skip

    def texts(self, question: str, answer: str | None = None, choices: Sequence[str] = ()) -> tuple[str, str]:
        """What stands behind the placeholders, and what is learnt behind that ("" without an answer).

        Raises:
            BadInput: an empty question or answer, the placeholder in one, or an answer that isn't among the choices.
        """
        for what, text in (("question", question), ("answer", answer)):
            if text is not None and (not isinstance(text, str) or not text.strip()):
                raise BadInput(f"the {what} is {text!r}; give a text with at least one letter")
            if text is not None and self.placeholder in text:
                raise BadInput(f"the {what} holds {self.placeholder!r}, which stands for the image; take it out")
        asked = SimpleNamespace(question=question, choices=tuple(choices), answer=answer)
        if answer is not None and asked.choices and answer not in asked.choices:
            raise BadInput(f"the answer {answer!r} is none of the choices {', '.join(asked.choices)}; give one of them")
        return self.joint + user_text(asked), "" if answer is None else " " + target_text(asked)

    def sequence(
        self, question: str, answer: str | None = None, choices: Sequence[str] = (), *, room: int = 0
    ) -> tuple[list[int], int]:
        """Token ids of one question, and where its answer begins.

        Question and answer are tokenised apart, so that the question has the same tokens in training and in use.

        Raises:
            BadInput: as :meth:`texts`, or more tokens than the context; nothing is ever cut.
        """
        asked, said = self.texts(question, answer, choices)
        ids = [*self._bos(), *[self.image_token_id] * self.image_tokens, *self._ids(asked)]
        start = len(ids)
        if said:
            ids += [*self._ids(said), self.tokenizer.eos_token_id]
        if self.context is not None and len(ids) + room > self.context:
            raise BadInput(
                f"the question takes {start} tokens, {self.image_tokens} of them for the image, its answer"
                f" {len(ids) - start + room}, and the context holds {self.context}: shorten {question[:40]!r}…"
            )
        return ids, start

    def released_sequence(
        self, question: str, answer: str, choices: Sequence[str] = (), max_length: int = 512
    ) -> ReleasedRow:
        """One training sequence as Med3DVLM's code makes it, cut if need be; see :func:`released_row`."""
        asked, said = self.texts(question, answer, choices)
        image = self.placeholder * self.image_tokens
        prompt, whole = (self.tokenizer(image + text)["input_ids"] for text in (asked, asked + said))
        return released_row(prompt, whole, self.tokenizer.eos_token_id, self.pad_token_id, max_length)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's, or else EOS: what a padded position holds is never attended."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def decode(self, tokens: Tensor) -> list[str]:
        """Answers as text, of what ``CtvlmModel.generate`` gave: without special tokens and outer blanks."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``ctvlm_processor.json``; other files in the folder stay."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tokenizer"}
        with into_folder(folder) as partial:
            self.tokenizer.save_pretrained(partial)
            (partial / FILE).write_text(json.dumps(own, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CtvlmProcessor":
        """Load what :meth:`save_pretrained` wrote.

        Raises:
            BadInput: no processor there, or one that can't be read.
        """
        from transformers import AutoTokenizer, PretrainedConfig

        path = Path(folder) / FILE
        try:
            own = json.loads(path.read_text(encoding="utf-8"))
            return cls(AutoTokenizer.from_pretrained(folder, config=PretrainedConfig()), **own)
        except FileNotFoundError:
            raise BadInput(
                f"{folder} holds no {FILE}; give a folder that CtvlmProcessor.save_pretrained wrote"
            ) from None
        except BadInput:
            raise
        except Exception as error:  # the tokenizers package raises a plain Exception
            raise BadInput(f"{path} can't be read as a processor ({type(error).__name__}); save it again") from None

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _bos(self) -> list[int]:
        """BOS where the tokenizer puts one in front of a text: Llama's does, Qwen's doesn't."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] else []

    def _padded(self, rows: list[tuple[list[int], int]], left: bool) -> dict[str, Tensor]:
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for k, (ids, _) in enumerate(rows):
            place = slice(length - len(ids), length) if left else slice(0, len(ids))
            input_ids[k, place], attention_mask[k, place] = torch.tensor(ids), 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not left:
            batch["labels"] = answer_labels(input_ids, torch.tensor([start for _, start in rows]), attention_mask)
        return batch


def with_placeholder(tokenizer, placeholder: str = PLACEHOLDER):
    """A copy of a tokenizer that knows the placeholder as one special token, which gets the next free id."""
    from transformers import AddedToken

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(placeholder, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _check_lengths(count: int, **lists: Sequence | None) -> None:
    if count == 0:
        raise BadInput("there is no question; give at least one")
    for what, given in lists.items():
        if given is not None and len(given) != count:
            raise BadInput(f"there are {count} questions and {len(given)} {what}; give one for each question")
