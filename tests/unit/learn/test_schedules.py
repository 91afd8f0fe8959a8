"""Schedules are functions of the round with closed forms."""

import math

import pytest

from fedray import learn

CASES = [
    (learn.constant(0.3), {0: 0.3, 1000: 0.3}),
    (learn.step(1.0, every=10, factor=0.5), {0: 1.0, 9: 1.0, 10: 0.5, 25: 0.25}),
    (learn.cosine(1.0, 10, final=0.2), {0: 1.0, 5: 0.6, 10: 0.2, 99: 0.2}),
    (learn.warmup(0.4, 4), {0: 0.0, 1: 0.1, 4: 0.4, 9: 0.4}),
    (learn.warmup(learn.cosine(1.0, 10), 2, 0.5), {0: 0.5, 1: 0.75, 2: 1.0, 7: 0.5, 12: 0.0}),
]


@pytest.mark.parametrize(("schedule", "expected"), CASES)
def test_schedule_follows_its_formula(schedule, expected) -> None:
    assert {round: schedule(round) for round in expected} == pytest.approx(expected, abs=1e-12)


def test_schedule_says_what_it_is() -> None:
    assert repr(learn.cosine(0.1, 50)) == "Cosine(lr=0.1, rounds=50, final=0.0)"


def test_cosine_at_a_third() -> None:
    assert learn.cosine(1.0, 3)(1) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


@pytest.mark.parametrize(
    "make", [lambda: learn.cosine(0.1, 0), lambda: learn.constant(-1.0), lambda: learn.step(1.0, 0)]
)
def test_impossible_schedule_is_refused(make) -> None:
    with pytest.raises(ValueError, match="give a"):
        make()
