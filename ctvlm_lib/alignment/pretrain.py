"""Pretraining an encoder: what is trained on what, for how long, and what came out of it.

Three objectives: ``report`` (the papers': a volume and its report, nothing else), ``dense`` (supervised by finding and
region masks as well, see :mod:`~ctvlm_lib.alignment.objectives`) and ``prompted`` (``dense`` on volumes with prompts,
from a finished ``dense`` encoder). A continuation of ``dense`` without prompts is ``dense`` with ``start``.

Profile ``paper`` pretrains on reports of the user's copy of M3D-Cap instead of the cohort: a recipe with a ``corpus``.
"""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib.alignment import checkpoints
from ctvlm_lib.alignment.heads import Aligned
from ctvlm_lib.alignment.m3d_cap import Captioned
from ctvlm_lib.alignment.m3d_pretrain import caption_record, config_record, pretrain_captions, read_corpus, steps_of
from ctvlm_lib.alignment.objectives import CAPTIONS, Objective, article, pairings_for, vocabulary
from ctvlm_lib.alignment.prompted import PLACE_CAPTIONS, PromptedObjective, inflate_in_place_of
from ctvlm_lib.alignment.recipe import Pretraining
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.encoder import dcformer, inflate, vit3d
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import phantom, protocol
from ctvlm_lib.run import commit
from ctvlm_lib.training import Curve, train

COLOUR_NOISE = 0.15
AS_PRINTED = {"inner_residual": True}  # eq. (4) with its X, which the released code leaves out


@dataclass(eq=False)
class Data:
    """Cohorts with their reports' vectors, and the captions' vectors."""

    scans: dict[str, Scans]
    reports: dict[str, torch.Tensor]
    captions: dict[str, torch.Tensor]

    @classmethod
    def of(cls, config: Pretraining, splits=("train", "validation"), scans: dict[str, Scans] | None = None) -> "Data":
        """Read the cohort's splits and embed their reports.

        Args:
            config: its profile, number of patients and text tower are used.
            splits: which.
            scans: split → scans, instead of the protocol's cohort.

        Raises:
            BadInput: profile paper without scans, which doesn't train on the cohort; or more patients than there are.
        """
        if config.profile == "paper" and not scans:
            raise BadInput(
                "profile paper pretrains on your copy of M3D-Cap and not on the cohort: run an arm whose name ends in"
                " -m3d with --data DIR (in Python: recipe.paper(name, folder)), or take profile full"
            )
        fixed = protocol.load()
        protocol.check_budget(config.patients, fixed.size("train", "full"))  # the other splits have fewer
        wanted = {split: {"n": min(config.patients, fixed.size(split, "full"))} if config.patients else {}
                  for split in splits}  # fmt: skip
        scans = scans or {split: Scans.of(fixed.patients(split, config.profile, **n)) for split, n in wanted.items()}
        tower = TextTower(config.text, config.profile)
        words = vocabulary() | {"place": list(PLACE_CAPTIONS), "focus": [article(kind) for kind in CAPTIONS]}
        reports = {split: tower.embed(some.reports) for split, some in scans.items()}
        return cls(scans, reports, {name: tower.embed(texts) for name, texts in words.items()})


@dataclass(eq=False)
class Result:
    """What pretraining gave: the model, its curve, the record that is stored beside it, and the data that it saw."""

    model: Aligned
    curve: Curve
    record: dict
    data: Data | dict[str, Captioned] | None = None


def build(config: Pretraining, data: Data) -> Aligned:
    """The model before training: random from the seed, or what ``start`` names, inflated for prompts."""
    if config.start:
        model, record = checkpoints.load(config.start)
        model.requires_grad_(True)
        if config.objective != "report" and "token" not in model.pairings:
            raise BadInput(f"{config.start} was trained on reports alone; {config.objective} goes on from dense")
        if config.objective != "prompted":
            return model
        return _centred(inflate_in_place_of(model, inflate(model.encoder, COLOUR_NOISE, config.training.seed)), data)
    seed = config.training.seed
    encoder = (
        dcformer("phantom", seed=seed, **AS_PRINTED) if config.encoder == "dcformer" else vit3d("phantom", seed=seed)
    )
    fine, low, high = encoder_widths(encoder, next(iter(data.scans.values())).hu.shape[1:])
    text = next(iter(data.reports.values())).shape[1]
    made = pairings_for(config.objective, fine, low, high, text, config.width, config.batch, loss=config.loss,
                        init=config.init, seed=seed)  # fmt: skip
    return _centred(Aligned(encoder, made), data)


