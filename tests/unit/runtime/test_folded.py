"""Sums over a pack's groups: what is kept, what is let go, what is run again; and the float32 sum."""

from typing import ClassVar

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.core.trace import Algorithm, Outputs
from fedray.errors import CheckpointError, ConfigError, FoldError
from fedray.rows import Group, Rows
from fedray.runtime import fold, folded, lanes, values
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.plan import compile
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import INIT, ToyLocal, sites, train


class Counting(ToyLocal):
    """Count how often each site trains."""

    calls: ClassVar[list[str]] = []

    def __call__(self, params, data, rng, **extra):
        self.calls.extend({rng.site} - {"rehearsal"})
        return super().__call__(params, data, rng, **extra)


@pytest.fixture
def counting():
    Counting.calls.clear()
    return Counting()


@pytest.fixture
def letting_go(monkeypatch):
    """Every sum over more than one row is let go as soon as eight rows are there."""
    monkeypatch.setattr(folded, "BATCH_ROWS", 8)
    monkeypatch.setattr(folded, "KEPT_BYTES", 0)
    monkeypatch.setattr(folded, "SMALL_BYTES", 0)


@pytest.fixture
def kept_rows(monkeypatch):
    """Note the rows that each sum still holds after each group."""
    found, inner = [], folded.Folded._let_go

    def watched(self):
        inner(self)
        found.append(max(item.num_rows for item in self.sums.values()))

    monkeypatch.setattr(folded.Folded, "_let_go", watched)
    return found


@pytest.mark.parametrize("make", [averaging, stateful])
@pytest.mark.parametrize("layout", [{}, {"group_size": 1}, {"group_size": 5}, {"packs": 3, "group_size": 2}])
def test_operands_that_are_let_go_give_the_bits_of_operands_that_are_kept(make, layout, request):
    expected = train(make(ToyLocal()))
    request.getfixturevalue("letting_go")
    found = train(make(ToyLocal()), **layout)
    assert found.params_sha256 == expected.params_sha256
    assert [dict(a.hashes) for a in found.metrics] == [dict(b.hashes) for b in expected.metrics]


def test_a_pack_keeps_fewer_than_a_batch_of_rows(letting_go, kept_rows):
    train(averaging(ToyLocal()), sites(30), rounds=1, group_size=3)
    assert max(kept_rows) == 6 and kept_rows.count(0) >= 3


def test_few_rows_are_let_go_where_they_are_very_large(letting_go, kept_rows, monkeypatch):
    monkeypatch.setattr(folded, "MOST_KEPT_BYTES", 0)
    train(averaging(ToyLocal()), rounds=1, group_size=1)
    assert kept_rows[1:] == [1] + [0] * 11  # after that of the rehearsal


def test_small_sums_stay_while_large_ones_are_let_go(letting_go, monkeypatch):
    monkeypatch.setattr(folded, "SMALL_BYTES", 8 * 128)  # eight rows of the model; numbers are smaller
    seen, inner = {}, folded.Folded._fold

    def watched(self, call):
        seen.update({name: item.grid for name, item in self.sums.items()})
        return inner(self, call)

    monkeypatch.setattr(folded.Folded, "_fold", watched)
    train(averaging(ToyLocal()), rounds=1, group_size=3)
    assert seen["delta"] == (4,) and {grid for name, grid in seen.items() if name != "delta"} == {None}


def scaled(factor):
    """Average updates that are far out of the first grid's range."""

    def round(server, site):
        update = fr.map(Counting(), fr.broadcast(server), site.data, site.rng)
        return Outputs(
            server=server + fr.mean(update.delta * factor, weight=update.num_examples, name="delta")
        )

    return Algorithm(lambda params: params, round, name="scaled")


@pytest.mark.parametrize("layout", [{}, {"packs": 3}])
def test_a_coarser_grid_costs_a_second_training_only_where_operands_were_let_go(layout, counting, request):
    expected = train(scaled(1e4), rounds=1, group_size=2, **layout)
    assert sorted(counting.calls) == sorted(sites())
    Counting.calls.clear()
    request.getfixturevalue("letting_go")
    request.getfixturevalue("monkeypatch").setattr(folded, "BATCH_ROWS", 2)
    found = train(scaled(1e4), rounds=1, group_size=2, **layout)
    assert sorted(counting.calls) == sorted([*sites(), *sites()])
    assert found.params_sha256 == expected.params_sha256
    assert found.metrics[0].grids == expected.metrics[0].grids


def test_an_answer_that_does_not_fit_names_the_needs_of_all_operands(letting_go, monkeypatch):
    monkeypatch.setattr(folded, "BATCH_ROWS", 2)
    with fr.simulate(sites(), group_size=2) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        answers, inner = [], pack.run
        pack.run = lambda call, box: answers.append(inner(call, box)) or answers[-1]
        fr.fit(scaled(1e4), federation, init=INIT, rounds=1)
    assert [answer.is_folded for answer in answers] == [False, True] and not answers[0].sums
    assert answers[0].needs["delta"] == answers[1].needs["delta"] > (4,)


def test_one_delivered_site_still_sends_its_own_row(letting_go):
    with fr.simulate(sites(3), sites_per_actor=1) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        found, inner = [], pack.run
        pack.run = lambda call, box: found.append(inner(call, box)) or found[-1]
        fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=1)
    (part,) = found[0].sums["delta"]
    assert part.is_row and part.arrays[0].dtype == np.float32 and part.arrays[0].shape == (32,)


