"""Do the stored tables follow from the stored predictions, and does every record say what was run?

Each folder of results is looked at by itself: its files against the list of hashes, its table against its predictions,
its record against the protocol, the questions and the shipped checkpoint. A problem is a sentence that begins with the
file's name; a note is what a reader should know of an arm that is as it should be.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.arm_tables import FACTS, RESULTS, name_and_seed
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import answers, asked, chat_tables, predicted_prompts
from ctvlm_lib.experiments import uvlm_arms as staged
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.asked import Asked
from ctvlm_lib.ledger import chat, claims, local_global, record_checks, stored_tables, sums, uvlm
from ctvlm_lib.ledger.record_checks import Under

SPLITS = ("validation", "test")
QUESTIONS = "questions"
TRUTH = f"{local_global.PREFIX}truth"
PREDICTIONS = "test.safetensors"


@dataclass
class Folder:
    """One folder of results and what was found.

    Attributes:
        name: of the folder.
        holds: in words.
        listed: whether its files stand in the list of hashes.
        came: files of a listed folder that don't stand there yet.
        problems, notes: see the module.
        record: of the arm, {} where there is none.
        table: for an arm of answers, the text of the table that follows from them.
    """

    name: str
    holds: str = ""
    listed: bool = False
    came: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    record: dict = field(default_factory=dict)
    table: str = ""


@dataclass(frozen=True)
class Against:
    """What folders are compared with.

    Attributes:
        listed: path → hash.
        under: the protocol.
        questions: split → what was asked, or why it can't be read.
        checkpoints: folder of the shipped networks; None: they aren't at hand.
    """

    listed: Mapping[str, str]
    under: Under
    questions: Mapping[str, Asked | str]
    checkpoints: Path | None

    @classmethod
    def of(cls, results: Path, under: Under, checkpoints: Path | None, forget: Iterable[str] = (),
           derived: bool = True) -> "Against":  # fmt: skip
        """Read the list and the questions of a folder of results; without questions those that ship are taken.

        Args:
            results: with a folder for each arm.
            under: the protocol.
            checkpoints: folder of the shipped networks.
            forget: names of folders that are taken as if they weren't listed.
            derived: False takes scores that the ledger may have written again as if they weren't listed.
        """
        listed = {path: value for path, value in sums.read(results).items() if path.split("/")[0] not in set(forget)}
        if not derived:
            listed = {path: value for path, value in listed.items() if path.split("/")[-1] != sums.DERIVED}
        home = results if (results / QUESTIONS).is_dir() else RESULTS
        return cls(listed, under, {split: _questions(asked.path_of(split, home)) for split in SPLITS}, checkpoints)


def _questions(path: Path) -> Asked | str:
    try:
        return asked.load(path)
    except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever zip, LZMA and numpy have
        return f"the questions can't be read ({error})"


def folders(results: Path, against: Against) -> Iterator[Folder]:
    """Check a folder of results, one folder in it at a time, then what is listed and isn't there.

    Raises:
        BadInput: it holds no folder at all.
    """
    there = sorted(path for path in results.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not there:
        raise BadInput(f"{results.name} holds no results; give the folder with a folder for each arm, or an archive")
    for path in there:
        yield check(path, against)
    for name in sorted({path.partition("/")[0] for path in against.listed} - {path.name for path in there}):
        gone = f"{sums.NAME}: lists the arm, and its folder isn't there"
        yield Folder(name, "nothing", listed=True, problems=[gone])


def check(path: Path, against: Against) -> Folder:
    """Check one folder."""
    listed = sums.of_folder(against.listed, path.name)
    found = Folder(path.name, listed=bool(listed))
    try:
        _look(path, found, against)
    except (BadInput, OSError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        # an altered file may have any shape, and the other folders shall be checked all the same
        found.problems.append(f"its files: can't be checked ({type(error).__name__}: {error}); restore them")
    if listed:
        told, found.came = sums.differences(path, listed)
        found.problems += told
    return found


def _look(path: Path, found: Folder, against: Against) -> None:
    if path.name == QUESTIONS:
        for split, some in against.questions.items():
            if isinstance(some, str):
                found.problems.append(f"{split}.npz: {some}; restore it")
            else:
                found.holds += f"{', ' * bool(found.holds)}{len(some):,} questions of {split}"
        return
    if path.name == FACTS:  # tables of readers who have no predictions and no record
        found.holds = f"{len(pd.read_csv(path / 'test.csv'))} recalls without a model"
        return
    if path.name.startswith(local_global.PREFIX):
        _local_global(path, found, against)
        return
    if path.name.startswith(chat_tables.PREFIX):
        _chat(path, found, against)
        return
    if path.name.startswith(staged.PREFIX):
        if path.name == staged.TRUTH:
            found.holds = "what is true of the patients that U-VLM's arms are asked about"
            return
        _own_protocol(path, found, against, uvlm)
        found.holds = f"{found.table.count(chr(10)) - 1} measures of an arm of U-VLM"
        return
    if name_and_seed(path.name)[0] == claims.RECORD.parent.name:
        _measurements(path, found)
        return
    said = [split for split in SPLITS if (path / f"{split}.npz").is_file()]
    retrieval = (path / PREDICTIONS).is_file()
    if not (path / record_checks.NAME).is_file():
        found.holds = "unfinished"
        found.problems.append(f"{record_checks.NAME}: isn't there, so the arm isn't finished; finish it or remove it")
        return
    found.record, wrong = record_checks.read(path)
    if not retrieval and not said:
        found.holds = "unfinished"
        found.problems.append(f"test.npz: there are no predictions ({PREDICTIONS} or test.npz); finish it or remove it")
        return
    found.problems += wrong or _record(path.name, found, bool(said), against)
    if said:
        _answers(path, said, found, against)
        if path.name.startswith(predicted_prompts.NAME):
            _masks(path, found, against)
    else:
        _recalls(path, found)


def _measurements(path: Path, found: Folder) -> None:
    """What the arm of cost measured on a GPU; it has no protocol and no predictions."""
    found.record, told = record_checks.read(path)
    lacks = [field for field in ("profile", "hardware", "versions") if not found.record.get(field)]
    found.problems += told or [f"{record_checks.NAME}: lacks {field}" for field in lacks]
    if found.record.get("seed") != name_and_seed(path.name)[1]:
        found.problems.append(f"{record_checks.NAME}: its seed isn't the one that the folder's name says")
    if not found.record.get("finished"):
        found.problems.append(f"{record_checks.NAME}: the measurement was cut short; run it again")
    found.notes += record_checks.circumstances(found.record)
    found.holds = f"{len(claims.measurements(path / record_checks.NAME))} measurements of time and memory"


def _local_global(path: Path, found: Folder, against: Against) -> None:
    """An arm of local and global alignment, or what is true of its splits."""
    if path.name == TRUTH:
        found.holds = "what is true of the patients that the local–global arms are asked about"
        return
    _own_protocol(path, found, against, local_global)
    found.holds = f"{found.table.count(chr(10)) - 1} measures of local and global alignment"


def _chat(path: Path, found: Folder, against: Against) -> None:
    """An arm of chat, or what these are asked."""
    if path.name == chat_tables.QUESTIONS:
        found.holds = chat.holds(path)
        return
    _own_protocol(path, found, against, chat)
    found.problems += chat.against_encoder(found.record, against.checkpoints)
    counted = found.record.get("rows") or {}
    for split in counted:
        said, questions = chat_tables.said(path, split), chat_tables.questions(split, path.parent)
        found.problems += [f"{split}.npz: {text}" for text in _rows(said, counted[split], found.record, questions)]
    found.holds = f"{sum(counted.values()):,} answers of a chat arm"


def _own_protocol(path: Path, found: Folder, against: Against, kind) -> None:
    """An arm with a protocol and a table of its own; ``kind`` is the ledger's module of such arms."""
    found.record, told = record_checks.read(path)
    found.problems += told or kind.problems(found.record, name_and_seed(path.name)[1])
    found.notes += record_checks.circumstances(found.record)
    found.problems += record_checks.against_checkpoint(path.name, found.record, against.checkpoints)
    found.table = kind.table_text(path)
    stored = path / kind.NAME
    if found.listed and not stored.is_file():
        found.problems.append(f"{kind.NAME}: isn't there; write it with `ctvlm verify --update`")
    elif found.listed:
        found.problems += kind.compare(stored.read_text(encoding="utf-8"), found.table)


