"""Run the workbook: the notebooks in order, each resumed, measured and reported; ``ctvlm run``."""

import contextlib
import datetime
import difflib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ctvlm_lib import notebook_outputs as outputs
from ctvlm_lib import sources
from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput
from ctvlm_lib.notebook_key import notebook_key
from ctvlm_lib.notebook_list import Notebook, find_notebooks, select
from ctvlm_lib.notebook_process import run_notebook
from ctvlm_lib.notebook_progress import Progress, SideBySide, duration
from ctvlm_lib.notebook_schedule import side_by_side
from ctvlm_lib.notebook_store import store
from ctvlm_lib.run import PROJECT, check_profile, check_seed, environment_record, file_hash, run_folder, write_json

__all__ = ["Notebook", "add_arguments", "command", "find_notebooks", "run", "store"]

# what design and hardware allow for each notebook of profile quick, in seconds: the estimate before the first run
BUDGET_S = {
    "00": 20, "10": 40, "20": 90, "30": 40, "40": 60, "50": 110, "55": 100, "60": 40, "65": 120, "70": 270,
    "80": 80, "85": 20, "90": 30, "95": 50,
}  # fmt: skip
DONE = ("ok", "up to date")


def run(
    profile: str = "quick",
    only: str | list[str] | None = None,
    out_dir: str | Path | None = None,
    fresh: bool = False,
    seed: int = 0,
    notebooks_dir: str | Path | None = None,
    jobs: int = 1,
) -> int:
    """Run the workbook's notebooks in the order of their numbers.

    A notebook whose own source, parameters, upstream results, data and library are unchanged is not run again. After
    a failure those that need the failed one are skipped and the rest goes on. A run killed at any moment is continued
    by the next one.

    Args:
        profile: ``quick``, ``full`` or ``paper``.
        only: numbers of notebooks, a list or ``"30,50"``; None means all.
        out_dir: the output folder without the profile; None means ``$CTVLM_OUT``, else ``out`` in the project.
        fresh: first remove what earlier runs of the chosen notebooks left.
        seed: passed to the notebooks.
        notebooks_dir: where the notebooks lie; None means the project's.
        jobs: how many run at a time; what they take is then measured while others run beside them.

    Returns:
        0 if every chosen notebook is done, 1 if one failed or was skipped.

    Raises:
        BadInput: unknown profile, seed or number, no notebooks, or another run is using the folder.
    """
    check_profile(profile)
    check_seed(seed)
    if jobs < 1:
        raise BadInput(f"{jobs} notebooks at a time can't be; give 1 or more")
    notebooks = find_notebooks(Path(notebooks_dir) if notebooks_dir else PROJECT / "notebooks")
    chosen = select(notebooks, only)
    folder = run_folder(profile, out_dir or "")
    with _locked(folder):
        outputs.sweep(folder)
        if fresh:
            for notebook in chosen:
                outputs.remove(folder, notebook.number, own_folder=True)
        _fetch_data(chosen)
        try:
            return _WorkbookRun(folder, profile, seed, notebooks, chosen).run_all(jobs)
        finally:
            outputs.sweep(folder)


def _fetch_data(chosen: list[Notebook]) -> None:
    """Fetch what the chosen notebooks read before the first one starts, where size and progress can be seen."""
    wanted = {name for notebook in chosen for name in notebook.assets}
    if not wanted:
        return
    from ctvlm_lib import assets

    try:
        assets.fetch(sorted(wanted), progress=lambda line: print(line, flush=True))
    except BadInput as problem:
        if isinstance(problem.__cause__, KeyboardInterrupt):  # whoever stops the download means the run
            raise KeyboardInterrupt from problem
        print(f"note: {problem}", flush=True)  # the notebooks that need it say so themselves; the rest goes on


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system frees it even after kill -9."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise BadInput(f"another ctvlm run is using {folder}; wait for it, or choose another --out") from error
    except OSError as error:
        raise BadInput(f"can't write into {folder}: {error.strerror}; give another folder with --out") from error
    try:
        yield
    finally:
        lock.release()


