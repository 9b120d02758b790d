"""What notebooks say of themselves: the measured "Takes" line, and the table of notebooks in the README.

Both are generated from the same measured run, so that they can't drift from it or from each other.
"""

import json
import re
from pathlib import Path

from ctvlm_lib.errors import BadInput, atomic_path

TAKES = re.compile(r"^\*\*Takes:\*\* CPU (\d+) s, (\d+\.\d) GB.*$", re.MULTILINE)
CLAIM = re.compile(r"# .+\n\s*((?:.+\n?)+)")  # the paragraph below the title
TABLE = re.compile(r"(<!-- notebooks: .*? -->\n).*?(<!-- /notebooks -->)", re.DOTALL)


def takes_line(seconds: float, peak_gb: float) -> str:
    """The line for a measured run: seconds rounded up to fives, memory up to tenths of a GB."""
    return f"**Takes:** CPU {5 * -(-int(seconds + 1) // 5)} s, {-(-int(peak_gb * 100) // 10) / 10:.1f} GB | GPU –"


def without_takes(source: str) -> str:
    """A cell's source without its "Takes" line, which a new measurement may change although nothing else did."""
    return TAKES.sub("", source)


def renew_takes(source: str, seconds: float, peak_gb: float) -> str:
    """Put a measured run into a "Takes" line that is off by more than a quarter (and 5 s, or 0.2 GB); else leave it."""
    found = TAKES.search(source)
    if not found:
        return source
    off_s, off_gb = abs(int(found[1]) - seconds), abs(float(found[2]) - peak_gb)
    close = off_s <= max(5, 0.25 * seconds) and off_gb <= max(0.2, 0.25 * peak_gb)
    return source if close else TAKES.sub(takes_line(seconds, peak_gb), source)


def readme_table(notebooks_dir: Path) -> str:
    """The README's table: a row a notebook, its claim, and the time and memory that its head states."""
    rows = ["| notebook | what you get | takes |", "|---|---|---|"]
    for path in sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        prose = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown"][:3]
        claim = CLAIM.match(prose[0])
        takes = TAKES.search("\n".join(prose))
        if not claim or not takes:
            raise BadInput(f"{path.name} has no claim below its title, or no 'Takes: CPU … s, … GB' line; add them")
        gets = " ".join(claim[1].replace("*", "").split())
        rows.append(f"| [{path.stem}](notebooks/{path.name}) | {gets} | {takes[1]} s, {takes[2]} GB |")
    return "\n".join(rows) + "\n"


def update_readme(readme: Path, notebooks_dir: Path) -> bool:
    """Write the table between its markers in the README; return whether that changed anything."""
    old = readme.read_text(encoding="utf-8")
    new = TABLE.sub(lambda match: match[1] + readme_table(notebooks_dir) + match[2], old)
    if new != old:
        with atomic_path(readme) as partial:
            partial.write_text(new, encoding="utf-8")
    return new != old


def copy_pictures(about: dict, folder: Path, number: str, project: Path) -> list[str]:
    """Copy the figures that a notebook's metadata sends into the project (``pictures: {figure: path}``).

    Returns:
        the paths written. A figure that was encoded in the other format (PNG or JPEG) is converted.
    """
    from PIL import Image

    written = []
    for name, target in about.get("pictures", {}).items():
        made = sorted((folder / "figures").glob(f"{number}_{name}.*"))
        if not made:
            raise BadInput(
                f"the run made no figure {number}_{name}, which {target} is to be copied from; run the notebook again"
            )
        with atomic_path(project / target) as partial:
            if made[0].suffix == Path(target).suffix:
                partial.write_bytes(made[0].read_bytes())
            else:
                Image.open(made[0]).save(partial)
        written.append(target)
    return written
