"""Late sites stop between two of their steps: late as ever, their state as it was, and nobody waits."""

import threading
import time
from dataclasses import dataclass

import pytest

import fedray as fr
from fedray import tree
from fedray.cancellation import Cancelled, asking, of_all, stop_if_cancelled
from fedray.learn.local import LocalTraining
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import INIT, NUM_FEATURES, ToyLocal, sites

STEPS, LONG, SLEEP_S, DEADLINE_S = 3, 4_000, 0.05, 2.0  # 200 s of training: 100 times the deadline
MOST_S = 10.0  # of a round on a busy machine
LATE = fr.synchronous(deadline_s=DEADLINE_S, quorum=0.1, on_failure="skip")
WAITS = fr.synchronous(quorum=0.1, on_failure="skip")


@dataclass(frozen=True)
class SlowRule:
    """Plain steps, slow ones after the first few."""

    slots = ()
    weight_decay = 0.0

    def step(self, weights, gradient, state, lr, count):
        if count > STEPS:
            time.sleep(SLEEP_S)
        weights.add_(gradient, alpha=-lr)


@dataclass(frozen=True)
class Budget:
    """A few steps a site, but at one in one round: there all, or an error in their place."""

    fails: tuple[str, ...] = ()
    long: tuple[str, ...] = ()
    in_round: int = 1

    def __call__(self, site, round):
        if round == self.in_round and site in self.fails:
            raise RuntimeError("broken")
        return LONG if round == self.in_round and site in self.long else STEPS


def trained(form, budget, schedule, make=averaging, rounds=3, **layout):
    """Return the result of a run, and every site's state after it."""
    model = fr.learn.logistic(NUM_FEATURES)
    local = LocalTraining(model=model, lr=0.3, rule=SlowRule(), steps=LONG, batch_size=4, form=form)
    with fr.simulate(sites(), **layout) as federation:
        result = fr.fit(
            make(fr.learn.budgeted(local, budget)), federation, init=model.init(0), rounds=rounds,
            schedule=schedule,
        )  # fmt: skip
        federation.aggregator.root.commit([])
        hosts = federation.aggregator.root.transport.hosts
        states = {site: pack.state_of(site) for pack in hosts.values() for site in pack.sites}
    return result, states


# The groups are in the order of their rows: h00 is the last one, and h05 to h00 the second of two.
LAST, SECOND = ("h00",), tuple(f"h{number:02d}" for number in range(6))


@pytest.mark.parametrize(
    ("form", "group_size", "long", "lost"),
    [
        ("loop", 12, LAST, LAST),
        ("stacked", 1, LAST, LAST),
        ("stacked", 6, ("h03",), SECOND),
        ("stacked", 12, ("h03",), tuple(sites())),
    ],
)
def test_a_late_site_stops_between_its_steps_and_the_run_goes_on_as_without_it(form, group_size, long, lost):
    layout = {"make": stateful, "group_size": group_size}
    result, states = trained(form, Budget(long=long), LATE, **layout)
    expected, expected_states = trained(form, Budget(fails=lost), WAITS, **layout)
    record = result.metrics[1]
    assert {(each.site, each.kind) for each in record.failures} == {(site, "late") for site in lost}
    assert [each.counted for each in result.metrics] == [12, 12 - len(lost), 12]
    assert record.seconds < MOST_S
    assert result.params_sha256 == expected.params_sha256
    assert all(tree.equal(states[site], expected_states[site]) for site in sites())


def test_the_state_of_a_site_that_was_stopped_does_not_advance():
    layout = {"make": stateful, "group_size": 1}
    _, before = trained("stacked", Budget(), WAITS, rounds=1, **layout)
    _, after = trained("stacked", Budget(long=LAST), LATE, rounds=2, **layout)
    assert tree.equal(before["h00"], after["h00"]) and not tree.equal(before["h11"], after["h11"])


def test_a_deadline_that_nobody_misses_changes_no_bit():
    patient = fr.synchronous(deadline_s=600.0)
    for form in ("loop", "stacked"):
        found, expected = (trained(form, Budget(), schedule)[0] for schedule in (patient, WAITS))
        assert found.params_sha256 == expected.params_sha256


def test_a_stopped_group_is_not_tried_site_by_site():
    calls = []

    def slow(params, data, rng):
        raise AssertionError("the twin is used")

    def slow_rows(group, params, data, rng):
        calls.append(group.ids)
        while True:
            fr.learn.stop_if_cancelled()
            time.sleep(0.01)

    slow.rows = slow_rows

    def round(server, site):
        moved = fr.map(slow, fr.broadcast(server), site.data, site.rng)
        return fr.Outputs(server=server + fr.mean(moved, name="moved"))

    schedule = fr.synchronous(deadline_s=0.2, quorum=0.1, on_failure="skip")
    with fr.simulate(sites()) as federation:
        program = fr.Algorithm(lambda params: params, round, name="slow")
        asked = federation.aggregator.root.transport.hosts["pack0"]
        asked.blank = lambda: None  # no rehearsal: it waits for everybody
        result = fr.fit(program, federation, init=INIT, rounds=2, schedule=schedule)
        assert asked._broken == set()
    assert [len(ids) for ids in calls] == [12, 12]
    assert [{each.kind for each in record.failures} for record in result.metrics] == [{"late"}] * 2


@dataclass(frozen=True)
class OwnLoop:
    """A local update with a loop of its own, which goes on after errors."""

    inner: ToyLocal
    at: str

    def __call__(self, params, data, rng, **extra):
        steps = LONG if (rng.site, rng.round) == (self.at, 1) else 0
        for _ in range(steps):
            try:
                fr.learn.stop_if_cancelled()
                time.sleep(SLEEP_S)
            except Exception:  # noqa: BLE001, S112
                continue
        return self.inner(params, data, rng, **extra)


def test_a_loop_of_ones_own_stops_where_it_asks():
    with fr.simulate(sites()) as federation:
        algorithm = averaging(OwnLoop(ToyLocal(), "h00"))
        result = fr.fit(algorithm, federation, init=INIT, rounds=3, schedule=LATE)
    assert [record.counted for record in result.metrics] == [12, 11, 12]
    assert [(each.site, each.kind) for each in result.metrics[1].failures] == [("h00", "late")]
    assert result.metrics[1].seconds < MOST_S


def test_a_simulated_clock_stops_nobody():
    def latency(site, round):
        return 0.001

    model = fr.learn.logistic(NUM_FEATURES)
    local = LocalTraining(model=model, lr=0.3, rule=SlowRule(), steps=STEPS + 4)
    schedule = fr.synchronous(deadline_s=0.01)  # simulated seconds; the work takes 0.2 s
    with fr.simulate(sites(), latency=latency) as federation:
        result = fr.fit(averaging(local), federation, init=model.init(0), rounds=2, schedule=schedule)
    assert [record.counted for record in result.metrics] == [12, 12]


def test_nothing_is_raised_where_nobody_asked_or_in_another_thread():
    stop_if_cancelled()
    seen = []
    with asking(lambda: True):
        with asking(None):
            stop_if_cancelled()
        other = threading.Thread(target=lambda: seen.append(stop_if_cancelled()))
        other.start()
        other.join()
        with pytest.raises(Cancelled):
            stop_if_cancelled()
    stop_if_cancelled()
    assert seen == [None]


def test_what_several_wait_for_is_cancelled_when_none_of_them_waits():
    assert of_all([lambda: True, None]) is None
    assert of_all([lambda: True, lambda: False])() is False
    assert of_all([lambda: True, lambda: True])() is True
