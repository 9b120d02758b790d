"""What is fixed for the local–global arms before they are scored on test; beside the cohort's own protocol."""

from functools import cache
from pathlib import Path

from ctvlm_lib.records import protocol

PATH = protocol.PATH.with_name("protocol_local_global.toml")
FILES = (protocol.PATH, PATH)


@cache
def load(path: str | Path = PATH) -> dict:
    """Read it and check that it is whole; errors as of :func:`ctvlm_lib.records.protocol.own`."""
    return protocol.own(Path(path), ("training",))
