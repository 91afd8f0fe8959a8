"""A deadline on real processes: a pack that is late loses its sites for the round and is back in the next."""

import time
from dataclasses import dataclass
from typing import Any

import pytest

import fedray as fr
from fedray.learn.local import LocalTraining
from tests.unit.runtime.test_cancelled import LONG, MOST_S, Budget, SlowRule
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import INIT, NUM_FEATURES, ToyLocal, sites

SLEEP_S, DEADLINE_S = 4.0, 1.5


@dataclass(frozen=True)
class Sleeps:
    """A local update that takes long at one site in one round."""

    inner: Any
    site: str
    in_round: int

    def __call__(self, params, data, rng, **extra):
        if (rng.site, rng.round) == (self.site, self.in_round):
            time.sleep(SLEEP_S)
        return self.inner(params, data, rng, **extra)


def test_a_late_pack_is_left_out_of_the_round_and_is_back_in_a_later_one(ray_session):
    schedule = fr.synchronous(deadline_s=DEADLINE_S, quorum=0.3, on_failure="skip")
    with fr.simulate(sites(), runtime="ray", packs=2) as federation:
        result = fr.fit(
            averaging(Sleeps(ToyLocal(), "h03", 1)), federation, init=INIT, rounds=8, schedule=schedule
        )
        processes = federation.call("pids")
    first, second = result.metrics[0], result.metrics[1]
    assert first.counted == 12 and 0 < second.counted < 12
    assert {failure.kind for failure in second.failures} == {"late"}
    assert second.seconds < SLEEP_S
    assert result.metrics[-1].counted == 12 and len(processes) == 3


@pytest.mark.parametrize("form", ["loop", "stacked"])
def test_a_pack_stops_a_training_at_the_deadline_and_is_there_for_the_next_round(ray_session, form):
    model = fr.learn.logistic(NUM_FEATURES)
    local = LocalTraining(model=model, lr=0.3, rule=SlowRule(), steps=LONG, batch_size=4, form=form)
    schedule = fr.synchronous(deadline_s=DEADLINE_S, quorum=0.3, on_failure="skip")
    with fr.simulate(sites(), runtime="ray", packs=2) as federation:
        before = federation.call("pids")
        result = fr.fit(
            averaging(fr.learn.budgeted(local, Budget(long=("h03",)))), federation, init=model.init(0),
            rounds=3, schedule=schedule,
        )  # fmt: skip
        after = federation.call("pids")
    first, second, third = result.metrics
    assert {failure.kind for failure in second.failures} == {"late"} and second.counted < 12
    assert (first.counted, third.counted) == (12, 12)  # else the pack would still train, for 200 s
    assert second.seconds + third.seconds < MOST_S + DEADLINE_S and before == after


@dataclass(frozen=True)
class Lingers(Sleeps):
    """And a little at another site in every round, so that rounds go on while the first one sleeps."""

    slow: str = "h00"
    linger_s: float = 0.6

    def __call__(self, params, data, rng, **extra):
        if rng.site == self.slow:
            time.sleep(self.linger_s)
        return super().__call__(params, data, rng, **extra)


def test_a_late_pack_is_counted_in_a_later_round_where_its_work_is_carried(ray_session):
    schedule = fr.synchronous(deadline_s=DEADLINE_S, quorum=0.3, on_failure="skip", late="carry")
    with fr.simulate(sites(), runtime="ray", packs=2) as federation:
        # of the two packs, one holds the site that sleeps and the other the one that lingers
        homes = {site: spec.name for spec in federation.specs for site in spec.sites}
        slow = next(site for site, home in homes.items() if home != homes["h03"])
        local = Lingers(ToyLocal(), "h03", 1, slow)
        result = fr.fit(averaging(local), federation, init=INIT, rounds=9, schedule=schedule)
    missed = 12 - result.metrics[1].counted
    late = [record.late or 0 for record in result.metrics]
    assert 0 < missed < 12 and sorted(late)[-2:] == [0, missed]
    counted_in = late.index(missed)
    assert counted_in > 2 and result.metrics[counted_in].staleness_max == counted_in - 1
    assert [record.asked for record in result.metrics[2 : counted_in + 1]] == [12 - missed] * (counted_in - 1)
    assert result.metrics[counted_in + 1].counted == 12
