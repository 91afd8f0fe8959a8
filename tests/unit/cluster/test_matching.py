"""Selectors against living nodes: what would wait for ever is named before anything is started."""

import pytest

import fedray as fr
from fedray.cluster import layout
from fedray.cluster.matching import aggregator_place, matching, room_problems, selector_problems
from fedray.cluster.site_map import SiteMap
from fedray.errors import ConfigError
from fedray.runtime.federation import Topology
from fedray.runtime.place import GIB, Place, living
from tests.unit.cluster.nodes import cluster, node, site_map


def problems(found, nodes=None, absent=False, regional=True):
    return list(selector_problems(found, list(found.sites), cluster() if nodes is None else nodes, absent,
                                  regional))


@pytest.mark.parametrize(("pattern", "value", "is_meant"), [
    ("a", "a", True), ("a", "b", False), ("a", None, False),
    ("in(a, b)", "b", True), ("in(a,b)", "c", False), ("in(a)", None, False),
    ("!a", "b", True), ("!a", "a", False), ("!a", None, True), ("!in(a, b)", "b", False),
])
def test_a_selector_means_what_ray_means_by_it(pattern, value, is_meant):
    labels = {} if value is None else {"key": value}
    assert Place(labels=(("key", pattern),)).selects(labels) is is_meant


def test_a_fix_names_labels_that_a_selector_would_take():
    place = Place(labels=(("zone", "in(a, b)"), ("disk", "!slow"), ("fedray.site", "h1")))
    assert place.matching_labels == "zone=a,fedray.site=h1"
    assert place.selects(dict(each.split("=") for each in place.matching_labels.split(",")))


def test_a_map_that_fits_has_no_problem():
    assert problems(site_map()) == []


def test_an_unmatched_site_is_named_with_selector_labels_and_fix():
    (problem,) = problems(site_map(a={"region": "eu"}, gone={}))
    assert "site gone: no living node has fedray.site=gone" in problem
    assert "10.0.1.2 (fedray.region=eu, fedray.site=a)" in problem and "10.0.9.9" not in problem
    assert "--labels=fedray.site=gone" in problem and "sites.gone.labels in map.yaml" in problem


def test_a_site_that_may_come_later_is_no_problem():
    assert problems(site_map(a={}, gone={}), absent=True) == []


def test_many_unmatched_sites_are_counted():
    found = problems(site_map(**{f"x{number}": {} for number in range(20)}))
    assert len(found) == 6 and found[-1].startswith("15 more are on no living node either")


def test_resources_that_no_matching_node_has_are_named_even_where_sites_may_be_absent():
    for absent in (False, True):
        (problem,) = problems(site_map(a={"num_cpus": 8, "memory": "2 GiB"}), absent=absent)
        assert "site a asks for 8 CPU, 2 GiB on fedray.site=a, and no such node has that much" in problem
        assert "10.0.1.2 has 4 CPU, 8 GiB" in problem and "Fix: lower num_cpus, memory of sites.a" in problem


def test_a_region_without_a_node_is_named_unless_it_has_no_aggregator():
    nodes = [each for each in cluster() if each.labels.get("fedray.role") != "regional"]
    (problem,) = problems(site_map(), nodes)
    assert "the aggregator of region eu: no living node has fedray.region=eu, fedray.role=regional" in problem
    assert problems(site_map(), nodes, regional=False) == []


def test_the_aggregator_is_on_its_label_or_on_the_head():
    nodes = cluster()
    assert matching(aggregator_place(site_map(), nodes), nodes)[0].address == "10.0.0.1"
    plain = living([node("10.0.0.2"), node("10.0.0.1", head=True)])
    place = aggregator_place(site_map(), plain)
    assert place.is_head and matching(place, plain)[0].address == "10.0.0.1"
    assert place.options == {"resources": {"node:__internal_head__": 0.001}}
    told = SiteMap.of({"sites": {"a": {}}, "aggregator": {"fedray.role": "server"}})
    assert "the aggregator: no living node has fedray.role=server" in problems(told)[0]


