"""A notebook's run: what it checks, prints and writes. No kernel is started here."""

import io
import json
import random
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ctvlm_lib import figure_file
from ctvlm_lib import run as run_module
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import environment_record, find_device, run_folder, start


@pytest.fixture
def run(tmp_path):
    return start("30_visual_prompts", "quick", 3, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("30_x", "quik"), "unknown profile 'quik'; choose one of quick, full, paper"),
        (("visual_prompts",), "expected its number and name"),
        (("30_x", "quick", -1), "seed is -1; expected a whole number"),
        (("30_x", "quick", "0"), "seed is '0'; expected a whole number"),
    ],
)
def test_start_refuses_what_it_cannot_use_in_one_sentence(arguments, message):
    with pytest.raises(BadInput, match=message):
        start(*arguments)


def test_the_seed_makes_a_run_repeatable(tmp_path):
    def drawn(seed):
        start("00_start", "quick", seed, str(tmp_path))
        return random.random(), np.random.random()

    assert drawn(5) == drawn(5) != drawn(6)


def test_torch_is_seeded_and_asked_for_the_device_when_it_comes(run):
    first = run.torch().rand(3)
    assert np.array_equal(first, run.torch().rand(3))
    assert run.why in ("no CUDA GPU found by torch", f"torch sees {run.why.removeprefix('torch sees ')}")


def test_what_start_prints_can_be_committed(tmp_path, capsys):
    start("30_visual_prompts", "quick", 3, str(tmp_path))
    printed = capsys.readouterr().out
    assert printed.startswith("30_visual_prompts · profile quick · seed 3\nctvlm ")
    assert str(tmp_path) not in printed and "/" not in printed.replace("NVIDIA/", "")
    assert len(printed.splitlines()) == 3


def test_the_reason_for_the_device_is_honest_about_what_was_looked_at(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(run_module.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for build, device, reason in [
        ("2.13.0+cpu", "cpu", "a build for CPU only"),
        (None, "cpu", "torch is not installed"),
        ("2.13.0", "cuda", "torch not asked yet"),
    ]:
        monkeypatch.setattr(run_module, "package_version", lambda name, build=build: build)
        assert find_device()[0] == device and reason in find_device()[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() == ("cpu", "CUDA_VISIBLE_DEVICES hides the GPU")


def test_the_output_folder_is_the_argument_else_the_variable_else_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("CTVLM_OUT", str(tmp_path / "variable"))
    assert run_folder("full", tmp_path / "argument") == tmp_path / "argument" / "full"
    assert run_folder("quick") == tmp_path / "variable" / "quick"
    monkeypatch.delenv("CTVLM_OUT")
    assert run_folder("quick") == run_module.PROJECT / "out" / "quick"


def test_a_table_is_written_as_given_and_returned(run):
    frame = pd.DataFrame({"structure": ["liver", "spleen"], "Dice": [0.951, 0.9]})
    assert run.table(frame, "dice", "Dice of two structures") is frame
    assert (run.folder / "tables" / "30_dice.csv").read_bytes() == b"structure,Dice\nliver,0.951\nspleen,0.9\n"
    run.table(frame.set_index("structure"), "by_name")
    assert (run.folder / "tables" / "30_by_name.csv").read_text().startswith("structure,Dice\nliver,")
    index = json.loads((run.folder / "figures" / "30_index.json").read_text())
    assert index["tables"]["dice"] == {"file": "tables/30_dice.csv", "caption": "Dice of two structures"}


@pytest.mark.parametrize("name", ["../escape", "a b", "", "x/y"])
def test_a_name_that_is_no_file_name_is_refused(run, name):
    with pytest.raises(BadInput, match="can't be a file name"):
        run.table(pd.DataFrame({"a": [1]}), name)


def test_a_path_stays_inside_the_run_folder(run):
    assert run.path("30/masks.npz").parent.is_dir()
    with pytest.raises(BadInput, match="leads out of the run's folder"):
        run.path("../../elsewhere.npz")


def test_an_output_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="can't make the folder"):
        start("30_x", "quick", 0, str(tmp_path / "file")).table(pd.DataFrame({"a": [1]}), "a")


def picture(seed: int = 0, noise: bool = False):
    """Draw a CT-like grey picture with a thin blue outline, or colour noise, the hardest thing to compress."""
    rng = np.random.default_rng(seed)
    figure, axes = plt.subplots(figsize=(7, 6))
    grey = rng.integers(0, 256, (300, 300)) if noise else np.add.outer(np.arange(300), np.arange(300)) * 255 / 600
    image = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if noise:
        image = rng.integers(0, 256, image.shape, dtype=np.uint8)
    else:
        image[100:103, 50:250] = (0, 0, 255)
    axes.imshow(image, interpolation="nearest")
    return figure


def test_a_figure_is_small_shown_in_the_report_and_closed(run):
    run.figure(picture(), "slice", "A slice with a blue line")
    entry = json.loads((run.folder / "figures" / "30_index.json").read_text())["figures"]["slice"]
    assert entry["caption"] == "A slice with a blue line"
    assert 1000 < (run.folder / entry["file"]).stat().st_size <= 40_000
    assert not plt.get_fignums()


def test_even_noise_is_at_most_40_kb_and_is_shown_at_its_full_width():
    figure = picture(noise=True)
    content, _, width = figure_file.encode(figure)
    plain = figure_file._draw(figure, figure_file.START_DPI).width
    plt.close(figure)
    assert len(content) <= 40_000
    assert Image.open(io.BytesIO(content)).width < width == plain


def test_compression_keeps_a_thin_coloured_outline():
    figure = picture()
    content, _, _ = figure_file.encode(figure)
    plt.close(figure)
    red, green, blue = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int).transpose(2, 0, 1)
    clearly_blue = (blue > 200) & (red < 60) & (green < 60)
    assert clearly_blue.sum() > 200  # the line is about 270 pixels long; subsampled chroma would grey it


def test_few_colours_become_a_lossless_png():
    figure, axes = plt.subplots(figsize=(4, 3))
    axes.imshow(np.eye(5), cmap="gray")
    content, suffix, _ = figure_file.encode(figure)
    drawn = figure_file._draw(figure, figure_file.START_DPI)
    plt.close(figure)
    assert suffix == "png"
    difference = np.abs(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int) - np.asarray(drawn))
    assert difference.max() <= 2  # anti-aliased letters have a few more greys than the palette


def test_uses_prints_the_manifests_hash_and_refuses_unknown_names(run, capsys):
    from ctvlm_lib import assets

    run.uses("chest_cta")
    stated = assets.manifest()["asset"]["chest_cta"]["members"][0]["sha256"]
    printed = capsys.readouterr().out
    assert f"data: chest_cta · ct.nii.gz sha256 {stated[:12]}… (Apache-2.0; totalsegmentator)" in printed
    with pytest.raises(BadInput, match="no asset is called 'chest_ct'"):
        run.uses("chest_ct")


def test_the_environment_record_says_what_is_needed_to_repeat_a_run(monkeypatch):
    record = environment_record()
    assert record["packages"]["numpy"] == np.__version__
    assert record["device"] in ("cpu", "cuda") and record["device_why"]
    assert len(record["manifest_sha256"]) == 64
    monkeypatch.setattr(run_module, "PROJECT", run_module.PROJECT / "no such folder")
    assert environment_record()["commit"] is None  # no git there
