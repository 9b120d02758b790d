"""Local–global pretraining on volumes that are read from disk a step ahead, whose number memory doesn't depend on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment import m3d_cap
from ctvlm_lib.alignment.grounded import NOTHING
from ctvlm_lib.alignment.local_global_saving import save
from ctvlm_lib.alignment.local_global_step import Shown, losses, sources
from ctvlm_lib.alignment.local_global_training import LocalGlobal, Recipe
from ctvlm_lib.alignment.radgenome_pairs import Pairs
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome
from ctvlm_lib.alignment.radgenome_volumes import Prepared, Volumes
from ctvlm_lib.alignment.text_vectors import TextVectors
from ctvlm_lib.encoder.dual_pathway import boxed_masks, pooled_masks
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Curve, Step, Training, train

__all__ = ["Corpus", "StreamedObjective", "build", "fit", "read", "region_masks", "save", "texts_of"]


def texts_of(pairs: Iterable[Pairs]) -> Iterator[str]:
    """All that is said of the volumes of some splits."""
    for one in (pair for some in pairs for pair in some.each):
        yield from (one.report, one.enriched_report)
        yield from (text for text in (*one.sentences, *one.enriched) if text != NOTHING)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A split's volumes on disk, its texts on disk, and which belong together.

    Attributes:
        pairs, volumes, texts: of it.
        rows: name of a source → rows of ``texts``: ``(n,)`` of reports, ``(n, R)`` of regions, 0 where nothing is said.
        told: bool ``(n, R)``: the region has a sentence and a mask.
        notes: regions that turned out not to be there, a sentence each; those of the volumes that were read so far.
    """

    pairs: Pairs
    volumes: Volumes
    texts: TextVectors
    rows: dict[str, np.ndarray]
    told: np.ndarray
    notes: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, pairs: Pairs, volumes: Volumes, texts: TextVectors) -> "Corpus":
        """Put together; the texts must be among those that have vectors."""
        number = {**texts.number, NOTHING: 0}
        rows = {
            "report": np.array([number[p.report] for p in pairs.each]),
            "enriched_report": np.array([number[p.enriched_report] for p in pairs.each]),
            "region": np.array([[number[text] for text in p.sentences] for p in pairs.each]),
            "enriched_region": np.array([[number[text] for text in p.enriched] for p in pairs.each]),
        }
        return cls(pairs, volumes, texts, rows, pairs.told)

    def __len__(self) -> int:
        return len(self.pairs)

    def item(self, number: int) -> Prepared:
        """A volume with its regions.

        Raises:
            BadInput: it can't be read.
        """
        found = self.volumes.item(self.pairs.each[number])
        self.notes.update(found.notes)
        return found

    def counts(self) -> np.ndarray:
        """How often each text occurs, ``(texts,)``; what isn't said doesn't count."""
        every = [rows if rows.ndim == 1 else rows[self.said] for rows in self.rows.values()]
        return np.bincount(np.concatenate(every), minlength=len(self.texts.number)).astype(np.float64)

    @property
    def said(self) -> np.ndarray:
        """bool ``(n, R)``: the region has a sentence."""
        return np.array([[text != NOTHING for text in pair.sentences] for pair in self.pairs.each], bool)


class PairLoader(m3d_cap.Loader):
    """Reads a step's volumes with their regions in threads, and those of the next step while this one is computed."""

    def __init__(self, corpus: Corpus, batch: int, workers: int = 8):
        super().__init__(corpus, batch, "none", workers)
        self._shares: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, step: Step) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        """Which volumes this call's share is, float32 ``(b, 1, D, H, W)``, and ``(b, R, tokens)``, shares 0…1."""
        index, pictures = super().__call__(step)
        places = step.mine(np.arange(self._batch))
        share = np.stack([self._shares.pop((step.number, int(place))) for place in places])
        return index, pictures, torch.from_numpy(share)

    def _one(self, number: int, step: Step, place: int) -> np.ndarray:
        item = self._data.item(number)
        self._shares[step.number, int(place)] = item.share()
        return item.volume.astype(np.float32)


