"""Oort beside Algorithm 1 written in numpy; what its sites tell; what a checkpoint keeps of it."""

import math

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.errors import PolicyError, ScheduleError
from fedray.rng import SERVER, Key
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.oort import oort, sampled
from fedray.runtime.traces import Interval, Trace
from tests.unit.algorithms.cases import (
    INIT,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    sites,
    squares,
    tables,
    uneven,
    vector,
)

ROUNDS, COHORT = 12, 3
SECONDS = {"a": 1.0, "b": 2.0, "c": 6.0, "d": 3.0, "e": 30.0}
SETTINGS = {"epsilon": 0.7, "epsilon_decay": 0.9, "pacer_step_s": 2.5, "pacer_window": 2, "most_times": 8}
LOCAL = fr.learn.sgd(squares, lr=LR)


def seconds(site, round):
    return SECONDS[site] * (1 + round % 3)


def schedule(**settings):
    return oort(LOCAL, cohort=COHORT, **{**SETTINGS, **settings})


def train(rounds=ROUNDS, latency=seconds, asked=None, chosen=None, packs=2, **settings):
    """Train and return the result; `asked` is filled with the cohort of each round."""
    with fr.simulate(sites(), latency=latency, packs=packs) as federation:
        if asked is not None:
            note(federation, asked)
        algorithm = fr.algorithms.fedavg(uneven())
        return fr.fit(algorithm, federation, init=INIT, rounds=rounds, schedule=chosen or schedule(),
                      **settings)  # fmt: skip


def note(federation, asked):
    """Write down whom each attempt asks."""
    make = federation.aggregator._attempt

    def attempt(*given):
        found = make(*given)
        run = type(found).run

        class Noted(type(found)):
            def run(self, cohort):
                asked.append(tuple(cohort))
                run(self, cohort)

        return Noted(**{name: getattr(found, name) for name in type(found).__slots__})

    federation.aggregator._attempt = attempt


def drawn(weights, draws):
    """Sample without replacement by weight: one uniform number a draw."""
    names, found = sorted(weights), []
    for draw in draws:
        left = [name for name in names if name not in found]
        w = np.array([weights[name] for name in left])
        w = w if w.sum() > 0 else np.ones(len(w))
        found.append(left[int(np.searchsorted(np.cumsum(w), draw * w.sum(), side="right"))])
    return found


class ByHand:
    """Algorithm 1 of the paper, its lines quoted, with the clip and blacklist of its section 4.4."""

    def __init__(self, step=2.5, window=2, most_times=8, epsilon=0.7, decay=0.9, alpha=2.0):
        self.u, self.last, self.d, self.times = {}, {}, {}, {}  # lines 1, 2: E, U, L, D
        self.r, self.t, self.step = 0, step, step  # line 3: R <- 0; T <- Delta
        self.window, self.most_times, self.epsilon, self.decay = window, most_times, epsilon, decay
        self.alpha, self.gained = alpha, []

    def select(self, uniform):
        """SelectParticipant(C, K, epsilon, T, alpha)."""
        self.r += 1  # line 5: R <- R + 1
        w = self.window
        if len(self.gained) >= 2 * w and sum(self.gained[-2 * w : -w]) > sum(self.gained[-w:]):
            self.t += self.step  # lines 7, 8: the pacer relaxes T by Delta
        explored = [i for i in sorted(self.u) if self.times[i] < self.most_times]  # line 6: blacklist
        fresh = [i for i in sorted(SIZES) if i not in self.u]
        epsilon = max(0.2, self.epsilon * self.decay ** (self.r - 1))
        first = min(math.floor((1 - epsilon) * COHORT), len(explored))
        second = min(COHORT - first, len(fresh))
        first = min(COHORT - second, len(explored))
        chosen = []
        if first:
            ranked = sorted(self.u[i] for i in explored)  # line 6: clip to the 95 % of the distribution
            most = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
            util = {}
            for i in explored:  # line 9
                util[i] = min(self.u[i], most) + np.sqrt(0.1 * np.log(self.r) / self.last[i])  # line 10
                if self.t < self.d[i]:  # line 11
                    util[i] *= (self.t / self.d[i]) ** self.alpha  # line 12
            cut = 0.95 * sorted(util.values(), reverse=True)[first - 1]  # line 14: CutOffUtil
            admitted = {i: util[i] for i in explored if util[i] >= cut}
            chosen = drawn(admitted, uniform[:first])  # line 15: SampleByUtil
        speeds = {i: 1 / seconds(i, 0) for i in fresh}
        chosen += drawn(speeds, uniform[first : first + second])  # line 16: SampleBySpeed(C - E, eps K)
        out = {i: 1.0 for i in sorted(self.u) if i not in explored}  # only where too few are left
        return tuple(sorted(chosen + drawn(out, uniform[first + second :])))

    def feedback(self, round, told):
        """UpdateWithFeedback(E, U, L, D)."""
        for i, statistic in told.items():
            self.u[i], self.last[i], self.d[i] = statistic, self.r, seconds(i, round)
            self.times[i] = self.times.get(i, 0) + 1
        self.gained.append(sum(told.values()))


