"""What is fixed for the local–global arms before they are scored on test; beside the cohort's own protocol."""

import tomllib
from functools import cache
from pathlib import Path

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol

PATH = protocol.PATH.with_name("protocol_local_global.toml")
FILES = (protocol.PATH, PATH)
_SECTIONS = ("training", "scoring", "contrast")


@cache
def load(path: str | Path = PATH) -> dict:
    """Read it and check that it is whole.

    Raises:
        BadInput: it isn't there, isn't TOML, lacks a section, or names a contrast twice.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"there is no {path.name} ({error.strerror}); nothing is scored without a protocol") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path.name} isn't TOML: {error}") from None
    if missing := [name for name in ("version", *_SECTIONS) if name not in content]:
        raise BadInput(f"{path.name} lacks {', '.join(missing)}; a protocol fixes all of it before anything is scored")
    names = [contrast["name"] for contrast in content["contrast"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path.name} has the contrast {twice[0]!r} twice; give each its own name")
    return content
