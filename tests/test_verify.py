"""``ctvlm verify`` and ``ctvlm archive``: what was altered is named, what is whole passes, here and elsewhere."""

import json
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ctvlm_lib.__main__ import main
from ctvlm_lib.alignment.arm_tables import RESULTS
from ctvlm_lib.alignment.scoring import Predictions
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import answers, asked, table_file
from ctvlm_lib.ledger import packed_results, record_checks, stored_tables, sums
from ctvlm_lib.ledger.record_checks import Under
from ctvlm_lib.ledger.verify_command import verify
from ctvlm_lib.records.committed import FILES

VLM, ENCODER = "vlm-B-none-small-seed1", "A"  # the smallest of their kinds
SPLITS = ("validation", "test")


def few_questions(home: Path, patients: int = 12) -> None:
    for split in SPLITS:
        every = asked.load(asked.path_of(split))
        kept = every.table["patient"].isin(every.names[:patients])
        few = asked.Asked(every.table[kept].reset_index(drop=True), every.names[:patients], every.found[:patients])
        asked.save(few, asked.path_of(split, home))


def few_answers(home: Path) -> None:
    """An arm's answers to the few questions only."""
    arrays = table_file.read(RESULTS / VLM / "test.npz", dict, "answers")
    before, few = asked.load(asked.path_of("test")).table["id"], asked.load(asked.path_of("test", home))
    place = before.map({name: k for k, name in enumerate(few.table["id"])})[arrays["place"]].to_numpy()
    kept = ~np.isnan(place)
    arrays = {name: array[kept] if len(array) == len(kept) else array for name, array in arrays.items()}
    arrays |= {"place": place[kept].astype(np.int32), "records": table_file.packed([few.digest])}
    table_file.write(home / VLM / "test.npz", arrays)
    here = Under.of()
    change_record(home, rows={"test": int(kept.sum())}, protocol={"version": here.version, "sha256": here.sha256})


