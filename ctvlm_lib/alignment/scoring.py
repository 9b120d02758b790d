"""What a pretrained encoder is worth: its features' ceiling and the recall of reports, from stored predictions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ctvlm_lib.alignment.attributes import similarity_by_facts
from ctvlm_lib.alignment.ceiling import Ceiling, ceiling, read_out, region_features
from ctvlm_lib.alignment.heads import Aligned
from ctvlm_lib.alignment.objectives import CAPTIONS
from ctvlm_lib.alignment.prompted import STYLES, as_picture, distractor_of, draw_prompt, place_rows
from ctvlm_lib.alignment.scans import Scans, as_input, kinds_of
from ctvlm_lib.alignment.tokens import shares as token_shares
from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.evaluate import retrieval
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import NONE

FACTS = (("pose",), ("phase",), ("pose", "phase"), ("findings",), ("pose", "phase", "findings"))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about a split; every number of its tables can be computed from it again.

    Attributes:
        image, text: float16 ``(n, width)``: volumes and reports in their common space.
        answers: float16 ``(regions, 5)``, see :func:`ctvlm_lib.alignment.ceiling.read_out`.
        identity: int32 ``(n,)``: equal numbers are equal reports.
    """

    image: np.ndarray
    text: np.ndarray
    answers: np.ndarray
    identity: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Write as safetensors."""
        with atomic_path(path) as partial:
            save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, partial)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Read what :meth:`save` wrote.

        Raises:
            BadInput: not such a file.
        """
        try:
            return cls(**load_file(path))
        except (OSError, TypeError, SafetensorError) as error:
            raise BadInput(f"{Path(path).name} can't be read as predictions ({error}); score the arm again") from error

    def ceiling(self) -> Ceiling:
        """The ceiling with its interval."""
        return ceiling(self.answers)

    def hits(self, k: int = 1) -> dict[int, float]:
        """Patient → share of both directions in which its own or an equal report is among the first k of all."""
        table = self._similarity()
        both = [np.clip(k - retrieval.ranks(one, self.identity)[0], 0, 1) for one in (table, table.T)]
        return dict(enumerate(np.mean(both, axis=0)))

    def recalls(self) -> list[retrieval.Recall]:
        """Recall in both directions at every gallery size."""
        return retrieval.recalls(self._similarity(), [str(k) for k in self.identity])

    def table(self, **columns):
        """The recalls as a pandas table; the ceiling stands in every row."""
        found = self.ceiling()
        ends = {"ceiling": found.four_way, "ceiling_low": found.low, "ceiling_high": found.high}
        return retrieval.as_table(self.recalls(), **columns).assign(**{k: round(v, 4) for k, v in ends.items()})

    def _similarity(self) -> np.ndarray:
        return self.image.astype(np.float32) @ self.text.astype(np.float32).T


@torch.inference_mode()
def predict(model: Aligned, train: Scans, scans: Scans, reports: torch.Tensor, batch: int = 25) -> Predictions:
    """Let a model look at a split.

    Args:
        model: with the pairing "report"; put into evaluation mode.
        train: the training patients, on which the read-out of the ceiling is fitted.
        scans, reports: the split and its reports' vectors.
        batch: volumes at a time.
    """
    model.eval()
    device, look, pairing = next(model.parameters()).device, images_for(model), model.pairings["report"]
    vectors = []
    for start in range(0, len(scans), batch):
        images = torch.from_numpy(look(scans)(np.arange(start, min(start + batch, len(scans)))))
        vectors.append(pairing.images(model(images.to(device))[1]).cpu())
    pairs = [(some, region_features(model.encoder, some, look(some))) for some in (train, scans)]
    _, identity = np.unique(np.array(scans.reports), return_inverse=True)
    half = [t.numpy().astype(np.float16) for t in (torch.cat(vectors), pairing.texts(reports.to(device)).cpu())]
    return Predictions(*half, read_out(*pairs).astype(np.float16), identity.astype(np.int32))


