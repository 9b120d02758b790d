"""A finetuned model on disk: what was trained, and by what recipe; encoder and decoder have files of their own."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import of_seed
from ctvlm_lib.alignment.checkpoints import check_tensors
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training_checkpoint import moving
from ctvlm_lib.vlm.finetune import Finetuning, build, prepare
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.processor import CtvlmProcessor


def save(folder: str | Path, model: CtvlmModel, config: Finetuning, record: Mapping) -> Path:
    """Write what was trained, in 16 bits: projector and adapters (from scratch: the decoder), and the record.

    Args:
        folder: its last part is the checkpoint's name.
        model: of :func:`finetune`.
        config: its.
        record: what else is told, as JSON can hold it.
    """
    folder = Path(folder)
    content = {"what": "projector and decoder's adapters of a vision–language model", "finetuning": asdict(config)}
    return checkpoints.save(folder.name, moving(model), content | dict(record), folder.parent)


def load(folder: str | Path, parts: str | Path = checkpoints.FOLDER) -> tuple[CtvlmModel, CtvlmProcessor, dict]:
    """Read a model that :func:`save` wrote: encoder and decoder are loaded first, then what was trained.

    Args:
        folder: of the checkpoint.
        parts: folder of the encoders' and the decoders' checkpoints.

    Returns:
        The model in evaluation mode, its processor, and the record.

    Raises:
        BadInput: no such checkpoint, a damaged one, or one of other parts.
    """
    folder = Path(folder)
    tensors, record = checkpoints.load(folder.name, folder.parent)
    if "finetuning" not in record:
        raise BadInput(f"{folder.name} isn't a finetuned model; give a folder that ctvlm_lib.vlm.finetune.save wrote")
    config = Finetuning.from_dict(record["finetuning"])
    model, processor = build(config, parts)
    prepare(model, config.stages()[-1][0], config)
    wanted = moving(model)
    check_tensors(tensors, wanted, folder.name)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
    return model.eval(), processor, record


def find_teacher(config: Finetuning, *folders: str | Path) -> Path | None:
    """Folder of the model that a recipe names as its teacher, of the recipe's seed, in the first of some; or None."""
    label = of_seed(config.teacher, config.seed)
    return next((Path(folder) / label for folder in folders if label in checkpoints.names(folder)), None)


def load_teacher(
    config: Finetuning, model: CtvlmModel, processor: CtvlmProcessor, *folders: str | Path
) -> tuple[CtvlmModel, dict]:
    """Read the model that a recipe names as its teacher.

    Args:
        config: the student's recipe, whose seed the teacher has, too.
        model: the student, of which the teacher is shown the pictures. processor: the student's.
        folders: of checkpoints, the first that has it counts.

    Returns:
        The teacher and what the student's record says of it: its name and its weights' hash and size.

    Raises:
        BadInput: it isn't there, or it can't read what the student reads.
    """
    folder = find_teacher(config, *folders)
    if folder is None:
        label = of_seed(config.teacher, config.seed)
        raise BadInput(
            f"the teacher {label} has no checkpoint; train it first: `ctvlm arm {config.teacher} --seed {config.seed}`"
        )
    teacher, its, record = load(folder)
    sides = {
        "encoder": (teacher.encoder_id(), model.encoder_id()),
        "tokenizer": (its.tokenizer.get_vocab(), processor.tokenizer.get_vocab()),
        "number of image vectors": (its.image_tokens, processor.image_tokens),
    }
    if differ := [name for name, (one, other) in sides.items() if one != other]:
        raise BadInput(
            f"the teacher {folder.name} has another {differ[0]} than its student; name one that reads the same"
            " pictures and words"
        )
    return teacher, {"name": folder.name, "weights": record["weights"]}