def few_vectors(home: Path, patients: int = 60) -> None:
    said = Predictions.load(RESULTS / ENCODER / "test.safetensors")
    regions = len(said.answers) // len(said.image)
    few = Predictions(said.image[:patients], said.text[:patients], said.answers[: patients * regions],
                      said.identity[:patients])  # fmt: skip
    few.save(home / ENCODER / "test.safetensors")
    few.table(arm=ENCODER, split="test").to_csv(home / ENCODER / "test.csv", index=False)
    change_record(home, ENCODER, test={"recall": [asdict(row) for row in few.recalls()]}, validation=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two arms on a few patients and the questions, listed."""
    home = tmp_path_factory.mktemp("whole") / "results"
    few_questions(home)
    for name in (VLM, ENCODER):
        (home / name).mkdir(parents=True)
        shutil.copy(RESULTS / name / "record.json", home / name)
    few_answers(home)
    few_vectors(home)
    assert verify(home, update=True, say=lambda line: None) is not None
    return home


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """Two listed arms that may be altered."""
    return Path(shutil.copytree(whole, tmp_path / "results"))


def said_of(results: Path, **how) -> tuple[bool, str]:
    """Whether a folder passes, and all that is said."""
    lines: list[str] = []
    return verify(results, say=lines.append, **how) is not None, "\n".join(lines)


def change_record(results: Path, name: str = VLM, **fields) -> None:
    path = results / name / "record.json"
    record = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}), encoding="utf-8")


def relist(results: Path) -> None:
    """List all as it is, as somebody would who wants an altered file to pass."""
    sums.write(results, {k: v for path in results.iterdir() if path.is_dir() for k, v in sums.of(path).items()})


def test_two_arms_as_they_were_stored_pass(whole):
    fine, said = said_of(whole)
    assert fine and "3 folders: 3 as stored, 0 not listed yet, 0 failed" in said
    assert f"ok      {VLM}: 1,137 answers" in said and "ok      A: 6 recalls; protocol version 1 instead of" in said


def change_answer(results: Path) -> int:
    """Turn the answer to one question on presence that names the region; say how many such questions there are."""
    path = results / VLM / "test.npz"
    arrays = table_file.read(path, dict, "answers")
    values = table_file.unpacked(arrays["answer.values"])
    table = answers.load(path, asked.load(asked.path_of("test", results)))
    named = table.index[(table["kind"] == "presence") & (table["stratum"] == "named")]
    other = {values.index("Yes"): values.index("No"), values.index("No"): values.index("Yes")}
    arrays["answer.codes"][named[0]] = other[int(arrays["answer.codes"][named[0]])]
    table_file.write(path, arrays)
    return len(named)


@pytest.mark.parametrize("listed_again", [False, True], ids=["hash and table", "table alone"])
def test_one_altered_answer_is_named(copy, listed_again):
    asked_so = change_answer(copy)
    if listed_again:
        relist(copy)
    fine, said = said_of(copy)
    assert not fine and f"failed: {VLM}" in said and "ok      A:" in said
    assert f"{VLM}/test.npz: closed accuracy of named presence questions (none, as asked) is 0." in said
    assert f" of {asked_so}) and the stored table says 0." in said
    assert (f"{VLM}/test.npz: its sha256 is" in said) != listed_again


def test_an_altered_answer_is_not_listed_by_an_update_unless_the_arm_is_named(copy):
    change_answer(copy)
    assert not said_of(copy, update=True)[0] and not said_of(copy)[0]
    assert said_of(copy, update=True, renew=[VLM])[0] and said_of(copy)[0]
    with pytest.raises(BadInput, match=f"no folder is called 'vlm'; --renew takes one of A, questions, {VLM}"):
        verify(copy, update=True, renew=["vlm"])


@pytest.mark.parametrize("column", ["recall", "ceiling_low", "direction"])
def test_an_altered_recall_is_named(copy, column):
    table = pd.read_csv(copy / ENCODER / "test.csv")
    was = table.loc[4, column]
    table.loc[4, column] = "sideways" if column == "direction" else 0.99
    table.to_csv(copy / ENCODER / "test.csv", index=False)
    relist(copy)
    fine, said = said_of(copy)
    told = "A/test.csv: {} of text→image R@5 in a gallery of 50 is {} by test.safetensors and the stored table says {}"
    assert not fine and told.format(column, was, table.loc[4, column]) in said


def test_an_altered_vector_is_named(copy):
    path = copy / ENCODER / "test.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fine, said = said_of(copy)
    assert not fine and "A/test.safetensors: its sha256 is" in said


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"seed": 0}, "record.json: its seed is 0, and the folder's name says 1"),
        ({"commit": ""}, "record.json: lacks commit"),
        ({"hardware": None}, "record.json: lacks hardware"),
        ({"profile": "large"}, "record.json: its profile is 'large' instead of one of quick, full, paper"),
        ({"rows": {"test": 1_300}}, "test.npz: holds 1,137 answers, and the record counts 1,300"),
        ({"rows": {"test": 1_137, "validation": 9}}, "validation.npz: isn't there, and the record counts 9 answers"),
        ({"rows": 7}, "its files: can't be checked"),
        ({"protocol": {"version": 3}}, "record.json: lacks the protocol's sha256"),
        ({"protocol": None}, "record.json: lacks protocol"),
    ],
)
def test_an_altered_record_is_named(copy, fields, told):
    if fields.get("protocol"):
        fields = {"protocol": {"version": Under.of().version}}
    change_record(copy, **fields)
    fine, said = said_of(copy)
    assert not fine and f"{VLM}/{told}" in said and f"{VLM}/record.json: its sha256 is" in said


def test_another_protocol_is_told_by_the_field_that_differs():
    under = Under(5, "a" * 64, frozenset({3, 4, 5}))

    def told(version, digest):
        return record_checks.against_protocol({"protocol": {"version": version, "sha256": digest}}, under)

    assert told(5, "a" * 64) == ([], [])
    assert told(2, "b" * 64) == ([], ["protocol version 2 instead of 5"])  # old, and what changed since is written down
    (wrong,), _ = told(5, "b" * 64)
    assert wrong == (f"record.json: protocol sha256 {'b' * 12}… instead of {'a' * 12}… of the same version 5; one of"
                     " the two was changed without a new version")  # fmt: skip
    assert "protocol version 6, and the protocol here is 5" in told(6, "b" * 64)[0][0]
    assert "doesn't say what version 2 changed" in told(1, "b" * 64)[0][0]


def test_arms_of_one_version_have_one_protocol(copy):
    shutil.copytree(copy / VLM, copy / "vlm-B-none-small-again-seed1")
    old = {"version": 1, "sha256": "c" * 64}
    change_record(copy, protocol=old)
    change_record(copy, "vlm-B-none-small-again-seed1", protocol=old | {"sha256": "d" * 64})
    relist(copy)
    fine, said = said_of(copy, under=Under(2, "e" * 64, frozenset({2})))
    assert not fine and "seed1 name protocol version 1 with different sha256" in said


def test_another_checkpoint_than_the_one_that_was_asked_is_named(copy):
    home = copy.parent / "checkpoints" / VLM
    home.mkdir(parents=True)
    (home / "record.json").write_text("{}")
    (home / "model.safetensors").write_bytes(b"other weights")
    fine, said = said_of(copy)
    asked_of = json.loads((copy / VLM / "record.json").read_text(encoding="utf-8"))["weights"]["sha256"][:12]
    assert not fine and f"{VLM}/record.json: weights with sha256 {asked_of}…, and checkpoints/{VLM}/model" in said


@pytest.mark.parametrize(("gone", "told"), [
    ("record.json", "record.json: isn't there, so the arm isn't finished"),
    ("test.npz", "test.npz: there are no predictions (test.safetensors or test.npz)"),
    ("table.csv", "table.csv: isn't there"),
])  # fmt: skip
def test_a_half_finished_arm_is_said(copy, gone, told):
    (copy / VLM / gone).unlink()
    fine, said = said_of(copy, update=True)
    assert not fine and f"{VLM}/{told}" in said and f"{VLM}/{gone}: is listed in sums.csv and isn't there" in said


def test_a_new_arm_is_told_and_listed_by_an_update(copy):
    sums.write(copy, {k: v for k, v in sums.read(copy).items() if not k.startswith(VLM)})
    (copy / VLM / "table.csv").unlink()
    fine, said = said_of(copy)
    assert fine and f"new     {VLM}" in said and f"not listed yet: {VLM}; `ctvlm verify --update` lists them" in said
    assert said_of(copy, update=True)[0] and "3 as stored" in said_of(copy)[1]
    (copy / VLM / "more.txt").write_text("came later")
    assert "more.txt not listed yet" in said_of(copy)[1]


def test_an_arm_that_is_listed_and_gone_fails(copy):
    shutil.rmtree(copy / ENCODER)
    fine, said = said_of(copy)
    assert not fine and "A/sums.csv: lists the arm, and its folder isn't there" in said


def test_questions_that_cannot_be_read_are_named(copy):
    path = copy / "questions" / "test.npz"
    path.write_bytes(path.read_bytes()[:-500])
    fine, said = said_of(copy)
    assert not fine and "questions/test.npz: the questions can't be read" in said
    assert f"{VLM}/test.npz: can't be scored, as the questions can't be read" in said


def test_scores_of_other_answers_are_named(whole):
    table = (whole / VLM / stored_tables.NAME).read_text(encoding="utf-8")
    counted = stored_tables.read(table)
    some = counted[(counted["kind"] == "presence") & (counted["stratum"] == "named") & (counted["form"] == "closed")]
    right, n = some[["right", "n"]].iloc[0]
    row = {"form": "closed", "metric": "accuracy", "kinds": "presence", "mean": "", "value": f"{100 * right / n:.4f}",
           "n": f"{n:.0f}", "answers": "ab" * 8}  # fmt: skip

    def told(**other):
        return stored_tables.compare_scores(pd.DataFrame([row | other]), table, "ab" * 32)

    assert told() == []
    assert "by test.npz and the stored score is 12.0000" in told(value="12.0000")[0]
    assert f"counts 3 questions, and test.npz holds {n:g}" in told(n="3")[0]
    assert "is of other answers than test.npz" in told(answers="cd" * 8)[0]


def test_an_archive_is_the_same_bytes_and_is_verified_elsewhere(whole, tmp_path, capsys):
    first, second = (packed_results.pack(whole, FILES, tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()
    assert main(["verify", str(first)]) == 0
    said = capsys.readouterr().out
    assert "3 as stored" in said and "the protocol inside is that of this installation" in said
    with pytest.raises(BadInput, match=r"a\.zip exists already and isn't replaced"):
        packed_results.pack(whole, FILES, first)


def test_an_archive_under_another_protocol_says_so(whole, tmp_path, capsys):
    other = tmp_path / "contrasts.csv"
    other.write_bytes(FILES[1].read_bytes() + b"\n")
    path = packed_results.pack(whole, (FILES[0], other), tmp_path / "a.zip")
    assert main(["verify", str(path)]) == 1  # the arm was asked under another one of the same version
    said = capsys.readouterr().out
    assert "the protocol inside isn't that of this installation" in said and "of the same version" in said


def test_an_archive_carries_the_protocols_that_some_arms_have_of_their_own(whole, tmp_path):
    own = tuple(sorted(FILES[0].parent.glob("protocol_*.toml")))
    path = packed_results.pack(whole, FILES, tmp_path / "a.zip", also=own)
    with zipfile.ZipFile(path) as archive:
        assert own and {one.name: one.read_bytes() for one in own}.items() <= {
            name: archive.read(name) for name in archive.namelist()
        }.items()
    assert main(["verify", str(path)]) == 0


def test_what_does_not_verify_or_is_not_listed_is_not_packed(copy, tmp_path, capsys):
    out = tmp_path / "a.zip"
    change_record(copy, hardware="")
    assert main(["archive", str(out), "--results", str(copy)]) == 1
    (copy / sums.NAME).unlink()
    change_record(copy, hardware="CPU")
    assert main(["archive", str(out), "--results", str(copy)]) == 2
    assert "is listed, so nothing was packed" in capsys.readouterr().err and not list(tmp_path.glob("*.zip"))


def altered(path: Path, out: Path, more: dict[str, bytes], without: str = "") -> Path:
    """A copy of an archive with other entries."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if name not in more and name != without:
                new.writestr(name, old.read(name))
        for name, content in more.items():
            new.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("more", "without", "sentence"),
    [
        ({"results/../../evil.txt": b"x"}, "", "holds 'results/../../evil.txt', which no archive of results does"),
        ({"/etc/evil.txt": b"x"}, "", "holds '/etc/evil.txt'"),
        ({"results/A/..\\evil": b"x"}, "", "which no archive of results does"),
        ({"results/a/test.csv": b"x", "results/A/Test.csv": b"x"}, "", "holds a name twice"),
        ({"results/A": b"x"}, "", "has a file and a folder of one name"),
        ({}, "results/sums.csv", "lacks results/sums.csv; give an archive made by ctvlm archive"),
        ({}, "protocol.toml", "lacks protocol.toml"),
    ],
)
def test_a_zip_that_is_no_archive_of_results_is_refused(whole, tmp_path, more, without, sentence, capsys):
    path = altered(packed_results.pack(whole, FILES, tmp_path / "a.zip"), tmp_path / "b.zip", more, without)
    assert main(["verify", str(path)]) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.rglob("*evil*"))


