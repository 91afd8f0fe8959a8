"""Adaptive clipping: the paper's sign, the noise of this round's bound, and one cost for the pair."""

import math

import pytest
import torch

import fedray as fr
from fedray import noise, tree
from fedray.errors import ConfigError, ScheduleError
from fedray.passes.adaptive import AdaptiveNoise, ClipAndTell, moved
from fedray.testing import check_rows
from tests.unit.passes.site_level import KEY, Same, Silent, echo, holders, released
from tests.unit.passes.stacks import ALGORITHMS, P


def bounds(rows, rounds, **more):
    """Return the server's bound after a number of rounds, without noise to speak of."""
    step = P.site_dp_adaptive(1.0, 1e-3, cohort=len(rows), mark_std=1e-3, source=Silent(), **more)
    with fr.simulate(holders(rows)) as federation:
        fr.fit(echo(), federation, init={"v": torch.zeros(rows.shape[1], dtype=rows.dtype)}, rounds=rounds,
               passes=[step], schedule=fr.synchronous())  # fmt: skip
        return federation.aggregator.memory["clip.delta"]


def test_the_bound_moves_by_the_papers_sign_and_factor():
    assert moved(1.0, share=0.8, target=0.5, lr=0.2) == pytest.approx(0.941765, abs=1e-6)
    assert moved(1.0, share=0.0, target=0.5, lr=0.2) == pytest.approx(math.exp(0.1))


def test_the_bound_grows_while_all_are_beyond_it_and_shrinks_while_all_are_within():
    long, short = (
        torch.full((4, 1), 100.0, dtype=torch.float64),
        torch.full((4, 1), 0.01, dtype=torch.float64),
    )
    assert bounds(long, 3) == pytest.approx(math.exp(0.3)) and bounds(short, 3) == pytest.approx(
        math.exp(-0.3)
    )


def test_the_bound_settles_at_the_quantile_of_norms():
    rows = torch.diag(torch.linspace(1.0, 9.0, 9, dtype=torch.float64))
    assert 6.5 < bounds(rows, 120, target=0.7, lr=0.3) < 8.5


def test_updates_and_marks_cost_together_what_is_said():
    step = P.site_dp_adaptive(1.0, 1.0, cohort=200)
    fn = next(node.fn for node in fr.compile(echo(), [step]).nodes if isinstance(node.fn, AdaptiveNoise))
    assert fn.update_multiplier == pytest.approx(1.001252, abs=1e-6)  # s_b = 10, security.md section 8.2
    assert fn.mechanism.noise_multiplier == 1.0
    assert fn.update_multiplier**-2 + (2 * fn.mark_std) ** -2 == pytest.approx(1.0)


def test_eight_sites_cannot_tell_a_quantile_in_private():
    with pytest.raises(ConfigError, match="fixed clip"):
        P.site_dp_adaptive(1.0, 1.0, cohort=8)


def test_the_noise_is_in_units_of_this_rounds_bound_not_of_the_next():
    rows = torch.zeros(4, 6, dtype=torch.float64)
    step = P.site_dp_adaptive(3.0, 0.5, cohort=4, mark_std=2.0, source=Same())
    fn = next(node.fn for node in fr.compile(echo(), [step]).nodes if isinstance(node.fn, AdaptiveNoise))
    drawn = noise.gaussian((1, 6), 3.0 * fn.update_multiplier, noise.keystream(KEY), torch.float64)[0]
    found, _ = released(rows, [step])
    assert torch.equal(found, drawn / 4)


def test_marks_have_the_same_bits_alone_and_among_others():
    sites = [(tree.flatten({"w": torch.full((5,), float(i))}), 4.0) for i in range(26)]
    assert check_rows(ClipAndTell(), sites, tolerance=0.0) == 0.0
    assert [ClipAndTell()(*site)["within"] for site in sites[:3]] == [0.5, 0.5, -0.5]


def test_each_name_has_a_bound_and_a_quantile_of_its_own():
    step = P.site_dp_adaptive(
        {"delta": 1.0, "drift": 0.1}, 0.5, cohort=6, mark_std=2.0, only={"delta", "drift"}
    )
    plan = fr.compile(ALGORITHMS["scaffold"](), [step])
    assert {"delta.within", "drift.within"} <= {name for node in plan.graph.reductions
                                                for name, *_ in node.params.get("lanes", ())}  # fmt: skip
    assert {slot for _, slot in plan.graph.outputs} >= {"clip.delta", "clip.drift"}


def test_a_buffer_whose_sites_have_older_bounds_is_refused():
    step = P.site_dp_adaptive(1.0, 0.5, cohort=3, mark_std=2.0, weights="uniform")
    with pytest.raises(ScheduleError, match="clip.delta"):
        fr.compile(ALGORITHMS["fedavg"](), [step], fr.buffered(size=3, discount="constant"))
