"""The local–global arms: MedVista3D's ablations and rivals, trained on the cohort, asked, and stored.

    global           reports alone: CLIP's and CT-CLIP's objective
    local            regions and their sentences alone: fVLM's
    box              both, a region's tokens being those of its bounding box: "+ Local Alignment" of table 4
    unified          both, with mask pooling: "+ Mask Pooling"
    global-semantic  and enriched reports through the bank: "+ Global Semantic Alignment"
    full             and enriched sentences through the bank: MedVista3D
    full-block1, -block2   pooled before the first or second block instead of the last: table 5
    full-no-bank     enriched texts compared with their images themselves: what the rewriting does alone
    full-balanced, -same-text, -exclude-self   weights of one half each; equal sentences no rivals; no text finds itself

What is stored of a split are scores and places, which every number of the tables follows from.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment.arm_tables import RESULTS, of_seed
from ctvlm_lib.alignment.grounded import LOCAL_LABELS, NOTHING, Grounded, Prompts, Texts, cropped, stem_tokens
from ctvlm_lib.alignment.local_global import PARTS
from ctvlm_lib.alignment.local_global_saving import read, save
from ctvlm_lib.alignment.local_global_training import LocalGlobal, Recipe, fit, tokens_of
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.alignment.text import TextTower
from ctvlm_lib.damaged import load_npz
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate.retrieval import ranks
from ctvlm_lib.experiments.local_global_protocol import FILES, load
from ctvlm_lib.experiments.stored_arms import Splits
from ctvlm_lib.records.committed import recorded
from ctvlm_lib.records.phantom import REGIONS, Patient
from ctvlm_lib.records.report import LABELS
from ctvlm_lib.training import Training
from ctvlm_lib.training_processes import alone

PREFIX = "align-"
SPLITS = ("validation", "test", "external")
_UNIFIED = PARTS[:2]


def _arms() -> dict[str, Recipe]:
    fixed = load()["training"]
    training = Training(steps=fixed["steps"], lr=fixed["lr"])
    base = Recipe(batch=fixed["batch"], bank=fixed["bank"], stem=fixed["stem"], training=training)
    made = {
        "global": {"parts": PARTS[:1]}, "local": {"parts": PARTS[1:2]},
        "box": {"parts": _UNIFIED, "pooling": "box"}, "unified": {"parts": _UNIFIED},
        "global-semantic": {"parts": PARTS[:3]}, "full": {},
        "full-block1": {"pooled_before": 1}, "full-block2": {"pooled_before": 2},
        "full-no-bank": {"bank": 0}, "full-balanced": {"weights": "balanced"},
        "full-same-text": {"same_text": True}, "full-exclude-self": {"exclude_self": True},
    }  # fmt: skip
    return {PREFIX + name: replace(base, **changes) for name, changes in made.items()}


ARMS = _arms()
CROPPED = (f"{PREFIX}global",)  # arms that are asked about regions as the paper asks global models
TABLE_4 = tuple(PREFIX + name for name in ("global", "box", "unified", "global-semantic", "full"))


def described(recipe: Recipe) -> str:
    """A recipe in words: its losses, and what else isn't as in ``align-full``."""
    full = ARMS[f"{PREFIX}full"]
    other = [f.name for f in fields(Recipe) if f.name != "parts" and getattr(recipe, f.name) != getattr(full, f.name)]
    return "; ".join([", ".join(recipe.parts), *(f"{name} {getattr(recipe, name)}" for name in other)])


@dataclass(frozen=True, eq=False)
class Split:
    """A split as an arm is trained or asked on it.

    Attributes:
        cohort: the patients.
        texts: their texts as vectors.
        pictures: the frozen stem's tokens, float16 ``(n, 512, 64)``.
    """

    cohort: Grounded
    texts: Texts
    pictures: torch.Tensor


class World(Splits[Split]):
    """What all local–global arms of a profile share, each part made when it is first asked for."""

    @cached_property
    def tower(self) -> TextTower:
        """MiniLM."""
        return TextTower("minilm", self.profile)

    @cached_property
    def stem(self) -> torch.nn.Module:
        """The frozen encoder whose tokens are the patches."""
        return aligned.load(load()["training"]["stem"])[0].encoder

    @cached_property
    def prompts(self) -> Prompts:
        """The sentences of zero-shot detection."""
        return Prompts.of(self.tower)

    def _made(self, patients: Iterable[Patient]) -> Split:
        cohort = Grounded.of(patients)
        tokens = stem_tokens(self.stem, lambda k: as_input(cohort.scans.hu[k])[:, None], len(cohort))
        return Split(cohort, Texts.of(cohort, self.tower), tokens)


