"""Site-level DP with fixed noise: the mechanism beside a plain loop, its calibration, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import noise
from fedray.accounting import Mechanism
from fedray.core.graph import Label
from fedray.errors import PassError, ScheduleError
from fedray.passes.privacy import GaussianNoise, LocalNoise, noisy
from fedray.runtime.selection import power_of_choice
from fedray.testing import check_rows
from tests.unit.passes.cases import SIZE, fedavg_by_hand, trained
from tests.unit.passes.site_level import KEY, SITE_PASSES, Same, Silent, echo, released
from tests.unit.passes.stacks import ALGORITHMS, LOCAL, NUM_SITES, P, fitted

UNIFORM = {"weights": "uniform"}
CANARIES = 10_000
ALL = 6


def vector(params):
    return np.concatenate([params[name].numpy().ravel() for name in ("W", "b")])


def test_a_huge_clip_without_noise_is_the_plain_uniform_mean():
    result, _ = trained([P.site_dp(1e6, 1e-9, cohort=3, source=Silent(), **UNIFORM)])
    assert np.abs(vector(result.params) - vector(trained([], weighted=False)[0].params)).max() < 1e-9


def test_clip_noise_and_fixed_divisor_equal_the_papers_loop():
    def noisy_mean(t, updates, weights):
        """McMahan et al. 2018: sum of clipped updates plus N(0, (z S)^2), over the expected cohort."""
        total = sum(u * min(1.0, 0.7 / np.sqrt((u**2).sum())) for u in updates.values())
        drawn = noise.gaussian((1, SIZE), 0.5 * 0.7, noise.keystream(KEY), torch.float64)
        return (total + drawn.numpy()[0]) / 3

    result, _ = trained([P.site_dp(0.7, 0.5, cohort=3, source=Same(), **UNIFORM)])
    assert np.abs(vector(result.params) - fedavg_by_hand(noisy_mean)).max() < 1e-12


def test_the_divisor_stays_when_a_site_is_lost():
    rows = torch.eye(4, dtype=torch.float64)
    rows[3, 3] = math.nan
    found, result = released(rows, [P.site_dp(1.0, 1e-9, cohort=4, source=Silent())], packs=1,
                             schedule=fr.synchronous(quorum=0.5))  # fmt: skip
    assert result.metrics[0].counted == 3 and found.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.0])


def calibrated(passes, clip, std, num_sites=4):
    """One step with Dirac canaries of 1000 in orthogonal coordinates: is the noise, and the clip, as claimed?

    Bounds of sigma_hat are those of chi-square with 10,000 degrees at 1e-6 (security.md section 3.4).
    """
    rows = torch.zeros(num_sites, CANARIES, dtype=torch.float64)
    rows[torch.arange(num_sites), 7 * torch.arange(num_sites)] = 1000.0
    found, _ = released(rows, passes)
    inserted = torch.zeros(CANARIES, dtype=torch.bool)
    inserted[7 * torch.arange(num_sites)] = True
    total = found * num_sites
    sigma = float(total[~inserted].square().mean().sqrt())
    gap = float(
        (total[inserted] - clip).abs().max()
    )  # what the canaries add beyond the clip, with their noise
    return 0.9665 * std <= sigma <= 1.0335 * std and gap <= 6.0 * std


@pytest.mark.parametrize(("clip", "multiplier"), [(2.0, 0.5), (0.1, 30.0)])
def test_the_noise_on_the_released_mean_is_what_is_claimed(clip, multiplier):
    assert calibrated([P.site_dp(clip, multiplier, cohort=4, max_noise=math.inf)], clip, clip * multiplier)


def test_a_sum_that_is_rounded_before_the_noise_is_refused():
    with pytest.raises(PassError, match="parameters of float32"):
        noisy({"w": torch.ones(3, dtype=torch.bfloat16)}, 1.0)


def noise_of(step, algorithm=None):
    plan = fr.compile(algorithm or echo(), [step])
    return next(node.fn for node in plan.nodes if hasattr(node.fn, "mechanism"))


def sabotaged(monkeypatch, what):
    if what == "noise halved":
        monkeypatch.setattr(GaussianNoise, "__call__", lambda self, x: noisy(x, self.std / 2))
    elif what == "clip off":
        monkeypatch.setattr("fedray.passes.privacy.ClipByNorm", lambda bound: _Whole())
    else:
        monkeypatch.setattr(
            "fedray.passes.site_level.Terms.asked", property(lambda self: _Twice(self.cohort))
        )


class _Whole:
    def __call__(self, x):
        return x

    def rows(self, group, x):
        return x.value


class _Twice:
    """A cohort whose divisor is twice what is told."""

    title, rate = "site_dp", 1.0

    def __init__(self, size):
        self.size = 2 * size

    def check(self, schedule, num_sites):
        pass


@pytest.mark.parametrize("what", ["noise halved", "clip off", "divisor wrong"])
def test_the_calibration_catches(monkeypatch, what):
    assert calibrated([P.site_dp(2.0, 0.5, cohort=4, max_noise=math.inf)], 2.0, 1.0)
    sabotaged(monkeypatch, what)
    assert not calibrated([P.site_dp(2.0, 0.5, cohort=4, max_noise=math.inf)], 2.0, 1.0)


def test_noise_leaves_padding_at_zero_and_reaches_every_leaf():
    value = {
        "flat": fr.tree.flatten({"w": torch.zeros(5), "b": torch.zeros(3)}),
        "n": 0.0,
        "t": torch.zeros(4),
    }
    found = noisy(value, 1.0)
    inside = fr.tree.flatten({"w": torch.ones(5), "b": torch.ones(3)}).buffer > 0
    assert (found["flat"].buffer[inside] != 0).all() and (found["flat"].buffer[~inside] == 0).all()
    assert found["n"] != 0.0 and (found["t"] != 0).all() and found["t"].dtype == torch.float32


@pytest.mark.parametrize("name", SITE_PASSES)
def test_two_runs_of_one_seed_differ_in_noise_alone(name):
    runs = [fitted([SITE_PASSES[name](cohort=ALL, **UNIFORM)])[0] for _ in range(2)]
    assert runs[0].params_sha256 != runs[1].params_sha256
    first = [run.metrics[0] for run in runs]
    assert (
        first[0].metrics == first[1].metrics and first[0].asked == first[1].asked
    )  # equal batches, equal sites


@pytest.mark.parametrize("name", SITE_PASSES)
def test_with_an_injected_source_bits_do_not_depend_on_the_layout(name):
    found = {fitted([SITE_PASSES[name](cohort=ALL, source=Same(), **UNIFORM)], **layout)[0].params_sha256
             for layout in ({}, {"packs": 3}, {"group_size": 1})}  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("name", SITE_PASSES)
def test_noise_is_drawn_once_and_says_what_it_is(name):
    plan = fr.compile(ALGORITHMS["fedavg"](), [SITE_PASSES[name](cohort=ALL, **UNIFORM)], fr.synchronous())
    found = [node.fn for node in plan.nodes if hasattr(node.fn, "mechanism")]
    assert len(found) == 1 and found[0].one_shot and found[0].grants is Label.DP
    assert isinstance(found[0].mechanism, Mechanism) and found[0].mechanism.unit == "site"
    is_local = name == "site_dp_local"
    assert (found[0].mechanism.noise_by, found[0].mechanism.trusted) == (
        ("sites", "nobody") if is_local else ("server", "server")
    )


@pytest.mark.parametrize("name", SITE_PASSES)
def test_the_plan_says_what_is_protected_and_what_leaves_exactly(name):
    plan = fr.compile(ALGORITHMS["fedavg"](), [SITE_PASSES[name](cohort=ALL, **UNIFORM)], fr.synchronous())
    claim = plan.graph.claims[-1]
    assert claim.by.startswith(name) and claim.text.startswith("delta") and claim.trusts
    assert "released exactly, without noise: metrics" in claim.but
    assert "released exactly, without noise: metrics" in fr.egress(plan) and claim.text in fr.explain(plan)


def test_no_record_tells_of_the_sum_without_its_noise():
    result, _ = fitted([P.site_dp(1.0, 0.5, cohort=ALL, **UNIFORM)])
    assert set(result.metrics[0].hashes) == {"server"}


def test_every_name_is_a_release_of_its_own():
    step = P.site_dp({"delta": 1.0, "drift": 0.2}, 0.5, cohort=ALL, only={"delta", "drift"})
    plan = fr.compile(ALGORITHMS["scaffold"](), [step])
    stds = sorted(node.fn.std for node in plan.nodes if hasattr(node.fn, "mechanism"))
    assert stds == [0.1, 0.5]
    epsilon = P.site_dp(1.0, cohort=ALL, only={"delta", "drift"}, epsilon=8.0, rounds=50)
    once = P.site_dp(1.0, cohort=ALL, epsilon=8.0, rounds=50)
    ratio = noise_of(epsilon, ALGORITHMS["scaffold"]()).std / noise_of(once).std
    assert ratio == pytest.approx(math.sqrt(2)) and noise_of(once).std == pytest.approx(4.244, abs=1e-3)


def test_counts_become_the_expected_cohort():
    plan = fr.compile(ALGORITHMS["scaffold"](), [P.site_dp(1.0, 0.5, cohort=ALL, only={"delta", "drift"})])
    names = [lane[0] for node in plan.graph.reductions for lane in node.params.get("lanes", ())]
    assert not [node for node in plan.graph.reductions if node.params["kind"] == "count"]
    assert names == ["delta", "drift", "metrics", "metrics.weight"]


def test_what_is_dropped_is_not_sent():
    step = P.site_dp(1.0, 0.5, cohort=ALL, exact=(), drop={"metrics"}, **UNIFORM)
    result, _ = fitted([step])
    assert result.metrics[0].metrics == {} and "not sent: metrics" in fr.egress(result.plan)
    assert [each["name"] for each in fr.core.explain.egress_rows(result.plan)] == ["delta"]


def test_metrics_may_be_noised_with_a_bound_of_their_own():
    step = P.site_dp(
        {"delta": 1.0, "metrics": 5.0}, 0.5, cohort=ALL, only={"delta", "metrics"}, exact=(), **UNIFORM
    )
    result, _ = fitted([step])
    assert "released exactly" not in fr.egress(result.plan) and set(result.metrics[0].metrics) == {"loss"}


def gathering():
    def round(server, site):
        update = fr.map(LOCAL, fr.broadcast(server), site.data, site.rng)
        return fr.Outputs(server=fr.mean(update.delta), metrics=fr.gather(update.num_examples, name="rows"))

    return fr.Algorithm(lambda params: params, round, name="gathering")


@pytest.mark.parametrize(("algorithm", "more", "why"), [
    ("fedavg", {}, "delta .* is a weighted mean, and a site must count as much"),
    ("scaffold", {}, "drift .* would leave without noise: name it in `only`"),
    ("fedavg", {"only": {"dleta"}, **UNIFORM}, "delta .* would leave without noise"),
    ("fedavg", {"only": {"delta", "x"}, **UNIFORM}, r"found nothing named \['x'\]"),
    ("fedavg", {"only": None, "exact": {"metrics", "delta"}}, "found nothing to protect"),
    ("fedavg", {"clip": {"drift": 1.0}, **UNIFORM}, "has no bound for 'delta'"),
])  # fmt: skip
def test_what_could_not_be_protected_is_refused(algorithm, more, why):
    with pytest.raises(PassError, match=why):
        fr.compile(
            ALGORITHMS[algorithm](),
            [P.site_dp(**{"clip": 1.0, "noise_multiplier": 0.5, "cohort": ALL, **more})],
        )


def test_what_shows_each_site_is_refused():
    with pytest.raises(PassError, match="rows .* shows the server the value of each site"):
        fr.compile(gathering(), [P.site_dp(1.0, 0.5, cohort=ALL, only=None)])


@pytest.mark.parametrize(("more", "why"), [
    ({"cohort": None}, "expected number of sites"), ({"clip": 0.0}, "no number above 0"),
    ({"sampling": "uniform"}, "say 'poisson'"), ({"sampling": "poisson"}, "population=None"),
    ({"noise_multiplier": None}, "one of the two"), ({"epsilon": 1.0}, "one of the two"),
    ({"noise_multiplier": None, "epsilon": 1.0}, "needs the rounds"),
    ({"weights": "clipped"}, "say 'uniform'"),
    ({"exact": {"delta"}}, "are in `exact` and in `only`"), ({"noise_multiplier": -1.0}, "number, above 0"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(more, why):
    with pytest.raises(ValueError, match=why):
        P.site_dp(**{"clip": 1.0, "noise_multiplier": 0.5, "cohort": ALL, **more})


POISSON = fr.synchronous(cohort=0.5, sampling="poisson")


@pytest.mark.parametrize(("more", "schedule", "why"), [
    ({"cohort": 3, "population": 6, "sampling": "poisson"}, fr.synchronous(cohort=3), "claims amplification"),
    ({"cohort": 3, "population": 6, "sampling": "poisson"}, fr.buffered(size=3), "claims amplification"),
    ({"cohort": 3, "population": 9, "sampling": "poisson"}, POISSON, "give the pass population=6"),
    ({"cohort": 200}, fr.synchronous(), "divides by a cohort of 200 and the schedule asks 6"),
    ({"cohort": 3}, power_of_choice(LOCAL, cohort=3), "asked by what they tell"),
])  # fmt: skip
def test_a_run_that_asks_others_than_claimed_is_refused(more, schedule, why):
    from tests.unit.passes.stacks import MODEL
    from tests.unit.runtime.toy import sites

    with fr.simulate(sites(NUM_SITES)) as federation, pytest.raises(ScheduleError, match=why):
        fr.fit(ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=1, schedule=schedule,
               passes=[P.site_dp(1.0, 0.5, **more, **UNIFORM)])  # fmt: skip


def test_poisson_sampling_is_amplified_and_other_sampling_is_not():
    sampled = P.site_dp(1.0, 0.5, cohort=3, population=6, sampling="poisson")
    assert (noise_of(sampled).mechanism.kind, noise_of(sampled).mechanism.sampling_rate) == (
        "sampled_gaussian",
        0.5,
    )
    plan = fr.compile(echo(), [sampled], POISSON)
    assert "amplified by Poisson sampling at rate 0.5" in fr.egress(plan)
    assert noise_of(P.site_dp(1.0, 0.5, cohort=3, population=6)).mechanism.sampling_rate == 1.0
    assert "no amplification by sampling claimed" in fr.egress(
        fr.compile(echo(), [P.site_dp(1.0, 0.5, cohort=3)])
    )


@pytest.mark.parametrize("compression", ["topk", "randk", "qsgd", "scaled_sign", "powersgd", "sign"])
def test_compression_comes_before_and_what_is_summed_is_within_the_bound(compression):
    from tests.unit.passes.stacks import PASSES

    more = {"only": {"delta", "delta.left"}} if compression == "powersgd" else {}
    result, _ = fitted(
        [PASSES[compression](), P.site_dp(1e-3, 1e-9, cohort=ALL, **UNIFORM, **more)], rounds=1
    )
    start = fr.learn.mlp(5, hidden=(16,)).init(0)
    step = fr.tree.norm(fr.tree.sub(result.params, start))
    assert compression in ("sign", "powersgd") or 0 < step <= 1e-3 * (1 + 1e-6)
    with pytest.raises(PassError):
        fr.compile(
            ALGORITHMS["fedavg"](), [P.site_dp(1e-3, 1e-9, cohort=ALL, **UNIFORM), PASSES[compression]()]
        )


@pytest.mark.parametrize("name", SITE_PASSES)
def test_under_a_secure_sum_the_release_is_the_same_within_its_step(name):
    more = {"cohort": ALL, "source": Same(), **UNIFORM}
    plain, _ = fitted([SITE_PASSES[name](**more)])
    hidden, _ = fitted([SITE_PASSES[name](**more), P.secure_sum(min_cohort=3)])
    assert fr.tree.norm(fr.tree.sub(plain.params, hidden.params)) < 1e-5
    assert plain.params_sha256 != hidden.params_sha256


def first(data):
    return {"n": float(len(data.train["y"])), "x": data.train["x"].double().sum(0)}


def centred(data, means):
    return (data.train["x"].double() - means).square().sum(0)


def test_statistics_are_released_with_noise_and_their_bounds():
    from tests.unit.runtime.toy import sites

    program = fr.algorithms.moments(
        first, lambda total: total["x"] / total["n"], centred, lambda a, b: {"a": a, "b": b}
    )
    found = {}
    for clip, multiplier in ((1e6, 1e-12), (5.0, 1.0)):
        step = P.site_dp(clip, multiplier, cohort=NUM_SITES, only={"moments", "squares"}, source=Same())
        with fr.simulate(sites(NUM_SITES)) as federation:
            found[clip] = fr.compute(program, federation, passes=[step])
    with fr.simulate(sites(NUM_SITES)) as federation:
        exact = fr.compute(program, federation)
        claims = P.site_dp(1.0, 1.0, cohort=3, population=6, only=None, sampling="poisson")
        with pytest.raises(ScheduleError, match="claims amplification"):
            fr.compute(program, federation, passes=[claims])
    assert found[1e6]["a"]["n"] == pytest.approx(exact["a"]["n"], abs=1e-3)
    assert (
        torch.allclose(found[1e6]["b"], exact["b"], atol=1e-3) and found[5.0]["a"]["n"] < 5.0 * NUM_SITES + 30
    )


def test_local_noise_is_whole_at_every_site_and_says_so(caplog):
    rows = torch.zeros(16, 2000, dtype=torch.float64)
    found, _ = released(rows, [P.site_dp_local(2.0, 0.5, cohort=16)])
    assert float(found.square().mean().sqrt()) == pytest.approx(1.0 / 4, rel=0.1)
    assert "the sum has 4 times what a trusted server would add" in caplog.text


def test_local_noise_has_the_same_bits_alone_and_among_others():
    step = P.site_dp_local(1.0, 0.5, cohort=4, source=Same())
    fn = next(node.fn for node in fr.compile(echo(), [step]).nodes if isinstance(node.fn, LocalNoise))
    sites = [
        (fr.tree.flatten({"w": torch.randn(11, generator=torch.Generator().manual_seed(i))}),)
        for i in range(26)
    ]
    assert check_rows(fn, sites, tolerance=0.0) == 0.0