@torch.inference_mode()
def marked_accuracy(model: Aligned, scans: Scans, captions: torch.Tensor, seed: int = 0, batch: int = 25) -> dict:
    """Does the volume's vector tell what the marked region shows? One region a patient, the same for every style.

    Args:
        model: trained with the objective "prompted".
        scans: the patients.
        captions: ``(len(CAPTIONS), text channels)``.
        seed: of which region is marked.
        batch: volumes at a time.

    Returns:
        Style, or "none" for the same question without a prompt → share of right kinds out of those that the region
        can show; and "majority", the share of regions without a finding.
    """
    asked = _asked(scans, seed)
    truth = [kinds_of(REGIONS[r])[k] for r, k in zip(asked, scans.found[np.arange(len(scans)), asked], strict=True)]
    texts = model.pairings["focus"].texts(captions)
    shares = {"majority": float(np.mean([kind == NONE for kind in truth]))}
    for style in ("none", *STYLES):
        right = []
        for some, _, vectors in _marked(model, scans, asked, style, batch):
            alike = model.pairings["focus"].images(vectors) @ texts.mT
            for k, row in zip(some, alike.numpy(), strict=True):
                possible = [CAPTIONS.index(kind) for kind in kinds_of(REGIONS[asked[k]])]
                right.append(CAPTIONS[possible[int(np.argmax(row[possible]))]] == truth[k])
        shares[style] = float(np.mean(right))
    return shares


@torch.inference_mode()
def marked_tokens(model: Aligned, scans: Scans, captions: torch.Tensor, seed: int = 0, batch: int = 25) -> dict:
    """Do the tokens tell which region is marked? Area under the ROC curve, tokens of the marked region against others.

    Args:
        model, scans, seed, batch: as :func:`marked_accuracy`.
        captions: ``(len(PLACE_CAPTIONS), text channels)``.

    Returns:
        Style → area: 0.5 where the prompt isn't seen, which "none" has to give; 1 where it is seen everywhere.
    """
    from sklearn.metrics import roc_auc_score

    asked = _asked(scans, seed)
    texts = model.pairings["place"].texts(captions)
    areas = {}
    for style in ("none", *STYLES):
        scores, inside = [], []
        for some, tokens, _ in _marked(model, scans, asked, style, batch):
            grid = model.encoder.grids(scans.region.shape[1:])[-2]
            of_regions = token_shares(scans.region[some], len(REGIONS) + 1, grid)[:, 1:]
            rows, positive = place_rows(of_regions, asked[some])
            alike = model.pairings["place"].images(tokens[-2].flatten(0, 1)[torch.from_numpy(rows)]) @ texts.mT
            scores.append((alike[:, 0] - alike[:, 1]).numpy())
            inside.append(positive[:, 0])
        areas[style] = float(roc_auc_score(np.concatenate(inside), np.concatenate(scores)))
    return areas


def _asked(scans: Scans, seed: int) -> np.ndarray:
    """One region a patient, by index, of those in the field."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(found >= 0)) for found in scans.found])


def _marked(model: Aligned, scans: Scans, asked: np.ndarray, style: str, batch: int):
    """(indices, tokens, vectors) of volumes with a prompt of a style around each patient's asked region."""
    model.eval()
    for start in range(0, len(scans), batch):
        some = np.arange(start, min(start + batch, len(scans)))
        picture = as_picture(as_input(scans.hu[some])[:, None])
        for k, one in zip(some, picture, strict=True):
            if style != "none":
                other = distractor_of(scans.region[k], scans.found[k], asked[k])
                draw_prompt(one, scans.region[k], asked[k], style, other)
        yield some, *model(torch.from_numpy(picture))


def images_for(model: Aligned) -> Callable[[Scans], Callable]:
    """How the model wants its volumes without a prompt: grey, or grey in three channels."""

    def of(scans: Scans) -> Callable[[np.ndarray], np.ndarray]:
        def images(index: np.ndarray) -> np.ndarray:
            grey = as_input(scans.hu[index])[:, None]
            return grey if model.encoder.config.in_channels == 1 else as_picture(grey)

        return images

    return of


def recall_by_facts(train: Scans, train_reports: torch.Tensor, scans: Scans, reports: torch.Tensor):
    """Recall of readers without image or encoder, who know some facts of each patient: a pandas table.

    Args:
        train, scans: cohorts. train_reports, reports: their reports' vectors.
    """
    import pandas as pd

    rows = []
    for which in FACTS:
        similarity = similarity_by_facts(train, train_reports, scans, reports, which)
        rows += [{"facts": " + ".join(which)} | asdict(row) for row in retrieval.recalls(similarity, scans.reports)]
    return pd.DataFrame(rows).round(4)
