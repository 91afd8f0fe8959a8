"""The run directory: what is written, when, and that it can be read again."""

import json
import logging
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from fedray.errors import ConfigError, StorageError
from fedray.rundir import RunDirectory
from fedray.track import jsonl
from tests.unit import sample_run
from tests.unit.disks import fill, small_disk


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs", "icu", sample_run.CONFIG, ["rounds=12"], seed=7)


def test_create_writes_what_was_asked_for(run):
    assert run.config_yaml == sample_run.CONFIG
    assert run.overrides == ("rounds=12",)
    assert run.env["seed"] == 7 and run.env["versions"]["torch"] and run.env["cpus"] >= 1
    assert run.status == ("running", "")
    assert run.checkpoints.is_dir()


def test_name_holds_time_name_and_hash(run):
    date, clock, name, hash6 = run.path.name.split("-")
    assert (len(date), len(clock), name) == (8, 6, "icu")
    assert run.env["config_sha256"].startswith(hash6)


def test_latest_points_to_the_newest_run(tmp_path, run):
    second = RunDirectory.create(tmp_path / "runs", "other", sample_run.CONFIG, [], seed=0)
    assert (tmp_path / "runs" / "latest").resolve() == second.path.resolve()


def test_two_runs_of_the_same_second_get_directories_of_their_own(tmp_path):
    first, second = (RunDirectory.create(tmp_path, "a", "", [], 0, path=tmp_path / "same") for _ in range(2))
    assert first.path != second.path


def test_trial_of_a_sweep_leaves_latest_alone(tmp_path):
    RunDirectory.create(tmp_path, "a", "", [], 0, path=tmp_path / "sweep" / "lr=0.1")
    assert not (tmp_path / "latest").exists()


def test_unwritable_root_is_refused_with_the_override_that_mends_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="runs_dir=.*Fix: runs_dir="):
        RunDirectory.create(tmp_path / "file", "icu", "", [], 0)


def test_open_follows_latest_to_the_directory_itself(tmp_path, run):
    assert RunDirectory.open(tmp_path / "runs" / "latest").path.resolve() == run.path.resolve()


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not the directory of a run"):
        RunDirectory.open(tmp_path)


def test_status_keeps_its_reason(run):
    run.set_status("failed", "QuorumError in round 3")
    assert run.status == ("failed", "QuorumError in round 3")


def test_unknown_status_is_refused(run):
    with pytest.raises(ValueError, match="sleeping"):
        run.set_status("sleeping")


def test_log_holds_what_fedray_says_inside_the_block_only(run):
    with run.log():
        logging.getLogger("fedray.runtime.loop").info("round 1")
    logging.getLogger("fedray.runtime.loop").warning("afterwards")
    text = (run.path / "log.txt").read_text()
    assert "round 1" in text and "afterwards" not in text


def test_result_names_the_method_of_each_interval(run):
    told = run.write_result(sample_run.result())
    assert told["row_invariant"] is True
    metrics = told["test"]["metrics"]
    assert metrics["auroc"]["method"] == "DeLong"
    assert metrics["auroc"]["low"] < metrics["auroc"]["value"] < metrics["auroc"]["high"]
    assert metrics["accuracy"]["method"] == "Wilson"
    assert "low" not in metrics["brier"]


def test_result_holds_what_a_run_is_worth(run):
    run.write_result(sample_run.result(), {"threshold": 0.3})
    told = json.loads((run.path / "result.json").read_text())
    assert told["rounds"] == 12 and told["seconds"] == 14.5 and told["seed"] == 0
    assert told["bytes_up"] == 12 * 400_000 and told["bytes_down"] == 12 * 200_000
    assert told["config_sha256"] == run.env["config_sha256"]
    assert told["params_sha256"] == sample_run.result().params_sha256
    assert told["test"]["threshold"]["value"] == 0.3
    assert told["test"]["calibration"]["slope"] == 1.05 and len(told["test"]["calibration"]["curve"]) > 3
    assert told["failures"] == [{"site": "h017", "kind": "ValueError", "count": 1}]
    assert run.status == ("done", "")


def test_hospital_with_one_class_has_no_auroc_and_is_counted(run):
    found = sample_run.result()
    found.evaluations[-1].sites[0].update(events=0.0, auroc=0.9, auroc_se=0.1)
    told = run.write_result(found)["test"]
    without = [site for site in told["sites"] if site["auroc"] is None]
    assert told["sites"][0]["auroc"] is None and "auroc_low" not in told["sites"][0]
    assert told["sites_without_auroc"] == len(without)


