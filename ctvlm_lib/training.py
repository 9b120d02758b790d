"""The one training loop: warm-up and decay, clipping, checkpoints that resume bit for bit, one process or several.

What is trained is told by one function, ``loss_of(model, step)``. Everything random in it comes from the step
(``step.rng("batch")``), so a run that was killed and resumed gives the same curve as one that was not. Under
``accelerate launch`` each process calls the same function and takes its share of the batch (``step.mine(batch)``).

The curve doesn't depend on the number of processes, to float32's rounding: sums are taken in another order, 1e-6 of
the loss at first, and a thousand steps on as far apart as two runs with rounding errors go. It takes losses that are
means over things of which each member of the batch has one, or are weighted by how many it has (``step.weight``).

Source: nnU-Net's trainer for SGD with momentum .99, Nesterov's, and the polynomial with exponent .9.
"""

import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator

from ctvlm_lib import training_checkpoint as checkpoint
from ctvlm_lib import training_processes as processes
from ctvlm_lib.errors import BadInput
from ctvlm_lib.notebook_progress import duration
from ctvlm_lib.training_norms import over_all_processes

Curve = list[dict[str, float]]
RESERVED = ("step", "lr", "loss", "gradient", "seconds")
ADAMW, SGD = OPTIMIZERS = ("AdamW", "SGD")
COSINE, POLYNOMIAL = SCHEDULES = ("cosine", "polynomial")
MOMENTUM, EXPONENT = 0.99, 0.9  # nnU-Net's


