"""Fetching assets: hashes, interruptions, offline, members that lead outside: tiny archives, no network."""

import argparse
import base64
import hashlib
import io
import multiprocessing
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ctvlm_lib import assets
from ctvlm_lib.archive import _copy, _inside, _why
from ctvlm_lib.errors import BadInput

IMAGING = ["chest_cta", "abdomen_ct", "ct_dicom", "mr_small"]
LANGUAGE = ["smollm2", "minilm", "wordnet"]
FILES = {"tinydata/a.bin": b"alpha" * 40, "tinydata/b/c.txt": b"one\r\ntwo\r\n", "tinydata/other.txt": b"second asset"}
BACKEND = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import pathlib
    info = pathlib.Path(folder, "tinydata-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: tinydata\\nVersion: 1.0\\n")
    return info.name


def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise RuntimeError("nothing may be built")
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    info = {
        "tinydata-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
        "tinydata-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    archive = folder / "tinydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as bundle:
        record = ""
        for name, data in {**files, **info}.items():
            bundle.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(data)}\n"
        bundle.writestr("tinydata-1.0.dist-info/RECORD", record + "tinydata-1.0.dist-info/RECORD,,\n")
    return archive


def make_sdist(folder: Path, files: dict[str, bytes]) -> Path:
    """A source distribution with its own build backend, so that pip needs nothing from anywhere."""
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    extra = {
        "pyproject.toml": (project + '[project]\nname = "tinydata"\nversion = "1.0"\n').encode(),
        "backend.py": BACKEND.encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
    }
    archive = folder / "tinydata-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        for name, data in {**files, **extra}.items():
            info = tarfile.TarInfo(f"tinydata-1.0/{name}")
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
    return archive


