"""``python -m ctvlm_lib.launch NAME``: print where a file for ``accelerate launch`` lies."""

import sys

from ctvlm_lib.errors import exit_code
from ctvlm_lib.launch import FILES, path


def main(words: list[str]) -> int:
    """Print the path, or without a name the list of names."""
    if not words:
        for name, told in FILES.items():
            print(f"{name:16} {told}")
        return 0
    return exit_code(lambda: print(path(words[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