def oort_by_hand(rule):
    """Return the weights and the cohorts of federated averaging whose clients the rule selects."""
    w, asked = np.zeros(NUM_FEATURES + 1), []
    for round in range(ROUNDS):
        uniform = torch.rand(COHORT, generator=Key(0, round, SERVER, "oort").generator(), dtype=torch.float64)
        asked.append(rule.select(uniform.numpy()))
        told, total, rows = {}, np.zeros_like(w), 0
        for i in asked[-1]:
            x, y = tables()[i]
            losses = (x @ w - y) ** 2 / 2
            told[i] = len(y) * np.sqrt((losses**2).mean())  # |B_i| sqrt(1/|B_i| sum Loss(k)^2)
            own = w.copy()
            for _ in range(STEPS[i]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            total, rows = total + len(y) * own, rows + len(y)
        rule.feedback(round, told)
        w = total / rows
    return w, asked


def test_cohorts_and_weights_equal_algorithm_1():
    asked, rule = [], ByHand()
    result = train(asked=asked)
    w, expected = oort_by_hand(rule)
    assert asked == expected and len(set(asked)) > 3
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert rule.t > rule.step and max(rule.times.values()) > 8  # pacer, blacklist, and its end


@pytest.mark.parametrize("mistake", [{"alpha": 0.0}, {"step": 100.0}, {"most_times": 99}, {"window": 6}])
def test_a_reference_with_another_rule_asks_others(mistake):
    asked = []
    train(asked=asked)
    assert asked != oort_by_hand(ByHand(**mistake))[1]


def test_slow_sites_are_asked_less_and_lossy_ones_more():
    rule = schedule(most_times=99, epsilon=0.0, epsilon_least=0.0).learner
    memory = {"rounds": 9, "preferred_s": 2.0, "gained": [], "sites": {
        "a": [10.0, 9, 8, 1], "b": [10.0, 9, 8, 1], "c": [1.0, 9, 8, 1], "d": [1.0, 1, 0, 1]}}  # fmt: skip
    found = rule.utilities(memory, "abcd", lambda site, _: 4.0 if site == "b" else 1.0)
    assert found["b"] == found["a"] / 4  # (T / t)^2
    assert found["a"] > found["d"] > found["c"] == 1.0 + math.sqrt(0.1 * math.log(10) / 9)
    assert rule.pick(memory, "abcd", 1, Key(0, 9, "x"), lambda *_: 1.0)[0] in "ab"


def test_an_outlier_is_clipped_to_the_quantile():
    rule = schedule(clip=0.5).learner
    told = dict(zip("abcd", (1.0, 2.0, 3.0, 1e9), strict=True))
    memory = rule.learn(None, told, Key(0, 0, SERVER))
    found = rule.utilities(memory, "abcd", None)
    assert found["d"] == found["c"] == max(found.values())


def test_without_simulated_time_cohorts_still_follow_from_the_seed():
    cohorts = []
    for latency in (None, lambda *_: 1e-3):  # nobody is slower than T
        asked = []
        train(latency=latency, asked=asked)
        cohorts.append(asked)
    assert cohorts[0] == cohorts[1]


@pytest.mark.parametrize("packs", [1, 5])
def test_the_layout_changes_no_bit(packs):
    assert train(4, packs=packs).params_sha256 == train(4).params_sha256


def test_a_resumed_run_asks_the_sites_of_one_that_was_not_stopped(tmp_path):
    kept, asked, expected = Checkpoints(tmp_path), [], []
    whole = train(asked=expected)
    train(5, checkpoint=kept)
    again = train(ROUNDS, checkpoint=kept, resume=True, asked=asked)
    assert asked == expected[5:] and again.params_sha256 == whole.params_sha256


def test_what_sites_tell_is_listed_and_a_policy_refuses_it():
    algorithm, strict = fr.algorithms.fedavg(uneven()), fr.passes.require(released={"delta", "metrics"})
    rows = {row["name"]: row for row in egress_rows(fr.compile(algorithm, (), schedule()))}
    assert (rows["loss_statistic"]["kind"], rows["loss_statistic"]["visible"]) == ("gather", "yes")
    fr.compile(algorithm, [strict])
    with pytest.raises(PolicyError, match="loss_statistic"):
        fr.compile(algorithm, [strict], schedule())


def test_the_parameters_travel_once():
    plain = fr.synchronous(cohort=COHORT)
    with_oort, without = train(2), train(2, chosen=plain)
    assert with_oort.bytes_down == without.bytes_down
    assert with_oort.bytes_up == without.bytes_up + 2 * COHORT * 8


def test_a_round_without_global_parameters_is_refused():
    def round(server, site):
        return fr.Outputs(server=fr.mean(fr.map(len, site.data), name="rows"))

    with pytest.raises(ScheduleError, match="count broadcasts no global parameters"):
        fr.compile(fr.Algorithm(lambda params: params, round, name="count"), (), schedule())


def test_rows_of_a_model_and_of_a_loss_of_ones_own_tell_the_same():
    model = fr.learn.linear(NUM_FEATURES)
    data, params = sites()["b"], model.init(0)
    own = fr.learn.sgd(lambda p, b: (b["x"] @ p["weight"][0] + p["bias"] - b["y"]).square().mean(), lr=1.0)
    table = {name: data.train[name].float() for name in ("x", "y")}
    ours = fr.learn.sgd(model, lr=1.0).row_losses(params, table)
    assert ours.shape == (9,) and torch.allclose(ours, own.row_losses(params, table))
    assert torch.isclose(ours.mean(), torch.tensor(fr.learn.sgd(model, lr=1.0).loss(params, table)))


def test_speeds_of_a_trace_are_the_latency_of_the_schedule():
    day = Trace(tuple(Interval(site, 0.0, 9.0, each) for site, each in SECONDS.items()), 10.0)
    found = schedule(trace=day)
    assert found.latency("c", 3) == 6.0 and schedule().latency is None


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ScheduleError, match="epsilon=1.5"):
        schedule(epsilon=1.5)
    with pytest.raises(ScheduleError, match="pacer_step_s=0"):
        schedule(pacer_step_s=0.0)
    with pytest.raises(ScheduleError, match="row_losses"):
        oort(uneven())


def test_draws_without_weight_are_by_lot_and_nobody_is_drawn_twice():
    assert sorted(sampled({"a": 0.0, "b": 0.0, "c": 5.0}, [0.5, 0.9, 0.1])) == ["a", "b", "c"]
