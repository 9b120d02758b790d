"""The four tasks of MedVista3D's Table 3, as questions about the cohort that need no prompt.

    long answer        "Describe the liver.": all that the report says of a region
    short answer       open questions whose words name their region, and the contrast phase
    report generation  the whole report
    multiple choice    closed questions with choices, likewise

Short answers, multiple choices and reports are the protocol's own questions. Long answers are made here: the rewriting
of CT-RATE's reports into questions isn't public, and the phantoms' reports come in sentences by region.
"""

from collections.abc import Iterable, Mapping

from ctvlm_lib.experiments.asked import stratum
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.vlm_lessons import key_of
from ctvlm_lib.records.phantom import REGIONS, Patient
from ctvlm_lib.records.protocol import check_budget
from ctvlm_lib.records.questions import case_folder
from ctvlm_lib.records.record import Record
from ctvlm_lib.records.report import report
from ctvlm_lib.vlm.finetune import Finetuning
from ctvlm_lib.vlm.lessons import Lesson

TASKS = ("long answer", "short answer", "report generation", "multiple choice")  # in the order of the table
LONG_QUESTION = "Describe the {region}."
LONG, REPORT = "other", "report"  # kinds of record


def task_of(kind: str, form: str) -> str:
    """The task that a question of the four belongs to, by its kind and form."""
    if kind in (LONG, REPORT):
        return TASKS[0] if kind == LONG else TASKS[2]
    return TASKS[3] if form == "closed" else TASKS[1]


def long_answers(patients: Iterable[Patient], split: str) -> list[Record]:
    """One question for each region in the field, whose answer is what the patient's report says of it.

    They aren't part of the protocol's question set and aren't balanced: a region without a finding is as frequent as it
    is, so a part of each answer can be guessed from the question. The sentences are those that local alignment learns
    from (:attr:`ctvlm_lib.alignment.grounded.Grounded.sentences`).

    Args:
        patients: of one split.
        split: its name.
    """
    made = []
    for patient in patients:
        folder, said = case_folder(patient), report(patient).regions
        common = {"dataset": "phantom", "patient": patient.name, "split": split, "style": "plain", "kind": LONG,
                  "volume": f"{folder}/ct.nii.gz", "mask": f"{folder}/labels.nii.gz", "form": "open", "choices": (),
                  "distractor": None, "names_region": True}  # fmt: skip
        made += [
            Record(id=f"{folder}:{region}:describe:open:named", region=region, answer=said[region],
                   question=LONG_QUESTION.format(region=region), **common)
            for region in REGIONS
            if region in said
        ]  # fmt: skip
    return made


def needs_no_prompt(record: Record, kinds: Iterable[str]) -> bool:
    """Whether one of the protocol's questions belongs to a task: a report, or of these kinds and not without a name.

    Closed questions without choices, those on presence, belong to none.
    """
    if record.kind == REPORT:
        return True
    told = record.kind in kinds and stratum(record) != "unnamed"
    return told and (record.form == "open" or bool(record.choices))


def with_tasks(cohort: Cohort, kinds: Iterable[str], patients: Mapping[str, int]) -> Cohort:
    """The same cohort, asked the four tasks only.

    Args:
        cohort: whose scans are kept for the splits that count.
        kinds: of short answers and multiple choices.
        patients: split → the first so many are asked; what isn't named takes all.
    """
    kinds, records = tuple(kinds), {}
    for split, those in cohort.patients.items():
        first = list(those)[: patients.get(split) or None]
        names = {patient.name for patient in first}
        own = [r for r in cohort.records[split] if r.patient in names and needs_no_prompt(r, kinds)]
        records[split] = [*own, *long_answers(first, split)]
    return Cohort(cohort.profile, cohort.scans, records, cohort.patients)


def lessons_of(cohort: Cohort, config: Finetuning, split: str = "train") -> list[Lesson]:
    """What a split teaches: of each patient one lesson a task, so that the tasks are drawn equally often.

    Args:
        cohort: of :func:`with_tasks`.
        config: says how many patients.
        split: of the cohort.

    Raises:
        BadInput: more training patients than there are.
    """
    if split == "train":
        check_budget(config.patients, len(cohort.scans[split]))
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in cohort.questions(split, patients=config.patients):
        groups.setdefault((record.patient, task_of(record.kind, record.form)), []).append(record)
    return [Lesson(key_of(asked[0], config), tuple(asked)) for asked in groups.values()]