def _previous(path: Path) -> dict[str, dict]:
    """What an earlier run says of each notebook; nothing where it can't be read, or holds something else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["notebooks"].items()
        return {number: entry for number, entry in entries if isinstance(entry, dict) and "status" in entry}
    except (OSError, KeyError, TypeError, AttributeError, *NOT_JSON):
        return {}


class _WorkbookRun:
    """One call of :func:`run`: what is chosen, how it goes, and the record ``run.json``."""

    def __init__(self, folder: Path, profile: str, seed: int, notebooks: list[Notebook], chosen: list[Notebook]):
        self.folder, self.profile, self.seed, self.chosen = folder, profile, seed, chosen
        self.record = {"profile": profile, "seed": seed, "environment": environment_record(), "notebooks": {}}
        self._writing = threading.Lock()
        self.threads: dict[str, str] = {}  # of each notebook's kernel
        self.previous = _previous(folder / "run.json")
        for notebook in notebooks:
            entry = self.previous.get(notebook.number, {"status": "not run"})
            self.record["notebooks"][notebook.number] = entry | {"name": notebook.name, "title": notebook.title}

    def run_all(self, jobs: int = 1) -> int:
        """Run what is chosen, write run.json after each notebook, then the report page; return the exit code."""
        from ctvlm_lib import report
        from ctvlm_lib.notebook_html import write_text

        if jobs > 1:  # kernels with as many threads as there are cores would wait for each other most of the time
            share = str(max(1, (os.cpu_count() or 1) // jobs))
            self.threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share)}
        estimates, current = {nb.name: self._estimate(nb) for nb in self.chosen}, self._expected_current()
        progress = Progress(estimates, current) if jobs == 1 else SideBySide(estimates, current, jobs)
        print(f"profile {self.profile}, seed {self.seed}, {progress.plan()}, into {self.folder}", flush=True)

        def work(notebook: Notebook, stop: threading.Event) -> dict:
            progress.begin(notebook.name)
            return self._run_one(notebook, progress, stop)

        for notebook, entry in side_by_side(self.chosen, jobs, work):
            self._write(notebook, entry)
            progress.end(notebook.name, _summary(entry), entry.get("notes", []))
        for text in sorted(self.chosen[0].path.parent.glob("*.md")):
            write_text(text, outputs.html_path(self.folder, text.stem))
        page = report.build(self.folder)
        statuses = [self.record["notebooks"][notebook.number] for notebook in self.chosen]
        for entry in statuses:
            if entry["status"] == "failed":
                print(_failure_message(entry, outputs.executed_path(self.folder, entry["name"])))
        good = sum(entry["status"] in DONE for entry in statuses)
        print(f"{good} of {len(statuses)} notebooks are done; report: {page}", flush=True)
        return 0 if good == len(statuses) else 1

    def _run_one(self, notebook: Notebook, progress: Progress, stop: threading.Event) -> dict:
        """Return the notebook's entry for run.json, after running it if that is needed and possible."""

        def tick(seconds: float, used_bytes: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt  # ends the notebook's process
            progress.tick(notebook.name, seconds, used_bytes)

        for need in notebook.needs:
            status = self.record["notebooks"][need]["status"]
            if status in ("failed", "skipped") and any(other.number == need for other in self.chosen):
                reason = f"needs {need}, which {'failed' if status == 'failed' else 'was skipped'}"
                outputs.remove(self.folder, notebook.number, own_folder=False)
                return {"status": "skipped", "reason": reason}
        key = self._key(notebook)
        if outputs.is_current(self.folder, notebook.number, key):
            state = outputs.load_state(self.folder, notebook.number)
            return {"status": "up to date"} | {name: state[name] for name in ("seconds", "peak_bytes", "tables")}
        outputs.remove(self.folder, notebook.number, own_folder=False)
        parameters, notes, misspelt = _passable(notebook, self._parameters())
        if misspelt:
            return {"status": "failed", "failure": {"cell": None, "source": "", "error": misspelt}}
        self._write(notebook, {"status": "not finished"})
        measured = run_notebook(
            {
                "source": notebook.path,
                "executed": outputs.executed_path(self.folder, notebook.name),
                "html": outputs.html_path(self.folder, notebook.name),
                "parameters": parameters,
            },
            log=self.folder / "state" / f"{notebook.number}.log",
            scratch=self.folder / "state" / "scratch" / notebook.number,
            variables={"CTVLM_OUT": str(self.folder.parent)} | self.threads,  # out: where no parameter out_dir is
            on_tick=tick,
        )
        if measured["failure"]:
            return {"status": "failed", "notes": notes} | measured
        state = outputs.save_state(self.folder, notebook.number, key, measured)
        return {"status": "ok", "notes": notes, "tables": state["tables"]} | measured

    def _parameters(self) -> dict:
        return {"profile": self.profile, "seed": self.seed, "out_dir": str(self.folder.parent)}

    def _key(self, notebook: Notebook) -> str:
        upstream = {need: outputs.load_state(self.folder, need) for need in notebook.needs}
        parameters = {"profile": self.profile, "seed": self.seed}
        named = os.environ.get(sources.VARIABLE) if self.profile == "paper" else ""
        if named and Path(named).is_file():
            parameters["sources"] = file_hash(Path(named))
        return notebook_key(notebook.content, parameters, upstream)

    def _expected_current(self) -> set[str]:
        """Return the names that should not need to run, as far as can be told before the first one has run."""
        current: set[str] = set()
        to_run: set[str] = set()
        for notebook in self.chosen:
            valid = outputs.is_current(self.folder, notebook.number, self._key(notebook))
            if valid and not to_run & set(notebook.needs):
                current.add(notebook.name)
            else:
                to_run.add(notebook.number)
        return current

    def _estimate(self, notebook: Notebook) -> float | None:
        """Return seconds: as last time, else (only for quick) as measured by the authors or budgeted; None: unknown."""
        last = self.previous.get(notebook.number, {})
        if last.get("status") in DONE and isinstance(last.get("seconds"), int | float):
            return float(last["seconds"])
        if self.profile != "quick":
            return None
        return float(notebook.content["metadata"].get("ctvlm", {}).get("seconds") or BUDGET_S.get(notebook.number, 60))

    def _write(self, notebook: Notebook, entry: dict) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        known = {"name": notebook.name, "title": notebook.title, "seed": self.seed, "written": now}
        with self._writing:
            self.record["notebooks"][notebook.number] = known | entry
            write_json(self.folder / "run.json", self.record)


def _passable(notebook: Notebook, parameters: dict) -> tuple[dict, list[str], str]:
    """Choose the parameters that the notebook's parameters cell names.

    papermill only warns when a name is unknown, and the notebook would run with its own default. So a name that
    is nearly right is an error, and one that is absent is noted.

    Returns:
        The parameters to pass, notes to print, and a sentence about a misspelt name or ``""``.
    """
    names = notebook.parameter_names
    notes = []
    for name in parameters:
        close = difflib.get_close_matches(name, set(names) - set(parameters), n=1, cutoff=0.7)
        if name not in names and close:
            return {}, [], f"the parameters cell has {close[0]!r} where {name!r} is expected; rename it"
        if name not in names:
            notes.append(f"{notebook.name} has no parameter {name!r}: it runs with what it holds itself")
    return {name: value for name, value in parameters.items() if name in names}, notes, ""


def _summary(entry: dict) -> str:
    measured = f"{duration(entry['seconds'])}, {entry['peak_bytes'] / 1e9:.1f} GB" if "seconds" in entry else ""
    if entry["status"] == "ok":
        return measured
    if entry["status"] == "up to date":
        return f"up to date ({measured} when it ran)"
    if entry["status"] == "skipped":
        return f"skipped ({entry['reason']})"
    return f"FAILED {'after ' + measured if measured else ''}".rstrip()


def _failure_message(entry: dict, executed: Path) -> str:
    """Say which notebook and cell failed, with the cell's first lines and the error."""
    failure = entry["failure"]
    cell = f" in cell {failure['cell']}" if failure["cell"] else ""
    lines = failure["source"].strip().splitlines()
    shown = [f"    | {line}" for line in lines[:5]] + (["    | …"] if len(lines) > 5 else [])
    copy = [f"    executed copy: {executed}"] if executed.exists() else []
    return "\n".join(["", f"{entry['name']} failed{cell}:", *shown, f"    {failure['error']}", *copy])


def add_arguments(parser) -> None:
    """Add the options of ``ctvlm run``."""
    parser.add_argument("--profile", default="quick", help="quick (default), full or paper")
    parser.add_argument("--only", metavar="NUMBERS", help="run only these notebooks, for example 30,50")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out/ in the project)")
    parser.add_argument("--sources", metavar="FILE", help="profile paper: where your data and weights lie")
    parser.add_argument("--fresh", action="store_true", help="remove earlier results of these notebooks first")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks (default: the project's)")
    parser.add_argument("--store", action="store_true", help="then renew the outputs kept in the notebooks' folder")


def command(args) -> int:
    """Run ``ctvlm run``; return its exit code."""
    sources.check_profile(args.sources, args.profile)
    if args.sources:
        os.environ[sources.VARIABLE] = str(Path(args.sources).expanduser().resolve())
    if args.profile == "paper":
        sources.load()  # that there is none, or none that can be used, is told before anything runs
    code = run(args.profile, args.only, args.out, args.fresh, args.seed, args.notebooks, args.jobs)
    if args.store and code == 0:
        for line in store(args.out, args.notebooks, args.profile):
            print(line)
    return code
