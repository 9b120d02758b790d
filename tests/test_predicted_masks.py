"""Prompts from predicted masks: a perfect model changes no answer, a blank one draws nothing, and all that is told."""

import json
import zlib
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_questions import _asked, _patients
from torch import nn

from ctvlm_lib import checkpoints
from ctvlm_lib.alignment.scans import Scans, as_input
from ctvlm_lib.encoder.unet import unet
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.choice import score_closed
from ctvlm_lib.experiments import answers, asked, pointing, predicted_prompts, uvlm, uvlm_arms, uvlm_protocol
from ctvlm_lib.experiments.answers import AS_ASKED
from ctvlm_lib.experiments.cohort import Cohort
from ctvlm_lib.experiments.controls import REMOVED
from ctvlm_lib.experiments.predicted_masks import dice_by_region, regions_of, with_predicted
from ctvlm_lib.experiments.predicted_prompts import PREDICTED, PROMPTS, Readers, ask_with, loss_table, read_masks, run
from ctvlm_lib.ledger import verify
from ctvlm_lib.ledger.record_checks import Under
from ctvlm_lib.mask import dice, largest_component
from ctvlm_lib.records.committed import as_it_stands
from ctvlm_lib.records.phantom import REGIONS
from ctvlm_lib.segment.class_maps import ClassMap, phantom_target
from ctvlm_lib.segment.unet_training import lesion_voxels
from ctvlm_lib.vlm.packed import offered

FINE = ClassMap.of("phantom", "F+L")
PATIENTS, FEW = _patients()[60:68], 4
LIVER = FINE.names.index("liver")


class Known(nn.Module):
    """A U-Net that knows the targets of the volumes that it is shown."""

    def __init__(self, scans: Scans, target: np.ndarray):
        super().__init__()
        self.config, self.anything = SimpleNamespace(classes=FINE.names), nn.Parameter(torch.zeros(1))
        targets = torch.from_numpy(target)
        self.target = {as_input(hu).tobytes(): one for hu, one in zip(scans.hu, targets, strict=True)}

    def forward(self, volume):
        targets = torch.stack([self.target[one[0].numpy().tobytes()] for one in volume])
        return [(targets[:, None] == torch.arange(len(FINE.names), dtype=torch.uint8)[:, None, None, None]).float()]


class Guesser:
    """Chooses by a hash of the picture and the question: any other picture is likely to change the answer."""

    channels = 3

    def answer(self, pictures, questions, condition):
        seen = [zlib.crc32(np.ascontiguousarray(picture)) for picture in pictures]
        return [[self._choice(one, r) for r in some] for one, some in zip(seen, questions, strict=True)]

    def _choice(self, picture, record):
        number = zlib.crc32(f"{picture} {record.id}".encode())
        return offered(record)[number % len(offered(record))], number / 2**32


@pytest.fixture(scope="module")
def true() -> Scans:
    return Scans.of(PATIENTS)


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    return np.stack([phantom_target(patient, "F+L") for patient in PATIENTS])


@pytest.fixture(scope="module")
def perfect(true, target) -> Known:
    return Known(true, target)


@pytest.fixture(scope="module")
def blank(true, target) -> Known:
    return Known(true, np.zeros_like(target))


@pytest.fixture(scope="module")
def no_liver(true, target) -> Known:
    """Finds everything but the liver and what lies in it; large in the middle of the body, so no neighbour's lesion."""
    pairs = zip(true.region, target, strict=True)
    lost = np.stack([np.where(one == REGIONS.index("liver") + 1, 0, t) for one, t in pairs])
    return Known(true, lost)


@pytest.fixture(scope="module")
def records(true):
    names = set(true.names[:FEW])
    return [r for r in _asked() if r.patient in names and r.form == "closed" and r.kind in pointing.ANSWERS]


def by_control(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: part.set_index("id") for name, part in table.groupby("control")}


# masks


@pytest.mark.parametrize("granularity", ["C", "C+L"])
def test_coarse_classes_cannot_tell_the_regions_apart(true, granularity):
    classes = ClassMap.of("phantom", granularity)
    with pytest.raises(BadInput, match="no class for left lung upper lobe.*left kidney, right kidney"):
        with_predicted(true, unet(classes.names, "phantom", seed=0), classes)


def test_the_fine_classes_have_one_for_each_region():
    assert set(REGIONS) <= set(FINE.names)


def test_a_perfect_model_gives_the_true_regions_back_with_their_lesions(true, target, perfect):
    assert sum(f.kind == "pleural effusion" for p in PATIENTS for f in p.findings) > 0  # in no region
    lesions = [FINE.names.index(name) for name in FINE.lesions]
    assert np.any(np.isin(target, lesions) & (true.region > 0))
    assert np.array_equal(with_predicted(true, perfect, FINE, largest=False).region, true.region)


def test_of_each_region_the_largest_part_is_kept(true, perfect):
    found, apart = with_predicted(true, perfect, FINE).region, 0
    for one, whole in zip(found, true.region, strict=True):
        for k in range(1, len(REGIONS) + 1):
            assert np.array_equal(one == k, largest_component(whole == k))
            apart += (one == k).sum() < (whole == k).sum()
    assert apart > 0


