"""The ctvlm command: exit codes and sentences, quick help, and the doctor."""

import os
import subprocess
import sys

import pytest

from ctvlm_lib import __main__ as command_line
from ctvlm_lib import doctor, workbook
from ctvlm_lib.errors import BadInput
from ctvlm_lib.run import PROJECT


def ctvlm(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "ctvlm_lib", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--profile", "quik"], "ctvlm: unknown profile 'quik'; choose one of quick, full, paper\n"),
        (["run", "--profile", "paper"], "ctvlm: profile paper needs a file that says where your data"),
        (["run", "--sources", "a.toml"], "ctvlm: --sources belongs to --profile paper; give both, or neither\n"),
        (["table", "dualbox.T1", "--sources", "a.toml"], "ctvlm: --sources belongs to --profile paper; "),
        (["run", "--notebooks", "{empty}"], "ctvlm: no notebooks named like 00_name.ipynb in {empty}; "),
    ],
)
def test_what_the_user_can_correct_is_one_line_and_exit_code_2(arguments, sentence, tmp_path):
    done = ctvlm(*[argument.format(empty=tmp_path) for argument in arguments])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(sentence.format(empty=tmp_path)) and done.stderr.count("\n") == 1


def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "00_a.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    (tmp_path / "file").touch()
    done = ctvlm("run", "--notebooks", str(tmp_path), "--out", str(tmp_path / "file"))
    assert done.returncode == 2 and done.stderr.startswith("ctvlm: can't write into") and done.stderr.count("\n") == 1


def test_a_sentence_over_several_lines_is_printed_on_one(monkeypatch, capsys):
    def refuse(*_):
        raise BadInput("first\n   second")

    monkeypatch.setattr(workbook, "run", refuse)
    assert command_line.main(["run"]) == 2
    assert capsys.readouterr().err == "ctvlm: first second\n"


def test_ctrl_c_is_a_sentence_and_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workbook, "run", interrupted)
    assert command_line.main(["run"]) == 130
    assert "the same command continues from there" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet():
    command = f"'{sys.executable}' -u -m ctvlm_lib doctor | true"
    done = subprocess.run(command, shell=True, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.stderr == ""


def test_a_failed_run_passes_its_exit_code_on(monkeypatch):
    monkeypatch.setattr(workbook, "run", lambda *_: 1)
    assert command_line.main(["run"]) == 1


def test_help_does_not_import_the_heavy_packages():
    code = (
        "import sys; from ctvlm_lib.__main__ import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'monai', 'scipy', 'papermill', 'nbconvert', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert "--profile" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: ctvlm {name}" in capsys.readouterr().out


def test_only_one_commands_module_is_needed_for_it(monkeypatch):
    monkeypatch.setitem(command_line.COMMANDS, "app", ("ctvlm_lib.no_such_module", "nothing"))
    assert command_line.parser_for(["run", "--only", "30"]).parse_args(["run", "--only", "30"]).only == "30"


def test_doctor_says_ok_or_what_to_do(monkeypatch, tmp_path, capsys):
    versions = {"numpy": "1.26.0", "torchvision": "0.20.0", "papermill": None}
    real = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda name: versions.get(name, real(name)))
    assert command_line.main(["doctor", "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    attention = "\n".join(line for line in lines if line.startswith("attention"))
    assert "numpy 1.26.0 is not within" in attention
    assert "papermill is not installed; run `make run` again" in attention
    assert "torchvision 0.20.0 is installed and can break torch and peft; run `pip uninstall torchvision`" in attention
    assert any(line.startswith("ok         timm is absent") for line in lines)
    assert not list(tmp_path.iterdir())  # the trial of writing leaves nothing


def test_doctor_finds_an_output_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    usable, text = doctor._output_folder(tmp_path / "file")
    assert not usable and "choose another output path" in text


def test_doctor_leaves_a_folder_of_the_same_name_alone(tmp_path):
    (tmp_path / "doctor").mkdir()
    (tmp_path / "doctor" / "kept.txt").write_text("mine")
    assert doctor._output_folder(tmp_path)[0]
    assert [path.name for path in tmp_path.rglob("*")] == ["doctor", "kept.txt"]


def test_a_console_that_lacks_a_character_gets_a_question_mark(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = ctvlm("assets")
    assert done.returncode == 0 and "?" in done.stdout and not done.stderr


def test_a_path_that_the_system_refuses_is_one_line(monkeypatch, capsys):
    def refuse(args):
        raise OSError(36, "File name too long", "x" * 300)

    monkeypatch.setattr(doctor, "command", refuse)
    assert command_line.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"ctvlm: {'x' * 300}: File name too long; give another path\n"


def test_the_arm_command_lists_its_arms_and_refuses_others(capsys):
    from ctvlm_lib import cost
    from ctvlm_lib.alignment import arms
    from ctvlm_lib.experiments import chat_arms, local_global, predicted_prompts, probes, uvlm_arms

    assert command_line.main(["arm"]) == 0
    listed = capsys.readouterr().out.splitlines()
    single = [*arms.ARMS, *probes.PROBES, *local_global.ARMS, *chat_arms.ARMS, *uvlm_arms.ARMS, arms.FACTS,
              predicted_prompts.NAME, cost.ARM]  # fmt: skip
    assert [line.split()[0] for line in listed[: len(single)]] == single
    told = [line.split()[0] for line in listed[len(single) :] if not line.startswith(" ")]  # many, by their parts
    assert told == ["readout-ENCODER-CONDITION[-out-of-window],", "vlm-ENCODER-CONDITION-DECODER[-VARIANT],"]
    assert command_line.main(["arm", "C"]) == 2
    assert "no arm is called 'C'; there are: A1, A, " in capsys.readouterr().err
    assert command_line.main(["arm", "prompts-predicted", "--steps", "3"]) == 2
    assert "prompts-predicted takes --seed, not --steps; leave it out" in capsys.readouterr().err
    assert command_line.main(["arm", "retrieval-by-facts", "--steps", "3"]) == 2
    assert "retrieval-by-facts has no seed and no settings; give --profile and --out only" in capsys.readouterr().err
