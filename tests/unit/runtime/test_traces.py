"""Traces: who is there, when a round starts on the simulated clock, files, and what is made up."""

import pytest

import fedray as fr
from fedray.errors import ScheduleError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.traces import Interval, Trace, by_trace, generate, read_trace, write_trace
from tests.unit.algorithms.cases import INIT, SIZES, sites, uneven

DAY = Trace(
    (
        Interval("a", 0.0, 50.0, 10.0),
        Interval("b", 0.0, 15.0, 20.0),
        Interval("c", 30.0, 50.0, 5.0),
        Interval("d", 60.0, 100.0, 25.0),
        Interval("stranger", 0.0, 100.0, 1.0),
    ),
    100.0,
)
NAMES = tuple(SIZES)


def asked(schedule, rounds, seed=0):
    cohorts = [schedule.cohort_of(round, seed, NAMES, SIZES) for round in range(rounds)]
    return cohorts, [schedule.start_s(round, seed, NAMES, SIZES) for round in range(rounds)]


def test_a_round_asks_who_is_there_when_the_one_before_is_over():
    cohorts, starts = asked(by_trace(DAY), 7)
    # by hand: 0 + 20 (b) = 20; 20 + 10 (a) = 30; 30 + 10 = 40; 40 + 10 = 50, where nobody is until 60;
    # 60 + 25 = 85; 85 + 25 = 110, which is 10 of the next day
    assert starts == [0.0, 20.0, 30.0, 40.0, 60.0, 85.0, 110.0]
    assert cohorts == [("a", "b"), ("a",), ("a", "c"), ("a", "c"), ("d",), ("d",), ("a", "b")]


def test_a_deadline_ends_a_round_and_exchanges_lengthen_it():
    assert asked(by_trace(DAY, deadline_s=12.0), 3)[1] == [0.0, 12.0, 24.0]
    assert asked(by_trace(DAY, exchanges=2), 2)[1] == [0.0, 40.0]


def test_a_cohort_is_drawn_among_those_who_are_there():
    found = {by_trace(DAY, cohort=1).cohort_of(0, seed, NAMES, SIZES) for seed in range(30)}
    assert found == {("a",), ("b",)}


def test_an_order_of_questions_changes_no_answer():
    schedule = by_trace(DAY, cohort=1)
    late = schedule.cohort_of(9, 3, NAMES, SIZES)
    assert late == asked(by_trace(DAY, cohort=1), 10, seed=3)[0][9]


def run(rounds, **settings):
    schedule = by_trace(DAY, deadline_s=15.0, quorum=0.5)
    with fr.simulate(sites(), packs=2, latency=schedule.latency) as federation:
        algorithm = fr.algorithms.fedavg(uneven())
        return fr.fit(algorithm, federation, init=INIT, rounds=rounds, schedule=schedule, **settings)


def test_the_simulated_clock_follows_the_trace_and_slow_sites_are_late():
    records = run(3).metrics
    assert [record.asked for record in records] == [2, 1, 1]  # at 0, 15 and 25
    assert [(failure.site, failure.kind) for failure in records[0].failures] == [("b", "late")]
    assert [record.seconds for record in records] == [15.0, 10.0, 10.0]


def test_a_resumed_run_asks_the_sites_of_one_that_was_not_stopped(tmp_path):
    kept = Checkpoints(tmp_path)
    run(2, checkpoint=kept)
    assert run(5, checkpoint=kept, resume=True).params_sha256 == run(5).params_sha256


def test_a_file_holds_the_trace_to_the_bit(tmp_path):
    made = generate(NAMES, seed=4)
    write_trace(made, tmp_path / "trace.csv")
    assert read_trace(tmp_path / "trace.csv") == made


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("site,start_s,end_s,answer_s\n", "begins with"),
        ("# period_s=10\nsite,start_s,end_s,answer_s\na,1,2\n", "line 3"),
        ("# period_s=10\nsite,start_s,end_s,answer_s\na,1,2,x\n", "line 3"),
        ("# period_s=10\nsite,start_s,end_s,answer_s\na,5,2,1\n", "start_s < end_s"),
        ("# period_s=10\nsite,start_s,end_s,answer_s\n", "no interval"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_its_line(tmp_path, text, why):
    (tmp_path / "trace.csv").write_text(text, "utf-8")
    with pytest.raises(ScheduleError, match=why):
        read_trace(tmp_path / "trace.csv")


def test_a_made_up_trace_follows_from_the_seed_and_the_names():
    names = [f"h{number}" for number in range(400)]
    made = generate(names, seed=1, hours=8.0, median_s=60.0)
    assert made == generate(names, seed=1) != generate(names, seed=2)
    assert set(generate(names[:3], seed=1).intervals) < set(made.intervals)
    hours = sum(each.end_s - each.start_s for each in made.intervals) / 3600 / len(names)
    speeds = sorted({each.site: each.answer_s for each in made.intervals}.values())
    assert hours == pytest.approx(8.0, rel=0.1) and speeds[200] == pytest.approx(60.0, rel=0.2)
    assert len(made.there(3 * 3600.0)) > 2 * len(made.there(15 * 3600.0))  # nights


def test_what_cannot_be_is_refused():
    with pytest.raises(ScheduleError, match="uniform or weighted"):
        by_trace(DAY, sampling="cyclic")
    with pytest.raises(ScheduleError, match="none of the federation"):
        by_trace(Trace((Interval("x", 0.0, 1.0, 1.0),), 2.0)).cohort_of(0, 0, NAMES, SIZES)
