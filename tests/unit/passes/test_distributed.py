"""Noise in shares: words of the ring against plain integers, room for the extremes, and what it asks for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import noise, tree
from fedray.accounting import accountant
from fedray.core.graph import Label
from fedray.errors import ScheduleError, SecurityConflict
from fedray.passes.clipping import ClipByNorm
from fedray.passes.distributed import RESERVE, FromRing, Share
from fedray.testing import check_rows
from tests.unit.passes.site_level import KEY, Same, echo, released
from tests.unit.passes.stacks import ALGORITHMS, P

IDEAL = P.secure_sum(mode="ideal", min_cohort=3)


class Counted:
    """A source that goes on from call to call."""

    def __init__(self):
        self.stream = noise.keystream(KEY)

    def __call__(self, num_bytes):
        return self.stream(num_bytes)


def share_of(**more):
    step = P.site_dp_distributed(
        **{"clip": 2.0, "noise_multiplier": 0.5, "num_params": 40, "cohort": 6, **more}
    )
    plan = fr.compile(echo(), [step, IDEAL])
    return next(node.fn for node in plan.nodes if isinstance(node.fn, Share))


def update(seed, length, size=40):
    draws = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return tree.flatten({"v": draws * length / draws.norm()})


def words(share, x):
    return share(x).buffer[0].numpy().astype(np.int64)


def test_the_sum_of_words_is_that_of_clipped_and_rounded_updates_and_the_noise_of_all():
    share, source = share_of(source=Counted()), Counted()
    updates = [update(seed, length) for seed, length in enumerate((0.5, 1.9, 2.0, 5.0, 300.0, 0.0))]
    total = sum(words(share, x) for x in updates) % 2**32
    drawn = [noise.skellam(40, share.ring.share_variance, source).numpy() for _ in updates]
    expected = sum(drawn)
    assert abs(expected).max() > share.ring.share_variance**0.5
    for x in updates:
        clipped = ClipByNorm(2.0)(x)["v"].double().numpy()
        expected = expected + np.rint(clipped * share.ring.scale).astype(int)
    assert (total == expected % 2**32).all()


def test_what_the_server_reads_is_the_sum_within_half_a_step_a_site():
    share = share_of(noise_multiplier=1e-5)
    updates = [update(seed, 1.5) for seed in range(6)]
    total = sum(words(share, x) for x in updates) % 2**32
    held = share(updates[0])
    read = FromRing(share.ring)(tree.Flat(torch.from_numpy(total).to(torch.uint32).view(1, -1), held.schema))
    exact = sum(x["v"].double() for x in updates)
    allowed = 6 * 0.5 / share.ring.scale + 6 * share.ring.share_variance**0.5 * 6**0.5 / share.ring.scale
    assert (read["v"].double() - exact).abs().max() < allowed + 1e-6 and read.schema == updates[0].schema


@pytest.mark.parametrize("num_sites", [3, 6, 200])
@pytest.mark.parametrize("multiplier", [0.3, 1.0, 20.0])
def test_all_sites_at_the_bound_and_all_noise_stay_below_half_the_ring(num_sites, multiplier):
    ring = share_of(cohort=num_sites, noise_multiplier=multiplier, num_params=20_000).ring
    most = num_sites * ring.largest + RESERVE * (num_sites * ring.share_variance) ** 0.5
    assert 0.99 * 2**31 < most <= 2**31 - 1
    assert ring.l2 == ring.largest + 20_000**0.5 / 2  # rounding moves each number by half a step at most
    honest = ring.honest * num_sites * ring.share_variance
    assert honest == pytest.approx((multiplier * ring.l2) ** 2)  # what honest shares alone leave


def test_the_mechanism_is_charged_by_its_ring_and_costs_next_to_what_a_gaussian_does():
    mechanism = share_of(num_params=20_000, cohort=50, noise_multiplier=4.244).mechanism
    assert (mechanism.kind, mechanism.noise_by, mechanism.trusted) == ("skellam", "sites", "nobody")
    bound = accountant.epsilon({mechanism: 50}, 1e-5)
    gaussian = replace(mechanism, kind="gaussian")
    assert bound == pytest.approx(accountant.epsilon_by_renyi({gaussian: 50}, 1e-5), rel=0.01)


def test_an_epsilon_is_met():
    mechanism = share_of(noise_multiplier=None, epsilon=8.0, rounds=50, num_params=1000).mechanism
    assert 7.9 < accountant.epsilon({mechanism: 50}, 1e-5) <= 8.0


def test_words_have_the_same_bits_alone_and_among_others():
    share = share_of(source=Same())
    assert check_rows(share, [(update(seed, 3.0),) for seed in range(26)], tolerance=0.0) == 0.0
    assert share.needs is Label.MASKED and share.one_shot


@pytest.mark.parametrize("mode", ["ideal", "real"])
def test_a_run_under_a_secure_sum_is_the_noisy_mean_of_clipped_updates(mode):
    rows = torch.zeros(6, 3000)
    rows[:, :3] = torch.eye(3).repeat(2, 1) * 10.0
    found, result = released(
        rows,
        [P.site_dp_distributed(3.0, 0.5, num_params=3000, cohort=6), P.secure_sum(mode=mode, min_cohort=3)],
        packs=2,
    )
    std = float(found[3:].std()) * 6  # of all six shares, where four of six would do
    assert std == pytest.approx(1.5 * 1.5**0.5, rel=0.1)
    assert found[:3].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=6 * std / 6)
    assert result.state["v"].dtype == torch.float32


def test_two_runs_of_one_seed_differ_in_noise():
    rows = torch.ones(3, 40)
    first, second = (
        released(rows, [P.site_dp_distributed(3.0, 0.5, num_params=40, cohort=3), IDEAL])[0] for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_shares_that_leave_in_plain_are_refused():
    with pytest.raises(SecurityConflict, match="one site's share of the noise.*secure=secure_sum"):
        fr.compile(
            ALGORITHMS["fedavg"](),
            [P.site_dp_distributed(1.0, 0.5, num_params=500, cohort=6, weights="uniform")],
        )


@pytest.mark.parametrize(("schedule", "why"), [
    (fr.synchronous(cohort=0.99, sampling="poisson"), "cohort of known size"),
    (fr.synchronous(quorum=0.5), "raise schedule.quorum"),
    (fr.buffered(size=6), "cohort of known size|masked among sites"),
])  # fmt: skip
def test_a_run_that_may_count_fewer_shares_is_refused(schedule, why):
    with pytest.raises(ScheduleError, match=why):
        released(
            torch.ones(6, 40),
            [P.site_dp_distributed(1.0, 0.5, num_params=40, cohort=6), IDEAL],
            schedule=schedule,
        )


@pytest.mark.parametrize(("more", "why"), [
    ({"num_params": None}, "number of numbers"), ({"honest": 0.0}, "honest=0.0"),
    ({"clip": {"delta": 1.0}}, "one clip"),
    ({"noise_multiplier": 1e-12}, "fewer sites or a smaller model"),
    ({"num_params": 10**19}, "smaller model"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(more, why):
    with pytest.raises(ValueError, match=why):
        share_of(**more)


def test_an_update_of_more_numbers_than_the_noise_was_made_for_is_refused():
    with pytest.raises(ValueError, match="41 numbers, and noise for 40"):
        share_of()(update(0, 1.0, size=41))
