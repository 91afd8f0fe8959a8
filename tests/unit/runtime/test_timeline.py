"""What the aggregator sees of its hosts: spans of every level on one clock, who was late or lost, waits."""

import random
from dataclasses import replace

import pytest

import fedray as fr
from fedray.runtime.federation import Federation, Topology, in_process_transport, make_region
from fedray.runtime.observed import Offset, Span, Stamps, clock, waited_s
from fedray.runtime.round import Aggregator
from fedray.runtime.transport import InProcess, Lost
from tests.unit.runtime import toy
from tests.unit.runtime.toy import INIT, ToyLocal

REGIONS = {"eu": {"de": ["h00", "h01"], "fr": ["h02"]}, "us": ["h03", "h04", "h05"]}


def sites():
    return toy.sites(6)


class Keeps:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.records, self.saves, self.rest = [], [], []

    def start(self, plan, facts):
        pass

    def round(self, record):
        self.records.append(record)

    def evaluation(self, record):
        pass

    def saved(self, round):
        self.saves.append(round)

    def observed(self, seen):
        self.rest.append(seen)

    def finish(self, result):
        pass


def on(make, specs, rounds=3, **settings):
    """Train on hosts of a made-up transport; return what a tracker was told."""
    federation = Federation(Aggregator(make_region("aggregator", specs, make)), specs, tuple(sites()), "ray")
    told = Keeps()
    algorithm = fr.algorithms.fedavg(ToyLocal())
    fr.fit(algorithm, federation, init=INIT, rounds=rounds, tracker=told, **settings)
    return told


# --- clocks ---------------------------------------------------------------------------------------------


def calls(ahead, count=40, seed=1):
    """Yield (sent, stamps, came) of calls to a host whose clock is ahead, over 40 to 90 ms a way."""
    draws, now = random.Random(seed), 1000.0
    for _ in range(count):
        down, work, up = draws.uniform(0.04, 0.09), draws.uniform(0.1, 2.0), draws.uniform(0.04, 0.09)
        yield now, Stamps(now + down + ahead, now + down + work + ahead), now + down + work + up
        now += down + work + up + draws.uniform(0.0, 1.0)


@pytest.mark.parametrize("ahead", [3.2, -7.5])
def test_clock_of_a_host_is_estimated_within_the_error_that_is_said(ahead):
    offset = Offset()
    for sent, stamps, came in calls(ahead):
        offset.take(sent, stamps, came)
    assert abs(offset.ahead - ahead) <= offset.error < 0.06
    assert offset.jumps == 0


def test_clock_that_may_be_the_same_is_taken_for_the_same():
    offset = Offset()
    assert [offset.take(*call) for call in calls(0.0)] == [0.0] * 40


def test_moved_spans_lie_between_call_and_answer_whatever_the_clock_does():
    offset, draws = Offset(), random.Random(3)
    for sent, stamps, came in calls(0.0, 200):
        wild = draws.choice([0.0, 0.0, 900.0, -900.0])
        moved = Stamps(stamps.received + wild, stamps.answered + wild)
        ahead = offset.take(sent, moved, came)
        assert sent - 1e-9 <= moved.received - ahead <= moved.answered - ahead <= came + 1e-9
    assert offset.jumps > 10


def test_process_clock_is_the_wall_clock_and_never_steps_back():
    stamps = [clock() for _ in range(1000)]
    assert stamps == sorted(stamps)


# --- spans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_every_sites_computing_is_seen_once_a_round_inside_of_it(regions):
    told = Keeps()
    with fr.simulate(sites(), packs=2 if regions is None else None, regions=regions) as federation:
        algorithm = fr.algorithms.fedavg(ToyLocal())
        fr.fit(algorithm, federation, init=INIT, rounds=3, tracker=told)
    for record in told.records:
        seen = record.observed
        computed = [span for span in seen.spans if span.what == "compute"]
        assert sorted(site for span in computed for site in span.sites) == sorted(sites())
        assert all(seen.began <= span.began <= span.ended <= seen.ended for span in computed)
        assert {(span.round, span.stage) for span in computed} == {(record.round, 1)}


def test_result_does_not_hold_what_was_seen_for_it_would_grow_with_rounds_and_sites():
    told = Keeps()
    with fr.simulate(sites()) as federation:
        result = fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=2, tracker=told)
    assert all(record.observed is not None for record in told.records)
    assert all(record.observed is None for record in result.metrics)


def test_checkpoints_are_seen_and_told(tmp_path):
    from fedray.runtime.checkpoint import Checkpoints

    told = Keeps()
    with fr.simulate(sites()) as federation:
        fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=2, tracker=told,
               checkpoint=Checkpoints(tmp_path, every_s=0.0))  # fmt: skip
    assert told.saves == [0, 1]
    spans = [*told.records[1].observed.spans, *told.rest[0].spans]
    assert {(span.host, span.round) for span in spans if span.what == "checkpoint"} == {
        ("pack0", -1), ("aggregator", 0), ("aggregator", 1)}  # fmt: skip


