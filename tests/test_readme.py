"""What README.md says is so: its links, commands, numbers and versions, read beside what they speak of."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from ctvlm_lib import assets
from ctvlm_lib.__main__ import parser_for
from ctvlm_lib.run import PROFILES

ROOT = Path(__file__).resolve().parents[1]
FIRST_SCREEN = 40  # lines
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUFFIX = re.compile(r"\.(py|md|ipynb|txt|toml|json|csv|html|bib|cff|ya?ml|jpe?g|png)$")
FIVE_PAPERS = {
    "med3dvlm": "Med3DVLM",
    "medvista3d": "MedVista3D",
    "uvlm": "U-VLM",
    "contour": "Boundary guidance",
    "dualbox": "Boundary guidance",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# The table of notebooks is generated, and tested with what generates it.
README = re.sub(r"(<!-- notebooks\b.*?-->).*?(<!-- /notebooks -->)", r"\1\2", read("README.md"), flags=re.DOTALL)
BLOCKS = FENCE.findall(README)
PROSE = FENCE.sub("", README)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
COMMENTS = re.findall(r"<!--.*?-->", PROSE)
LINKS = [target for target in re.findall(r"\]\(([^)\s]+)\)", PROSE) if "://" not in target]
MAKEFILE = read("Makefile")
CODE_LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()] + SPANS


def ctvlm_commands() -> list[str]:
    """What stands after ``ctvlm`` wherever the README shows the command, one string for each."""
    found = (re.match(r"(?:\S*/)?ctvlm\s+(.+)", line) for line in CODE_LINES)
    return [match[1].split(" #")[0].strip() for match in found if match]


def make_calls() -> list[tuple[str, str]]:
    """Target and the rest of the line, wherever the README shows a call of make."""
    found = (re.search(r"\bmake\s+([a-z]+)\b(.*)", line) for line in CODE_LINES + COMMENTS)
    return [(match[1], match[2]) for match in found if match]


def project_paths() -> list[str]:
    """What stands in backticks, is one word, and has a slash or the suffix of a file that a project holds."""
    return [span for span in SPANS if " " not in span and ("/" in span or SUFFIX.search(span))]


def paragraph(start: str) -> str:
    """The paragraph that begins so, on one line; empty if there is none."""
    found = (part for part in re.split(r"\n\s*\n", PROSE) if part.lstrip().startswith(start))
    return " ".join(next(found, "").split())


def installed_by(text: str) -> tuple[str, str]:
    """The constraints file and the requirement of the pip call that installs the project itself."""
    (call,) = re.findall(r"install\b.*-c (\S+).* -e (\S+)", text)
    return call[0], call[1].strip("'\"")


def parse(words: list[str]) -> None:
    """Parse a ctvlm command line as the command does, without running it; ``--help`` and ``--version`` are fine."""
    try:
        parser_for(words).parse_args(words)
    except SystemExit as ended:
        assert not ended.code, f"ctvlm {' '.join(words)} isn't understood by its own parser"


# --- the first screen -----------------------------------------------------------------------------------------------


def test_first_screen_holds_claim_picture_two_commands_and_the_warning():
    screen = "\n".join(README.splitlines()[:FIRST_SCREEN])
    title, claim = re.split(r"\n\s*\n", screen)[:2]
    assert title.startswith("# ctvlm") and re.fullmatch(r"\*\*[^*]+\.\*\*.*", claim, re.DOTALL)
    assert re.search(r"!\[[^\]]{20,}\]\(\S+\)", screen), "a picture, described for those who can't see it"
    first_block = FENCE.findall(screen)[0]
    assert [line.split()[:2] for line in first_block.splitlines()] == [["make", "run"], ["make", "test"]]
    assert "not a medical device" in screen


@pytest.mark.parametrize("reader", ["student", "reviewer", "clinician"])
def test_each_reader_has_a_paragraph_with_a_command_to_begin_with(reader):
    text = paragraph(f"**You are a {reader}.**")
    assert len(text.split()) > 30 and re.search(r"`make \w+", text)


# --- links and paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", sorted(set(LINKS)))
def test_link_or_picture_exists(target):
    file, _, anchor = target.partition("#")
    assert not file or (ROOT / file).resolve().is_relative_to(ROOT) and (ROOT / file).exists()
    if anchor and not file:
        heads = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def test_readme_has_links_at_all():
    assert len(LINKS) >= 5, "the pattern that finds links finds none"


def test_path_in_backticks_exists_or_is_written_by_the_library():
    library = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ctvlm_lib").rglob("*.py"))
    wrong = []
    for path in project_paths() + re.findall(r"\bout/[\w./-]+\w", README):
        is_result = path.startswith("out/") or "/" not in path
        written = is_result and f'"{Path(path).name}"' in library
        if not (ROOT / path).exists() and not written:
            wrong.append(path)
    assert not wrong, f"neither in the project nor written by it: {wrong}"


def test_notebooks_named_by_number_exist_and_those_to_come_do_not():
    there = {file.name[:2] for file in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    named = set(re.findall(r"\bnotebook (\d\d)\b", PROSE))
    to_come = set(re.findall(r"\b\d\d\b", " ".join(re.findall(r"stages to come[^.]*\.", PROSE))))
    assert named <= there, f"named, but not in notebooks/: {sorted(named - there)}"
    assert not to_come & there, f"said to be still to come, but there: {sorted(to_come & there)}"


# --- commands -------------------------------------------------------------------------------------------------------


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):(?!=)", MAKEFILE, re.MULTILINE))
    named = {target for target, _ in make_calls()}
    assert {"run", "test", "lab", "app"} <= named <= targets, f"not in the Makefile: {sorted(named - targets)}"


def test_every_make_variable_named_exists_and_its_words_are_options_of_the_command():
    for target, rest in make_calls():
        for name, value in re.findall(r'\b([A-Z_]+)="([^"]*)"', rest):
            assert re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE), f"{name} isn't in the Makefile"
            if (target, name) == ("run", "ARGS"):
                parse(["run", *shlex.split(value)])


@pytest.mark.parametrize("line", sorted(set(ctvlm_commands())))
def test_command_line_is_understood_by_its_own_parser(line, capsys):
    parse(shlex.split(line))


def test_readme_shows_run_render_and_doctor():
    assert {line.split()[0] for line in ctvlm_commands()} >= {"run", "render", "doctor"}


def test_the_way_without_make_installs_what_make_installs():
    (by_hand,) = [block for block in BLOCKS if "pip install" in block]
    assert installed_by(by_hand) == installed_by(MAKEFILE)
    folder = re.search(r"-m venv (\S+)", by_hand)[1]
    assert f"VENV ?= {folder}\n" in MAKEFILE
    assert all(line.split()[0].startswith(f"{folder}/bin/") for line in by_hand.splitlines()[1:])


# --- numbers and versions -------------------------------------------------------------------------------------------


def test_megabytes_to_fetch_are_those_of_the_default_assets_archives():
    listed = assets.manifest()
    needed = {asset["package"] for asset in listed["asset"].values() if asset["quick"]}
    megabytes = sum(listed["package"][key]["bytes"] for key in needed) / 1e6
    assert re.findall(r"<!-- quick-mb -->(.*?)<!-- /quick-mb -->", README) == [f"{megabytes:.0f}"]


def test_structures_of_the_abdomen_are_counted_as_in_the_manifest():
    present = assets.about("abdomen_ct")["labels"]["present"]
    assert re.findall(r"abdomen CT with (\d+) labelled structures", PROSE) == [str(present)]


def test_size_of_the_timed_volume_is_the_benchmarks():
    size = re.search(r"`make bench` times .*?(\d+)×(\d+)×(\d+) voxels", PROSE)
    timed = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "benchmarks").glob("*.py"))
    assert f"({', '.join(size.groups())})" in timed


def test_profiles_are_the_librarys():
    text = re.search(r"^- Profiles: .*", PROSE, re.MULTILINE)[0]
    assert re.findall(r"`(\w+)`", text) == list(PROFILES)


def test_python_versions_named_are_those_the_project_accepts():
    accepted = SpecifierSet(tomllib.loads(read("pyproject.toml"))["project"]["requires-python"])
    phrases = re.findall(r"[Pp]ython ?3\.\d+(?:(?:,| or| and) 3\.\d+)*", README)
    named = {version for phrase in phrases for version in re.findall(r"3\.\d+", phrase)}
    assert named == {f"3.{minor}" for minor in range(40) if f"3.{minor}.0" in accepted}


def test_licence_named_is_the_projects():
    licence = tomllib.loads(read("pyproject.toml"))["project"]["license"]
    assert f"[{licence}](LICENSE)" in PROSE and "Apache License" in read("LICENSE")


# --- the five papers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "title"), FIVE_PAPERS.items())
def test_references_hold_each_of_the_five_papers(key, title):
    (entry,) = re.findall(rf"^@\w+\{{{key},\n(.*?)^\}}", read("references.bib"), re.MULTILINE | re.DOTALL)
    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", entry, re.MULTILINE))
    assert title in fields["title"].replace("{", "").replace("}", "") and " and " in fields["author"]


def test_readme_counts_as_many_papers_as_the_references_do():
    section = re.search(r"^% -+ the five papers$(.*?)^% ---", read("references.bib"), re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^@\w+\{([^,]+),", section, re.MULTILINE)) == set(FIVE_PAPERS)
    assert "**Five papers on 3D CT" in README
