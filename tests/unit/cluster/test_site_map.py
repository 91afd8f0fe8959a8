"""The site map: what it says, what it leaves out, and that each mistake is named with file, key and fix."""

from pathlib import Path

import pytest

from fedray.cluster.site_map import SiteMap
from fedray.errors import ConfigError
from fedray.runtime.place import GIB

EXAMPLE = Path(__file__).resolve().parents[3] / "cluster" / "site-map.yaml"


def test_the_example_is_read():
    found = SiteMap.read(EXAMPLE)
    assert list(found.sites) == ["h001", "h002", "h003", "h004"]
    first, second, third = (found.sites[name] for name in ("h001", "h002", "h003"))
    assert (first.region, first.data, first.place.num_cpus, first.place.memory) == (
        "eu-west", "/srv/fedray/h001", 1, 4 * GIB)
    assert second.place.labels == (("fedray.site", "h002"),)
    assert (second.data, second.place.memory) == (None, GIB)
    assert third.place.labels == found.sites["h004"].place.labels
    assert found.regions["us-east"].place.labels == (("fedray.region", "us-east"),)
    assert found.aggregator.labels == (("fedray.role", "aggregator"),)


def test_a_site_needs_no_more_than_a_name():
    found = SiteMap.of({"sites": {"a": None}}).sites["a"]
    assert (found.place.labels, found.region, found.place.needs) == ((("fedray.site", "a"),), "", {})


@pytest.mark.parametrize(("told", "wrong"), [
    ({}, "sites: no site is named. Fix: "),
    ([], "a mapping with the key 'sites'"),
    ({"sites": {"a": {}}, "site": {}}, "site: there is no such key. Did you mean sites? Fix: "),
    ({"sites": {"a": {"regon": "eu"}}}, "sites.a.regon: there is no such key. Did you mean region? Fix: "),
    ({"sites": {"a": {"region": "eu"}}}, "sites.a.region=eu: this region is not declared. Fix: "),
    ({"sites": {"a": {"num_cpus": -1}}}, "sites.a.num_cpus=-1 is not a number, 0 or more. Fix: "),
    ({"sites": {"a": {"num_gpus": True}}}, "sites.a.num_gpus=True is not a number"),
    ({"sites": {"a": {"memory": "4 XB"}}}, "sites.a.memory='4 XB' is not bytes"),
    ({"sites": {"a": {"data": "data/a"}}}, "sites.a.data='data/a' is not an absolute path"),
    ({"sites": {"a": {"labels": {"a b": "c"}}}}, "sites.a.labels: 'a b' is no key of a label"),
    ({"sites": {"a": {"labels": {"x": "in()"}}}}, "sites.a.labels: 'in()' is no value of a label"),
    ({"sites": {"a": {"labels": {"x": 7}}}}, "sites.a.labels.x=7 is no text"),
    ({"sites": {"a": {"labels": {}}}}, "sites.a.labels: labels are a mapping"),
    ({"sites": {7: {}}}, "sites.7: this name is read as int. Fix: put it into quotes"),
    ({"sites": {"": {}}}, "sites.: '' is no name. Fix: "),
    ({"sites": {" ": {}}}, "sites. : ' ' is no name. Fix: "),
    ({"sites": {"a": {"region": ""}}, "regions": {"eu": {}}}, "sites.a.region='' names no region. Fix: "),
    ({"sites": {"a/b": {}}}, "sites.a/b: a name is made of letters"),
    ({"sites": {"a": 3}}, "sites.a: a mapping is expected"),
    ({"sites": {"a": {}}, "regions": {"eu": 3}}, "regions.eu: a mapping is expected"),
    ({"sites": {"a": {}}, "regions": {"eu": {"aggregator": "x"}}}, "regions.eu.aggregator: labels are a map"),
    ({"sites": {"a": {}}, "defaults": {"data": "/x"}}, "defaults.data: there is no such key"),
])
def test_a_mistake_is_named_by_file_key_and_fix(told, wrong):
    with pytest.raises(ConfigError) as caught:
        SiteMap.of(told, "map.yaml")
    assert f"map.yaml: {wrong}" in str(caught.value)
    assert all("Fix: " in problem for problem in caught.value.problems)


def test_all_mistakes_are_said_at_once():
    told = {"sites": {"a": {"region": "eu", "num_cpus": -1, "data": 3}}}
    with pytest.raises(ConfigError) as caught:
        SiteMap.of(told)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(("text", "wrong"), [
    ("sites:\n  a: {}\n  a: {}\n", "line 3: this is not YAML ('a' is given twice)"),
    ("sites:\n  ? [1, 2]\n  : {}\n", "line 2: this is not YAML (a key is text, and no list or mapping)"),
    ("sites: {a: [\n", "this is not YAML"),
])
def test_a_file_that_is_no_yaml_is_refused_by_line(tmp_path, text, wrong):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        SiteMap.read(path)
    assert wrong in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file. Fix: "):
        SiteMap.read(tmp_path / "map.yaml")