def test_programs_beside_the_run_are_seen_under_their_own_name():
    with fr.simulate(sites()) as federation:
        fr.compute(fr.algorithms.fedavg(ToyLocal()), federation, state=INIT)
        seen = federation.call("observed")
    assert {span.what for span in seen.spans} == {"preparation"}


class Elsewhere(InProcess):
    """Hosts as if on other machines: their clocks are ahead, and calls and answers take their time."""

    placement, can_restart = "actors", True
    ahead, way_s = {"pack0": 5000.0, "pack1": -3000.0}, 0.003

    def __init__(self, specs, lost=(), late=()):
        super().__init__(in_process_transport()(specs).hosts)
        self.specs, self.lost, self.late, self.owner = specs, list(lost), list(late), {}

    def submit(self, host, method, *args):
        sent = clock()
        ticket = super().submit(host, method, *args)
        self.owner[ticket] = host, method, args, sent
        return ticket

    def wait(self, tickets, timeout):
        for ticket, answer in super().wait(tickets, timeout):
            host, method, args, sent = self.owner[ticket]
            key = (host, args[0].round) if method == "run" else None
            if key in self.late:
                self._answers[ticket] = answer  # for whoever asks again
                continue
            if key in self.lost:
                self.lost.remove(key)
                yield ticket, Lost(host, "ActorDiedError")
                continue
            yield ticket, self.stamped(answer, host, sent) if method == "run" else answer

    def stamped(self, answer, host, sent):
        ahead = self.ahead[host]
        spans = tuple(span.moved(-ahead) for span in answer.spans)
        until = max(span.ended for span in answer.spans)
        while clock() < until + self.way_s:
            pass
        return replace(answer, spans=spans, stamps=Stamps(sent + ahead, until + ahead))

    def restart(self, host):
        (spec,) = [spec for spec in self.specs if spec.name == host]
        self.hosts |= in_process_transport()([spec]).hosts


def specs():
    return Topology(packs=2).specs(sites(), None, 1)


def test_spans_of_hosts_with_other_clocks_come_to_the_aggregators_clock():
    told = on(Elsewhere, specs())
    for record in told.records:
        seen = record.observed
        assert all(seen.began <= span.began <= span.ended <= seen.ended for span in seen.spans)
        assert sorted(span.host for span in seen.spans if span.what == "uplink") == ["pack0", "pack1"]
    for host, ahead in Elsewhere.ahead.items():
        estimate, error = told.records[-1].observed.clocks[host]
        assert abs(estimate - ahead) <= error < 0.5


def test_lost_host_is_a_span_of_its_own_and_two_lines_for_the_log():
    told = on(lambda given: Elsewhere(given, lost=[("pack1", 1)]), specs())
    seen = told.records[1].observed
    assert [(span.host, span.what) for span in seen.spans if span.what == "lost"] == [("pack1", "lost")]
    assert [(note.level, note.host, note.kind, note.source) for note in seen.notes] == [
        ("ERROR", "pack1", "ActorDiedError", "aggregator"),
        ("WARNING", "pack1", "", "aggregator"),
    ]
    assert told.records[2].observed.notes == []


def test_late_host_is_late_until_the_end_of_its_round_and_the_round_waited_for_it():
    schedule = fr.synchronous(quorum=0.3, deadline_s=5.0)
    told = on(lambda given: Elsewhere(given, late=[("pack0", 1)]), specs(), schedule=schedule)
    late = [span for span in told.records[1].observed.spans if span.what == "late"]
    assert [(span.host, span.round) for span in late] == [("pack0", 1)]
    assert told.records[1].waited_s > 0
    assert not any(span.what == "late" for span in told.records[2].observed.spans)


def test_waiting_is_from_the_middle_host_to_the_last_one_summed_over_stages():
    spans = [Span(f"p{n}", "uplink", 0.0, end, 3, stage)
             for stage, ends in ((1, (1.0, 2.0, 7.0)), (3, (8.0, 8.0, 9.5))) for n, end in enumerate(ends)]
    below = Span("p0.inner", "uplink", 0.0, 99.0, 3, 1)  # of a region's own host: the region waits for it
    assert waited_s([*spans, below], {"p0": 0, "p1": 0, "p2": 0}) == pytest.approx(5.0 + 1.5)


# --- now ------------------------------------------------------------------------------------------------


def test_progress_says_what_is_asked_while_it_is_asked():
    found = []

    class Asks(ToyLocal):
        def __call__(self, *args, **more):
            found.append(federation.aggregator.progress())
            return super().__call__(*args, **more)

    with fr.simulate(sites(), packs=2) as federation:
        fr.fit(fr.algorithms.fedavg(Asks()), federation, init=INIT, rounds=1)
        after = federation.aggregator.progress()
    now = found[-1]
    assert (now["doing"], now["round"], now["stage"], now["asked"]) == ("round", 0, 1, 6)
    assert [host["doing"] for host in now["hosts"]].count("run") == 1
    assert (after["doing"], after["answered"]) == ("", 6)
