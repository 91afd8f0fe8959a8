"""The drift oracle: two quadratics whose federated fixed points are known in closed form.

f_i(x) = a_i/2 (x - b_i)^2 with a = (1, 4), b = (1, -1), K local steps of 0.05, equal weights.
"""

import pytest

from fedray import learn, tree
from fedray.rng import Key

from .cases import at, quadratic, quadratic_site

SITES = [quadratic_site(1.0, 1.0), quadratic_site(4.0, -1.0)]
ROUNDS = {1: 220, 10: 60, 50: 40}  # enough for 1e-10: the more local steps, the fewer rounds


def averaged(steps, **settings):
    """Return where the mean of the local models settles."""
    local, x = learn.sgd(quadratic, lr=0.05, steps=steps, **settings), at(0)
    for round in range(ROUNDS[steps]):
        deltas = [local(x, data, Key(0, round, "h")).delta for data in SITES]
        x = tree.add(x, tree.scale(tree.add(*deltas), 0.5))
    return float(x["x"])


def fixed_point(steps, mu=0.0):
    shares = [a / (a + mu) * (1 - (1 - 0.05 * (a + mu)) ** steps) for a in (1.0, 4.0)]
    return (shares[0] - shares[1]) / sum(shares)


@pytest.mark.parametrize(("steps", "expected"), [(1, -0.600000), (10, -0.379757), (50, -0.040005)])
def test_fedavg_settles_where_the_algebra_says(steps, expected) -> None:
    found = averaged(steps)
    assert found == pytest.approx(expected, abs=1e-6) and found == pytest.approx(fixed_point(steps), abs=1e-9)


@pytest.mark.parametrize(("steps", "expected"), [(10, -0.397265), (50, -0.233213)])
def test_fedprox_settles_where_the_algebra_says(steps, expected) -> None:
    found = averaged(steps, prox=1.0)
    assert found == pytest.approx(expected, abs=1e-6) and found == pytest.approx(
        fixed_point(steps, 1.0), abs=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_scaffold_reaches_the_optimum_for_any_number_of_steps(steps) -> None:
    local, x, c = learn.sgd(quadratic, lr=0.05, steps=steps), at(0), at(0)
    controls = [at(0), at(0)]
    for round in range(2 * ROUNDS[steps]):
        updates = [
            local(x, data, Key(0, round, "h"), correction=tree.sub(c, own))
            for data, own in zip(SITES, controls, strict=True)
        ]
        following = [
            tree.sub(tree.sub(own, c), tree.scale(update.delta, 1 / (update.num_steps * 0.05)))
            for own, update in zip(controls, updates, strict=True)
        ]
        x = tree.add(x, tree.scale(tree.add(updates[0].delta, updates[1].delta), 0.5))
        c, controls = tree.scale(tree.add(*following), 0.5), following
    assert float(x["x"]) == pytest.approx(-0.6, abs=1e-6)
