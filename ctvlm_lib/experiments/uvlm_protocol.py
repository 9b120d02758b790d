"""What is fixed for U-VLM's arms before they are scored on test; beside the cohort's own protocol."""

from functools import cache
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol

PATH = protocol.PATH.with_name("protocol_uvlm.toml")
FILES = (protocol.PATH, PATH)
_SECTIONS = ("version", "encoder", "segmentation", "classification", "report", "scoring", "contrast")


@cache
def load(path: str | Path = PATH) -> dict:
    """Read it and check that it is whole.

    Raises:
        BadInput: it isn't there, isn't TOML, lacks a section, or names a contrast twice.
    """
    path = Path(path)
    content = protocol.content_of(path, _SECTIONS)
    names = [contrast["name"] for contrast in content["contrast"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path.name} has the contrast {twice[0]!r} twice; give each its own name")
    return content
