"""Readers of records, of the real data sets' tables, and of TOML settings."""

import json
import shutil
from pathlib import Path

import helpers_own
import helpers_pairs
import numpy as np
from helpers_ct import small_ct
from helpers_data import chest_hu, make_ct_rate, make_m3d, make_radgenome, write, write_csv
from test_abdomen_atlas import ATLAS
from test_pmc_vqa import PMC, figure_row
from test_rad_chestct import NODULE, chest, write_labels
from test_rad_chestct import row as labels_row
from test_segmentation_cases import SCAN, anatomy_ids, entry
from test_stoic import ROWS, write_mha

from ctvlm_lib import assets, sources
from ctvlm_lib.alignment import radgenome_pairs
from ctvlm_lib.alignment.radgenome_recipe import OnRadGenome
from ctvlm_lib.alignment.radgenome_texts import rewrites_of
from ctvlm_lib.experiments import local_global_real, real_arms, uvlm_real_options
from ctvlm_lib.experiments.uvlm_arms import SEG, STAGES
from ctvlm_lib.ledger import audit
from ctvlm_lib.prompt import batch, command
from ctvlm_lib.prompt.render import Style
from ctvlm_lib.records import (
    abdomen_atlas,
    ct_rate,
    m3d,
    phantom,
    pmc_vqa,
    protocol,
    rad_chestct,
    radgenome,
    rex_grounding,
    stoic,
    totalsegmentator,
    uvlm_tables,
)
from ctvlm_lib.records.package import four_role, read_vision, write_entries
from ctvlm_lib.records.questions import candidates
from ctvlm_lib.records.record import read_jsonl, write_jsonl
from ctvlm_lib.records.segmentation_cases import abdomen_cases, chest_cases
from ctvlm_lib.run import PROJECT
from fuzz.target import Target, content_of

LISTS = ("**/*.csv", "**/*.json", "**/*.txt")


def _asked():
    (patient,) = phantom.cohort(1, seed=3)
    return [record for record in candidates(patient, "test") if record.kind != "report"][:12]


def _entries(folder: Path) -> None:
    write_entries([four_role(record, png=["a.png", "b.png"]) for record in _asked()], folder / "entries.jsonl")


