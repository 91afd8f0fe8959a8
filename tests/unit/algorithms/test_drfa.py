"""DRFA beside a loop that is written from the paper, in numpy; what is drawn, and what it tends to."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.drfa import Draw
from tests.unit.algorithms.cases import (
    AT_ZERO,
    LR,
    NUM_FEATURES,
    SIZES,
    quadratic,
    sites,
    squares,
    tables,
    trained,
    two_quadratics,
    vector,
    with_statistics,
)
from tests.unit.algorithms.test_afl import SITES, nearest

STEPS, SIZE, RATE, ROUNDS = 4, 3, 0.02, 5


def drfa_by_hand(draw):
    """Deng et al., Algorithm 1, its steps quoted; `draw(weights, s)` gives D with multiplicity, t' and U."""
    w, weights = np.zeros(NUM_FEATURES + 1), np.full(5, 0.2)
    for s in range(ROUNDS):  # "for s = 0 to S - 1 do"
        chosen, until, asked = draw(weights, s)  # "server samples D^(s) according to lambda^(s) with size m"
        finals, middles = [], []  # "samples t' from s tau + 1, ..., (s + 1) tau uniformly at random"
        for i in chosen:  # "for clients i in D^(s) in parallel do"
            x, y = tables()[i]
            own = w.copy()  # "client sets w_i^(s tau) = w^(s)"
            for t in range(1, STEPS + 1):  # "for t = s tau, ..., (s + 1) tau - 1 do"
                own = own - LR * x.T @ (x @ own - y) / len(y)
                if t == until:
                    middles.append(own)
            finals.append(own)  # "client i sends w_i^((s+1) tau) and w_i^(t') back to the server"
        w = sum(finals) / SIZE  # "server computes w^(s+1) = 1/m sum w_i"
        middle = sum(middles) / SIZE  # "w^(t') = 1/m sum w_i^(t')"
        v = np.zeros(5)
        for i in asked:  # "server uniformly samples a subset U of clients with size m"
            x, y = tables()[i]  # "v_i = N/m f_i(w^(t')) if i in U, otherwise 0"
            v[SITES.index(i)] = 5 / SIZE * ((x @ middle - y) ** 2).mean() / 2
        weights = nearest(weights + STEPS * RATE * v)  # "lambda^(s+1) = Project(lambda^(s) + tau gamma v)"
    return w, weights


def drawn(weights, s):
    found = Draw(SIZE, STEPS, 0)(dict(zip(SITES, weights.tolist(), strict=True)), s)
    chosen = [site for site, count in found.times.items() for _ in range(count)]
    until = max(found.until.values())
    return chosen, until, [site for site, is_told in found.told.items() if is_told]


def algorithm(local=None, **settings):
    local = local or fr.learn.sgd(squares, lr=LR)
    return fr.algorithms.drfa(local, SITES, STEPS, SIZE, RATE, **settings)


def test_drfa_equals_the_papers_loop():
    result, _ = trained(algorithm(), rounds=ROUNDS, schedule=fr.synchronous())
    w, weights = drfa_by_hand(drawn)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert np.abs(np.array([result.state.weights[site] for site in SITES]) - weights).max() < 1e-12


def test_what_is_drawn_is_of_the_stated_size_and_follows_the_weights():
    shares = {"a": 0.7, "b": 0.3, "c": 0.0}
    draws = [Draw(2, 6, seed)(shares, 1) for seed in range(400)]
    assert {sum(draw.times.values()) for draw in draws} == {2}
    assert {sum(draw.told.values()) for draw in draws} == {2}
    assert {max(draw.until.values()) for draw in draws} == set(range(1, 7))
    assert all(draw.steps == {name: 6 * (n > 0) for name, n in draw.times.items()} for draw in draws)
    assert sum(draw.times["c"] for draw in draws) == 0
    assert sum(draw.times["a"] for draw in draws) / 800 == pytest.approx(0.7, abs=0.06)
    assert Draw(2, 6, 3)(shares, 1) == Draw(2, 6, 3)(shares, 1) != Draw(2, 6, 3)(shares, 2)


def test_a_site_that_was_not_drawn_takes_no_step():
    result, _ = trained(algorithm(), rounds=1, schedule=fr.synchronous())
    chosen = drawn(np.full(5, 0.2), 0)[0]
    finals = []
    for site in chosen:
        x, y = tables()[site]
        own = np.zeros(NUM_FEATURES + 1)
        for _ in range(STEPS):
            own = own - LR * x.T @ (x @ own - y) / len(y)
        finals.append(own)
    assert len(set(chosen)) < len(SIZES)
    assert np.abs(vector(result.params) - sum(finals) / SIZE).max() < 1e-12


@pytest.mark.slow
def test_drfa_tends_to_where_the_worst_loss_is_smallest():
    found = []
    for seed in range(4):
        local = fr.learn.sgd(quadratic, lr=0.01)
        fair = fr.algorithms.drfa(local, ("h0", "h1"), steps=2, size=2, rate=0.01, seed=seed)
        result, _ = trained(fair, two_quadratics(), 250, fr.synchronous(), AT_ZERO)
        found.append(float(result.params["x"]))
    assert np.mean(found) == pytest.approx(-1 / 3, abs=0.1)  # averaging settles near -0.6


def test_in_single_precision_and_as_one_program_a_round_is_the_same():
    model, data = fr.learn.linear(NUM_FEATURES), with_statistics()[1]
    assert set(data) == set(sites())
    stacked, plain = (
        trained(algorithm(local), data, 1, fr.synchronous(), model.init(0))[0]
        for local in (fr.learn.sgd(model, lr=LR / 2, form=form) for form in ("stacked", "loop"))
    )
    assert torch.allclose(stacked.params.buffer, plain.params.buffer, atol=1e-4)
    assert stacked.params.buffer.abs().max() > 0.1


@pytest.mark.parametrize(("steps", "size", "rate"), [(0, 1, 0.1), (1, 0, 0.1), (1, 6, 0.1), (1, 1, -1.0)])
def test_numbers_that_cannot_be_are_refused(steps, size, rate):
    with pytest.raises(ValueError, match="drfa: (steps|size|rate)=.*: give a"):
        fr.algorithms.drfa(fr.learn.sgd(squares, lr=LR), SITES, steps, size, rate)
