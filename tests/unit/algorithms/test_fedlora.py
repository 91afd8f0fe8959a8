"""FedLoRA beside loops in numpy that are written from the papers; what leaves a site, and what does not."""

import numpy as np
import pytest
import torch
from torch import nn

import fedray as fr
from fedray import tree
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from fedray.errors import PolicyError
from fedray.runtime.kept import HASH_BYTES
from tests.unit.algorithms.cases import COHORTS, CYCLIC, SIZES, STEPS, Uneven, leaving
from tests.unit.passes.cases import INPUTS, OUTPUTS, generator, sites, squares, tables

LR, START = 0.05, np.random.default_rng(3)
W0, BIAS = START.normal(size=(INPUTS, OUTPUTS)), START.normal(size=OUTPUTS)
INIT = {"W": torch.from_numpy(W0), "b": torch.from_numpy(BIAS)}
ONE_BY_ONE = fr.synchronous(cohort=1, sampling="cyclic")
RANKS = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 1}
SCHEDULES = {3: CYCLIC, 1: ONE_BY_ONE}


def drawn(t, i, rank, init="kaiming"):
    """A at random: "We use a random Gaussian initialization for A and zero for B" (Hu et al.); or uniform."""
    draws = generator(t, i, "lora")
    if init == "gaussian":
        return torch.randn(rank, OUTPUTS, generator=draws, dtype=torch.float64).numpy() / rank
    u = torch.rand(rank, OUTPUTS, generator=draws, dtype=torch.float64).numpy()
    return (2 * u - 1) / np.sqrt(OUTPUTS)


def descend(i, w, a, b, scale, trains_a=True):
    """Gradient steps on A and B of h = (W + scale B A) x."""
    x, y = tables()[i]
    for _ in range(STEPS[i]):
        slope = x.T @ (x @ (w + scale * b @ a) + BIAS - y) / len(y)
        slope_a, slope_b = scale * b.T @ slope, scale * slope @ a.T
        a, b = a - LR * slope_a * trains_a, b - LR * slope_b
    return a, b


def shares(cohort, weighted):
    rows = {i: SIZES[i] if weighted else 1 for i in cohort}
    return {i: rows[i] / sum(rows.values()) for i in cohort}


def stacked_by_hand(ranks, alpha=None, weighted=True, cohorts=COHORTS, init="kaiming"):
    """FLoRA (Wang et al. 2024): stack the modules, add the global one to the model, start modules anew."""
    w = W0.copy()
    for t, cohort in enumerate(cohorts):
        p, lower, upper = shares(cohort, weighted), [], []
        for i in cohort:  # "local fine-tuning of A_k, B_k"
            scale = 1.0 if alpha is None else alpha / ranks[i]
            a, b = descend(i, w, drawn(t, i, ranks[i], init), np.zeros((INPUTS, ranks[i])), scale)
            lower.append(p[i] * scale * a)  # "A = p_1 A_1 (+) ... (+) p_K A_K"
            upper.append(b)  # "B = B_1 (+) ... (+) B_K"
        w = w + np.hstack(upper) @ np.vstack(lower)  # "W <- W + B A"
    return w


def averaged_by_hand(variant, rank, alpha=None, weighted=True, cohorts=COHORTS):
    """FedIT (Zhang et al. 2024): A and B averaged apart. FFA-LoRA (Sun et al. 2024): A stays, B is."""
    a, b, scale = drawn(0, "", rank), np.zeros((INPUTS, rank)), 1.0 if alpha is None else alpha / rank
    for cohort in cohorts:
        p = shares(cohort, weighted)
        found = {i: descend(i, W0, a, b, scale, variant == "naive") for i in cohort}
        a, b = (sum(p[i] * found[i][part] for i in cohort) for part in (0, 1))
    return W0 + scale * b @ a


def trained(algorithm, rounds=5, schedule=CYCLIC, init=INIT, data=None, **layout):
    with fr.simulate(data or sites(), **(layout or {"packs": 2})) as federation:
        return fr.fit(algorithm, federation, init=init, rounds=rounds, schedule=schedule)


def local(dtype=torch.float64):
    return Uneven(fr.learn.sgd(squares, lr=LR), STEPS)


