"""Readers of what runs leave behind: answers, scores, tables, records, archives, run.json, and the ledger's lists."""

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from ctvlm_lib import notebook_list, notebook_outputs, report, workbook
from ctvlm_lib.alignment import arm_tables
from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.alignment.m3d_pretrain import Retrieved
from ctvlm_lib.alignment.scoring import Predictions
from ctvlm_lib.evaluate.text_registry import ROBERTA
from ctvlm_lib.experiments import answers, asked, chat_tables, local_global_tables, real_arms, uvlm_said, uvlm_tables
from ctvlm_lib.experiments import vlm_tables as arms
from ctvlm_lib.experiments.local_global import Said
from ctvlm_lib.explore import keep
from ctvlm_lib.ledger import claims, contrasts, packed_results, published, record_checks, stored_scores, sums
from ctvlm_lib.records import phantom
from ctvlm_lib.records.committed import FILES
from ctvlm_lib.records.phantom import store
from ctvlm_lib.records.questions import candidates
from ctvlm_lib.records.record import write_jsonl
from ctvlm_lib.run import PROJECT, environment_record
from fuzz.target import Target, content_of

LEDGER = PROJECT / "ctvlm_lib" / "ledger"
ARM = "vlm-B-none-small"


def _results(*names: str):
    """Copies of committed results, ``folder`` or ``folder/file``."""

    def make(folder: Path) -> None:
        for name in names:
            if (RESULTS / name).is_dir():
                shutil.copytree(RESULTS / name, folder / name)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(RESULTS / name, folder / name)

    return make


def _of_ledger(name: str, lines: int):
    """A ledger's list with its first lines only: each case reads it whole."""

    def make(folder: Path) -> None:
        kept = (LEDGER / name).read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
        (folder / name).write_text("".join(kept), encoding="utf-8")

    return make


def _own_answers(folder: Path) -> None:
    (patient,) = phantom.cohort(1, seed=3)
    records = candidates(patient, "test")[:30]
    table = answers.answer_table(records, [r.answer for r in records], [0.5] * len(records), condition="none")
    write_jsonl(records, folder / real_arms.QUESTIONS)
    answers.save(table, records, folder / real_arms.ANSWERS)
    pd.DataFrame({ROBERTA: 0.5}, index=pd.Index([r.id for r in records], name="id")).to_csv(folder / real_arms.BERT)


def _read_own_answers(folder: Path, file: Path) -> None:
    real_arms.read(folder)
    real_arms.read_bert_score(folder)


def _retrieved(folder: Path) -> None:
    draw = np.random.default_rng(0)
    fields = {name: draw.random((4, 3), dtype=np.float32) for name in Retrieved.__dataclass_fields__}
    Retrieved(**fields | {"identity": np.arange(4)}).save(folder / "retrieved.safetensors")


def _scores(folder: Path, file: Path) -> None:
    store = local_global_tables.Store((folder,))
    store.said("align-box", 0, "validation")
    store.truth("validation")
    store.record("align-box", 0)
    local_global_tables.read_table(folder / "align-box")


def _chat(folder: Path, file: Path) -> None:
    chat_tables.said(folder / "chat-full", "validation")
    if (folder / "chat-full" / "table.csv").is_file():  # else it is computed from the answers, which takes seconds
        chat_tables.read_table(folder / "chat-full")


def _uvlm(folder: Path, file: Path) -> None:
    uvlm_said.read_said(folder / "uvlm-cls-CL" / "validation.npz")
    uvlm_tables.read_table(folder / "uvlm-cls-CL")


def _arm(folder: Path, file: Path) -> None:
    record_checks.read(folder / ARM)
    found = record_checks.read(folder / ARM)[0]
    record_checks.problems(ARM, found, True)
    arms.read(folder / ARM, asked.load(asked.path_of("validation", folder)), "validation")
    stored_scores.read(folder / ARM)


def _archive(folder: Path) -> None:
    results = folder / "results"
    shutil.copytree(RESULTS / "chat-full", results / "chat-full")
    sums.write(results, sums.of(results / "chat-full"))
    packed_results.pack(results, FILES, folder / "archive.zip")
    shutil.rmtree(results)


def _unpack(folder: Path, file: Path) -> None:
    with packed_results.unpacked(file) as (results, _):
        sums.read(results)


