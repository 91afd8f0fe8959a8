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
