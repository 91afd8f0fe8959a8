"""Swarm: the numbers of FedAvg, and whose turn it is to add up."""

import pytest

import fedray as fr
from fedray.learn import optimizer
from tests.unit.algorithms.cases import trained, uneven

SITES = tuple("abcde")


@pytest.mark.parametrize("order", ["in_turn", "drawn"])
def test_swarm_has_the_bits_of_fedavg(order):
    adam = optimizer.adam(0.1)
    plain, _ = trained(fr.algorithms.fedavg(uneven(), adam))
    found, _ = trained(fr.algorithms.swarm(uneven(), SITES, adam, order=order))
    assert found.params_sha256 == plain.params_sha256
    assert [r.metrics["loss"] for r in found.metrics] == [r.metrics["loss"] for r in plain.metrics]


def turns(**settings):
    result, _ = trained(fr.algorithms.swarm(uneven(), SITES, **settings), rounds=7)
    return [record.metrics["aggregator"] for record in result.metrics]


def test_the_aggregator_goes_round_or_is_drawn_by_the_seed():
    assert turns() == [0, 1, 2, 3, 4, 0, 1]
    assert turns(order="drawn") == turns(order="drawn") != turns(order="drawn", seed=1)
    assert {*turns(order="drawn")} <= {0, 1, 2, 3, 4}


def test_what_the_aggregator_sees_is_said():
    plan = fr.compile(fr.algorithms.swarm(uneven(), SITES))
    for text in (fr.egress(plan), fr.explain(plan)):
        assert "the server of a round is a site, another one each time" in text
    assert "the server of a round" not in fr.egress(fr.compile(fr.algorithms.fedavg(uneven())))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="order='vote'"):
        fr.algorithms.swarm(uneven(), SITES, order="vote")
    with pytest.raises(ValueError, match="each once"):
        fr.algorithms.swarm(uneven(), ())
    with pytest.raises(ValueError, match="each once"):
        fr.algorithms.swarm(uneven(), (*SITES, SITES[0]))
