"""Runs on a real Ray, watched: figures at the node's metrics port, lines and tracebacks of hosts, status."""

import json
import os
import re
import signal
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from fedray import experiment
from fedray.config import compose_run
from fedray.data.site import SiteData
from fedray.observe import log, status, trace
from fedray.observe.observer import Observer
from fedray.runtime import notes, ray_attach, ray_transport
from fedray.runtime.federation import Topology
from tests.cluster.test_command import command, started
from tests.unit import sample_run

pytestmark = pytest.mark.ray
TOY = ("experiment=debug", "report=none", "data.scale=0.02", "evaluate.bins=50", "runtime=ray_local",
       "runtime.placement=actors", "runtime.packs=2", "rounds=4")
EXPORTED_S = 30.0  # Ray exports every few seconds
SECRET = re.compile("a patient's value is -?[0-9.]*[1-9]")  # the rehearsal on made-up rows has zeros
BROKEN = """\
import torch

class Broken(torch.nn.Linear):
    def forward(self, x):
        raise ArithmeticError(f"a patient's value is {x.flatten()[0].item()}")

def net(num_features):
    return Broken(num_features, 1)
"""


def page(run: str, rounds: int) -> str:
    """Return the page of the node's metrics port once it has all rounds of a run."""
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    limit = time.monotonic() + EXPORTED_S
    while True:
        with urllib.request.urlopen(address, timeout=5) as answer:
            text = answer.read().decode()
        if figures(text, run).get("ray_fedray_rounds_total") == rounds or time.monotonic() > limit:
            return text
        time.sleep(0.5)


def figures(text: str, run: str) -> dict[str, float]:
    """Return the figures of a run on a page, by name."""
    lines = [line for line in text.splitlines() if line.startswith("ray_fedray_") and f'run="{run}"' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(notes.FOLDER, str(tmp_path / "tracebacks"))
    return tmp_path


@pytest.fixture(scope="module")
def outcome(ray_session, tmp_path_factory):
    """Return what a run on the session's Ray came to; its checkpoints are written by another process."""
    folder = tmp_path_factory.mktemp("observed")
    words = [*TOY, "metrics.enabled=true", "checkpoint.every_s=0", f"runs_dir={folder}/runs"]
    return experiment.start(compose_run(words), live=False)


def test_metrics_port_of_a_node_shows_the_figures_of_a_run_and_no_site(outcome):
    run, records = outcome.run.path.name, outcome.result.metrics
    text = page(run, 4)
    found = figures(text, run)
    assert found["ray_fedray_rounds_total"] == found["ray_fedray_rounds_planned"] == 4
    assert found["ray_fedray_round_seconds_count"] == 4
    assert found["ray_fedray_seconds_total"] == pytest.approx(sum(r.seconds for r in records), rel=0.01)
    assert found["ray_fedray_bytes_up_total"] == outcome.summary["bytes_up"]
    assert found["ray_fedray_bytes_down_total"] == outcome.summary["bytes_down"]
    assert found["ray_fedray_sites_counted_total"] == sum(r.counted for r in records)
    waited = sum(record.waited_s for record in records)
    assert found["ray_fedray_waited_seconds_total"] == pytest.approx(waited, rel=0.01) and waited > 0
    assert 0 <= found["ray_fedray_checkpoint_age_seconds"] < 60
    assert not [line for line in text.splitlines() if run in line and 'site="' in line]


def made_up(number):
    return SiteData({"y": torch.arange(4.0) + number})


def standing(openers, topology, regions, address, declared, num_cpus):
    make = ray_attach.attached("")
    return ray_transport.federate(openers, topology, regions, address, declared, num_cpus, make)


@pytest.mark.parametrize("is_standing", [False, True])
def test_aggregator_in_another_process_says_which_hosts_there_are(ray_session, tmp_path, is_standing):
    openers = {f"h{number}": partial(made_up, number) for number in range(4)}
    make = standing if is_standing else ray_transport.federate
    with make(openers, Topology(packs=2), None, "local", {}, None) as federation:
        federation.hello()
        told = federation.aggregator.progress()
        with Observer(tmp_path, 4, federation.aggregator.progress) as observer:
            observer.start(sample_run.plan(), {"sites": 4, "where": "ray"})
            written = status.read(tmp_path)
    assert [host["host"] for host in told["hosts"]] == ["pack0", "pack1"]
    assert len(written["hosts"]) == 2 and written["doing"]["doing"] == ""
    assert all(0 <= host["seen_age_s"] < 60 for host in written["hosts"])


def test_timeline_of_a_run_on_ray_has_every_site_inside_of_each_round(outcome):
    found = trace.load(outcome.run.path)
    for line in found.lines:
        spans = [span for span in found.spans(line["spans"], line["round"]) if span.round == line["round"]
                 and span.what in ("downlink", "compute", "uplink")]  # fmt: skip
        began, ended = line["at"]
        inside = [span for span in spans if began - 0.01 <= span.began <= span.ended <= ended + 0.01]
        assert {span.what for span in inside} == {"downlink", "compute", "uplink"}
        sites = [site for span in inside if span.what == "compute" for site in span.sites]
        assert len(sites) == len(set(sites)) == outcome.summary["sites"]
    assert {"pack0", "pack1"} <= set(found.clocks)
    assert all(ahead == 0 and error < 1 for ahead, error in found.clocks.values())  # one machine, one clock


def test_error_at_a_host_is_in_the_log_without_its_message_which_is_in_a_file_there(in_an_empty_folder):
    folder: Path = in_an_empty_folder
    (folder / "broken.py").write_text(BROKEN)
    broken = ("model._target_=broken.net", "--allow", "broken", "schedule.quorum=0.1")
    done = command(folder, "run", *TOY, *broken)
    assert done.returncode == 3, done.stderr
    (run,) = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    lines = log.read(run)
    named = [line for line in lines if "traceback" in line]
    assert {(line["kind"], line["source"]) for line in named} == {("ArithmeticError", "host")}
    assert not [path for path in run.iterdir() if path.is_file() and SECRET.search(path.read_text("latin-1"))]
    assert all(SECRET.search((folder / "tracebacks" / line["traceback"]).read_text()) for line in named)
    shown = command(folder, "logs", "--level", "error").stdout
    assert shown.startswith("first error: ") and "ArithmeticError" in shown and not SECRET.search(shown)


def test_status_from_another_terminal_of_a_run_that_goes_on_and_that_is_killed(tmp_path):
    process = started(tmp_path, "runtime.placement=actors", "checkpoint.every_s=0")
    try:
        found = json.loads(command(tmp_path, "status", "--json").stdout)
        assert (found["state"], found["where"], found["rounds"]) == ("running", "ray", 200)
        assert found["heartbeat_age_s"] < 10 and found["hosts"]
        assert all(host["seen_age_s"] is not None for host in found["hosts"])
        os.kill(found["pid"], signal.SIGKILL)
        process.wait(60)
        text = command(tmp_path, "status").stdout
        assert "crashed: its process" in text and "go on with: fedray resume runs/latest" in text
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
