"""A measured program is followed to its end: rounds, clocks, weights, and what it said when it failed."""

import sys
from pathlib import Path

import pytest
import running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sampler reads /proc")

BURN_S = 0.05  # CPU of a round, some ticks of 10 ms
PROGRAM = f"""
import time
from systems import reporting

def main():
    path, report, out = reporting.start(loads_torch=False)
    report.ask(hello=path)
    report.begin()
    for number in range(report.rounds):
        end = time.process_time() + {BURN_S} * (4 if number == 0 else 1)
        while time.process_time() < end:
            pass
        report.round(number)
    print("a library talks")
    reporting.save(out, {{"w": [1.0, 2.0]}})
"""

DAEMON = f"""
import subprocess, sys
from systems import reporting

CHILD = "import time\\nfor number in range(1, 100):\\n" \\
        " while time.process_time() < number * {BURN_S}: pass\\n print(flush=True)"
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"

def main():
    path, report, out = reporting.start(loads_torch=False)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=-1)
    parent.wait()
    for number in range(report.rounds):
        parent.stdout.readline()  # its daemon, now without a parent, has used BURN_S more
        report.round(number)
    reporting.save(out, {{}})
"""


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> running.System:
    """A system `toy` in a folder of its own, beside the shared reporting module."""
    folder = tmp_path / "systems"
    folder.mkdir()
    for name in ("__main__.py", "reporting.py"):
        (folder / name).write_text((running.HERE / "systems" / name).read_text())
    (folder / "toy.py").write_text(PROGRAM)
    (folder / "daemon.py").write_text(DAEMON)
    (folder / "broken.py").write_text("def main():\n    raise ValueError('no luck')\n")
    monkeypatch.setattr(running, "HERE", tmp_path)
    return running.System(name="toy", module="toy")


def test_steady_figure_leaves_the_first_round_out(system: running.System) -> None:
    asked: list[dict[str, object]] = []
    found = running.run(system, "data", 5, asked.append)
    assert BURN_S <= found.cpu_per_round < 1.6 * BURN_S
    assert found.wall_per_round >= BURN_S and found.first_round_cpu_s >= 4 * BURN_S
    assert found.weights["w"].tolist() == [1.0, 2.0]
    assert found.peak_mb > 5 and set(found.versions) == {"python", "torch", "numpy"}
    assert [line for line in asked if "hello" in line] == [{"ask": True, "hello": "data"}]


def test_cpu_of_a_daemon_whose_parent_ended_is_counted(system: running.System) -> None:
    found = running.run(running.System(name="daemon", module="daemon"), "data", 3)
    assert found.cpu_per_round >= 0.9 * BURN_S  # it runs on while the program reads its line
    assert found.left_behind == 1


def test_failed_program_is_reported_with_what_it_said(system: running.System) -> None:
    with pytest.raises(running.SystemFailed, match="no luck"):
        running.run(running.System(name="broken", module="broken"), "data", 3)