def test_everything_but_the_regions_stays(true, blank):
    found = with_predicted(true, blank, FINE)
    assert not found.region.any()
    assert all(getattr(found, f.name) is getattr(true, f.name) for f in fields(Scans) if f.name != "region")


def test_a_lesion_is_its_neighbours_and_fluid_in_the_pleura_nobodys():
    spleen, cyst, fluid = (FINE.names.index(name) for name in ("spleen", "cyst", "pleural effusion"))
    found = np.zeros((3, 4, 14), np.uint8)
    found[:, :, :4], found[:, :, 8:12] = LIVER, spleen
    found[1, 1, 1:3], found[1, 2, 7], found[:, :, 12] = cyst, cyst, fluid
    made = regions_of(found, FINE)
    assert (made == REGIONS.index("liver") + 1).sum() == 3 * 4 * 4
    assert (made == REGIONS.index("spleen") + 1).sum() == 3 * 4 * 4 + 1
    assert not made[:, :, 12].any()


def test_lesions_are_shared_out_as_stage_1_counts_them():
    rng = np.random.default_rng(0)
    found = rng.integers(0, len(FINE.names), (6, 9, 11)).astype(np.uint8)
    found[found == FINE.names.index("pleural effusion")] = 0
    made = regions_of(found, FINE, largest=False)
    own = [(found == FINE.names.index(region)).sum() for region in REGIONS]
    more = np.bincount(made.ravel(), minlength=len(REGIONS) + 1)[1:] - own
    assert more.tolist() == lesion_voxels(found, FINE, REGIONS).tolist() and more.sum() > 0


def test_a_map_that_is_not_the_models_is_refused(true):
    with pytest.raises(BadInput, match="give the map that it was trained with"):
        with_predicted(true, unet(("background", "liver"), "phantom", seed=0), FINE)


def test_dice_is_the_masks_and_what_was_missed_counts_as_nothing(true, no_liver):
    found = with_predicted(true, no_liver, FINE)
    table = dice_by_region(found, true).set_index("region")
    for k, region in enumerate(REGIONS, 1):
        there = [i for i in range(len(true)) if (true.region[i] == k).any()]
        plain = [dice(found.region[i] == k, true.region[i] == k) for i in there]
        assert table.loc[region, "patients"] == len(there)
        assert table.loc[region, "Dice"] == pytest.approx(100 * np.mean(plain))
        assert table.loc[region, "missed"] == (len(there) if region == "liver" else 0)
    assert table.loc["liver", "Dice"] == 0 and (table["Dice"].drop("liver") > 95).all()


def test_dice_of_other_patients_is_refused(true):
    with pytest.raises(BadInput, match="of other patients"):
        dice_by_region(replace(true, names=true.names[::-1]), true)


# answers


@pytest.mark.parametrize(
    ("condition", "largest"), [("contour", True), ("contour", False), ("box", False), ("dual", False)]
)
def test_a_perfect_model_changes_no_answer(true, perfect, records, condition, largest):
    found = with_predicted(true, perfect, FINE, largest=largest)
    said = by_control(ask_with(Guesser(), records, true, found, condition))
    pd.testing.assert_frame_equal(said[AS_ASKED].drop(columns="control"), said[PREDICTED].drop(columns="control"))
    assert (said[AS_ASKED]["answer"] != said[REMOVED]["answer"]).mean() > 0.2  # what is drawn does matter


@pytest.mark.parametrize("condition", PROMPTS)
def test_a_model_that_finds_nothing_draws_nothing(true, blank, records, condition):
    table = ask_with(Guesser(), records, true, with_predicted(true, blank, FINE), condition)
    said = by_control(table)
    assert {name: len(part) for name, part in said.items()} == dict.fromkeys(said, len(records))
    assert said[PREDICTED]["answer"].equals(said[REMOVED]["answer"]) and set(said[PREDICTED]["marked"]) == {""}
    lost = loss_table(table).set_index(["masks", "stratum"])
    assert (lost.loc["predicted", "not drawn"] == 1).all() and (lost.loc["true", "not drawn"] == 0).all()
    pd.testing.assert_frame_equal(lost.loc["predicted"], lost.loc["no prompt"])


def test_only_a_region_that_was_missed_is_asked_about_without_a_prompt(true, no_liver, records):
    table = ask_with(Guesser(), records, true, with_predicted(true, no_liver, FINE, largest=False), "contour")
    said = by_control(table)
    liver = said[AS_ASKED]["region"] == "liver"
    assert 0 < liver.sum() < len(liver)
    assert said[PREDICTED]["answer"].equals(said[REMOVED]["answer"].where(liver, said[AS_ASKED]["answer"]))
    assert ((said[PREDICTED]["marked"] == "") == liver).all()
    lost = loss_table(table)
    for stratum, part in said[PREDICTED].groupby("stratum"):
        row = lost[(lost["masks"] == "predicted") & (lost["stratum"] == stratum)].iloc[0]
        assert row["not drawn"] == pytest.approx((part["region"] == "liver").mean())


