"""Sites on labelled nodes by a site map: they are where it says, with equal bits, and nodes come and go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedray.errors import AWAY
from tests.cluster import placed_study as study
from tests.equivalence import study as base

pytestmark = [pytest.mark.ray, pytest.mark.cluster]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_AUTH_MODE": "token",
        "FEDRAY_INSECURE_CLUSTER": "1",  # no TLS among these nodes
    }
    command = [sys.executable, "-m", "tests.cluster.placed", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {what: [each for each in found if each["what"] == what] for what in {f["what"] for f in found}}


def test_sites_land_on_their_labelled_nodes_and_regions_on_theirs(facts):
    (layout,) = facts["layout"]
    assert layout["sites"] == study.HOMES
    assert layout["hosts"] == {"eu": "a", "us": "c"}
    (line,) = [line for line in layout["text"].splitlines() if line.startswith("region eu  ")]
    assert line.endswith("(fedray.host=a, fedray.region=eu, fedray.role=regional)")


def test_bits_are_those_of_one_process(facts):
    expected = {name: study.here(name).params_sha256 for name in study.STUDIES}
    assert {each["name"]: each["sha256"] for each in facts["bits"]} == expected


def test_a_model_crosses_to_a_region_once_a_round_and_one_sum_comes_back(facts):
    there = next(each for each in facts["bits"] if each["name"] == "fedavg")
    flat = study.here("fedavg", regions=None, packs=3).metrics[-1]
    packs, regions = 3, 2
    assert there["down"] * packs == flat.bytes_down * regions
    assert there["up"] * packs == flat.bytes_up * regions
    (crossing,) = facts["crossings"]
    assert crossing["large"] == 3 and crossing["down"] == 400_000 * 4
    assert crossing["read_on"] == ["a", "head"], "the pack on node b reads from its region"


def test_a_site_reads_the_path_of_the_map_or_of_its_node(facts):
    (own,) = facts["own"]
    assert own["rows"] == {"one": 28, "two": 42}


def test_a_site_without_a_node_is_refused_by_name_within_seconds(facts):
    (refused,) = facts["refused"]
    lost = [site for site, home in study.HOMES.items() if home == "a"][:2]
    assert all(f"site {site}: no living node has fedray.host=d" in refused["text"] for site in lost)
    assert "fedray.host=b" in refused["text"] and "Fix: " in refused["text"]
    assert refused["seconds"] < 10


def test_a_site_whose_node_comes_later_joins(facts):
    (joined,) = facts["joined"]
    assert (joined["there"], joined["counted"]) == (22, 24)
    assert joined["sha256"] == study.here("fedavg").params_sha256


def test_sites_of_a_killed_node_fail_by_name_and_come_back_with_their_state(facts):
    rounds = facts["round"]
    assert [each["counted"] for each in rounds] == [24, 24, 16, 16, 24, 24]
    for each in rounds:
        is_without = study.GONE <= each["round"] < study.BACK
        assert each["failed"] == (sorted(study.ON_B) if is_without else [])
        assert each["kinds"] == ([AWAY] if is_without else [])
    (back,) = facts["back"]
    assert back["sites"] == study.HOMES
    expected = study.here("scaffold", rounds=study.ROUNDS_AWAY, local=study.Fails(base.local()))
    assert back["sha256"] == expected.params_sha256
    assert max(back["seconds"]) < 30
