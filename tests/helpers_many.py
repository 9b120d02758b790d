"""What the tests of several processes train: small trainings by name, run alone or by one of two processes."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Step, Training, train

SETTINGS = Training(steps=4, lr=3e-3, checkpoint_every=2)


class Stopped(Exception):
    """Stands for a kill between two checkpoints."""


def contrastive(loss: str) -> Callable:
    """A DCFormer, which has BatchNorms, on phantoms and vectors of reports, two of them the same."""

    def run(**how):
        from ctvlm_lib.alignment.heads import Aligned
        from ctvlm_lib.alignment.objectives import Objective, pairings_for
        from ctvlm_lib.alignment.pretrain import encoder_widths
        from ctvlm_lib.encoder import dcformer

        scans = small_cohort().scans
        scans = replace(scans, reports=(scans.reports[1], *scans.reports[1:]))
        encoder = dcformer("phantom", seed=0)
        widths = encoder_widths(encoder, scans.hu.shape[1:])
        model = Aligned(encoder, pairings_for("report", *widths, 24, 16, 4, loss=loss, seed=0))
        return model, train(model, Objective(scans, vectors(8, 24), batch=4), SETTINGS, **how)

    return run


def local_global(**how):
    """MedVista3D's four losses, with a bank that has turned over once by the end."""
    from ctvlm_lib.alignment.grounded import Texts
    from ctvlm_lib.alignment.local_global_training import Recipe, fit

    one = vectors(8, 24)
    regions = vectors(80, 24).view(8, 10, 24)
    texts = Texts(one, one.flip(0), regions, regions.flip(0), torch.arange(80).view(8, 10))
    pictures = vectors(8 * 512, 64).view(8, 512, 64)
    recipe = Recipe(bank=50, batch=4, training=SETTINGS)
    return fit(recipe, small_cohort(), texts, pictures, **how)[:2]


def finetuning(**changes) -> Callable:
    """LoRA behind a projector's stage; the answers are of unlike lengths, and one picture's is a report."""

    def run(**how):
        from helpers_finetune import lessons, school

        from ctvlm_lib.vlm.finetune import Finetuning, finetune
        from ctvlm_lib.vlm.lessons import Lessons

        model, processor, _, kept = school(count=6)
        taught = lessons(6)
        long = replace(taught[2].records[2], kind="report", answer="a mass in the liver and the spleen " * 2)
        taught[2] = replace(taught[2], records=(long,))
        plan = Finetuning(projector_steps=2, lora_steps=4, pictures=4, words=60, rank=2, alpha=4, dropout=0.0,
                          checkpoint_every=2)  # fmt: skip
        curves = finetune(model, Lessons(processor, taught), kept, replace(plan, **changes), **how)
        return model, [row for curve in curves.values() for row in curve]

    return run


def heads(**how):
    """Two heads, of which each part of a step asks another; only the last quarter of a batch has a second loss."""
    model = stack()

    def loss(network, step: Step):
        head, number = network[step.part], np.asarray(step.mine(range(8)))
        batch = torch.from_numpy(step.rng("batch").normal(size=(8, 4))).float()[number]
        parts = {"first": head(batch).square().mean()}
        if (last := number >= 6).any():
            weight = step.weight(range(8), lambda n: int(n >= 6))
            parts["second"] = head(batch[last]).sub(1).square().mean() * weight
        return parts

    return model, train(model, loss, replace(SETTINGS, accumulate=2), **how)


def norms(
    frozen: bool = True, settings: Training = SETTINGS, ends_at: int = -1, size: int = 8, writes: bool = False, **how
):
    """A frozen layer, a BatchNorm and one that learns; may end with an error, or count in the frozen layer's buffer."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.GELU(), nn.Linear(7, 1))
    model[0].requires_grad_(not frozen)
    model[0].register_buffer("count", torch.zeros(1), persistent=False)

    def loss(network, step: Step):
        if step.number == ends_at:
            raise Stopped
        if writes:
            network[0].count.add_(1)
        x = torch.from_numpy(step.mine(step.rng("batch").normal(size=(size, 5)))).float()
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    return model, train(model, loss, settings, **how)


def dropping(**how):
    """A training with dropout, and with random numbers of each share."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(network, step: Step):
        x = torch.from_numpy(step.mine(step.own_rng("patch").normal(size=(8, 4)))).float()
        return network(x).square().mean()

    return model, train(model, loss, replace(SETTINGS, steps=1), **how)


