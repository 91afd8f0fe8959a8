"""The buffered schedule: who is asked when, what is counted, what it refuses, and what a checkpoint holds."""

import pickle
from dataclasses import dataclass

import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.errors import PolicyError, QuorumError, ScheduleError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.discounts import Hinge, Polynomial, discount_of
from fedray.runtime.federation import Federation, Topology, in_process_transport, make_region
from fedray.runtime.round import Aggregator
from fedray.runtime.schedule import LognormalLatency
from fedray.runtime.traces import Interval, Trace
from fedray.runtime.transport import Lost
from tests.unit.runtime.toy import INIT, ToyLocal, sites

LATENCY = LognormalLatency(site_sigma=1.0, round_sigma=0.3, seed=2)
FEDAVG = fr.algorithms.fedavg(ToyLocal())


def fit(schedule, rounds=6, algorithm=FEDAVG, latency=LATENCY, look=None, data=None, **settings):
    passes = settings.pop("passes", ())
    with fr.simulate(data or sites(), latency=latency, **settings.pop("layout", {})) as federation:
        result = fr.fit(
            algorithm, federation, init=INIT, rounds=rounds, schedule=schedule, passes=passes, **settings
        )
        return (result, look(federation)) if look else result


def counting():
    """Each site counts how often it was counted; the metric is how many sites were in a buffer."""

    def round(server, site):
        update = fr.map(ToyLocal(), fr.broadcast(server), site.data, site.rng)
        who = fr.gather(fr.map(lambda name: name, site.id), name="who")
        delta = fr.mean(update.delta, weight=update.num_examples)
        return fr.Outputs(server=server + delta, site=site.state + 1, metrics={"sites": fr.apply(len, who)})

    return fr.Algorithm(lambda params: params, round, lambda server: 0, name="counting")


@dataclass(frozen=True)
class BreaksAt:
    """A local update that fails at some sites."""

    names: tuple[str, ...]

    def __call__(self, params, data, rng):
        if rng.site in self.names:
            raise ValueError("no")
        return ToyLocal()(params, data, rng)


def states(federation):
    federation.aggregator.root.commit([])
    packs = federation.aggregator.root.transport.hosts.values()
    return {site: pack.state_of(site) for pack in packs for site in pack.sites}


@pytest.mark.parametrize("packs", [1, 3])
def test_what_a_site_keeps_is_current_once_it_was_counted(packs):
    schedule = fr.buffered(size=3, concurrency=8, discount="constant")
    result, kept = fit(schedule, 7, counting(), look=states, layout={"packs": packs})
    assert sum(number or 0 for number in kept.values()) == 21
    assert {record.counted for record in result.metrics} == {3}


def test_a_site_under_way_is_not_asked_again_and_is_in_a_buffer_once():
    asked = []

    def seconds(site, number):
        asked.append(site)
        return 1000.0 if site == "h03" else 1.0

    schedule = fr.buffered(size=6, concurrency=12, discount="constant")
    result = fit(schedule, 20, counting(), latency=seconds)
    assert [record.metrics["sites"] for record in result.metrics] == [6.0] * 20
    assert asked.count("h03") == 1
    assert min(asked.count(site) for site in set(asked) - {"h03"}) >= 10  # 120 answers of 11 sites


def test_sites_of_one_version_are_trained_together_and_old_versions_are_forgotten():
    schedule = fr.buffered(size=4, concurrency=12)

    def look(federation):
        calls = [call for call in federation.calls() if call.method == "run"]
        return calls, federation.aggregator._flights.versions

    (result, (calls, versions)) = fit(schedule, 10, look=look)
    assert sum(call.sites for call in calls) >= 40  # all of the 10 buffers
    assert len(calls) <= 25
    assert len(versions) <= 12 and max(versions) == 9
    assert max(record.versions for record in result.metrics) <= 12


def test_a_site_that_fails_is_left_out_and_another_one_is_asked():
    algorithm = fr.algorithms.fedavg(BreaksAt(("h01", "h05")))
    result = fit(fr.buffered(size=4, concurrency=8), 6, algorithm)
    failed = {failure.site for record in result.metrics for failure in record.failures}
    assert failed == {"h01", "h05"}
    assert all(record.counted == 4 for record in result.metrics)
    assert all(record.asked == 4 + len(record.failures) for record in result.metrics)
    with pytest.raises(QuorumError, match=r"2 sites failed .* allows 1"):
        fit(fr.buffered(size=4, concurrency=12, quorum=0.9), 6, algorithm)
    with pytest.raises(QuorumError, match="nobody is left to ask"):
        fit(fr.buffered(size=11, concurrency=12), 6, algorithm)


