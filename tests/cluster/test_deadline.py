"""A deadline on real processes: a pack that is late loses its sites for the round and is back in the next."""

import time
from dataclasses import dataclass
from typing import Any

import fedray as fr
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import INIT, ToyLocal, sites

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
