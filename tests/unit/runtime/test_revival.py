"""Hosts that are lost and come back, at once, later or never: over a transport that loses them on demand."""

from dataclasses import dataclass

import pytest

import fedray as fr
from fedray import track
from fedray.errors import HostError, QuorumError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.federation import Federation, Topology, make_host, make_region
from fedray.runtime.round import Aggregator
from fedray.runtime.transport import InProcess, Lost
from tests.equivalence import study
from tests.unit.runtime.toy import INIT, ToyLocal, sites

SCHEDULE = fr.synchronous(quorum=0.4)


class Fragile(InProcess):
    """Hosts in this process that can be lost before a call, and started again where there is a place."""

    can_restart = True
    placement = "actors"

    def __init__(self, specs):
        self.specs = {spec.name: spec for spec in specs}
        super().__init__({name: make_host(spec, None) for name, spec in self.specs.items()})
        self.gone, self.without_place = set(), set()
        self.to_lose = []  # (host, method, stage) of a call before which the host dies, once
        self.looked = 0

    def submit(self, host, method, *args):
        stage = getattr(args[0], "stage", None) if args else None
        if (host, method, stage) in self.to_lose:
            self.to_lose.remove((host, method, stage))
            self.gone.add(host)
        if host not in self.gone:
            return super().submit(host, method, *args)
        ticket = next(self._numbers)
        self._answers[ticket] = Lost(host, "killed")
        return ticket

    def restart(self, host):
        self.hosts[host] = make_host(self.specs[host], None)
        self.gone.add(host)

    def is_there(self, host, seconds):
        self.looked += 1
        if host not in self.without_place:
            self.gone.discard(host)
        return host not in self.gone


def fragile_federation(data):
    specs = Topology(packs=2).specs(data, None, 2)
    root = make_region("aggregator", specs, Fragile)
    return Federation(Aggregator(root), specs, tuple(data), "ray")


@pytest.fixture
def federation():
    return fragile_federation(sites())


def transport(federation):
    return federation.aggregator.root.transport


@dataclass(frozen=True)
class AbsentIn:
    """A local update that raises at some sites in some rounds."""

    inner: ToyLocal
    at: frozenset
    rounds: tuple

    @property
    def lr(self):
        return self.inner.lr

    def __call__(self, params, data, rng, **extra):
        if rng.site in self.at and rng.round in self.rounds:
            raise ArithmeticError("absent")
        return self.inner(params, data, rng, **extra)


class After:
    """A tracker that does something after a round."""

    def __init__(self, round, act):
        self.at, self.act = round, act

    def start(self, plan, facts):
        pass

    def round(self, record):
        if record.round == self.at:
            self.act()

    def evaluation(self, record):
        pass

    def finish(self, result):
        pass


def fit(algorithm, federation, rounds=5, **options):
    return fr.fit(algorithm, federation, init=INIT, rounds=rounds, schedule=SCHEDULE, **options)


@pytest.mark.parametrize(("name", "stage"), [("scaffold", 1), ("fedlin", 1), ("fedlin", 3), ("fedavg", 1)])
def test_host_lost_in_any_stage_of_a_round_comes_back_with_equal_bits(name, stage):
    federation = fragile_federation(study.hospitals())
    tracker = After(1, lambda: transport(federation).to_lose.append(("pack1", "run", stage)))
    settings = {"init": study.model().init(0), "rounds": study.ROUNDS, "seed": 5}
    result = fr.fit(study.algorithm(name), federation, tracker=tracker, **settings,
                    schedule=fr.synchronous(cohort=0.75))
    assert federation.aggregator.root.restarts == 1
    assert result.params_sha256 == study.expected(name).params_sha256
    assert all(record.counted == 18 for record in result.metrics)


def test_sites_of_a_host_without_a_place_are_lost_and_back_once_it_has_one(federation):
    fragile = transport(federation)

    def lose():
        fragile.to_lose.append(("pack1", "run", 1))
        fragile.without_place.add("pack1")

    tracker = track.combine(After(0, lose), After(2, fragile.without_place.clear))
    result = fit(fr.algorithms.scaffold(ToyLocal(), 12), federation, tracker=tracker)
    held = frozenset(federation.aggregator.root.children["pack1"].sites)
    assert [record.counted for record in result.metrics] == [12, 6, 6, 12, 12]
    kinds = {failure.kind.split(" (")[0] for record in result.metrics for failure in record.failures}
    assert kinds == {"host lost"}
    with fr.simulate(sites()) as plain:
        absent = fr.algorithms.scaffold(AbsentIn(ToyLocal(), held, (1, 2)), 12)
        assert fit(absent, plain).params_sha256 == result.params_sha256


def test_too_few_sites_without_the_lost_host_end_the_run_by_quorum(federation):
    fragile = transport(federation)
    fragile.to_lose.append(("pack1", "run", 1))
    fragile.without_place.add("pack1")
    with pytest.raises(QuorumError, match="6 of 12 sites delivered.*host lost"):
        fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=2,
               schedule=fr.synchronous(quorum=0.8))


def test_checkpoint_waits_for_a_lost_host_whose_sites_keep_state(federation, tmp_path):
    fragile = transport(federation)

    def lose():
        fragile.to_lose.append(("pack1", "run", 1))
        fragile.without_place.add("pack1")

    checkpoint = Checkpoints(tmp_path, every_s=0.0, keep=99)
    tracker = track.combine(After(0, lose), After(3, fragile.without_place.clear))
    algorithm = fr.algorithms.scaffold(ToyLocal(), 12)
    fit(algorithm, federation, rounds=6, checkpoint=checkpoint, tracker=tracker)
    assert checkpoint.rounds() == [0, 3, 4, 5]


def test_checkpoint_does_not_wait_where_sites_keep_nothing(federation, tmp_path):
    fragile = transport(federation)

    def lose():
        fragile.to_lose.append(("pack1", "run", 1))
        fragile.without_place.add("pack1")

    checkpoint = Checkpoints(tmp_path, every_s=0.0, keep=99)
    algorithm = fr.algorithms.fedavg(ToyLocal())
    fit(algorithm, federation, rounds=3, checkpoint=checkpoint, tracker=After(0, lose))
    assert checkpoint.rounds() == [0, 1, 2]


def test_data_that_cannot_be_had_without_a_lost_host_are_refused_by_its_name(federation):
    fragile = transport(federation)
    fragile.to_lose.append(("pack1", "hello", None))
    fragile.without_place.add("pack1")
    with pytest.raises(HostError, match="host pack1 was lost in hello"):
        federation.hello()
