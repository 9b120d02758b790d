"""MedVista3D's Table 3 from what the chat arms answered: four tasks, four text metrics, and what they leave out.

Answers are scored as the paper says that it does ("evaluation follows CT-CHAT"): pycocoevalcap's BLEU-1, ROUGE-L and
CIDEr on words between white space, and NLTK's METEOR in the place of its Java one. The text of a choice is scored with
its letter, "B. cyst", as it is learnt. Beside the text scores stands whether an answer is right, which they don't tell:

    accuracy        multiple choice: the right choice (the paper says 91.5 % in its text, and no table has it)
    exact match     short answers: the truth word for word
    right findings  long answers: affirms the findings that the truth affirms, and no others
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.damaged import read_csv
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import affirmed_findings
from ctvlm_lib.evaluate.choice import exactly_right, score_closed
from ctvlm_lib.evaluate.intervals import Interval, bootstrap_of_sums, patient_bootstrap
from ctvlm_lib.evaluate.text import TextStatistics, text_statistics
from ctvlm_lib.evaluate.text_papers import Variant, variants
from ctvlm_lib.experiments import answers, asked, stored_arms
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.experiments.chat_protocol import load
from ctvlm_lib.experiments.chat_records import TASKS, task_of
from ctvlm_lib.records.package import target_text

PREFIX, QUESTIONS, TABLE = "chat-", "chat-questions", "table.csv"
SPLITS = ("validation", "test")
KEY, NUMBERS = ["split", "task", "measure", "n", "patients"], ["value", "low", "high"]
DIGITS = 6
# column of the ledger's table → what the paper means by it
COLUMNS: dict[str, Variant] = {one.column.replace("_", "-"): one for one in variants("medvista3d")}
COLUMNS["CIDEr"] = COLUMNS.pop("CIDER")
RIGHT = {TASKS[0]: "right findings", TASKS[1]: "exact match", TASKS[3]: "accuracy"}


def of_task(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """The answers of one task.

    Raises:
        BadInput: no such task.
    """
    if task not in TASKS:
        raise BadInput(f"no task is called {task!r}; choose one of {', '.join(TASKS)}")
    return table[[task_of(kind, form) == task for kind, form in zip(table["kind"], table["form"], strict=True)]]


def statistics(rows: pd.DataFrame, columns: Sequence[str] | None = None) -> TextStatistics:
    """Text scores of some answers; those of choices are compared with letter and words of the right one.

    Args:
        rows: of a table of answers.
        columns: of COLUMNS; None takes all.
    """
    columns = tuple(COLUMNS) if columns is None else columns
    wanted = [
        target_text(SimpleNamespace(choices=choices, answer=truth))
        for choices, truth in zip(rows["choices"], rows["truth"], strict=True)
    ]
    return text_statistics(rows["answer"].tolist(), wanted, metrics=[COLUMNS[name].metric for name in columns])


def right(rows: pd.DataFrame, task: str) -> pd.Series:
    """Whether each answer is right, 0 or 1, as RIGHT says of the task."""
    if task == TASKS[3]:
        return score_closed(rows)["correct"].astype(float)
    if task == TASKS[1]:
        return exactly_right(rows)
    said = zip(rows["answer"], rows["truth"], rows["region"], strict=True)
    same = [
        bool(answer.strip()) and affirmed_findings(answer, region) == affirmed_findings(truth, region)
        for answer, truth, region in said
    ]
    return pd.Series(same, rows.index, dtype=float)


def measures(table: pd.DataFrame, split: str = "test", columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All that is measured of one arm's answers to one split.

    Args:
        table: of answers.
        split: its name.
        columns: which of COLUMNS; None takes all. METEOR asks for the asset ``wordnet``.

    Returns:
        split, task, measure, n (answers), patients, then value, low and high: an interval over patients, in the paper's
        scale, which is 0…1, of CIDEr 0…10.
    """
    found, columns = [], tuple(COLUMNS) if columns is None else columns
    for task in TASKS:
        rows = of_task(table, task)
        if rows.empty:
            continue
        texts, who = statistics(rows, columns), rows["patient"].tolist()
        every = {name: _interval(texts, name, who) for name in columns}
        if task in RIGHT:
            every[RIGHT[task]] = patient_bootstrap(right(rows, task).to_numpy(), who, **_level())
        for name, one in every.items():
            factor = COLUMNS[name].factor if name in COLUMNS else 1.0
            values = [round(factor * value, DIGITS) for value in (one.value, one.low, one.high)]
            found.append((split, task, name, one.n, one.patients, *values))
    return pd.DataFrame(found, columns=KEY + NUMBERS)


