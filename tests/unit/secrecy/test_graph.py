"""The thresholds of the specification, and a graph in which all agree on who holds what."""

import collections
import math

import pytest

from fedray.secrecy.graph import Topology, holders, log2_choices, shuffled, topology

TABLE = [  # sites, corrupt, lost, curious (k, t), active (k, t)
    (100, 0.05, 0.05, (22, 6), (22, 14)),
    (200, 0.05, 0.05, (26, 11), (32, 22)),
    (200, 0.10, 0.10, (38, 19), (60, 41)),
    (200, 0.20, 0.10, (50, 31), (78, 58)),
    (200, 0.10, 0.30, (64, 21), (140, 81)),
    (200, 0.33, 0.33, (128, 65), None),
    (500, 0.10, 0.10, (46, 25), (94, 64)),
    (1000, 0.05, 0.05, (34, 18), (60, 41)),
    (1000, 0.10, 0.10, (52, 28), (114, 78)),
    (1000, 0.20, 0.10, (74, 45), (158, 115)),
    (10000, 0.10, 0.10, (60, 32), (144, 98)),
]
SEED = bytes(range(32))


@pytest.mark.parametrize(("num_sites", "corrupt", "lost", "curious", "active"), TABLE)
def test_degree_and_threshold_of_the_table(num_sites, corrupt, lost, curious, active):
    full = (None, 2 * num_sites // 3 + 1)
    assert topology(num_sites, "curious", corrupt, lost) == Topology(*curious)
    assert topology(num_sites, "active", corrupt, lost) == Topology(*(active or full))


@pytest.mark.parametrize(
    ("num_sites", "threshold", "may_be_lost"),
    [
        (3, 3, 0),
        (5, 4, 1),
        (8, 6, 2),
        (10, 7, 3),
        (20, 14, 6),
        (50, 34, 16),
        (64, 43, 21),
    ],
)
def test_full_graph_against_an_active_server_needs_more_than_two_thirds(num_sites, threshold, may_be_lost):
    assert topology(num_sites, "active") == Topology(None, threshold)
    assert num_sites - threshold == may_be_lost


def test_full_graph_against_a_curious_server_needs_more_than_half():
    assert topology(8, "curious") == Topology(None, 5)


@pytest.mark.parametrize("num_sites", [1, 2])
def test_under_three_sites_there_is_no_secret_sum(num_sites):
    with pytest.raises(ValueError, match="3 sites"):
        topology(num_sites, "active")


def test_everyone_holds_shares_of_everyone_in_the_full_graph():
    assert holders([4, 0, 2], None) == dict.fromkeys((0, 2, 4), (0, 2, 4))


def test_ring_gives_each_site_k_neighbours_who_have_it_as_theirs():
    held = holders(range(70), 12, SEED)
    assert {len(set(names) - {member}) for member, names in held.items()} == {12}
    assert all(member in held[other] for member, names in held.items() for other in names)


def test_ring_is_connected_through_nearest_neighbours():
    held = holders(range(70), 12, SEED)
    seen, member = [], 0
    for _ in range(70):
        seen.append(member)
        member = held[member][0]
    assert member == 0 and sorted(seen) == list(range(70))


def test_members_that_fit_into_one_neighbourhood_are_a_full_graph():
    assert holders(range(13), 12, SEED) == holders(range(13), None)


def test_order_of_the_ring_is_uniform():
    # chi^2 of the place of member 0 among 8, 4,000 seeds: 7 degrees of freedom, p = 1e-6 at 41
    places = collections.Counter(
        shuffled(range(8), number.to_bytes(32, "little")).index(0) for number in range(4000)
    )
    assert sum((places[place] - 500) ** 2 / 500 for place in range(8)) < 41


def test_withheld_numbers_cost_bits():
    assert log2_choices(200, 0) == 0
    assert log2_choices(200, 1) == pytest.approx(math.log2(201))