def _run_folder(folder: Path) -> None:
    """What ``make run`` leaves of one notebook."""
    entry = {"status": "done", "name": "10_volumes", "title": "Volumes", "seconds": 3.5, "peak_bytes": 10**9}
    record = {"profile": "quick", "seed": 0, "environment": environment_record(), "notebooks": {"10": entry}}
    index = {"tables": {"t": {"file": "tables/10_t.csv", "caption": "A table"}}, "figures": {}, "data": {}}
    state = {"key": "k", "files": ["tables/10_t.csv"], "tables": {"tables/10_t.csv": "0"}}
    for name, content in (("run.json", record), ("figures/10_index.json", index), ("state/10.json", state)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "tables").mkdir()
    (folder / "tables/10_t.csv").write_text("a,b\n1,x\n2,y\n", encoding="utf-8")


def _report(folder: Path, file: Path) -> None:
    """The page is written beside what it is made of, and so made of a copy."""
    with tempfile.TemporaryDirectory() as home:
        try:
            copy = shutil.copytree(folder, Path(home) / "run", symlinks=True)
        except shutil.Error:  # a file without permission
            return
        report.build(copy)


def _resumed(folder: Path, file: Path) -> None:
    notebook = SimpleNamespace(number="10", name="10_volumes", title="Volumes")
    workbook._WorkbookRun(folder, "quick", 0, [notebook], [notebook])
    notebook_outputs.is_current(folder, "10", "k")


def _notebooks(folder: Path) -> None:
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb"))[:2]:
        content = json.loads(path.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            cell.pop("outputs", None)
        (folder / path.name).write_text(json.dumps(content), encoding="utf-8")


def _view(folder: Path) -> None:
    state = {"case": "Phantom patient 1", "slice": 7, "window": "lung", "marks": [["liver", "blue", "contour"]]}
    (folder / "view.json").write_bytes(keep.view_json(state).content)


def _read_view(folder: Path, file: Path) -> None:
    """An upload: its bytes are there, whatever they are."""
    keep.read_view(content_of(file))


def _measured(folder: Path) -> None:
    one = {"value": 1.5, "unit": "s", "hardware": "CPU"}
    (folder / "cost.json").write_text(json.dumps({"measured": {"a": one, "b": one}}), encoding="utf-8")


TABLES = (
    Target("answers to own questions", _own_answers, _read_own_answers),
    Target("an arm's answers", _results(ARM, "questions/validation.npz"), _arm,
           (f"{ARM}/record.json", f"{ARM}/validation.npz", f"{ARM}/scores.csv", "questions/*.npz"), share=0.4),
    Target("predictions", _results("A/test.safetensors"), lambda folder, file: Predictions.load(file)),
    Target("retrieved", _retrieved, lambda folder, file: Retrieved.load(file)),
    Target("recalls", _results("A"), lambda folder, file: arm_tables.table("A", folder), ("A/test.csv",)),
    Target("local-global scores", _results("align-box", "align-truth"), _scores,
           ("*/validation.npz", "*/table.csv", "*/record.json")),
    Target("said of a region", _results("align-box/test.npz"), lambda folder, file: Said.load(file)),
    Target("chat answers", _results("chat-full", "chat-questions"), _chat, ("*/validation.npz", "*/table.csv")),
    Target("U-VLM answers", _results("uvlm-cls-CL"), _uvlm, ("*/validation.npz", "*/table.csv")),
    Target("archive of results", _archive, _unpack),
    Target("list of hashes", _results("sums.csv"), lambda folder, file: sums.read(folder)),
    Target("published numbers", _of_ledger("paper_tables.csv", 60),
           lambda folder, file: published.load.__wrapped__(file)),
    Target("claims", _of_ledger("paper_claims.csv", 60), lambda folder, file: claims.load.__wrapped__(file)),
    Target("contrasts", _of_ledger("contrasts.csv", 60), lambda folder, file: contrasts.load.__wrapped__(file)),
    Target("measurements", _measured, lambda folder, file: claims.measurements(file)),
    Target("phantom store", lambda folder: store.write_patient(phantom.cohort(1, seed=3).__next__(), folder / "p.npz"),
           lambda folder, file: store.read_patient(file)),
    Target("report page", _run_folder, _report, ("run.json", "figures/*", "tables/*")),
    Target("resumed workbook", _run_folder, _resumed, ("run.json", "state/*", "tables/*")),
    Target("notebooks", _notebooks, lambda folder, file: notebook_list.find_notebooks(folder)),
    Target("view of the explorer", _view, _read_view),
)  # fmt: skip
