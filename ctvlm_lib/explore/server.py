"""Serve the explorer's page on this machine: ``ctvlm app``."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ctvlm_lib.errors import BadInput, atomic_path
from ctvlm_lib.run import PROJECT, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ctvlm app``."""
    parser.add_argument("--port", type=int, default=8866, help="port on this machine (default: 8866)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, don't open a browser")
    parser.add_argument(
        "--data", metavar="DIR", help="folder whose CTs can be opened by path (default: app/data in the output folder)"
    )
    parser.add_argument("--dark", action="store_true", help="light letters on a dark page")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: $CTVLM_OUT, else out/ in the project)")


def command(arguments: argparse.Namespace) -> int:
    """Serve the explorer on this machine only, until Ctrl-C."""
    from ctvlm_lib import assets
    from ctvlm_lib.explore.cases import ASSETS, VARIABLE
    from ctvlm_lib.explore.keep import NOTICE

    _check_port(arguments.port)
    home = run_folder("app", arguments.out or "")
    data = _data_folder(arguments.data, home)
    assets.fetch(sorted({file.split("/")[0] for pair in ASSETS.values() for file in pair}))
    notebook = write_notebook(home)
    options = [
        "--Voila.ip=127.0.0.1",
        f"--port={arguments.port}",
        f"--Voila.tornado_settings={_headers(arguments.port)}",
    ]
    options += ["--no-browser"] if arguments.no_browser else []
    options += ["--theme=dark"] if arguments.dark else []
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "JUPYTER_PREFER_ENV_PATH": "1",
        VARIABLE: str(data),
    }  # this interpreter's kernel before the user's
    print(f"The explorer is at http://127.0.0.1:{arguments.port}/ – Ctrl-C ends it. {NOTICE}", flush=True)
    print(f"CTs in {data} can be opened by path.", flush=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "voila", str(notebook), *options], env=environment, start_new_session=True
    )
    return _until_stopped(server)


def write_notebook(folder: Path) -> Path:
    """Write the one-cell notebook that Voilà serves."""
    import nbformat

    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "title": "Prompt explorer"}
    )
    notebook.cells = [nbformat.v4.new_code_cell("from ctvlm_lib.explore.page import app\n\napp()", id="explorer")]
    final = folder / "explorer.ipynb"
    with atomic_path(final) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    return final


def _data_folder(given: str | None, home: Path) -> Path:
    """The folder that is chosen, or one of the explorer's own that is made."""
    if given is None:
        folder = home / "data"
        folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve()
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise BadInput(f"there is no folder {given}; give one whose CTs shall be opened with --data DIR")
    return folder


def _headers(port: int) -> str:
    """Settings that keep the page on this machine: Voilà's template would ask a public server for its icons."""
    sources = (
        f"default-src 'self' ws://127.0.0.1:{port} ws://localhost:{port} data: blob: 'unsafe-inline' 'unsafe-eval'"
    )
    return repr({"headers": {"Content-Security-Policy": sources}})


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        if os.name == "posix":  # on Windows it would let us bind a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            raise BadInput(
                f"port {port} can't be used (taken, reserved or out of range); choose another with --port"
            ) from None


def _until_stopped(server: subprocess.Popen) -> int:
    """Wait for the server; Ctrl-C or SIGTERM ends it, and counts as success."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = server.wait()
        if code:
            raise BadInput(f"the server ended with code {code}; its own message stands above")
        return 0
    except KeyboardInterrupt:
        print("\nThe explorer has ended.", flush=True)
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
