"""Graphs over sites and the weights along their edges."""

import numpy as np
import pytest

import fedray as fr
from fedray.algorithms import topology as T
from fedray.passes.mixing import among
from tests.unit.algorithms.cases import uneven

SITES = tuple(f"h{i}" for i in range(6))
UNDIRECTED = {
    "ring": T.ring(SITES),
    "torus": T.torus(SITES),
    "complete": T.complete(SITES),
    "star": T.star(SITES),
    "erdos_renyi": T.erdos_renyi(SITES, 0.6, 3),
}


@pytest.mark.parametrize("name", UNDIRECTED)
def test_metropolis_weights_are_symmetric_and_doubly_stochastic_whoever_is_there(name):
    matrix = T.check_doubly(T.metropolis(UNDIRECTED[name]), SITES, "test")
    dense = T.dense(matrix)
    for there in (SITES, SITES[1:], SITES[::2], SITES[:1]):
        left = among(matrix, there).numpy()
        assert np.allclose(left, left.T) and np.allclose(left.sum(0), 1) and (left >= 0).all()
        off = ~np.eye(len(there), dtype=bool)
        places = [SITES.index(site) for site in there]
        assert np.array_equal(left[off], dense[np.ix_(places, places)][off])


@pytest.mark.parametrize("graph", [T.directed_ring(SITES), T.exponential(SITES), T.star(SITES)])
def test_dealt_weights_are_column_stochastic_whoever_is_there(graph):
    matrix = T.check_columns(T.dealt(graph), SITES, "test")
    for there in (SITES, SITES[1:], SITES[::2]):
        assert np.allclose(among(matrix, there, "columns").sum(0), 1)


def test_rows_keep_their_sums_where_columns_cannot():
    matrix = {"a": {"a": 0.2, "b": 0.8}, "b": {"b": 0.5, "c": 0.5}, "c": {"c": 1.0}}
    assert among(matrix, ("a", "c")).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert among(matrix, ("a", "b")).tolist() == [[0.2, 0.8], [0.0, 1.0]]
    assert among(matrix, ("a", "b"), "columns").tolist() == [[0.2, 0.8], [0.0, 0.5]]
    assert among(matrix, ("b", "c"), "columns").tolist() == [[1.3, 0.5], [0.0, 1.0]]


def test_graphs_have_the_edges_of_their_names():
    assert UNDIRECTED["ring"]["h0"] == ["h1", "h5"] and UNDIRECTED["star"]["h0"] == list(SITES[1:])
    assert sorted(UNDIRECTED["torus"]["h0"]) == ["h1", "h2", "h3"]  # two rows of three
    assert T.exponential(SITES)["h1"] == ["h2", "h3", "h5"]
    assert {len(near) for near in T.torus([str(i) for i in range(12)]).values()} == {4}
    assert T.ring(("a", "b")) == {"a": ["b"], "b": ["a"]} and T.ring(("a",)) == {"a": []}


def test_random_edges_follow_from_the_seed():
    assert T.erdos_renyi(SITES, 0.6, 3) == UNDIRECTED["erdos_renyi"] != T.erdos_renyi(SITES, 0.6, 4)
    assert T.erdos_renyi(SITES, 1.0, 0) == UNDIRECTED["complete"]


def test_one_peer_matrices_average_a_power_of_two_of_sites_in_as_many_rounds_as_its_logarithm():
    peers = T.OnePeer(tuple("abcdefgh"))
    after = T.dense(peers(2)) @ T.dense(peers(1)) @ T.dense(peers(0))
    assert np.allclose(after, 1 / 8) and peers(3) == peers(0)


def test_the_second_eigenvalue_is_that_of_the_closed_form():
    rate = T.second_eigenvalue(T.metropolis(T.ring(SITES)))
    assert rate == pytest.approx((1 + 2 * np.cos(2 * np.pi / 6)) / 3)
    assert T.second_eigenvalue(T.metropolis(T.complete(SITES))) == pytest.approx(0, abs=1e-12)


HALF = {"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.5, "b": 0.5}}


@pytest.mark.parametrize(("matrix", "why"), [
    ({"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.4, "b": 0.6}}, "not symmetric: a takes 0.5 of b"),
    ({"a": {"a": 0.4, "b": 0.5}, "b": {"a": 0.5, "b": 0.5}}, "the row of a adds up to 0.9"),
    ({"a": {"a": 1.5, "b": -0.5}, "b": {"a": -0.5, "b": 1.5}}, "below 0"),
    ({"a": {"a": 1.0}, "b": {"b": 1.0}}, "b never hears of a"),
    ({"a": {"a": 1.0}}, r"do not name the same ones \(b\)"),
    ({**HALF, "c": {"c": 1.0}}, r"do not name the same ones \(c\)"),
    ({"a": HALF["a"]}, "no row of the matrix for b"),
    ({"a": {"a": float("nan"), "b": 1.0}, "b": {"a": 1.0, "b": 0.0}}, "no finite number"),
    ({"a": {"a": "0.5", "b": "0.5"}, "b": {"a": "0.5", "b": "0.5"}}, "no finite number"),
])
def test_a_matrix_that_is_not_doubly_stochastic_is_refused_with_its_site(matrix, why):
    with pytest.raises(ValueError, match=why):
        T.check_doubly(matrix, ("a", "b"), "dpsgd")


@pytest.mark.parametrize(("matrix", "why"), [
    ({"a": {"b": 1.0}, "b": {"a": 1.0}}, "a keeps nothing"),
    ({"a": {"a": 0.5}, "b": {"a": 0.5, "b": 1.0}}, "a never hears of b"),
])
def test_a_matrix_that_push_sum_cannot_use_is_refused(matrix, why):
    with pytest.raises(ValueError, match=why):
        T.check_columns(matrix, ("a", "b"), "push_sum")


def test_paths_between_all_are_those_of_the_powers_of_the_graph():
    draws, found = np.random.default_rng(0), []
    for _ in range(200):
        weights = (draws.random((6, 6)) < 0.25).astype(float)
        lost = np.linalg.matrix_power(weights + np.eye(6), 6) == 0  # [receiver, sender]
        pair = T._unheard(weights)
        found.append(pair is not None)
        assert lost.any() if pair else not lost.any()
        assert pair is None or lost[pair[1], pair[0]]
    assert 0 < sum(found) < 200


@pytest.mark.parametrize(("make", "why"), [
    (lambda: fr.algorithms.dpsgd(uneven(), SITES, "line"), "choose one of ring"),
    (lambda: fr.algorithms.push_sum(uneven(), SITES, "line"), "choose one of directed_ring"),
    (lambda: fr.algorithms.dpsgd(uneven(), SITES[:5], "torus"), "5 sites do not fill a rectangle"),
    (lambda: fr.algorithms.dpsgd(uneven(), (), "ring"), "give the id of every site"),
    (lambda: fr.algorithms.dpsgd(uneven(), ("a", "a"), "ring"), "each once"),
    (lambda: fr.algorithms.dpsgd(uneven(), SITES, "erdos_renyi", edge_probability=0.01), "never hears of"),
    (lambda: T.erdos_renyi(SITES, 1.5, 0), "at most 1"),
])
def test_graphs_that_cannot_be_are_refused(make, why):
    with pytest.raises(ValueError, match=why):
        make()
