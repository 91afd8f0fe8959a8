"""`fedray doctor`: each check says PASS, or the problem and its fix."""

import argparse
import importlib.util
import json
from collections import namedtuple

import pytest

from fedray import doctor
from fedray.runtime import ray_check

Usage = namedtuple("Usage", "total used free")


def call(*words):
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers(dest="command"))
    return doctor.run(parser.parse_args(["doctor", *words]))


def found(check):
    return [finding for finding in doctor.examine(with_ray=False) if finding.check == check]


@pytest.fixture(autouse=True)
def ordinary(monkeypatch):
    """Let the checks see an ordinary machine."""
    monkeypatch.setattr(doctor, "installed", {"ray": "2.60.0"}.get)
    monkeypatch.setattr(doctor, "_requirements", lambda: ["ray>=2.60,<2.61"])
    for name in ("FEDRAY_DATA", "RAY_USAGE_STATS_ENABLED", "RAY_TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_package_out_of_range_fails_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed", {"ray": "2.55.0"}.get)
    (finding,) = found("versions")
    assert finding.status == "FAIL" and "ray<2.61,>=2.60 (found 2.55.0)" in finding.message
    assert finding.fix.startswith("pip install")


def test_package_that_is_missing_fails(monkeypatch):
    monkeypatch.setattr(doctor, "installed", {}.get)
    assert "found none" in found("versions")[0].message


def test_package_in_range_but_not_as_pinned_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "installed", {"ray": "2.60.7"}.get)
    (finding,) = found("constraints")
    assert finding.status == "NOTE" and "ray 2.60.7 (pinned 2.60.0)" in finding.message


def test_pins_are_read_from_a_constraints_file():
    assert doctor.pins("ray==2.60.0\n# note\npython-dateutil==2.9.0.post0\n") == {
        "ray": "2.60.0",
        "python-dateutil": "2.9.0.post0",
    }


@pytest.mark.parametrize("check", ["shared memory", "disk"])
def test_little_room_fails(monkeypatch, check):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(0, 0, 2**20))
    finding = found(check)[0]
    assert finding.status == "FAIL" and finding.fix


def test_little_memory_fails(monkeypatch):
    monkeypatch.setattr("fedray.runtime.memory.available_bytes", lambda: 2**28)
    assert found("memory")[0].status == "FAIL"


def test_long_temporary_folder_fails(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    assert found("sockets")[0].status == "FAIL"


def test_data_folder_is_looked_into(monkeypatch, tmp_path):
    assert found("FEDRAY_DATA")[0].status == "NOTE"
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "nothing"))
    assert found("FEDRAY_DATA")[0].status == "FAIL"
    (tmp_path / "heart-disease").mkdir()
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path))
    assert found("FEDRAY_DATA")[0].message == "holds heart-disease"


def test_reporting_that_is_switched_on_fails(monkeypatch):
    assert found("telemetry")[0].status == "PASS"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert found("telemetry")[0].status == "FAIL"


@pytest.mark.parametrize(
    ("package", "switch"),
    [("mlflow", {"MLFLOW_DISABLE_TELEMETRY": "true"}), ("wandb", {"WANDB_MODE": "offline"})],
)
def test_reporting_of_an_installed_tracker_must_be_switched_off(monkeypatch, package, switch):
    monkeypatch.setattr(doctor, "installed", {package: "3"}.get)
    assert any(doctor.telemetry({}).values())
    assert not any(doctor.telemetry(switch).values())


def test_missing_extra_is_a_note(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (finding,) = found("report")
    assert finding.status == "NOTE" and "fedray[report]" in finding.fix


def test_exit_code_is_one_where_a_check_fails(monkeypatch, capsys):
    assert call("--no-ray") == 0
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert call("--no-ray") == 1
    assert "1 problem to mend" in capsys.readouterr().out


def test_json_holds_every_check(capsys):
    assert call("--no-ray", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and {"python", "versions", "memory", "disk"} <= {
        check["check"] for check in told["checks"]
    }


def test_ray_that_does_not_start_fails_with_a_fix(monkeypatch):
    def fails(*args, **kwargs):
        raise doctor.HostError("Ray at 'local' did not start")

    monkeypatch.setattr(ray_check, "start_ray", fails)
    finding = list(doctor.examine())[-1]
    assert finding.status == "FAIL" and "runtime=in_process" in finding.fix


def test_ray_runs_a_task_and_is_left_running_where_it_ran_before(ray_session):
    import ray

    took = ray_check.check_ray()
    assert set(took) == {"start_s", "task_s", "stop_s"} and ray.is_initialized()
