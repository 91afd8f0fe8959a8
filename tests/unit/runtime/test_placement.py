"""When the sites of a simulation move into the aggregator's process, and when they must not."""

import pytest

import fedray as fr
from fedray.errors import ConfigError
from fedray.runtime import placement
from fedray.runtime.federation import Federation, Topology, in_process_transport, made_inside, make_region
from fedray.runtime.placement import Work
from fedray.runtime.round import Aggregator
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import INIT, ToyLocal, sites


class Remote:
    """Hosts that are called as if they were in processes of their own, and can be lost."""

    def __init__(self, specs):
        self._hosts = in_process_transport()(specs)
        self.can_restart, self.placement, self.is_closed = True, "actors", False
        self.put, self.submit, self.wait = self._hosts.put, self._hosts.submit, self._hosts.wait
        self.now = self._hosts.now

    def has_place(self, host):
        return True

    def close(self):
        self.is_closed = True


def federate(where="auto", layout=None):
    specs = Topology(packs=3).specs(sites(), layout, 1)
    aggregator = Aggregator(make_region("aggregator", specs, Remote), make_inside=made_inside(specs, where))
    return Federation(aggregator, specs, tuple(sites()), "ray")


def places(federation, make=averaging, **options):
    result = fr.fit(make(ToyLocal()), federation, init=INIT, rounds=5, **options)
    return [record.placement for record in result.metrics], result


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(placement, "SMALL_ROUND_S", 3600.0)


MOVED = ["actors"] * 3 + ["aggregator"] * 2


@pytest.mark.parametrize("make", [averaging, stateful])
def test_measured_small_rounds_move_in_with_equal_bits(small, make):
    federation = federate()
    before = federation.aggregator.root.transport
    found, result = places(federation, make)
    assert found == MOVED and before.is_closed
    with fr.simulate(sites()) as other:
        assert result.params_sha256 == places(other, make)[1].params_sha256


def test_regions_move_in_as_one_pack_and_calls_go_on_being_recorded(small):
    names = list(sites())
    federation = federate(layout={"eu": {"de": names[:3], "fr": names[3:5]}, "us": names[5:]})
    found, _ = places(federation)
    last = federation.calls()[-1]
    assert found == MOVED and (last.host, last.round, last.sites) == ("pack", 4, 12)


def test_rounds_of_more_work_stay(monkeypatch):
    monkeypatch.setattr(placement, "SMALL_ROUND_S", 0.0)
    assert places(federate())[0] == ["actors"] * 5


def test_actors_are_kept_by_name(small):
    assert places(federate("actors"))[0] == ["actors"] * 5


@pytest.mark.parametrize("options", [{"schedule": fr.synchronous(deadline_s=60.0)}, {"fold": "fast"}])
def test_sites_stay_where_a_deadline_or_the_bits_depend_on_their_processes(small, options):
    assert places(federate(), **options)[0] == ["actors"] * 5


def test_sites_stay_where_a_process_was_lost(small):
    federation = federate()
    federation.aggregator.root.restarts = 1
    assert places(federation)[0] == ["actors"] * 5


def test_small_is_told_by_the_median_of_the_last_rounds():
    work = Work()
    work.take(5.0)
    work.take(0.001)
    assert not work.is_small
    work.take(0.001)
    assert work.is_small
    work.take(5.0)
    work.take(5.0)
    assert not work.is_small


def test_packs_on_gpus_stay():
    assert made_inside(Topology(device="cuda").specs(sites(), None, 1), "auto") is None


def test_unknown_placement_is_refused():
    with pytest.raises(ConfigError, match="placement='inside': choose one of auto, actors"):
        fr.simulate(sites(), placement="inside")
