"""An executed notebook as one HTML page that stands alone: formulas as MathML, nothing fetched from elsewhere."""

import html
import re
from pathlib import Path

from ctvlm_lib.errors import atomic_path

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
NEIGHBOUR = re.compile(r"^(\w+)\.(ipynb|md)\b")  # a link to another notebook or text of the workbook


def write_html(executed: Path, page: Path) -> None:
    """Write the executed notebook as a page: text, tables, figures and formulas are in it.

    Solutions of exercises are left out, links to other notebooks lead to their pages. Live widgets need a kernel and
    are not shown; the static figure before each of them is.
    """
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _alternative_text(output)
    _write(notebook, executed.stem, page)


def write_text(markdown: Path, page: Path) -> None:
    """Write a Markdown file that notebooks link to, such as the glossary, as a page of the same kind."""
    from nbformat.v4 import new_markdown_cell, new_notebook

    _write(new_notebook(cells=[new_markdown_cell(markdown.read_text(encoding="utf-8"))]), markdown.stem, page)


def _write(notebook, name: str, page: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook, resources={"metadata": {"name": name}})
    with atomic_path(page) as partial:
        partial.write_text(_standing_alone(body), encoding="utf-8")


def _standing_alone(body: str) -> str:
    """The page without what a browser would fetch, with formulas and links made ready."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for script in soup.find_all("script"):
        if script.get("src") or script.get("type") == "module" or "MathJax" in script.text:
            script.decompose()
    for link in soup.find_all("a", href=NEIGHBOUR):
        link["href"] = NEIGHBOUR.sub(r"\1.html", link["href"])
    for text in soup.select(".jp-RenderedMarkdown"):
        for node in text.find_all(string=FORMULA):
            if not node.find_parent(["code", "pre"]):
                node.replace_with(BeautifulSoup(_with_mathml(str(node)), "html.parser"))
    return str(soup)


def _with_mathml(text: str) -> str:
    """Text with its LaTeX formulas as MathML, everything else escaped."""
    parts, end = [], 0
    for match in FORMULA.finditer(text):
        parts += [html.escape(text[end : match.start()], quote=False), _mathml(match[1] or match[2], bool(match[1]))]
        end = match.end()
    return "".join(parts) + html.escape(text[end:], quote=False)


def _mathml(formula: str, block: bool) -> str:
    """MathML of a LaTeX formula; its source, marked as code, where the converter does not know a command."""
    from latex2mathml.converter import convert

    try:
        return convert(formula, display="block" if block else "inline")
    except Exception:  # the converter's own errors have no common class
        return f"<code>{html.escape(formula, quote=False)}</code>"


def _alternative_text(output) -> None:
    """Turn a picture with alternative text into HTML: nbconvert's template would drop the text."""
    for kind in ("image/png", "image/jpeg"):
        about = output.get("metadata", {}).get(kind, {})
        if about.get("alt") and kind in output.get("data", {}):
            content = "".join(output.data.pop(kind)).replace("\n", "")
            width = f' width="{about["width"]}"' if about.get("width") else ""
            alt = html.escape(about["alt"], quote=True)
            output.data["text/html"] = f'<img alt="{alt}"{width} src="data:{kind};base64,{content}">'
