"""Mistakes that shipped libraries have made: each is written out beside the right form, and told apart.

One number at two sites, f_i(x) = a_i/2 (x - b_i)^2 with a = (1, 4), b = (1, -1), from x = 0, through `fit`.
Those of FedNova and FedDyn are in their own files.
"""

import math

import pytest

import fedray as fr
from fedray.learn import optimizer
from tests.unit.algorithms.cases import AT_ZERO, quadratic, trained, two_quadratics

SITES = ((1.0, 1.0), (4.0, -1.0))
LR, ROUNDS, RESTS = 0.1, 5, 2  # round 2 changes nothing
SERVER = {"sgd": 0.7, "momentum": 0.7, "adagrad": 0.1, "adam": 0.1, "yogi": 0.05}
B1, B2, TAU = 0.9, 0.99, 1e-3


def resting(round):
    return 0.0 if round == RESTS else LR


def local(momentum=0.0):
    return fr.learn.sgd(quadratic, lr=resting, steps=3, momentum=momentum)


def mean_delta(x, round, momentum=0.0, buffers=None):
    """The mean over the sites of what three steps change; `buffers` live on between rounds where given."""
    deltas = []
    for number, (a, b) in enumerate(SITES):
        y, speed = x, buffers[number] if buffers else 0.0
        for _ in range(3):
            speed = momentum * speed + a * (y - b)
            y -= resting(round) * speed
        if buffers:
            buffers[number] = speed
        deltas.append(y - x)
    return sum(deltas) / 2


def by_hand(kind, twice=False, late=False, corrected=False):
    """A server optimizer as in its paper; the switches are mistakes."""
    lr = SERVER[kind]
    x = m = 0.0
    v = TAU**2
    for round in range(ROUNDS):
        d = mean_delta(x, round) * (lr if twice else 1.0)
        if kind in ("sgd", "momentum"):
            m = 0.9 * m + d if kind == "momentum" else d
            m = 0.0 if late and round == 0 else m
            x += lr * m
            continue
        m = B1 * m + (1 - B1) * d
        if kind == "adagrad":
            v += d * d
        elif kind == "adam":
            v = B2 * v + (1 - B2) * d * d
        else:
            v -= (1 - B2) * d * d * ((v > d * d) - (v < d * d))
        unbiased = math.sqrt(1 - B2 ** (round + 1)) / (1 - B1 ** (round + 1)) if corrected else 1.0
        x += lr * unbiased * m / (math.sqrt(v) + TAU)
    return x


def found(kind):
    make = getattr(optimizer, kind)
    given = {"adagrad": {"beta1": B1}}.get(kind, {})
    algorithm = fr.algorithms.fedavg(local(), make(SERVER[kind], **given))
    return float(trained(algorithm, two_quadratics(), ROUNDS, fr.synchronous(), AT_ZERO)[0].params["x"])


@pytest.mark.parametrize("kind", SERVER)
def test_every_server_optimizer_equals_its_paper_through_a_round_of_zeros(kind):
    assert found(kind) == pytest.approx(by_hand(kind), abs=1e-12)


@pytest.mark.parametrize("kind", SERVER)
def test_the_servers_rate_is_applied_once(kind):
    assert abs(found(kind) - by_hand(kind, twice=True)) > 1e-3


def test_fedavgm_counts_its_first_round():
    assert abs(found("momentum") - by_hand("momentum", late=True)) > 0.1


def test_fedadam_has_no_bias_correction():
    assert abs(found("adam") - by_hand("adam", corrected=True)) > 0.05


def test_local_momentum_starts_at_zero_in_every_round():
    algorithm = fr.algorithms.fedavg(local(0.5))
    result, _ = trained(algorithm, two_quadratics(), ROUNDS, fr.synchronous(), AT_ZERO)
    right = wrong = 0.0
    buffers = [0.0, 0.0]
    for round in range(ROUNDS):
        right += mean_delta(right, round, 0.5)
        wrong += mean_delta(wrong, round, 0.5, buffers)
    assert float(result.params["x"]) == pytest.approx(right, abs=1e-12)
    assert abs(right - wrong) > 0.05
