"""Secure sums in a round: what is summed, who may be lost, what is refused. The protocol itself is tested in
tests/unit/secrecy.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.graph import Label, Op
from fedray.core.rewrite import on_reduce
from fedray.errors import ConfigError, QuorumError, ScheduleError, SecrecyError, SecurityConflict
from fedray.passes import group_secure_sum, randk, secure_sum, topk, trust_statement, two_server
from fedray.passes.secure_masks import Advertise, Party, party_of
from fedray.passes.secure_setup import Rules, Setup
from fedray.rows import Group
from tests.unit.passes.secure_cases import SIZE, Given, fitted, losing, numbers, oracle, vector
from tests.unit.runtime.toy import INIT, ToyLocal, sites

START_BOUND, START_CAP = 16.0, 2.0**14
REAL = {"active": [1, 3, 5, 7, 9], "curious": [1, 3, 5, 7]}


def names(count):
    return [f"h{number:02d}" for number in range(count)]


def is_masked(plan):
    """Tell whether masks are added: mode=real, read off the plan."""
    return any(type(node.fn).__name__ == "Mask" for node in plan.nodes if node.op is Op.CALL)


@pytest.mark.parametrize("server", ["active", "curious"])
def test_masked_sums_equal_the_integer_oracle_bit_for_bit(server):
    result = fitted([secure_sum("real", server=server)])
    assert is_masked(result.plan) and result.plan.site_stages == REAL[server]
    assert torch.equal(result.state["mean"], oracle(names(5), 5, START_BOUND))


def test_weights_enter_as_whole_numbers_and_wide_sums_are_exact():
    result = fitted([secure_sum("real")], algorithm=keeping())
    rows = {site: 3.0 + int(site[1:]) for site in names(5)}
    assert torch.equal(result.state["weighted"], oracle(names(5), 5, START_BOUND, rows, START_CAP))
    assert result.state["total"] == sum(1e9 * number + 0.125 for number in range(5))
    assert result.state["ones"] == 5 == result.state["count"]


def keeping():
    """Keep what the metrics say in the server's state."""
    inner = numbers()

    def round(server, site):
        found = inner.round(server, site)
        return fr.Outputs(server={**found.server,
            "weighted": found.metrics["weighted"], "total": found.metrics["sum"],
            "ones": found.metrics["ones"], "count": found.metrics["count"]
        })

    start = torch.zeros(7)
    first = {"params": start, "mean": start, "weighted": start, "total": 0.0, "ones": 0, "count": 0}
    return fr.Algorithm(lambda _: first, round, name="keeping")


def test_an_ideal_sum_has_the_bits_of_a_real_one_over_several_rounds():
    found = [fitted([secure_sum(mode)], rounds=3).state for mode in ("ideal", "real")]
    assert tree.equal(*found)


@pytest.mark.parametrize(("stage", "is_counted"), [(1, False), (3, False), (5, False), (7, True), (9, True)])
def test_every_pattern_of_one_and_two_lost_sites_ends_in_the_exact_sum_or_no_round(stage, is_counted):
    for count in (1, 2):
        for gone in itertools.combinations(names(5), count):
            counted = names(5) if is_counted else [site for site in names(5) if site not in gone]
            if count == 2:  # t = floor(2 * 5 / 3) + 1 = 4
                with pytest.raises(QuorumError, match="E_THRESHOLD|E_COHORT"):
                    fitted([secure_sum("real", min_cohort=3)], lost={stage: gone})
                continue
            result = fitted([secure_sum("real", min_cohort=3)], lost={stage: gone})
            assert torch.equal(result.state["mean"], oracle(counted, 5, START_BOUND)), gone
            assert result.metrics[0].counted == len(counted)


@pytest.mark.parametrize("lost", [
    {5: ["h01"], 9: ["h06"]}, {1: ["h00"], 5: ["h03"]}, {3: ["h07"], 7: ["h02"]},
])
def test_sites_lost_at_different_stages_leave_the_sum_of_those_that_delivered(lost):
    gone = {site for stage, some in lost.items() if stage <= 5 for site in some}
    counted = [site for site in names(8) if site not in gone]
    result = fitted([secure_sum("real", min_cohort=3)], count=8, lost=lost)
    assert torch.equal(result.state["mean"], oracle(counted, 8, START_BOUND))


def test_a_curious_server_needs_half_of_the_sites():
    result = fitted([secure_sum("real", server="curious", min_cohort=3)], lost={5: ["h00", "h01"]})
    assert torch.equal(result.state["mean"], oracle(names(5)[2:], 5, START_BOUND))


