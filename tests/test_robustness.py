"""Damaged files: a slice of the campaign of ``make fuzz``, the rules of the campaign, and what it once found."""

import gzip
import io
import json
import re
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import helpers_gguf
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fuzz.case import FAULT, READ, SENTENCE, Bench
from fuzz.damage_images import bomb
from fuzz.target import Target
from fuzz.targets import TARGETS
from fuzz.targets_images import IMAGES, scans
from fuzz.targets_records import RECORDS
from helpers_ct import lps_affine, small_ct
from helpers_data import make_m3d
from safetensors.torch import save_file
from test_stoic import write_mha

from ctvlm_lib import assets, checkpoints, damaged, mask, notebook_outputs, report, volume, weights
from ctvlm_lib.alignment import arm_tables
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment.text import text_network
from ctvlm_lib.alignment.text_vectors import TextVectors
from ctvlm_lib.encoder.model import DCFormer
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.bert_score import layers_like_roberta_large
from ctvlm_lib.experiments import answers, real_arms, table_file, uvlm_real_options, uvlm_tables
from ctvlm_lib.explore import cases
from ctvlm_lib.ledger import audit, contrasts, packed_results, stored_scores
from ctvlm_lib.records import m3d, phantom, protocol, rad_chestct, stoic
from ctvlm_lib.records.package import read_vision
from ctvlm_lib.records.questions import candidates
from ctvlm_lib.records.record import read_jsonl
from ctvlm_lib.records.table import read_json
from ctvlm_lib.segment.small import load_small
from ctvlm_lib.sources import Sources
from ctvlm_lib.vlm import gguf_file
from ctvlm_lib.vlm.ladder_tokenizer import FILE, NAME, RECORD, load_tokenizer, tokenizer_hash
from ctvlm_lib.vlm.processor import CtvlmProcessor

DEEP = "[" * 100_000
SLICE = [*IMAGES, *RECORDS]
CASES = 6  # of each reader: 198 files in all


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ctvlm-fuzz-") as home:
        Path(home).chmod(0o755)  # a case without permission is read without root's rights
        yield Bench(Path(home))


@pytest.mark.parametrize("target", SLICE, ids=[target.name for target in SLICE])
def test_a_damaged_file_gives_a_result_or_a_sentence(target, bench):
    found = [bench.run(target, number, seed=0) for number in range(CASES)]
    assert [one for one in found if one.outcome == FAULT] == []


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_reader_of_the_campaign_reads_its_good_files(target, bench):
    bench.check(target)


# --- the campaign's own rules ------------------------------------------------------------------------------------


def _raises_key_error(folder, file):
    return {}["a"]


def _says_nothing(folder, file):
    raise BadInput(" ")


def _hides_a_memory_error(folder, file):
    try:
        raise MemoryError
    except MemoryError:
        raise BadInput("the file is damaged") from None


def _takes_memory(folder, file):
    np.ones(40_000_000)


def _writes_beside(folder, file):
    (folder / "more").write_text("x")


def _writes_where_it_works(folder, file):
    Path("more").write_text("x")


def _mends_the_file(folder, file):
    if file.is_file():
        file.write_text("mended")


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (_raises_key_error, "KeyError"), (_says_nothing, "an empty sentence"),
        (_hides_a_memory_error, "memory that there isn't"), (_takes_memory, "MB"), (_writes_beside, "changed: more"),
        (_writes_where_it_works, "changed: more"), (_mends_the_file, "changed: a.json, the damaged file itself"),
    ],
)  # fmt: skip
def test_what_a_reader_must_not_do_is_a_fault(read, told, tmp_path):
    made = Target("a reader", lambda folder: (folder / "a.json").write_text('{"a": [1, 2, 3]}'), read)
    found = Bench(tmp_path).run(made, 3, seed=0)
    assert found.outcome == FAULT and told in found.told


def test_a_case_is_drawn_from_target_number_and_seed_alone(tmp_path):
    seen = []

    def read(folder, file):
        seen.append((file.name, file.is_file() and file.read_bytes()))

    made = Target("a reader", scans, read)
    one, other = Bench(tmp_path / "one"), Bench(tmp_path / "other")
    for bench, numbers in ((one, range(6)), (other, reversed(range(6)))):
        for number in numbers:
            assert bench.run(made, number, seed=4).outcome == READ
    assert seen[:6] == seen[:5:-1] and len({content for _, content in seen}) > 3


