"""The runner: order, resume, failure, kill, and what is stored back. Seven kernels are started in this file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ctvlm_lib import notebook_key, notebook_outputs, workbook
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import PROJECT

PARAMETERS = 'profile: str = "quick"  # quick | full | paper\nseed: int = 0\nout_dir: str = ""  # the run\'s folder'
TABLES = """from pathlib import Path
tables = Path(out_dir) / profile / "tables"
tables.mkdir(parents=True, exist_ok=True)"""


def write_notebook(folder: Path, name: str, *code: str, needs=(), parameters: str = PARAMETERS, tags=()) -> Path:
    """Write a toy notebook: a heading, the parameters cell, one that finds the tables' folder, then ``code``."""
    notebook = new_notebook()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.metadata["ctvlm"] = {"needs": list(needs)}
    notebook.cells = [
        new_markdown_cell(f"# {name[:2]} · About {name}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *[new_code_cell(source, metadata={"tags": list(tags)}) for source in (TABLES, *code)],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def table_of(number: str, content: str = "{seed}") -> str:
    return f'_ = (tables / "{number}_result.csv").write_text(f"value\\n{content}\\n")'


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """Run five notebooks in real kernels: 10 and 20 are good, 30 fails, 40 needs 30, 50 loses its kernel."""
    base = tmp_path_factory.mktemp("real")
    notebooks, out = base / "notebooks", base / "out"
    shows_seed = 'import os\nprint(type(seed).__name__, seed, os.environ["CTVLM_OUT"] == out_dir)'
    write_notebook(notebooks, "10_first", table_of("10"), shows_seed, tags=["x"])
    shows_upstream = 'print((tables / "10_result.csv").read_text())'
    write_notebook(notebooks, "20_second", shows_upstream, table_of("20"), needs=["10"])
    write_notebook(notebooks, "30_fails", "numerator = 1\nnumerator / 0", table_of("30"))
    write_notebook(notebooks, "40_after", table_of("40"), needs=["30"])
    write_notebook(notebooks, "50_dies", "import os\nos._exit(3)")
    arguments = ["run", "--out", out, "--notebooks", notebooks, "--seed", "7"]
    done = subprocess.run([sys.executable, "-m", "ctvlm_lib", *map(str, arguments)], cwd=base, env=_environment(),
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    return notebooks, out / "quick", done


def _environment() -> dict:
    return os.environ | {"PYTHONPATH": str(PROJECT)}


def test_a_failing_cell_gives_exit_code_1_and_a_readable_message(real_run):
    _, folder, done = real_run
    assert done.returncode == 1
    assert "30_fails failed in cell 4:\n    | numerator = 1\n    | numerator / 0" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert f"executed copy: {folder / 'notebooks' / '30_fails.ipynb'}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_what_does_not_need_the_failed_notebook_goes_on(real_run):
    _, folder, done = real_run
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notebooks"]
    statuses = {number: entry["status"] for number, entry in record.items()}
    assert statuses == {"10": "ok", "20": "ok", "30": "failed", "40": "skipped", "50": "failed"}
    assert "[4/5] 40_after … skipped (needs 30, which failed)" in done.stdout
    assert not (folder / "tables" / "40_result.csv").exists()


def test_a_dead_kernel_is_reported_with_its_cell(real_run):
    _, _, done = real_run
    assert "50_dies failed in cell 4:\n    | import os\n    | os._exit(3)" in done.stdout
    assert "DeadKernelError" in done.stdout


def test_parameters_arrive_with_their_types_and_upstream_tables_are_there(real_run):
    _, folder, _ = real_run
    assert (folder / "tables" / "10_result.csv").read_text(encoding="utf-8") == "value\n7\n"
    first = nbformat.read(folder / "notebooks" / "10_first.ipynb", as_version=4)
    assert first.cells[-1].outputs[0].text == "int 7 True\n"
    second = nbformat.read(folder / "notebooks" / "20_second.ipynb", as_version=4)
    assert second.cells[-2].outputs[0].text == "value\n7\n\n"


def test_run_record_holds_seconds_memory_versions_and_hashes(real_run):
    _, folder, _ = real_run
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    first = record["notebooks"]["10"]
    assert 0.5 < first["seconds"] < 120
    assert 3e7 < first["peak_bytes"] < 2e9  # a bare Python kernel holds some tens of MB
    assert first["tables"] == notebook_outputs.tables(folder, "10")
    assert record["environment"]["python"].startswith("3.")
    assert record["environment"]["device_why"]


def test_report_page_shows_status_tables_and_links_that_exist(real_run):
    import bs4

    _, folder, _ = real_run
    page = bs4.BeautifulSoup((folder / "report" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "not a medical device" in page.text
    assert page.find(id="nb10").text == "10 · About 10_first"
    assert "ZeroDivisionError" in page.text
    for link in page.find_all("a"):
        target = link["href"]
        assert page.find(id=target[1:]) if target.startswith("#") else (folder / "report" / target).exists(), target
    assert not page.find_all(["script", "link"])  # nothing that a browser would fetch


def test_nothing_half_written_or_temporary_is_left(real_run):
    _, folder, _ = real_run
    assert not [path for path in folder.rglob("*") if ".partial." in path.name]
    assert not (folder / "state" / "scratch" / "10").exists()


def test_store_strips_what_belongs_to_the_run(real_run):
    notebooks, folder, _ = real_run
    before = nbformat.read(notebooks / "10_first.ipynb", as_version=4)
    lines = workbook.store(folder.parent, notebooks)
    assert lines[0] == "10_first: renewed, it had no outputs"
    assert lines[2].startswith("30_fails: left as it is, no complete run")
    kept = nbformat.read(notebooks / "10_first.ipynb", as_version=4)
    assert [(c.source, c.id, c.metadata.get("tags")) for c in kept.cells] == [
        (c.source, c.id, c.metadata.get("tags")) for c in before.cells
    ]
    assert [c.execution_count for c in kept.cells[1:]] == [1, 2, 3, 4]
    assert kept.cells[-1].outputs[0].text == "int 7 True\n"
    text = (notebooks / "10_first.ipynb").read_text(encoding="utf-8")
    assert "papermill" not in text and "iopub" not in text and str(folder.parent) not in text
    assert kept.metadata.ctvlm.seconds >= 1
    bytes_before = (notebooks / "10_first.ipynb").read_bytes()
    assert workbook.store(folder.parent, notebooks)[0] == "10_first: unchanged"
    assert (notebooks / "10_first.ipynb").read_bytes() == bytes_before


def test_store_refuses_an_executed_copy_that_is_older_than_the_source(real_run, tmp_path):
    notebooks, folder, _ = real_run
    changed = nbformat.read(notebooks / "20_second.ipynb", as_version=4)
    changed.cells[-1].source += "\n# edited"
    nbformat.write(changed, tmp_path / "20_second.ipynb")
    assert "changed after it ran" in workbook.store(folder.parent, tmp_path)[0]


def test_a_run_killed_with_its_notebook_continues_to_the_same_tables(tmp_path):
    notebooks, out = tmp_path / "notebooks", tmp_path / "out"
    counter, slow, started = tmp_path / "counter", tmp_path / "slow", tmp_path / "started"
    write_notebook(notebooks, "10_first", f'with open({str(counter)!r}, "a") as f: f.write("10 ")', table_of("10"))
    write_notebook(
        notebooks, "20_second", table_of("20"),
        f"import os, time\nif os.path.exists({str(slow)!r}):\n    open({str(started)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(100)", '_ = (tables / "20_more.csv").write_text("a,b\\n1,2\\n")', needs=["10"],
    )  # fmt: skip
    slow.touch()
    command = [sys.executable, "-m", "ctvlm_lib", "run", "--out", str(out), "--notebooks", str(notebooks)]
    runner = subprocess.Popen(command, cwd=tmp_path, env=_environment(), stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: started.exists() and started.read_text(encoding="utf-8"), 120)
    finally:
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    kernel = int(started.read_text(encoding="utf-8"))
    _wait(lambda: not _alive(kernel), 20)  # nothing goes on writing after the runner is gone
    assert not notebook_outputs.load_state(out / "quick", "20")
    slow.unlink()
    assert workbook.run(out_dir=out, notebooks_dir=notebooks) == 0
    assert counter.read_text(encoding="utf-8") == "10 "  # the finished notebook was not run again
    contents = {path.name: path.read_text(encoding="utf-8") for path in (out / "quick" / "tables").iterdir()}
    assert contents == {"10_result.csv": "value\n0\n", "20_result.csv": "value\n0\n", "20_more.csv": "a,b\n1,2\n"}


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# ---- from here on the notebooks run in this process, since only the runner's decisions are looked at


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Three notebooks, 20 needs 10; ``toys.ran`` lists the numbers that were executed."""

    class Toys:
        notebooks, out, ran = tmp_path / "notebooks", tmp_path / "out", []

        def run(self, **options) -> int:
            self.ran.clear()
            return workbook.run(out_dir=self.out, notebooks_dir=self.notebooks, **options)

    def execute_here(job, log, scratch, variables, on_tick):
        namespace = dict(job["parameters"])
        Toys.ran.append(job["source"].name[:2])
        Toys.variables = variables
        for path in (job["executed"], job["html"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("executed")
        for cell in json.loads(job["source"].read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
                exec("".join(cell["source"]), namespace)
        return {"failure": None, "seconds": 1.0, "peak_bytes": 10**8}

    monkeypatch.setattr(workbook, "run_notebook", execute_here)
    write_notebook(Toys.notebooks, "10_first", table_of("10"))
    write_notebook(Toys.notebooks, "20_second", table_of("20"), needs=["10"])
    write_notebook(Toys.notebooks, "30_third", "from ctvlm_lib.errors import BadInput", table_of("30"))
    return Toys()


def test_an_unchanged_workbook_is_not_run_again(toys, capsys):
    assert toys.run() == 0 and toys.ran == ["10", "20", "30"]
    assert toys.run() == 0 and toys.ran == []
    assert "3 notebooks, all up to date" in capsys.readouterr().out


def test_a_changed_notebook_and_its_dependants_run_again(toys):
    toys.run()
    write_notebook(toys.notebooks, "10_first", table_of("10", "5"))
    assert toys.run() == 0 and toys.ran == ["10", "20"]


def test_another_seed_runs_again_and_so_does_a_missing_or_edited_table(toys):
    toys.run()
    toys.run(seed=1)
    assert toys.ran == ["10", "20", "30"]
    (toys.out / "quick" / "tables" / "30_result.csv").unlink()
    toys.run(seed=1)
    assert toys.ran == ["30"]
    (toys.out / "quick" / "tables" / "30_result.csv").write_text("value\nby hand\n")
    toys.run(seed=1)
    assert toys.ran == ["30"]


def test_only_runs_what_is_asked_for_and_fresh_removes_only_that(toys):
    toys.run()
    kept = toys.out / "quick" / "20" / "checkpoint"
    gone = toys.out / "quick" / "30" / "checkpoint"
    for path in (kept, gone):
        path.parent.mkdir()
        path.touch()
    assert toys.run(only="30", fresh=True) == 0 and toys.ran == ["30"]
    assert kept.exists() and not gone.exists()
    assert (toys.out / "quick" / "tables" / "10_result.csv").exists()


def test_a_table_that_the_notebook_no_longer_writes_disappears(toys):
    toys.run()
    write_notebook(toys.notebooks, "30_third", 'print("no table any more")')
    toys.run()
    assert not (toys.out / "quick" / "tables" / "30_result.csv").exists()


def test_a_library_change_runs_only_the_notebooks_that_import_it(toys, tmp_path, monkeypatch):
    library = tmp_path / "ctvlm_lib"
    library.mkdir()
    modules = {"__init__": "", "errors": "def f():\n    from . import deep", "deep": "x = 1", "view": ""}
    for name, code in modules.items():
        (library / f"{name}.py").write_text(code)
    monkeypatch.setattr(notebook_key, "PACKAGE", library)
    toys.run()
    (library / "view.py").write_text("# a change that no notebook can notice")
    assert toys.run() == 0 and toys.ran == []
    (library / "deep.py").write_text("x = 2")  # reached through an import inside a function
    assert toys.run() == 0 and toys.ran == ["30"]


@pytest.mark.parametrize(
    ("code", "reached", "not_reached"),
    [
        ("def f(a):\n    from ctvlm_lib import mask", "ctvlm_lib.mask", "ctvlm_lib.report"),
        ("import ctvlm_lib.errors as e", "ctvlm_lib.errors", "ctvlm_lib.run"),
        ("%matplotlib inline\nif True:\n    !ls\nimport ctvlm_lib.errors", "ctvlm_lib.errors", "ctvlm_lib.run"),
        ('__import__("importlib").import_module("ctvlm_lib.report")', "ctvlm_lib.notebook_outputs", "ctvlm_lib.mask"),
        ("!ctvlm doctor", "ctvlm_lib.doctor", None),
        ('import subprocess\nsubprocess.run(["python", "-m", "ctvlm_lib", "run"])', "ctvlm_lib.workbook", None),
        ("for not Python", "ctvlm_lib.workbook", None),
    ],
)
def test_imports_of_a_cell_are_followed(code, reached, not_reached):
    modules = notebook_key.reachable_modules({"cells": [{"cell_type": "code", "source": code, "metadata": {}}]})
    assert reached in modules
    assert not_reached not in modules


def test_a_misspelt_parameter_is_an_error_and_an_absent_one_a_note(toys, capsys):
    write_notebook(toys.notebooks, "10_first", table_of("10"), parameters=PARAMETERS.replace("profile:", "profil:"))
    write_notebook(toys.notebooks, "30_third", "print(1)", parameters='profile: str = "quick"\nout_dir: str = ""')
    assert toys.run() == 1 and toys.ran == ["30"]
    printed = capsys.readouterr().out
    assert "the parameters cell has 'profil' where 'profile' is expected" in printed
    assert "30_third has no parameter 'seed'" in printed


def test_two_runs_on_one_folder_do_not_clash(toys):
    toys.run()
    with workbook._locked(toys.out / "quick"), pytest.raises(BadInput, match="another ctvlm run is using"):
        toys.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "31"}, "no notebook with the number 31; there are 10, 20, 30"),
        ({"only": ""}, "an empty list"),
        ({"only": "10-30"}, "no notebook with the number 10-30"),
        ({"only": "300"}, "no notebook with the number 300"),
        ({"seed": -1}, "seed is -1"),
        ({"profile": "quik"}, "unknown profile 'quik'; choose one of quick, full, paper"),
    ],
)
def test_a_wrong_request_is_one_sentence(toys, options, message):
    with pytest.raises(BadInput, match=message):
        toys.run(**options)


def test_a_folder_that_is_no_workbook_is_refused(toys, tmp_path):
    with pytest.raises(BadInput, match="no notebooks named like"):
        workbook.run(out_dir=toys.out, notebooks_dir=tmp_path / "empty")
    write_notebook(toys.notebooks, "05_early", needs=["20"])
    with pytest.raises(BadInput, match="05_early.ipynb needs '20'"):
        toys.run()
    (toys.notebooks / "05_early.ipynb").write_text("{")
    with pytest.raises(BadInput, match="can't be read as a notebook"):
        toys.run()


def test_progress_speaks_of_the_time_left(toys, capsys):
    toys.run(only="10")
    toys.run()
    printed = capsys.readouterr().out
    assert "profile quick, seed 0, 3 notebooks, 1 of them up to date, about 2 min 10 s" in printed  # 90 s + 40 s budget
    assert "[1/3] 10_first … up to date (1 s, 0.1 GB when it ran)  (about 2 min 10 s left)" in printed
    assert "[3/3] 30_third … 1 s, 0.1 GB\n" in printed


def test_two_at_a_time_leave_the_same_as_one(toys, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workbook.os, "cpu_count", lambda: 6)
    assert toys.run(jobs=2) == 0 and sorted(toys.ran) == ["10", "20", "30"]
    assert toys.variables["OMP_NUM_THREADS"] == "3"  # the cores are shared out
    assert toys.ran.index("10") < toys.ran.index("20")
    several = {path.name: path.read_text() for path in (toys.out / "quick" / "tables").iterdir()}
    assert toys.run() == 0 and toys.ran == []
    assert toys.run(fresh=True) == 0
    assert "OMP_NUM_THREADS" not in toys.variables
    assert several == {path.name: path.read_text() for path in (toys.out / "quick" / "tables").iterdir()}
    assert "[3/3]" in capsys.readouterr().out
    with pytest.raises(BadInput, match="0 notebooks at a time"):
        toys.run(jobs=0)


def test_only_takes_names_as_well_as_numbers(toys):
    assert toys.run(only="10_first,30") == 0 and toys.ran == ["10", "30"]


def test_ctrl_c_while_data_is_fetched_stops_the_run(toys, monkeypatch):
    from ctvlm_lib import assets

    def interrupted(*_, **__):
        raise BadInput("interrupted") from KeyboardInterrupt()

    monkeypatch.setattr(assets, "fetch", interrupted)
    write_notebook(toys.notebooks, "10_first", 'if False:\n    run.uses("chest_cta")', table_of("10"))
    with pytest.raises(KeyboardInterrupt):
        toys.run()
    assert toys.ran == []