def test_a_site_that_needs_longer_than_the_deadline_is_given_up():
    def seconds(site, number):
        return 30.0 if site == "h02" else 1.0

    schedule = fr.buffered(size=4, concurrency=4, deadline_s=5.0)
    records = fit(schedule, 3, latency=seconds, data=sites(4) | {"h09": sites(10)["h09"]}).metrics
    late = [(record.round, each.site, each.kind) for record in records for each in record.failures]
    # by hand: three of four places for the four others, so that each step takes two seconds; h02, which is
    # asked at 0, is late at 5
    assert late == [(2, "h02", "late")]
    assert [record.seconds for record in records] == [2.0, 2.0, 2.0]


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path):
    schedule = fr.buffered(size=3, concurrency=9)
    algorithm = fr.algorithms.scaffold(ToyLocal(), 12)
    kept = Checkpoints(tmp_path)
    fit(schedule, 4, algorithm, checkpoint=kept)
    resumed = fit(schedule, 9, algorithm, checkpoint=kept, resume=True, layout={"packs": 3})
    whole = fit(schedule, 9, algorithm)
    assert resumed.params_sha256 == whole.params_sha256
    assert [r.hashes for r in resumed.metrics] == [r.hashes for r in whole.metrics][4:]
    assert [r.seconds for r in resumed.metrics] == pytest.approx([r.seconds for r in whole.metrics][4:])


def test_a_trace_says_who_can_be_asked_and_when():
    day = Trace((Interval("h00", 0.0, 9.0, 2.0), Interval("h01", 5.0, 9.0, 1.0)), 10.0)
    result = fit(fr.buffered(size=1, concurrency=2, discount="constant", trace=day), 6, counting(),
                 latency=None)  # fmt: skip
    # by hand: h00 at 2 and 4 (asked at 0, 2), then at 6 (asked at 4); h01 is there from 5, but is asked only
    # when someone has landed: at 6; both are under way until 7 and 8
    assert [sum(r.seconds for r in result.metrics[: n + 1]) for n in range(6)] == [2, 4, 6, 7, 8, 8]


def test_discounts_are_named_checked_and_pickle():
    assert [discount_of("polynomial 2")(age) for age in (0, 1)] == [1.0, 0.25]
    assert discount_of("hinge 2 1")(3) == 1 / 5
    for each in (Polynomial(), Hinge(), fr.buffered(discount="hinge")):
        assert pickle.loads(pickle.dumps(each)) == each
    for wrong in (7, "linear", "polynomial x", "hinge 1 2 3", "", lambda age: 1.0 + age, lambda age: -age):
        with pytest.raises(ScheduleError, match="discount"):
            fr.buffered(discount=wrong)


@pytest.mark.parametrize("late", [float("nan"), 7.0, -1.0])
def test_a_discount_that_goes_wrong_at_a_later_age_is_refused(late):
    schedule = fr.buffered(size=1, concurrency=12, discount=lambda age: 1.0 if age < 4 else late)
    with pytest.raises(ScheduleError, match=f"gives {late} at the age"):
        fit(schedule, rounds=30)


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": 1.5}, {"concurrency": 0}, {"sampling": "cyclic"}, {"quorum": 0.0},
     {"deadline_s": 0}, {"wait_for": -1}],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ScheduleError, match=next(iter(wrong))):
        fr.buffered(**wrong)


def test_plans_that_need_one_cohort_are_refused_with_what_where_and_how():
    schedule = fr.buffered()
    two = fr.algorithms.mime(fr.learn.sgd(fr.learn.logistic(5), lr=0.1))
    with pytest.raises(ScheduleError, match=r"one site stage; mime has \[1, 3\].*mime.py:\d+.*synchronous"):
        fr.compile(two, schedule=schedule)
    with pytest.raises(ScheduleError, match=r"'who' \(test_buffered.py:\d+\) of counting is gathered"):
        fr.compile(counting(), schedule=schedule)
    fr.compile(counting(), schedule=fr.buffered(discount="constant"))
    with pytest.raises(ScheduleError, match="keeps 'ef21.delta' at the server"):
        fr.compile(FEDAVG, [fr.passes.ef21(0.1)], schedule)
    with pytest.raises(ScheduleError, match="fold='fast'"):
        fr.compile(FEDAVG, schedule=schedule, fold="fast")
    with pytest.raises(ScheduleError, match="set schedule.size to at most 12"):
        fit(fr.buffered(size=13))