def test_the_loss_is_the_difference_of_accuracies(true, no_liver, records):
    found = with_predicted(true, no_liver, FINE)
    table = pd.concat([ask_with(Guesser(), records, true, found, condition) for condition in ("contour", "box")])
    right = score_closed(table).groupby(["condition", "stratum", "control"])["correct"].mean()
    lost = loss_table(table).set_index(["condition", "stratum", "masks"])
    assert len(lost) == len(right) == 2 * 2 * 3
    for (condition, stratum, masks), row in lost.iterrows():
        control = {"true": AS_ASKED, "predicted": PREDICTED, "no prompt": REMOVED}[masks]
        assert row["accuracy"] == pytest.approx(right[condition, stratum, control])
        if masks != "true":
            assert row["less than true"] == pytest.approx(row["accuracy"] - right[condition, stratum, AS_ASKED])
            assert row["from"] <= row["less than true"] <= row["to"] and 0 < row["p"] <= 1
    assert lost.xs("true", level="masks")["less than true"].isna().all()


def test_bad_input_gets_a_sentence(true, perfect, records):
    some = replace(true, names=tuple(f"other {name}" for name in true.names))
    with pytest.raises(BadInput, match="draws no prompt; choose one of contour, box, dual"):
        ask_with(Guesser(), records, true, true, "none")
    with pytest.raises(BadInput, match="whose masks weren't predicted"):
        ask_with(Guesser(), records, true, some, "contour")
    table = ask_with(Guesser(), records, true, true, "contour")
    with pytest.raises(BadInput, match="there are no answers 'removed' under 'contour'"):
        loss_table(table[table["control"] != REMOVED])


# the experiment


@pytest.fixture(scope="module")
def home(tmp_path_factory, true):
    """A stored experiment with a U-Net of random weights, seed 1; nothing is kept, so nothing need be committed."""
    folder, arm = tmp_path_factory.mktemp("prompts"), uvlm_arms.ARMS["uvlm-seg-FL"]
    record = {"arm": asdict(arm), "settings": uvlm_arms.settings_of(arm, 1), "seed": 1}
    uvlm.save(folder / "checkpoints" / "uvlm-seg-FL-seed1", uvlm.build(arm, 1), arm, record)
    those = [record for record in _asked() if record.patient in true.names]
    cohort = Cohort("quick", {"test": true}, {"test": those}, {"test": PATIENTS})
    for split in ("validation", "test"):
        asked.save(asked.Asked.of(those, true), asked.path_of(split, folder / "results"))
    readers = Readers(dict.fromkeys(PROMPTS, Guesser()), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted_prompts, "check_committed", as_it_stands)
        run(1, cohort=cohort, asked=readers, patients=FEW, checkpoint_folder=folder / "checkpoints",
            results=folder / "results")  # fmt: skip
    return folder


def checked(home) -> verify.Folder:
    results = home / "results"
    return verify.check(
        results / "prompts-predicted-seed1", verify.Against.of(results, Under.of(), home / "checkpoints")
    )


def test_what_is_stored_is_read_back_and_small(home, true, records):
    folder = home / "results" / "prompts-predicted-seed1"
    table = answers.load(folder / "test.npz", asked.load(asked.path_of("test", home / "results")))
    assert len(table) == len(PROMPTS) * 3 * len(records) and set(table["seed"]) == {1}
    model = uvlm.read("uvlm-seg-FL-seed1", home / "checkpoints")
    first = Scans.of(PATIENTS[:FEW])
    found = with_predicted(first, model, FINE, tuple(uvlm_protocol.load()["segmentation"]["patch"]))
    again = ask_with(Guesser(), records, first, found, "box", seed=1)
    same = table[table["condition"] == "box"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same.drop(columns="confidence"), again.drop(columns="confidence"), check_dtype=False)
    pd.testing.assert_frame_equal(read_masks(folder, true.names), dice_by_region(found, first), atol=0.1)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000


def test_it_is_checked_as_other_results_are(home):
    found = checked(home)
    assert found.problems == []
    assert "with true, predicted and no masks; Dice of 10 regions" in found.holds
    assert "test,contour,predicted mask,closed," in found.table


def test_masks_of_another_network_are_told(home):
    path = home / "results" / "prompts-predicted-seed1" / "record.json"
    before = path.read_text()
    record = json.loads(before)
    assert record["made_with"] == {"uvlm-seg-FL-seed1": checkpoints.record("uvlm-seg-FL-seed1", home / "checkpoints")
                                   ["weights"]["sha256"]}  # fmt: skip
    path.write_text(json.dumps(record | {"made_with": {"uvlm-seg-FL-seed1": "0" * 64}}))
    assert any("other weights than checkpoints/uvlm-seg-FL-seed1" in text for text in checked(home).problems)
    path.write_text(before)


def test_the_shipped_readers_are_those_that_were_trained_with_each_prompt():
    readers = predicted_prompts.language_models()
    assert tuple(readers.readers) == PROMPTS
    for condition in PROMPTS:
        name = f"vlm-B-{condition}-small"
        assert readers.made_with[name] == checkpoints.record(name)["weights"]["sha256"]
        assert checkpoints.record(name)["finetuning"]["condition"] == condition
