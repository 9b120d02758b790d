"""Pretraining on M3D-Cap: Med3DVLM's first stage, and retrieval on the test split as in its tables 1 and 5.

On purpose other than in the released code: equal reports are positives of each other (M3D-Cap has 2.8 volumes a text,
and the released loss calls all but one of them wrong), the logits of (image i, text j) and (image j, text i) are not
averaged, and one process minimises the same loss as several. A batch's statistics are each process' own, as there.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ctvlm_lib.alignment.m3d_cap import Captioned, Corpus, Loader, read
from ctvlm_lib.alignment.two_towers import TwoTowers, build_two_towers, fitting, load_two_towers
from ctvlm_lib.encoder import dcformer, vit3d
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate import retrieval
from ctvlm_lib.training import Curve, Step, train

if TYPE_CHECKING:
    from ctvlm_lib.alignment.recipe import Pretraining

GALLERIES = (100, 500, 1000, 2000)  # of the published tables
COUNTED = ("equal texts", "own text")


@dataclass(eq=False)
class CaptionObjective:
    """The loss of volumes against their reports; equal reports are positives of each other, also across cases.

    Attributes:
        data: the training volumes.
        loader: reads them.
    """

    data: Captioned
    loader: Loader

    def __post_init__(self) -> None:
        self._identity = torch.from_numpy(self.data.identity)

    def __call__(self, model: TwoTowers, step: Step) -> dict[str, torch.Tensor]:
        """The loss of this call's share of the step's batch."""
        index, volumes = self.loader(step)
        device = next(model.parameters()).device
        reports = [
            fitting(self.data.reports[k], model.tokenizer, model.limit, step.rng(f"sentences {k}")) for k in index
        ]
        vectors = model(volumes.to(device))[1]
        identity = self._identity[index].to(device)
        return {"report": model.pairings["report"].pairs(vectors, model.text_vectors(reports), identity)}


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What a model said about a split: float16 ``(n, width)`` images, texts; int32 ``(n,)``: which texts are equal."""

    image: np.ndarray
    text: np.ndarray
    identity: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Write as safetensors."""
        with atomic_path(path) as partial:
            save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, partial)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Retrieved":
        """Read what :meth:`save` wrote.

        Raises:
            BadInput: not such a file.
        """
        try:
            return cls(**load_file(path))
        except (OSError, TypeError, SafetensorError) as error:
            raise BadInput(f"{Path(path).name} can't be read as predictions ({error}); score the arm again") from error

    def recalls(self, counted: str = "equal texts", resamples: int = 2000) -> list[retrieval.Recall]:
        """Recall in both directions at the published galleries that fit; if none does, among all.

        Args:
            counted: as a hit, "equal texts" or, as published, only the volume's "own text".
            resamples: of the intervals.
        """
        if counted not in COUNTED:
            raise BadInput(f"counted is {counted!r}; choose one of {', '.join(COUNTED)}")
        texts = [str(k) for k in (self.identity if counted == "equal texts" else range(len(self.image)))]
        similarity = self.image.astype(np.float32) @ self.text.astype(np.float32).T
        sizes = [size for size in GALLERIES if size <= len(texts)] or [len(texts)]
        return retrieval.recalls(similarity, texts, sizes, resamples=resamples)

    def table(self, **columns):
        """The recalls, counted both ways, as a pandas table."""
        import pandas as pd

        each = [retrieval.as_table(self.recalls(counted), **columns, counted=counted) for counted in COUNTED]
        return pd.concat(each, ignore_index=True)


def build_for(config: "Pretraining") -> TwoTowers:
    """The model that training starts from: random projections and encoder, or all of what ``start`` names."""
    corpus, seed = config.corpus, config.training.seed
    size = {} if config.encoder == "dcformer" else {"size_dhw_vox": corpus.size_dhw_vox}
    if config.start:
        names = {"encoder": config.encoder, "variant": corpus.variant, "profile": config.profile}
        text = "" if config.text == "clinicalbert" else config.text
        model = load_two_towers(config.start, text, **names, **size).model.requires_grad_(True)
        model.text.requires_grad_(corpus.train_text)
        if model.pairings["report"].loss != config.loss:
            raise BadInput(f"{config.start} was trained with another loss than {config.loss!r}; choose the one it has")
        return model
    if config.encoder == "dcformer":
        encoder = dcformer(corpus.variant, seed=seed)
    else:
        encoder = vit3d(corpus.variant, seed=seed, **size)
    pairing = {"loss": config.loss, "init": config.init, "rivals": config.batch, "seed": seed}
    return build_two_towers(encoder, config.text, width=config.width, train_text=corpus.train_text, **pairing)


def pretrain_captions(
    config: "Pretraining",
    data: dict[str, Captioned],
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> tuple[TwoTowers, Curve]:
    """Train both towers on volumes that are read from disk as they are needed.

    Args:
        config: with a corpus, and a training of :func:`steps_of` steps.
        data: of :func:`ctvlm_lib.alignment.m3d_cap.read`.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: a volume that can't be read, a batch larger than the training split, nothing to train or to score.
    """
    model, corpus = build_for(config), config.corpus
    if not corpus.epochs:
        return model.requires_grad_(False).eval(), []
    with Loader(data["train"], config.batch, corpus.augment, corpus.workers) as loader:
        objective = CaptionObjective(data["train"], loader)
        return model, train(model, objective, config.training, folder=folder, on_step=on_step, progress=progress)


def steps_of(corpus: Corpus, volumes: int, batch: int) -> int:
    """Optimiser steps: epochs × whole batches of an epoch."""
    return corpus.epochs * (volumes // batch)


@torch.inference_mode()
def predict_captions(model: TwoTowers, data: Captioned, batch: int = 8, workers: int = 8) -> Retrieved:
    """Let a model look at a split, volume by volume from disk; texts too long are cut at their end."""
    from concurrent.futures import ThreadPoolExecutor

    model.eval()
    pairing, device = model.pairings["report"], next(model.parameters()).device
    images, texts, ahead = [], [], {}
    blocks = [range(first, min(first + batch, len(data))) for first in range(0, len(data), batch)]
    with ThreadPoolExecutor(workers) as pool:
        for number, block in enumerate(blocks):
            for some in blocks[number : number + 2]:
                ahead |= {k: pool.submit(data.volume, k) for k in some if k not in ahead}
            volumes = torch.from_numpy(np.stack([ahead.pop(k).result() for k in block]))[:, None]
            images.append(pairing.images(model(volumes.to(device))[1]).cpu())
            texts.append(pairing.texts(model.text_vectors([data.reports[k] for k in block])).cpu())
    half = [torch.cat(some).numpy().astype(np.float16) for some in (images, texts)]
    return Retrieved(*half, data.identity.astype(np.int32))


def caption_record(data: dict[str, Captioned], notes: list[str]) -> dict:
    """What the data were: of each split the volumes, cases, texts and a hash; and what is missing."""
    splits = {
        split: {"volumes": len(some), "cases": len(set(some.cases)), "texts": len(set(some.reports)),
                "sha256": some.digest()}
        for split, some in data.items()
    }  # fmt: skip
    return {"dataset": "M3D-Cap", "splits": splits, "notes": notes}


def config_record(config: "Pretraining") -> dict:
    """The configuration without folders of this machine."""
    plain = asdict(config)
    plain["corpus"]["folder"] = Path(config.corpus.folder).name
    for name in ("start", "text"):
        if Path(plain[name]).is_absolute() or Path(plain[name]).exists():
            plain[name] = Path(plain[name]).name
    return plain


def read_corpus(corpus: Corpus) -> tuple[dict[str, Captioned], list[str]]:
    """As :func:`ctvlm_lib.alignment.m3d_cap.read`; one process prints what there is and what is left out."""
    data, notes = read(corpus)
    if PartialState().is_main_process:
        print(*(f"{split}: {some!r}" for split, some in data.items()), *notes, sep="\n", flush=True)
    return data, notes