@pytest.mark.parametrize("groups", [(), (("rehearsal",),), (("h01", "h02", "h03", "h04", "h05"),)])
def test_a_site_that_is_not_in_the_announced_sum_sends_nothing(groups):
    rules = Rules(server="active", threshold=None, min_cohort=5, num_groups=1, is_ring=False, has_dp=False,
                  is_kept=False, label="sum")  # fmt: skip
    with pytest.raises(SecrecyError, match="E_COHORT"):  # made-up sites add no mask, and h00 is none
        party_of(Group(["h00"]), "h00", Setup("run", 0, groups, "agreed"), rules)


def test_no_secret_of_a_site_outlives_its_round():
    with fr.simulate(sites(5)) as federation:
        fr.fit(numbers(), federation, init={}, rounds=1, passes=[secure_sum("real")])
        (pack,) = federation.aggregator.root.transport.hosts.values()
        parties = [one for held in pack._cache.values() if isinstance(held, dict)
                   for one in held.values() if isinstance(one, Party)]  # fmt: skip
    assert len(parties) == 5
    assert not any(party.site._secrets or party.site._shares or party.round._keys for party in parties)


def test_a_site_with_the_name_of_a_made_up_one_is_refused():
    with pytest.raises(ConfigError, match="probe0.*rename"):
        fr.simulate({"probe0": 1, "h00": 2})


def test_a_round_that_ends_without_a_result_is_tried_again_with_fresh_keys():
    schedule = fr.synchronous(quorum=0.01, retries=1)
    with fr.simulate(sites(5)) as federation, losing(federation, {7: ["h00", "h01"]}, attempt=0):
        result = fr.fit(numbers(), federation, init={}, rounds=1, passes=[secure_sum("real", min_cohort=3)],
                        schedule=schedule)  # fmt: skip
    assert result.metrics[0].attempt == 1
    assert torch.equal(result.state["mean"], oracle(names(5), 5, START_BOUND))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_cohort_below_the_least_is_refused(count):
    with pytest.raises(QuorumError, match="E_COHORT.*min_cohort"):
        fitted([secure_sum("real")], count=count)


def test_survivors_below_the_least_are_never_unmasked():
    with pytest.raises(QuorumError, match="E_COHORT"):
        fitted([secure_sum("real", min_cohort=5)], count=6, lost={5: ["h00", "h01"]})


def test_a_site_whose_update_is_not_finite_sends_nothing_and_the_sum_is_of_the_others():
    @dataclass(frozen=True)
    class Broken:
        def __call__(self, params, site):
            return {"x": vector(site) * (float("inf") if site == "h02" else 1.0)}

    def round(server, site):
        given = fr.map(Broken(), fr.broadcast(server["params"]), site.id)
        mean = fr.mean(given["x"], name="x")
        return fr.Outputs(server={"params": server["params"] + mean, "mean": mean})

    start = torch.zeros(SIZE)
    algorithm = fr.Algorithm(lambda _: {"params": start, "mean": start}, round, name="broken")
    result = fitted([secure_sum("real", min_cohort=3)], algorithm=algorithm)
    assert torch.equal(result.state["mean"], oracle([n for n in names(5) if n != "h02"], 5, START_BOUND))
    lost = result.metrics[0].failures
    assert [(failure.site, failure.kind) for failure in lost] == [("h02", "not finite")]


LONG = 2000


def long_vector(site):
    return torch.randn(LONG, generator=torch.Generator().manual_seed(int(site[1:])))


def only_long(server, site):
    given = fr.map(Long(), fr.broadcast(server), site.id)
    return fr.Outputs(server=fr.mean(given["x"], name="x"))


@dataclass(frozen=True)
class Long:
    def __call__(self, params, site):
        return {"x": long_vector(site)}


def seen_by_the_server(mode):
    """Return the words that the server is sent in a round of five sites, by site."""
    seen = {}
    algorithm = fr.Algorithm(lambda _: torch.zeros(LONG), only_long, name="long")
    with fr.simulate(sites(5), sites_per_actor=1) as federation:
        for pack in federation.aggregator.root.transport.hosts.values():
            pack.run = watched(pack.run, seen)
        fr.fit(algorithm, federation, init={}, rounds=1, passes=[secure_sum(mode, clip=4.0)])
    return {site: words[:LONG].view(np.int32).astype(float) for site, words in seen.items()}


def watched(run, seen):
    def asked(call, downlink):
        answer = run(call, downlink)
        for parts in answer.sums.values():
            seen[answer.delivered[0]] = parts[0].arrays[0]
        return answer

    return asked


