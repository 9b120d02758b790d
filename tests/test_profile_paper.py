"""Profile paper end to end: the notebooks on miniature copies in the published layouts, down to the ledger's rows."""

import json
from dataclasses import replace

import helpers_own
import pandas as pd
import pytest
from helpers_ct import command_line

from ctvlm_lib import sources
from ctvlm_lib.alignment.arms import ARMS
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.bert_score import bert_scores
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import real_arms, uvlm_real
from ctvlm_lib.experiments.local_global import ARMS as ALIGNED
from ctvlm_lib.experiments.real_cohort import RealCohort
from ctvlm_lib.ledger import published, real_places
from ctvlm_lib.ledger.ours import Results
from ctvlm_lib.ledger.quantities import RealScore, Staged
from ctvlm_lib.own_data import evaluation, retrieval
from ctvlm_lib.run import PROJECT
from ctvlm_lib.volume import load

pytestmark = pytest.mark.slow
NOTEBOOKS = ("40_grounded_records", "50_dcformer_siglip", "60_vlm_assembly", "70_qwen_lora", "80_evaluation",
             "85_ledger")  # fmt: skip


def cells_of(name: str) -> list[str]:
    """Code of a notebook's cells that run in profile paper."""
    notebook = json.loads((PROJECT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    tagged = [cell for cell in notebook["cells"] if "paper" in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in tagged if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Data, weights and sources file, and the folder that profile paper wrote.

    The first five notebooks' cells run in this process, which spares five kernels; the last by ``ctvlm run``.
    """
    folder = tmp_path_factory.mktemp("own")
    file = helpers_own.make_all(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sources.VARIABLE, str(file))
        for name in NOTEBOOKS[:-1]:
            for code in cells_of(name):
                exec(code, {"profile": "paper", "seed": 0, "out_dir": str(folder / "out")})
        words = ("run", "--profile", "paper", "--sources", str(file), "--only", NOTEBOOKS[-1][:2])
        assert command_line(*words, "--out", str(folder / "out")) == 0
    return file, folder / "out" / "paper"


def table(home, name: str) -> pd.DataFrame:
    return pd.read_csv(home / "tables" / f"{name}.csv")


def test_only_the_part_that_reads_the_users_data_has_run(own):
    [path] = (own[1] / "notebooks").glob("*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len([cell for cell in cells if cell["cell_type"] == "code"]) == 3  # parameters twice, and one cell
    assert "nothing of yours" not in json.dumps(cells[-1]["outputs"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_notebook_has_one_cell_for_the_users_data(name):
    assert len(cells_of(name)) == 1


def test_the_survey_counts_every_copy(own):
    found = table(own[1], "40_own_data").set_index(["data set", "split"])
    assert found.loc[("RadGenome-ChestCT", "train"), "questions"] == 8 * helpers_own.QUESTIONS
    assert found.loc[("RadGenome-ChestCT", "train"), "with a mask"] == 8 * (helpers_own.QUESTIONS - 1)
    assert found.loc[("M3D-Cap and M3D-VQA", "test"), "volumes"] == 4
    assert found.index.get_level_values(0).nunique() == 3


def test_released_towers_are_scored_and_not_trained(own):
    found = table(own[1], "50_own_retrieval")
    assert found["arm"].str.contains("epochs0-startDCFormer_SigLIP").all()
    assert set(found["gallery"]) == {4}


def test_the_papers_own_recipe_keeps_its_name_and_changes_are_said():
    plain = sources.Sources(m3d="copy", pretraining={})
    assert retrieval.words(plain) == ["dcformer-siglip-m3d", "--profile", "paper", "--data", "copy"]
    scored = retrieval.words(sources.Sources(m3d="copy"))
    assert scored[-4:] == ["--epochs", "0", "--start", plain.two_towers]
    other = retrieval.words(sources.Sources(m3d="copy", pretraining={}, variant="nano"))
    assert other[-2:] == ["--variant", "nano"]


def test_without_stored_answers_the_sentence_says_what_to_run(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(sources.VARIABLE, str(own[0]))
    evaluation.show("paper", 0, str(tmp_path))
    assert "no answers are stored yet" in capsys.readouterr().out


def test_every_listed_arm_has_answers_that_its_score_follows_from(own):
    given, found = sources.load(own[0]), table(own[1], "70_own_arms").set_index("arm")
    assert tuple(found.index) == given.arms
    for name in given.arms:
        answers = real_arms.read(own[1] / "results" / name)
        closed = score_closed(answers)
        assert found.loc[name, "closed accuracy, %"] == round(100 * closed["correct"].mean(), 1)
        assert answers["id"].is_unique


def test_the_ledgers_rows_on_the_users_data_are_those_scores(own):
    rows, results = table(own[1], "85_own_rows"), Results(real=own[1] / "results")
    assert set(rows["paper"] + "." + rows["table"]) == {
        "contour.T1", "dualbox.T1", *(f"med3dvlm.T{n}" for n in (2, 3, 4, 6, 7, 8))
    }  # fmt: skip
    mean = rows[(rows["table"] == "T4") & (rows["condition"] == "question type Mean")]
    kinds = rows[(rows["table"] == "T4") & (rows["condition"] != "question type Mean")]
    assert mean["ours"].item() == pytest.approx(kinds["ours"].mean())
    assert set(rows["arm"]) == set(sources.load(own[0]).arms)
    score = RealScore("m3d-none-released", kinds=("plane",))
    plane = rows[(rows["arm"] == score.arm) & (rows["condition"] == "question type Plane")]
    accuracy = plane[plane["column"] == "accuracy"]["ours"].item()
    assert results.measure_real(score).value == pytest.approx(accuracy)
    written = pd.read_csv(own[1] / "ledger.csv")
    filled = written[written["kind"].eq("data") & written["ours"].notna()]
    assert len(filled) == len(rows)
    assert filled["why"].str.contains("otherwise than the paper says (variant, size_dhw_vox", regex=False).all()


def test_bert_scores_are_stored_beside_the_answers_and_averaged(own):
    home = own[1] / "results" / "m3d-none-released"
    stored, answers = real_arms.read_bert_score(home), real_arms.read(home)
    open_ones = answers[answers["form"] == "open"]
    assert set(stored.index) == set(open_ones["id"]) and stored.between(-100, 100).all()
    said = open_ones.iloc[0]
    alone = bert_scores([said["answer"]], [[said["truth"]]], sources.load(own[0]).bert_score, layers=2)
    assert stored[said["id"]] == pytest.approx(alone[0, 2], abs=1e-3)
    rows = table(own[1], "85_own_rows")
    reports = rows[(rows["arm"] == home.name) & (rows["column"] == "BERTScore") & (rows["table"] == "T2")]
    of_reports = stored[open_ones.loc[open_ones["kind"] == "report", "id"]]
    assert reports["ours"].item() == pytest.approx(of_reports.mean())


def test_a_model_for_bert_score_that_cannot_be_had_is_told_before_anything_is_trained(tmp_path, own, monkeypatch):
    given = replace(sources.load(own[0]), bert_score=str(tmp_path))
    monkeypatch.setattr(real_arms, "_trained", lambda *_: pytest.fail("trained"))
    with pytest.raises(BadInput, match="can't be had .*to leave it out"):
        real_arms.run("radgenome-none-0.5B", given, home=tmp_path, progress=False)


def test_without_a_model_for_bert_score_its_numbers_stay_empty(own, tmp_path):
    answers = real_arms.read(own[1] / "results" / "m3d-none-released")
    assert real_arms.bert_score_of(answers, sources.Sources(bert_score="")) is None
    assert real_arms.read_bert_score(tmp_path) is None


def test_a_second_run_trains_nothing_again(own, monkeypatch):
    monkeypatch.setattr(real_arms, "run", None)
    words = ("table", "med3dvlm.T4", "--profile", "paper", "--sources", str(own[0]), "--out", str(own[1].parent))
    assert command_line(*words) == 0


def test_seeds_and_conditions_ask_the_same_questions(own):
    asked = [set(real_arms.read(own[1] / "results" / name)["id"]) for name in sources.load(own[0]).arms[2:]]
    assert asked[0] == asked[1] == asked[2]


def test_no_patient_of_the_test_split_is_learnt_from(own):
    cohort = RealCohort.of("radgenome", sources.load(own[0]).radgenome)
    sides = [{record.patient for record in some} for some in cohort.records.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == helpers_own.PATIENTS


def test_a_dual_box_has_its_second_box_on_another_structure(own):
    cohort = RealCohort.of("radgenome", sources.load(own[0]).radgenome)
    record = next(r for r in cohort.records["test"] if r.region == "heart")
    drawing = cohort.drawing(record, "dual", load(cohort.folder / record.volume, check=False))
    assert drawing.target.any() and drawing.distractor.any() and not (drawing.target & drawing.distractor).any()
    assert cohort.drawing(record, "none", None).target is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("radgenome-outline-0.5B", "no arm of profile paper"),
        ("m3d-contour-7B", "M3D has no masks"),
        ("radgenome-box-released", "never saw a prompt"),
        ("m3d-none-70B", "DECODER 0.5B, 1.5B, 3B, 7B, released"),
    ],
)
def test_arms_that_there_are_not_are_told(name, sentence):
    with pytest.raises(BadInput, match=sentence):
        real_arms.arm_of(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[data]\nm3d = 'nowhere'", "no folder is there"),
        ("[data]\nlidc = 'x'", "has 'lidc'; it may have ct_rate"),
        ("[dta]\nm3d = 'x'", r"has a part \[dta\]"),
        ("[run]\narms = 'all'", "arms is 'all'; tuple is expected"),
        ("[run\n", "isn't TOML"),
        ("data = 3", "a table with some of"),
    ],
)
def test_a_sources_file_that_cannot_be_used_gets_a_sentence(tmp_path, text, sentence):
    (tmp_path / "sources.toml").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        sources.load(tmp_path / "sources.toml")


def test_without_a_sources_file_the_sentence_says_how_to_give_one(monkeypatch, tmp_path):
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    with pytest.raises(BadInput, match="--sources FILE"):
        sources.load()
    with pytest.raises(BadInput, match="can't read"):
        sources.load(tmp_path / "no.toml")


def test_a_copy_that_is_too_small_for_three_splits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(helpers_own, "PATIENTS", 2)
    with pytest.raises(BadInput, match="leave the split"):
        RealCohort.of("radgenome", helpers_own.make_radgenome(tmp_path))


def test_steps_follow_from_the_papers_epochs():
    given = sources.Sources()
    recipe = real_arms.recipe_of("radgenome-contour-3B", given, 1000)
    assert (recipe.projector_steps, recipe.lora_steps, recipe.lora_lr) == (3 * 250, 25 * 250, 1e-5)
    assert recipe.decoder == "Qwen/Qwen2.5-3B-Instruct" and recipe.rank == 16 and recipe.focal_gamma == 2
    recipe = real_arms.recipe_of("m3d-none-7B-2xMLP", given, 1000)
    assert (recipe.projector_steps, recipe.lora_steps, recipe.projector) == (3 * 63, 5 * 125, "mlp")
    assert (recipe.pictures_of("projector"), recipe.pictures, recipe.projector_yes_no) == (16, 8, False)
    fewer = real_arms.recipe_of("m3d-none-7B", sources.Sources(finetuning={"pictures": 4}), 1000)
    assert (fewer.pictures_of("projector"), fewer.projector_steps) == (4, 3 * 250)


def test_each_condition_is_trained_as_its_paper_says():
    def recipe(name):
        return real_arms.recipe_of(name, sources.Sources(), 1000)

    contour, none, box, dual = (recipe(f"radgenome-{one}-0.5B") for one in ("contour", "none", "box", "dual"))
    assert replace(none, condition="contour") == contour and replace(box, condition="dual") == dual
    assert (contour.weight_decay, contour.l2, contour.class_balanced, contour.train_norms) == (0.02, 1e-4, True, False)
    assert (dual.weight_decay, dual.l2, dual.class_balanced, dual.train_norms) == (0.01, 0, False, True)
    assert contour.focal_gamma == dual.focal_gamma == 2 and contour.lora_lr == dual.lora_lr == 2e-5
    for config in (contour, dual):
        (_, first), (_, second) = config.stages()
        assert first.warmup_share == 0.03 and round(second.warmup_share * second.steps) == 500
        assert second.lr_at(498) < second.lr_at(499) == second.lr_at(500) == second.lr
    assert all(stage.warmup_share == 0.03 for _, stage in recipe("m3d-none-7B").stages())
    shorter = real_arms.recipe_of("radgenome-dual-0.5B", sources.Sources(finetuning={"lora_steps": 100}), 1000)
    assert shorter.stages()[1][1].warmup_share == 1


def test_what_an_arm_leaves_out_of_its_paper_is_said():
    def said(name, **changes):
        given = sources.Sources(finetuning=changes)
        return real_arms.otherwise(real_arms.arm_of(name), given, real_arms.recipe_of(name, given, 8))

    contour, dual, none = (said(f"radgenome-{one}-0.5B") for one in ("contour", "dual", "none"))
    lacks = {"no distillation from the 7B model", "no head for closed questions", "no slice attention"}
    assert lacks <= set(contour) & set(none) and not lacks & set(dual)
    assert "distractors of the data set's masks instead of VISTA-3D's" in dual
    assert "contour's recipe beside dualbox's numbers too" in none and set(none) - set(contour) == {none[-1]}
    assert said("m3d-none-7B", lora_lr=1e-4) == ("lora_lr", "batches of pictures with several questions each")
    seen = said("radgenome-contour-0.5B", slice_attention="SSA", head_answers=["Yes", "No"])
    assert set(contour) - set(seen) == lacks - {"no distillation from the 7B model"}


@pytest.mark.parametrize("name", ["patients", "regions", "kinds", "blind"])
def test_what_arms_on_real_data_do_not_read_is_refused(name):
    with pytest.raises(BadInput, match=f"don't read {name} of"):
        real_arms.recipe_of("radgenome-none-0.5B", sources.Sources(finetuning={name: 1}), 8)


def test_every_command_of_real_data_names_an_arm_that_there_is():
    for one in filter(None, map(real_places.quantity, published.load())):
        if isinstance(one, Staged):
            assert uvlm_real.arm_of(one.arm)
        else:
            assert one.arm in {**ARMS, **ALIGNED} if not isinstance(one, RealScore) else real_arms.arm_of(one.arm)
