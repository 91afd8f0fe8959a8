"""Push-sum beside a loop that is written from the paper, in numpy; the average on graphs without balance."""

import numpy as np
import pytest

import fedray as fr
from fedray.algorithms import topology
from fedray.core.explain import egress_rows
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    STEPS,
    gradient,
    own_models,
    quadratic,
    single,
    tables,
    trained,
    uneven,
    vector,
)
from tests.unit.algorithms.test_dpsgd import far, first_round_only, targets

SITES = tuple("abcde")
SENDS = {"a": "bc", "b": "c", "c": "de", "d": "a", "e": "abd"}  # strongly connected, not balanced
MATRIX = topology.dealt({site: list(others) for site, others in SENDS.items()})


def push_sum_by_hand(cohorts=COHORTS, steps=STEPS, keeps="columns", divides=True):
    """Assran et al., Algorithm 1 (its lines quoted). Returns (x_i, w_i) of every site.

    Mistakes: `keeps="rows"` loses what was meant for absent sites, `divides` False trains x_i, not z_i.
    """
    x = {i: np.zeros(NUM_FEATURES + 1) for i in tables()}  # "Initialize x_i^(0) = z_i^(0), w_i^(0) = 1"
    w = dict.fromkeys(tables(), 1.0)
    for cohort in cohorts:
        half = {}
        for i in cohort:
            z = start = x[i] / w[i] if divides else x[i]
            for _ in range(steps[i]):
                z = z - LR * gradient(i, z)  # "Compute mini-batch gradient at z_i^(k)"
            half[i] = x[i] + z - start  # "x_i^(k+1/2) = x_i^(k) - gamma grad F_i(z_i^(k))"
        nextx, nextw = dict.fromkeys(cohort, 0.0), dict.fromkeys(cohort, 0.0)
        for j in cohort:  # "Send (p_ij x_j^(k+1/2), p_ij w_j^(k)) to out-neighbors"
            share = 1 / (1 + len(SENDS[j]))
            absent = len(set(SENDS[j]) - set(cohort)) if keeps == "columns" else 0
            for i in {j, *SENDS[j]} & set(cohort):
                p = share * (1 + absent) if i == j else share
                nextx[i] = nextx[i] + p * half[j]  # "x_i^(k+1) = sum_j p_ij x_j^(k+1/2)"
                nextw[i] = nextw[i] + p * w[j]  # "w_i^(k+1) = sum_j p_ij w_j^(k)"
        x.update(nextx)
        w.update(nextw)
    return x, w  # "z_i^(k+1) = x_i^(k+1) / w_i^(k+1)"


def parts(federation):
    packs = federation.aggregator.root.transport.hosts.values()
    states = {site: pack.state_of(site) for pack in packs for site in pack.sites}
    found = {site: state for site, state in states.items() if state is not None}
    return {i: vector(one["x"]) for i, one in found.items()}, {i: one["w"] for i, one in found.items()}


def test_push_sum_equals_the_papers_loop():
    result, (x, w) = trained(fr.algorithms.push_sum(uneven(), SITES, MATRIX), look=parts)
    expected, weights = push_sum_by_hand()
    assert far(x, expected) < 1e-12 and max(abs(w[i] - weights[i]) for i in weights) < 1e-12
    assert np.abs(vector(result.params) - sum(expected.values()) / 5).max() < 1e-12
    assert far(push_sum_by_hand(divides=False)[0], expected) > 1e-2
    lost = push_sum_by_hand(keeps="rows")
    assert far(lost[0], expected) > 1e-2 and abs(sum(lost[1].values()) - 5) > 0.1 > abs(sum(w.values()) - 5)


def test_the_sum_of_the_weights_is_kept_whoever_is_there():
    _, (_, w) = trained(fr.algorithms.push_sum(uneven(), SITES, MATRIX), rounds=12, look=parts)
    assert sum(w.values()) == pytest.approx(5, abs=1e-12) and min(w.values()) > 0


def test_the_twin_in_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single()
    _, (x, w) = trained(fr.algorithms.push_sum(local, SITES, MATRIX), data, 1, init=init, look=parts)
    expected, weights = push_sum_by_hand(COHORTS[:1], SAME_STEPS)
    assert far({i: x[i] for i in "abc"}, {i: expected[i] for i in "abc"}) < 1e-4
    assert max(abs(w[i] - weights[i]) for i in "abc") < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "rounds"), [(MATRIX, 60), ("directed_ring", 125), ("exponential", 60), ("one_peer", 60)]
)
def test_push_sum_on_a_directed_graph_reaches_the_average(graph, rounds):
    numbers = dict(zip(SITES, [3.0, -1.0, 4.0, 1.0, -5.0], strict=True))
    local = fr.learn.sgd(quadratic, lr=first_round_only, steps=1)  # at its target after a step, then at rest
    algorithm = fr.algorithms.push_sum(local, SITES, graph, average=False)
    schedule = fr.synchronous(cohort=4) if graph == "exponential" else fr.synchronous()
    _, found = trained(
        algorithm, targets(numbers), rounds, schedule, AT_ZERO, lambda f: own_models(algorithm, f, AT_ZERO)
    )
    moved = [numbers[i] for i in numbers]
    if graph == "exponential":  # the site that was not asked in round 0 has stayed at 0
        asked = schedule.cohort_of(0, 0, SITES, {})
        moved = [numbers[i] * (i in asked) for i in numbers]
    assert [found[i][0] for i in SITES] == pytest.approx([sum(moved) / 5] * 5, abs=1e-10)


def run(packs=2, rounds=4, **more):
    local, data, init = single("auto")
    with fr.simulate(data, packs=packs) as federation:
        algorithm = fr.algorithms.push_sum(local, SITES, "one_peer")
        fr.fit(algorithm, federation, init=init, rounds=rounds, schedule=fr.synchronous(cohort=4), **more)
        federation.aggregator.root.commit([])
        x, w = parts(federation)
        return {i: (x[i].tobytes(), w[i]) for i in sorted(x)}


def test_bits_do_not_depend_on_packs_nor_on_a_resume(tmp_path):
    assert run(packs=1) == run(packs=2) == run(packs=4)
    run(rounds=2, checkpoint=Checkpoints(tmp_path))
    assert run(checkpoint=Checkpoints(tmp_path), resume=True) == run()


def test_receivers_and_the_server_see_what_is_pushed_and_egress_says_so():
    plan = fr.compile(fr.algorithms.push_sum(uneven(), SITES, MATRIX))
    (row,) = (row for row in egress_rows(plan) if row["name"] == "pushed")
    assert (row["kind"], row["visible"]) == ("mix", "yes, to neighbours")


def test_a_matrix_whose_columns_do_not_add_up_to_one_is_refused():
    rows = {site: {site: 0.5, other: 0.5} for site, other in zip(SITES, "bcdea", strict=True)}
    assert fr.algorithms.push_sum(uneven(), SITES, rows)
    with pytest.raises(ValueError, match="push_sum: the column of a adds up to 1.5"):
        fr.algorithms.push_sum(uneven(), SITES, {**rows, "c": {"c": 0.5, "a": 0.5}})