def test_an_answer_cannot_be_written_and_stays_what_it_was(letting_go):
    with fr.simulate(sites(), packs=2) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        found, inner = [], pack.run
        pack.run = lambda call, box: found.append((call, box, inner(call, box))) or found[-1][2]
        fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=1)
    call, box, first = found[0]
    assert inner(call, box).sums is first.sums
    assert not any(array.flags.writeable for (part,) in first.sums.values() for array in part.arrays)


def test_weights_beyond_53_bits_are_refused_in_a_pack():
    def round(server, site):
        update = fr.map(ToyLocal(), fr.broadcast(server), site.data, site.rng)
        return Outputs(server=server + fr.mean(update.delta, weight=update.num_examples * 10_000_000))

    with pytest.raises(FoldError, match="weight_cap"):
        train(Algorithm(lambda params: params, round, name="heavy"), rounds=1)


# the float32 sum


def fit(data=None, make=averaging, **options):
    layout = {name: options.pop(name) for name in ("packs", "group_size") if name in options}
    with fr.simulate(data or sites(), **layout) as federation:
        result = fr.fit(make(ToyLocal()), federation, init=INIT, fold="fast", **{"rounds": 3, **options})
        return result, federation.call("arrived")


def test_the_fast_sum_is_near_the_exact_one_and_numbers_are_equal():
    exact = train(averaging(ToyLocal()), rounds=3)
    for layout in ({}, {"packs": 3}, {"group_size": 1}, {"packs": 12}):
        found, _ = fit(**layout)
        assert torch.allclose(found.params.buffer, exact.params.buffer, atol=1e-6)
        assert found.metrics[0].metrics == exact.metrics[0].metrics


def test_the_fast_sum_travels_as_one_float32_array_as_egress_says():
    result, arrived = fit(packs=2, rounds=2)
    rows = {row["name"]: row for row in egress_rows(result.plan)}
    assert rows["delta"]["sum_bytes"] == rows["delta"]["site_bytes"] == 32 * 4
    assert arrived == {name: 2 * 2 * row["sum_bytes"] for name, row in rows.items()}


def test_a_run_says_that_it_is_fast():
    result, _ = fit(rounds=1)
    assert result.metrics[0].fold == "fast"
    assert "fold=fast" in fr.explain(result.plan) and "fold=fast" in fr.egress(result.plan)
    exact = train(averaging(ToyLocal()), rounds=1)
    assert exact.metrics[0].fold == "exact" and "fold" not in fr.explain(exact.plan) + fr.egress(exact.plan)
    assert exact.plan.digest != result.plan.digest


def test_a_fast_pack_keeps_no_large_row(kept_rows, monkeypatch):
    monkeypatch.setattr(folded, "FAST_BYTES", 32 * 4)  # one row of the model
    held = []
    inner = lanes.accumulate_fast
    monkeypatch.setattr(
        lanes, "accumulate_fast", lambda out, rows: held.append(len(rows)) or inner(out, rows)
    )
    fit(rounds=1, group_size=1)
    assert held[-12:] == [1] * 12


def test_a_lost_row_does_not_count_in_a_fast_sum():
    from tests.unit.runtime.toy import Breaks

    lost = fr.simulate(sites(), group_size=5)
    with lost as federation:
        broken = fr.fit(
            averaging(Breaks(ToyLocal(), ("h03",), 0, "nan")), federation, init=INIT, rounds=1, fold="fast"
        )
    rest = {site: opened for site, opened in sites().items() if site != "h03"}
    assert torch.allclose(broken.params.buffer, fit(rest, rounds=1)[0].params.buffer, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_large_rows_that_are_not_finite_are_found_where_no_sum_needs_the_largest(bad, monkeypatch):
    monkeypatch.setattr(values, "LARGE_ROW", 64)
    numbers = torch.randn(3, 64, generator=torch.Generator().manual_seed(6))
    numbers[1, 17] = bad  # the square of the last one is not finite, it is
    group = Group(["a", "b", "c"])
    assert values.finite_rows(Rows(numbers), group, is_largest_needed=False) == [True, bad == 1e30, True]
    assert values.finite_rows(Rows(numbers[::2]), Group(["a", "c"]), is_largest_needed=False) == [True, True]


def test_an_exact_run_is_not_resumed_as_a_fast_one(tmp_path):
    train(averaging(ToyLocal()), rounds=1, checkpoint=Checkpoints(tmp_path, every_s=0))
    with pytest.raises(CheckpointError, match="another plan"):
        fit(rounds=2, checkpoint=Checkpoints(tmp_path), resume=True)


def test_an_unknown_fold_is_refused():
    with pytest.raises(ConfigError, match="fold='quick'"):
        compile(averaging(ToyLocal()), fold="quick")


def test_a_fast_sum_of_many_rows_equals_a_sum_in_float32(monkeypatch):
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(4))
    weights = torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0, 9.0], dtype=torch.float64)
    found = torch.zeros(40)
    monkeypatch.setattr(lanes, "COLUMNS", 16)  # several blocks, the last one narrower
    lanes.accumulate_fast(found, [(rows[:3], weights[:3]), (rows[3:], weights[3:])])
    assert torch.allclose(found.double(), weights @ rows.double(), atol=1e-5)
    assert fold.LeafSpec((), torch.float32, None).zeros().shape == (2, 1)
