"""What profile ``paper`` does in each notebook, on the data and weights of a user's sources file.

A module for each notebook, so that a notebook depends on no more of the library than it shows.
"""

from ctvlm_lib import sources
from ctvlm_lib.run import Run, start


def begin(notebook: str, profile: str, seed: int, out_dir: str) -> "tuple[Run, sources.Sources] | None":
    """Begin a notebook's part of profile ``paper``; in the others say what it would do, and return None."""
    if profile != "paper":
        print(f"profile {profile}: nothing of yours is read; `ctvlm run --profile paper --sources FILE` runs this part")
        return None
    given = sources.load()
    return start(notebook, profile, seed, out_dir), given