def write_manifest(file: Path, archive: Path, *, archive_sha256: str = "", members: dict | None = None) -> None:
    """Two assets of one package: ``first`` (a.bin and c.txt without its carriage returns) and ``second``."""
    data = archive.read_bytes()
    prefix = "tinydata-1.0/" if archive.name.endswith(".gz") else ""
    members = members or {
        "first": [("tinydata/a.bin", "a.bin", False), ("tinydata/b/c.txt", "b/c.txt", True)],
        "second": [("tinydata/other.txt", "other.txt", False)],
    }
    lines = [
        "[package.tiny]", 'requirement = "tinydata==1.0"', f'kind = "{"sdist" if prefix else "wheel"}"',
        f'archive = "{archive.name}"', f"bytes = {len(data)}", f'sha256 = "{archive_sha256 or sha256(data)}"',
        'licence = "none"', 'without = "everything that the synthetic case shows"',
    ]  # fmt: skip
    for name, rows in members.items():
        lines += [f"[asset.{name}]", 'package = "tiny"', "quick = true", 'licence = "none"', 'holds = "a test"']
        lines += ["bytes = 10", "members = ["]
        for source, to, strip in rows:
            content = FILES.get(source, b"x")
            content = content.replace(b"\r", b"") if strip else content
            row = f'from = "{prefix}{source}", to = "{to}", bytes = {len(content)}, sha256 = "{sha256(content)}"'
            lines.append(f"  {{ {row}, strip_cr = {str(strip).lower()} }},")
        lines.append("]")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Place:
    """A temporary cache, a folder of archives that pip is pointed to, and a manifest."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.cache, self.index, self.lines = folder / "cache", folder / "index", []
        self.index.mkdir()
        monkeypatch.setenv("CTVLM_CACHE", str(self.cache))
        monkeypatch.setenv("CTVLM_PIP_ARGS", f"--no-index --find-links '{self.index}'")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.index))
        monkeypatch.setenv("PIP_CACHE_DIR", str(folder / "pip"))
        monkeypatch.delenv("CTVLM_OFFLINE", raising=False)

    def offer(self, archive: Path, **manifest) -> Path:
        file = self.folder / f"manifest-{len(list(self.folder.glob('manifest-*')))}.toml"
        write_manifest(file, archive, **manifest)
        self.monkeypatch.setattr(assets, "MANIFEST", file)
        return archive

    def forbid_subprocesses(self) -> None:
        def refuse(*_, **__):
            raise AssertionError("a subprocess was started")

        for name in ("Popen", "run", "check_output"):
            self.monkeypatch.setattr(subprocess, name, refuse)

    def fetch(self, *names: str) -> None:
        assets.fetch(names, progress=self.lines.append)

    def files(self) -> list[str]:
        """What lies in the cache, locks and empty folders apart."""
        found = (file for file in self.cache.rglob("*") if file.is_file() and file.suffix != ".lock")
        return sorted(str(file.relative_to(self.cache)) for file in found)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


ALL_FILES = ["assets/first/a.bin", "assets/first/b/c.txt", "assets/second/other.txt"]


# --- fetching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_wheel, make_sdist])
def test_one_download_brings_every_asset_of_the_package(place, make):
    archive = place.offer(make(place.index, FILES))
    place.fetch("first")
    assert place.files() == ALL_FILES  # and neither the archive nor a partial file
    assert (assets.path("first") / "b" / "c.txt").read_bytes() == b"one\ntwo\n"
    assert assets.path("first/a.bin").stat().st_mode & 0o022 == 0  # NLTK refuses files that others may write
    assert place.lines[0].startswith("asset first: 0.0 MB to fetch in 1 archive(s)")
    assert any("downloading tinydata==1.0" in line for line in place.lines)
    archive.unlink()
    place.forbid_subprocesses()
    assert assets.path("second/other.txt").read_bytes() == b"second asset"


def test_a_warm_cache_needs_no_network_and_no_subprocess(place):
    place.offer(make_wheel(place.index, FILES))
    place.fetch("first")
    place.forbid_subprocesses()
    place.monkeypatch.setenv("CTVLM_OFFLINE", "1")
    assert assets.path("first").is_dir()
    assets.fetch(["all"], offline=True)
    assert all(row.present for row in assets.status())


def test_an_archive_put_into_downloads_by_hand_is_used(place):
    archive = place.offer(make_wheel(place.folder, FILES))
    (place.cache / "downloads").mkdir(parents=True)
    archive.rename(place.cache / "downloads" / archive.name)
    place.forbid_subprocesses()
    place.fetch("first")
    assert place.files() == ALL_FILES


def test_a_damaged_archive_in_downloads_is_fetched_again(place):
    archive = place.offer(make_wheel(place.index, FILES))
    (place.cache / "downloads").mkdir(parents=True)
    (place.cache / "downloads" / archive.name).write_bytes(archive.read_bytes()[:-7])
    place.fetch("first")
    assert place.files() == ALL_FILES


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_an_archive_with_another_hash_is_refused_and_nothing_is_kept(place):
    archive = place.offer(make_wheel(place.index, FILES), archive_sha256="ab" * 32)
    with pytest.raises(BadInput) as caught:
        place.fetch("first")
    message = str(caught.value)
    assert "ab" * 32 in message and sha256(archive.read_bytes()) in message
    assert "what works without: everything that the synthetic case shows" in message
    assert place.files() == [] and not assets.is_present("first")


def test_a_member_with_another_hash_is_refused_and_its_asset_is_not_made(place):
    archive = make_wheel(place.index, {**FILES, "tinydata/b/c.txt": b"one\r\ntwO\r\n"})
    place.offer(archive)
    with pytest.raises(BadInput, match="tinydata/b/c.txt has sha256"):
        place.fetch("first")
    assert not [file for file in place.files() if file.startswith("assets")]


def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(place):
    place.offer(make_wheel(place.index, FILES))
    with place.monkeypatch.context() as patch:
        started = []

        def interrupt(process, *_):
            started.append(process)
            raise KeyboardInterrupt

        patch.setattr("ctvlm_lib.archive._watch", interrupt)
        with pytest.raises(BadInput, match="interrupted"):
            place.fetch("first")
    assert started[0].poll() is not None  # pip was ended, not left running
    assert place.files() == []
    place.fetch("first")
    assert place.files() == ALL_FILES


def test_an_interrupted_unpacking_keeps_the_archive_and_what_was_complete(place):
    place.offer(make_wheel(place.index, FILES))
    with place.monkeypatch.context() as patch:

        def interrupt(stream, target, member):
            if member["to"] == "other.txt":
                target.write_bytes(b"sec")
                raise KeyboardInterrupt
            _copy(stream, target, member)

        patch.setattr("ctvlm_lib.archive._copy", interrupt)
        with pytest.raises(BadInput, match="interrupted"):
            place.fetch("first", "second")
    assert place.files() == [*ALL_FILES[:2], "downloads/tinydata-1.0-py3-none-any.whl"]
    place.forbid_subprocesses()
    place.fetch("first", "second")
    assert place.files() == ALL_FILES


def test_what_a_killed_process_left_is_cleared_away(place):
    archive = place.offer(make_wheel(place.index, FILES))
    left = [place.cache / "assets" / ".0a1b2c3d.partial.first", place.cache / "downloads" / f"{archive.name}.partial"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"half")
    place.fetch("first")
    assert place.files() == ALL_FILES


def test_a_file_of_another_size_counts_as_absent_and_is_replaced(place):
    place.offer(make_wheel(place.index, FILES))
    place.fetch("first")
    assets.path("first/a.bin").write_bytes(b"short")
    assert not assets.is_present("first")
    assert assets.path("first/a.bin").read_bytes() == FILES["tinydata/a.bin"]


def test_offline_with_a_cold_cache_says_what_works_without(place):
    place.offer(make_wheel(place.index, FILES))
    place.forbid_subprocesses()
    with pytest.raises(BadInput, match="offline was asked for; what works without: everything that the synthetic"):
        assets.fetch(["first"], offline=True)
    place.monkeypatch.setenv("CTVLM_OFFLINE", "1")
    with pytest.raises(BadInput, match="offline was asked for"):
        assets.path("first")


def test_an_index_without_the_package_gives_one_sentence(place):
    place.offer(make_wheel(place.folder, FILES))  # not in the folder that pip looks into
    with pytest.raises(BadInput, match="can't be had: the package index that pip uses doesn't have it"):
        place.fetch("first")
    assert place.files() == []


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("WARNING: broken by 'NewConnectionError'\nERROR: No matching distribution found", "can't be reached"),
        ("/usr/bin/python3: No module named pip", "has no pip"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("Expected sha256 0a\n             Got        0b", "the archive has sha256 0b, expected 0a"),
        ("ERROR: something else\n", "pip said: ERROR: something else"),
    ],
)
def test_pips_output_becomes_one_sentence(output, expected):
    assert expected in _why(output, Path("cache"))


def test_a_cache_that_cannot_be_written_gives_one_sentence(place):
    place.offer(make_wheel(place.index, FILES))
    (place.folder / "file").write_text("not a folder", encoding="utf-8")
    place.monkeypatch.setenv("CTVLM_CACHE", str(place.folder / "file"))
    with pytest.raises(BadInput, match="can't write into the cache .*; set CTVLM_CACHE"):
        place.fetch("first")


@pytest.mark.parametrize("to", ["../outside", "/tmp/outside", "a/../../outside", "c:outside", "a\\b", ""])
def test_a_member_that_leads_outside_is_refused(place, to):
    archive = make_wheel(place.folder, FILES)
    (place.cache / "downloads").mkdir(parents=True)
    place.offer(archive, members={"first": [("tinydata/a.bin", to.replace("\\", "\\\\"), False)]})
    archive.rename(place.cache / "downloads" / archive.name)
    with pytest.raises(BadInput, match="leads out of the asset's folder"):
        assets._unpack(place.cache / "downloads" / archive.name, "first")
    assert not (place.cache / "outside").exists() and not (place.cache / "assets" / "outside").exists()
    assert not [file for file in place.files() if file.startswith("assets")]


def test_a_link_in_the_place_of_a_member_is_refused(place):
    (place.folder / "secret").write_bytes(b"x")
    archive = place.folder / "tinydata-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        link = tarfile.TarInfo("tinydata-1.0/tinydata/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(place.folder / "secret")
        bundle.addfile(link)
    place.offer(archive, members={"first": [("tinydata/link", "link", False)]})
    with pytest.raises(BadInput, match="has no plain file 'tinydata-1.0/tinydata/link'"):
        assets._unpack(archive, "first")
    assert place.files() == []


def _fetch_in_a_process(manifest: str, failures) -> None:
    assets.MANIFEST = Path(manifest)
    try:
        assets.fetch(["first"], progress=lambda line: None)
    except BaseException as error:
        failures.put(repr(error))


def test_two_processes_at_once_do_not_clash(place):
    place.offer(make_wheel(place.index, FILES))
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    arguments = (str(assets.MANIFEST), failures)
    processes = [context.Process(target=_fetch_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert failures.empty()
    assert place.files() == ALL_FILES


def test_unknown_names_are_refused_with_the_names_there_are():
    with pytest.raises(BadInput, match="no asset is called 'chest'; there are: chest_cta, abdomen_ct"):
        assets.path("chest")
    with pytest.raises(BadInput, match="no asset is called 'chest'"):
        assets.fetch(["quick", "chest"])
    with pytest.raises(BadInput, match="asset 'chest_cta' has no 'masks/spleen.nii.gz'; it has: ct.nii.gz"):
        assets.path("chest_cta/masks/spleen.nii.gz")


# --- the command ----------------------------------------------------------------------------------------------------


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    assets.add_arguments(parser)
    return assets.command(parser.parse_args(words))


def test_command_fetches_by_name_and_prints_where_it_lies(place, capsys):
    place.offer(make_wheel(place.index, FILES))
    assert run_command("first") == 0
    assert capsys.readouterr().out.strip() == str(place.cache / "assets" / "first")
    assert run_command("--offline", "all") == 0
    assert run_command("--verify") == 0


def test_command_without_names_shows_the_table_and_fetches_nothing(place, capsys):
    place.offer(make_wheel(place.index, FILES))
    place.forbid_subprocesses()
    assert run_command() == 0
    table = capsys.readouterr().out
    assert "first" in table and "absent" in table and "tinydata==1.0 (wheel)" in table and "licence: none" in table


def test_verify_reads_the_contents(place):
    place.offer(make_wheel(place.index, FILES))
    place.fetch("first")
    assert assets.verify() == []
    damaged = assets.path("first/a.bin")
    damaged.write_bytes(b"x" * damaged.stat().st_size)  # same size: only reading it tells
    assert assets.is_present("first") and assets.verify(["first"]) == ["first/a.bin"]
    with pytest.raises(BadInput, match=r"first/a.bin differ"):
        run_command("--verify", "first")


# --- the project's manifest -----------------------------------------------------------------------------------------


def test_manifest_has_every_asset_of_the_design():
    manifest = assets.manifest()
    assert list(manifest["asset"]) == IMAGING + LANGUAGE
    assert all(asset["quick"] for asset in manifest["asset"].values())  # the default profile reads them all
    for name, package in manifest["package"].items():
        assert len(package["sha256"]) == 64 and package["bytes"] > 1_000_000, name
        assert "==" in package["requirement"] and package["kind"] in ("sdist", "wheel")
        assert package["archive"].endswith(".whl" if package["kind"] == "wheel" else ".tar.gz")
        assert package["licence"] and package["without"]


@pytest.mark.parametrize("name", IMAGING + LANGUAGE)
def test_manifest_entry_is_complete(name):
    asset = assets.manifest()["asset"][name]
    assert asset["licence"] and asset["holds"] and asset["package"] in assets.manifest()["package"]
    assert asset["bytes"] == sum(member["bytes"] for member in asset["members"])
    targets = [member["to"] for member in asset["members"]]
    assert len(set(targets)) == len(targets) and "LICENSE" in {Path(to).name for to in targets}
    for member in asset["members"]:
        assert len(member["sha256"]) == 64 and member["bytes"] > 0 and not Path(member["from"]).is_absolute()
        _inside(Path("folder"), member["to"])


def test_manifest_says_where_every_mask_and_label_map_lies():
    manifest = assets.manifest()["asset"]
    chest = manifest["chest_cta"]
    targets = {member["to"] for member in chest["members"]}
    assert {mask["file"] for mask in chest["masks"].values()} | {"ct.nii.gz", "LICENSE"} == targets
    for name, mask in chest["masks"].items():
        assert mask["grid"] in chest["grids"] and mask["empty"] == (mask["voxels"] == 0), name
    assert chest["masks"]["heart"]["grid"] == "full" and chest["masks"]["renal_arteries"]["empty"]
    for name in ("abdomen_ct", "ct_dicom", "mr_small"):
        labels = manifest[name]["labels"]
        assert len(labels["names"]) == labels["present"] <= labels["named"]
        assert labels["file"] in {member["to"] for member in manifest[name]["members"]}


def test_data_card_speaks_of_every_asset_and_carries_the_licences():
    card = (assets.MANIFEST.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in IMAGING + LANGUAGE if name not in card] == []
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in card
    assert "Apache-2.0" in card and "MIT" in card and "throw-away environment" in card
    for package in assets.manifest()["package"].values():
        assert package["requirement"].replace("==", " ") in card


def test_no_registry_address_stands_in_the_manifest():
    text = assets.MANIFEST.read_text(encoding="utf-8")
    assert "http" not in text and "://" not in text


# --- the real cache, where it is warm -------------------------------------------------------------------------------


@pytest.mark.assets
@pytest.mark.parametrize("name", IMAGING + LANGUAGE)
def test_real_asset_has_the_hashes_of_the_manifest(name):
    if not assets.is_present(name):
        pytest.skip(f"{name} isn't in the cache; fetch it with: ctvlm assets {name}")
    assert assets.verify([name]) == []


@pytest.mark.assets
def test_princetons_notice_stands_whole_in_the_data_card():
    if not assets.is_present("wordnet"):
        pytest.skip("wordnet isn't in the cache; fetch it with: ctvlm assets wordnet")
    notice = assets.path("wordnet/nltk_data/corpora/wordnet/LICENSE").read_text(encoding="utf-8")
    card = (assets.MANIFEST.parent / "README.md").read_text(encoding="utf-8").replace("\n>", "\n")
    assert " ".join(notice.split()) in " ".join(card.split())


@pytest.mark.assets
def test_real_chest_masks_are_as_the_manifest_says():
    nibabel, np = pytest.importorskip("nibabel"), pytest.importorskip("numpy")
    if not assets.is_present("chest_cta"):
        pytest.skip("chest_cta isn't in the cache; fetch it with: ctvlm assets chest_cta")
    chest = assets.manifest()["asset"]["chest_cta"]
    full = nibabel.load(assets.path("chest_cta/ct.nii.gz"))
    assert list(full.shape) == chest["image"]["shape"]
    for name, note in chest["masks"].items():
        mask, grid = nibabel.load(assets.path(f"chest_cta/{note['file']}")), chest["grids"][note["grid"]]
        assert list(mask.shape) == grid["shape"], name
        offset = (np.linalg.inv(full.affine) @ mask.affine)[:3, 3]
        np.testing.assert_allclose(offset, grid["offset"], atol=1e-3)  # affines are stored as float32
        assert int(np.count_nonzero(mask.dataobj)) == note["voxels"], name


@pytest.mark.assets
@pytest.mark.parametrize("name", ["abdomen_ct", "ct_dicom", "mr_small"])
def test_real_label_maps_hold_the_ids_that_the_manifest_names(name):
    nibabel, np = pytest.importorskip("nibabel"), pytest.importorskip("numpy")
    if not assets.is_present(name):
        pytest.skip(f"{name} isn't in the cache; fetch it with: ctvlm assets {name}")
    labels = assets.manifest()["asset"][name]["labels"]
    image = nibabel.load(assets.path(f"{name}/{labels['file']}"))
    assert list(image.shape) == labels["shape"]
    assert "".join(nibabel.aff2axcodes(image.affine)) == labels["orientation"]
    assert [str(number) for number in np.unique(image.dataobj) if number] == list(labels["names"])
