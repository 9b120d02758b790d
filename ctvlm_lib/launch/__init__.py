"""Training in several processes: files for ``accelerate launch``, what each costs, and a trial that compares.

    accelerate launch --config_file "$(python -m ctvlm_lib.launch ddp)" -m ctvlm_lib arm NAME …

What several processes train, by :mod:`ctvlm_lib.training`'s one loop:

- the curve of one process, to float32's rounding: encoders on volumes and reports (SigLIP and CLIP, BatchNorms
  included), local and global alignment, vision–language models, classification, reports, read-outs, language models;
- the same training with other random numbers, and the loop says so: whatever has dropout, as LoRA has by default,
  objectives ``dense`` and ``prompted`` (drawn tokens, prompts), the U-Net (patches; Dice of each process' own share);
- nothing, and it is refused: VISTA-3D, which learns from one volume a step; distillation; a batch that can't be
  divided; arms on the cohort that one process stores. The last batch of an epoch is left out where it isn't whole.

Tried here: two processes on a CPU, and FSDP2's way of sharing out tensors on a CPU. The files for several GPUs
(``ddp``, ``fsdp2``) and for DeepSpeed are read by accelerate in the tests, which is all that could be tried of them.
"""

from pathlib import Path

from ctvlm_lib.errors import BadInput

FOLDER = Path(__file__).parent
FILES = {
    "cpu_pair": "two processes on this machine's CPU",
    "ddp": "8 GPUs, all weights on each",
    "fsdp2": "8 GPUs, every tensor shared out (ZeRO-3)",
    "deepspeed_zero2": "DeepSpeed: gradients and optimiser shared out; refused by this workbook's training",
    "deepspeed_zero3": "DeepSpeed: every tensor shared out; refused by this workbook's training",
}


def path(name: str) -> Path:
    """Where the file of a name of FILES lies, for ``accelerate launch --config_file``.

    Raises:
        BadInput: another name.
    """
    if name not in FILES:
        raise BadInput(f"there is no file for accelerate called {name!r}; there are: {', '.join(FILES)}")
    return FOLDER / f"{name}.yaml"