@dataclass(frozen=True)
class Training:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        lr: largest learning rate, reached after the warm-up; from there it falls to 0.
        warmup_share: of the steps, 0…1, in which the rate rises linearly.
        weight_decay: the optimiser's, of weights with two or more dimensions; never of biases and norms.
        betas: AdamW's.
        clip: largest norm of the gradient; 0 doesn't clip.
        precision: "no" (float32) or "bf16" (autocast, where the hardware computes in it, see :func:`computes_bf16`).
        accumulate: parts that a step's batch is computed in, one after the other.
        checkpoint_every: steps between checkpoints, where a folder is given.
        seed: of everything random.
        rates: (start of a parameter's name, factor) pairs: such parameters learn at the rate times the factor.
        optimizer: "AdamW"; or "SGD" as nnU-Net's, with Nesterov's momentum of .99 and weight decay in the gradient.
        schedule: how the rate falls: "cosine", half of one; or "polynomial", nnU-Net's (1 − share of the steps)^0.9,
            which here falls at each step, there once in 250.
    """

    steps: int
    lr: float
    warmup_share: float = 0.08
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    precision: str = "no"
    accumulate: int = 1
    checkpoint_every: int = 200
    seed: int = 0
    rates: tuple[tuple[str, float], ...] = ()
    optimizer: str = ADAMW
    schedule: str = COSINE

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be a whole number from 1, got {getattr(self, name)}")
        if not self.lr > 0 or not 0 <= self.warmup_share <= 1 or self.clip < 0 or self.weight_decay < 0:
            raise BadInput(
                f"lr must be positive, warmup_share 0…1, clip and weight_decay not negative; got lr {self.lr:g},"
                f" warmup_share {self.warmup_share:g}, clip {self.clip:g}, weight_decay {self.weight_decay:g}"
            )
        if any(not factor > 0 for _, factor in self.rates):
            raise BadInput(f"a factor of a rate must be positive, got {self.rates}; what shall not learn is frozen")
        if self.precision not in ("no", "bf16"):
            raise BadInput(f"precision must be 'no' or 'bf16', got {self.precision!r}")
        for name, there in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in there:
                raise BadInput(f"{name} is {getattr(self, name)!r}; choose {' or '.join(map(repr, there))}")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = round(self.warmup_share * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        behind, left = step - warmup, max(1, self.steps - warmup)
        if self.schedule == POLYNOMIAL:
            return self.lr * (1 - behind / left) ** EXPONENT
        return self.lr * 0.5 * (1 + math.cos(math.pi * behind / left))


@dataclass(frozen=True)
class Step:
    """Where training is, and which share of the step's batch is this call's.

    Attributes:
        number: of the step, from 0.
        seed: of the run.
        rank, world: this process among all.
        part, parts: this call among those whose gradients add up to the step's.
        taken: what was asked of it: SHARE, and the purposes of random numbers of this call's own.
    """

    SHARE: ClassVar[str] = "share of the batch"

    number: int
    seed: int
    rank: int = 0
    world: int = 1
    part: int = 0
    parts: int = 1
    taken: set[str] = field(default_factory=set, compare=False, repr=False)

    def rng(self, purpose: str = "") -> np.random.Generator:
        """Random numbers for a purpose, the same in every process: draw the whole batch, then take ``mine``."""
        return np.random.default_rng([self.seed, self.number, zlib.crc32(purpose.encode())])

    def own_rng(self, purpose: str) -> np.random.Generator:
        """Random numbers of this call alone. A training that asks for them isn't the same in several processes."""
        self.taken.add(purpose)
        return self.rng(f"{purpose} {self.rank} {self.part}")

    def mine(self, batch: Sequence) -> Sequence:
        """This call's share of a batch that every process has drawn alike; the shares are equally large.

        Raises:
            BadInput: the batch can't be divided.
        """
        self.taken.add(self.SHARE)
        shares = self.world * self.parts
        if len(batch) % shares:
            raise BadInput(
                f"a batch of {len(batch)} can't be shared by {self.world} processes in {self.parts} parts;"
                f" choose a multiple of {shares}"
            )
        size = len(batch) // shares
        start = (self.part * self.world + self.rank) * size
        return batch[start : start + size]

    def weight(self, batch: Sequence, count: Callable[..., int]) -> float:
        """What a mean over this call's share is multiplied by, so that the mean over calls is that over the batch.

        Args:
            batch: whole, as for ``mine``.
            count: how many things of a member of the batch the mean is over, e.g. its answer's tokens.

        Returns:
            1 where one call has the whole batch; 0 where nobody has anything.
        """
        if self.world * self.parts == 1:
            return 1.0
        everyone, own = (sum(map(count, members)) for members in (batch, self.mine(batch)))
        return self.world * self.parts * own / everyone if everyone else 0.0


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them emulates it, 30 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def train(
    model: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, Step], torch.Tensor | dict[str, torch.Tensor]],
    settings: Training,
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
    stop: Callable[[dict[str, float]], bool] | None = None,
) -> Curve:
    """Train what is trainable in ``model``; what needs no gradient stays as it is, running statistics included.

    Args:
        model: trained in place, on the device that accelerate chooses; left in evaluation mode. Under FSDP it stays
            where it is, whole, and gets what its parts have learnt at the end.
        loss_of: (model, step) → the loss of this call's share, a mean over it; or its parts by name, already weighted,
            whose sum is minimised.
        settings: how.
        folder: for checkpoints; one that lies there is taken up, a finished one is only loaded.
        on_step: called in the first process with each row of the curve.
        progress: print a line now and then, with an estimate of the time left.
        stop: called with each row; True ends training after it.

    Returns:
        One row a step: step (from 1), lr, loss, its parts, the gradient's norm, seconds since the start.

    Raises:
        BadInput: nothing to train, a loss that isn't finite, a checkpoint of other settings or another model, or what
            several processes can't train, see :mod:`ctvlm_lib.training_processes`.
        RuntimeError: a frozen tensor changed.
    """
    accelerator = processes.begin()
    main, sharded = accelerator.is_main_process, processes.is_sharded(accelerator)
    if sharded and stop:
        raise BadInput("stopping early looks at the whole model, which FSDP takes apart; launch with ddp.yaml")
    if settings.precision == "bf16" and not computes_bf16(accelerator.device):
        settings = replace(settings, precision="no")
        if progress and main:
            print(f"training in float32: this {accelerator.device.type.upper()} has no instructions for bfloat16")
    frozen = checkpoint.frozen_hash(model)
    network = processes.twin(model) if sharded else model
    wrapped, optimizer = accelerator.prepare(_Loss(network, loss_of), _optimizer(network, settings))
    curve = checkpoint.resume(network, optimizer, settings, folder)
    processes.check_resumed(len(curve))
    says = _Progress(settings.steps, progress and main)
    begun, first = time.monotonic() - (curve[-1]["seconds"] if curve else 0.0), len(curve)
    with torch.random.fork_rng(), over_all_processes(network, accelerator.num_processes):
        while len(curve) < settings.steps and not (curve and curve[-1].get("stopped")):
            row, step = _one_step(accelerator, wrapped, optimizer, settings, len(curve))
            if len(curve) == first and (differs := processes.check_shared(step)) and progress and main:
                print(differs)
            row["seconds"] = round(time.monotonic() - begun, 3)
            curve.append(row)
            if main and on_step:
                on_step(row)
            if stop and any(processes.of_all(bool(stop(row)))):
                row["stopped"] = 1.0
            last = len(curve) == settings.steps or "stopped" in row
            if folder and (last or len(curve) % settings.checkpoint_every == 0):
                if main or sharded:
                    checkpoint.save(network, optimizer, settings, folder, curve, write=main)
                accelerator.wait_for_everyone()
            says.step(row)
    if checkpoint.frozen_hash(network) != frozen:
        raise RuntimeError("a frozen tensor changed in training: something writes to it besides the optimiser")
    if sharded:
        processes.bring_home(network, model)
    model.eval()
    return curve


