"""HierFAVG beside a loop that is written from the paper, in numpy; flat averaging where the period is 1."""

import numpy as np
import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.cases import (
    COHORTS,
    CYCLIC,
    INIT,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    STEPS,
    gradient,
    single,
    sites,
    tables,
    uneven,
    vector,
)

REGIONS = {"n": ["a", "b"], "s": ["c", "d", "e"]}
HOME = {site: region for region, members in REGIONS.items() for site in members}


def hierfavg_by_hand(kappa2, cohorts=COHORTS, steps=STEPS, weighted=True):
    """Liu et al., Algorithm 1 (its steps quoted). Returns w and w^l of every edge l.

    `weighted=False` is the mistake: edges count the same at the cloud, whatever their rows.
    """
    w = np.zeros(NUM_FEATURES + 1)  # "Initialize all clients with parameter w_0"
    edges = dict.fromkeys(REGIONS, w)
    for k, cohort in enumerate(cohorts, 1):
        own, rows = {}, {}
        for i in cohort:  # "for each client i = 1, ..., N in parallel do"
            own[i], rows[i] = edges[HOME[i]], len(tables()[i][1])
            for _ in range(steps[i]):  # kappa_1 times: "w_i(k) <- w_i(k-1) - eta grad F_i(w_i(k-1))"
                own[i] = own[i] - LR * gradient(i, own[i])
        size = {}
        for edge in {HOME[i] for i in cohort}:  # "for each edge l in parallel do: w^l(k) <- EdgeAggregation"
            here = [i for i in cohort if HOME[i] == edge]
            size[edge] = sum(rows[i] for i in here)
            edges[edge] = sum(rows[i] * own[i] for i in here) / size[edge]
        if k % kappa2 == 0:  # "if k | kappa_1 kappa_2 = 0: w(k) <- CloudAggregation"
            share = size if weighted else dict.fromkeys(size, 1)
            w = sum(share[edge] * edges[edge] for edge in size) / sum(share.values())
            edges = dict.fromkeys(REGIONS, w)  # "for each client: w_i(k) <- w(k)"
    return w, edges


def trained(algorithm, data=None, rounds=5, init=None, schedule=CYCLIC, regions=None, **more):
    layout = {"packs": more.pop("packs", 2), "runtime": more.pop("runtime", "in_process")}
    with fr.simulate(data or sites(), regions=regions or REGIONS, **layout) as federation:
        return fr.fit(algorithm, federation, init=init or INIT, rounds=rounds, schedule=schedule, **more)


@pytest.mark.parametrize("period", [2, 3])
def test_hierfavg_equals_the_papers_loop(period):
    result = trained(fr.algorithms.hierfavg(uneven(), period))
    w, edges = hierfavg_by_hand(period)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    found = {edge: vector(result.state.regions.get(edge, result.params)) for edge in REGIONS}
    assert max(np.abs(found[edge] - edges[edge]).max() for edge in edges) < 1e-12
    assert np.abs(hierfavg_by_hand(period, weighted=False)[0] - w).max() > 1e-2


def test_the_twin_in_single_precision_comes_to_the_same_after_two_rounds():
    local, data, init = single()
    result = trained(fr.algorithms.hierfavg(local, 2), data, 2, init)
    w, _ = hierfavg_by_hand(2, COHORTS[:2], SAME_STEPS)
    flat = np.concatenate([result.params[name].double().numpy().ravel() for name in result.params])
    assert np.abs(flat - w).max() < 1e-4


def test_with_a_period_of_one_it_is_federated_averaging_to_the_bit():
    flat, deep = fr.algorithms.fedavg(uneven()), fr.algorithms.hierfavg(uneven(), 1)
    assert trained(deep).params_sha256 == trained(flat).params_sha256


