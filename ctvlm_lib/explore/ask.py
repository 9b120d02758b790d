"""Ask the workbook's models about a case, and ask again with the prompt gone, elsewhere and in other colours.

Four answers side by side show whether an answer depends on the prompt. A model refuses where its confidence lies below
the threshold that keeps its errors on the validation patients at the largest share that the protocol aims at. It has
seen phantoms only: what it says of a real CT is withheld unless a person asks for it, and then stands beside how far
the CT lies from all phantoms.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abstention import Threshold, choose_threshold
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, asked, perturb
from ctvlm_lib.experiments.conditions import PAPERS_COLOURS, SWAPPED_COLOURS, Drawing, draw
from ctvlm_lib.experiments.real_field import in_field
from ctvlm_lib.experiments.vlm_reader import VlmReader, worded
from ctvlm_lib.explore.cases import PHANTOM, Case
from ctvlm_lib.mask import LabelMap
from ctvlm_lib.records import protocol
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.record import Record

WITHHELD = "withheld: this model was trained on phantoms only"
COMPARED, NEIGHBOURS = 40, 3  # phantoms that a CT is compared with; nearest of them that count


@dataclass(frozen=True, eq=False)
class Model:
    """A model and what it may answer.

    Attributes:
        name: of its checkpoint. condition: the prompt that it was trained with.
        reader: asks it.
        threshold: below which it refuses; None where no validation answers are stored.
    """

    name: str
    condition: str
    reader: VlmReader
    threshold: Threshold | None


@dataclass(frozen=True, eq=False)
class Given:
    """A case as the models see it: HU int16 ``(D, H, W)`` on the cohort's grid, and the structures there."""

    hu: np.ndarray
    masks: dict[str, np.ndarray]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        how: what was changed. marked: the structure that the prompt was on, "" for none.
        text, confidence: the model's, NaN where it has none.
        refused: its confidence lies below the threshold.
    """

    how: str
    marked: str
    text: str
    confidence: float
    refused: bool


def load_model(condition: str, folder: str | Path = "") -> Model:
    """The workbook's model for a condition, or any that was saved by the workbook.

    Args:
        condition: "none", "contour", "box" or "dual"; ignored where a folder is given.
        folder: of a checkpoint that ``ctvlm arm vlm-…`` wrote.

    Raises:
        BadInput: no such checkpoint.
    """
    from ctvlm_lib.vlm import finetune_saving

    path = Path(folder) if folder else checkpoints.FOLDER / f"vlm-B-{condition}-small"
    model, processor, record = finetune_saving.load(path)
    if processor.scale != "cohort":
        raise BadInput(f"{path.name} reads CTs otherwise than the cohort's models; give one that ctvlm arm vlm-… saved")
    trained = record["finetuning"]["condition"]
    model.requires_grad_(False)
    reader = VlmReader(model, processor, blind=record["finetuning"].get("blind", False))
    weights = checkpoints.record(path.name, path.parent)["weights"]["sha256"]
    return Model(path.name, trained, reader, threshold_of(path.name, weights))


@lru_cache(maxsize=8)
def threshold_of(name: str, weights: str | None = None) -> Threshold | None:
    """The confidence that keeps errors at the protocol's largest target on the validation patients.

    Args:
        name: of an arm whose answers are stored.
        weights: hash of the model's; None takes the stored one's word.

    Returns:
        None where no answers are stored, or those of other weights: a namesake's threshold means nothing.
    """
    home = RESULTS / name
    if not (home / "validation.npz").is_file():
        return None
    record = json.loads((home / "record.json").read_text(encoding="utf-8"))
    if weights is not None and record["weights"]["sha256"] != weights:
        return None
    table = score_closed(answers.load(home / "validation.npz", asked.load(asked.path_of("validation"))))
    table = table[table["control"] == answers.AS_ASKED]
    target = max(protocol.load().content["abstention"]["target_error"])
    return choose_threshold(table["confidence"], table["correct"].astype(float), target)


def given(case: Case, labels: LabelMap, names: Sequence[str]) -> Given:
    """Bring a case to the models' grid: phantoms lie on it, other CTs are put into the cohort's field.

    Args:
        case: the case. labels: its structures, those that were drawn included.
        names: the structures that may be marked.
    """
    wanted = [name for name in dict.fromkeys((*names, *REGIONS)) if name in labels.present]
    if case.kind == PHANTOM:
        masks = {name: labels.binary(name) for name in wanted}
        return Given(case.volume.hu.astype(np.int16), masks, case.volume.spacing_mm, case.volume.affine)
    field = in_field(case.volume, labels, wanted)
    note = f"{field.body_share:.0%} of the scanned body lies in the 340 mm that the model sees"
    return Given(field.volume.hu.astype(np.int16), field.masks, field.volume.spacing_mm, field.volume.affine, note)


def ask(model: Model, what: Given, record: Record, distractor: str | None = None, tell: Callable[[str], None] = print):
    """Ask as it is, without the prompt, with the prompt elsewhere, and in swapped colours.

    Args:
        model: whose condition decides what is drawn.
        what: the case.
        record: the question; its region is what is marked.
        distractor: of a dual box; None leaves the second box out.
        tell: called with a line on the way.

    Returns:
        Answers, the first one as asked; a model that was trained without prompts gives this one only.

    Raises:
        BadInput: the structure lies outside what the model sees.
    """
    found = []
    for how, drawing, marked in drawings(model.condition, what, record, distractor):
        tell(f"asking: {how} …")
        picture = draw(as_input(what.hu), drawing, model.reader.channels, colour=model.reader.colour)
        [[(text, confidence)]] = model.reader.answer(picture[None], [[record]], model.condition)
        limit = model.threshold.value if model.threshold else 0.0
        refused = not math.isnan(confidence) and confidence < limit
        found.append(Answer(how, marked, text, confidence, refused))
    return found


def drawings(condition: str, what: Given, record: Record, distractor: str | None = None) -> list[tuple]:
    """(what was changed, drawing, marked structure) of every way that a question is asked."""
    if condition == "none" or record.region is None:
        return [("as asked", Drawing("none"), "")]
    region = record.region
    if region not in what.masks:
        raise BadInput(
            f"the {region} lies outside the 340 mm that the model sees, or is smaller than its voxels; mark another"
            f" structure: {', '.join(list(what.masks)[:8]) or 'none is in view'}"
        )
    other = what.masks.get(distractor) if condition == "dual" and distractor else None
    target, papers, swapped = what.masks[region], tuple(PAPERS_COLOURS.items()), tuple(SWAPPED_COLOURS.items())
    made = [("as asked", Drawing(condition, target, other, papers), region), ("prompt removed", Drawing("none"), "")]
    place = elsewhere(what, region)
    if place:
        made.append((f"prompt on the {place}", Drawing(condition, what.masks[place], other, papers), place))
    made.append(("colours swapped", Drawing(condition, target, other, swapped), region))
    return made


def elsewhere(what: Given, region: str) -> str | None:
    """The structure that a prompt is moved to: the nearest one that the models know; None if there is none."""
    known = {name: mask for name, mask in what.masks.items() if name in REGIONS or name == region}
    return perturb.neighbour(known, region, what.spacing_mm)


def verdict(answers: Sequence[Answer]) -> str:
    """Whether the answer depends on the prompt, in a sentence."""
    if len(answers) < 2:
        return "This model reads no prompt; ask with a contour or a box to see whether an answer depends on it."
    first, *others = answers
    changed = [one.how for one in others if one.text != first.text]
    if changed:
        return f"The answer is another one with: {'; '.join(changed)}. On that it depends."
    moved = [abs(one.confidence - first.confidence) for one in others if not math.isnan(one.confidence)]
    by = f", its confidence moves by at most {100 * max(moved):.0f} points" if moved else ""
    same = "The answer stays without the prompt, with it elsewhere and in other colours"
    return f"{same}{by}: it doesn't hang on the prompt."


@lru_cache(maxsize=4)
def _phantom_features(reader: VlmReader) -> np.ndarray:
    """Pooled features of phantoms of the validation split, without a prompt: ``(COMPARED, channels)``."""
    patients = protocol.load().patients("validation", n=COMPARED)
    return np.stack([_pooled(reader, patient.hu) for patient in patients])


def _pooled(reader: VlmReader, hu: np.ndarray) -> np.ndarray:
    picture = draw(as_input(hu), Drawing("none"), reader.channels)
    with torch.no_grad():
        features = reader.model.image_features(torch.from_numpy(picture[None]))
    return torch.cat([features.low.mean(1), features.high.mean(1)], dim=1)[0].double().numpy()


def strangeness(model: Model, what: Given) -> float:
    """How far a case lies from the phantoms, in units of how far phantoms lie from each other; 1 is usual.

    The mean distance to the three nearest phantoms among 40, in the encoder's pooled features, each divided by its
    standard deviation; over the 95th percentile of the same for the phantoms themselves.
    """
    known = _phantom_features(model.reader)
    scale = known.std(axis=0) + 1e-9
    known, one = known / scale, _pooled(model.reader, what.hu) / scale

    def nearest(distances: np.ndarray) -> float:
        return float(np.sort(distances)[:NEIGHBOURS].mean())

    own = [nearest(np.delete(np.linalg.norm(known - known[k], axis=1), k)) for k in range(len(known))]
    return nearest(np.linalg.norm(known - one, axis=1)) / float(np.quantile(own, 0.95))


def saliency(model: Model, what: Given, record: Record, answer: str, distractor: str | None = None) -> np.ndarray:
    """Where the picture would have to change to change the answer: gradient of its likelihood, 0…1 ``(D, H, W)``.

    The absolute gradient of the answer's log-likelihood by the input, summed over channels, smoothed by a Gaussian of
    one voxel, divided by its 99.5th percentile. It shows what the answer is sensitive to, not what is right.

    Args:
        model, what, record, distractor: as of :func:`ask`.
        answer: the model's own.

    Source: medvista3d.txt figures 1 and 4 show attention for the same purpose.
    """
    from scipy import ndimage

    _, drawing, _ = drawings(model.condition, what, record, distractor)[0]
    drawn = draw(as_input(what.hu), drawing, model.reader.channels, colour=model.reader.colour)
    picture = torch.from_numpy(drawn[None]).requires_grad_(True)
    said = answer.split(". ", 1)[1] if record.choices and ". " in answer else answer
    asked_as = worded(replace(record, answer=said or "unknown"), model.condition)
    batch = model.reader.processor.of_records([asked_as], None)
    output = model.reader.model(**batch, features=model.reader.model.image_features(picture))
    output.loss.backward()
    grad = picture.grad[0].abs().sum(0).numpy()
    smooth = ndimage.gaussian_filter(grad, 1)
    top = float(np.quantile(smooth, 0.995))
    return np.clip(smooth / top, 0, 1).astype(np.float32) if top > 0 else np.zeros_like(smooth)


def on_grid(values: np.ndarray, what: Given, case: Case) -> np.ndarray:
    """A map on the models' grid brought to a case's own, linearly; outside the models' field it is 0."""
    from ctvlm_lib.volume import grid

    if values.shape == case.volume.shape:
        return values
    return grid.resample(values, what.affine, case.volume.shape, case.volume.affine, order="linear", fill=0.0)
