"""Vertical towers beside gradient descent on the whole network in one place."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fedray as fr
from fedray.algorithms.towers import Tower, mlp_tower
from fedray.algorithms.vertical_options import from_bias, of_widths
from fedray.errors import DataError, PolicyError
from tests.unit.algorithms.cases import leaving
from tests.unit.algorithms.vertical_cases import PARTS, WIDTHS, aligned, batch_of, fitted, state_of, table

HIDDEN, RATE = 3, 0.3


def start_of(site):
    """Return a site's first parameters; a and b share nothing."""
    draws = np.random.default_rng(len(site) + ord(site[0]))
    return {"u": draws.normal(size=(WIDTHS[site], HIDDEN)), "c": draws.normal(size=HIDDEN)}


def made(data, rng):
    return {name: torch.from_numpy(value) for name, value in start_of(rng.site).items()}


def forward(params, batch):
    return torch.tanh(batch["x"] @ params["u"] + params["c"])


def loss(params, batch):
    return F.binary_cross_entropy_with_logits(batch["x"] @ params["v"], batch["y"])


def head_start(merge):
    width = HIDDEN * (3 if merge == "concat" else 1)
    return np.random.default_rng(1).normal(size=width)


def whole_by_hand(merge, rounds, batch_size):
    """Backpropagation through three tanh layers and a logistic head, in numpy. Returns towers and head."""
    x, y = table()
    towers, v = {site: start_of(site) for site in PARTS}, head_start(merge)
    for round in range(rounds):
        at = slice(None) if batch_size is None else batch_of(round, batch_size)
        parts = [(site, x[at][:, part]) for site, part in PARTS.items()]
        hidden = {site: np.tanh(mine @ towers[site]["u"] + towers[site]["c"]) for site, mine in parts}
        m = np.hstack(list(hidden.values())) if merge == "concat" else sum(hidden.values())
        r = (1 / (1 + np.exp(-m @ v)) - y[at]) / len(m)
        back = np.outer(r, v)
        for place, (site, part) in enumerate(PARTS.items()):
            mine = back[:, HIDDEN * place : HIDDEN * (place + 1)] if merge == "concat" else back
            slope = mine * (1 - hidden[site] ** 2)
            towers[site] = {"u": towers[site]["u"] - RATE * x[at][:, part].T @ slope,
                            "c": towers[site]["c"] - RATE * slope.sum(0)}
        v = v - RATE * m.T @ r
    return towers, v


@pytest.mark.parametrize("merge", ["concat", "sum"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_towers_equal_the_whole_network_in_one_place(merge, batch_size):
    algorithm = fr.algorithms.vertical_towers(Tower(made, forward), loss, RATE, batch_size, merge)
    result, kept = fitted(algorithm, {"v": torch.from_numpy(head_start(merge))}, rounds=6)
    towers, v = whole_by_hand(merge, 6, batch_size)
    assert np.abs(result.params["v"].numpy() - v).max() < 1e-12
    for site in PARTS:
        assert np.abs(kept[site]["u"].numpy() - towers[site]["u"]).max() < 1e-12
        assert np.abs(kept[site]["c"].numpy() - towers[site]["c"]).max() < 1e-12
    assert np.abs(towers["a"]["u"] - start_of("a")["u"]).max() > 1e-3


def test_one_sites_part_is_seen_side_by_side_and_not_in_a_sum():
    tower = Tower(made, forward)
    beside, added = (fr.algorithms.vertical_towers(tower, loss, merge=merge) for merge in ("concat", "sum"))
    assert leaving(beside)["hidden"] == {"data", "state", "rng", "rng:tower"}
    allow = [fr.passes.require(visible=("label",))]
    with pytest.raises(PolicyError, match="hidden"):
        fr.compile(beside, allow)
    assert fr.compile(added, allow).needs_all


def test_no_or_two_holders_of_labels_are_refused():
    algorithm = fr.algorithms.vertical_towers(Tower(made, forward), loss)
    for holders in ((), ("a", "c")):
        with pytest.raises(DataError, match="sites hold labels"):
            fitted(algorithm, {"v": torch.from_numpy(head_start("concat"))}, 1, aligned(holders))


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_layers_of_given_widths_learn_and_are_measured(merge):
    algorithm = of_widths(3, hidden=(8,), width=4, head=(8,), lr=0.5, merge=merge)
    with fr.simulate(aligned(test=20), packs=2) as federation:
        result = fr.fit(algorithm, federation, init=fr.learn.logistic(6).init(0), rounds=60,
                        evaluate={"test": algorithm.evaluate("test")})
        kept = state_of(federation)
    assert result.metrics[-1].metrics["loss"] < 0.8 * result.metrics[0].metrics["loss"]
    assert result.test.metrics["n"] == 20 and result.test.metrics["auroc"] > 0.7
    assert {site: kept[site]["0.weight"].shape[1] for site in kept} == WIDTHS
    assert mlp_tower((8,), 4) != mlp_tower((8,), 5)


def test_an_outcome_of_classes_is_for_towers_and_not_for_the_logistic_option():
    with pytest.raises(ValueError, match="the outcome is classes"):
        from_bias(task="classes")


def test_another_merge_is_refused():
    with pytest.raises(ValueError, match="concat, sum"):
        fr.algorithms.vertical_towers(Tower(made, forward), loss, merge="max")