def test_a_zip_that_would_grow_beyond_measure_is_refused(whole, tmp_path, monkeypatch):
    path = packed_results.pack(whole, FILES, tmp_path / "a.zip")
    monkeypatch.setattr(packed_results, "MAX_BYTES", 100_000)
    with pytest.raises(BadInput, match="more than results do"), packed_results.unpacked(path):
        pass
    bomb = tmp_path / "test.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("place.npy", bytes(200_000))
    with pytest.raises(BadInput, match="MB of memory; it was refused"):
        packed_results._bounded(bomb)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_zip_is_a_sentence(whole, tmp_path, damage, capsys):
    path = packed_results.pack(whole, FILES, tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": bytes(content[:-100]), "flipped": bytes(content), "text": b"no zip"}[damage])
    assert main(["verify", str(path)]) == 2
    said = capsys.readouterr().err
    # the end of a table of answers, which is a zip itself, can be taken for the end of the whole
    assert "a.zip is damaged or isn't a zip" in said or (damage == "cut" and "cut off on its way, fetch it" in said)


def test_an_arm_that_is_not_in_the_list_of_an_archive_fails(whole, tmp_path, capsys):
    made = packed_results.pack(whole, FILES, tmp_path / "a.zip")
    path = altered(made, tmp_path / "b.zip", {"results/A/more.csv": b"x", "results/C/test.csv": b"x"})
    assert main(["verify", str(path)]) == 1
    said = capsys.readouterr().out
    assert "A/more.csv: sums.csv doesn't list it" in said and "C/sums.csv: doesn't list the arm" in said


@pytest.mark.parametrize(("words", "sentence"), [
    (["verify", "nowhere"], "there is no nowhere; give a folder of results or an archive"),
    (["verify", "--renew", "A"], "--renew A lists an arm again, which only --update does"),
    (["archive", "out.tar"], "out.tar isn't the name of an archive; give one that ends in .zip"),
])  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(words, sentence, capsys):
    assert main(words) == 2 and sentence in capsys.readouterr().err


def test_an_empty_folder_holds_no_results(tmp_path):
    with pytest.raises(BadInput, match="holds no results"):
        verify(tmp_path)


def test_what_ships_is_listed_as_it_lies_there():
    """Hashes of all, tables of a few; `ctvlm verify` computes every table."""
    listed = sums.read(RESULTS)
    for name in sorted({path.partition("/")[0] for path in listed}):
        assert sums.differences(RESULTS / name, sums.of_folder(listed, name))[0] == [], name
        most = 300_000 if name.startswith("align-global") else 200_000  # asked about each region in two ways
        assert sum(file.stat().st_size for file in (RESULTS / name).iterdir()) < most
    for name in (VLM, ENCODER):
        assert sums.of_folder(listed, name)
    stored = (RESULTS / VLM / stored_tables.NAME).read_text(encoding="utf-8")
    said = {"test": answers.load(RESULTS / VLM / "test.npz", asked.load(asked.path_of("test")))}
    assert stored_tables.as_text(stored_tables.table_of_answers(said)) == stored
