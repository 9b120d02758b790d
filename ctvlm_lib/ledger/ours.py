"""What of ours stands beside a published number: which quantity it is, and its value from the stored answers.

Seeds are shown by their mean; the interval reaches from the lowest to the highest end of all seeds' intervals over
patients. Nothing is trained here, and nothing is averaged over arms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.arm_tables import RESULTS, name_and_seed
from ctvlm_lib.damaged import read_csv
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.evaluate.intervals import Interval, bootstrap_of_sums, mean_of_sums
from ctvlm_lib.evaluate.text_registry import ROBERTA
from ctvlm_lib.experiments import asked, chat_tables, real_arms, uvlm_tables, vlm_tables
from ctvlm_lib.experiments.local_global_tables import read_table
from ctvlm_lib.experiments.vlm_tables import ArmAnswers
from ctvlm_lib.ledger import chat, decoder_sizes, local_global, stored_scores, uvlm
from ctvlm_lib.ledger.quantities import Aligned, Chat, Quantity, RealScore, Recall, Score, Size, Staged
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import as_it_stands
from ctvlm_lib.records.table import read_json
from ctvlm_lib.run import run_folder

ANSWERS, TABLE = "test.npz", "test.csv"
PER_ANSWER = {"accuracy": ("correct", 100.0), ROBERTA: ("similar", 1.0)}  # metric: column of the answers, unit


@dataclass(frozen=True)
class Measured:
    """A value of ours.

    Attributes:
        value, low, high: in the published unit; the ends are NaN of what is counted.
        n, patients: how many answers, of how many patients.
        seeds: of training. arm, profile, commits: where it comes from.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    patients: int = 0
    seeds: tuple[int, ...] = ()
    arm: str = ""
    profile: str = ""
    commits: tuple[str, ...] = ()


@dataclass
class Results:
    """Stored answers of finished arms, read once.

    Args:
        roots: folders with a folder for each arm and seed; what a later one has replaces an earlier one's.
        real: folder with the arms of profile ``paper``, a user's own; None where there are none.
        stored: whether the scores that lie beside the answers are taken, while they belong to these answers.
    """

    roots: Sequence[str | Path] = (RESULTS,)
    stored: bool = True
    real: str | Path | None = None
    _read: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of_profile(cls, profile: str, out: str | Path = "") -> "Results":
        """What ships with the workbook, what was trained into an output folder, and in ``paper`` the user's own."""
        real = run_folder("paper", out) / "results" if profile == "paper" else None
        return cls((RESULTS, run_folder("full", out) / "results"), real=real)

    @cached_property
    def asked(self) -> asked.Asked:
        """The test split's questions."""
        return asked.load(asked.path_of("test"))

    def folders(self, arm: str) -> dict[int, Path]:
        """Seed → folder of a finished arm's results.

        Raises:
            BadInput: a folder without its record or answers: the arm is half finished.
        """
        found = {}
        for path in (path for root in self.roots for path in sorted(Path(root).glob(f"{arm}*"))):
            name, seed = name_and_seed(path.name)
            if name == arm and path.is_dir():
                beside = {"vlm": ANSWERS, "align": local_global.NAME, "chat": chat.NAME, "uvlm": uvlm.NAME}
                of = beside.get(arm.partition("-")[0], TABLE)
                wanted = ("record.json", of)
                lost = [one for one in wanted if not (path / one).is_file()]
                if lost:
                    raise BadInput(f"{path.name} is half finished: {lost[0]} isn't there; run `ctvlm arm {arm}"
                                   f" --seed {seed}` again, or take the folder away")  # fmt: skip
                found[seed] = path
        return found

    def real_folders(self, arm: str) -> dict[int, Path]:
        """Seed → folder of a user's finished arm; for retrieval also released weights that were only scored."""
        found = {}
        for path in sorted(Path(self.real).glob(f"{arm}*")) if self.real else ():
            name, seed = name_and_seed(path.name)
            if path.is_dir() and (name == arm or name.startswith(f"{arm}-epochs0-start")):
                found[seed] = path
        return found

    def otherwise(self, quantity: RealScore | Recall) -> tuple[str, ...]:
        """What of a user's arm was run otherwise than the paper says, see :class:`ctvlm_lib.sources.Sources`."""
        records = [self.record(path) for path in self.real_folders(quantity.arm).values()]
        return tuple(dict.fromkeys(name for record in records for name in record.get("otherwise", ())))

    def record(self, path: Path) -> dict:
        """A folder's record."""
        return read_json(path / "record.json", dict)

    def answers(self, path: Path) -> ArmAnswers:
        """A vision–language arm's answers, scored.

        Raises:
            BadInput: answers under another protocol; the sentence says what differs.
        """
        if path.name not in self._read:
            check_protocol(path.name, self.record(path))
            self._read[path.name] = vlm_tables.read(path, self.asked)
        return self._read[path.name]

    def measure(self, quantity: Quantity) -> Measured | None:
        """The value of a quantity, None where no arm of it has finished.

        Raises:
            BadInput: a half-finished arm, or one under another protocol.
        """
        if isinstance(quantity, Size):
            return Measured(decoder_sizes.parameters(quantity.decoder) / 1e9)
        return self._measured(quantity, self.folders(quantity.arm))

    def measure_real(self, quantity: RealScore | Recall | None) -> Measured | None:
        """The value of a quantity on the user's own data, None where no arm of it has finished.

        Raises:
            BadInput: answers that can't be read.
        """
        return None if quantity is None else self._measured(quantity, self.real_folders(quantity.arm))

    def _measured(self, quantity: Quantity, folders: dict[int, Path]) -> Measured | None:
        one = {Score: self.score, RealScore: self._real_score, Recall: self._recall,
               Aligned: self._aligned, Chat: self._chat, Staged: self._staged}[type(quantity)]  # fmt: skip
        found = {seed: interval for seed, path in sorted(folders.items()) if (interval := one(quantity, path))}
        if not found:
            return None
        records = [self.record(folders[seed]) for seed in found]
        every = list(found.values())
        return Measured(
            value=float(np.mean([i.value for i in every])), low=min(i.low for i in every),
            high=max(i.high for i in every), n=every[0].n, patients=every[0].patients, seeds=tuple(found),
            arm=quantity.arm, profile=records[0].get("profile", ""), commits=_commits(records),
        )  # fmt: skip

    def score(self, quantity: Score, path: Path) -> Interval | None:
        """One arm's score, of one seed's folder; the stored one if it belongs to these answers."""
        key = (quantity, path.name)
        if key not in self._read:
            kept = stored_scores.read(path) if self.stored else {}
            self._read |= {(one, path.name): interval for one, interval in kept.items()}
        if key not in self._read:
            self._read[key] = score(self.answers(path), quantity)
        return self._read[key]

    def _real_score(self, quantity: RealScore, path: Path) -> Interval | None:
        if path not in self._read:
            arm, table = real_arms.arm_of(quantity.arm), real_arms.read(path)
            table = table.assign(correct=score_closed(table)["correct"].astype(float).reindex(table.index))
            similar = real_arms.read_bert_score(path)
            table["similar"] = np.nan if similar is None else table["id"].map(similar)
            self._read[path] = ArmAnswers(quantity.arm, 0, "", arm.condition, arm.decoder, "", table)
        return score(self._read[path], quantity)

    def _aligned(self, quantity: Aligned, path: Path) -> Interval | None:
        if path not in self._read:
            self._read[path] = read_table(path)
        return local_global.interval(self._read[path], quantity)

    def _chat(self, quantity: Chat, path: Path) -> Interval | None:
        if path not in self._read:
            self._read[path] = chat_tables.read_table(path)
        return chat.interval(self._read[path], quantity)

    def _staged(self, quantity: Staged, path: Path) -> Interval | None:
        if path not in self._read:
            self._read[path] = uvlm_tables.read_table(path)
        return uvlm.interval(self._read[path], quantity)

    def _recall(self, quantity: Recall, path: Path) -> Interval | None:
        rows = read_csv(path / TABLE, ("direction", "gallery", "k", "recall", "low", "high", "queries"))
        same = (rows["direction"] == quantity.direction) & (rows["gallery"] == quantity.gallery)
        rows = rows[same & (rows["k"] == quantity.k)]
        if rows.empty:
            return None
        row = rows.iloc[0]
        recall = (100 * float(row[name]) for name in ("recall", "low", "high"))
        return Interval(*recall, n=int(row["queries"]), patients=int(row["queries"]))


