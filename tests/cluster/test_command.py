"""`fedray run runtime=ray_local` as a command: what its process loads, its bits, its errors, how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).resolve().parents[2]
TOY = ("experiment=debug", "report=none", "data.scale=0.02", "evaluate.bins=50")
TELL = ("import json, sys; from fedray.cli import main; code = main(sys.argv[1:]); "
        "print(json.dumps([code, sorted({'torch', 'ray'} & set(sys.modules))]))")
SLOW = """\
import time
import torch

class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep(0.2)
        return super().forward(x)

def net(num_features):
    return Slow(num_features, 1)
"""
PATIENCE_S = 120.0


Done = subprocess.CompletedProcess


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def command(folder: Path, *words: str, script: tuple[str, ...] = ("-m", "fedray")) -> Done:
    return subprocess.run([sys.executable, *script, *words], cwd=folder, env=environment(), text=True,
                          capture_output=True, timeout=PATIENCE_S, check=False)


def started(folder: Path, *words: str) -> subprocess.Popen:
    """Start a run of slow rounds and return when its first round is told."""
    (folder / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "fedray", "run", *TOY, "runtime=ray_local", "rounds=200",
         "evaluate.every=1000", "model._target_=slow.net", "--allow", "slow", *words],
        cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("round"):
            return process
    raise AssertionError("".join(said))


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def running_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [process] if process.cwd() == str(folder) else []
    return found


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=60)[1]


def test_the_command_loads_neither_torch_nor_ray_and_trains_the_same_bits(tmp_path):
    here = command(tmp_path, "run", *TOY, "runtime=in_process", "runs_dir=here")
    there = command(tmp_path, "run", *TOY, "runtime=ray_local", "runs_dir=there", script=("-c", TELL))
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    assert json.loads(there.stdout.splitlines()[-1]) == [0, []], there.stderr
    models = [(tmp_path / name / "latest" / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert models[0] == models[1]
    kept = [[line for line in text.splitlines() if line.startswith(("test", "  "))]
            for text in (here.stdout, there.stdout)]
    assert kept[0] and kept[0] == kept[1]


def test_part_that_cannot_be_built_is_refused_as_in_process_and_leaves_nothing(tmp_path):
    (tmp_path / "wrong.py").write_text("def net(num_features):\n    raise ValueError('no such width')\n")
    words = ("run", *TOY, "model._target_=wrong.net", "--allow", "wrong")
    here = command(tmp_path, *words, "runtime=in_process")
    there = command(tmp_path, *words, "runtime=ray_local")
    assert (here.returncode, there.returncode) == (2, 2)
    assert there.stderr.splitlines()[1:] == here.stderr.splitlines() and "no such width" in here.stderr
    assert not (tmp_path / "runs").exists()
    assert not left_of(running_in(tmp_path))


def test_bad_site_is_refused_as_in_process_and_leaves_nothing(tmp_path):
    (tmp_path / "toy.yaml").write_text("name: toy\nversion: 1\noutcome: died\ncolumns:\n"
                                       "  age: {unit: years, low: 16, high: 90}\n  died: {kind: flag}\n")
    (tmp_path / "sites").mkdir()
    rows = "".join(f"{30 + 2 * row},{int(row % 3 == 0)}\n" for row in range(20))
    for site, header in (("east", "age,died"), ("west", "years,died")):
        (tmp_path / "sites" / f"{site}.csv").write_text(f"{header}\n{rows}")
    words = ("run", "experiment=none", "data=csv", "data.path=sites", "data.contract=toy.yaml",
             "model=logistic")
    here = command(tmp_path, *words, "runtime=in_process")
    there = command(tmp_path, *words, "runtime=ray_local")
    assert (here.returncode, there.returncode) == (2, 2)
    assert there.stderr.splitlines()[1:] == here.stderr.splitlines() and "west" in here.stderr
    assert not (tmp_path / "runs").exists()


def test_interrupt_ends_after_the_round_and_the_run_can_be_resumed(tmp_path):
    process = started(tmp_path)
    family = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "go on with: fedray resume runs/" in out
    run = tmp_path / "runs" / "latest"
    assert run.joinpath("STATUS").read_text().startswith("interrupted")
    done = len(run.joinpath("rounds.jsonl").read_text().splitlines())
    assert 1 <= done < 200 and not left_of(family)
    resumed = command(tmp_path, "resume", "runs/latest", f"rounds={done + 1}", "--allow", "slow")
    assert resumed.returncode == 0 and f"done: {done + 1} rounds" in resumed.stdout, resumed.stderr


def test_second_interrupt_stops_at_once(tmp_path):
    process = started(tmp_path, "local.epochs=20")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "stopped at once" in (tmp_path / "runs" / "latest" / "STATUS").read_text()


def test_killed_command_leaves_no_process(tmp_path):
    process = started(tmp_path)
    family = descendants(process.pid)
    assert len(family) > 5  # the aggregator, Ray's own, the packs
    process.kill()
    process.wait()
    assert not left_of(family)
    assert (tmp_path / "runs" / "latest" / "STATUS").read_text().startswith("interrupted")


def test_killed_aggregator_is_told_and_takes_its_packs_along(tmp_path):
    process = started(tmp_path)
    # two agents of Ray look for the Ray that was killed for a minute before they end
    family = [found for found in descendants(process.pid) if not found.cmdline()[0].endswith("Agent")]
    assert sum("HostActor" in found.cmdline()[0] for found in family) == 2
    os.kill(psutil.Process(process.pid).children()[0].pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "gone (exit code -9)" in out and "fedray resume" in out
    assert not left_of(family)
