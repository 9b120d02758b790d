"""The executed notebook as a page: formulas without a script, nothing from the network, solutions left out."""

import re

import nbformat
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ctvlm_lib.notebook_html import write_html


def page_of(cells, tmp_path):
    notebook = tmp_path / "10_x.ipynb"
    nbformat.write(new_notebook(cells=cells), notebook)
    write_html(notebook, tmp_path / "10_x.html")
    return BeautifulSoup((tmp_path / "10_x.html").read_text(encoding="utf-8"), "html.parser")


def test_formulas_become_mathml_and_code_keeps_its_dollars(tmp_path):
    text = "Let $a < b$ and\n\n$$\\sum_{i} x_i^2 = \\frac{1}{4}$$\n\n`echo $HOME and $PATH`"
    page = page_of([new_markdown_cell(text), new_code_cell("print('$a$')")], tmp_path)
    inline, block = page.find_all("math")
    assert (inline.text, block["display"]) == ("a<b", "block")
    assert "echo $HOME and $PATH" in page.text and "$a$" in page.text


def test_the_browser_is_asked_to_fetch_nothing(tmp_path):
    body = str(page_of([new_markdown_cell("# 10 · X\n$a$"), new_code_cell("1")], tmp_path))
    assert not re.findall(r"""(?:src|href)=["']?https?://|@import|url\(["']?https?:|import\(["']https?:""", body)


def test_solutions_are_left_out_and_links_lead_to_pages(tmp_path):
    solution = new_code_cell("answer = 41 + 1", metadata={"tags": ["solution"]})
    text = "[next](20_masks.ipynb) [words](GLOSSARY.md#hu) [code](../ctvlm_lib/mask.py)"
    page = page_of([new_markdown_cell(text), solution], tmp_path)
    links = {a.text: a["href"] for a in page.select(".jp-RenderedMarkdown a")}
    assert links == {"next": "20_masks.html", "words": "GLOSSARY.html#hu", "code": "../ctvlm_lib/mask.py"}
    assert "41 + 1" not in page.text


def test_alternative_text_of_a_picture_stays(tmp_path):
    picture = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "a <liver>"}})
    page = page_of([new_code_cell("figure", outputs=[picture])], tmp_path)
    assert page.find("img", alt="a <liver>")["src"].startswith("data:image/png;base64,")