def hosts(found, data=None, regional=True, **topology):
    data = data or dict.fromkeys(found.sites, dict)
    return layout.hosts(found, data, Topology(**topology), cluster(), regional)


def test_packs_hold_sites_of_one_node_and_regions_hold_packs():
    eu, us = hosts(site_map())
    assert [sorted(pack.sites) for pack in eu.children] == [["a"], ["b"]]
    assert sorted(site for pack in us.children for site in pack.sites) == ["c", "d"]
    assert {pack.place.labels for pack in us.children} == {(("fedray.host", "boston"),)}
    assert eu.place.labels == (("fedray.region", "eu"), ("fedray.role", "regional"))


def test_one_pack_a_processor_of_the_node_or_as_many_as_are_asked_for():
    found = site_map(**{f"s{number}": {"labels": {"fedray.host": "boston"}} for number in range(9)})
    assert len(hosts(found)) == 4
    assert len(hosts(found, packs=2)) == 2
    assert len(hosts(found, sites_per_actor=1)) == 9


def test_without_regional_aggregators_packs_are_directly_below():
    assert [spec.name for spec in hosts(site_map(), regional=False, packs=1)] == ["pack0", "pack1", "pack2"]


def test_a_pack_takes_the_memory_of_all_and_the_processors_of_one():
    told = {"labels": {"fedray.host": "boston"}, "memory": "1 GiB", "num_cpus": 2}
    (pack,) = hosts(site_map(x=told, y={**told, "num_cpus": 1}), packs=1)
    assert (pack.place.num_cpus, pack.place.memory) == (2, 2 * GIB)
    assert pack.place.options["label_selector"] == {"fedray.host": "boston"}


def test_hosts_that_together_ask_for_more_than_their_node_has_are_refused():
    told = {"labels": {"fedray.host": "boston"}, "num_cpus": 2}
    found = site_map(**{f"s{number}": told for number in range(3)})
    assert room_problems("map.yaml", hosts(found, packs=2), cluster()) == []
    (problem,) = room_problems("map.yaml", hosts(found, packs=3), cluster())
    assert "asks for 2 CPU on fedray.host=boston" in problem and "10.0.2.1. Fix: " in problem


def test_a_gpu_that_the_map_does_not_give_is_refused():
    with pytest.raises(ConfigError, match="gives site a no GPU. Fix: num_gpus: 1 under sites.a"):
        hosts(site_map(a={}), device="cuda")


def test_the_placement_in_words_names_node_region_and_who_is_away():
    found = site_map(a={"region": "eu", "num_cpus": 1}, gone={})
    specs = hosts(found)
    text = layout.told(found, specs, cluster())
    assert "aggregator  10.0.0.1 (fedray.role=aggregator)" in text
    assert "region eu  10.0.1.1 (fedray.region=eu, fedray.role=regional)" in text
    assert "eu.pack0  10.0.1.2 (fedray.region=eu, fedray.site=a)  1 CPU\n    a\n" in text
    assert "pack0  away: no living node has fedray.site=gone\n    gone" in text
    assert layout.summary(specs, cluster()) == (
        "2 sites in 2 packs on 1 nodes, 1 regional aggregators, 1 sites whose node is not there yet")


def test_a_map_beside_another_argument_that_says_the_same_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "map.yaml"
    path.write_text("sites: {a: {}}\n")
    data = {"a": {}, "b": {}}
    with pytest.raises(ConfigError, match="site b of the data is not under sites"):
        fr.connect(path, data)
    with pytest.raises(ConfigError, match="and not where the cluster is. Fix: "):
        fr.connect(str(path), {"a": {}})
    with pytest.raises(ConfigError, match="regions= beside a site map"):
        fr.connect(str(path), {"a": {}}, regions={"eu": ["a"]})
    with pytest.raises(ConfigError, match="an address is given twice"):
        fr.connect("10.0.0.1:6379", data, address="10.0.0.2:6379")