def score(arm: ArmAnswers, quantity: Score | RealScore) -> Interval | None:
    """One arm's score with its interval over patients, 0–100; None where it wasn't asked such questions."""
    rows = arm.rows(quantity.form, quantity.kinds, "named")
    if rows.empty or (quantity.metric == ROBERTA and rows["similar"].isna().any()):
        return None
    sums, of_sums = _sums(arm, rows, quantity)
    if quantity.mean:
        sums, of_sums = _by_kind(sums, of_sums, rows["kind"].tolist())
    metrics = protocol.load().content["metrics"]
    return bootstrap_of_sums(sums, rows["patient"].tolist(), of_sums, confidence=metrics["confidence"],
                             resamples=metrics["resamples"])  # fmt: skip


def check_protocol(label: str, record: dict) -> None:
    """Raise BadInput if an arm answered under another protocol than the one that stands in the project."""
    its, mine = record.get("protocol"), as_it_stands()
    if isinstance(its, dict) and its.get("sha256") != mine.sha256:
        what = "version" if its.get("version") != mine.version else "sha256"
        raise BadInput(
            f"{label} answered under another protocol: {what} {its.get(what)} instead of {getattr(mine, what)}; run the"
            " arm again under this one"
        )


def _sums(arm: ArmAnswers, rows: pd.DataFrame, quantity: Score | RealScore) -> tuple[np.ndarray, Callable]:
    if quantity.metric in PER_ANSWER:
        values, scale = PER_ANSWER[quantity.metric]
        return np.stack([scale * rows[values].to_numpy(), np.ones(len(rows))], axis=1), mean_of_sums
    return arm.statistics(rows, [quantity.metric]).sums(quantity.metric)


def _by_kind(sums: np.ndarray, of_sums: Callable, kinds: Sequence[str]) -> tuple[np.ndarray, Callable]:
    """Sums in a block of columns for each kind, and the plain mean over the blocks' statistics."""
    names, width = sorted(set(kinds)), sums.shape[1]
    blocks = np.zeros((len(sums), len(names) * width))
    for row, kind in enumerate(kinds):
        first = names.index(kind) * width
        blocks[row, first : first + width] = sums[row]

    def mean(total: np.ndarray) -> np.ndarray:
        parts = [of_sums(total[..., k * width : (k + 1) * width]) for k in range(len(names))]
        return np.mean(parts, axis=0)

    return blocks, mean


def _commits(records: Sequence[dict]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(record.get("commit", ""))[:7] for record in records if record.get("commit")))
