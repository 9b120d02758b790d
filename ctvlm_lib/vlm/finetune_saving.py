"""A finetuned model on disk: what was trained, and by what recipe; encoder and decoder have files of their own."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ctvlm_lib import checkpoints
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