def test_the_next_case_begins_with_the_good_files(tmp_path):
    made = Target("a reader", scans, lambda folder, file: volume.load(file, check=False))
    bench = Bench(tmp_path)
    found = {bench.run(made, number, seed=0).outcome for number in range(20)}
    good, used = bench.good(made), bench.home / "case"
    assert found == {READ, SENTENCE}
    assert {p.name: p.read_bytes() for p in used.iterdir()} == {p.name: p.read_bytes() for p in good.iterdir()}


def test_a_sentence_can_always_be_printed():
    assert str(BadInput("half a letter: \ud800, a byte of a name: \udcff")) == "half a letter: ?, a byte of a name: ?"


# --- memory that a header merely claims ---------------------------------------------------------------------------


def _giant(path: Path) -> Path:
    """A small CT whose header claims 10⁹ voxels."""
    small_ct().save(path)
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 1000, 1000, 1000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.fixture
def thrifty():
    """The test may take 40 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("read", [volume.load, lambda path: mask.load(path, names="vista3d"), cases.own_case])
def test_a_nifti_header_that_claims_a_billion_voxels_allocates_nothing(name, read, tmp_path, thrifty):
    with pytest.raises(BadInput, match="its header claims 2,000,000,352 bytes"):
        read(_giant(tmp_path / name))


@pytest.fixture
def packed_zeros() -> bytes:
    return bomb()


def test_zeros_packed_behind_a_ct_are_read_and_not_kept(tmp_path, packed_zeros, thrifty):
    path = small_ct().save(tmp_path / "a.nii.gz")
    whole = volume.load(path).hu
    path.write_bytes(path.read_bytes() + packed_zeros)
    np.testing.assert_array_equal(volume.load(path).hu, whole)


def test_an_extension_that_claims_two_gigabytes_allocates_nothing(tmp_path, thrifty):
    path = volume.save_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8), lps_affine(), extension="<LabelTable/>")
    content = bytearray(path.read_bytes())
    content[352:356] = struct.pack("<i", 2**31 - 16)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a readable NIfTI"):
        mask.load(path)


def _npy(header: str, numbers: bytes = bytes(8)) -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + numbers


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 1000, 1000)}", "4,000,000,000 bytes of numbers are"),
        ("{'descr': '<i2', 'fortran_order': False, 'shape': (-4,)}", "shape"),
        ("{'descr': '<i2',", "no header of NumPy"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "numbers are expected"), ("[" * 117, "header"),
        ("{'descr': '<U2', 'fortran_order': False, 'shape': (1,)}", "numbers are expected"),
        ("{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}", "and there are more"),
    ],
)  # fmt: skip
def test_numpys_files_are_read_by_what_they_hold(header, told, tmp_path, thrifty):
    (tmp_path / "a.npy").write_bytes(_npy(header))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ct.npy", _npy(header))
    with pytest.raises(BadInput, match=told):
        m3d.load_array(tmp_path / "a.npy")
    with pytest.raises(BadInput, match=told):
        rad_chestct.load_volume(tmp_path / "a.npz")


def test_a_header_of_numpy_that_claims_to_be_long_allocates_nothing(tmp_path, thrifty):
    content = _npy("{'descr': '<i2', 'fortran_order': False, 'shape': (4,)}")
    for version in ((1, 1), (2, 0), (3, 0), (255, 255)):
        (tmp_path / "a.npy").write_bytes(content[:6] + bytes(version) + content[8:])
        with pytest.raises(BadInput, match="NumPy doesn't write"):
            m3d.load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3), np.array(True), np.zeros((0, 3)), np.ones((2, 3, 4)).T])
def test_what_numpy_writes_is_read_as_numpy_reads_it(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", one=array, other=array[..., None])
    for found in (damaged.load_npy(tmp_path / "a.npy"), damaged.load_npz(tmp_path / "a.npz")["one"]):
        np.testing.assert_array_equal(found, array, strict=True)
        assert found.flags.f_contiguous == np.load(tmp_path / "a.npy").flags.f_contiguous
    if array.size:
        np.testing.assert_array_equal(damaged.map_npy(tmp_path / "a.npy"), array, strict=True)


def test_texts_are_read_where_they_are_expected_and_only_if_they_are_letters(tmp_path):
    texts, file = np.array([["nodule", "no Ödem"], ["", "μ"]]), tmp_path / "a.npz"
    np.savez_compressed(file, texts=texts, count=3)
    np.testing.assert_array_equal(damaged.load_npz(file, texts=True)["texts"], texts, strict=True)
    with pytest.raises(ValueError, match="numbers are expected"):
        damaged.load_npz(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", _npy("{'descr': '<U2', 'fortran_order': False, 'shape': (1,)}", b"\xff" * 8))
    with pytest.raises(ValueError, match="aren't letters"):
        damaged.load_npz(file, texts=True)


def test_a_metaimage_that_claims_a_billion_voxels_or_none_is_refused(tmp_path):
    path = write_mha(tmp_path / "a.mha")
    content = path.read_bytes()
    packed = re.search(rb"CompressedDataSize = \d+", content)[0]
    for old, new, told in (
        (b"DimSize = 4 5 6", b"DimSize = 1000 1000 1000", "2,000,000,000 bytes, and has 240;"),
        (b"DimSize = 4 5 6", b"DimSize = 4 5 7", "280 bytes, and has 240;"),
        (b"DimSize = 4 5 6", b"DimSize = 0 5 6", "a.mha"),
        (packed, b"CompressedDataSize = -5", "claims -5 packed bytes"),
    ):  # fmt: skip
        path.write_bytes(content.replace(old, new))
        with pytest.raises(BadInput, match=told):
            stoic.load_volume(path)


def test_a_metaimage_that_is_cut_short_is_not_filled_up_with_what_memory_held(tmp_path):
    """ITK only warns, and what it warns of looks like HU."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1000, (40, 20, 30)).astype(np.int16))
    for packed in (True, False):
        path = tmp_path / f"{packed}.mha"
        sitk.WriteImage(image, str(path), useCompression=packed)
        head, mark, numbers = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
        assert stoic.load_volume(path).hu.shape == (40, 20, 30)
        half = numbers[: len(numbers) // 2]
        head = re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = %d" % len(half), head)
        path.write_bytes(head + mark + half)
        with pytest.raises(BadInput, match="claims .* voxels, 48,000 bytes, and has"):
            stoic.load_volume(path)


# --- text that isn't what it should be ---------------------------------------------------------------------------


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("content", [DEEP, "1" * 5000, b"\xff", "", '"x'],
                         ids=["deep", "digits", "latin", "none", "cut"])
def test_no_json_is_a_sentence_everywhere(content, tmp_path):
    path = _write(tmp_path / "a.json", content)
    _write(tmp_path / "config.json", content)
    _write(tmp_path / "tiny/record.json", content)
    _write(tmp_path / "ctvlm_processor.json", content)
    for read in (
        lambda: read_json(path, dict), lambda: checkpoints.record("tiny", tmp_path), lambda: text_network(tmp_path),
        lambda: layers_like_roberta_large(tmp_path), lambda: CtvlmProcessor.from_pretrained(tmp_path),
        lambda: DCFormer.from_pretrained(tmp_path), lambda: read_jsonl(_write(path, content or "\n")),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            read()


@pytest.mark.parametrize("names", [DEEP + "]", "[1]", "[7, null]", '["a]'])
def test_a_vision_role_without_a_list_of_pictures_is_refused(names):
    with pytest.raises(BadInput, match="the vision content is"):
        read_vision(f"nifti:a.nii.gz; prompt_png:{names}")


@pytest.mark.parametrize("content", [b"a = \xff", "a = " + "1" * 5000, "a = " + "[" * 5000, "a ="])
def test_no_toml_is_a_sentence_everywhere(content, tmp_path):
    path = _write(tmp_path / "a.toml", content)
    for read in (protocol.load.__wrapped__, lambda p: protocol.own(p, ()), assets._read_manifest.__wrapped__):
        with pytest.raises(BadInput, match="a.toml"):
            read(path)


@pytest.mark.parametrize("contrast", ["contrast = 3", "[[contrast]]\nx = 1", "[contrast]\nname = 1", "contrast = [[]]"])
def test_a_contrast_without_a_name_is_refused(contrast, tmp_path):
    path = _write(tmp_path / "p.toml", f"version = 1\nscoring = 1\n{contrast}\n")
    with pytest.raises(BadInput, match="contrast without a name"):
        protocol.own(path, ())


@pytest.mark.parametrize("value", ["-1", "1979-05-27", "[]", "{a = 1}", "inf"])
def test_a_field_of_the_audit_that_is_no_text_is_refused(value, tmp_path):
    whole = audit.PATH.read_text(encoding="utf-8")
    for name in ("what", "here"):
        changed = re.sub(rf"^{name} = .*$", f"{name} = {value}", whole, count=1, flags=re.MULTILINE)
        assert changed != whole
        with pytest.raises(BadInput):
            audit.load.__wrapped__(_write(tmp_path / "audit.toml", changed))


@pytest.mark.parametrize(
    "changed", [{"pictures": "x"}, {"pictures": 0}, {"words": {}}, {"lora_steps": {"a": 1}}], ids=str
)
def test_a_setting_of_another_kind_is_refused(changed):
    with pytest.raises(BadInput, match="finetuning|pictures|words|steps"):
        real_arms.recipe_of("m3d-none-0.5B", Sources(finetuning=changed), 8)
    with pytest.raises(BadInput):
        uvlm_real_options.config_of("segmentation", Sources(uvlm={"patch_dhw_vox": []}))


def test_captions_that_are_no_list_are_refused(tmp_path):
    make_m3d(tmp_path)
    path = tmp_path / "M3D_Cap_npy/M3D_Cap.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train": 7}))
    with pytest.raises(BadInput, match="train is 7; a list of images"):
        m3d.read(tmp_path)


