"""Nodes that leave and join while a study runs: their sites fail by name, and come back with their state."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

import fedray as fr
from fedray.errors import AWAY, HostError, QuorumError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.federation import Federation, Topology, in_process_transport, make_region
from fedray.runtime.round import Aggregator
from fedray.runtime.transport import Lost
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import INIT, ToyLocal, sites, train

ROUNDS = 8
GONE, BACK = 3, 6  # the rounds that are without the node
LAYOUT = {"eu": sorted(sites())[:6], "us": sorted(sites())[6:]}


class Nodes:
    """Hosts called as if on nodes of their own, which come and go by name."""

    can_restart, placement = True, "actors"

    def __init__(self, specs, away, make):
        self._specs, self._away, self._make = {spec.name: spec for spec in specs}, away, make
        self._hosts, self._gone = in_process_transport()([]), set()
        self.put, self.now = self._hosts.put, self._hosts.now
        for name in self._specs:
            self._start(name)

    def _start(self, name):
        self._gone.discard(name)
        if self.has_place(name):
            spec = self._specs[name]
            self._hosts.hosts[name] = make_region(name, spec.children, self._make) if spec.children else \
                in_process_transport()([spec]).hosts[name]

    def has_place(self, host):
        if host in self._away:
            self._gone.add(host)  # what was there has died with its node
        return host not in self._away

    def submit(self, host, method, *args):
        if not self.has_place(host) or host in self._gone:
            return (host, object())
        return self._hosts.submit(host, method, *args)

    def wait(self, tickets, timeout):
        for ticket in tickets:
            if isinstance(ticket, tuple):
                yield ticket, Lost(ticket[0], "its node is gone")
            else:
                yield from self._hosts.wait([ticket], timeout)

    def restart(self, host):
        self._start(host)

    def is_there(self, host, seconds):
        if self.has_place(host) and host in self._gone:
            self._start(host)
        return self.has_place(host)

    def give_up(self, tickets):
        pass

    def close(self):
        pass


@dataclass
class Days:
    """A tracker that takes a node away after one round and brings it back after another."""

    away: set[str]
    node: str
    records: list[Any]

    def start(self, plan, facts):
        pass

    def evaluation(self, record):
        pass

    def finish(self, result):
        pass

    def round(self, record):
        self.records.append(record)
        if record.round == GONE - 1:
            self.away.add(self.node)
        if record.round == BACK - 1:
            self.away.discard(self.node)


@dataclass(frozen=True)
class Fails:
    """A local update that fails at some sites in the rounds that are without their node."""

    inner: Any
    at: tuple[str, ...]

    @property
    def lr(self):
        return self.inner.lr

    def __call__(self, params, data, rng, **extra):
        if rng.site in self.at and GONE <= rng.round < BACK:
            raise RuntimeError("away")
        return self.inner(params, data, rng, **extra)


def federation_on(away, layout=None, packs=3):
    specs = Topology(packs=packs).specs(sites(), layout, packs)

    def make(given):
        return Nodes(given, away, make)

    root = make_region("aggregator", specs, make)
    return Federation(Aggregator(root), specs, tuple(sites()), "ray", lets_away=True), specs


def of(specs, name):
    every = [*specs, *(pack for spec in specs for pack in spec.children)]
    return next(spec for spec in every if spec.name == name).all_sites


SCHEDULE = fr.synchronous(quorum=0.3)


@pytest.mark.parametrize(("layout", "node"), [(None, "pack1"), (LAYOUT, "eu.pack1"), (LAYOUT, "us")])
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_sites_of_a_node_that_leaves_fail_by_name_and_come_back_with_their_state(layout, node, name):
    def algorithm(local):
        return fr.algorithms.scaffold(local, 12) if name == "scaffold" else fr.algorithms.fedavg(local)

    away: set[str] = set()
    federation, specs = federation_on(away, layout)
    lost = of(specs, node)
    days = Days(away, node, [])
    result = fr.fit(algorithm(ToyLocal()), federation, init=INIT, rounds=ROUNDS, schedule=SCHEDULE,
                    tracker=days)
    expected = train(algorithm(Fails(ToyLocal(), lost)), rounds=ROUNDS, schedule=SCHEDULE)
    assert result.params_sha256 == expected.params_sha256
    for record in days.records:
        is_without = GONE <= record.round < BACK
        failed = {failure.site: failure.kind for failure in record.failures}
        assert failed == (dict.fromkeys(lost, AWAY) if is_without else {})
        assert record.away == (tuple(sorted(lost)) if is_without else ())


def test_sites_that_were_not_there_at_the_start_join(caplog):
    away = {"pack2"}
    federation, specs = federation_on(away)
    days = Days(away, "pack2", [])
    assert set(federation.hello()) == set(sites()) - set(of(specs, "pack2"))
    result = fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=ROUNDS, schedule=SCHEDULE,
                    tracker=days)
    assert [record.counted for record in result.metrics] == [8] * BACK + [12] * (ROUNDS - BACK)
    assert federation.refresh() == () and set(federation.hello()) == set(sites())
    assert "round 0: 4 sites are away, and count as failed until their node is back (h" in caplog.text
    assert f"round {BACK}: 4 sites are there and take part from now on (h" in caplog.text


def test_who_joins_is_drawn_by_its_rows():
    away = {"pack2"}
    federation, _ = federation_on(away)
    schedule = replace(SCHEDULE, cohort=12, sampling="weighted")
    tracker = Days(away, "pack2", [])
    result = fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=ROUNDS, schedule=schedule,
                    tracker=tracker)
    assert [record.counted for record in result.metrics] == [8] * BACK + [12] * (ROUNDS - BACK)
    assert set(federation.aggregator.sizes) == set(sites())


def test_programs_beside_a_run_ask_those_who_are_there_where_that_is_wanted():
    away = {"pack2"}
    federation, _ = federation_on(away)
    count = fr.Algorithm(lambda state: state, counting, name="count")
    assert fr.compute(count, federation) == 8
    federation.lets_away = False
    with pytest.raises(QuorumError, match="node away"):
        fr.compute(count, federation)


def counting(server, site):
    return fr.Outputs(server=server, metrics=fr.sum(fr.map(one, site.data), name="one"))


def one(data):
    return 1


def test_no_checkpoint_is_written_while_a_node_with_state_is_away(tmp_path):
    away: set[str] = set()
    federation, _ = federation_on(away)
    days = Days(away, "pack1", [])
    checkpoints = Checkpoints(tmp_path, every_s=0.0, keep=100)
    fr.fit(fr.algorithms.scaffold(ToyLocal(), 12), federation, init=INIT, rounds=ROUNDS, schedule=SCHEDULE,
           tracker=days, checkpoint=checkpoints)
    # the node leaves after round 2 was told, before its checkpoint, and is back for that of round 5
    assert checkpoints.rounds() == [0, 1, 5, 6, 7]


def test_a_node_that_never_came_holds_no_checkpoint_up(tmp_path):
    federation, _ = federation_on({"pack1"})
    checkpoints = Checkpoints(tmp_path, every_s=0.0, keep=100)
    fr.fit(fr.algorithms.scaffold(ToyLocal(), 12), federation, init=INIT, rounds=3, schedule=SCHEDULE,
           checkpoint=checkpoints)
    assert checkpoints.rounds() == [0, 1, 2]


def test_the_first_round_waits_for_a_node():
    away = {"pack2"}
    federation, _ = federation_on(away)
    looks = []
    hello = federation.aggregator.root.hello

    def met():
        looks.append(len(looks))
        if len(looks) == 2:
            away.clear()
        return hello()

    federation.aggregator.root.hello = met
    federation.call("wait_for", 12, 30.0)
    assert len(looks) == 2


def test_a_node_that_does_not_come_in_time_is_said():
    federation, _ = federation_on({"pack2"})
    with pytest.raises(HostError, match="8 of 12 sites answered"):
        federation.call("wait_for", 12, 0.2)


def test_a_buffered_run_goes_on_without_a_node():
    away: set[str] = set()
    federation, specs = federation_on(away)
    days = Days(away, "pack1", [])
    schedule = fr.buffered(size=4, concurrency=12, quorum=0.2)
    result = fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=ROUNDS, schedule=schedule,
                    tracker=days)
    assert [record.counted for record in result.metrics] == [4] * ROUNDS
    failed = {failure.site for record in days.records for failure in record.failures}
    assert failed and failed <= set(of(specs, "pack1"))
