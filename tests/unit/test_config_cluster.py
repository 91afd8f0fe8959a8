"""Runs on a cluster by a site map: settings that go together, and what is said where they do not."""

import pytest

from fedray import config
from fedray.errors import ConfigError

CLUSTER = ("runtime=ray_cluster", "runtime.address=10.0.0.1:6379")
MAP = "sites: {h000: {}, h001: {region: eu}}\nregions: {eu: {}}\n"


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        config.check(config.compose("experiment=debug", *overrides))
    return caught.value.problems


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text(MAP)
    return path


def test_a_map_and_its_topology_go_together(file):
    found = config.compose("experiment=debug", *CLUSTER, "topology=from_cluster", f"runtime.site_map={file}")
    config.check(found)
    assert (found.topology.regional, found.topology.absent) == (True, False)


def test_a_topology_without_a_map_is_refused():
    (problem,) = problems(*CLUSTER, "topology=from_cluster")
    assert "Fix: runtime=ray_cluster runtime.site_map=" in problem


def test_a_map_without_its_topology_is_refused(file):
    (problem,) = problems(*CLUSTER, f"runtime.site_map={file}")
    assert problem.endswith("Fix: topology=from_cluster")


def test_mistakes_in_the_map_are_found_before_anything_is_started(file):
    file.write_text("sites: {h000: {region: us}}\n")
    (problem,) = problems(*CLUSTER, "topology=from_cluster", f"runtime.site_map={file}")
    assert problem.startswith(f"{file}: sites.h000.region=us: this region is not declared")


def test_data_at_the_sites_take_their_names_from_the_map(file, tmp_path):
    contract = tmp_path / "contract.yaml"
    contract.write_text("name: vitals\noutcome: died\ncolumns:\n  - {name: age}\n"
                        "  - {name: died, role: outcome}\n")
    tree = config.compose("experiment=none", *CLUSTER, "topology=from_cluster", f"runtime.site_map={file}",
                          "data=at_sites", f"data.contract={contract}")
    config.check(tree)
    experiment = config.build(tree)
    assert list(experiment.data) == ["h000", "h001"] and experiment.data.features == ("age",)
