"""What of ours may stand beside a published number."""

from dataclasses import dataclass

ENCODER = "B"  # whose arms stand in the ledger: the protocol's first


@dataclass(frozen=True)
class Score:
    """A score of the trained vision–language models on the test split: questions that name their region, or have none.

    Attributes:
        condition, decoder, variant: of the arm.
        form: "closed", "open" or "report". metric: "accuracy" of closed answers, else a text metric's name.
        kinds: of question, () for all. mean: the plain mean over the kinds, instead of every question alike.
    """

    condition: str
    decoder: str
    variant: str = ""
    form: str = "closed"
    metric: str = "accuracy"
    kinds: tuple[str, ...] = ()
    mean: bool = False

    @property
    def arm(self) -> str:
        """Name of its arm."""
        return "-".join(filter(None, ("vlm", ENCODER, self.condition, self.decoder, self.variant)))


@dataclass(frozen=True)
class RealScore:
    """A score on the user's copy of a real data set, see :mod:`ctvlm_lib.experiments.real_arms`.

    Attributes:
        arm: of profile ``paper``. form, metric, kinds, mean: as of :class:`Score`.
    """

    arm: str
    form: str = "closed"
    metric: str = "accuracy"
    kinds: tuple[str, ...] = ()
    mean: bool = False


@dataclass(frozen=True)
class Recall:
    """Recall of reports or volumes of a pretrained encoder, in %.

    Attributes:
        arm: of pretraining. direction: "image→text" or "text→image". gallery: candidates. k: how many may be named.
    """

    arm: str
    direction: str
    gallery: int
    k: int


@dataclass(frozen=True)
class Aligned:
    """A measure of a local–global arm, see :mod:`ctvlm_lib.experiments.local_global_tables`.

    Attributes:
        arm: of alignment. measure: "global AUROC", "R@10", … split: "test" or "external".
        reading: how regions are read. wording: of detection. percent: 0–100 instead of a share.
    """

    arm: str
    measure: str
    split: str = "test"
    reading: str = "mask pooled"
    wording: str = "affirmed"
    percent: bool = False


@dataclass(frozen=True)
class Chat:
    """A measure of a chat arm on the test split, in the paper's scale, see :mod:`ctvlm_lib.experiments.chat_tables`.

    Attributes:
        arm: "chat-full", … task: "long answer", … measure: "BLEU-1", …
    """

    arm: str
    task: str
    measure: str


@dataclass(frozen=True)
class Staged:
    """A measure of one of U-VLM's arms on the test split, see :mod:`ctvlm_lib.experiments.uvlm_tables`.

    Attributes:
        arm: "uvlm-cls-CL", … measure: "labels F1", "BLEU-mean", … percent: the published number is in percent.
    """

    arm: str
    measure: str
    percent: bool = False


@dataclass(frozen=True)
class Size:
    """Parameters of a decoder, 10⁹.

    Attributes:
        decoder: of :data:`ctvlm_lib.ledger.decoder_sizes.NAMES`.
    """

    decoder: str


Quantity = Score | RealScore | Recall | Aligned | Chat | Staged | Size
