"""The project's own promises: its top level, its locked environment, its Makefile, nothing private or large in it."""

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TOP_FOLDERS = {"notebooks", "ctvlm_lib", "tests", "data_samples", ".ci", ".github"}
TOP_FILES = {
    "README.md", "environment.yml", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CITATION.cff",
    "references.bib", "CONTRIBUTING.md", ".gitignore", ".gitattributes",
}  # fmt: skip
REQUIRED = TOP_FOLDERS | TOP_FILES - {".gitattributes"}
MAKE_TARGETS = {"run", "test", "lab", "app", "bench", "fuzz", "kill", "notebooks", "lint", "clean"}
MAX_FILE_BYTES = 6_500_000  # the largest of the small language models, in 16 bits
MAX_NOTEBOOK_BYTES = 400_000

# Folders of one machine. Joined here so that this file doesn't hold what it looks for.
FOLDERS = ["/ro" + "ot/", "/ho" + "me/[a-z]", "/Us" + "ers/[A-Za-z]", "/wo" + "rk/main"]
MACHINE_PATH = re.compile("|".join(FOLDERS))
REGISTRY_HOST = re.compile("|".join(["pypi" + r"\.org", "python" + r"hosted\.org", r"download\.py" + r"torch\.org"]))
URL_WITH_TOKEN = re.compile(r"https?://[^/\s\"']+:[^/\s\"']+@")


@functools.cache
def tracked_files() -> list[Path]:
    """What git tracks; where git tracks nothing (an unpacked archive), every file outside the ignored folders."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        listed = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        listed = []
    ignored = re.compile(r"(^|/)(out|__pycache__|[^/]*\.egg-info|\.(venv|git|hypothesis|benchmarks|[a-z_]+_cache))/")
    walked = listed or [f for f in ROOT.rglob("*") if not ignored.search(f.relative_to(ROOT).as_posix())]
    return [file for file in walked if file.is_file()]


def text_of(file: Path) -> str | None:
    """The file as text, or None if it holds bytes that aren't."""
    content = file.read_bytes()
    if b"\0" in content[:4096]:
        return None
    return content.decode("utf-8", errors="replace")


def requirements(with_extras: bool = True) -> list[Requirement]:
    """What pyproject.toml asks for, with or without the extra that the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    return [Requirement(line) for line in project["dependencies"] + extras * with_extras]


def pins() -> dict[str, Requirement]:
    """constraints.txt as ``{canonical name: requirement}``; a name that stands twice is an error."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    by_name = {canonicalize_name(pin.name): pin for pin in parsed}
    assert len(by_name) == len(parsed), "a distribution is pinned twice"
    return by_name