@pytest.mark.parametrize("num_asked", [3, 1])  # one at a time, stacks are kept and merged in turn
@pytest.mark.parametrize(("rank", "alpha", "init", "weighted"), [
    (2, None, "kaiming", True), (RANKS, 2.0, "kaiming", True), (1, None, "gaussian", False)])  # fmt: skip
def test_stacked_equals_the_papers_loop(rank, alpha, init, weighted, num_asked):
    cohorts = COHORTS if num_asked == 3 else list("abcde")
    algorithm = fr.algorithms.fedlora(local(), ["W"], rank, alpha, init=init, weighted=weighted)
    result = trained(algorithm, schedule=SCHEDULES[num_asked])
    ranks = rank if isinstance(rank, dict) else dict.fromkeys(SIZES, rank)
    expected = stacked_by_hand(ranks, alpha, weighted, cohorts, init)
    assert np.abs(result.params["W"].numpy() - expected).max() < 1e-12
    assert torch.equal(result.params["b"], INIT["b"])


@pytest.mark.parametrize("variant", ["naive", "ffa"])
@pytest.mark.parametrize(("rank", "alpha", "weighted"), [(2, None, True), (2, 3.0, False)])
def test_averaged_factors_equal_the_papers_loops(variant, rank, alpha, weighted):
    algorithm = fr.algorithms.fedlora(local(), ["W"], rank, alpha, variant, weighted=weighted)
    expected = averaged_by_hand(variant, rank, alpha, weighted)
    assert np.abs(trained(algorithm).params["W"].numpy() - expected).max() < 1e-12


@pytest.mark.parametrize(("variant", "is_exact"), [("stacked", True), ("ffa", True), ("naive", False)])
def test_the_product_is_the_mean_of_the_products_but_for_the_naive_mean(variant, is_exact):
    algorithm = fr.algorithms.fedlora(local(), ["W"], 2, variant=variant)
    found = trained(algorithm, rounds=2, schedule=fr.synchronous()).params["W"].numpy()
    w, p = W0.copy(), shares("abcde", True)
    a, b = drawn(0, "", 2), np.zeros((INPUTS, 2))
    products = []
    for t in range(2):  # each site's own product, kept whole
        if variant == "stacked":
            made = {i: descend(i, w, drawn(t, i, 2), np.zeros((INPUTS, 2)), 1.0) for i in p}
            w = w + sum(p[i] * made[i][1] @ made[i][0] for i in p)
            continue
        made = {i: descend(i, W0, a, b, 1.0, variant == "naive") for i in p}
        products = sum(p[i] * made[i][1] @ made[i][0] for i in p)
        a, b = (sum(p[i] * made[i][part] for i in p) for part in (0, 1))
    expected = w if variant == "stacked" else W0 + products
    error = np.abs(found - expected).max()
    assert error < 1e-12 if is_exact else error > 1e-3


@pytest.mark.parametrize("variant", ["stacked", "naive", "ffa"])
def test_float32_is_close_to_float64_after_a_round(variant):
    algorithm = fr.algorithms.fedlora(local(), ["W"], 2, variant=variant)
    init = {name: value.float() for name, value in INIT.items()}
    narrow = trained(algorithm, rounds=1, init=init, data=sites(torch.float32)).params
    wide = trained(algorithm, rounds=1).params
    assert (narrow["W"].double() - wide["W"]).abs().max() < 1e-4


@pytest.mark.parametrize("variant", ["stacked", "naive", "ffa"])
def test_layouts_give_equal_bits(variant):
    algorithm = fr.algorithms.fedlora(local(), ["W"], 1, variant=variant)
    found = {trained(algorithm, **layout).params_sha256
             for layout in ({"packs": 1}, {"packs": 2, "group_size": 1}, {"packs": 5})}  # fmt: skip
    assert len(found) == 1


WIDE = 48


def pretrained():
    """A torch module of a user's: two wide layers and a head."""
    layers = nn.Linear(6, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, 1)
    return fr.learn.from_module(nn.Sequential(*layers), task="binary")


