"""What is pretrained: the recipe of a run, on the cohort or, in profile paper, on the user's copy of M3D-Cap."""

from dataclasses import dataclass
from pathlib import Path

from ctvlm_lib.alignment.m3d_cap import Corpus
from ctvlm_lib.errors import BadInput
from ctvlm_lib.training import Training

OBJECTIVES = ("report", "dense", "prompted")
ENCODERS = ("dcformer", "vit3d")


@dataclass(frozen=True)
class Pretraining:
    """What to pretrain.

    Attributes:
        name: of the run and its checkpoint.
        objective: one of OBJECTIVES.
        encoder: "dcformer" or "vit3d", in the size for the cohort.
        loss: of the report's pairing, "siglip" or "clip".
        init: of its temperature and bias, see :class:`~ctvlm_lib.alignment.heads.Pairing`.
        start: checkpoint that training goes on from, a folder or a shipped name; empty for random weights.
        width: of the space in which images and texts meet.
        batch: volumes a step, over all processes.
        text: the text tower.
        profile: quick, full or paper: how many patients.
        patients: fewer than the profile has; 0 takes all.
        training: steps, rates, seed.
        corpus: in profile paper, the copy of M3D-Cap that is trained on; see :func:`paper`.

    Raises:
        BadInput: settings that are not known, or don't go together.
    """

    name: str
    objective: str = "dense"
    encoder: str = "dcformer"
    loss: str = "siglip"
    init: str = "base rate"
    start: str = ""
    width: int = 64
    batch: int = 12
    text: str = "minilm"
    profile: str = "full"
    patients: int = 0
    training: Training = Training(steps=800, lr=4e-3, precision="bf16")
    corpus: Corpus | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("objective", self.objective, OBJECTIVES), ("encoder", self.encoder, ENCODERS)):
            if value not in known:
                raise BadInput(f"{what} is {value!r}; choose one of {', '.join(known)}")
        if self.objective == "prompted" and not self.start:
            raise BadInput("prompted pretraining goes on from an encoder of grey volumes; name it in start")
        if self.objective != "report" and self.encoder == "vit3d":
            raise BadInput(
                f"the objective {self.objective} asks three grids of tokens, and vit3d has two, from one layer; take"
                " encoder='dcformer', or objective='report'"
            )
        if self.corpus:
            self._check_corpus()

    def _check_corpus(self) -> None:
        if self.profile != "paper" or self.objective != "report":
            raise BadInput(
                f"M3D-Cap has reports and no masks and belongs to profile paper: take profile='paper' and"
                f" objective='report', got {self.profile!r} and {self.objective!r}; or leave corpus out"
            )
        if not (self.corpus.epochs or self.start):
            raise BadInput("with epochs=0 nothing is trained; name in start what shall be scored")


def paper(name: str, folder: str | Path = "", loss: str = "siglip", encoder: str = "dcformer", **corpus) -> Pretraining:
    """Med3DVLM's first stage: M3D-Cap, ClinicalBERT trained as well, 100 epochs.

    The paper prints a batch of 64; its script takes 64 in each of 8 processes, so 512 here. On fewer GPUs set
    ``replace(…, batch=…)``: parts of a step don't see each other's texts, so ``accumulate`` is no substitute.

    Args:
        name: of the run.
        folder: of the user's copy of M3D-Cap.
        loss: "siglip" or "clip".
        encoder: "dcformer" (``small``) or "vit3d" (M3D's, at its 32×256×256).
        corpus: any attribute of :class:`~ctvlm_lib.alignment.m3d_cap.Corpus`.

    Source: med3dvlm.txt §3.2.1, §4 and table 5; the released script for warm-up, schedule, clipping and precision.
    """
    usual = {} if encoder == "dcformer" else {"variant": "m3d", "size_dhw_vox": (32, 256, 256)}
    # steps follow from the epochs when the volumes have been counted
    training = Training(steps=1, lr=1e-4, warmup_share=0.03, weight_decay=0.1, betas=(0.9, 0.999), precision="bf16")
    return Pretraining(name, "report", encoder, loss, "released", width=768, batch=512, text="clinicalbert",
                       profile="paper", training=training, corpus=Corpus(str(folder), **usual | corpus))  # fmt: skip