# --- what runs left -----------------------------------------------------------------------------------------------


def test_tables_that_are_none_are_refused(tmp_path):
    for content in ("", "a,b\n1,2,3\n", b"\xff,a\n", "a\n1\n"):
        _write(tmp_path / "uvlm-x/table.csv", content)
        with pytest.raises(BadInput, match="uvlm-x/table.csv"):
            uvlm_tables.read_table(tmp_path / "uvlm-x")
        _write(tmp_path / real_arms.BERT, content)
        with pytest.raises(BadInput, match=real_arms.BERT):
            real_arms.read_bert_score(tmp_path)
        _write(tmp_path / "A/test.csv", content)
        with pytest.raises(BadInput, match="A/test.csv"):
            arm_tables.table("A", tmp_path)
    with pytest.raises(BadInput, match="contrasts"):
        contrasts.load.__wrapped__(_write(tmp_path / "contrasts.csv", b"name\n\xff\n"))


def test_scores_that_cannot_be_read_are_computed_again(tmp_path):
    folder = tmp_path / "vlm-B-none-small"
    _write(folder / "test.npz", b"x")
    for content in (b"\xff", "form\nclosed\n", "answers\n" + stored_scores.of_answers(folder) + "\n"):
        _write(folder / "scores.csv", content)
        assert stored_scores.read(folder) == {}