def patients():
    made = {}
    for site in range(3):
        x = torch.randn(8 + site, 6, generator=torch.Generator().manual_seed(site))
        made[f"h{site}"] = SiteData({"x": x, "y": (x[:, 0] > 0).float()})
    return made


@pytest.mark.parametrize("variant", ["stacked", "naive", "ffa"])
def test_the_backbone_goes_down_once_and_adapters_alone_come_back(variant):
    model = pretrained()
    algorithm = fr.algorithms.fedlora(fr.learn.sgd(model, lr=0.3), ["2", "4"], 2, variant=variant)
    init = model.init(0)
    result = trained(algorithm, 3, fr.synchronous(), init, patients(), packs=3)
    upper, lower = ({f"B.{n}": torch.zeros(rows, 2) for n, rows in (("2", WIDE), ("4", 1))},
                    {f"A.{n}": torch.zeros(2, WIDE) for n in "24"})  # fmt: skip
    sent = upper if variant == "ffa" else upper | lower
    name = "factors" if variant == "stacked" else "delta"
    [row] = [row for row in egress_rows(result.plan) if row["name"] == name]
    size = tree.nbytes(tree.flatten(sent))
    assert size <= row["site_bytes"] <= size + 16 and size < tree.nbytes(init) / 5
    assert result.metrics[0].bytes_down > 3 * tree.nbytes(init)
    base = HASH_BYTES * len(init)
    if variant == "stacked":  # those of the round before, of three sites
        stack = tree.nbytes(tree.flatten({n: torch.zeros(3 * each.numel()) for n, each in sent.items()}))
        found = [record.bytes_down for record in result.metrics[1:]]
        assert found == [3 * (base + HASH_BYTES * 4 * t + stack) for t in (1, 2)]
    else:
        fixed = HASH_BYTES * len(lower) if variant == "ffa" else 0
        assert result.metrics[2].bytes_down == 3 * (base + fixed + size)
    moved = {n for n in init if not torch.equal(result.params[n], init[n])}
    assert moved == {"2.weight", "4.weight"}


def test_what_is_visible_is_told_and_a_policy_may_refuse_it():
    policy = [fr.passes.require()]
    assert leaving(fr.algorithms.fedlora(local(), ["W"])).keys() == {"factors", "num_examples", "metrics"}
    with pytest.raises(PolicyError, match="factors"):
        fr.compile(fr.algorithms.fedlora(local(), ["W"]), policy)
    for variant in ("naive", "ffa"):
        plan = fr.compile(fr.algorithms.fedlora(local(), ["W"], variant=variant), policy)
        assert {row["visible"] for row in egress_rows(plan)} == {"no"}


def test_evaluation_measures_the_merged_model():
    model = pretrained()
    algorithm = fr.algorithms.fedlora(fr.learn.sgd(model, lr=0.5, epochs=20), rank=2)
    watch = {"test": fr.algorithms.evaluation(model, split="train")}
    with fr.simulate(patients()) as federation:
        result = fr.fit(algorithm, federation, init=model.init(0), rounds=3, evaluate=watch)
    rows = {n: torch.cat([data.train[n] for data in patients().values()]) for n in ("x", "y")}
    assert result.test.metrics["loss"] == pytest.approx(float(model.loss(result.params, rows)), rel=1e-5)
    assert float(model.loss(result.params, rows)) < 0.8 * float(model.loss(model.init(0), rows))


@pytest.mark.parametrize(("settings", "match"), [
    ({"variant": "mean"}, "variant"), ({"init": "zeros"}, "init"), ({"rank": 0}, "1 or more"),
    ({"rank": RANKS, "variant": "ffa"}, "needs one rank"),
    ({"optimizer": fr.learn.optimizer.sgd(0.5)}, "no server optimizer")])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        fr.algorithms.fedlora(local(), ["W"], **settings)


def test_layers_without_a_matrix_and_models_with_statistics_are_refused():
    with pytest.raises(ValueError, match="no matrix"):
        trained(fr.algorithms.fedlora(local(), ["b"]))
    model = fr.learn.from_module(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1)), task="binary")
    with pytest.raises(ValueError, match="statistics of batches"):
        trained(fr.algorithms.fedlora(fr.learn.sgd(model, lr=0.1)), init=model.init(0), data=patients())
