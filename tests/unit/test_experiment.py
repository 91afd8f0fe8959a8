"""Whole runs in this process: what a run leaves behind, presets on toy sites, interrupt and resume."""

import gzip
import json
import os
import signal
from pathlib import Path

import pytest

from fedray import cli, experiment, track
from fedray.config import SCHEMAS, compose_run, conf_folder
from fedray.data.synth_tables import write as write_tables
from fedray.errors import ConfigError
from fedray.observe import status
from fedray.runtime.traces import Interval, Trace, write_trace

TOY = ("experiment=debug", "report=none", "evaluate.bins=50")
PRESETS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
HEART = {"cleveland": 40, "hungarian": 40, "switzerland": 30, "va": 30}
OF_ALGORITHM = {
    **dict.fromkeys(("fedbabu", "fedper", "fedrep", "lg_fedavg", "moon"), ("model=mlp",)),
    "fedbn": ("model=mlp", "model.norm=batch"),
    **dict.fromkeys(("split", "splitfed"), ("model=mlp",)),
    **dict.fromkeys(("vertical_logistic", "vertical_towers"), ("data=parties", "model=mlp")),
    "fedgkt": ("model=mlp",),
    "fedmatch": ("local.lr=0.01", "data.labelled=0.3"),
    "hierfavg": ("algorithm.period=1",),
    "pretrain": ("model=mlp", "data.labelled=0.3", "algorithm.rounds=0"),
    "pseudo_label": ("data.labelled=0.3", "algorithm.ramp=[0,0]"),
    "private_heads": ("model=mlp", "data=assays"),
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDRAY_DATA", raising=False)


def train(*overrides: str) -> experiment.Outcome:
    return experiment.start(compose_run([*TOY, *overrides]), live=False)


def heart_files(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in HEART.items():
        lines = [f"{40 + row % 30},{row % 2},{1 + row % 4},{110 + row},{200 + 3 * row},{row % 2},{row % 3},"
                 f"{120 + row},{row % 2},1.{row % 9},2,0,3,{row % 2}" for row in range(rows)]
        (folder / f"processed.{name}.data").write_text("\n".join(lines) + "\n")
    return folder


def toy_overrides(preset: str, folder: Path) -> list[str]:
    """Return what makes a preset small: a few sites, and tables of its own kind where it reads files."""
    if preset == "eicu_demo":
        write_tables(folder / "tables", scale=0.003, num_hospitals=4)
        (folder / "tables-hourly").mkdir()
        for grid in (folder / "tables").glob("los_*.parquet"):
            grid.rename(folder / "tables-hourly" / grid.name)
        return [f"data.src={folder}/tables"]
    if preset == "heart_disease":
        return [f"data.src={heart_files(folder / 'heart')}"]
    return ["data.num_sites=4"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_a_round_on_toy_sites(preset, tmp_path):
    words = [f"experiment={preset}", "runtime=in_process", "report=none", "rounds=1",
             *toy_overrides(preset, tmp_path)]
    outcome = experiment.start(compose_run(words), live=False)
    assert outcome.result.rounds == 1
    assert 0 <= outcome.summary["test"]["metrics"]["accuracy"]["value"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(SCHEMAS["algorithm"]))
def test_every_algorithm_option_trains(algorithm):
    words = OF_ALGORITHM.get(algorithm, ())
    size = () if "data=parties" in words else ("data.scale=0.02",)
    outcome = train(f"algorithm={algorithm}", "rounds=1", *size, *words)
    assert outcome.run.status == ("done", "")


def test_what_leaves_in_each_kind_of_round_is_in_the_run_directory():
    run = train("algorithm=hierfavg", "algorithm.period=2", "data.scale=0.02").run
    assert "in rounds 2, 4, 6, ... in its place:" in (run.path / "egress.txt").read_text("utf-8")
    rows = json.loads((run.path / "plan.json").read_text("utf-8"))["egress"]
    assert [row["stage"] for row in rows if row["name"] == "rows"] == ["1→2 every 2 rounds"]


def test_a_vertical_run_says_what_linking_sent_and_measures_the_test_records():
    run = train("algorithm=vertical_logistic", "data=parties", "algorithm.lr=1.0", "rounds=10")
    text = (run.run.path / "egress.txt").read_text("utf-8")
    assert all(name in text for name in ("records", "scores", "label", "split_scores", "evaluation"))
    test = run.summary["test"]
    assert [site["site"] for site in test["sites"]] == ["site0"] and test["n"] > 50
    assert test["metrics"]["auroc"]["value"] > 0.6


@pytest.mark.parametrize(("words", "fix"), [
    (("algorithm=vertical_logistic",), "data=parties"), (("data=parties",), "algorithm=vertical_logistic")])
def test_vertical_algorithms_and_data_belong_together(words, fix):
    with pytest.raises(ConfigError, match=f"Fix: {fix}"):
        train(*words)


def test_private_heads_measure_each_sites_own_tasks_and_only_the_trunk_leaves():
    outcome = train("algorithm=private_heads", "data=assays", "model=mlp", "data.scale=0.05", "rounds=2")
    assert outcome.run.status == ("done", "")
    assert not any(name.startswith("head") for name in outcome.result.params)
    assert 0 < outcome.summary["test"]["metrics"]["auroc"]["value"] < 1
    text = (outcome.run.path / "egress.txt").read_text("utf-8")
    assert "delta" in text and "head" not in text.replace("private_heads", "")


@pytest.mark.parametrize(("words", "fix"), [
    (("algorithm=private_heads",), "Fix: data=assays"),
    (("data=assays",), "Fix: algorithm=private_heads"),
    (("algorithm=private_heads", "data=assays", "model=logistic"), "Fix: model=mlp"),
])  # fmt: skip
def test_tasks_of_their_own_and_private_heads_go_together(words, fix):
    with pytest.raises(ConfigError, match=fix):
        train("model=mlp", *words)


def test_a_trace_decides_who_is_asked(tmp_path):
    day = Trace((Interval("h001", 0.0, 9.0, 2.0), Interval("h002", 5.0, 9.0, 1.0)), 10.0)
    write_trace(day, tmp_path / "trace.csv")
    run = train("schedule=trace", f"schedule.trace={tmp_path / 'trace.csv'}", "rounds=4").run
    assert run.status == ("done", "")
    rounds = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert [(each["asked"], each["seconds"]) for each in rounds] == [(1, 2.0)] * 3 + [(2, 2.0)]


def test_what_chooses_the_cohort_is_in_the_list_of_what_leaves():
    run = train("schedule=power_of_choice", "schedule.cohort=2", "rounds=1").run
    assert run.status == ("done", "")
    assert "before candidate_loss" in (run.path / "egress.txt").read_text("utf-8")
    assert json.loads((run.path / "rounds.jsonl").read_text().splitlines()[0])["asked"] == 2


def test_oort_asks_by_losses_and_speeds_from_the_command_line(tmp_path):
    day = Trace(tuple(Interval(f"h{i:03d}", 0.0, 9.0, float(i)) for i in range(1, 5)), 10.0)
    write_trace(day, tmp_path / "trace.csv")
    run = train("schedule=oort", "schedule.cohort=2", f"schedule.trace={tmp_path / 'trace.csv'}",
                "data.num_sites=4", "rounds=3").run
    assert run.status == ("done", "")
    assert "loss_statistic" in (run.path / "egress.txt").read_text("utf-8")
    rounds = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert [each["asked"] for each in rounds] == [2] * 3 and all(each["seconds"] >= 2 for each in rounds)


def test_the_models_that_sites_have_for_themselves_are_measured_unless_the_global_one_is_asked_for():
    found = {}
    for personal in ("null", "true", "false"):
        outcome = train("algorithm=ditto", "rounds=2", f"evaluate.personal={personal}")
        found[personal] = outcome.summary["test"]["metrics"]["loss"]["value"]
    assert found["null"] == found["true"] != found["false"]


@pytest.mark.parametrize("compression", sorted(SCHEMAS["compression"]))
def test_every_compression_option_trains(compression):
    outcome = train(f"compression={compression}", "algorithm.weighted=false", "model=mlp", "rounds=1",
                    "data.scale=0.02")
    assert outcome.run.status == ("done", "") and not outcome.result.failures
    assert compression == "none" or "+" in outcome.result.plan.name


def test_run_directory_holds_what_was_asked_and_what_came_out():
    outcome = train("rounds=2")
    names = {path.name for path in outcome.run.path.iterdir()}
    assert {"config.yaml", "overrides.txt", "env.json", "STATUS", "plan.json", "egress.txt", "log.txt",
            "rounds.jsonl", "sites.jsonl", "result.json", "model.safetensors", "model.json",
            "checkpoints"} <= names
    assert outcome.run.overrides == (*TOY, "rounds=2")
    assert json.loads((outcome.run.path / "result.json").read_text())["rounds"] == 2
    assert Path("runs/latest").resolve() == outcome.run.path.resolve()


def test_egress_names_every_program_that_read_the_sites():
    folder = train("data.prepared=false", "data.standardise=true", "rounds=1").run.path
    text = (folder / "egress.txt").read_text()
    released = ("delta", "evaluation", "site_metrics", "label_counts", "moments", "squares")
    assert all(name in text for name in released)


def test_standardised_columns_and_their_preparation_reach_the_model():
    outcome = train("data.prepared=false", "data.standardise=true", "rounds=1")
    told = json.loads((outcome.run.path / "model.json").read_text())
    assert len(told["features"]) > 39 and told["preparation"]["mean"]
    assert told["tensors"][0]["shape"][-1] == len(told["features"])


def test_resumed_run_with_more_rounds_has_the_bits_of_an_undisturbed_one():
    first = train("rounds=2")
    longer = experiment.resume(first.run.path, ["rounds=4", "tracker=none"], live=False)
    assert longer.run.path == first.run.path
    assert longer.result.params_sha256 == train("rounds=4").result.params_sha256


def test_resume_keeps_all_that_changes_the_result():
    first = train("rounds=1")
    with pytest.raises(ConfigError) as caught:
        experiment.resume(first.run.path, ["local.lr=1", "seed=3"], live=False)
    assert [text.split(":")[0] for text in caught.value.problems] == ["local.lr=1", "seed=3"]
    with pytest.raises(ConfigError, match="rounds=2"):
        experiment.resume(first.run.path, live=False)


def test_runtime_may_change_in_one_value_on_resuming():
    first = train("rounds=1")
    again = experiment.resume(first.run.path, ["rounds=2", "runtime.packs=2"], live=False)
    assert "packs: 2" in again.run.config_yaml and "kind: in_process" in again.run.config_yaml


class Interrupt:
    """A tracker that sends Ctrl-C in the first round."""

    def __getattr__(self, name):
        return lambda *_: os.kill(os.getpid(), signal.SIGINT) if name == "round" else None


def test_interrupt_finishes_the_round_and_can_be_resumed(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(track, "jsonl", lambda *_, **__: Interrupt())
        assert cli.main(["run", *TOY, "rounds=3"]) == 130
    assert "go on with: fedray resume runs/" in capsys.readouterr().out
    assert Path("runs/latest/STATUS").read_text().startswith("interrupted")
    resumed = experiment.resume("runs/latest", live=False)
    assert resumed.result.params_sha256 == train("rounds=3").result.params_sha256


def test_run_says_that_it_is_being_resumed_until_it_begins(monkeypatch):
    first, told = train("rounds=1"), []
    prepare = experiment.prepare

    def asking(*words):
        told.append(status.read(first.run.path)["state"])
        return prepare(*words)

    monkeypatch.setattr(experiment, "prepare", asking)
    experiment.resume(first.run.path, ["rounds=2"], live=False)
    assert cli.main(["resume", str(first.run.path), "rounds=3", "--json"]) == 0
    assert told == ["resuming", "resuming"] and status.read(first.run.path)["state"] == "done"
    assert not (first.run.path / status.RESUMING).exists()


def test_failure_during_training_is_written_into_status(monkeypatch):
    class Broken:
        def __getattr__(self, name):
            def fail(*_):
                raise RuntimeError("no space left")
            return fail
    monkeypatch.setattr(track, "jsonl", lambda *_, **__: Broken())
    with pytest.raises(RuntimeError):
        train("rounds=1")
    assert Path("runs/latest/STATUS").read_text() == "failed\nRuntimeError: no space left\n"


def test_own_model_of_the_working_directory_is_trained_when_allowed(capsys):
    Path("ownmodel.py").write_text("import torch\n\n\ndef net(num_features):\n"
                                   "    return torch.nn.Linear(num_features, 1)\n")
    words = ["run", *TOY, "rounds=1", "model._target_=ownmodel.net"]
    assert cli.main(words) == 2
    assert "--allow ownmodel" in capsys.readouterr().err
    assert cli.main([*words, "--allow", "ownmodel", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


def test_eicu_build_is_reused_while_the_files_are_the_same(tmp_path):
    words = ["experiment=eicu_demo", "runtime=in_process", "report=none", "rounds=1",
             *toy_overrides("eicu_demo", tmp_path)]
    experiment.start(compose_run(words), live=False)
    index = Path("data/eicu_cohort_grid24/dataset.json")
    before = index.stat().st_mtime_ns
    experiment.start(compose_run(words), live=False)
    unchanged = index.stat().st_mtime_ns == before
    hospital = next((tmp_path / "tables").glob("hospital.csv.gz"))
    hospital.write_bytes(gzip.compress(gzip.decompress(hospital.read_bytes()) + b"\n"))
    experiment.start(compose_run(words), live=False)
    assert unchanged and index.stat().st_mtime_ns > before


def test_a_buffered_run_tells_of_ages_and_simulated_seconds():
    words = ("schedule=buffered", "schedule.size=2", "schedule.concurrency=3", "rounds=6",
             "+runtime.latency._target_=fedray.runtime.schedule.LognormalLatency")  # fmt: skip
    run = train(*words).run
    assert run.status == ("done", "")
    rounds = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert [each["counted"] for each in rounds] == [2] * 6
    assert max(each["staleness_max"] for each in rounds) >= 1
    assert rounds[0]["staleness_mean"] == 0 and rounds[0]["seconds"] > 0
    assert max(each["versions"] for each in rounds) >= 2
