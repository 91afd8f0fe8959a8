"""The model of a cluster: its formulas by hand, its bounds, and its random parts against draws."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from fedray.runtime.cluster_model import (
    Cluster,
    Costs,
    Link,
    Region,
    Workload,
    asked_hosts,
    fullest,
    predict,
    slowest,
    transfer_s,
    work_s,
)

NAMES = ("round_s", "site_s", "site_byte_s", "step_s", "fold_s", "fold_byte_s", "call_s", "put_s", "byte_s")
FREE = Costs(**dict.fromkeys(NAMES, 0.0))
NEAR = Link(round_trip_s=0, bytes_per_s=math.inf)
FAR = Link(round_trip_s=0.1, bytes_per_s=1e6)
WORK = Workload(cohort=100, steps=20, down_bytes=1e6, up_bytes=4e6)


def cluster(regions: int = 5, hosts: int = 20, wide: Link = FAR, **facts: float) -> Cluster:
    return Cluster(regions=(Region(hosts=hosts, wide=wide, local=NEAR),) * regions, **facts)


def test_a_transfer_waits_for_the_window_and_for_the_bytes() -> None:
    assert transfer_s(0, FAR) == 0.1
    assert transfer_s(14_600, FAR) == pytest.approx(0.1 + 0.0146)
    assert transfer_s(29_200, FAR) == pytest.approx(0.1 + 0.1 + 0.0292)  # one doubling
    # the window never exceeds what the link holds in a round trip: 1e5 bytes
    assert transfer_s(1e7, FAR) == pytest.approx(0.1 * (1 + math.log2(1e5 / 14_600)) + 10)
    assert transfer_s(1e7, FAR, sharing=4) == pytest.approx(0.1 * (1 + math.log2(2.5e4 / 14_600)) + 40)
    assert transfer_s(1e7, NEAR) == 0


@pytest.mark.parametrize(("hosts", "spread"), [(5, 0.3), (100, 0.3), (100, 0.8), (2000, 0.5)])
def test_the_slowest_host_is_what_draws_give(hosts: int, spread: float) -> None:
    draws = random.Random(hosts)
    rounds = [max(draws.lognormvariate(-spread**2 / 2, spread) for _ in range(hosts)) for _ in range(400)]
    assert slowest(hosts, spread) == pytest.approx(sum(rounds) / len(rounds), rel=0.1)


def test_without_spread_or_with_one_host_nobody_is_slow() -> None:
    assert slowest(1000, 0) == slowest(1, 0.9) == 1


@pytest.mark.parametrize(("cohort", "hosts", "each"), [(10, 8, 4), (3, 10, 1), (40, 4, 10), (20, 2, 50)])
def test_the_hosts_that_are_asked_are_what_draws_give(cohort: int, hosts: int, each: int) -> None:
    draws = random.Random(1)
    sites = [site % hosts for site in range(hosts * each)]
    found = [len(set(draws.sample(sites, cohort))) for _ in range(4000)]
    assert asked_hosts(cohort, hosts, each) == pytest.approx(sum(found) / len(found), rel=0.02)


@pytest.mark.parametrize(("cohort", "hosts", "each"), [(32, 4, 50), (100, 2, 500), (40, 10, 20)])
def test_the_fullest_host_is_what_draws_give(cohort: int, hosts: int, each: int) -> None:
    draws = random.Random(1)
    sites = [site % hosts for site in range(hosts * each)]
    found = [max(Counter(draws.sample(sites, cohort)).values()) for _ in range(2000)]
    assert fullest(cohort, hosts, each) == pytest.approx(sum(found) / len(found), rel=0.05)


def test_the_fullest_of_hosts_with_one_site_has_one_and_of_one_host_all() -> None:
    assert fullest(10_000, 10**6) == 1 and fullest(7, 1, 50) == 7 and fullest(200, 4, 50) == 50


def test_where_each_host_is_one_site_the_cohort_is_asked() -> None:
    assert asked_hosts(10_000, 10**6) == pytest.approx(10_000, rel=1e-6)
    assert asked_hosts(1000, 1000) == 1000
    with pytest.raises(ValueError, match="at most all"):
        asked_hosts(11, 10)


def test_work_is_steps_over_cores_or_over_the_machine_that_hosts_share() -> None:
    costs = replace(FREE, site_s=0.3, site_byte_s=2e-7, step_s=0.1)  # 2.5 s a site
    assert work_s(WORK, costs, cluster()) == pytest.approx(2.5)
    assert work_s(WORK, costs, cluster(cores_per_host=2)) == pytest.approx(1.25)
    packs = Cluster(regions=(Region(hosts=4, wide=NEAR, local=NEAR),), sites_per_host=50, shared_cores=2)
    assert work_s(WORK, costs, packs) == pytest.approx(125)
    alone = work_s(WORK, costs, replace(packs, shared_cores=8))
    assert alone == pytest.approx(2.5 * fullest(100, 4, 50)) and alone > 62.5


def test_a_round_by_hand() -> None:
    costs = Costs(round_s=1, site_s=0, site_byte_s=0, step_s=0.1, fold_s=0.01, fold_byte_s=1e-8, call_s=0.001,
                  put_s=0.1, byte_s=1e-7)
    link = Link(round_trip_s=0, bytes_per_s=1e7)
    flat = predict(WORK, costs, cluster(wide=link), "flat")
    assert flat.server_s == pytest.approx(1 + 0.1 + 0.1 + 100 * 0.001)
    assert flat.down_s == pytest.approx(20 * 0.1) and flat.up_s == pytest.approx(20 * 0.4)
    assert flat.work_s == pytest.approx(2) and flat.fold_s == pytest.approx(100 * 0.05)
    assert flat.round_s == pytest.approx(1.3 + 2 + 8 + 2 + 5)
    assert flat.rounds_per_hour == pytest.approx(3600 / 18.3)
    assert flat.root_bytes == pytest.approx(100 * 5e6)
    regional = predict(WORK, costs, cluster(wide=link), "regional")
    assert regional.server_s == pytest.approx(1 + 2 * 0.2 + 25 * 0.001)
    assert regional.down_s == pytest.approx(0.1) and regional.up_s == pytest.approx(0.4)
    assert regional.fold_s == pytest.approx(25 * 0.05) and regional.root_bytes == pytest.approx(5 * 5e6)


def test_two_stages_send_and_fold_twice_but_work_once() -> None:
    costs = replace(FREE, round_s=1, step_s=0.1, fold_s=0.01)
    once, twice = (predict(replace(WORK, site_stages=stages), costs, cluster()) for stages in (1, 2))
    assert (twice.down_s, twice.up_s, twice.fold_s) == pytest.approx(
        (2 * once.down_s, 2 * once.up_s, 2 * once.fold_s))
    assert twice.work_s == once.work_s


def test_the_roots_connection_bounds_all_regions_together() -> None:
    fast = cluster(wide=Link(round_trip_s=0, bytes_per_s=1e9))
    assert predict(WORK, FREE, fast).down_s == pytest.approx(1e6 / 1e9)
    assert predict(WORK, FREE, replace(fast, root_bytes_per_s=1e6)).down_s == pytest.approx(5)
    assert predict(WORK, FREE, replace(fast, root_bytes_per_s=1e6), "flat").down_s == pytest.approx(100)


def test_stragglers_hide_the_folding_of_those_before_them() -> None:
    costs = replace(FREE, step_s=1.0, fold_s=0.01)
    still = predict(WORK, costs, cluster(), "flat")
    spread = predict(replace(WORK, spread=0.5), costs, cluster(), "flat")
    assert still.fold_s == pytest.approx(1.0) and spread.fold_s == pytest.approx(0.01)
    assert spread.work_s == pytest.approx(20 * slowest(100, 0.5))


@pytest.mark.parametrize("aggregation", ["flat", "regional"])
def test_more_of_anything_never_takes_less(aggregation: str) -> None:
    costs = Costs(**dict.fromkeys(NAMES, 1e-3))
    base = predict(WORK, costs, cluster(), aggregation).round_s
    for field in ("steps", "down_bytes", "up_bytes"):
        more = replace(WORK, **{field: 2 * getattr(WORK, field)})
        assert predict(more, costs, cluster(), aggregation).round_s > base
    for field in NAMES:
        more_costs = replace(costs, **{field: 2 * getattr(costs, field)})
        assert predict(WORK, more_costs, cluster(), aggregation).round_s > base
    slow = Link(round_trip_s=0.2, bytes_per_s=5e5)
    assert predict(WORK, costs, cluster(wide=slow), aggregation).round_s > base


def test_regions_save_traffic_of_the_root() -> None:
    for regions, hosts in itertools.product((2, 5), (10, 200)):
        work = replace(WORK, cohort=regions * hosts)
        flat, regional = (predict(work, FREE, cluster(regions, hosts), kind) for kind in ("flat", "regional"))
        assert regional.root_bytes * hosts == pytest.approx(flat.root_bytes)
        assert regional.round_s < flat.round_s


def test_another_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'flat' or 'regional'"):
        predict(WORK, FREE, cluster(), "ring")
