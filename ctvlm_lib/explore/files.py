"""Files between browser and kernel: uploads into a private folder that is gone once it was read, and downloads.

A file travels in parts of 1 MB, each asked for when the last one has been written, so that neither the page nor the
kernel waits for a whole file, and no message is larger than a server admits.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from html import escape
from pathlib import Path

import anywidget
import traitlets

from ctvlm_lib.errors import BadInput
from ctvlm_lib.explore.keep import File

LIMIT_MB = 600
PART = 1 << 20
SUFFIXES = (".nii.gz", ".nii", ".zip", ".json")


class Upload(anywidget.AnyWidget):
    """A labelled file field.

    Args:
        label: what is to be given.
        take: called with the path of the whole file; what it returns is shown. The file is removed afterwards.
        accept: suffixes that the browser offers.
    """

    _esm = Path(__file__).parent / "files.js"
    way = traitlets.Unicode("up").tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    accept = traitlets.Unicode().tag(sync=True)
    limit_mb = traitlets.Int(LIMIT_MB).tag(sync=True)

    def __init__(self, label: str, take: Callable[[Path], str], accept: str = ".nii,.nii.gz,.gz,.zip") -> None:
        super().__init__(label=label, accept=accept)
        self._take, self._folder, self._path, self._size = take, None, None, 0
        self.on_msg(self._receive)

    def _receive(self, _, message: dict, buffers: list) -> None:
        try:
            if message.get("kind") == "begin":
                self._begin(str(message.get("name", "")), message.get("size"))
            elif message.get("kind") == "part" and self._path is not None:
                self._append(message.get("start"), bytes(buffers[0]) if buffers else b"")
        except BadInput as problem:
            self._end(str(problem))

    def _begin(self, name: str, size: object) -> None:
        self._remove()
        suffix = next((one for one in SUFFIXES if name.lower().endswith(one)), None)
        if suffix is None:
            raise BadInput(
                f"a file that ends in {', '.join(SUFFIXES[:3])} is expected; convert yours, or zip its folder"
            )
        if not isinstance(size, int) or not 0 < size <= self.limit_mb * 1_000_000:
            raise BadInput(f"a file of 1 byte to {self.limit_mb} MB is taken; put a larger one into the data folder")
        self._folder = Path(tempfile.mkdtemp(prefix="ctvlm-"))  # readable by this user only
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._path, self._size = self._folder / f"upload{suffix}", size
        self._path.touch()
        self.send({"kind": "more"})

    def _append(self, start: object, part: bytes) -> None:
        there = self._path.stat().st_size
        if start != there or not part or there + len(part) > self._size:
            raise BadInput("the upload came in pieces that don't fit together; try it again")
        with open(self._path, "ab") as file:
            file.write(part)
        if there + len(part) < self._size:
            self.send({"kind": "more"})
            return
        try:
            self._end(self._take(self._path))
        except BadInput:
            raise
        except Exception as error:  # whatever a damaged file does, the page lives
            raise BadInput(
                f"the file can't be read ({type(error).__name__}); give a CT as NIfTI or zipped DICOM"
            ) from error

    def _end(self, text: str) -> None:
        self._remove()
        self.send({"kind": "end", "text": text.replace(str(tempfile.gettempdir()), "")})

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._path = None


class Download(anywidget.AnyWidget):
    """Hands files to the browser, and shows the link of a view."""

    _esm = Path(__file__).parent / "files.js"
    way = traitlets.Unicode("down").tag(sync=True)

    def give(self, file: File) -> None:
        """Send a file."""
        parts = [file.content[start : start + PART] for start in range(0, len(file.content), PART)] or [b""]
        for number, part in enumerate(parts):
            about = {"kind": "part", "name": file.name, "mime": file.mime, "number": number, "count": len(parts)}
            self.send(about, [part])

    def link(self, query: str) -> None:
        """Show a link to this page with another query."""
        self.send({"kind": "link", "query": query})


def sentence(problem: BadInput) -> str:
    """A problem as a sentence of its own."""
    text = str(problem)
    return f"{text[:1].upper()}{text[1:]}."


def paragraph(text: str, tag: str = "p") -> str:
    """Text as HTML, whatever it holds."""
    return f"<{tag}>{escape(text)}</{tag}>"
