"""The `fedray` command up to the point where something is trained: help, dispatch, completion, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedray
from fedray import cli, errors


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("words", [["--help"], ["run", "--cfg", "job"]])
def test_help_and_cfg_load_neither_torch_nor_ray(words):
    code = ("import sys; from fedray.cli import main; code = main(sys.argv[1:]); "
            "assert not {'torch', 'ray', 'pandas', 'numpy'} & set(sys.modules), 'heavy'; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr


def test_top_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    commands = ("run", "resume", "sweep", "status", "logs", "report", "diff", "clean", "data", "doctor",
                "completion")
    assert all(f"fedray {name}" in out for name in commands)


def test_version_is_printed(capsys):
    assert run(capsys, "--version") == (0, f"fedray {fedray.__version__}\n", "")


def test_unknown_command_suggests_the_nearest(capsys):
    code, _, err = run(capsys, "rnu")
    assert code == 2 and "fedray run" in err


def test_forgotten_run_is_suggested(capsys):
    code, _, err = run(capsys, "rounds=3")
    assert code == 2 and "fix: fedray run rounds=3" in err


def test_run_help_shows_groups_and_flags_without_internal_schemas(capsys):
    code, out, _ = run(capsys, "run", "--help")
    assert code == 0
    assert "experiment: " in out and "--explain" in out and "_schema" not in out and "Hydra" not in out


def test_cfg_prints_the_config_with_the_overrides(capsys):
    code, out, _ = run(capsys, "run", "algorithm=fedprox", "--cfg", "job", "algorithm.mu=0.5")
    assert code == 0 and "  mu: 0.5\n" in out


def test_cfg_with_a_wrong_override_says_what_run_would_say(capsys):
    code, out, err = run(capsys, "run", "--cfg", "job", "schedule.qorum=1")
    assert code == 2 and not out and "fix: schedule.quorum=1" in err


def test_explain_prints_value_origin_and_meaning(capsys):
    code, out, _ = run(capsys, "run", "--explain", "rounds")
    assert code == 0 and out.startswith("rounds = 20\n") and "set by" in out and "means" in out


@pytest.mark.parametrize(("line", "offered"), [
    ("fedray r", "run"), ("fedray run experiment=", "experiment=debug"),
    ("fedray run algorithm=fedp", "fedprox"),
    ("fedray run rounds=3 schedule.qu", "schedule.quorum="), ("fedray run ", "algorithm="),
    ("fedray sweep exp", "experiment="), ("fedray completion ", "zsh"),
    ("fedray logs runs/latest --", "--follow"), ("fedray sta", "status")])
def test_completion_works_below_a_subcommand(capsys, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, err = run(capsys, "-sc", "query=bash")
    assert code == 0 and not err
    assert any(offered in word or word.rstrip(".") + "=" == offered for word in out.split())
    assert "_schema" not in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_asks_this_command(capsys, shell):
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0 and "fedray -sc query=" in out


def test_completion_of_an_unknown_shell_is_bad_input(capsys):
    assert run(capsys, "completion", "ksh")[0] == 2


@pytest.mark.parametrize(("error", "code"), [
    (errors.ConfigError("x"), 2), (errors.DataError("x"), 2), (errors.MemoryForecastError("x"), 2),
    (errors.ScheduleError("x"), 2), (errors.QuorumError("x"), 3), (errors.HostError("x"), 1),
    (errors.CheckpointError("x"), 1), (KeyboardInterrupt(), 130)])
def test_exit_code_tells_who_has_to_act(error, code):
    assert cli.exit_code(error) == code


def test_every_error_has_a_heading_in_words():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, errors.FedrayError)]
    assert len(kinds) > 20 and not [kind for kind in kinds if kind.__name__ in kind.heading]
    assert len({kind.heading for kind in kinds}) >= len(kinds) - 3  # three say no more than their parents


def test_json_prints_the_problems_to_standard_output(capsys):
    code, out, err = run(capsys, "run", "--json", "rounds=0", "seed=-1")
    told = json.loads(out)
    assert code == told["exit_code"] == 2 and len(told["problems"]) == 2 and err


def test_long_list_of_problems_is_cut(capsys):
    code, _, err = run(capsys, "run", *(f"local.key{i}=1" for i in range(13)))  # two lines each
    assert code == 2 and len(err.splitlines()) <= 25 and "13 in all" in err


def test_resume_needs_a_run(capsys):
    code, _, err = run(capsys, "resume", "rounds=3")
    assert code == 2 and "fix: fedray resume runs/latest" in err


def test_script_starts_the_same_command():
    text = (Path(__file__).parents[2] / "experiments" / "run.py").read_text()
    assert "main([\"run\", *sys.argv[1:]])" in text and len(text.splitlines()) <= 10