def version_of(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    return specifier.version


# ------------------------------------------------------------------------------------------ the locked environment


def test_every_pin_is_one_exact_version_without_a_local_tag():
    for name, pin in pins().items():
        operators = [specifier.operator for specifier in pin.specifier]
        assert operators == ["=="], f"{name} is pinned with {operators}, expected =="
        assert "+" not in version_of(pin), f"{name} carries a build tag that other machines don't have"


def test_each_dependency_has_a_pin_inside_its_range():
    locked = pins()
    for wanted in requirements():
        name = canonicalize_name(wanted.name)
        assert name in locked, f"{wanted} has no pin in constraints.txt"
        assert version_of(locked[name]) in wanted.specifier, f"{wanted} excludes its own pin {locked[name]}"
        assert any(s.operator.startswith("<") for s in wanted.specifier), f"{wanted} has no upper end"


def test_environment_yml_installs_the_same_things_from_the_same_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (with_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert with_pip == ["-c constraints.txt", "-e .[test]"]
    assert {re.split("[=<>]", entry)[0] for entry in plain} == {"python", "pip"}, "versions belong in constraints.txt"
    (python,) = [entry.partition("=")[2] for entry in plain if entry.startswith("python")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"{python}.0" in Requirement(f"python{project['requires-python']}").specifier


def test_what_is_installed_is_what_is_pinned():
    locked = pins()
    different = {}
    for distribution in importlib.metadata.distributions():
        pin = locked.get(canonicalize_name(distribution.metadata["Name"]))
        if pin and distribution.version.partition("+")[0] != version_of(pin):
            different[str(pin)] = distribution.version
    assert not different, f"installed versions differ from constraints.txt: {different}; run make again"


def test_torch_peft_monai_and_transformers_import_together_without_torchvision_and_timm():
    code = (
        "import importlib.util, json, torch, peft, monai, transformers\n"
        "absent = [n for n in ('torchvision', 'timm') if importlib.util.find_spec(n) is None]\n"
        "print(json.dumps([torch.__version__, absent]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    version, absent = json.loads(done.stdout.splitlines()[-1])
    assert version.partition("+")[0] == version_of(pins()["torch"])
    assert absent == ["torchvision", "timm"]


def test_neither_torchvision_nor_timm_is_pinned_or_asked_for():
    asked_for = {canonicalize_name(r.name) for r in requirements()} | set(pins())
    assert not asked_for & {"torchvision", "timm"}


def test_library_and_tests_import_only_what_pyproject_names():
    providers, undeclared = importlib.metadata.packages_distributions(), []
    for folder, with_extras in [("ctvlm_lib", False), ("tests", True)]:
        declared = {canonicalize_name(r.name) for r in requirements(with_extras)}
        own = {"ctvlm_lib", "conftest", "fuzz"} | {file.stem for file in (ROOT / "tests").rglob("*.py")}
        for file in sorted((ROOT / folder).rglob("*.py")):
            for module in imported_modules(file) - sys.stdlib_module_names - own:
                provided_by = {canonicalize_name(name) for name in providers.get(module, [])}
                if not provided_by & declared:
                    undeclared.append(f"{file.relative_to(ROOT)}: {module}")
    assert not undeclared, f"imported, but not named in pyproject.toml: {undeclared}"


def imported_modules(file: Path) -> set[str]:
    """Top-level names of all absolute imports in a file, those inside functions included."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in plain | froms}


# ------------------------------------------------------------------------------------------ what lies in the project


def test_top_level_is_what_the_readme_and_the_design_name():
    top = {file.relative_to(ROOT).parts[0] for file in tracked_files()}
    assert top <= TOP_FOLDERS | TOP_FILES, f"unexpected at the top level: {sorted(top - TOP_FOLDERS - TOP_FILES)}"
    assert REQUIRED <= top, f"missing at the top level: {sorted(REQUIRED - top)}"


def test_no_file_is_large():
    for file in tracked_files():
        limit = MAX_NOTEBOOK_BYTES if file.suffix == ".ipynb" else MAX_FILE_BYTES
        size = file.stat().st_size
        assert size <= limit, f"{file.relative_to(ROOT)} has {size:,} bytes, at most {limit:,} belong in the repository"


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST, URL_WITH_TOKEN], ids=["path", "registry", "token"])
def test_no_text_names_a_folder_of_one_machine_or_a_registry(pattern):
    for file in tracked_files():
        found = pattern.search(text_of(file) or "")
        assert not found, f"{file.relative_to(ROOT)} holds {found.group()!r}"


def test_temporary_folders_are_asked_for_and_not_named():
    named = re.compile(r"[\"'= ]/tm" + "p/")
    for file in tracked_files():
        if file.relative_to(ROOT).parts[0] != "tests":  # a test may hand a made-up path to a parser
            assert not named.search(text_of(file) or ""), f"{file.relative_to(ROOT)} names a temporary folder"


def test_nothing_is_unpickled():
    loads = re.compile(
        r"^\s*(import|from) (pickle|joblib|dill|shelve)\b|torch\.load\((?!.*weights_only=True)|allow_pickle=True", re.M
    )
    for file in sorted((ROOT / "ctvlm_lib").rglob("*.py")):
        found = loads.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(ROOT)} holds {found.group().strip()!r}: use safetensors, JSON or CSV"


def test_licence_is_apache_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_version_is_the_same_in_package_and_citation():
    import ctvlm_lib

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == ctvlm_lib.__version__


def test_references_have_unique_keys_and_balanced_braces():
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,]+),", text, re.M)
    assert len(keys) == len(set(keys)) == len(re.findall(r"^@", text, re.M))
    assert {"med3dvlm", "medvista3d", "uvlm", "contour", "dualbox"} <= set(keys)
    for entry in re.split(r"(?m)^(?=@)", text)[1:]:
        body = "\n".join(line for line in entry.splitlines() if not line.startswith("%"))
        assert body.count("{") == body.count("}"), entry.splitlines()[0]


# ------------------------------------------------------------------------------------------ make, CI


def test_makefile_has_the_promised_targets_and_each_is_phony():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    defined = set(re.findall(r"^([a-z]+):", text, re.M))
    (phony,) = re.findall(r"^\.PHONY:(.*)$", text, re.M)
    assert MAKE_TARGETS <= defined
    assert set(phony.split()) == defined


def make(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run make in the project (or ``cwd``) without the variables of an outer make."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "CTVLM_PIP_ARGS", "CTVLM_OUT")
    environment = {k: v for k, v in os.environ.items() if k not in outer}
    options = {"cwd": ROOT} | options
    return subprocess.run(["make", *arguments], env=environment, capture_output=True, text=True, **options)


def test_make_says_in_a_sentence_when_python_is_missing_or_too_old(tmp_path):
    for python, words in [("", "none was found"), ("false", "is not Python 3.11 or 3.12")]:
        done = make("run", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
        assert done.returncode != 0
        assert words in done.stderr, done.stderr
        assert not (tmp_path / "venv").exists()


def test_make_passes_folder_index_and_arguments_through():
    done = make("-n", "-B", "run", "OUT=my results", "PIP_ARGS=--no-index", "ARGS=--only 30")
    assert done.returncode == 0, done.stderr
    assert 'run --jobs 2 --out "my results" --only 30' in done.stdout
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert installs and all("--no-index -c constraints.txt" in line for line in installs)


def test_a_second_make_does_not_install_again(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    done = make("-n", "run", cwd=tmp_path)
    assert done.returncode == 0 and "pip install" not in done.stdout
    (tmp_path / ".venv" / ".installed").unlink()
    assert "pip install" in make("-n", "run", cwd=tmp_path).stdout


def test_clean_keeps_the_cache_and_folders_named_on_the_command_line():
    done = make("-n", "clean", "OUT=precious", "VENV=elsewhere")
    removed = [line for line in done.stdout.splitlines() if line.startswith("rm")]
    assert removed and ".venv" in removed[0].split() and "out" in removed[0].split()
    assert "precious" not in done.stdout and "elsewhere" not in done.stdout


def test_ci_and_workflow_run_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("make run OUT=") < script.index("make test OUT=")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100, ".ci/run must be executable"
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step.get("run") for job in jobs for step in job["steps"]]
    browser, *commands = filter(None, steps)
    assert "chromium" in browser and commands == ["make run", "make test"]