def said(folder: str | Path, split: str = "test") -> pd.DataFrame:
    """An arm's stored answers.

    Args:
        folder: of the arm and seed; the questions lie beside it, or ship with the workbook.
        split: "validation" or "test".

    Raises:
        BadInput: it isn't stored, or is of other questions.
    """
    return answers.load(Path(folder) / f"{split}.npz", questions(split, Path(folder).parent))


def questions(split: str, results: str | Path = RESULTS) -> Asked:
    """What the chat arms are asked of a split; where a folder of results has none, what ships.

    Raises:
        BadInput: there are none.
    """
    places = (Path(root) / QUESTIONS / f"{split}.npz" for root in (results, RESULTS))
    path = next((one for one in places if one.is_file()), None)
    if path is None:
        raise BadInput(f"what the chat arms are asked of {split} isn't stored; run `ctvlm arm {PREFIX}full`")
    return asked.load(path)


def folders(roots: Sequence[str | Path] = (RESULTS,)) -> dict[str, dict[int, Path]]:
    """Arm → seed → folder of what is stored; what a later root has replaces an earlier one's."""
    return stored_arms.folders(PREFIX, roots)


def read_table(folder: str | Path) -> pd.DataFrame:
    """What was measured of an arm, by split, task and measure: its stored table, or else computed from its answers."""
    folder = Path(folder)
    if (folder / TABLE).is_file():
        table = read_csv(folder / TABLE, KEY)
    else:
        table = measures_of(folder)
    return table.set_index(KEY[:3]).sort_index()


def measures_of(folder: str | Path) -> pd.DataFrame:
    """:func:`measures` of all splits that a folder holds."""
    there = [split for split in SPLITS if (Path(folder) / f"{split}.npz").is_file()]
    if not there:
        raise BadInput(f"{Path(folder).name} holds no answers; run the arm again")
    return pd.concat([measures(said(folder, split), split) for split in there], ignore_index=True)


def over_seeds(arm: Sequence[pd.DataFrame], task: str, measure: str, split: str = "test") -> Interval:
    """A measure of an arm: mean over its seeds, from the lowest to the highest end of their intervals.

    Args:
        arm: of :func:`read_table`, one a seed.
        task, measure, split: which.
    """
    rows = [table.loc[(split, task, measure)] for table in arm]
    low, high = min(float(row["low"]) for row in rows), max(float(row["high"]) for row in rows)
    mean = float(np.mean([row["value"] for row in rows]))
    return Interval(mean, low, high, int(rows[0]["n"]), int(rows[0]["patients"]))


def table_3(
    roots: Sequence[str | Path] = (RESULTS,), split: str = "test", measures: Sequence[str] | None = None
) -> pd.DataFrame:
    """Table 3 in its own shape: a row for each stored arm, under each task its measures, mean over the seeds.

    Args:
        roots: see :func:`folders`.
        split: "test" or "validation".
        measures: columns of COLUMNS, or "right" for what RIGHT says of each task; None takes all columns.

    Returns:
        rows named by arm; columns (task, measure), values in the paper's scale.
    """
    made, measures = {}, tuple(COLUMNS) if measures is None else measures
    for arm, by_seed in folders(roots).items():
        tables = [read_table(path) for _, path in sorted(by_seed.items())]
        wanted = [(task, RIGHT.get(task, "") if name == "right" else name) for task in TASKS for name in measures]
        made[arm.removeprefix(PREFIX)] = {
            (task, name): over_seeds(tables, task, name, split).value for task, name in wanted if name
        }
    return pd.DataFrame.from_dict(made, orient="index")


def _interval(texts: TextStatistics, column: str, patients: Sequence[str]) -> Interval:
    sums, of_sums = texts.sums(COLUMNS[column].metric)
    return bootstrap_of_sums(sums, patients, of_sums, **_level())


def _level() -> dict:
    fixed = load()["scoring"]
    return {"confidence": fixed["confidence"], "resamples": fixed["resamples"]}
