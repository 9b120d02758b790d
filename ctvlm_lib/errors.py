"""What a user can correct is said in one sentence; what is written is written whole or not at all."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(ValueError):
    """A problem that the user can correct: its message says what was given, what was expected and what to do.

    The command line prints it as ``ctvlm: <message>`` and exits with code 2.
    """

    def __str__(self) -> str:
        """The message, with "?" for halves of surrogate pairs, which files may hold and no terminal shows."""
        return super().__str__().encode("utf-8", "replace").decode("utf-8")


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a small command: 0, or 2 after the sentence about what its user can correct."""
    try:
        work()
    except BadInput as error:
        print(f"ctvlm: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``final`` that takes its name when the block ends without an error.

    The temporary name keeps the file's suffixes (``.nii.gz``), because writers choose the format by them.
    A folder may be written as well as a file; an existing ``final`` is replaced only at the end.

    Args:
        final: where the finished file or folder shall lie. Missing parent folders are made.

    Yields:
        A path that does not exist yet, on the same file system as ``final``.

    Raises:
        BadInput: the folder can't be made or written to.
    """
    final = Path(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"can't make the folder {final.parent}: {error.strerror}; choose another output path") from error
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise BadInput(f"can't write into {final.parent}: permission denied; choose another output path")
    temporary = final.parent / f".{secrets.token_hex(4)}.partial.{final.name}"
    try:
        yield temporary
        if temporary.is_dir() and final.is_dir():
            _exchange(temporary, final)
        else:
            os.replace(temporary, final)
    except OSError as error:
        _remove(temporary)
        if error.filename is None and error.errno is None:
            raise
        raise BadInput(
            f"can't write {final}: {error.strerror}; choose another output path or free some space"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _exchange(temporary: Path, final: Path) -> None:
    """Put a folder in the place of another one; a kill leaves the old, the new or none, never a part of one."""
    old = final.parent / f".{secrets.token_hex(4)}.partial.{final.name}"
    os.replace(final, old)
    try:
        os.replace(temporary, final)
    except OSError:
        os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
