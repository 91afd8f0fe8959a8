"""Layouts, groups, regions, order and lost sites are choices of cost: the bits of a run do not depend on
them."""

from dataclasses import replace

import pytest

import fedray as fr
from tests.equivalence import study

SITES = sorted(study.hospitals())
NESTED = {"eu": {"de": SITES[:5], "fr": {"north": SITES[5:7], "south": SITES[7:11]}}, "us": SITES[11:]}
ON_RAY = [
    *study.ALGORITHMS[:4],
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("feddyn", "fedlin")),  # state; two exchanges
]
EACH = [*study.ALGORITHMS[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in study.ALGORITHMS[4:])]
LAYOUTS = {
    "2 packs": {"packs": 2},
    "4 packs": {"packs": 4},
    "8 packs": {"packs": 8},
    "groups of 1": {"group_size": 1},
    "groups of 7": {"group_size": 7},
    "nested regions": {"regions": NESTED},
    "one pack a site": {"sites_per_actor": 1},
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_process_layouts_give_equal_bits(name, layout):
    if name == "hierfavg" and "regions" in LAYOUTS[layout]:
        pytest.skip("what is declared there are other regions, which this algorithm means: see test_hierfavg")
    assert study.train(name, **LAYOUTS[layout]).params_sha256 == study.expected(name).params_sha256


@pytest.mark.parametrize("name", study.ALGORITHMS)
def test_the_order_of_the_sites_does_not_matter(name):
    turned = study.hospitals().select(SITES[::-1])
    assert study.train(name, data=turned, packs=3).params_sha256 == study.expected(name).params_sha256


@pytest.mark.parametrize("name", [name for name in study.ALGORITHMS if name not in study.TWO_EXCHANGES])
@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_site_that_breaks_leaves_the_bits_of_a_run_that_never_asked_it(name, how):
    lost = SITES[2], SITES[9]
    everyone = fr.synchronous(cohort=1.0)
    others = replace(everyone, among=frozenset(SITES) - frozenset(lost))

    def train(schedule, update, **layout):
        algorithm = study.algorithm(name, update)
        with fr.simulate(study.hospitals(), **layout) as federation:
            return fr.fit(
                algorithm, federation, init=study.model().init(0), rounds=3, seed=5, schedule=schedule
            )

    broken = train(everyone, study.Broken(study.local(), how, lost), packs=2)
    assert broken.params_sha256 == train(others, study.local()).params_sha256
    assert {failure.site for record in broken.metrics for failure in record.failures} == set(lost)


@pytest.fixture(scope="module")
def two_actors(ray_session):
    """Yield a federation of two actors, opened once: what a run leaves there is no other run's business."""
    with fr.simulate(study.hospitals(), runtime="ray", packs=2, placement="actors") as federation:
        yield federation


@pytest.mark.parametrize("name", ON_RAY)
def test_two_ray_actors_give_the_bits_of_one_process(two_actors, name):
    trained = study.fit(name, two_actors)
    assert trained.params_sha256 == study.expected(name).params_sha256


@pytest.fixture(scope="module")
def sites_alone(ray_session):
    """Yield data and federation of two sites, each alone in its actor, so that its rows travel coded."""
    two = study.hospitals().select(SITES[:2])
    with fr.simulate(two, runtime="ray", packs=2, placement="actors") as federation:
        yield two, federation


@pytest.mark.parametrize("name", ["ef21", "bidirectional"])
def test_what_travels_coded_to_and_from_actors_gives_the_bits_of_one_process(sites_alone, name):
    two, federation = sites_alone
    on_ray = study.fit(name, federation)
    assert on_ray.params_sha256 == study.train(name, data=two).params_sha256
    assert [record.bytes_up for record in on_ray.metrics] == [record.site_bytes for record in on_ray.metrics]


@pytest.mark.parametrize("name", ["site_dp", "site_dp_local"])
def test_noise_of_an_injected_source_has_the_bits_of_one_process_on_actors(two_actors, name):
    trained = study.fit(name, two_actors)
    assert trained.params_sha256 == study.expected(name).params_sha256


REGIONS = {"eu": {"de": SITES[:5], "fr": SITES[5:8]}, "us": SITES[8:]}


@pytest.fixture(scope="module")
def regions_of_actors(ray_session):
    with fr.simulate(study.hospitals(), runtime="ray", regions=REGIONS, placement="actors") as federation:
        yield federation


def test_nested_regions_of_actors_give_the_bits_of_one_process(regions_of_actors):
    on_ray = study.fit("scaffold", regions_of_actors)
    assert on_ray.params_sha256 == study.expected("scaffold").params_sha256


def test_averages_in_nested_regions_of_actors_have_the_bits_of_one_process(regions_of_actors):
    in_process = study.train("hierfavg", regions=REGIONS)
    on_ray = study.fit("hierfavg", regions_of_actors)
    assert on_ray.params_sha256 == in_process.params_sha256 != study.expected("hierfavg").params_sha256
    assert [record.hashes for record in on_ray.metrics] == [record.hashes for record in in_process.metrics]


def test_sites_of_two_actors_mix_with_the_bits_of_one_process(two_actors):
    on_ray = study.fit("dpsgd", two_actors)
    expected = study.expected("dpsgd")
    assert on_ray.params_sha256 == expected.params_sha256
    mixed = [[record.hashes["model"] for record in found.metrics] for found in (on_ray, expected)]
    assert mixed[0] == mixed[1]


def test_training_happens_in_the_packs_and_bytes_are_one_partial_sum_per_pack_and_round(ray_session):
    import os

    from fedray.runtime.pack import expected_bytes

    with fr.simulate(study.hospitals(), runtime="ray", packs=2, placement="actors") as federation:
        result = fr.fit(study.algorithm("fedavg"), federation, init=study.model().init(0), rounds=2, seed=5)
        pids = federation.call("pids")
        trained = federation.call("training_processes")
        sent = federation.call("arrived")
    packs = {pid for name, pid in pids.items() if name != "aggregator"}
    assert trained == packs and len(packs | {pids["aggregator"], os.getpid()}) == 4
    per_round = {
        name: 2 * size for name, size in expected_bytes(result.plan, 1, study.NUM_SITES // 2).items()
    }
    assert sent == {name: 2 * size for name, size in per_round.items()}
    assert [record.bytes_up for record in result.metrics] == [sum(per_round.values())] * 2