def unshared(**how):
    """A training that computes the same in every process."""
    model = nn.Linear(3, 1)
    return model, train(model, lambda network, step: network(torch.ones(2, 3)).mean(), SETTINGS, **how)


EQUAL = {
    "SigLIP": contrastive("siglip"),
    "CLIP": contrastive("clip"),
    "local and global": local_global,
    "LoRA": finetuning(),
    "LoRA, focal": finetuning(focal_gamma=2.0, l2=1e-3),
    "all weights": finetuning(from_scratch=True),
    "heads": heads,
    "norms": norms,
}
REFUSED = {"odd batch": lambda **how: norms(size=5, **how), "unshared": unshared}


def small_cohort():
    from ctvlm_lib.alignment.grounded import Grounded
    from ctvlm_lib.records import phantom

    return Grounded.of(phantom.cohort(8, seed=5))


def vectors(count: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, width))).float()


def stack() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2))


def bits(model: nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def join(rank: int, port: int) -> None:
    """Make this process one of two, as ``accelerate launch`` does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # fmt: skip
    torch.set_num_threads(1)


def trial_worker(rank: int, port: int, folder: str) -> None:
    """One of two processes of the trial."""
    from ctvlm_lib.launch import trial

    join(rank, port)
    trial.run(folder)
    torch.distributed.barrier()
    os._exit(0)  # as below


def worker(rank: int, port: int, folder: str) -> None:
    """One of two processes: train everything, say what came out; at the end once more with every tensor shared out."""
    join(rank, port)
    found = {}
    for name, run in EQUAL.items():
        model, curve = run(progress=False)
        found[name] = {"curve": curve, "bits": bits(model)}
    for name, run in REFUSED.items():
        found[name] = refusal(run)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        dropping(progress=True)
    found["dropping"] = said.getvalue()
    found["frozen"] = changed_while_frozen()
    found["FSDP on CPUs"] = with_environment({"ACCELERATE_USE_FSDP": "true"}, lambda: refusal(norms))
    found["DeepSpeed"] = with_environment({"ACCELERATE_USE_DEEPSPEED": "true"}, lambda: refusal(norms))
    found |= shared_out(Path(folder))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    os._exit(0)  # at an ordinary end gloo's threads now and then abort the process after its work is done


def shared_out(folder: Path) -> dict:
    """FSDP2 on CPUs. accelerate knows it on GPUs only, so it is told that there are some; torch's part is real."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    AcceleratorState._reset_state()
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
             "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}  # fmt: skip
    found = {}

    def all_of_it() -> None:
        for name in ("norms", "LoRA"):
            model, curve = EQUAL[name](progress=False)
            found[f"{name}, shared out"] = {"curve": curve, "bits": bits(model)}
        with contextlib.suppress(Stopped):
            norms(ends_at=3, folder=folder / "shared", progress=False)
        model, curve = norms(folder=folder / "shared", progress=False)
        found["resumed, shared out"] = {"curve": curve, "bits": bits(model)}
        with contextlib.suppress(Stopped):
            norms(ends_at=3, folder=folder / "half", progress=False)  # one process will go on from here
        found["a temperature"] = refusal(EQUAL["SigLIP"])
        found["stop"] = refusal(lambda **how: norms(stop=bool, **how))
        found["frozen, shared out"] = changed_while_frozen()

    with_environment(asked, all_of_it)
    return found


def with_environment(values: dict[str, str], run: Callable):
    """What a function returns while variables are set."""
    os.environ |= values
    try:
        return run()
    finally:
        for name in values:
            del os.environ[name]


def changed_while_frozen() -> str:
    """What a training ends with whose loss writes to a frozen layer; "" if nobody noticed.

    Under FSDP a parameter is whole for the time of a loss only, so that what is written to it is lost; a buffer stays.
    """
    try:
        norms(writes=True, progress=False)
    except RuntimeError as error:
        return str(error)
    return ""


def refusal(run: Callable) -> str:
    """The sentence with which a training is refused; "" if it isn't."""
    try:
        run(progress=False)
    except BadInput as error:
        return str(error)
    return ""
