"""Local–global arms in miniature: trained, stored, read, asked and put into tables as the full ones are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctvlm_lib.alignment.enrichment import region_statement
from ctvlm_lib.alignment.grounded import GROUPS, LOCAL_LABELS, Grounded, cropped
from ctvlm_lib.alignment.local_global import PARTS
from ctvlm_lib.alignment.local_global_training import Objective, Recipe, build, fit, tokens_of
from ctvlm_lib.alignment.scans import as_input
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import local_global as arms
from ctvlm_lib.experiments.local_global_tables import Store, measures_of, read_table, region_detections, scores, table
from ctvlm_lib.ledger import local_global as in_ledger
from ctvlm_lib.ledger import published
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.records.report import LABELS
from ctvlm_lib.training import Step, Training

FEW = {"train": 24, "validation": 12, "test": 14, "external": 8}
SHORT = {"steps": 3, "batch": 8, "bank": 100}


@pytest.fixture(scope="module")
def world():
    return arms.World("quick", FEW)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    home = tmp_path_factory.mktemp("arms")
    for name, seed in (("align-full", 0), ("align-full", 1), ("align-global", 0)):
        arms.run(name, seed, world, changes=SHORT, checkpoint_folder=home / "checkpoints", results=home / "results",
                 progress=False)  # fmt: skip
    arms.store_truth(world, home / "results")
    return home


def test_patients_come_with_sentences_labels_and_places(world):
    cohort = world.split("validation").cohort
    assert len(cohort) == FEW["validation"] and cohort.labels.shape == (12, len(LABELS))
    truth = cohort.region_labels
    for k, (region, kind) in enumerate(LOCAL_LABELS):
        r = REGIONS.index(region)
        for n in np.flatnonzero(cohort.there[:, r]):
            said = region_statement(cohort.sentences[n][r], region)
            assert truth[n, k] == (f"{kind} in the {region}" in said and not said.startswith("There is no"))


def test_a_region_is_cut_out_and_centred(world):
    cohort = world.split("validation").cohort
    r, n = REGIONS.index("left kidney"), 0
    picture = cropped(cohort, n, r)
    assert picture.shape == (1, 32, 64, 64) and picture.dtype == np.float32
    inside = cohort.scans.region[n] == r + 1
    corner = [w.min() for w in np.nonzero(inside)]
    sides = [w.max() + 1 - w.min() for w in np.nonzero(inside)]
    middle = tuple(slice((s - w) // 2, (s - w) // 2 + w) for s, w in zip((32, 64, 64), sides, strict=True))
    box = tuple(slice(c, c + w) for c, w in zip(corner, sides, strict=True))
    assert np.array_equal(picture[0][middle], as_input(cohort.scans.hu[n][box]))
    picture[0][middle] = -1
    assert (picture == -1).all()


def test_the_loss_has_the_recipe_s_parts_and_the_bank_fills(world):
    split, recipe = world.split("train"), Recipe(bank=200, batch=8)
    model = build(recipe, split.texts.report.shape[1])
    model.pairing.centre_on(split.texts.all())
    there = torch.from_numpy(split.cohort.there)
    objective = Objective(recipe, split.pictures, tokens_of(split.cohort, model.encoder, recipe), there, split.texts)
    parts = objective(model, Step(0, 0))
    assert tuple(parts) == PARTS and len(model.bank) == 8 + int(there[drawn(8, 24)].sum())
    objective(model, Step(1, 0))
    assert objective.looked_up[0] == (0, 8) and sum(asked for _, asked in objective.looked_up) > 160
    sum(parts.values()).backward()
    assert all(p.grad is not None for p in model.encoder.blocks[-1].parameters())
    assert model.pairing.log_temperature.grad is not None


def drawn(size: int, of: int) -> np.ndarray:
    return Step(0, 0).rng("batch").choice(of, size, replace=False)


def test_the_bank_holds_detached_texts_so_enriched_ones_train_the_image_alone(world):
    split, recipe = world.split("train"), Recipe(("global semantic",), bank=200, batch=8)
    model = build(recipe, split.texts.report.shape[1])
    masks, there = tokens_of(split.cohort, model.encoder, recipe), torch.from_numpy(split.cohort.there)
    sum(Objective(recipe, split.pictures, masks, there, split.texts)(model, Step(0, 0)).values()).backward()
    assert model.pairing.text.weight.grad is None and model.pairing.image.weight.grad is not None
    direct = Recipe(("global semantic",), bank=0, batch=8)
    model = build(direct, split.texts.report.shape[1])
    sum(Objective(direct, split.pictures, masks, there, split.texts)(model, Step(0, 0)).values()).backward()
    assert model.bank is None and model.pairing.text.weight.grad.any()


def test_a_box_takes_at_least_the_mask_s_tokens(world):
    cohort = world.split("train").cohort
    encoder = build(Recipe(), 384).encoder
    mask, box = (tokens_of(cohort, encoder, Recipe(pooling=how)) for how in ("mask", "box"))
    assert (mask <= box).all() and box.sum() > 1.5 * mask.sum()


def test_training_goes_on_where_it_was_interrupted_bank_included(world, tmp_path):
    split = world.split("train")
    recipe = Recipe(bank=200, batch=8, training=Training(steps=4, lr=1e-3, checkpoint_every=2))
    whole, curve, _ = fit(recipe, split.cohort, split.texts, split.pictures, progress=False)

    class Stop(Exception):
        pass

    def halt(row):
        if row["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, split.cohort, split.texts, split.pictures, folder=tmp_path, on_step=halt, progress=False)
    again, resumed, _ = fit(recipe, split.cohort, split.texts, split.pictures, folder=tmp_path, progress=False)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in curve]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_is_stored_is_what_was_asked(world, trained):
    folder = trained / "results" / "align-global"
    assert sorted(path.name for path in folder.iterdir()) == [
        "external.npz", "record.json", "test.npz", "validation.npz",
    ]  # fmt: skip
    model, record = arms.read(trained / "checkpoints" / "align-global")
    recipe = arms.recipe_of("align-global", 0, SHORT)
    assert record["recipe"]["parts"] == ["global"] and record["recipe"]["training"]["steps"] == 3
    again = arms.ask(model, world.split("test"), world.prompts, recipe, world.stem)
    stored = arms.Said.load(folder / "test.npz")
    for name, value in vars(stored).items():
        assert np.allclose(getattr(again, name), value, atol=1.1e-3, equal_nan=True), name
    assert stored.cut_out.shape == (2, 14, 50) and stored.volume.shape == (2, 14, 18)


def test_places_are_counted_as_a_plain_loop_counts(world, trained):
    """Report and sentence retrieval against sorting by hand."""
    model, _ = arms.read(trained / "checkpoints" / "align-full")
    split, recipe = world.split("test"), arms.recipe_of("align-full", 0, SHORT)
    said = arms.ask(model, split, world.prompts, recipe)
    with torch.inference_mode():
        volume, region = model.images(split.pictures.float(), tokens_of(split.cohort, model.encoder, recipe))
        reports, sentences = (model.pairing.texts(t) for t in (split.texts.report, split.texts.region))
    for n in range(5):
        order = torch.argsort(volume[n] @ reports.T, descending=True).tolist()
        texts = split.cohort.scans.reports
        assert said.report[0, n] == next(k for k, m in enumerate(order) if texts[m] == texts[n])
    gallery = {}
    for n, row in enumerate(split.cohort.sentences):
        for r, text in enumerate(row):
            if text != "-":
                gallery.setdefault(text, sentences[n, r])
    n, r = 2, 5
    alike = {text: float(region[n, r] @ vector) for text, vector in gallery.items()}
    own = alike[split.cohort.sentences[n][r]]
    assert said.sentence[n, r] == pytest.approx(sum(value > own for value in alike.values()), abs=0.5)


def test_tables_follow_from_the_stored_scores(trained):
    store = Store((trained / "results",))
    assert store.arms() == {"align-full": (0, 1), "align-global": (0,)}
    found = store.scores("align-full", 0)
    assert set(found) >= {"global AUROC", "local precision", "R@5", "grounding top-50"}
    said, truth = store.said("align-full", 0, "test"), store.truth("test")
    assert found["R@10"].value == pytest.approx(np.mean(np.clip(10 - said.report[0], 0, 1)))
    assert list(region_detections(said, truth)) == [f"{place} {kind}" for place, kind in GROUPS]
    shown = table(store, ("align-global", "align-full", "align-local"), ("R@10", "global AUROC"))
    assert shown["arm"].tolist() == ["global", "full"] and shown["seeds"].tolist() == [1, 2]
    every = measures_of(store, "align-global", 0)
    assert set(every["reading"]) == {"mask pooled", "cut out"} and set(every["split"]) == {"test", "external"}
    assert (every["low"] <= every["high"]).all()
    with pytest.raises(BadInput, match="wasn't asked about regions cut out"):
        scores(said, truth, said, truth, "cut out")


def test_the_ledger_takes_its_numbers_from_the_table_and_notices_a_change(trained):
    folder = trained / "results" / "align-full"
    text = in_ledger.table_text(folder)
    (folder / "table.csv").write_text(text, encoding="utf-8")
    cells = published.table("medvista3d.T4")
    cell = next(c for c in cells if c.row.startswith("+ Local Semantic") and c.column == "R@50")
    found = in_ledger.interval(read_table(folder), in_ledger.quantity(cell))
    expected = Store((folder.parent,)).scores("align-full", 0)["grounding top-50"].value
    assert found.value == pytest.approx(100 * expected, abs=1e-3)
    assert in_ledger.compare(text, text) == []
    first = next(line for line in text.splitlines() if "global AUROC" in line)
    changed = first.split(",")
    changed[6] = str(float(changed[6]) + 0.01)
    told = in_ledger.compare(text.replace(first, ",".join(changed)), text)
    assert len(told) == 1 and told[0].startswith("test.npz: value of test mask pooled affirmed global AUROC is")
    (folder / "table.csv").unlink()


def test_contrasts_are_judged_over_all_primary_ones(trained):
    said = in_ledger.verdicts(Store((trained / "results",)))
    listed = in_ledger.listed_contrasts()
    assert said["name"].tolist() == [one.name for one in listed]
    there = said[said["seeds"].notna()]
    assert set(there["left"]) == {"full"} and set(there["right"]) == {"global"} and (there["seeds"] == 1).all()
    assert set(there["verdict"]) == {"1 of 3 seeds"}
    assert (said["verdict"] == "not measured yet").sum() == len(listed) - len(there)
    quick = in_ledger.verdicts(Store((trained / "results",)), "quick")
    assert set(quick.loc[quick["seeds"].notna(), "verdict"]) == {"no verdict"}


def test_every_published_cell_that_we_train_for_has_an_arm():
    cells = [c for name in ("T1", "T2", "T4", "T5") for c in published.table(f"medvista3d.{name}")]
    found = {in_ledger.quantity(cell) for cell in cells} - {None}
    assert {one.arm for one in found} == {
        "align-global", "align-local", "align-box", "align-unified", "align-global-semantic", "align-full",
        "align-full-block1", "align-full-block2",
    }  # fmt: skip
    assert {one.arm for one in found} <= set(arms.ARMS)


def test_records_say_what_was_run(trained):
    record = json.loads((trained / "results" / "align-full-seed1" / "record.json").read_text(encoding="utf-8"))
    assert record["seed"] == 1 and record["recipe"]["bank"] == 100 and 0 <= record["own_text_share"] <= 1
    assert in_ledger.problems(record, 1) == []
    without_a_bank = (trained / "results" / "align-global" / "record.json").read_text(encoding="utf-8")
    assert "own_text_share" not in without_a_bank and "NaN" not in without_a_bank
    assert in_ledger.problems(record | {"seed": 0}, 1) == ["record.json: its seed is 0, and the folder's name says 1"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Recipe(bank=100), "a bank of 100 is smaller than what one batch pushes"),
        (lambda: Recipe(("regional",)), "parts are any of"),
        (lambda: Recipe(pooling="sphere"), "pooling is 'sphere'"),
        (lambda: arms.recipe_of("align-everything"), "no arm is called 'align-everything'"),
        (lambda: arms.recipe_of("align-full", 0, {"depth": 3}), "no setting 'depth'"),
        (lambda: Grounded.of([]), "no patients"),
        (lambda: arms.read("A"), "isn't of a local–global arm"),
    ],
)
def test_what_does_not_fit_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()


def test_a_region_outside_the_field_and_a_small_cohort_are_told(world):
    split = world.split("train")
    with pytest.raises(BadInput, match="larger than the cohort"):
        fit(Recipe(batch=32), split.cohort, split.texts, split.pictures, progress=False)
    for wrong in (-1, 5000):
        with pytest.raises(BadInput, match=f"{wrong} patients to learn from, but there are {len(split.pictures)}"):
            fit(Recipe(patients=wrong), split.cohort, split.texts, split.pictures, progress=False)
    liver, region = REGIONS.index("liver"), split.cohort.scans.region.copy()
    region[0][region[0] == liver + 1] = 0
    lost = replace(split.cohort, scans=replace(split.cohort.scans, region=region))
    with pytest.raises(BadInput, match=r"the liver of .* isn't in the field; leave it out"):
        cropped(lost, 0, liver)


def test_equal_sentences_have_equal_numbers(world):
    split = world.split("train")
    same, vectors = split.texts.same_region, split.texts.enriched_region
    first = same == same[0, 0]
    assert torch.equal(vectors[first], vectors[0, 0].expand_as(vectors[first])) and not first.all()
    assert not (vectors[~first] == vectors[0, 0]).all(dim=-1).any()
