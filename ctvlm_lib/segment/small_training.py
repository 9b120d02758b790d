"""Training of the small VISTA-3D on phantoms: examples, the loss of both heads, the run."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib import anatomy, mask
from ctvlm_lib.checkpoints import circumstances
from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol
from ctvlm_lib.records.phantom import VERSION, Patient
from ctvlm_lib.records.phantom.canvas import FIELD_MM
from ctvlm_lib.segment.small import NAME, SmallVista, Trained, save_small
from ctvlm_lib.segment.vista3d import segment, segment_at
from ctvlm_lib.training import Curve, Step, Training, train
from ctvlm_lib.volume import RECIPES, scale_range

SHAPE = (64, 64, 64)  # of the phantom's field: isotropic voxels, as VISTA-3D's are
SPACING_MM = tuple(FIELD_MM / n for n in SHAPE)
CLASSES = (
    "liver", "spleen", "pancreas", "right kidney", "left kidney", "gallbladder", "stomach", "esophagus", "aorta",
    "inferior vena cava", "heart", "trachea", "left lung upper lobe", "left lung lower lobe", "right lung upper lobe",
    "right lung middle lobe", "right lung lower lobe", "left iliopsoas", "right iliopsoas", "spinal cord", "sternum",
)  # fmt: skip
IDS = tuple(anatomy.structure(name).vista3d for name in CLASSES)
BY_CLASS = Training(1500, lr=4e-3, precision="bf16", checkpoint_every=100)
BY_CLICKS = Training(300, lr=5e-3, precision="bf16", checkpoint_every=100)
PATIENTS, HELD_OUT, CLICKED = 300, 12, 3  # trained on; scored by class; scored by clicks
INTERACTIVE = ("point_head.", "image_encoder.up_layers.")  # names of the interactive branch's tensors
PROMPTED, OBJECTS, CLICKS = 12, 6, 3  # classes a step; structures that are clicked at, and how often at most
SIDES = (40, 48, 56, 64)  # of a crop. Not 32: there oneDNN's backward pass in bf16 divides by zero (torch 2.13)
SMALLEST_VOX, HEAVIEST = 100, 200.0  # of a structure that is clicked at; weight of a voxel in it


@dataclass(frozen=True, eq=False)
class Scans:
    """Phantoms ready for training, in the network's RAS axes: HU int16 and labels uint8, both ``(n, X, Y, Z)``."""

    hu: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, patients: Iterable[Patient]) -> "Scans":
        """Take patients, all of ``SHAPE``.

        Raises:
            BadInput: no patient, or one of another size.
        """
        hu, labels = [], []
        for one in patients:
            if one.hu.shape != SHAPE:
                raise BadInput(f"{one.name} has {one.hu.shape} voxels; draw the patients with shape={SHAPE}")
            hu.append(_ras(one.hu))
            labels.append(_ras(one.labels.labels.astype(np.uint8)))
        if not hu:
            raise BadInput("there are no patients to train on; give at least one")
        return cls(np.stack(hu), np.stack(labels))

    def example(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """A crop of one patient: image ``(X, Y, Z)`` float32 in [0, 1] and labels, a function of seed and step.

        Its look is varied so that shape counts more than brightness: each structure is made brighter or darker, and
        noise and blur are added. It is cropped because real CTs don't all show the same part of the body.
        """
        from scipy import ndimage

        rng = step.rng("example")
        k = int(rng.integers(len(self.hu)))
        labels = self.labels[k]
        hu = self.hu[k] * rng.uniform(0.9, 1.1) + rng.normal(0, 25, 256)[labels]
        if rng.random() < 0.5:
            hu = ndimage.uniform_filter(hu, 2)
        hu += rng.normal(0, rng.uniform(0, 40), hu.shape)
        sides = [int(rng.choice(SIDES)) for _ in SHAPE]
        starts = [int(rng.integers(n - side + 1)) for n, side in zip(SHAPE, sides, strict=True)]
        crop = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        return scale_range(hu[crop], *RECIPES["VISTA-3D"].range_hu).astype(np.float32), labels[crop]

    def class_loss(self, network: torch.nn.Module, step: Step) -> torch.Tensor:
        """Dice and cross-entropy of one example, prompted by a dozen classes.

        Source: VISTA3D (arXiv 2406.05285), the automatic branch.
        """
        image, labels = self.example(step)
        ids = step.rng("classes").permutation(IDS)[:PROMPTED]
        _, features = network.image_encoder(_tensor(image), with_point=False, with_label=True)
        logits, _ = network.class_head(features, torch.from_numpy(ids)[:, None])
        return _dice_and_entropy(logits, labels, ids)

    def click_loss(self, network: torch.nn.Module, step: Step) -> torch.Tensor:
        """The same, prompted by clicks into a few structures, drawn from the true masks: the first inside.

        Inside and outside weigh alike in the cross-entropy; without that, the interactive head settles on "nothing".

        Source: VISTA3D, the interactive branch.
        """
        image, labels = self.example(step)
        ids, points, signs = _clicks(labels, step.rng("classes").permutation(IDS), step.rng("clicks"))
        features, _ = network.image_encoder(_tensor(image), with_point=True, with_label=False)
        logits = network.point_head(features, points, signs, class_vector=torch.from_numpy(ids))
        return _dice_and_entropy(logits, labels, ids, balanced=True)


def train_small(
    scans: Scans,
    settings: Training,
    start: Trained | None = None,
    config: SmallVista | None = None,
    *,
    prompts: str = "class",
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[Trained, Curve]:
    """Train one branch of a small VISTA-3D, from random weights or from a trained network.

    Args:
        scans: the patients.
        settings: steps, learning rate, seed.
        start: a network to go on with; it stays as it is. None begins with random weights.
        config: shape of a new network, or of ``start`` if its record doesn't say.
        prompts: "class" trains encoder and automatic branch; "clicks" leaves both as they are and trains the
            interactive branch, which begins with the other's decoder.
        folder, progress: as :func:`ctvlm_lib.training.train`.

    Raises:
        BadInput: another kind of prompts.
    """
    if prompts not in ("class", "clicks"):
        raise BadInput(f"prompts must be 'class' or 'clicks', got {prompts!r}")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = (config or SmallVista(**(start.record.get("config", {}) if start else {}))).build()
    if start:
        network.load_state_dict(start.network.state_dict())
    if start and prompts == "clicks":
        network.image_encoder.up_layers.load_state_dict(network.image_encoder.up_layers_auto.state_dict())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(INTERACTIVE) == (prompts == "clicks"))
    loss = scans.class_loss if prompts == "class" else scans.click_loss
    curve = train(network, loss, settings, folder=folder, progress=progress)
    made = start or Trained(network, NAME, CLASSES, SPACING_MM, SHAPE)
    return replace(made, network=network.eval().requires_grad_(False)), curve


def make(
    folder: str | Path,
    work: str | Path,
    *,
    seed: int = 0,
    stages: tuple[Training, Training] = (BY_CLASS, BY_CLICKS),
    patients: int = PATIENTS,
    held_out: int = HELD_OUT,
    progress: bool = True,
) -> Path:
    """Train the network that ships with the workbook, score it on held-out phantoms and write its checkpoint.

    Args:
        folder: where the checkpoint's folder is made.
        work: for intermediate states; the same call goes on from there.
        seed: of the training; takes the place of the settings' own.
        stages: by class prompts, then by clicks.
        patients, held_out: how many of the train split, and of the validation split.
        progress: print a line now and then.
    """
    fixed, work = protocol.load(), Path(work)
    scans = Scans.of(fixed.patients("train", "full", n=patients, shape=SHAPE))
    first, second = (replace(stage, seed=seed) for stage in stages)
    by_class, curve = train_small(scans, first, folder=work / "class", progress=progress)
    both, more = train_small(scans, second, by_class, prompts="clicks", folder=work / "clicks", progress=progress)
    others = list(fixed.patients("validation", "full", n=held_out, shape=SHAPE))
    record = {
        "what": "MONAI's VISTA3D in few channels, trained on phantom patients only",
        "training": {"class prompts": asdict(first), "clicks": asdict(second)},
        "trained_on": {"patients": patients, "split": "train", "generator": VERSION},
        "held_out": {"patients": held_out, "patients_clicked_at": min(CLICKED, held_out), "split": "validation"},
        "dice_by_class_prompt": _rounded(dice_per_class(both, others)),
        "dice_by_one_click": _rounded(dice_per_class(both, others[:CLICKED], clicks=1)),
    }
    return save_small(both, SmallVista(), record | circumstances({"class prompts": curve, "clicks": more}), folder)


def _rounded(scores: dict[str, list[float]]) -> dict[str, float | None]:
    return {name: round(float(np.mean(found)), 3) if found else None for name, found in scores.items()}


def dice_per_class(trained: Trained, patients: Iterable[Patient], clicks: int = 0) -> dict[str, list[float]]:
    """Dice of each class in each patient who has it.

    Args:
        trained: the network.
        patients: not those that it was trained on.
        clicks: 0 prompts by class; 1 clicks once, at the voxel that lies deepest in the true mask.
    """
    scores: dict[str, list[float]] = {name: [] for name in trained.classes}
    for one in patients:
        by_class = None if clicks else segment(one.volume, trained.classes, trained).labels
        for name in trained.classes:
            if name not in one.labels.present:
                continue
            true = one.labels.binary(name)
            found = segment_at(one.volume, [deepest(true)], trained).labels > 0 if clicks else (
                by_class == anatomy.structure(name).vista3d)  # fmt: skip
            scores[name].append(float(mask.dice(found, true)))
    return scores


def deepest(region: np.ndarray) -> tuple[int, int, int]:
    """The voxel of a mask that is furthest from its border: where a reader would click."""
    from scipy import ndimage

    box = mask.bounding_box(region)
    depth = ndimage.distance_transform_edt(np.pad(region[box], 1))[1:-1, 1:-1, 1:-1]
    inner = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(side.start + at) for side, at in zip(box, inner, strict=True))


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)[None, None]  # (1, 1, X, Y, Z)


