"""Sites' own folders: the map's path, else the node's environment, else what the data set says."""

from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import fedray as fr
from fedray import session_process
from fedray.cluster.node_data import at_node, read_there
from fedray.errors import ConfigError
from tests.unit.cluster.nodes import site_map


@dataclass(frozen=True)
class Reads:
    path: str = "of the data set"

    def at(self, path):
        return Reads(str(path))

    def __call__(self):
        return self.path


def opened(paths):
    sites = site_map(**{site: {"data": path} if path else {} for site, path in paths.items()}).sites
    return {site: opener() for site, opener in at_node(dict.fromkeys(paths, Reads()), sites).items()}


def test_the_path_of_the_map_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDRAY_SITE_DATA", str(tmp_path))
    assert opened({"a": "/srv/a", "b": None}) == {"a": "/srv/a", "b": str(tmp_path)}


def test_the_folder_of_a_node_may_hold_one_for_each_site(monkeypatch, tmp_path):
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("FEDRAY_SITE_DATA", str(tmp_path))
    assert opened({"a": None, "b": None}) == {"a": str(tmp_path / "a"), "b": str(tmp_path)}


def test_without_either_the_data_set_says_it(monkeypatch):
    monkeypatch.delenv("FEDRAY_SITE_DATA", raising=False)
    assert opened({"a": None}) == {"a": "of the data set"}


def test_a_path_for_data_that_are_read_from_none_is_refused():
    sites = site_map(a={"data": "/srv/a"}).sites
    with pytest.raises(ConfigError, match=r"gives sites.a.data, and .* Fix: leave data out"):
        at_node({"a": dict}, sites)


def test_openers_that_read_no_path_stay_as_they_are(monkeypatch):
    monkeypatch.setenv("FEDRAY_SITE_DATA", "/srv")
    openers = {"a": dict}
    assert at_node(openers, site_map(a={}).sites) is openers


def test_only_data_that_are_read_from_a_path_must_be_there_before_a_run():
    sites = site_map(a={}, b={}).sites
    assert list(read_there({"a": Reads(), "b": dict, "c": Reads()}, sites)) == ["a"]


def test_a_run_on_made_up_data_looks_for_no_folder(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("sites: {h001: {}, h002: {}}\n")
    building = Future()
    sites = session_process._sites({"runtime": {"site_map": str(path)}}, building)
    building.set_result(SimpleNamespace(data=fr.data.synthetic_icu(num_sites=2, scale=0.02)))
    assert sites() == {}
