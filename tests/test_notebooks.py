"""Every notebook has the anatomy that its readers rely on."""

import ast
import json
import re
from pathlib import Path

import pytest
from test_project import MACHINE_PATH

from ctvlm_lib.notebook_facts import readme_table, renew_takes, takes_line, without_takes
from ctvlm_lib.notebook_store import source_hash

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STRIP = ["volume", "mask", "prompt", "records", "encoder", "VLM", "LoRA", "tables", "explorer"]
PATH = re.compile(MACHINE_PATH.pattern + "|/tm" + "p/")
LONGEST_CELL, LARGEST_KB, LARGEST_FIGURE_KB = 25, 400, 40

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind=None):
    content = json.loads(path.read_text(encoding="utf-8"))
    return [c for c in content["cells"] if kind is None or c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


def test_the_stages_of_the_foundation_are_there():
    assert {"00", "10", "20", "30"} <= {p.name[:2] for p in NOTEBOOKS}


@each
def test_name_is_number_and_topic(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert source(cells(path)[0]).startswith(f"# {path.name[:2]} · ")


@each
def test_the_head_says_where_we_are_and_what_it_takes(path):
    head = "\n".join(source(c) for c in cells(path)[:3])
    strip = next(line for line in head.splitlines() if line.count("→") == len(STRIP) - 1)
    assert [re.sub(r"[\[\]*` ]", "", s) for s in strip.split("→")] == STRIP
    for word in ("**You will**", "**Needs:**", "**Writes:**", "**Takes:** CPU"):
        assert word in head, f"the head lacks {word}"


@each
def test_parameters_are_typed_and_commented(path):
    found = [c for c in cells(path, "code") if "parameters" in tags(c)]
    assert len(found) == 1
    lines = source(found[0]).splitlines()
    assert all(re.fullmatch(r"\w+: \w+ = .+  # .+", line) for line in lines), lines
    assert [line.split(":")[0] for line in lines[:3]] == ["profile", "seed", "out_dir"]
    assert "'" not in source(found[0]), "papermill loses a parameter whose comment holds an apostrophe"
    assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(source(found[0])).body)


@each
def test_the_run_is_started_under_the_notebooks_own_name(path):
    assert any(f'start("{path.stem}", profile, seed, out_dir' in source(c) for c in cells(path, "code"))


@each
def test_code_cells_are_short_and_explained(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    long = [source(c).splitlines()[0] for c in code if len(source(c).splitlines()) > LONGEST_CELL]
    assert not long
    assert len(prose) >= len(code)
    assert "Look for" in "\n".join(map(source, prose))


@each
def test_exercises_have_a_check_a_hint_and_a_tested_solution(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    exercises = re.findall(r"### Exercise \d ([●○]{4}) \d+ min", text)
    solutions = [c for c in cells(path, "code") if "solution" in tags(c)]
    assert len(exercises) >= 1 and len(solutions) == len(exercises) == text.count("<details>")
    assert all(re.search(r"^assert check_\w+\(", source(c), re.M) for c in solutions)


@each
def test_nothing_of_one_machine_and_no_error_is_stored(path):
    for cell in cells(path):
        assert not PATH.search(json.dumps([cell["source"], cell.get("outputs", [])]))
        assert not any(output["output_type"] == "error" for output in cell.get("outputs", []))


@each
def test_stored_as_executed_and_small(path):
    counts = [c["execution_count"] for c in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "not stored as executed from top to bottom: make notebooks"
    assert path.stat().st_size <= LARGEST_KB * 1000
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/"):
                    assert len("".join(data)) * 3 / 4 <= LARGEST_FIGURE_KB * 1000 * 1.02


@each
def test_outputs_are_those_of_the_cells_beside_them(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["ctvlm"]["outputs_of"] == source_hash(notebook), "changed since it ran: make notebooks"


@each
def test_checked_outputs_are_rounded_and_without_pictures(path):
    for cell in cells(path, "code"):
        if "nbval-check-output" in tags(cell):
            for output in cell["outputs"]:
                text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
                assert not re.search(r"\d\.\d{7,}", text), text
                assert not re.search(r"\b\d+(\.\d+)? (s|seconds|MB|GB)\b", text), text
                assert not any(kind.startswith("image/") for kind in output.get("data", {}))


@each
def test_every_stored_figure_has_alternative_text(path):
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    assert len(output["metadata"].get(kind, {}).get("alt", "")) > 20


@each
def test_takes_line_is_near_what_was_measured(path):
    about = json.loads(path.read_text(encoding="utf-8"))["metadata"]["ctvlm"]
    head = "\n".join(source(c) for c in cells(path)[:3])
    assert renew_takes(head, about["seconds"], about["peak_gb"]) == head


def test_readme_table_is_what_the_notebooks_say():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert readme_table(FOLDER) in readme


def test_takes_line_changes_only_when_it_is_off():
    line = takes_line(seconds=12.2, peak_gb=0.41)
    assert line == "**Takes:** CPU 15 s, 0.5 GB | GPU –"
    assert renew_takes(line, 14, 0.45) == line
    assert renew_takes(line, 61, 0.45) == takes_line(61, 0.45)
    assert without_takes(f"a\n{line}\nb") == "a\n\nb"
