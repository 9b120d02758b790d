"""One notebook's run: profile, seed, device and why, where its tables and figures go, and what made them."""

import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ctvlm_lib
from ctvlm_lib.errors import BadInput, atomic_path

PROJECT = Path(ctvlm_lib.__file__).resolve().parents[1]
PROFILES = ("quick", "full", "paper")
MAIN_PACKAGES = (
    "numpy", "scipy", "pandas", "matplotlib", "nibabel", "SimpleITK", "connected-components-3d", "monai",
    "torch", "transformers", "peft", "accelerate", "safetensors", "dask", "papermill", "nbconvert",
)  # fmt: skip


def start(notebook: str, profile: str = "quick", seed: int = 0, out_dir: str = "") -> "Run":
    """Begin a notebook: check the profile, seed the random generators, choose the device, print what was chosen.

    The printed lines hold no path, time or hash of the machine, so that an executed notebook can be committed.

    Args:
        notebook: the notebook's name with its number, e.g. ``"30_visual_prompts"``.
        profile: ``quick``, ``full`` or ``paper``.
        seed: seeds ``random`` and numpy, and torch (at once if it is loaded, else in :meth:`Run.torch`).
        out_dir: the output folder without the profile; empty means ``$CTVLM_OUT``, else ``out`` in the project.

    Raises:
        BadInput: an unknown profile, a name without a two-digit number, a seed that is not a whole number ≥ 0.
    """
    check_profile(profile)
    if not re.fullmatch(r"\d\d(_\w+)?", notebook):
        raise BadInput(f"notebook is {notebook!r}; expected its number and name, for example '30_visual_prompts'")
    check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    device, why = find_device()
    run = Run(notebook, profile, seed, run_folder(profile, out_dir), device, why)
    if "torch" in sys.modules:
        run.torch()
    python = ".".join(platform.python_version_tuple()[:2])
    print(f"{notebook} · profile {profile} · seed {seed}")
    print(f"ctvlm {ctvlm_lib.__version__} · Python {python} · numpy {np.__version__}")
    print(f"device: {device} ({why})")
    return run


def check_profile(profile: str) -> None:
    """Raise BadInput unless ``profile`` is one of PROFILES."""
    if profile not in PROFILES:
        raise BadInput(f"unknown profile {profile!r}; choose one of {', '.join(PROFILES)}")


