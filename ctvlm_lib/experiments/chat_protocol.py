"""What is fixed for the chat arms before they are scored on test; beside the cohort's own protocol."""

from functools import cache
from pathlib import Path

from ctvlm_lib.records import protocol

PATH = protocol.PATH.with_name("protocol_chat.toml")
FILES = (protocol.PATH, PATH)
_SECTIONS = ("version", "arms", "training", "asking", "scoring", "contrast")


@cache
def load(path: str | Path = PATH) -> dict:
    """Read it and check that it is whole.

    Raises:
        BadInput: it isn't there, isn't TOML, or lacks a section.
    """
    return protocol.content_of(Path(path), _SECTIONS)