class _Loss(torch.nn.Module):
    """The loss as a module of its own, so that whatever wraps a model for several processes wraps all of it."""

    def __init__(self, model: torch.nn.Module, loss_of: Callable):
        super().__init__()
        self.model, self._loss_of = model, loss_of
        self._asleep = [m for m in model.modules() if checkpoint.is_frozen(m)]

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        self.model.train()
        for module in self._asleep:  # in training mode a frozen BatchNorm would still move its statistics
            module.eval()
        loss = self._loss_of(self.model, step)
        return loss if isinstance(loss, dict) else {"loss": loss}


def _one_step(accelerator: Accelerator, wrapped, optimizer, settings: Training, number: int) -> tuple[dict, Step]:
    """Gradients of all parts, one update; the row of the curve holds means over parts and processes.

    Gradients are exchanged after every part: one that only an earlier part has would stay each process' own otherwise.
    """
    for group in optimizer.param_groups:
        group["lr"] = settings.lr_at(number) * group["factor"]
    total: dict[str, torch.Tensor] = {}
    step = Step(number, settings.seed, accelerator.process_index, accelerator.num_processes, parts=settings.accumulate)
    for part in range(settings.accumulate):
        step = replace(step, part=part)
        torch.manual_seed(int(step.rng(f"dropout {step.rank} {part}").integers(2**62)))
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            before = processes.random_state(accelerator)
            parts = wrapped(step)
            if processes.random_state(accelerator) != before:
                step.taken.add("dropout")
        _check_names(parts)
        accelerator.backward(sum(parts.values()) / settings.accumulate)
        for name, value in parts.items():
            total[name] = total.get(name, 0.0) + value.detach().float() / settings.accumulate
    means = processes.means_of_all(total)
    _check_finite(means, number, settings)
    limit = settings.clip or math.inf
    norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), limit))
    _check_finite({"gradient": norm}, number, settings)
    optimizer.step()
    optimizer.zero_grad()
    named = {} if set(means) == {"loss"} else means
    row = {"step": number + 1, "lr": settings.lr_at(number), "loss": sum(means.values()), **named, "gradient": norm}
    return row, step


def _check_names(parts: dict[str, torch.Tensor]) -> None:
    if not parts or (set(parts) != {"loss"} and set(parts) & set(RESERVED)):
        raise BadInput(f"the loss has the parts {sorted(parts)}; give at least one, and none called {RESERVED}")


def _check_finite(values: dict[str, float], number: int, settings: Training) -> None:
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        told = ", ".join(f"{name!r} is {value}" for name, value in wrong.items())
        raise BadInput(
            f"training stopped at step {number + 1} of {settings.steps}: {told}; look at that step's batch, or lower"
            f" the learning rate of {settings.lr:g}. Nothing of this step was kept"
        )


def _optimizer(model: torch.nn.Module, settings: Training) -> torch.optim.Optimizer:
    groups = _groups(model, settings)
    if settings.optimizer == SGD:
        return torch.optim.SGD(groups, lr=settings.lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def _groups(model: torch.nn.Module, settings: Training) -> list[dict]:
    """Groups of trainable parameters: weights, which decay, and vectors, which don't, for each factor of the rate."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise BadInput("nothing in the model is trainable; set requires_grad on what shall be trained")
    if lost := [start for start, _ in settings.rates if not any(name.startswith(start) for name, _ in trainable)]:
        raise BadInput(f"no trainable parameter's name begins with {lost[0]!r}, which has a rate of its own")
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, p in trainable:
        factor = next((factor for start, factor in settings.rates if name.startswith(start)), 1.0)
        groups.setdefault((factor, p.ndim > 1), []).append(p)
    return [
        {"params": params, "weight_decay": settings.weight_decay if decays else 0.0, "factor": factor}
        for (factor, decays), params in sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    ]


class _Progress:
    """``step 120/780 · loss 3.214 · 52 s (about 4 min 46 s left)``: renewed on a terminal, ten lines in a log."""

    def __init__(self, steps: int, wanted: bool):
        self._steps, self._wanted, self._terminal = steps, wanted, sys.stdout.isatty()
        self._first: tuple[int, float] | None = None
        self._shown = 0.0

    def step(self, row: dict[str, float]) -> None:
        done, seconds = int(row["step"]), row["seconds"]
        self._first = self._first or (done, seconds)
        last = done == self._steps or "stopped" in row
        tenth = done * 10 // self._steps > (done - 1) * 10 // self._steps
        due = seconds - self._shown > 0.5 if self._terminal else tenth
        if not self._wanted or not (due or last):
            return
        self._shown = seconds
        pace = (seconds - self._first[1]) / max(1, done - self._first[0])
        left = "" if last or done == self._first[0] else f" (about {duration(pace * (self._steps - done))} left)"
        line = f"step {done}/{self._steps} · loss {row['loss']:.3f} · {duration(seconds)}{left}"
        sys.stdout.write(f"\r{line}\x1b[K" + "\n" * last if self._terminal else f"{line}\n")
        sys.stdout.flush()
