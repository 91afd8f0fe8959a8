"""Small rounds move into the aggregator's process: the bits stay, the actors and their memory go."""

import os
import signal

import pytest

import fedray as fr
from fedray.errors import HostError
from fedray.runtime import placement
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.pack import expected_bytes
from fedray.runtime.placement import MEASURED_ROUNDS
from fedray.runtime.ray_transport import federate_here
from fedray.runtime.schedule import Synchronous
from tests.conftest import are_gone
from tests.equivalence import study

ROUNDS = 6
SITES = sorted(study.hospitals())


def with_room(cohort):
    """Let every round be a small one in the process that unpacks this: the aggregator's."""
    placement.SMALL_ROUND_S = 3600.0
    return fr.synchronous(cohort=cohort)


class Roomy(Synchronous):
    """A schedule on whose way to the aggregator sites move in, however busy the machine is."""

    def __reduce__(self):
        return with_room, (self.cohort,)


def fit(federation, name, rounds, every=ROUNDS, **options):
    return fr.fit(study.algorithm(name), federation, init=study.model().init(0), rounds=rounds, seed=5,
                  evaluate={"valid": fr.algorithms.evaluation(study.model(), split="valid")}, every=every,
                  schedule=Roomy(cohort=0.75), **options)


def expected(name, rounds, **options):
    with fr.simulate(study.hospitals()) as federation:
        return fit(federation, name, rounds, **options)


def test_sites_that_move_in_keep_state_and_bits_and_send_one_partial_sum(ray_session, monkeypatch):
    monkeypatch.setattr(placement, "SMALL_ROUND_S", 3600.0)
    with federate_here(study.hospitals(), "local", packs=2, placement="auto") as federation:
        actors = federation.aggregator.root.transport.pids().values()
        result = fit(federation, "scaffold", ROUNDS, every=2)
        trained, arrived = federation.call("training_processes"), federation.call("arrived")
        assert are_gone(actors) and trained == {os.getpid()}
    wanted = expected("scaffold", ROUNDS, every=2)
    assert result.params_sha256 == wanted.params_sha256
    assert [record.hashes for record in result.metrics] == [record.hashes for record in wanted.metrics]
    assert [record.metrics for record in result.evaluations] == [one.metrics for one in wanted.evaluations]
    places = ["actors"] * MEASURED_ROUNDS + ["aggregator"] * (ROUNDS - MEASURED_ROUNDS)
    assert [record.placement for record in result.metrics] == places
    one = sum(expected_bytes(result.plan, 1, 18).values())
    assert [record.bytes_up for record in result.metrics] == [2 * one] * 3 + [one] * 3
    assert sum(arrived.values()) > 9 * one  # of evaluations too


def test_regions_of_actors_move_in_as_they_are_measured(ray_session):
    regions = {"eu": {"de": SITES[:5]}, "us": SITES[5:]}
    with fr.simulate(study.hospitals(), runtime="ray", regions=regions) as federation:
        before = federation.call("pids")
        result = fit(federation, "scaffold", ROUNDS)
        assert federation.call("training_processes") == {before["aggregator"]}
        assert set(federation.call("pids").values()) == {before["aggregator"]}
        assert are_gone(pid for name, pid in before.items() if name != "aggregator")
    assert result.params_sha256 == expected("scaffold", ROUNDS).params_sha256


class KillsAggregator:
    """A tracker that kills the aggregator, and with it all sites, after the first round inside it."""

    def __init__(self, federation):
        self.federation = federation

    def start(self, plan, facts):
        pass

    def round(self, record):
        if record.placement == "aggregator":
            os.kill(self.federation.call("pids")["aggregator"], signal.SIGKILL)

    def evaluation(self, record):
        pass


def test_an_aggregator_killed_with_the_sites_inside_is_resumed_with_equal_bits(ray_session, tmp_path):
    checkpoint = Checkpoints(tmp_path, every_s=0.0)
    federation = fr.simulate(study.hospitals(), runtime="ray", packs=2)
    with pytest.raises(HostError, match="aggregator's process is gone"):
        fit(federation, "ditto", ROUNDS, checkpoint=checkpoint, tracker=KillsAggregator(federation))
    with pytest.raises(HostError):
        federation.close()
    with fr.simulate(study.hospitals()) as again:
        result = fit(again, "ditto", ROUNDS, checkpoint=checkpoint, resume=True)
    assert len(result.metrics) < ROUNDS
    assert result.params_sha256 == expected("ditto", ROUNDS).params_sha256
