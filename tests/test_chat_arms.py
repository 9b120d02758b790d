"""Chat arms in miniature, MedVista3D's Table 3: stem and transformer as one encoder, four tasks, stored, in tables."""

import argparse
import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ctvlm_lib import arm_command
from ctvlm_lib.alignment import checkpoints as aligned
from ctvlm_lib.alignment.arm_tables import RESULTS, name_and_seed
from ctvlm_lib.alignment.grounded import NOTHING, Grounded
from ctvlm_lib.alignment.local_global_saving import read
from ctvlm_lib.alignment.scans import Scans
from ctvlm_lib.encoder.config import variant_config
from ctvlm_lib.encoder.dual_pathway import DUAL_VARIANTS, DualPathwayConfig
from ctvlm_lib.encoder.frozen import is_frozen
from ctvlm_lib.encoder.stemmed import Stemmed, StemmedConfig
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.text import text_scores
from ctvlm_lib.experiments import chat_arms, chat_records, chat_tables
from ctvlm_lib.experiments.chat_protocol import FILES, load
from ctvlm_lib.experiments.chat_records import TASKS, lessons_of, long_answers, task_of, with_tasks
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.ledger import chat as in_ledger
from ctvlm_lib.ledger import published, rows
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.ledger.verify_command import verify
from ctvlm_lib.records import committed, phantom
from ctvlm_lib.records.balance import balance
from ctvlm_lib.records.committed import as_it_stands
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.questions import ask
from ctvlm_lib.vlm.feature_cache import FeatureCache
from ctvlm_lib.vlm.finetune import Finetuning, build, finetune
from ctvlm_lib.vlm.lessons import Lessons
from ctvlm_lib.vlm.model import CtvlmModel
from ctvlm_lib.vlm.projector import mlp