def test_answers_without_a_column_or_about_no_question_are_refused(tmp_path):
    (patient,) = phantom.cohort(1, seed=3)
    records = candidates(patient, "test")[:5]
    table = answers.answer_table(records, [r.answer for r in records], condition="none")
    path = answers.save(table, records, tmp_path / "a.npz")
    whole = damaged.load_npz(path)
    for arrays, told in (
        ({k: v for k, v in whole.items() if k != "answer.codes"}, "can't be read as a table of answers"),
        (whole | {"place": whole["place"] + 9}, "a question that there isn't"),
        (whole | {"place": whole["place"][:2]}, "different lengths"),
        (whole | {"answer.codes": np.array(7)}, "answers"),
    ):  # fmt: skip
        table_file.write(path, arrays)
        with pytest.raises(BadInput, match=told):
            answers.load(path, records)


def test_a_run_record_that_nobody_wrote_so_is_refused_and_a_state_is_forgotten(tmp_path):
    _write(tmp_path / "run.json", '{"notebooks": {}}')
    with pytest.raises(BadInput, match="no notebook wrote so"):
        report.build(tmp_path)
    for content in ("[]", '{"key": "k", "files": []}', DEEP):
        _write(tmp_path / "state/10.json", content)
        assert notebook_outputs.load_state(tmp_path, "10") == {}
        assert not notebook_outputs.is_current(tmp_path, "10", "k")


