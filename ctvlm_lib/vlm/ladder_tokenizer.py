"""The tokenizer of the ladder's language models: one small byte-level BPE, learnt from the training split's texts.

It is built as Qwen2's is: bytes, so that no text has an unknown token; each digit by itself, so that "36 mm" and
"38 mm" differ in one token; a word with the blank before it. There is no BOS. Padding and end are two tokens, and the
image's placeholder is the one that :mod:`ctvlm_lib.vlm.processor` writes, so that no embedding has to be added later.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ctvlm_lib import checkpoints
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.vlm.processor import PLACEHOLDER

NAME, FILE, RECORD = "ladder-tokenizer", "tokenizer.json", "tokenizer_record.json"
PAD, EOS = "<|pad|>", "<|endoftext|>"
SPECIAL = (PAD, EOS, PLACEHOLDER)
PAD_ID, EOS_ID, PLACEHOLDER_ID = range(len(SPECIAL))
VOCABULARY = 768  # with the special ones and the 256 bytes; from 769 on nothing is left to merge in the cohort's texts
CONTEXT = 2048  # positions: 512 image tokens, a worded question and a report take 1,000 at most
# letters with the blank before them, single digits, other signs with the blank before them, blanks
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE; the same texts give the same tokenizer, in any order.

    Args:
        texts: of the training split only; a text that is given twice counts twice.
        vocabulary: number of tokens.

    Raises:
        BadInput: too small a vocabulary, or texts from which so many tokens can't be learnt.

    Source: Sennrich et al. 2016 (BPE); Qwen2 technical report §2.1 (bytes, single digits).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    least = len(SPECIAL) + 256
    if vocabulary < least:
        raise BadInput(f"a vocabulary of {vocabulary} can't hold all bytes; give at least {least}")
    made = Tokenizer(models.BPE())
    by_piece = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([by_piece, by_byte])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(sorted(texts), trainer)
    if made.get_vocab_size() != vocabulary:
        found = made.get_vocab_size()
        raise BadInput(f"the texts give {found} tokens and {vocabulary} are wanted; give more texts, or ask for fewer")
    return _wrapped(made)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, record: dict, folder: str | Path = checkpoints.FOLDER) -> Path:
    """Write ``ladder-tokenizer/`` below a folder, whole or not at all; its hash is added to the record."""
    with atomic_path(Path(folder) / NAME) as partial:
        tokenizer.save_pretrained(partial)
        content = record | {"tokens": len(tokenizer), "sha256": _sha256(partial / FILE)}
        (partial / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(folder) / NAME


def load_tokenizer(folder: str | Path = checkpoints.FOLDER) -> PreTrainedTokenizerFast:
    """Read the tokenizer that lies below a folder of checkpoints.

    Raises:
        BadInput: none there, or one that isn't the one of its record.
    """
    home = Path(folder) / NAME
    if tokenizer_hash(folder) != tokenizer_record(folder).get("sha256"):
        raise BadInput(f"{NAME}/{FILE} isn't the file that {RECORD} describes; restore both, or train again")
    try:
        return PreTrainedTokenizerFast.from_pretrained(home, local_files_only=True)
    except Exception as error:  # the tokenizers package raises a plain Exception
        raise BadInput(f"{NAME} can't be read ({type(error).__name__}); restore it, or train again") from error


def tokenizer_record(folder: str | Path = checkpoints.FOLDER) -> dict:
    """How the tokenizer below a folder was made.

    Raises:
        BadInput: no such record, or one that can't be read.
    """
    path = Path(folder) / NAME / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise BadInput(f"{NAME}/{RECORD} can't be read ({type(error).__name__}); restore it, or train again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{NAME}/{RECORD} holds no record; restore it, or train again")
    return content


def tokenizer_hash(folder: str | Path = checkpoints.FOLDER) -> str:
    """SHA-256 of the tokenizer below a folder; a model's record names the one that it was trained with.

    Raises:
        BadInput: there is none.
    """
    path = Path(folder) / NAME / FILE
    if not path.is_file():
        raise BadInput(f"there is no {NAME}/{FILE}; restore it, or run `ctvlm train ladder-small`")
    return _sha256(path)


def _wrapped(made) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=EOS, pad_token=PAD, additional_special_tokens=[PLACEHOLDER],
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
