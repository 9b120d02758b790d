"""The test split is scored under a committed protocol only."""

import shutil
import subprocess

import pytest

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import protocol
from ctvlm_lib.records.committed import check_committed


@pytest.fixture
def repository(tmp_path):
    """A repository with the protocol and a list of contrasts, committed."""
    shutil.copy(protocol.PATH, tmp_path / "protocol.toml")
    (tmp_path / "contrasts.csv").write_text("name\n", encoding="utf-8")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")


def files(folder):
    return folder / "protocol.toml", folder / "contrasts.csv"


def test_a_committed_protocol_passes_with_its_version_and_commit(repository):
    found = check_committed(files(repository))
    assert found.version == protocol.load().content["version"]
    assert len(found.commit) == 40


def test_a_changed_protocol_is_refused_until_it_is_committed(repository):
    before = check_committed(files(repository)).sha256
    with open(repository / "protocol.toml", "a", encoding="utf-8") as file:
        file.write("# a wish\n")
    with pytest.raises(BadInput, match=r"protocol\.toml differs from the last commit"):
        check_committed(files(repository))
    git(repository, "add", "-A")
    with pytest.raises(BadInput, match="differs from the last commit"):
        check_committed(files(repository))  # staged is not committed
    commit(repository)
    assert check_committed(files(repository)).sha256 != before


def test_contrasts_that_were_never_committed_are_refused(repository):
    (repository / "more.csv").write_text("name\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"more\.csv isn't in the repository yet"):
        check_committed((*files(repository), repository / "more.csv"))


def test_a_copy_without_git_is_known_by_its_hash(repository, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in files(repository):
        shutil.copy(path, copy)
    found = check_committed(files(copy))
    assert (found.commit, found.sha256) == ("", check_committed(files(repository)).sha256)


def test_a_missing_file_is_refused(repository):
    (repository / "contrasts.csv").unlink()
    with pytest.raises(BadInput, match=r"there is no contrasts\.csv"):
        check_committed(files(repository))
