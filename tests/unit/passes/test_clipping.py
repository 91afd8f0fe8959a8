"""Clipping: no site is longer than the bound, whatever it holds, and nobody else changes."""

import pytest
import torch

import fedray as fr
from fedray import rows, tree
from fedray.errors import PassError
from fedray.passes.clipping import ClipByNorm
from fedray.rows import Group
from fedray.testing import check_rows
from tests.unit.passes.cases import fedavg_by_hand, mean, trained
from tests.unit.passes.site_level import released
from tests.unit.passes.stacks import ALGORITHMS, P


def flat(scale, seed=0, dtype=torch.float32):
    draws = torch.Generator().manual_seed(seed)
    return tree.flatten(
        {"w": (torch.randn(7, 9, generator=draws) * scale).to(dtype), "b": torch.ones(3, dtype=dtype)}
    )


def test_rows_of_a_clip_have_the_same_bits_alone_and_among_others():
    sites = [(flat(scale, seed),) for seed, scale in enumerate([0.01, 1.0, 30.0] * 9)]
    assert check_rows(ClipByNorm(2.0), sites, tolerance=0.0) == 0.0
    assert check_rows(ClipByNorm(2.0), [(float(i),) for i in range(8)], tolerance=0.0) == 0.0


@pytest.mark.parametrize("value", [
    torch.full((5,), 3e38), torch.full((5,), 1e300, dtype=torch.float64), torch.full((4097,), 0.1),
    torch.tensor([1.0, 1e-45]), torch.randn(501, generator=torch.Generator().manual_seed(1)).bfloat16(),
    torch.randn(70_001, generator=torch.Generator().manual_seed(2)), torch.arange(9),
])  # fmt: skip
@pytest.mark.parametrize("bound", [1e-3, 0.3, 1.0])
def test_the_norm_is_within_the_bound_after_rounding(value, bound):
    clipped = ClipByNorm(bound)({"v": value, "n": 0.25})
    assert tree.norm(clipped) <= bound
    assert tree.norm(clipped) > bound * (1 - 4 * torch.finfo(clipped["v"].dtype).eps) - 1e-12


def test_what_is_within_the_bound_stays_bit_for_bit():
    assert tree.equal(ClipByNorm(20.0)(flat(0.5)), flat(0.5))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_living_row_that_is_not_finite_is_refused_and_a_lost_one_is_zero(broken):
    held = rows.stack([torch.tensor([broken, 1.0]), torch.tensor([3.0, 4.0])])
    group = Group(["a", "b"])
    with pytest.raises(ArithmeticError, match="not finite"):
        ClipByNorm(1.0).rows(group, held)
    group.is_alive[0] = False
    found = ClipByNorm(1.0).rows(group, held)
    assert found[0].tolist() == [0.0, 0.0] and found[1].norm() == pytest.approx(1.0, rel=1e-6)


def test_a_bound_alone_keeps_the_weighted_mean_of_clipped_updates():
    def clipped(t, updates, weights):
        short = {i: u * min(1.0, 0.5 / (u**2).sum() ** 0.5) for i, u in updates.items()}
        return mean(short, weights)

    result, _ = trained([P.clip(0.5)])
    expected = fedavg_by_hand(clipped)
    assert abs(torch.cat([result.params[n].flatten() for n in ("W", "b")]).numpy() - expected).max() < 1e-12


def test_all_sites_beyond_the_bound_count_with_their_directions_alone():
    given = torch.tensor([[5.0, 0.0], [0.0, 700.0]], dtype=torch.float64)
    found, _ = released(given, [P.clip(1.0)])
    assert found.tolist() == pytest.approx([0.5, 0.5])


def test_other_reductions_are_left_untouched():
    plain = fr.compile(ALGORITHMS["scaffold"](), [])
    bounded = fr.compile(ALGORITHMS["scaffold"](), [P.clip(1.0)])
    kinds = [
        [(node.name, node.params["kind"]) for node in plan.graph.reductions] for plan in (plain, bounded)
    ]
    clips = [node for node in bounded.nodes if isinstance(node.fn, ClipByNorm)]
    assert kinds[0] == kinds[1] and len(clips) == 1 and len(bounded.nodes) == len(plain.nodes) + 1


def test_a_bound_without_a_meaning_or_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no number above 0"):
        P.clip(0.0)
    with pytest.raises(PassError, match="found no mean"):
        fr.compile(ALGORITHMS["fedavg"](), [P.clip(1.0, only={"dleta"})])


def test_sites_of_other_shapes_are_told_apart_by_class():
    held = rows.stack([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match="different shapes"):
        ClipByNorm(1.0).rows(Group(["a", "b"]), held)