def _record(name: str, found: Folder, answered: bool, against: Against) -> list[str]:
    wrong = record_checks.problems(name, found.record, answered)
    differs, told = record_checks.against_protocol(found.record, against.under)
    found.notes += told + record_checks.circumstances(found.record)
    return wrong + differs + record_checks.against_checkpoint(name, found.record, against.checkpoints)


def _answers(path: Path, splits: list[str], found: Folder, against: Against) -> None:
    """An arm of answers: how many, to which questions, and the table that follows."""
    said: dict[str, pd.DataFrame] = {}
    counted = found.record.get("rows") or {}
    for split in sorted(set(counted) - set(splits)):
        found.problems.append(f"{split}.npz: isn't there, and the record counts {counted[split]:,} answers in it")
    for split in splits:
        questions = against.questions[split]
        if isinstance(questions, str):
            found.problems.append(f"{split}.npz: can't be scored, as {questions}")
            continue
        try:
            said[split] = answers.load(path / f"{split}.npz", questions)
        except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever zip, LZMA and numpy have
            found.problems.append(f"{split}.npz: can't be read ({error}); restore it")
            continue
        wrong = _rows(said[split], counted.get(split), found.record, questions)
        found.problems += [f"{split}.npz: {text}" for text in wrong]
    found.holds = f"{sum(map(len, said.values())):,} answers"
    if not said:
        return
    try:
        found.table = stored_tables.as_text(stored_tables.table_of_answers(said))
    except BadInput as error:
        found.problems.append(f"test.npz: {error}")
        return
    if found.listed and len(said) == len(splits):
        found.problems += _stored(path / stored_tables.NAME, found.table)
    if "test" in said and (path / sums.DERIVED).is_file():
        digest = sums.sha256_of(path / "test.npz")
        found.problems += stored_tables.compare_scores(pd.read_csv(path / sums.DERIVED, dtype=str), found.table, digest)


