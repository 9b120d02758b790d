"""When must a notebook run again? Its key is a hash of everything that can change its results.

What goes in: the notebook's cells without outputs, profile and seed, the modules of ctvlm_lib that it can reach by
imports, the library's and the project's data tables, the versions of Python and the main packages, and the keys and
tables of the notebooks it needs. A change in a module that a notebook never imports does not run it again.
"""

import ast
import hashlib
import json
import platform
from functools import cache
from pathlib import Path

import ctvlm_lib
from ctvlm_lib.notebook_facts import without_takes
from ctvlm_lib.run import MAIN_PACKAGES, PROJECT, file_hash, package_version

PACKAGE = Path(ctvlm_lib.__file__).resolve().parent
DATA_SUFFIXES = (".csv", ".toml", ".json", ".txt", ".bib")


def notebook_key(notebook: dict, parameters: dict, upstream: dict[str, dict]) -> str:
    """Return the key of a notebook's results.

    Args:
        notebook: the parsed notebook (nbformat 4).
        parameters: what is passed to it. Not the output folder: a run stays valid when its folder is moved.
        upstream: for each notebook it needs, ``{"key": …, "tables": {file: sha256}}``, or ``{}`` if that has not run.
    """
    parts = {
        "cells": [[c["cell_type"], _source(c), sorted(c["metadata"].get("tags", []))] for c in notebook["cells"]],
        "parameters": parameters,
        "upstream": {number: [u.get("key"), u.get("tables")] for number, u in sorted(upstream.items())},
        "library": library_hashes(notebook),
        "data": data_hashes(notebook["metadata"].get("ctvlm", {}).get("reads", [])),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def library_hashes(notebook: dict) -> dict[str, str]:
    """Return the hash of each module of ctvlm_lib that the notebook can reach, {module name: sha256}."""
    reached = reachable_modules(notebook)
    return {name: file_hash(path) for name, path in sorted(_modules().items()) if name in reached}


def reachable_modules(notebook: dict) -> set[str]:
    """Return the modules of ctvlm_lib that the code cells import, directly or through other modules.

    Imports inside functions count. A cell that can't be parsed, or that starts the ``ctvlm`` command, reaches
    all modules: rather one run too many than a stale result.
    """
    found = {"ctvlm_lib"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        try:
            tree = ast.parse(_without_magics(_source(cell)))
        except (SyntaxError, _StartsCommand):
            return set(_modules())
        if _starts_command(tree):
            return set(_modules())
        found |= _imports(tree, "")
    todo = list(found)
    while todo:
        name = todo.pop()
        parents = {name[:i] for i, letter in enumerate(name) if letter == "."}  # importing a.b.c runs a and a.b too
        new = (_module_imports(name) | parents) - found
        found |= new
        todo += new
    return found


class _StartsCommand(Exception):
    """The code starts a process whose imports can't be read from it."""


def _source(cell: dict) -> str:
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    return without_takes(source) if cell["cell_type"] == "markdown" else source


def _without_magics(source: str) -> str:
    """Return Python that can be parsed: IPython's magic and shell lines become ``pass``."""
    if source.lstrip().startswith("%%"):
        source = source.lstrip().partition("\n")[2]
    lines = []
    for line in source.splitlines():
        code = line.lstrip()
        if code.startswith(("!", "%")):
            if "ctvlm" in code:
                raise _StartsCommand
            line = line[: len(line) - len(code)] + "pass"
        lines.append(line.rstrip("?") if line.endswith("?") else line)
    return "\n".join(lines)


def _modules() -> dict[str, Path]:
    """Return every module of the library, {dotted name: file}."""
    return _modules_under(PACKAGE)


@cache
def _modules_under(package: Path) -> dict[str, Path]:
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _module_imports(name: str) -> set[str]:
    path = _modules().get(name)
    if path is None:
        return set()
    try:
        return _cached_imports(path, path.stat().st_mtime_ns, name)
    except SyntaxError:
        return set(_modules())


@cache
def _cached_imports(path: Path, changed_ns: int, name: str) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _imports(ast.parse(path.read_text(encoding="utf-8")), package)


def _imports(tree: ast.AST, package: str) -> set[str]:
    """Return the modules of ctvlm_lib that the code imports anywhere; ``package`` is what leading dots refer to."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            # `from a import b`: b may be a module; if it isn't, no such module exists and the name is dropped
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("ctvlm_lib."):  # importlib.import_module("ctvlm_lib.x"), `-m ctvlm_lib.x`
                names.add(node.value)
    known = _modules()
    return {name for name in names if name in known}


def _starts_command(tree: ast.AST) -> bool:
    """Say whether a cell starts ``ctvlm …`` or ``python -m ctvlm_lib …`` as a process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            items = node.args if isinstance(node, ast.Call) else node.elts
            values = [item.value if isinstance(item, ast.Constant) else None for item in items]
            if ("-m", "ctvlm_lib") in zip(values, values[1:], strict=False) or values[:1] == ["ctvlm"]:
                return True
    return False


def data_hashes(reads: list[str]) -> dict[str, str]:
    """Return the hashes of data that any notebook may read, and of what this one says it reads.

    Args:
        reads: files or folders relative to the project, from the notebook's metadata ``ctvlm.reads``.
    """
    library = [path for path in PACKAGE.rglob("*") if path.suffix in DATA_SUFFIXES]
    project = [path for path in (PROJECT / "data_samples").glob("*") if path.suffix in DATA_SUFFIXES]
    for entry in reads:
        path = PROJECT / entry
        project += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    root = str(PROJECT)
    paths = sorted({*library, *project})
    return {str(path).removeprefix(root): file_hash(path) if path.exists() else "absent" for path in paths}


@cache
def _versions() -> dict[str, str | None]:
    """Return major.minor of Python and the main packages: a patch release is not a reason to run again."""
    versions = {name: package_version(name) for name in MAIN_PACKAGES}
    versions["python"] = platform.python_version()
    return {name: ".".join(version.split(".")[:2]) if version else None for name, version in versions.items()}