def cosine(a, b):
    return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_what_the_server_is_sent_does_not_show_the_vector_of_a_site():
    masked, plain = seen_by_the_server("real"), seen_by_the_server("ideal")
    vectors = {site: long_vector(site).double().numpy() for site in masked}
    assert min(cosine(plain[site], vectors[site]) for site in plain) > 0.999
    assert max(cosine(words, vector) for words in masked.values() for vector in vectors.values()) < 0.1
    again = seen_by_the_server("real")
    assert max(cosine(again[site], masked[site]) for site in masked) < 0.1  # no pad is used twice


@pytest.mark.parametrize("make", [topk, fr.passes.qsgd, fr.passes.ef21])
def test_codes_that_do_not_add_up_are_refused_for_those_that_do(make):
    with pytest.raises(SecurityConflict, match="secure_sum: x .* compressed by .*randk"):
        fr.compile(numbers(), [make(only={"x"}), secure_sum()])
    fr.compile(numbers(), [randk(0.5, only={"x"}), secure_sum()])


def test_a_buffer_of_sites_asked_at_different_times_is_refused():
    for mode in ("ideal", "real"):
        with pytest.raises(ScheduleError, match="agreed on keys before they trained"):
            fr.compile(numbers(), [secure_sum(mode)], fr.buffered(size=5, concurrency=5))


@pytest.mark.parametrize("options", [
    {"mode": "fake"}, {"server": "lying"}, {"min_cohort": 2}, {"threshold": 1.5}, {"threshold": 0},
    {"weight_cap": 0.0}, {"weight_cap": 0.5}, {"weight_cap": float("inf")}, {"clip": 0.0}, {"clip": -1.0},
    {"clip": float("nan")}, {"clip": {"x": float("inf")}}, {"clip": "x"}, {"threshold": True},
    {"threshold": 1.0}, {"min_cohort": 3.5},
])
def test_settings_without_a_meaning_are_refused(options):
    with pytest.raises(ValueError, match="secure_sum: "):
        secure_sum(**options)


def test_other_secure_sums_refuse_their_settings_by_name():
    with pytest.raises(ValueError, match="two_server: clip=0"):
        two_server(clip=0)
    with pytest.raises(ValueError, match="group_secure_sum: min_cohort=2"):
        group_secure_sum(min_cohort=2)
    with pytest.raises(ValueError, match=r"group_secure_sum: groups=2\.5"):
        group_secure_sum(2.5)


@pytest.mark.parametrize("again", [secure_sum(), secure_sum("real"), two_server()])
@pytest.mark.parametrize("first", [secure_sum(), secure_sum("real"), two_server()])
def test_what_is_hidden_already_is_not_hidden_again(first, again):
    with pytest.raises(SecurityConflict, match="hidden already.*one secure sum"):
        fr.compile(numbers(), [first, again])


def test_a_threshold_that_two_halves_of_the_sites_could_reach_is_refused():
    with pytest.raises(QuorumError, match="E_THRESHOLD.*give 4 at least"):
        fitted([secure_sum("real", threshold=3)])
    for threshold in (0.8, 5, 5.0):
        assert fitted([secure_sum("real", threshold=threshold)]).metrics[0].counted == 5


def test_bounds_do_not_follow_a_sum_to_which_the_server_adds_noise():
    @dataclass(frozen=True)
    class Noise:
        mechanism: Any = "of the server"
        grants: Any = Label.DP

        def __call__(self, total):
            return total

    @on_reduce("mean", only={"x"}, title="noise")
    def noise(x, weight, name, site):
        return fr.apply(Noise(), fr.mean(x, name=name))

    plain, noisy = (fr.compile(numbers(), [*passes, secure_sum()]) for passes in ([], [noise]))
    slots = [{slot for _, slot in plan.outputs} for plan in (plain, noisy)]
    assert slots[0] - slots[1] == {"secure.bounds"}
    assert fitted([noise, secure_sum()]).metrics[0].counted == 5


def test_a_model_is_summed_over_one_set_of_sites_however_many_are_asked():
    still = numbers(scale=0.0)  # the model does not move, and the second round asks 5 sites in place of 6
    few = {"count": 8, "rounds": 2, "sampling": "poisson", "cohort": 0.8, "retries": 0}
    assert [record.asked for record in fitted([secure_sum()], algorithm=still, **few).metrics] == [6, 5]
    with pytest.raises(QuorumError, match="SecrecyError.*terms.py"):
        fitted([secure_sum("real")], algorithm=still, **few | {"quorum": 0.9})


ALL = {"noise_multiplier": 1.0, "only": None, "weights": "uniform", "exact": (), "cohort": 5}


@pytest.mark.parametrize(("noise", "has_dp"), [
    (fr.passes.site_dp(**ALL, population=5), False),
    (fr.passes.site_dp_distributed(**ALL, num_params=9), True),
])
def test_noise_of_the_server_does_not_loosen_the_rule_on_two_sums_of_one_model(noise, has_dp):
    plan = fr.compile(mean_alone(), [noise, secure_sum("real")])
    rules = [node.fn.rules for node in plan.nodes if isinstance(node.fn, Advertise)]
    assert [each.has_dp for each in rules] == [has_dp]


