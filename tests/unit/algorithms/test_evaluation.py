"""Federated evaluation equals the pooled table, row by row; sites are listed by name, or not at all."""

import math

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData

FEATURES = 3
MODEL = fr.learn.logistic(FEATURES)
WEIGHTS = {"weight": [[0.8, -1.2, 0.3]], "bias": [-0.4]}
ROWS = {"b": 30, "a": 11, "one class": 4, "empty": 0}


def rows():
    """Return {site: (x, y)} of the validation rows."""
    draws = np.random.default_rng(9)
    made = {}
    for site, n in ROWS.items():
        x = draws.normal(size=(n, FEATURES)).astype(np.float32)
        made[site] = (x, (draws.random(n) < 0.5).astype(np.float32) * (site != "one class"))
    return made


def data():
    """Return sites whose first two rows are training rows that an evaluation must not read."""
    made = {}
    for site, (x, y) in rows().items():
        columns = {
            "x": torch.cat([torch.full((2, FEATURES), 99.0), torch.from_numpy(x)]),
            "y": torch.cat([torch.ones(2), torch.from_numpy(y)]),
        }
        made[site] = SiteData(columns, {"train": torch.arange(2), "valid": torch.arange(2, len(y) + 2)})
    return made


def params():
    flat = MODEL.init(0)
    return tree.flatten({name: torch.tensor(WEIGHTS[name]).view(flat[name].shape) for name in flat})


def measured(packs=2, **settings):
    with fr.simulate(data(), packs=packs) as federation:
        return fr.compute(fr.algorithms.evaluation(MODEL, **settings), federation, state=params())


def pooled_by_hand():
    """Loss, accuracy, Brier and AUROC of all rows in one table."""
    x, y = (np.concatenate(column).astype(np.float64) for column in zip(*rows().values(), strict=True))
    p = 1 / (1 + np.exp(-(x @ np.array(WEIGHTS["weight"][0]) + WEIGHTS["bias"][0])))
    pairs = [(a > b) + (a == b) / 2 for a in p[y == 1] for b in p[y == 0]]
    return {
        "n": len(y),
        "events": y.sum(),
        "loss": -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)),
        "accuracy": np.mean((p >= 0.5) == y),
        "brier": np.mean((p - y) ** 2),
        "auroc": np.mean(pairs),
    }


@pytest.mark.parametrize("packs", [1, 3])
def test_pooled_metrics_are_those_of_the_pooled_table(packs):
    found, expected = measured(packs)["pooled"], pooled_by_hand()
    assert found["n"] == expected["n"] and found["events"] == expected["events"]
    for name in ("loss", "accuracy", "brier"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)  # predictions are float32
    assert abs(found["auroc"] - expected["auroc"]) <= found["auroc_error_bound"] + 1e-9


def test_sites_are_listed_by_id_with_nan_where_a_metric_is_undefined():
    listed = measured()["sites"]
    assert [record["site"] for record in listed] == ["a", "b", "empty", "one class"]
    assert [record["n"] for record in listed] == [11, 30, 0, 4]
    assert [math.isnan(record["auroc"]) for record in listed] == [False, False, True, True]
    assert math.isnan(listed[2]["loss"]) and not math.isnan(listed[3]["loss"])


def test_without_per_site_nothing_is_gathered():
    assert measured(per_site=False)["sites"] == []
    plan = fr.compile(fr.algorithms.evaluation(MODEL, per_site=False), passes=[fr.passes.require()])
    assert [(row["name"], row["kind"]) for row in egress_rows(plan)] == [("evaluation", "sum")]


def test_a_policy_refuses_the_sites_own_records_by_name():
    with pytest.raises(fr.errors.PolicyError, match="site_metrics"):
        fr.compile(fr.algorithms.evaluation(MODEL), passes=[fr.passes.require()])


def test_fewer_bins_state_a_wider_bound():
    wide, narrow = measured(bins=10)["pooled"], measured(bins=1000)["pooled"]
    assert wide["auroc_error_bound"] > narrow["auroc_error_bound"]
    assert abs(wide["auroc"] - pooled_by_hand()["auroc"]) <= wide["auroc_error_bound"]


def test_with_personal_each_site_is_measured_with_the_model_that_it_keeps():
    with fr.simulate(data(), packs=2) as federation:
        algorithm = fr.algorithms.local_only(fr.learn.sgd(MODEL, lr=0.5, steps=1))
        personal = fr.algorithms.evaluation(MODEL, personal=True)
        shared = fr.algorithms.evaluation(MODEL)
        result = fr.fit(
            algorithm, federation, init=params(), rounds=1, evaluate={"valid": personal, "test": shared}
        )
        federation.aggregator.root.commit([])
        hosts = federation.aggregator.root.transport.hosts.values()
        models = {site: pack.state_of(site) for pack in hosts for site in pack.sites}
    listed = {record["site"]: record for record in result.evaluations[0].sites}
    for site in ("a", "b"):
        expected = fr.learn.metrics.site_record(MODEL)(models[site], data()[site].valid)
        assert listed[site]["loss"] == pytest.approx(expected["loss"], abs=1e-9)


@pytest.mark.parametrize("task", ["number", "classes"])
def test_other_outcomes_have_their_own_sums(task):
    model = {
        "number": fr.learn.from_module(torch.nn.Linear(FEATURES, 1), task="number"),
        "classes": fr.learn.from_module(torch.nn.Linear(FEATURES, 2), task="classes"),
    }[task]
    y_of = {"number": lambda y: y, "classes": lambda y: y.long()}[task]
    tables = {site: table.with_columns(y=y_of(table["y"])) for site, table in data().items()}
    with fr.simulate(tables, packs=2) as federation:
        found = fr.compute(fr.algorithms.evaluation(model), federation, state=model.init(0))
    alone = [fr.learn.metrics.evaluate(model)(model.init(0), table.valid) for table in tables.values()]
    assert found["pooled"]["n"] == 45
    assert found["pooled"]["loss"] == pytest.approx(sum(part["loss_sum"] for part in alone) / 45, abs=1e-9)
