"""Quarantine: who is left out, when, on what evidence, and how a site comes back."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.errors import QuorumError
from fedray.learn.update import Update
from fedray.passes.robust import Aggregate
from fedray.rng import SERVER, Key
from fedray.runtime.schedule import left_out
from tests.unit.passes.stacks import P

INIT = {"w": torch.zeros(40)}
SITES = {f"h{i:02d}": (lambda: fr.data.SiteData({"x": torch.zeros(1)})) for i in range(10)}


@dataclass(frozen=True)
class Given:
    """A local update that does not train: near 1 at every site, far off at some, from a round on, for a
    while.
    """

    far: tuple[str, ...] = ("h03",)
    first: int = 0
    last: int = 10**9
    lr = 0.1
    asked: ClassVar = []  # (round, site) of every call

    def __call__(self, params, data, rng):
        self.asked.append((rng.round, rng.site))
        draws = np.random.default_rng([int(rng.site[1:]) if rng.site in SITES else 0, rng.round])
        row = 1 + 0.3 * draws.normal(size=40)
        if rng.site in self.far and self.first <= rng.round <= self.last:
            row = -20 * row
        return Update(fr.tree.flatten({"w": torch.from_numpy(row).float()}), 1, 1, {"loss": 0.5})


def run(then=None, given=None, rounds=12, cohort=1.0, seen=None, sampling="uniform", packs=2, **settings):
    """Train and return the result; `seen` collects {site, ...} of each round that delivered."""
    passes = [P.quarantine(then or P.median(), **{"strikes": 2, "rounds": 4, "probation": 3, **settings})]
    with fr.simulate(SITES, packs=packs) as federation:
        Given.asked.clear()
        result = fr.fit(
            fr.algorithms.fedavg(given or Given()), federation, init=INIT, rounds=rounds, passes=passes,
            schedule=fr.synchronous(cohort=cohort, quorum=0.5, sampling=sampling),
        )
        if seen is not None:
            known = [(round, site) for round, site in Given.asked if site in SITES]
            seen += [{site for at, site in known if at == round} for round in range(rounds)]
        return result, federation.aggregator.memory["robust.delta"]


def rounds_without(site, seen):
    return [round for round, asked in enumerate(seen) if site not in asked]


def test_a_site_far_off_is_left_out_after_its_strikes_and_at_once_when_it_comes_back_far_off():
    seen = []
    result, memory = run(seen=seen)
    assert rounds_without("h03", seen) == [2, 3, 4, 5, 7, 8, 9, 10]  # two strikes; one on probation
    assert all(not rounds_without(site, seen) for site in SITES if site != "h03")
    assert memory["sites"]["h03"]["times"] == 3 and memory["left_out"] == {"h03": 16}
    assert [record.asked for record in result.metrics][:4] == [10, 10, 9, 9]


def test_a_site_that_mends_its_ways_comes_back_for_good():
    seen = []
    result, memory = run(given=Given(last=1), rounds=14, seen=seen)
    assert rounds_without("h03", seen) == [2, 3, 4, 5]
    record = memory["sites"]["h03"]
    assert record["strikes"] == 0 and record["watched"] == 9 and not memory["left_out"]
    numbers = [record.metrics for record in result.metrics]
    assert [each["quarantine.on_probation"] for each in numbers[6:10]] == [1, 1, 1, 0]
    assert "quarantine.sites.h03.ratio" not in numbers[9]


def test_one_far_round_among_others_is_forgiven():
    seen = []
    run(given=Given(first=3, last=3), seen=seen)
    assert not rounds_without("h03", seen)


def test_evidence_is_in_the_record_of_each_round_and_is_numbers_alone():
    result, _ = run(rounds=4)
    first, third = result.metrics[0].metrics, result.metrics[2].metrics
    assert first["loss"] == 0.5 and first["quarantine.left_out"] == 0
    assert first["quarantine.sites.h03.strikes"] == 1 and first["quarantine.sites.h03.ratio"] > 50
    assert third["quarantine.left_out"] == 1 and third["quarantine.sites.h03.left_out_until"] == 6
    assert {name.split(".")[2] for name in third if name.startswith("quarantine.sites.")} == {"h03"}
    assert all(isinstance(value, float) for value in third.values())


def test_the_weight_that_a_rule_gave_is_part_of_the_evidence():
    result, _ = run(P.multi_krum(1), rounds=1)
    assert result.metrics[0].metrics["quarantine.sites.h03.weight"] == 0
    result, _ = run(P.rfa(), rounds=1)
    assert 0 < result.metrics[0].metrics["quarantine.sites.h03.weight"] < 0.02
    result, _ = run(P.median(), rounds=1)  # coordinates have weights of their own
    assert "quarantine.sites.h03.weight" not in result.metrics[0].metrics


@pytest.mark.parametrize("sampling", ["uniform", "poisson", "weighted", "cyclic", "shuffled"])
def test_every_way_to_draw_a_cohort_passes_over_who_is_left_out(sampling):
    seen = []
    _, memory = run(seen=seen, cohort=0.6, sampling=sampling, rounds=20, strikes=1)
    out = rounds_without("h03", seen)
    assert memory["sites"]["h03"]["times"] >= 2 and len(out) >= 8


def test_more_sites_than_a_number_asks_for_cannot_be_asked_when_some_are_left_out():
    seen = []
    result, _ = run(seen=seen, cohort=10)
    assert [record.asked for record in result.metrics][:4] == [10, 10, 9, 9]


def test_never_more_than_a_share_of_the_sites_is_left_out():
    seen = []
    far = ("h00", "h01", "h02", "h03")
    run(given=Given(far), seen=seen, most=0.2, rounds=4)
    assert [10 - len(asked) for asked in seen] == [0, 0, 2, 2]


def test_the_same_run_leaves_out_the_same_sites_in_every_layout():
    found = {run(rounds=8, packs=packs)[0].params_sha256 for packs in (1, 2, 10)}
    assert len(found) == 1


def aggregate(robust, values, round, memory=None):
    return Aggregate(robust.rule)(values, Key(0, round, SERVER, "robust.delta"), memory)


class Plain:
    """The rule of a quarantine, taken out of its pass."""

    def __init__(self, then, **settings):
        from fedray.passes.quarantine import Watched

        known = {"limit": 3.0, "strikes": 2, "rounds": 4, "probation": 3, "most": 0.3, **settings}
        self.rule = Watched(then.rule, **known)


def rows(seed=0, n=10, **other):
    draws = np.random.default_rng(seed)
    return {f"h{i:02d}": torch.from_numpy(draws.normal(size=8)) for i in range(n)} | other


def test_an_answer_that_is_still_under_way_counts_nothing():
    robust = Plain(P.norm_bound(), strikes=1)
    far = rows(h03=torch.full((8,), 1e3, dtype=torch.float64))
    made = aggregate(robust, far, 0)
    assert made["memory"]["left_out"] == {"h03": 5}
    later = aggregate(robust, rows(1, h03=torch.full((8,), 1e3, dtype=torch.float64)), 1, made["memory"])
    without = {name: row for name, row in rows(1).items() if name != "h03"}
    assert torch.equal(later["value"], aggregate(P.norm_bound(), without, 1)["value"])
    assert later["memory"]["sites"]["h03"]["times"] == 1  # not struck again for what it sent before


def test_a_row_that_is_not_finite_is_a_strike():
    robust = Plain(P.median(), strikes=1)
    made = aggregate(robust, rows(h03=torch.full((8,), float("nan"), dtype=torch.float64)), 0)
    assert made["memory"]["left_out"] == {"h03": 5} and made["memory"]["sites"]["h03"]["broken"] == 1
    assert torch.isfinite(made["value"]).all()


def test_a_round_of_sites_that_are_all_left_out_is_a_quorum_error():
    robust = Plain(P.median(), strikes=1)
    memory = aggregate(robust, rows(h03=torch.full((8,), 1e3, dtype=torch.float64)), 0)["memory"]
    with pytest.raises(QuorumError, match="all 1 sites that delivered are left out"):
        aggregate(robust, {"h03": torch.ones(8, dtype=torch.float64)}, 1, memory)


def test_sites_that_all_send_the_same_have_no_strike():
    made = aggregate(Plain(P.median(), strikes=1), dict.fromkeys(rows(), torch.ones(8)), 0)
    assert {record["ratio"] for record in made["memory"]["sites"].values()} == {0.0}


def test_a_rule_with_memory_keeps_it_in_quarantine():
    values = rows()
    made = aggregate(Plain(P.centred_clipping()), values, 0)
    again = aggregate(Plain(P.centred_clipping()), rows(1), 1, made["memory"])
    plain = aggregate(P.centred_clipping(), values, 0)
    expected = aggregate(P.centred_clipping(), rows(1), 1, plain["memory"])
    assert torch.equal(again["value"], expected["value"])


def test_what_a_pass_remembers_of_sites_is_read_for_the_rounds_that_it_names():
    memory = {"robust.delta": {"left_out": {"a": 5, "b": 3}}, "other": {"left_out": {"c": 4}}, "more": [1]}
    assert [left_out(memory, round) for round in (2, 3, 4, 5)] == [
        {"a", "b", "c"}, {"a", "c"}, {"a"}, set()
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [
    {"limit": 1.0}, {"strikes": 0}, {"rounds": 0}, {"probation": -1}, {"most": 0.5}, {"then": P.topk(0.1)},
    {"then": P.median(only=("delta", "drift"))},
])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match="^quarantine: "):
        P.quarantine(**{"then": P.median(), **settings})