_UNITS = {"volume": 1000, "region": 1000, "cut_out": 1000, "report": 2, "sentence": 2}  # stored as whole numbers
ABSENT = np.iinfo(np.int16).min


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said of a split; NaN where a region isn't in the field.

    Attributes:
        volume: ``(2, n, 18)``: cosine with the affirming and with the denying sentence of each of ``LABELS``.
        region: ``(2, n, 50)``: of each of ``LOCAL_LABELS``, from the region's own vector.
        cut_out: ``(2, n, 50)``: the same from the global vector of the region cut out of the volume; ``(2, 0, 50)`` if
            the arm wasn't asked so.
        report: ``(2, n)``: place, from 0, of each volume's report among all, and of each report's volume.
        sentence: ``(n, 10)``: place of each region's sentence among all different ones.
    """

    volume: np.ndarray
    region: np.ndarray
    cut_out: np.ndarray
    report: np.ndarray
    sentence: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Write as a compressed npz file: cosines in thousandths, places in halves, ABSENT for NaN."""
        whole = {}
        for name, value in vars(self).items():
            scaled = np.rint(value * _UNITS[name])
            whole[name] = np.where(np.isfinite(scaled), scaled, ABSENT).astype(np.int16)
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **whole)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Said":
        """Read what :meth:`save` wrote.

        Raises:
            BadInput: not such a file.
        """
        try:
            stored = load_npz(path)
            whole = {field.name: stored[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{Path(path).name} can't be read as scores ({error}); score the arm again") from None
        return cls(**{k: np.where(v == ABSENT, np.nan, v / _UNITS[k]) for k, v in whole.items()})


@torch.inference_mode()
def ask(model: LocalGlobal, split: Split, prompts: Prompts, recipe: Recipe, stem=None, batch: int = 25) -> Said:
    """Ask a model everything about a split.

    Args:
        model: trained; put into evaluation mode.
        split: whom about.
        prompts: the sentences of detection.
        recipe: how its regions are pooled.
        stem: the frozen encoder, for regions cut out of the volume; None leaves these out.
        batch: volumes at a time.
    """
    model.eval()
    cohort, pairing = split.cohort, model.pairing
    masks, volumes, regions = tokens_of(cohort, model.encoder, recipe), [], []
    for start in range(0, len(cohort), batch):
        some = slice(start, start + batch)
        both = model.images(split.pictures[some].float(), masks[some])
        volumes.append(both[0]), regions.append(both[1])
    volumes, regions = torch.cat(volumes), torch.cat(regions)
    there = torch.from_numpy(cohort.there) & masks.any(dim=-1)
    pairs = [pairing.texts(some).numpy() for some in vars(prompts).values()]
    local = _local(lambda r, of: _cosines(regions[:, r].numpy(), pairs[2][of], pairs[3][of]), there.numpy())
    cut = _cut_out(model, cohort, stem, pairs, there.numpy(), batch) if stem is not None else local[:, :0]
    said = Said(
        _cosines(volumes.numpy(), *pairs[:2]), local, cut,
        _report_places(volumes, pairing.texts(split.texts.report), cohort.scans.reports),
        _sentence_places(regions, pairing.texts(split.texts.region), cohort, there.numpy()),
    )  # fmt: skip
    # as it is stored, so that a table from a file is the same
    return replace(said, **{name: np.round(getattr(said, name), 3) for name in ("volume", "region", "cut_out")})


def _cosines(images: np.ndarray, present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """``(2, n, labels)`` of ``(n, width)`` with both sentences of each label."""
    return np.stack([images @ present.T, images @ absent.T])


def _local(scores: Callable[[int, list[int]], np.ndarray], there: np.ndarray) -> np.ndarray:
    """``(2, n, 50)`` from each region's ``(2, n, kinds)``; NaN where the region isn't there."""
    parts = []
    for r, region in enumerate(REGIONS):
        of = [k for k, (where, _) in enumerate(LOCAL_LABELS) if where == region]
        parts.append(np.where(there[:, [r]], scores(r, of), np.nan))
    return np.concatenate(parts, axis=2)


def _cut_out(model, cohort: Grounded, stem, pairs, there: np.ndarray, batch: int) -> np.ndarray:
    def scores(r: int, of: list[int]) -> np.ndarray:
        who = np.flatnonzero(there[:, r])
        tokens = stem_tokens(stem, lambda k: np.stack([cropped(cohort, who[i], r) for i in k]), len(who), batch)
        vectors = torch.cat([model.volumes(some.float()) for some in tokens.split(batch)])
        found = np.full((2, len(cohort), len(of)), np.nan)
        found[:, who] = _cosines(vectors.numpy(), pairs[2][of], pairs[3][of])
        return found

    return _local(scores, there)


def _report_places(volumes: torch.Tensor, reports: torch.Tensor, texts) -> np.ndarray:
    _, identity = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    alike = (volumes @ reports.mT).numpy()
    return np.stack([ranks(table, identity)[0] for table in (alike, alike.T)])


def _sentence_places(regions: torch.Tensor, sentences: torch.Tensor, cohort: Grounded, there: np.ndarray) -> np.ndarray:
    """Place of each region's own sentence among all different ones of the split."""
    flat = [text for row in cohort.sentences for text in row]
    number = {text: k for k, text in enumerate(dict.fromkeys(text for text in flat if text != NOTHING))}
    first = {text: k for k, text in reversed(list(enumerate(flat)))}
    gallery = sentences.flatten(0, 1)[[first[text] for text in number]]
    alike = (regions.flatten(0, 1) @ gallery.mT).numpy()
    own = np.array([number.get(text, 0) for text in flat])  # of what isn't there, any: it is left out below
    right = alike[np.arange(len(own)), own][:, None]
    place = (alike > right).sum(axis=1) + ((alike == right).sum(axis=1) - 1) / 2
    return np.where(there.ravel(), place, np.nan).reshape(there.shape)


def run(
    name: str,
    seed: int = 0,
    world: World | None = None,
    *,
    splits=SPLITS,
    changes: Mapping | None = None,
    folder: str | Path | None = None,
    checkpoint_folder: str | Path = checkpoints.FOLDER,
    results: str | Path = RESULTS,
    label: str = "",
    on_step: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> dict[str, Said]:
    """Train an arm, store what was trained, ask it about each split, and store what it said.

    Args:
        name: one of ARMS.
        seed: of everything random; any but 0 is added to the names of the two folders.
        world: the cohort; None takes profile full.
        splits: that are asked; "test" and "external" need a committed protocol.
        changes: of the recipe or its training, e.g. ``{"steps": 20}``.
        folder: for checkpoints on the way.
        checkpoint_folder, results: each gets a folder.
        label: name of the two folders, instead of that of arm and seed.
        on_step, progress: see :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: no such arm or setting, or a protocol that isn't committed.
    """
    alone(name)
    recipe, world = recipe_of(name, seed, changes), world or World()
    record = recorded(splits, "local_global_protocol", FILES, load()["version"])
    known, begun = world.split("train"), time.monotonic()
    model, curve, measured = fit(
        recipe, known.cohort, known.texts, known.pictures, folder=folder, on_step=on_step, progress=progress
    )
    label = label or of_seed(name, seed)
    record |= {"profile": world.profile, "seed": seed} | checkpoints.circumstances({"training": curve}) | measured
    record["recipe"] = asdict(recipe)
    save(Path(checkpoint_folder) / label, model, record)
    model, _ = read(Path(checkpoint_folder) / label)  # what is asked is what is stored, float16's rounding included
    said, stem = {}, world.stem if name in CROPPED else None
    for split in splits:
        said[split] = ask(model, world.split(split), world.prompts, recipe, stem)
    record["minutes"] = round((time.monotonic() - begun) / 60, 2)
    with atomic_path(Path(results) / label) as partial:
        partial.mkdir()
        for split, one in said.items():
            one.save(partial / f"{split}.npz")
        checkpoints.write_record(record, partial)
    return said


def recipe_of(name: str, seed: int = 0, changes: Mapping | None = None) -> Recipe:
    """What an arm trains, with a seed and changes.

    Raises:
        BadInput: no such arm or setting.
    """
    if name not in ARMS:
        raise BadInput(f"no arm is called {name!r}; choose one of {', '.join(ARMS)}")
    recipe, changes = ARMS[name], dict(changes or {})
    inner = {f.name for f in fields(Training)}
    if unknown := sorted(set(changes) - inner - {f.name for f in fields(Recipe)}):
        raise BadInput(f"{name} has no setting {unknown[0]!r}; it has those of Recipe and Training")
    training = replace(recipe.training, seed=seed, **{k: changes.pop(k) for k in list(changes) if k in inner})
    return replace(recipe, training=training, **changes)


def truth_of(world: World, split: str) -> dict[str, np.ndarray]:
    """What is true of a split's patients: labels of volume and regions, which are there, how many sentences differ."""
    cohort = world.split(split).cohort
    different = len({text for row in cohort.sentences for text in row} - {NOTHING})
    return {"labels": cohort.labels, "region_labels": cohort.region_labels, "there": cohort.there,
            "sentences": np.array(different), "label_names": np.array(LABELS)}  # fmt: skip


def store_truth(world: World, results: str | Path = RESULTS) -> Path:
    """Write what is true of the scored splits, which tables need beside what was said."""
    with atomic_path(Path(results) / f"{PREFIX}truth") as partial:
        partial.mkdir()
        for split in SPLITS:
            with open(partial / f"{split}.npz", "wb") as file:
                np.savez_compressed(file, **truth_of(world, split))
    return Path(results) / f"{PREFIX}truth"