def pretrain(
    config: Pretraining,
    data: Data | tuple[dict[str, Captioned], list[str]] | None = None,
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> Result:
    """Train an encoder.

    Args:
        config: what.
        data: cohorts, or of a corpus what :func:`ctvlm_lib.alignment.m3d_cap.read` found; None reads the protocol's
            cohort, or the corpus.
        folder: for checkpoints, from which an interrupted run goes on.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        The model, its curve and a record: config, minutes, hardware in words, what the data were. Scores are
        :func:`ctvlm_lib.alignment.scoring.scores`.

    Raises:
        BadInput: settings that don't go together, a volume that can't be read, or a loss that isn't finite.
    """
    if config.corpus:
        found, notes = data or read_corpus(config.corpus)
        steps = steps_of(config.corpus, len(found["train"]), config.batch)
        config = replace(config, training=replace(config.training, steps=max(1, steps)))
        model, curve = pretrain_captions(config, found, folder=folder, on_step=on_step, progress=progress)
        record = {"config": config_record(config), "data": caption_record(found, notes)} | _cost(curve, config)
        return Result(model, curve, record | {"curve": thinned(curve)}, found)
    data = data or Data.of(config)
    model = build(config, data)
    scans, reports = data.scans["train"], data.reports["train"]
    kind = PromptedObjective if config.objective == "prompted" else Objective
    captions = {} if config.objective == "report" else data.captions
    objective = kind(scans, reports, captions, config.batch, stream=Path(config.start).name)
    curve = train(model, objective, config.training, folder=folder, on_step=on_step, progress=progress)
    record = {"config": asdict(config), "data": data_record(data)} | _cost(curve, config)
    record["curve"] = thinned(curve)
    return Result(model, curve, record, data)


def throughput(config: Pretraining, data: Data, steps: int = 3) -> dict[str, float]:
    """Seconds a step and volumes a second of training, and the process' peak memory in GB, measured here."""
    import psutil

    objective = Objective(data.scans["train"], data.reports["train"],
                          {} if config.objective == "report" else data.captions, config.batch)  # fmt: skip
    model, settings = build(config, data), replace(config.training, steps=steps + 1)
    curve = train(model, objective, settings, progress=False)
    each = (curve[-1]["seconds"] - curve[0]["seconds"]) / steps
    memory = psutil.Process().memory_info()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.rss
    return {"step_s": each, "volumes_per_s": config.batch / each, "memory_gb": peak / 1e9}


def encoder_widths(encoder: torch.nn.Module, size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels of the tokens before the low ones (0 if there are none), of the low tokens, of a volume's vector."""
    with torch.inference_mode():
        tokens, vector = encoder.eval().encode(torch.zeros(1, encoder.config.in_channels, *size))
    return tokens[-3].shape[-1] if len(tokens) > 2 else 0, tokens[-2].shape[-1], vector.shape[-1]


def data_record(data: Data) -> dict:
    """What the data were: protocol, generator, and of each split the number of patients and a hash of their voxels."""
    used = {}
    for split, scans in data.scans.items():
        digest = hashlib.sha256()
        for array in (scans.hu, scans.region, scans.kind):
            digest.update(np.ascontiguousarray(array))
        used[split] = {"patients": len(scans), "sha256": digest.hexdigest()[:16]}
    return {"protocol": protocol.load().content["version"], "generator": phantom.VERSION, "splits": used}


def thinned(curve: Curve, rows: int = 60) -> list[dict]:
    """Every n-th row of a curve and the last, rounded."""
    step = max(1, len(curve) // rows)
    kept = [*curve[step - 1 :: step], *([curve[-1]] if len(curve) % step else [])]
    return [{name: float(f"{value:.5g}") for name, value in row.items()} for row in kept]


def _cost(curve: Curve, config: Pretraining) -> dict:
    seconds = curve[-1]["seconds"] if curve else 0.0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    where = gpu or f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s)"
    return {
        "minutes": round(seconds / 60, 2), "volumes_per_s": round(config.batch * len(curve) / max(seconds, 1e-9), 1),
        "hardware": where, "torch": torch.__version__.split("+")[0], "seed": config.training.seed,
        "profile": config.profile, "commit": commit(),
    }  # fmt: skip


def _centred(model: Aligned, data: Data) -> Aligned:
    """Set what each pairing subtracts from its texts to the mean over its captions, or the training reports."""
    texts = data.captions | {"report": data.reports["train"]}
    for name, pairing in model.pairings.items():
        pairing.centre_on(texts[name])
    return model