def test_packed_files_with_damaged_contents_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 9)
    content = bytearray(buffer.getvalue())
    content[31:60] = b"\xff" * 29  # the packed bytes, behind the header of 30 and a name of 1
    path = _write(tmp_path / "a.zip", bytes(content))
    with pytest.raises(BadInput, match="can't be unpacked"):
        cases.own_case(path)
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(BadInput, match="folder.zip"), packed_results.unpacked(tmp_path / "folder.zip"):
        pass


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 8], ids=["bytes", "texts"])
def test_a_gguf_list_that_claims_more_than_there_is_ends_at_the_end(kind, tmp_path):
    path = helpers_gguf.write(tmp_path / "a.gguf")
    content, key = path.read_bytes(), b"tokenizer.ggml.token_type"
    place = content.index(key) + len(key) + 4  # behind the type "list"
    path.write_bytes(content[:place] + struct.pack("<IQ", kind, 2**40) + content[place + 12 :])
    with pytest.raises(BadInput, match="cut off or damaged"):
        gguf_file.read(path)


def test_a_pickle_that_claims_gigabytes_allocates_nothing(tmp_path, thrifty):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.bin").read_bytes()
    assert weights.read_tensors(tmp_path / "a.bin", "weights")["a"].tolist() == [1, 1, 1]
    (tmp_path / "a.bin").write_bytes(content[:2] + b"B" + struct.pack("<I", 2**32 - 1) + content[2:])
    with pytest.raises(BadInput, match="can't be read as weights"):
        weights.read_tensors(tmp_path / "a.bin", "weights")


def test_a_record_that_describes_no_model_is_refused(tmp_path):
    for record, read in (({"model": {}}, lambda: aligned.load(tmp_path / "tiny")),
                         ({"model": []}, lambda: aligned.load(tmp_path / "tiny")),
                         ({"config": {"x": 1}}, lambda: load_small("tiny", tmp_path))):  # fmt: skip
        checkpoints.save("tiny", {"a": torch.ones(2)}, record, tmp_path)
        with pytest.raises(BadInput, match="describes no (model|network)"):
            read()


def test_damaged_folders_of_models_are_refused(tmp_path):
    for name, config in (("encoder", {"model_type": "ctvlm_dcformer"}),
                         ("text", {"model_type": "distilbert", "dropout": []})):
        _write(tmp_path / name / "config.json", json.dumps(config))
        save_file({"a": torch.ones(2)}, tmp_path / name / "model.safetensors", {"format": "pt"})
        content = (tmp_path / name / "model.safetensors").read_bytes()
        _write(tmp_path / name / "model.safetensors", content[:20])
    with pytest.raises(BadInput, match="can't be read as an encoder"):
        DCFormer.from_pretrained(tmp_path / "encoder")
    with pytest.raises(BadInput, match="no text tower"):
        text_network(tmp_path / "text")


def test_a_damaged_tokenizer_is_refused(tmp_path):
    home = tmp_path / NAME
    _write(home / FILE, '{"version": "1.0", "model": {"type": "nothing"}}')
    _write(home / RECORD, json.dumps({"sha256": tokenizer_hash(tmp_path)}))
    with pytest.raises(BadInput, match="ladder-tokenizer can't be read"):
        load_tokenizer(tmp_path)
    _write(home / RECORD, "[]")
    with pytest.raises(BadInput, match="holds no record"):
        load_tokenizer(tmp_path)


def test_vectors_of_other_texts_or_of_none_are_refused(tmp_path):
    for array in (np.ones(4), np.ones((2, 3))):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(BadInput, match="can't be read as vectors"):
            TextVectors(tmp_path / "a.npy", {"x": 0, "y": 1, "z": 2}, 0)