def test_small_cells_are_left_out_on_a_real_federation_only(run):
    kept = run.write_result(sample_run.result())["test"]["sites"]
    hidden = run.write_result(sample_run.result(), {"suppress": True})["test"]["sites"]
    assert all(site["events"] is not None for site in kept)
    assert all(site["events"] is None or site["events"] >= 11 for site in hidden)
    assert any(site["suppressed"] and site["auroc"] is None for site in hidden)


def test_nadeau_bengio_over_seeds_is_named(run):
    extras = {"over_seeds": {"auroc": {"values": [0.84, 0.85, 0.86], "test_fraction": 0.3}}}
    found = run.write_result(sample_run.result(), extras)["over_seeds"]["auroc"]
    assert found["method"] == "Nadeau-Bengio" and found["low"] < 0.85 < found["high"]


def test_result_of_a_resumed_run_counts_the_rounds_before(run):
    whole = sample_run.result()
    sample_run.replay(jsonl(run.path), whole)
    later = sample_run.result(metrics=whole.metrics[8:])
    told = run.write_result(later)
    assert told["bytes_up"] == 12 * 400_000
    assert told["seconds"] == pytest.approx(14.5 + sum(record.seconds for record in whole.metrics[:8]))


def test_interrupted_run_says_so(run):
    run.write_result(sample_run.result(stopped="interrupted"))
    assert run.status[0] == "interrupted"


@dataclass(frozen=True)
class Scaling:
    mean: torch.Tensor
    limits: tuple[float, float]


def test_model_loads_in_plain_torch(run):
    extras = {
        "model": {"kind": "logistic"},
        "features": ["age", "sofa", "gcs"],
        "preparation": Scaling(torch.ones(3), (0.0, 1.0)),
    }
    run.write_result(sample_run.result(), extras)
    card = json.loads((run.path / "model.json").read_text())
    layer = torch.nn.Sequential(torch.nn.Linear(len(card["features"]), 2))
    layer.load_state_dict(load_file(run.path / "model.safetensors"))
    assert layer[0].weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert card["kind"] == "logistic" and card["preparation"] == {"mean": [1, 1, 1], "limits": [0, 1]}
    assert card["tensors"][0] == {"name": "0.weight", "shape": [2, 3], "dtype": "float32"}


def test_no_record_holds_a_folder_of_this_machine(tmp_path, run):
    sample_run.replay(jsonl(run.path), sample_run.result())
    run.write_plan(sample_run.plan())
    run.write_result(sample_run.result())
    texts = [path.read_text() for path in run.path.iterdir() if path.suffix in (".json", ".jsonl", ".txt")]
    assert not [text for text in texts if str(tmp_path) in text]


def test_plan_lists_evaluations_behind_the_training(run):
    run.write_plan(sample_run.plan(), {"sites": 4}, also=[sample_run.plan("evaluation on valid")])
    told = json.loads((run.path / "plan.json").read_text())
    assert told["facts"] == {"sites": 4} and told["evaluations"][0]["name"] == "evaluation on valid"
    assert "Each evaluation" in (run.path / "egress.txt").read_text()


def test_import_loads_neither_torch_nor_pandas():
    program = (
        "import sys, fedray.rundir, fedray.report.commands, fedray.doctor\n"
        "assert not {'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_full_disk_leaves_the_file_that_was_there_and_says_what_to_do(tmp_path, capfd):
    with small_disk(tmp_path / "disk", 256) as folder:
        run = RunDirectory.create(folder / "runs", "icu", sample_run.CONFIG, [], seed=0)
        fill(folder)
        with pytest.raises(StorageError, match=r"result.json cannot be written \(No space.*Fix: free space"):
            run.write_json("result.json", list(range(9999)))
        assert run.status == ("running", "") and not list(run.path.glob("*.part"))
        with run.log():
            for _ in range(69):
                logging.getLogger("fedray.test").warning("no room" * 40)
            (folder / "filler").unlink()
            logging.getLogger("fedray.test").warning("room again")
        lost, last = (run.path / "log.txt").read_text().splitlines()[-2:]
    assert lost.startswith("(6") and last.endswith("room again")
    assert "Traceback" not in capfd.readouterr().err


def test_state_is_written_where_the_disk_is_full(tmp_path):
    with small_disk(tmp_path / "disk", 64) as folder:
        run = RunDirectory.create(folder, "icu", sample_run.CONFIG, [], 0)
        fill(folder)
        run.set_status("failed", "no room é" * 200)
        assert run.status[0] == "failed" and run.status[1].startswith("no room é")
        run.set_status("done")
        assert run.status == ("done", "")
