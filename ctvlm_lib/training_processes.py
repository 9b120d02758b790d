"""What the processes of one training do together: agree, average, say what differs from one process, share out weights.

Two ways are supported. Every process holds all weights (DDP, the default), or each holds a part of every tensor (FSDP2,
which is ZeRO's third stage). What can't be trained rightly is refused in one sentence:

- DeepSpeed, FSDP1, and FSDP on CPUs, where accelerate would train without sharding and not say so;
- processes that don't know of each other;
- what only one process may store: the arms on the cohort but those of encoders, and ``ctvlm train``;
- a training whose loss doesn't take its share of the batch: every process would compute the same.
"""

import copy
import os
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from torch import distributed, nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.training_checkpoint import moving, whole

if TYPE_CHECKING:
    from ctvlm_lib.training import Step


def joined() -> PartialState:
    """This process among those that were started, before anything is trained.

    Raises:
        BadInput: processes that are alone.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # by itself it doesn't look there
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > state.num_processes:  # each would train alone, and all would write into one folder
        raise BadInput(
            f"{started} processes were started and don't find each other, as there is no GPU here; set"
            " ACCELERATE_USE_CPU=true to train on the CPU"
        )
    return state


def begin() -> Accelerator:
    """What ``accelerate launch`` asked for, as far as the training loop can do it.

    Raises:
        BadInput: DeepSpeed, FSDP1, FSDP with its loading from one process, FSDP on CPUs, or processes that are
            alone.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise BadInput(
            "this training can't be run by DeepSpeed, which keeps the optimiser where checkpoints here don't reach it;"
            " launch it with fsdp2.yaml, which shares out the same tensors as ZeRO-3, or with ddp.yaml"
        )
    alike = DistributedDataParallelKwargs(find_unused_parameters=True)  # a step may leave a head out
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[alike])
    joined()
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.num_processes > 1 and not is_sharded(accelerator):
        raise BadInput(
            "accelerate shares out weights (FSDP) on GPUs only, and these processes compute on"
            f" {accelerator.device.type}; launch them with cpu_pair.yaml"
        )
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:  # it fails on BatchNorm's statistics
            raise BadInput(
                "of FSDP, version 2 with fsdp_cpu_ram_efficient_loading: false is supported; launch with fsdp2.yaml"
            )
    return accelerator


def alone(name: str) -> None:
    """Refuse several processes for what one trains and stores: two writers would take each other's folders away.

    Raises:
        BadInput: ``accelerate launch`` started several.
    """
    if (started := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise BadInput(
            f"{name} is trained and stored by one process, and {started} were started; start it without accelerate"
            " launch"
        )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only."""
    return accelerator.distributed_type == DistributedType.FSDP


def of_all(value: Any) -> list:
    """The value of each process, in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    found = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def means_of_all(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean over processes of each named value; a process without one, whose share had nothing of it, counts as 0."""
    everyone = of_all({name: float(value) for name, value in values.items()})
    names = dict.fromkeys(name for one in everyone for name in one)
    return {name: sum(one.get(name, 0.0) for one in everyone) / len(everyone) for name in names}


def check_resumed(steps: int) -> None:
    """Raise BadInput unless all processes go on from the same step."""
    found = of_all(steps)
    if len(set(found)) > 1:
        raise BadInput(
            f"the processes found checkpoints of different steps ({', '.join(map(str, found))}); give a folder that all"
            " machines share"
        )


def random_state(accelerator: Accelerator) -> bytes:
    """Where torch's random numbers are, on the device that several processes compute on; empty for one process."""
    if accelerator.num_processes == 1:
        return b""
    on_gpu = accelerator.device.type == "cuda"
    return (torch.cuda.get_rng_state(accelerator.device) if on_gpu else torch.get_rng_state()).numpy().tobytes()


def check_shared(step: "Step") -> str:
    """Look at the first step of a training in several processes.

    Returns:
        a sentence on what keeps the curve from being that of one process to rounding; "" if nothing does.

    Raises:
        BadInput: the loss took no share of the batch.
    """
    if step.world == 1:
        return ""
    if not step.taken:
        raise BadInput(
            f"this training doesn't share its batch, so {step.world} processes would all compute the same; start it"
            " without accelerate launch"
        )
    apart = sorted(step.taken - {step.SHARE})
    if not apart:
        return ""
    return (
        f"{step.world} processes: each draws its own random numbers ({', '.join(apart)}), so the curve is that of one"
        " process but for these draws"
    )


def twin(model: nn.Module) -> nn.Module:
    """A copy that FSDP may take apart, while the model stays whole where it is.

    Raises:
        BadInput: a single number among the parameters, which FSDP refuses, or a hook that holds on to a module of the
            model, which a copy can't be given.
    """
    if single := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise BadInput(f"{single[0]} is a single number, which FSDP can't share out; launch with ddp.yaml")
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            cells = hook.__closure__ if isinstance(hook, FunctionType) else None
            if any(isinstance(cell.cell_contents, nn.Module) for cell in cells or ()):
                raise BadInput(
                    f"{name or 'the model'} has a hook that FSDP can't move ({hook.__qualname__}); launch with ddp.yaml"
                )
    return copy.deepcopy(model)


def bring_home(network: nn.Module, model: nn.Module) -> None:
    """Copy what a sharded twin has learnt into the model, whole; all processes call it."""
    learnt = moving(network)
    for name, tensor in moving(model).items():
        tensor.copy_(whole(learnt[name]))