def check_seed(seed: int) -> None:
    """Raise BadInput unless ``seed`` is one that numpy takes."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise BadInput(f"seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}")


def run_folder(profile: str, out_dir: str | Path = "") -> Path:
    """Return the absolute folder ``DIR/<profile>`` that a run of this profile writes to."""
    return Path(out_dir or os.environ.get("CTVLM_OUT") or PROJECT / "out").expanduser().resolve() / profile


def find_device() -> tuple[str, str]:
    """Say which device models will use, and why, without importing torch (that costs seconds).

    Returns:
        ``("cuda" or "cpu", reason)``. When torch is loaded it is asked; otherwise the driver and the installed
        build of torch are looked at, and the reason says that torch was not asked.
    """
    if "torch" in sys.modules:
        cuda = sys.modules["torch"].cuda
        return ("cuda", f"torch sees {cuda.get_device_name(0)}") if cuda.is_available() else (
            "cpu", "no CUDA GPU found by torch")  # fmt: skip
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return "cpu", "no NVIDIA driver found; torch not loaded yet"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "cpu", "CUDA_VISIBLE_DEVICES hides the GPU"
    build = package_version("torch")
    if build is None:
        return "cpu", "an NVIDIA driver is there, but torch is not installed"
    if build.endswith("+cpu"):
        return "cpu", f"an NVIDIA driver is there, but torch {build} is a build for CPU only"
    return "cuda", "an NVIDIA driver is there; torch not asked yet"


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass
class Run:
    """What a notebook needs to know about its run; made by :func:`start`.

    Attributes:
        notebook: e.g. ``"30_visual_prompts"``.
        profile: ``quick``, ``full`` or ``paper``.
        seed: whole number.
        folder: ``DIR/<profile>``, absolute.
        device: ``"cpu"`` or ``"cuda"``.
        why: the reason for the device, in words.
    """

    notebook: str
    profile: str
    seed: int
    folder: Path
    device: str
    why: str

    def __repr__(self) -> str:
        return f"Run({self.notebook}, profile {self.profile}, seed {self.seed}, {self.device}: {self.why})"

    @property
    def number(self) -> str:
        """The notebook's two-digit number, the prefix of everything it writes."""
        return self.notebook[:2]

    def torch(self):
        """Import torch, seed it from the run's seed, settle ``device`` by asking it, and return the module."""
        import torch

        torch.manual_seed(self.seed)
        self.device, self.why = find_device()
        return torch

    def path(self, relative: str | Path) -> Path:
        """Return a path inside the run's folder and make its parent folder.

        What only this notebook writes belongs under its number, ``run.path("30/masks.npz")``: the runner removes
        that folder on ``--fresh`` and checks it before it calls the notebook up to date.

        Raises:
            BadInput: the path leads out of the run's folder, or the folder can't be made.
        """
        full = (self.folder / relative).resolve()
        if not full.is_relative_to(self.folder):
            raise BadInput(f"{relative} leads out of the run's folder; give a path like '{self.number}/result.npz'")
        try:
            full.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"can't make the folder {full.parent}: {error.strerror}; choose another out_dir") from error
        return full

    def table(self, frame, name: str, caption: str = ""):
        """Write a pandas table as ``tables/<number>_<name>.csv`` and return it for display.

        Numbers are written as they stand: round them before, to the digits that carry information.
        A row index is written only if it means something (anything but 0, 1, 2, …).
        """
        target = self.path(f"tables/{self.number}_{_checked(name)}.csv")
        plain = frame.index.name is None and list(frame.index) == list(range(len(frame)))
        with atomic_path(target) as partial:
            frame.to_csv(partial, index=not plain, lineterminator="\n")
        self._note("tables", name, {"file": f"tables/{target.name}", "caption": caption})
        return frame

    def figure(self, figure, name: str, caption: str, limit_kb: int = 40) -> None:
        """Save a matplotlib figure as ``figures/<number>_<name>.png`` or ``.jpg``, show it and close it.

        Args:
            figure: a ``matplotlib.figure.Figure``.
            name: letters, digits, ``-`` and ``_``.
            caption: what it shows, one sentence; becomes the picture's alternative text.
            limit_kb: largest file, at most 40 kB; less where a notebook has many pictures.
        """
        import matplotlib.pyplot as plt

        from ctvlm_lib.figure_file import LIMIT_BYTES, encode

        content, suffix, width_px = encode(figure, min(LIMIT_BYTES, 1000 * limit_kb))
        target = self.path(f"figures/{self.number}_{_checked(name)}.{suffix}")
        with atomic_path(target) as partial:
            partial.write_bytes(content)
        target.with_suffix(".jpg" if suffix == "png" else ".png").unlink(missing_ok=True)
        self._note("figures", name, {"file": f"figures/{target.name}", "caption": caption})
        plt.close(figure)
        _show(content, suffix, caption, width_px)

    def uses(self, *names: str) -> None:
        """Print source, hash and licence of the assets this notebook reads, as the manifest states them.

        Nothing is fetched. The hash is that of the first file, the image or the weights.

        Raises:
            BadInput: no asset has this name.
        """
        from ctvlm_lib import assets

        manifest = assets.manifest()
        for name in names:
            if name not in manifest["asset"]:
                raise BadInput(f"no asset is called {name!r}; there are {', '.join(manifest['asset'])}")
            asset = manifest["asset"][name]
            first = asset["members"][0]
            shown = first["to"].split("/")[0]  # of a series its folder: the file names are DICOM identifiers
            what = f"{shown} sha256 {first['sha256'][:12]}… ({asset['licence']}; {asset['package']})"
            print(f"data: {name} · {what}")
            self._note("data", name, {"name": name, "what": what})

    def _note(self, kind: str, name: str, entry: dict) -> None:
        """Enter a table, figure or asset into the notebook's index, which the report page reads; same name replaces."""
        index_file = self.path(f"figures/{self.number}_index.json")
        index = json.loads(index_file.read_text(encoding="utf-8")) if index_file.exists() else {}
        index.setdefault(kind, {})[name] = entry
        write_json(index_file, index)


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise BadInput(f"the name {name!r} can't be a file name; use letters, digits, '-' and '_' only")
    return name


def _show(content: bytes, suffix: str, caption: str, width_px: int) -> None:
    """Display an encoded picture in the notebook; outside a notebook nothing happens."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import Image, display

    if get_ipython() is not None:
        display(Image(data=content, format="jpeg" if suffix == "jpg" else "png", alt=caption, width=width_px))


def write_json(path: Path, content: dict) -> None:
    """Write JSON whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str | None:
    """Return the project's commit, with ``+changes`` if tracked files differ from it; None without git."""
    try:
        git = ["git", "-C", str(PROJECT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def environment_record() -> dict:
    """Return what another person needs to know to repeat a run: versions, platform, commit, device, manifest hash."""
    device, why = find_device()
    manifest = sorted((PROJECT / "data_samples").glob("manifest.*"))
    return {
        "ctvlm": ctvlm_lib.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "device_why": why,
        "packages": {name: package_version(name) for name in MAIN_PACKAGES},
        "manifest_sha256": file_hash(manifest[0]) if manifest else None,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
