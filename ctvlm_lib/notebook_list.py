"""The workbook's notebooks: found by their numbers, checked, chosen."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ctvlm_lib.damaged import NOT_JSON
from ctvlm_lib.errors import BadInput


@dataclass
class Notebook:
    """A notebook of the workbook; ``needs`` are the numbers of those whose results it reads."""

    path: Path
    content: dict = field(repr=False)

    @property
    def name(self) -> str:
        """File name without suffix, e.g. ``30_visual_prompts``."""
        return self.path.stem

    @property
    def number(self) -> str:
        """The two digits that the name begins with."""
        return self.name[:2]

    @property
    def needs(self) -> list[str]:
        """The metadata's ``ctvlm.needs``."""
        return list(self.content["metadata"].get("ctvlm", {}).get("needs", []))

    @property
    def assets(self) -> list[str]:
        """The data that it reads, as its ``run.uses("…")`` states them."""
        code = "\n".join("".join(c["source"]) for c in self.content["cells"] if c["cell_type"] == "code")
        return re.findall(r'"(\w+)"', " ".join(re.findall(r"\brun\.uses\(([^)]*)\)", code)))

    @property
    def parameter_names(self) -> set[str]:
        """The names that the cell tagged ``parameters`` assigns.

        Read with Python's own parser: ``papermill.inspect_notebook`` loses a line whose comment has an apostrophe.
        """
        for cell in self.content["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                nodes = ast.walk(ast.parse("".join(cell["source"])))
                return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        return set()

    @property
    def title(self) -> str:
        """The first heading without the number it may begin with, or the name."""
        for cell in self.content["cells"]:
            heading = re.search(r"^#+ +(.+)$", "".join(cell["source"]), re.MULTILINE)
            if cell["cell_type"] == "markdown" and heading:
                return re.sub(r"^\d\d\W+", "", heading[1].strip())
        return self.name


def find_notebooks(folder: Path) -> list[Notebook]:
    """Read the notebooks ``NN_name.ipynb`` of a folder in number order.

    Raises:
        BadInput: there are none, one can't be read, a number is used twice, or a need is not an earlier notebook.
    """
    notebooks: list[Notebook] = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            notebook = Notebook(path.resolve(), {"metadata": content.get("metadata", {}), "cells": content["cells"]})
            _ = notebook.parameter_names, notebook.title  # what can't be read shall be said before anything runs
        except (OSError, KeyError, AttributeError, TypeError, SyntaxError, *NOT_JSON) as error:
            raise BadInput(f"{path.name} can't be read as a notebook ({error}); restore it or move it away") from error
        earlier = [other.number for other in notebooks]
        if notebook.number in earlier:
            raise BadInput(f"two notebooks have the number {notebook.number}; rename {path.name}")
        for need in notebook.needs:
            if need not in earlier:
                raise BadInput(f"{path.name} needs {need!r} (its metadata), but no earlier notebook has that number")
        notebooks.append(notebook)
    if not notebooks:
        raise BadInput(f"no notebooks named like 00_name.ipynb in {folder}; run this from a complete checkout")
    return notebooks


def select(notebooks: list[Notebook], only: str | list[str] | None) -> list[Notebook]:
    """Return the notebooks whose numbers (or names) are asked for, in order; all if None."""
    if only is None:
        return notebooks
    asked = only.split(",") if isinstance(only, str) else [str(item) for item in only]
    wanted = {item.strip().removesuffix(".ipynb") for item in asked if item.strip()}
    known = {notebook.number for notebook in notebooks}
    unknown = wanted - known - {notebook.name for notebook in notebooks}
    if not wanted or unknown:
        wrong = ", ".join(sorted(unknown)) or "an empty list"
        raise BadInput(f"no notebook with the number {wrong}; there are {', '.join(sorted(known))}, as in --only 10,30")
    return [notebook for notebook in notebooks if wanted & {notebook.number, notebook.name}]
