"""Pages of the report: a template of jinja2, filled and written whole or not at all, in the report's one style."""

from pathlib import Path

from ctvlm_lib.errors import atomic_path

STYLE = Path(__file__).with_name("report_style.css")


def write_page(path: Path, template: Path, **values) -> Path:
    """Fill a page's template and write it, whole or not at all; ``style`` is the report's style sheet.

    Args:
        path: of the page. template: of jinja2; what is put into it is escaped.
        values: by the names that the template has for them.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = STYLE.read_text(encoding="utf-8")
    page = environment.from_string(template.read_text(encoding="utf-8")).render(style=style, **values)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