def test_a_buffer_of_one_shows_each_site_and_a_policy_refuses_it():
    strict = fr.passes.require(released={"delta", "metrics"})
    several = fr.compile(FEDAVG, [strict], fr.buffered(size=2))
    alone = fr.compile(FEDAVG, schedule=fr.buffered(size=1))
    assert {row["visible"] for row in egress_rows(several)} == {"no"}
    assert {row["visible"] for row in egress_rows(alone)} == {"yes"}
    assert "each sum is the value of a single site" in fr.egress(alone)
    with pytest.raises(PolicyError, match="delta .* shows the value of one site"):
        fr.compile(FEDAVG, [strict], fr.buffered(size=1))


def test_compressed_updates_keep_their_residuals_in_step(tmp_path):
    schedule, passes = fr.buffered(size=3, concurrency=6), [fr.passes.topk(0.3)]
    found = [fit(schedule, 6, passes=passes, layout={"packs": packs}) for packs in (1, 4)]
    assert found[0].params_sha256 == found[1].params_sha256


@pytest.mark.ray
def test_on_ray_answers_are_taken_as_they_come(ray_session):
    schedule = fr.buffered(size=3, concurrency=6, discount="constant")
    with fr.simulate(sites(), runtime="ray", packs=2) as federation:
        result = fr.fit(counting(), federation, init=INIT, rounds=8, schedule=schedule)
    assert [record.counted for record in result.metrics] == [3] * 8
    assert {record.placement for record in result.metrics} == {"actors"}
    assert all(record.seconds > 0 for record in result.metrics)
    day = Trace((Interval("h00", 0.0, 9.0, 2.0),), 10.0)
    with (
        fr.simulate(sites(), runtime="ray", packs=2) as federation,
        pytest.raises(ScheduleError, match="simulated clock"),
    ):
        fr.fit(FEDAVG, federation, init=INIT, rounds=1, schedule=fr.buffered(size=1, trace=day))


class Falling:
    """Hosts called as if in processes of their own, which answer in the order of asking; some are killed."""

    can_restart, placement = True, "actors"

    def __init__(self, specs, fatal):
        self._specs, self._fatal = {spec.name: spec for spec in specs}, set(fatal)
        self._hosts = in_process_transport()(specs)
        self.put, self.now = self._hosts.put, self._hosts.now
        self.restarts, self._dead, self._owner, self._lost = 0, set(), {}, set()
        self._first, self._place = {}, {}

    def submit(self, host, method, *args):
        ticket = self._hosts.submit(host, method, *args) if host not in self._dead else object()
        self._owner[ticket] = host
        key = (args[0].round, args[0].cohort) if method == "run" else ()
        is_new = key not in self._first
        # asked again after a fall it keeps its place
        self._place[ticket] = self._first.setdefault(key, len(self._first)) if key else -1
        if is_new and self._place[ticket] in self._fatal:
            self._dead.add(host)
            self._lost |= {old for old, owner in self._owner.items() if owner == host}
        if host in self._dead:
            self._lost.add(ticket)
        return ticket

    def wait(self, tickets, timeout):
        for ticket in sorted(tickets, key=self._place.__getitem__):
            host = self._owner.pop(ticket)
            if ticket in self._lost:
                yield ticket, Lost(host, "killed")
            else:
                yield from self._hosts.wait([ticket], timeout)

    def has_place(self, host):
        return True

    def is_there(self, host, seconds):
        return True

    def restart(self, host):
        self.restarts += 1
        self._dead.discard(host)
        self._hosts.hosts[host] = in_process_transport()([self._specs[host]]).hosts[host]

    def close(self):
        pass


def on_falling_hosts(fatal, schedule, rounds=9):
    specs = Topology(packs=3).specs(sites(), None, 1)
    root = make_region("aggregator", specs, lambda given: Falling(given, fatal))
    federation = Federation(Aggregator(root), specs, tuple(sites()), "ray")
    algorithm = fr.algorithms.scaffold(ToyLocal(), 12)
    result = fr.fit(algorithm, federation, init=INIT, rounds=rounds, schedule=schedule)
    return result, root.transport


def test_hosts_that_are_killed_start_again_and_the_bits_are_those_of_a_quiet_run():
    schedule = fr.buffered(size=3, concurrency=8)
    quiet, _ = on_falling_hosts((), schedule)
    noisy, transport = on_falling_hosts((4, 13, 14, 22), schedule)
    assert transport.restarts >= 3
    assert noisy.params_sha256 == quiet.params_sha256
    assert [record.failures for record in noisy.metrics] == [()] * 9