def mean_alone():
    def round(server, site):
        given = fr.map(Given(), fr.broadcast(server["params"], name="params"), site.id)
        return fr.Outputs(server={"params": server["params"] + fr.mean(given["x"], name="x")})

    return fr.Algorithm(lambda _: {"params": torch.zeros(SIZE)}, round, name="mean_alone")


def test_values_that_sites_keep_are_summed_over_other_sites_in_another_round():
    kept = fr.algorithms.local_only(ToyLocal())
    passes, some = [secure_sum("real", clip=16.0, weight_cap=64.0)], fr.synchronous(cohort=6)
    with fr.simulate(sites(8)) as federation:
        result = fr.fit(kept, federation, init=INIT, rounds=4, passes=passes, schedule=some)
    assert [record.counted for record in result.metrics] == [6, 6, 6, 6]


def test_updates_below_a_step_show_once_the_bound_has_narrowed(caplog):
    tiny = fitted([secure_sum()], algorithm=numbers(scale=1e-10), rounds=1)
    later = fitted([secure_sum()], algorithm=numbers(scale=1e-10), rounds=8)
    assert not tiny.state["mean"].any() and "x came to 0" in caplog.text
    exact = torch.stack([vector(site) * 1e-10 for site in names(5)]).mean(0)
    assert torch.allclose(later.state["mean"], exact, rtol=0.1, atol=1e-11)


def test_other_reductions_are_left_as_they_are():
    plain, summed = (fr.compile(numbers(), passes) for passes in ([], [secure_sum()]))
    functions = [{repr(node.fn) for node in plan.nodes if node.op is Op.CALL} for plan in (plain, summed)]
    assert functions[0] <= functions[1]


@pytest.mark.slow
def test_one_hundred_sites_mask_with_their_neighbours_on_a_ring():
    result = fitted([secure_sum("real", cohort=100)], count=100, lost={5: ["h07", "h63"]})
    counted = [site for site in names(100) if site not in ("h07", "h63")]
    assert result.plan.site_stages == [1, 3, 5, 7, 9, 11]
    assert torch.equal(result.state["mean"], oracle(counted, 100, START_BOUND))


def test_two_servers_have_the_bits_of_an_ideal_sum_and_a_lost_site_costs_nothing():
    split = fitted([two_server(min_cohort=3)], lost={1: ["h03"]})
    ideal = fitted([secure_sum(min_cohort=3)], lost={1: ["h03"]})
    assert tree.equal(split.state, ideal.state) and split.plan.site_stages == [1]
    with pytest.raises(QuorumError, match="E_COHORT"):
        fitted([two_server()], lost={1: ["h03"]})


@dataclass(frozen=True)
class MedianOf:
    """A rule that needs each site's value, or that of each group."""

    needs: Any = Label.VISIBLE
    title: str = "median"

    def __call__(self, values):
        return torch.stack(list(values.values())).median(0).values


@on_reduce("mean", only={"x"}, title="median")
def median(x, weight, name, site):
    return fr.apply(MedianOf(), fr.gather(x, name=name))


def test_a_rule_over_sites_is_refused_and_takes_the_means_of_groups():
    with pytest.raises(SecurityConflict, match="median .* needs per-site updates.*group_secure_sum"):
        fr.compile(numbers(), [median, secure_sum()])
    results = [fitted([median, group_secure_sum(3, mode)], count=15) for mode in ("ideal", "real")]
    assert tree.equal(results[0].state, results[1].state) and is_masked(results[1].plan)
    vectors = torch.stack([vector(site) for site in names(15)])
    assert bool((results[0].state["mean"] <= vectors.max(0).values).all())
    assert results[0].metrics[0].metrics["count"] == 15


def test_a_group_that_falls_below_the_least_ends_the_round():
    with pytest.raises(QuorumError, match="E_COHORT"):
        fitted([median, group_secure_sum(3, "real")], count=15, lost={5: ["h03"]})


def test_what_is_not_masked_is_said_to_be_a_simulation():
    real, ideal = (fr.compile(numbers(), [secure_sum(mode)]) for mode in ("real", "ideal"))
    for told in (fr.egress(ideal), fr.explain(ideal), trust_statement(ideal)):
        assert "simulated, no protection" in told
    for told in (fr.egress(real), fr.explain(real), trust_statement(real)):
        assert "simulated" not in told and "no site's own value" in told
    assert "run code on each other" in trust_statement(real)