@dataclass(eq=False)
class StreamedObjective:
    """The losses of a recipe on volumes that a loader reads, a function of model and step.

    Attributes:
        recipe: what is minimised. corpus: the training volumes. loader: reads them.
        looked_up: see :func:`ctvlm_lib.alignment.local_global_step.losses`.
    """

    recipe: Recipe
    corpus: Corpus
    loader: PairLoader
    looked_up: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, model: LocalGlobal, step: Step) -> dict[str, torch.Tensor]:
        """The weighted parts of the loss of this call's share of the step."""
        index, pictures, share = self.loader(step)
        device, corpus = next(model.parameters()).device, self.corpus
        masks = region_masks(share.to(device), model.encoder.grids(model.encoder.config.size_dhw_vox)[0], self.recipe)
        if not any(part.startswith("local") for part in self.recipe.parts):
            masks = torch.zeros_like(masks)  # no region is asked for, so none is computed
        shown = Shown(
            torch.from_numpy(index).to(device), pictures.to(device), masks,
            torch.from_numpy(corpus.told[index]).to(device) & masks.any(dim=-1),
            {name: corpus.texts.at(corpus.rows[name][index]).to(device) for name in sources(self.recipe.parts)},
            torch.from_numpy(corpus.rows["enriched_region"][index]).to(device) if self.recipe.same_text else None,
        )  # fmt: skip
        return losses(model, shown, self.recipe, self.looked_up)


def region_masks(share: torch.Tensor, grid: tuple[int, int, int], recipe: Recipe) -> torch.Tensor:
    """bool ``(b, R, tokens)``: what a recipe takes for each region.

    Args:
        share: ``(b, R, tokens)``: of each token's voxels those in each region. grid: (D, H, W) of the tokens.
    """
    masks = pooled_masks(share, recipe.threshold)
    return boxed_masks(masks, grid) if recipe.pooling == "box" else masks


def build(config: OnRadGenome, channels: int) -> LocalGlobal:
    """The model before training, random from the recipe's seed; ``channels`` of a text's vector."""
    return LocalGlobal(config.build_encoder(), channels, config.recipe)


def fit(
    config: OnRadGenome,
    corpus: Corpus,
    *,
    folder: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> tuple[LocalGlobal, Curve, dict]:
    """Train on a corpus.

    Args:
        config: of :meth:`OnRadGenome.for_volumes`, which sets the steps.
        corpus: the training volumes.
        folder, on_step, progress: see :func:`ctvlm_lib.training.train`.

    Returns:
        The model, its curve, and with a bank ``own_text_share``, as :func:`local_global_training.fit` has it.

    Raises:
        BadInput: a volume that can't be read, or settings that don't go together.
    """
    model = build(config, corpus.texts.channels)
    centre, scale = corpus.texts.centre_and_scale(corpus.counts())
    model.pairing.centre.copy_(centre), model.pairing.scale.copy_(scale)
    with PairLoader(corpus, config.recipe.batch, config.workers) as loader:
        objective = StreamedObjective(config.recipe, corpus, loader)
        curve = train(model, objective, config.recipe.training, folder=folder, on_step=on_step, progress=progress)
    own, asked = (sum(counts) for counts in zip((0, 0), *objective.looked_up, strict=True))
    return model, curve, {"own_text_share": own / asked} if asked else {}


def read(folder: str | Path) -> tuple[LocalGlobal, OnRadGenome]:
    """Read a trained model, frozen and in evaluation mode, and what it was trained by.

    Args:
        folder: of the checkpoint, whose record has the configuration under "on_radgenome".

    Raises:
        BadInput: no such checkpoint, or one of another kind.
    """
    folder = Path(folder)
    tensors, record = checkpoints.load(folder.name, folder.parent)
    if "on_radgenome" not in record:
        raise BadInput(f"the checkpoint {folder.name} wasn't trained on RadGenome-ChestCT; give one that was")
    kept = dict(record["on_radgenome"])
    recipe = dict(kept.pop("recipe"))
    training = {name: tuple(v) if isinstance(v, list) else v for name, v in recipe.pop("training").items()}
    recipe = Recipe(**recipe | {"parts": tuple(recipe["parts"]), "bank": 0, "training": Training(**training)})
    config = OnRadGenome(recipe, **kept | {"regions": tuple(kept["regions"])})
    model = build(config, record["text_width"])
    aligned.check_tensors(tensors, model.state_dict(), folder.name)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), config
