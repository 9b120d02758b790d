"""``ctvlm arm vlm-…``: names, what may be changed, and where the answers go."""

import argparse

import pytest

from ctvlm_lib.arm_command import PATTERNS, add_arguments, command
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments import read_out, vlm_arms, vlm_run


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return command(parser.parse_args(list(words)))


def test_a_wrong_arm_is_told_before_a_cohort_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(vlm_run, "run", None)
    with pytest.raises(BadInput, match="vlm-B-contour-small"):
        run("vlm-B-circle-small", "--out", str(tmp_path))


@pytest.mark.parametrize("option", ["--batch", "--epochs"])
def test_what_an_arm_does_not_take_is_refused(option, tmp_path):
    with pytest.raises(BadInput, match=f"takes --seed, --patients and --steps, not {option}"):
        run("vlm-B-none-small", option, "3", "--out", str(tmp_path))


def test_changes_reach_the_recipe_and_the_folders_name(tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def instead(name, profile, seed, **options):
        seen.update(options, name=name, profile=profile, seed=seed)
        raise Stop

    monkeypatch.setattr(vlm_run, "run", instead)
    with pytest.raises(Stop):
        run("vlm-B-none-small", "--seed", "2", "--patients", "50", "--steps", "7", "--profile", "quick", "--out",
            str(tmp_path))  # fmt: skip
    assert (seen["name"], seen["profile"], seen["seed"]) == ("vlm-B-none-small", "quick", 2)
    assert seen["changes"] == {"patients": 50, "lora_steps": 7}
    assert seen["label"] == "vlm-B-none-small-patients50-steps7-seed2"
    assert seen["results"] == tmp_path / "quick" / "results"


def test_read_outs_take_a_seed_and_fewer_patients(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(read_out, "run", lambda name, profile, seed, **options: seen.update(options, seed=seed))
    assert run("readout-B-none", "--seed", "1", "--patients", "200", "--out", str(tmp_path)) == 0
    assert (seen["seed"], seen["patients"], seen["folder"].name) == (1, 200, "readout-B-none-patients200-seed1")
    with pytest.raises(BadInput, match="not --steps"):
        run("readout-B-none", "--steps", "3", "--out", str(tmp_path))
    with pytest.raises(BadInput, match="readout-A-none"):
        run("readout-C-none", "--out", str(tmp_path))


def test_the_list_names_the_arms_of_the_models(capsys):
    assert run() == 0
    assert "vlm-ENCODER-CONDITION-DECODER" in capsys.readouterr().out


def test_the_help_names_every_variant():
    said = PATTERNS.replace(",", " ").split()
    assert not {*vlm_arms.VARIANTS} - {*said, ""}
