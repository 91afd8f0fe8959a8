"""D-PSGD beside a loop that is written from the paper, in numpy; agreement at the rate of the matrix."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms import topology
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from fedray.passes.mixing import among
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    STEPS,
    gradient,
    kept,
    leaving,
    personal_models,
    quadratic,
    single,
    tables,
    trained,
    uneven,
    vector,
)
from tests.unit.runtime.toy import Breaks

SITES = tuple("abcde")
EDGES = {"a": "bc", "b": "ade", "c": "ae", "d": "be", "e": "bcd"}  # a ring, and a chord from b to e


def metropolis_by_hand():
    """W_ij = 1 / (1 + max(d_i, d_j)) for neighbours, W_ii = 1 - sum_j W_ij."""
    w = np.zeros((5, 5))
    for i, near in EDGES.items():
        for j in near:
            w[ord(i) - 97, ord(j) - 97] = 1 / (1 + max(len(near), len(EDGES[j])))
    return w + np.diag(1 - w.sum(1))


MATRIX = {i: {j: float(metropolis_by_hand()[ord(i) - 97, ord(j) - 97]) for j in SITES} for i in SITES}


def dpsgd_by_hand(variant="paper", cohorts=COHORTS, steps=STEPS, keeps_own=True):
    """Lian et al., Algorithm 1 (steps quoted). Returns every site's x_i.

    `keeps_own=False` is the mistake: the weights of absent neighbours are lost.
    """
    whole = metropolis_by_hand()
    x = {i: np.zeros(NUM_FEATURES + 1) for i in tables()}  # "initial point x_{0,i} = x_0"
    for cohort in cohorts:  # "for k = 0, 1, 2, ..., K-1 do"
        places = [ord(i) - 97 for i in cohort]
        w = whole[np.ix_(places, places)].copy()
        if keeps_own:
            w += np.diag(1 - w.sum(1))
        moved = {}
        for i in cohort:  # "compute the local stochastic gradient"; several steps from the site's own x_i
            y = x[i]
            for _ in range(steps[i]):
                y = y - LR * gradient(i, y)
            moved[i] = y - x[i]
        old = dict(x)
        for row, i in zip(w, cohort, strict=True):
            if variant == "paper":
                # "compute the neighborhood weighted average x_{k+1/2,i} = sum_j W_ij x_{k,j}"
                half = sum(weight * old[j] for weight, j in zip(row, cohort, strict=True))
                x[i] = half + moved[i]  # "update x_{k+1,i} <- x_{k+1/2,i} - gamma gradient"
            else:
                x[i] = sum(weight * (old[j] + moved[j]) for weight, j in zip(row, cohort, strict=True))
    return x  # "Output: 1/n sum_i x_{K,i}"


def far(found, expected):
    return max(np.abs(found[i] - expected[i]).max() for i in expected)


@pytest.mark.parametrize("variant", ["paper", "adapt_then_combine"])
def test_dpsgd_equals_the_papers_loop(variant):
    result, found = trained(fr.algorithms.dpsgd(uneven(), SITES, MATRIX, variant), look=kept)
    expected = dpsgd_by_hand(variant)
    assert far(found, expected) < 1e-12
    assert np.abs(vector(result.params) - sum(expected.values()) / 5).max() < 1e-12
    assert far(dpsgd_by_hand("adapt_then_combine"), dpsgd_by_hand("paper")) > 1e-2
    assert far(dpsgd_by_hand(variant, keeps_own=False), expected) > 1e-2


def test_the_twin_in_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single()
    _, found = trained(fr.algorithms.dpsgd(local, SITES, MATRIX), data, 1, init=init, look=kept)
    expected = dpsgd_by_hand(cohorts=COHORTS[:1], steps=SAME_STEPS)
    assert far(found | {i: expected[i] for i in "de"}, expected) < 1e-4


@pytest.mark.parametrize("variant", ["paper", "adapt_then_combine"])
def test_a_site_whose_step_fails_is_mixed_with_nobody(variant):
    broken = Breaks(uneven(), ("b",), 2, "nan")
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    algorithm = fr.algorithms.dpsgd(broken, SITES, MATRIX, variant)
    result, found = trained(algorithm, rounds=3, schedule=schedule, look=kept)
    assert far(found, dpsgd_by_hand(variant, ["abc", "ade", "cd"])) < 1e-12
    assert [record.counted for record in result.metrics] == [3, 3, 2]


def targets(numbers):
    return {
        site: SiteData({"a": torch.ones(1).double(), "b": torch.tensor([number]).double()})
        for site, number in numbers.items()
    }


def first_round_only(round):
    return 1.0 if round == 0 else 0.0


def test_without_steps_sites_agree_on_their_average_at_the_rate_of_the_second_eigenvalue():
    sites = tuple(f"h{i}" for i in range(6))
    numbers = dict(zip(sites, [3.0, -1.0, 4.0, 1.0, -5.0, 9.0], strict=True))
    local = fr.learn.sgd(quadratic, lr=first_round_only, steps=1)  # at its target after a step, then at rest
    algorithm = fr.algorithms.dpsgd(local, sites, "ring")
    apart = {}
    for rounds in (21, 31):
        result, found = trained(algorithm, targets(numbers), rounds, fr.synchronous(), AT_ZERO, kept)
        assert float(result.params["x"]) == pytest.approx(11 / 6, abs=1e-12)
        apart[rounds] = np.linalg.norm([found[i][0] - 11 / 6 for i in sites])
    rate = topology.second_eigenvalue(topology.metropolis(topology.ring(sites)))
    assert rate == pytest.approx(1 / 3 + 2 / 3 * np.cos(2 * np.pi / 6), abs=1e-12)
    assert (apart[31] / apart[21]) ** 0.1 == pytest.approx(rate, abs=1e-6)


def test_on_a_complete_graph_with_equal_weights_the_average_takes_steps_of_gradient_descent():
    local = fr.learn.sgd(quadratic, lr=0.5, steps=1)
    data = targets({site: float(place) for place, site in enumerate(SITES)})
    algorithm = fr.algorithms.dpsgd(local, SITES, "complete", "adapt_then_combine")
    result, found = trained(algorithm, data, 40, fr.synchronous(), AT_ZERO, kept)
    assert float(result.params["x"]) == pytest.approx(2.0, abs=1e-10)
    assert max(abs(found[i][0] - 2.0) for i in SITES) < 1e-10


def test_equal_sites_with_equal_neighbours_stay_equal():
    algorithm = fr.algorithms.dpsgd(uneven(), SITES, "complete")
    _, found = trained(algorithm, schedule=fr.synchronous(), look=kept)
    assert np.abs(found["c"] - found["d"]).max() < 1e-12 < np.abs(found["c"] - found["e"]).max()


def test_each_neighbour_and_the_server_see_a_model_and_egress_says_so():
    algorithm = fr.algorithms.dpsgd(uneven(), SITES, MATRIX)
    plan = fr.compile(algorithm)
    (row,) = (row for row in egress_rows(plan) if row["name"] == "model")
    assert (row["kind"], row["visible"]) == ("mix", "yes, to neighbours")
    assert "neighbours are shown the value, and so is the server" in fr.egress(plan)
    with pytest.raises(fr.errors.PolicyError, match=r"model \(mix.*shows the value of one site"):
        fr.compile(algorithm, [fr.passes.require(released={"metrics", "moved"})])


def test_without_the_average_no_sum_of_models_leaves_and_sites_have_their_own():
    algorithm = fr.algorithms.dpsgd(uneven(), SITES, MATRIX, average=False)
    assert "moved" not in leaving(algorithm)
    result, own = trained(algorithm, look=personal_models(algorithm))
    assert far(own, dpsgd_by_hand()) < 1e-12 and not vector(result.params).any()


def test_a_matrix_that_does_not_name_a_site_of_the_federation_is_refused():
    with pytest.raises(ValueError, match="no row for site 'd'"):
        among({"a": {"a": 1.0}}, ["a", "d"])


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant='both'"):
        fr.algorithms.dpsgd(uneven(), SITES, variant="both")