def _read_entries(folder: Path, file: Path) -> None:
    """The vision role of each entry that is still one; what isn't JSON is the trainer's to refuse."""
    for line in content_of(file).split(b"\n"):
        try:
            contents = [role["content"] for role in json.loads(line) if role["role"] == "vision"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        for content in contents:
            if isinstance(content, str):
                read_vision(content)


def _ct_rate(folder: Path, file: Path) -> None:
    ct_rate.read(folder, check_volumes=file.name.endswith(".gz"))
    for split in ("train", "validation"):
        ct_rate.metadata(folder, split), ct_rate.labels(folder, split), ct_rate.reports(folder, split)


def _pmc(folder: Path) -> None:
    rows = [figure_row(), figure_row("What is shown?", caption="Computed tomography"), figure_row(answer="Stone")]
    for name in ("train.csv", "test.csv"):
        write_csv(folder / name, PMC, rows)
    (folder / "images").mkdir()
    (folder / "images/PMC12_Fig1.jpg").write_bytes(b"jpeg")


def _rad(folder: Path) -> None:
    for split, scan in (("train", "trn00001"), ("test", "tst00001")):
        write_labels(folder, split, [labels_row(scan, NODULE)])
        np.savez_compressed(folder / f"{scan}.npz", ct=chest())
    write_csv(folder / rad_chestct.METADATA, ("NoteAcc_DEID", "MRN_DEID"), [("trn00001", "7"), ("tst00001", "8")])


def _stoic(folder: Path) -> None:
    write_csv(folder / "metadata/reference.csv", ("PatientID", "probCOVID", "probSevere"), ROWS)
    for patient, *_ in ROWS:
        write_mha(folder / f"data/mha/{patient}.mha")


def _subjects(folder: Path) -> None:
    write_csv(folder / "meta.csv", ("image_id", "age", "split"), [("s0000", "5", "train"), ("s0001", "6", "val")], ";")
    for subject in ("s0000", "s0001"):
        write(folder / subject / "ct.nii.gz")
        write(folder / subject / "segmentations/spleen.nii.gz", (chest_hu() > 500).astype(np.uint8))


def _atlas(folder: Path) -> None:
    names = [f"BDMAP_0000000{i}" for i in (1, 2, 3)]
    write_csv(folder / abdomen_atlas.TABLE, ATLAS, [(n, "s", "n", "f", "", "3.25", "0.0", "") for n in names])
    for name, members in {"IID_train": names[:2], "IID_test": names[2:], "OOD_train": names[:1]}.items():
        write_csv(folder / f"TrainTestIDS/{name}.csv", ("BDMAP ID",), [(one,) for one in members])
    for name in names:
        write(folder / f"image_only/{name}/ct.nii.gz")
        write(folder / f"mask_only/{name}/segmentations/liver.nii.gz", (chest_hu() > 500).astype(np.uint8))


def _rex(folder: Path) -> None:
    lists = {"train": [entry(), entry("train_5_a_1.nii.gz")], "val": [], "test": [entry("train_9_a_1.nii.gz")]}
    (folder / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
    found = np.zeros((3, *chest_hu().shape), np.uint8)
    found[0, 0:2, 4:6, 3], found[1, 1, 4, 3], found[2, 4:6, 0:3, :] = 1, 2, 1
    write(folder / "dataset/train_fixed" / SCAN)
    write(folder / "segmentations/train_1741_b_2.nii.gz", found, np.eye(4))
    write(folder / "dataset/ts_seg/ts_total/train_fixed" / SCAN, anatomy_ids())


def _read_rex(folder: Path, file: Path) -> None:
    rex_grounding.read(folder)
    for case in chest_cases(folder):
        case.target("F+L")


def _uvlm_table(folder: Path) -> None:
    columns = ("series_id", "case_id", "volume_name", "report", "blosc2_path", *ct_rate.LABELS)
    rows = [(f"train_{k}_a_1", f"train_{k}", "v", "Clear lungs.", "x", *[k % 2] * 18) for k in (1, 2)]
    write_csv(folder / "train_merged.csv", columns, rows)
    write(folder / "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz")


def _batch(folder: Path) -> None:
    small_ct().save(folder / "ct.nii.gz")
    columns = ("name", "ct", "mask", "roi", "style", "thickness", "window", "seed")
    rows = [("a", "ct.nii.gz", "m.nii.gz", "liver", "box", 3, "lung", 1),
            ("b", "ct.nii.gz", "m.nii.gz", "liver", "", "", "", "")]
    write_csv(folder / "cases.csv", columns, rows)


def _tomls(folder: Path) -> None:
    for path in (PROJECT / "data_samples").glob("protocol*.toml"):
        shutil.copy(path, folder)


def _read_protocol(folder: Path, file: Path) -> None:
    if file.name == "protocol.toml":
        protocol.load.__wrapped__(file)
    else:
        protocol.own(file, ())


def _manifest(folder: Path, file: Path) -> None:
    assets._read_manifest.__wrapped__(file)


def _copied(*names: str):
    def make(folder: Path) -> None:
        for name in names:
            shutil.copy(PROJECT / name, folder)

    return make


def _read_names(folder: Path, file: Path) -> None:
    if not file.is_dir():  # a folder of that name can't be reached, as the ending tells a table
        command._names(str(file))


def _sources(folder: Path) -> None:
    for name in ("CT-RATE", "RadGenome", "M3D"):
        (folder / name).mkdir()
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in helpers_own.FINETUNING.items())
    (folder / "sources.toml").write_text(
        '[data]\nct_rate = "CT-RATE"\nradgenome = "RadGenome"\nm3d = "M3D"\n[weights]\ntext = "ClinicalBERT"\n'
        '[decoders]\n"0.5B" = "Qwen2.5-0.5B"\n[run]\narms = ["m3d-none-released"]\nvariant = "nano"\npatients = 2\n'
        f"size_dhw_vox = [64, 64, 128]\n[run.finetuning]\n{settings}", encoding="utf-8",
    )  # fmt: skip


def _options(folder: Path) -> None:
    """What a user changes of the papers' arms."""
    tables = {"finetuning": helpers_own.FINETUNING, "alignment": {"epochs": 2, "batch": 4, "bank": 60, "lr": 1e-3},
              "alignment.encoder": helpers_pairs.OPTIONS["encoder"],
              "uvlm": {"workers": 1, "held_out": 0.2, "lr": 1e-4},
              f"uvlm.{SEG}": {"steps": 3, "patch_dhw_vox": [8, 16, 16]}}  # fmt: skip
    lines = []
    for name, options in tables.items():
        lines += [f"[run.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
    (folder / "sources.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_options(folder: Path, file: Path) -> None:
    given = sources.load(file)
    real_arms.recipe_of("m3d-none-0.5B", given, 8)
    local_global_real.config_of("align-full", given)
    for stage in STAGES:
        uvlm_real_options.config_of(stage, given)


def _read_pairs(folder: Path, file: Path) -> None:
    radgenome_pairs.read(folder / "CT-RATE", folder / "RadGenome", OnRadGenome())


def _rewrites(folder: Path) -> None:
    (folder / "rewrites.json").write_text(json.dumps({"A nodule.": "There is a nodule.",
                                                      "Clear.": "The lung is clear."}))


RECORDS = (
    Target("records.read_jsonl", lambda folder: write_jsonl(_asked(), folder / "records.jsonl"),
           lambda folder, file: read_jsonl(file)),
    Target("package.read_vision", _entries, _read_entries),
    Target("ct_rate.read", make_ct_rate, _ct_rate, ("**/*.csv", "**/*_1.nii.gz")),
    Target("radgenome.read", make_radgenome, lambda folder, file: radgenome.read(folder), LISTS),
    Target("m3d.read", make_m3d, lambda folder, file: m3d.read(folder), LISTS),
    Target("pmc_vqa.read", _pmc, lambda folder, file: pmc_vqa.read(folder), LISTS),
    Target("rad_chestct.read", _rad, lambda folder, file: rad_chestct.read(folder, check_volumes=True)),
    Target("stoic.read", _stoic, lambda folder, file: stoic.read(folder, check_volumes=True)),
    Target("totalsegmentator.read", _subjects,
           lambda folder, file: totalsegmentator.read(folder, structures=("spleen",), check_volumes=True)),
    Target("abdomen_atlas.read", _atlas,
           lambda folder, file: (abdomen_atlas.read(folder, check_volumes=True),
                                 abdomen_cases(folder, incomplete=True))),
    Target("rex_grounding.read", _rex, _read_rex),
    Target("uvlm_tables.read", _uvlm_table, lambda folder, file: uvlm_tables.read(folder / "train_merged.csv", folder),
           LISTS),
    Target("radgenome_pairs.read", helpers_pairs.make_pairs, _read_pairs, LISTS),
    Target("rewrites", _rewrites, lambda folder, file: rewrites_of(file)),
    Target("batch of prompts", _batch, lambda folder, file: batch.find_cases(file, None, Style("contour")), LISTS),
    Target("table of names",
           lambda folder: write_csv(folder / "names.csv", ("id", "name"), [(1, "liver"), (3, "spleen")]),
           _read_names),
    Target("sources", _sources, lambda folder, file: sources.load(file), ("*.toml",)),
    Target("options of arms on real data", _options, _read_options, ("*.toml",)),
    Target("protocol", _tomls, _read_protocol, ("*.toml",)),
    Target("manifest of assets", _copied("data_samples/manifest.toml"), _manifest),
    Target("paper audit", _copied("ctvlm_lib/ledger/audit.toml"), lambda folder, file: audit.load.__wrapped__(file)),
)  # fmt: skip