def _dice_and_entropy(logits: torch.Tensor, labels: np.ndarray, ids: np.ndarray, balanced=False) -> torch.Tensor:
    from monai.losses import DiceLoss

    wanted = torch.from_numpy(np.stack([labels == i for i in ids])[:, None].astype(np.float32))
    logits = logits.float()  # (structures, 1, X, Y, Z)
    weight = None
    if balanced:
        inside = wanted.flatten(1).sum(1).clamp(min=1).view(-1, 1, 1, 1, 1)
        weight = torch.where(wanted > 0, (labels.size / (2 * inside)).clamp(max=HEAVIEST), 0.5)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, weight=weight)
    return entropy + DiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=1e-5)(logits, wanted)


def _clicks(labels: np.ndarray, ids: np.ndarray, rng: np.random.Generator):
    """The structures that are clicked at, points ``(structures, clicks, 3)``, and 1 inside, 0 outside, −1 no click."""
    sizes = np.bincount(labels.ravel(), minlength=256)
    chosen = [int(i) for i in ids if sizes[i] >= SMALLEST_VOX][:OBJECTS] or [int(sizes.argmax())]
    points = np.zeros((len(chosen), CLICKS, 3), np.float32)
    signs = np.full((len(chosen), CLICKS), -1)
    for row, i in enumerate(chosen):
        for place in range(int(rng.integers(1, CLICKS + 1))):
            sign = 1 if place == 0 else int(rng.random() < 0.5)
            candidates = np.flatnonzero((labels == i) == bool(sign))
            if candidates.size:  # a structure may fill the crop
                points[row, place] = np.unravel_index(candidates[rng.integers(candidates.size)], labels.shape)
                signs[row, place] = sign
    return np.array(chosen), torch.from_numpy(points), torch.from_numpy(signs)


def _ras(array: np.ndarray) -> np.ndarray:
    """(d, h, w) in LPS axes → (x, y, z) in RAS axes, as the recipe turns them."""
    return np.ascontiguousarray(array.transpose(2, 1, 0)[::-1, ::-1])