def test_of_one_region_the_model_is_that_of_federated_averaging_to_the_bit():
    one = {"n": list("abcde")}
    deep = trained(fr.algorithms.hierfavg(uneven(), 9), regions=one)
    flat = trained(fr.algorithms.fedavg(uneven()))
    assert vector(deep.state.regions["n"]).tobytes() == vector(flat.params).tobytes()
    whole = trained(fr.algorithms.hierfavg(uneven(), 5), regions=one)
    assert np.abs(vector(whole.params) - vector(flat.params)).max() < 1e-12


def test_equal_sites_that_are_regions_of_their_own_have_equal_models():
    layout = {"x": ["c"], "y": ["d"], "z": ["a", "b", "e"]}
    algorithm = fr.algorithms.hierfavg(uneven(), 9)
    models = trained(algorithm, schedule=fr.synchronous(), regions=layout).state.regions
    assert vector(models["x"]).tobytes() == vector(models["y"]).tobytes() != vector(models["z"]).tobytes()


NESTED = {"n": {"x": ["a"], "y": ["b"]}, "s": list("cde")}


@pytest.mark.parametrize("layout", [{"packs": 1}, {"packs": 4}, {"regions": NESTED}])
def test_bits_do_not_depend_on_how_sites_are_packed(layout):
    local, data, init = single("auto")

    def run(**layout):
        found = trained(fr.algorithms.hierfavg(local, 2), data, 3, init, fr.synchronous(), **layout)
        return found.params_sha256, [sorted(record.hashes.items()) for record in found.metrics]

    assert run(**layout) == run(packs=2)


def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    algorithm = fr.algorithms.hierfavg(uneven(), 3)
    trained(algorithm, rounds=2, checkpoint=Checkpoints(tmp_path))  # between two global rounds
    resumed = trained(algorithm, rounds=6, checkpoint=Checkpoints(tmp_path), resume=True)
    assert resumed.params_sha256 == trained(algorithm, rounds=6).params_sha256
    other = fr.algorithms.hierfavg(uneven(), 2)
    with pytest.raises(fr.errors.CheckpointError, match="another plan"):
        trained(other, rounds=8, checkpoint=Checkpoints(tmp_path), resume=True)


def test_egress_lists_what_leaves_in_each_kind_of_round():
    plan = trained(fr.algorithms.hierfavg(uneven(), 2), rounds=1).plan
    rows = {(row["every"], row["name"]): row["visible"] for row in egress_rows(plan)}
    assert rows == {
        (0, "delta"): "no, by region", (0, "delta.weight"): "no, by region",
        (0, "metrics"): "no", (0, "metrics.weight"): "no",
        (2, "delta"): "no", (2, "delta.weight"): "no", (2, "metrics"): "no", (2, "metrics.weight"): "no",
        (2, "rows"): "no, by region",
    }  # fmt: skip
    for text in (fr.egress(plan), fr.explain(plan)):
        assert "in rounds 2, 4, 6, ... in its place:" in text
    assert "of a region with one site it is that site's own value" in fr.egress(plan)
    assert fr.explain(plan, mermaid=True).count("flowchart") == 1
    assert all(row["site_bytes"] for row in egress_rows(plan))


def test_a_policy_reads_every_kind_of_round():
    algorithm, names = fr.algorithms.hierfavg(uneven(), 2), {"delta", "metrics"}
    with pytest.raises(fr.errors.PolicyError, match="rows"):
        fr.compile(algorithm, [fr.passes.require(released=names)])
    assert fr.compile(algorithm, [fr.passes.require(released={*names, "rows"})])


def test_a_pass_that_would_not_know_regions_is_refused():
    with pytest.raises(fr.errors.PassError, match="delta .* is a mean for each region"):
        fr.compile(fr.algorithms.hierfavg(uneven(), 2), [fr.passes.topk(0.1)])


def test_sites_without_a_declared_region_are_refused_before_any_is_asked():
    algorithm, why = fr.algorithms.hierfavg(uneven(), 2), "5 sites declare none"
    with fr.simulate(sites()) as federation, pytest.raises(fr.errors.ConfigError, match=why):
        fr.fit(algorithm, federation, init=INIT, rounds=1)


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="period=0"):
        fr.algorithms.hierfavg(uneven(), 0)