PHANTOM = {"variant": "phantom"} | DUAL_VARIANTS["phantom"]
SHORT = {"projector_steps": 1, "lora_steps": 2, "pictures": 4, "rank": 4, "alpha": 8}
KINDS = load()["asking"]["kinds"]
ORGANS = ("liver", "spleen", "heart")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Twelve patients to learn from, four and eight to be asked about: of fewer, balancing leaves no choices."""
    patients = {"train": 12, "validation": 4, "test": 8}
    drawn = {split: tuple(phantom.cohort(n, seed=n + 20)) for split, n in patients.items()}
    asked = balance([r for split, those in drawn.items() for r in ask(those, split, seed=0)], 0)
    records = {split: [r for r in asked if r.split == split] for split in drawn}
    return Cohort("quick", {split: Scans.of(those) for split, those in drawn.items()}, records, drawn)


@pytest.fixture(scope="module")
def tasks(cohort) -> Cohort:
    return with_tasks(cohort, KINDS, {})


@pytest.fixture
def without_meteor(monkeypatch):
    """WordNet takes ten seconds to read, and METEOR has tests of its own."""
    monkeypatch.delitem(chat_tables.COLUMNS, "METEOR")


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """Two arms with a few steps each, asked about three regions: their folder, and what they said."""
    home, said = tmp_path_factory.mktemp("chat"), {}
    few = {split: [r for r in records if r.region in (None, *ORGANS)] for split, records in cohort.records.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTVLM_CACHE", str(home / "cache"))
        patch.setattr(committed, "check_committed", as_it_stands)  # a protocol that is being written may not be yet
        patch.setattr("ctvlm_lib.experiments.vlm_reader.REPORT_ROOM", 24)  # nothing was learnt that would end a report
        patch.setattr(chat_arms, "load", lambda: _shorter())
        patch.setattr(chat_records, "REGIONS", ORGANS)
        for name, splits in (("chat-full", chat_arms.SPLITS), ("chat-global", ("test",))):
            said[name] = chat_arms.run(
                name, "quick", cohort=replace(cohort, records=few), splits=splits, changes=SHORT, progress=False,
                checkpoint_folder=home / "checkpoints", results=home / "results",
            )  # fmt: skip
    return home, said


def _shorter() -> dict:
    return load() | {"asking": load()["asking"] | {"most": 12}}


def volumes(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, 32, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(encoder: str, **changes) -> CtvlmModel:
    return build(chat_arms.recipe_of(f"chat-{encoder}", changes=changes))[0]


@torch.inference_mode()
def test_the_encoder_is_the_stem_and_then_the_transformer():
    model, picture = model_of("full"), volumes()
    tokens = aligned.load("A")[0].encoder.encode(picture)[0][-2]
    (fine, coarse), vector = read("align-full")[0].encoder.encode(tokens)
    streams = model.encoder.streams(picture)
    assert torch.equal(streams.low, fine) and torch.equal(streams.high, coarse)
    assert torch.equal(model.encoder.encode(picture)[1], vector)
    assert (streams.low_grid, streams.high_grid) == ((8, 8, 8), (2, 4, 4))
    assert model.config.streams() == ((512, 64), (32, 64)) and model.config.image_tokens == 64


@torch.no_grad()
def test_every_arm_reads_the_encoder_that_its_name_says():
    found = {name: build(config)[0] for name, config in chat_arms.ARMS.items()}
    assert {name: type(model.encoder).__name__ for name, model in found.items()} == {
        "chat-global": "Stemmed", "chat-full": "Stemmed", "chat-stem": "DCFormer", "chat-blind": "DCFormer",
    }  # fmt: skip
    stems = [model.encoder.stem if hasattr(model.encoder, "stem") else model.encoder for model in found.values()]
    picture = volumes(1)
    first = stems[0].encode(picture)[0][-2]
    assert all(torch.equal(stem.encode(picture)[0][-2], first) for stem in stems)
    assert found["chat-global"].encoder_id() != found["chat-full"].encoder_id()
    assert len({model.config.image_tokens for model in found.values()}) == 1


def test_a_model_on_it_is_saved_and_loaded(tmp_path):
    model = model_of("full")
    model.save_pretrained(tmp_path)
    again = CtvlmModel.from_pretrained(tmp_path)
    assert isinstance(again.encoder, Stemmed) and again.encoder_id() == model.encoder_id()
    picture = volumes(1)
    with torch.inference_mode():
        for one, other in zip(model.image_features(picture)[:2], again.image_features(picture)[:2], strict=True):
            assert torch.equal(one, other)
    kept = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["encoder"]
    assert kept["model_type"] == "ctvlm_stemmed" and kept["pathway"]["token_width"] == 64
    assert "_name_or_path" not in json.dumps(kept)


def test_training_leaves_the_encoder_as_it_is(tasks):
    config = chat_arms.recipe_of("chat-full", changes=SHORT)
    model, processor = build(config)
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    taught = lessons_of(tasks, config)[:6]
    kept = FeatureCache.of(model, [one.key for one in taught], lambda key: volumes(1)[0].numpy())
    finetune(model, Lessons(processor, taught), kept, config, progress=False)
    assert is_frozen(model.encoder) and not any(p.requires_grad for p in model.encoder.parameters())
    assert not any(module.training for module in model.encoder.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: StemmedConfig(variant_config("phantom")), "one of them wasn't given"),
        (lambda: StemmedConfig(variant_config("phantom"), DualPathwayConfig()), "reads volumes itself"),
        (lambda: StemmedConfig(variant_config("phantom", channels=(4, 4, 8, 12)), DualPathwayConfig(**PHANTOM)),
         "a token of 8 channels every"),
        (lambda: StemmedConfig(DualPathwayConfig(**PHANTOM), variant_config("phantom")), "ctvlm_dcformer is expected"),
        (lambda: model_of("full").encoder(volumes(1)[..., :32]), "positions for 512 tokens"),
        (lambda: build(Finetuning(encoder="align-none")), "there is no checkpoint 'align-none'"),
        (lambda: chat_arms.recipe_of("chat-everything"), "no arm is called 'chat-everything'"),
        (lambda: chat_arms.recipe_of("chat-full", changes={"depth": 3}), "no setting 'depth'"),
        (lambda: chat_tables.of_task(pd.DataFrame({"kind": [], "form": []}), "essay"), "no task is called 'essay'"),
        (lambda: mlp((512, 64), (32, 64), hidden_size=128, grid=(8, 8, 8)), "can't be merged in blocks"),
        (lambda: mlp((512, 64), (32, 64), hidden_size=128, grid=(8, 8, 4), block=(2, 2, 2)), "can't be merged"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()


def test_averaged_fine_tokens_are_the_encoders_own_coarse_ones():
    low, high = torch.rand(2, 512, 64), torch.rand(2, 32, 64)
    averaged = mlp((512, 64), (32, 64), hidden_size=128, grid=(8, 8, 8), block=(4, 2, 2))
    plain = mlp((512, 64), (32, 64), hidden_size=128)
    plain.load_state_dict(averaged.state_dict())
    coarse = torch.stack([cells.flatten(0, 2).mean(dim=0) for cells in _cells(low[0], (4, 2, 2))])
    assert averaged.tokens == plain.tokens == 32
    assert torch.allclose(averaged(low, high)[:1], plain(low[:1], coarse[None]), atol=1e-5)


def _cells(tokens: torch.Tensor, block: tuple[int, int, int]):
    """Blocks of an 8×8×8 grid by plain loops."""
    grid = tokens.unflatten(0, (8, 8, 8))
    for places in np.ndindex(*(8 // side for side in block)):
        yield grid[tuple(slice(p * side, (p + 1) * side) for p, side in zip(places, block, strict=True))]


def test_long_answers_are_the_sentences_that_alignment_learns_from(cohort):
    patients = cohort.patients["train"]
    made = long_answers(patients, "train")
    by_place = {(record.patient, record.region): record for record in made}
    known = Grounded.of(patients)
    for name, row, there in zip(known.scans.names, known.sentences, known.there, strict=True):
        for region, sentence, inside in zip(REGIONS, row, there, strict=True):
            assert ((name, region) in by_place) == (sentence != NOTHING) == bool(inside)
            if inside:
                record = by_place[name, region]
                assert (record.answer, record.question) == (sentence, f"Describe the {region}.")
                assert record.names_region and (record.form, record.split) == ("open", "train")
    assert len(made) == len(by_place) == known.there.sum() and len({record.id for record in made}) == len(made)


def test_the_four_tasks_hold_what_needs_no_prompt(cohort, tasks):
    own = tasks.records["test"]
    for record in own:
        task = task_of(record.kind, record.form)
        assert record.region is None or record.names_region
        assert bool(record.choices) == (task == "multiple choice")
        assert record.kind not in ("presence", "organ")
    assert {task_of(record.kind, record.form) for record in own} == set(TASKS)
    asked = {r.id for r in cohort.records["test"] if r.kind in (*KINDS, "report")}
    left = {r.id for r in cohort.records["test"] if r.kind in KINDS and r.region and not r.names_region}
    assert {record.id for record in own if record.kind != chat_records.LONG} == asked - left
    few = with_tasks(cohort, KINDS, {"test": 1})
    assert {record.patient for record in few.records["test"]} == {cohort.scans["test"].names[0]}
    assert few.records["train"] == tasks.records["train"]


def test_a_patient_is_one_lesson_a_task_on_one_picture(tasks):
    config = chat_arms.ARMS["chat-full"]
    made = lessons_of(tasks, config)
    by_key: dict[str, list[set[str]]] = {}
    for one in made:
        by_key.setdefault(one.key, []).append({task_of(r.kind, r.form) for r in one.records})
    assert len(by_key) == len(tasks.scans["train"])
    assert all(len(kinds) == 1 for groups in by_key.values() for kinds in groups)
    assert all(len(groups) == len({*map(frozenset, groups)}) for groups in by_key.values())
    assert sum(len(one.records) for one in made) == len(tasks.records["train"])
    with pytest.raises(BadInput, match="13 patients to learn from, but there are 12"):
        lessons_of(tasks, replace(config, patients=13))
    assert len({one.key for one in lessons_of(tasks, replace(config, patients=12), "validation")}) == 4


def test_what_is_stored_is_what_was_said(trained, cohort):
    home, said = trained
    folder = home / "results" / "chat-full"
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "test.npz", "validation.npz"]
    for split in ("validation", "test"):
        stored, own = chat_tables.said(folder, split), said["chat-full"][split]
        assert stored[["id", "answer"]].equals(own[["id", "answer"]]) and set(stored["control"]) == {"as asked"}
        wanted = {r.id for r in with_tasks(cohort, KINDS, {}).records[split] if r.region in (None, *ORGANS)}
        assert set(stored["id"]) == wanted and len(stored) == len(wanted)
    assert chat_tables.folders((home / "results",)).keys() == {"chat-full", "chat-global"}
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["rows"]["test"] == len(said["chat-full"]["test"])
    assert record["finetuning"]["encoder"] == "align-full" and record["finetuning"]["rank"] == 4
    assert in_ledger.problems(record | {"commit": "a"}, 0) == []
    assert in_ledger.problems(record | {"commit": "a"}, 1) == [
        "record.json: its seed is 0, and the folder's name says 1"
    ]


def test_the_stored_table_is_that_of_the_answers(trained, without_meteor):
    home, said = trained
    folder = home / "results" / "chat-full"
    own = pd.concat([chat_tables.measures(said["chat-full"][s], s) for s in ("validation", "test")], ignore_index=True)
    pd.testing.assert_frame_equal(chat_tables.measures_of(folder), own)
    rows = chat_tables.of_task(said["chat-full"]["test"], "multiple choice")
    letters = ["ABCD"[choices.index(truth)] for choices, truth in zip(rows["choices"], rows["truth"], strict=True)]
    wanted = [f"{letter}. {truth}" for letter, truth in zip(letters, rows["truth"], strict=True)]
    plain = text_scores(rows["answer"].tolist(), wanted, metrics=["BLEU-1 (pycocoevalcap)", "CIDEr"])
    found = own[own["split"] == "test"].set_index(["task", "measure"])["value"]["multiple choice"]
    assert found["BLEU-1"] == pytest.approx(plain["BLEU-1 (pycocoevalcap)"] / 100, abs=1e-6)
    assert found["CIDEr"] == pytest.approx(plain["CIDEr"], abs=1e-6)
    right = np.mean([answer == one for answer, one in zip(rows["answer"], wanted, strict=True)])
    assert found["accuracy"] == pytest.approx(right, abs=1e-6)
    assert (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()


def test_right_findings_are_those_that_are_affirmed():
    rows = pd.DataFrame({
        "region": ["liver"] * 5,
        "truth": ["The liver shows a solid mass (32 mm).", "The liver is unremarkable."] * 2 + ["Normal liver."],
        "answer": ["There is a mass of 5 cm.", "No cyst of the liver.", "A cyst is seen in the liver.", "A mass.", ""],
    })  # fmt: skip
    assert chat_tables.right(rows, "long answer").tolist() == [1, 1, 0, 0, 0]


def test_the_ledger_takes_its_numbers_from_the_table(trained, without_meteor):
    home, _ = trained
    results = home / "results"
    assert verify(results, update=True, say=lambda line: None) is not None
    lines: list[str] = []
    assert verify(results, say=lines.append) is not None and any(line.startswith("ok      chat-full") for line in lines)
    cell = next(c for c in published.table("medvista3d.T3") if c.row == "CT-CHAT" and c.column == "CIDEr")
    wanted = in_ledger.quantity(cell)
    assert (wanted.arm, wanted.task, wanted.measure) == ("chat-global", "long answer", "CIDEr")
    table = chat_tables.read_table(results / "chat-global")
    row = table.loc[("test", "long answer", "CIDEr")]
    found = in_ledger.interval(table, wanted)
    assert (found.value, found.low, found.high, found.n) == (row["value"], row["low"], row["high"], row["n"])
    shape = chat_tables.table_3((results,))
    assert shape.index.tolist() == ["full", "global"] and shape.columns.size == 12
    assert shape.loc["global", ("long answer", "CIDEr")] == pytest.approx(row["value"])
    beside = rows.ledger(published.table("medvista3d.T3"), Results((results,)))
    there = beside[beside["ours"].notna()]
    assert dict(zip(there["row"], there["command"], strict=True)) == {
        "CT-CHAT": "ctvlm arm chat-global", "MedVista3D-LLaVA": "ctvlm arm chat-full",
    }  # fmt: skip
    assert len(there) == 24 and set(there["status"]) == {"computed"} and set(there["kind"]) == {"analogue"}
    text = (results / "chat-full" / "table.csv").read_text(encoding="utf-8")
    (results / "chat-full" / "table.csv").write_text(
        text.replace("test,short answer,exact match,", "test,short answer,exact match,1")
    )
    assert verify(results, say=lines.append) is None
    assert any("chat-full/table.csv" in line for line in lines)
    (results / "chat-full" / "table.csv").write_text(text, encoding="utf-8")


def test_contrasts_are_differences_of_the_scores(trained):
    results = trained[0] / "results"
    (one, *others) = in_ledger.listed_contrasts()
    assert len(others) == 2 and all(contrast.primary and contrast.paper == "medvista3d" for contrast in (one, *others))
    found = in_ledger.difference(one, (results,))[0]
    sides = [
        chat_tables.of_task(chat_tables.said(results / f"chat-{side}"), "long answer") for side in (one.left, one.right)
    ]
    scores = [
        text_scores(rows["answer"].tolist(), rows["truth"].tolist(), metrics=["BLEU-1 (pycocoevalcap)"])
        for rows in sides
    ]
    left, right = (next(iter(score.values())) / 100 for score in scores)
    assert found.value == pytest.approx(left - right, abs=1e-9) and found.low <= found.value <= found.high
    judged = in_ledger.verdicts((results,))
    assert judged["name"].tolist() == [contrast.name for contrast in (one, *others)]
    assert set(judged["verdict"]) == {"1 of 3 seeds"} and judged["published"].tolist() == [3.6, 1.9, 9.3]
    assert set(in_ledger.verdicts((results,), "quick")["verdict"]) == {"no verdict"}
    assert set(in_ledger.verdicts((trained[0],))["verdict"]) == {"not measured yet"}


def test_rows_of_the_published_table_have_arms_where_they_are_of_this_kind():
    cells = published.table("medvista3d.T3")
    found = {cell.row: in_ledger.quantity(cell) for cell in cells}
    assert {row: one and one.arm for row, one in found.items()} == {
        "CXR-LLaVA": None, "LLaVA-Med": None, "CT-CHAT": "chat-global", "MedVista3D-LLaVA": "chat-full",
    }  # fmt: skip
    wanted = {in_ledger.quantity(cell) for cell in cells} - {None}
    assert len(wanted) == 32 and {one.arm for one in wanted} <= set(chat_arms.ARMS)
    assert {one.task for one in wanted} == set(TASKS) == set(load()["asking"]["tasks"])


def test_the_test_split_is_not_asked_without_a_committed_protocol(cohort, monkeypatch):
    def refuse(files):
        raise BadInput(f"{files[-1].name} differs from the last commit")

    monkeypatch.setattr(committed, "check_committed", refuse)
    with pytest.raises(BadInput, match=r"protocol_chat.toml differs from the last commit"):
        chat_arms.run("chat-full", cohort=cohort)


def test_the_command_takes_a_seed_and_fewer_patients(tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def instead(name, profile, seed, **options):
        seen.update(options, name=name, profile=profile, seed=seed)
        raise Stop

    def run(*words):
        parser = argparse.ArgumentParser()
        arm_command.add_arguments(parser)
        return arm_command.command(parser.parse_args([*words, "--out", str(tmp_path)]))

    monkeypatch.setattr(chat_arms, "run", instead)
    with pytest.raises(Stop):
        run("chat-full", "--seed", "2", "--patients", "50", "--profile", "quick")
    assert (seen["name"], seen["profile"], seen["seed"], seen["changes"]) == ("chat-full", "quick", 2, {"patients": 50})
    assert seen["label"] == "chat-full-patients50-seed2" and seen["folder"].name == seen["label"]
    for words, said in (("chat-full --batch 3", "not --batch"), ("chat-small", "choose one of chat-global, chat-full")):
        with pytest.raises(BadInput, match=said):
            run(*words.split())


def test_budgets_are_those_of_the_paper_where_it_prints_them():
    arm = chat_arms.ARMS["chat-full"]
    assert (arm.rank, arm.alpha, arm.projector, arm.condition) == (128, 256, "mlp", "none")
    assert {one.lora_steps for one in chat_arms.ARMS.values()} == {load()["training"]["lora_steps"]}


@pytest.mark.parametrize(
    "folder", [f for those in chat_tables.folders().values() for f in those.values()], ids=lambda f: f.name
)
def test_a_stored_arm_was_trained_by_its_recipe_under_this_protocol(folder):
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    name, seed = name_and_seed(folder.name)
    assert Finetuning.from_dict(record["finetuning"]) == chat_arms.recipe_of(name, seed)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in FILES)).hexdigest()
    assert record["chat_protocol"] == {"version": load()["version"], "sha256": digest}
    fixed = load()["asking"]["patients"]
    for split in ("validation", "test"):
        assert chat_tables.said(RESULTS / folder.name, split)["patient"].nunique() == fixed[split]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