def _masks(path: Path, found: Folder, against: Against) -> None:
    """What prompts on predicted masks have beside their answers: the masks' Dice, and the networks they came from."""
    asked_of = against.questions["test"]
    if isinstance(asked_of, Asked):
        table = predicted_prompts.read_masks(path, asked_of.names)
        found.holds += f" with true, predicted and no masks; Dice of {len(table)} regions"
    for name, sha256 in found.record["made_with"].items():
        if against.checkpoints is None or not (against.checkpoints / name).is_dir():
            continue
        if checkpoints.record(name, against.checkpoints)["weights"]["sha256"] != sha256:
            told = f"made with other weights than checkpoints/{name} has; run it again"
            found.problems.append(f"{record_checks.NAME}: {told}")


def _rows(table: pd.DataFrame, counted: int | None, record: dict, questions: Asked) -> Iterator[str]:
    """What is wrong with the number of answers."""
    if counted != len(table):
        yield f"holds {len(table):,} answers, and the record counts {counted or 0:,}"
    seeds = sorted(set(table["seed"]))
    if seeds != [record.get("seed")]:
        yield f"is of the seeds {seeds}, and the record's is {record.get('seed')!r}"
    twice = int(table.duplicated(["id", "condition", "control"]).sum())
    if twice:
        yield f"holds {twice:,} answers to a question that was answered before"
    every = questions.table
    for condition, group in table[table["control"] == AS_ASKED].groupby("condition"):
        asked_of = every[every["patient"].isin(set(group["patient"]))]
        sorts = set(zip(group["kind"], group["form"], strict=True))
        wanted = sum(sort in sorts for sort in zip(asked_of["kind"], asked_of["form"], strict=True))
        if wanted != len(group):
            yield f"holds {len(group):,} answers as asked under {condition}, and {wanted:,} such questions were asked"


def _stored(path: Path, table: str) -> list[str]:
    """What differs between the stored table and the one that follows from the answers."""
    if not path.is_file():
        return [f"{path.name}: isn't there; restore it"]
    try:
        stored = path.read_text(encoding="utf-8")
        return [] if stored == table else stored_tables.compare_answers(*map(stored_tables.read, (stored, table)))
    except ValueError as error:
        return [f"{path.name}: can't be read as a table ({error}); restore it"]


def _recalls(path: Path, found: Folder) -> None:
    """An arm of retrieval: its table by its predictions, and both its tables by its record."""
    from ctvlm_lib.alignment.scoring import Predictions

    for split in SPLITS:
        name, rows = f"{split}.csv", (found.record.get(split) or {}).get("recall")
        if not (path / name).is_file():
            found.problems += [f"{name}: isn't there, and the record holds its recalls"] if rows else []
            continue
        stored = pd.read_csv(path / name)
        if rows:
            found.problems += stored_tables.compare_recalls(stored, pd.DataFrame(rows).round(4), name,
                                                            record_checks.NAME)  # fmt: skip
        if split == "test":
            again = Predictions.load(path / PREDICTIONS).table(arm=path.name, split=split)
            found.problems += stored_tables.compare_recalls(stored, again, name, PREDICTIONS)
            found.holds = f"{len(again)} recalls"
