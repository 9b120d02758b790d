"""Record and its file: every field is checked by name; what is written is what is read."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctvlm_lib.errors import BadInput
from ctvlm_lib.records import Record, read_jsonl, region_name, write_jsonl
from ctvlm_lib.records.record import FORMS, KINDS, SPLITS

GOOD = {
    "id": "r1", "dataset": "phantom", "patient": "p1", "split": "train", "volume": "ct/p1.nii.gz",
    "mask": "masks/p1.nii.gz", "region": "liver", "distractor": "spleen", "kind": "abnormality", "form": "closed",
    "question": "What is in the liver?", "answer": "a cyst", "choices": ("a cyst", "a mass"), "names_region": True,
    "style": "plain",
}  # fmt: skip


def record(**changes) -> Record:
    return Record(**GOOD | changes)


def test_the_fields_are_the_agreed_ones_in_their_order():
    assert [field.name for field in fields(Record)] == list(GOOD)


def test_a_record_is_frozen_and_keyword_only():
    with pytest.raises(AttributeError):
        record().id = "other"
    with pytest.raises(TypeError):
        Record(*GOOD.values())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("id", "", "a text"), ("id", 7, "a text"), ("dataset", " ", "a text"), ("patient", None, "a text"),
        ("question", "", "a text"), ("answer", None, "a text"), ("question", "\ud800?", "surrogate"),
        ("split", "valid", "train, validation, test"), ("kind", "colour", "report, presence"),
        ("form", "yes/no", "closed, open"), ("style", "blue", "blue-suffix"), ("style", "red", "'plain'"),
        ("volume", "/data/p1.nii.gz", "below"), ("volume", "C:/p1.nii.gz", "below"),
        ("volume", "ct\\p1.nii", "forward"),
        ("volume", "../p1.nii.gz", r"without \.\."), ("mask", "/masks", "below"), ("mask", "", "null"),
        ("region", "", "null"), ("region", "livers", "'liver'"), ("region", 1, "null"), ("region", None, "null"),
        ("distractor", "liver", "another region"), ("distractor", "kidney_left", "'left kidney'"),
        ("names_region", 1, "true or false"), ("names_region", "yes", "true or false"),
        ("choices", ["a cyst", "a mass"], "a tuple"), ("choices", ("a cyst",), "two to 26"),
        ("choices", ("a cyst", ""), "texts"), ("choices", ("a cyst", "a mass", 3), "texts"),
        ("choices", ("a cyst", *map(str, range(26))), "two to 26"),
        ("answer", "a nodule", "exactly one of the choices"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(field, value, expected):
    broken = "distractor" if (field, value) == ("region", None) else field
    with pytest.raises(BadInput, match=rf"^field {broken} is .*; expected .*{expected}"):
        record(**{field: value})


def test_rules_between_fields():
    with pytest.raises(BadInput, match="field answer is 'a cyst'; expected exactly one"):
        record(choices=("a cyst", "a mass", "a cyst"))
    with pytest.raises(BadInput, match="field choices is .* expected none for an open"):
        record(form="open")
    with pytest.raises(BadInput, match="field answer is 'a cyst'; expected yes or no"):
        record(choices=())
    with pytest.raises(BadInput, match="field names_region is True; expected false"):
        record(region=None, distractor=None)
    assert record(choices=(), answer="Yes.").answer == "Yes."
    assert record(region=None, distractor=None, names_region=False, mask=None).mask is None
    assert record(choices=("a cyst", "a mass", "a mass")).choices.count("a mass") == 2  # the answer stays clear


def test_a_region_that_the_table_lacks_keeps_its_own_name():
    assert region_name("kidney_left") == "left kidney"
    assert region_name("quadrant seven") == "quadrant seven"
    assert record(region="quadrant seven").region == "quadrant seven"


def test_dict_and_record_are_the_same_thing():
    there = record().to_dict()
    assert there == GOOD | {"choices": ["a cyst", "a mass"]}
    assert Record.from_dict(there) == record()


@pytest.mark.parametrize("field", list(GOOD))
def test_no_field_is_filled_in(field):
    with pytest.raises(BadInput, match=f"^field {field} is missing; a record has id, dataset"):
        Record.from_dict({name: value for name, value in record().to_dict().items() if name != field})


def test_from_dict_refuses_what_is_no_record():
    with pytest.raises(BadInput, match="field colour is unknown"):
        Record.from_dict(record().to_dict() | {"colour": "red"})
    with pytest.raises(BadInput, match="field choices is 'ab'; expected a list"):
        Record.from_dict(record().to_dict() | {"choices": "ab"})
    with pytest.raises(BadInput, match="an object with named fields"):
        Record.from_dict([1])


words = st.text(min_size=1, max_size=20).filter(str.strip).map(lambda text: f"{text}x")


@given(st.lists(words, unique=True, max_size=4), words, words, st.sampled_from(SPLITS), st.sampled_from(KINDS))
def test_what_is_written_is_what_is_read(tmp_path_factory, ids, question, answer, split, kind):
    made = [
        record(id=name, question=question, answer=answer, split=split, kind=kind, form=FORMS[1], choices=())
        for name in ids
    ]  # fmt: skip
    path = write_jsonl(made, tmp_path_factory.mktemp("records") / "r.jsonl")
    assert read_jsonl(path) == made
    assert path.read_bytes().count(b"\n") == len(made)


def test_the_file_is_readable_text_with_one_object_a_line(tmp_path):
    path = write_jsonl([record(question="Größe\u2028?")], tmp_path / "r.jsonl")
    assert "Größe" in path.read_text(encoding="utf-8")
    assert list(json.loads(path.read_text(encoding="utf-8"))) == list(GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    assert read_jsonl(path) == [record(question="Größe\u2028?")]


def test_a_field_that_is_wrong_is_named_with_file_and_line(tmp_path):
    path = _file(tmp_path, record().to_dict(), record(id="r2").to_dict() | {"split": "valid"})
    with pytest.raises(BadInput, match=r"^r\.jsonl line 2: field split is 'valid'; expected one of train"):
        read_jsonl(path)


def test_a_broken_line_is_named_with_file_line_and_field(tmp_path):
    path = _file(tmp_path, record().to_dict(), record(id="r2").to_dict())
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex('"answer"') + 14], encoding="utf-8")
    with pytest.raises(BadInput, match=r"^r\.jsonl line 2: not JSON at character \d+, after field answer"):
        read_jsonl(path)
    path.write_text(text + "nonsense\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"^r\.jsonl line 3: not JSON at character 1, before any field"):
        read_jsonl(path)
    path.write_text(text.replace("\n", "\n\n", 1), encoding="utf-8")
    with pytest.raises(BadInput, match=r"^r\.jsonl line 2: the line is empty"):
        read_jsonl(path)
    path.write_text(text.replace('"split"', '"id"', 1), encoding="utf-8")
    with pytest.raises(BadInput, match=r"^r\.jsonl line 1: field id stands twice"):
        read_jsonl(path)
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"^r\.jsonl line 1: a record is an object"):
        read_jsonl(path)


def test_a_duplicate_id_is_refused_on_reading_and_on_writing(tmp_path):
    path = _file(tmp_path, record().to_dict(), record(id="r2").to_dict(), record().to_dict())
    with pytest.raises(BadInput, match=r"^r\.jsonl line 3: field id is 'r1'; expected a new one, as line 1"):
        read_jsonl(path)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="field id is 'r1'; expected a different one"):
        write_jsonl([record(), record()], path)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_jsonl([record()], tmp_path / "r.jsonl")
    broken = record(id="r2")
    object.__setattr__(broken, "answer", object())  # can't be written as JSON
    with pytest.raises(TypeError):
        write_jsonl([record(id="r3"), broken], path)
    assert read_jsonl(path) == [record()]
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadInput, match="can't read .*none.jsonl: No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"r\.jsonl is not UTF-8"):
        read_jsonl(tmp_path / "r.jsonl")


def test_a_record_goes_from_style_to_style_and_back():
    plain = record(form="open", choices=(), answer="a cyst")
    red = plain.worded("red")
    assert (red.style, red.answer) == ("red", "Within the red boundary, a cyst")
    assert red.worded("dual").question.endswith("area. Question: What is in the liver?")
    assert red.worded("red") == red
    assert red.worded("plain") == plain
    assert record().worded("red").answer == "a cyst"  # one of the choices: closed, so it stays
    assert replace(red, split="test").question == red.question


def _file(folder, *objects):
    path = folder / "r.jsonl"
    path.write_text("".join(json.dumps(content) + "\n" for content in objects), encoding="utf-8")
    return path
