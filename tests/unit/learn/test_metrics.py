"""Metrics against scikit-learn and published formulas; sums over sites equal the pooled answer."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn import intervals, metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")
LINEAR = learn.logistic(3)


def scored(n=400, seed=0, slope=1.0, shift=0.0, digits=None):
    """Return (y, logit): outcomes drawn with logit slope * logit + shift."""
    draw = np.random.default_rng(seed)
    logit = draw.normal(-1.5, 1.2, n)
    if digits is not None:
        logit = logit.round(digits)
    return (draw.random(n) < special.expit(slope * logit + shift)).astype(float), logit


def hospital(n, seed):
    draw = np.random.default_rng(seed)
    x = torch.tensor(draw.normal(size=(n, 3)), dtype=torch.float32)
    y = torch.tensor(draw.random(n) < special.expit(x[:, 0].numpy() - 1), dtype=torch.float32)
    return SiteData({"x": x, "y": y})


PARAMS = tree.flatten({"weight": torch.tensor([[0.8, 0.3, -0.2]]), "bias": torch.tensor([-0.9])})
HOSPITALS = [hospital(n, seed) for seed, n in enumerate((40, 300, 7, 0, 121))]
POOLED = SiteData({name: torch.cat([each[name] for each in HOSPITALS]) for name in ("x", "y")})


def total(measure, sites, params=PARAMS):
    first, *others = [measure(params, each.train) for each in sites]
    for each in others:
        first = tree.add(first, each)
    return first


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_auroc_equals_that_of_scikit_learn_with_and_without_ties(digits) -> None:
    y, logit = scored(digits=digits)
    assert intervals.auroc(y, logit) == pytest.approx(sklearn_metrics.roc_auc_score(y, logit), abs=1e-12)


@pytest.mark.parametrize("digits", [None, 0])
def test_delong_error_equals_the_published_formula_over_pairs(digits) -> None:
    y, logit = scored(120, digits=digits)
    events, others = logit[y == 1], logit[y == 0]
    psi = (events[:, None] > others) + 0.5 * (events[:, None] == others)
    s10, s01 = psi.mean(axis=1).var(ddof=1), psi.mean(axis=0).var(ddof=1)
    found = intervals.delong_interval(y, logit)
    assert found.se == pytest.approx(math.sqrt(s10 / len(events) + s01 / len(others)), abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * found.se, abs=1e-9)


def test_delong_interval_covers_the_truth_about_95_times_in_a_hundred() -> None:
    truth = stats.norm.cdf(1 / math.sqrt(2))  # two normals one sd apart
    draw = np.random.default_rng(1)
    y = np.repeat([1.0, 0.0], [60, 140])
    found = [intervals.delong_interval(y, draw.normal(size=200) + y) for _ in range(400)]
    assert 0.92 < np.mean([each.low < truth < each.high for each in found]) < 0.98


@pytest.mark.parametrize("y", [[0.0, 0.0], [1.0, 1.0], []])
def test_auroc_of_one_class_is_nan(y) -> None:
    found = intervals.delong_interval(y, [0.1, 0.2][: len(y)])
    assert all(math.isnan(number) for number in found)


@pytest.mark.parametrize(("splits", "fraction"), [(2, 0.3), (5, 0.3), (20, 0.3), (3, 0.5)])
def test_nadeau_bengio_equals_its_formula(splits, fraction) -> None:
    values = np.random.default_rng(splits).normal(0.85, 0.02, splits)
    se = math.sqrt((1 / splits + fraction / (1 - fraction)) * values.var(ddof=1))
    half = stats.t.ppf(0.975, splits - 1) * se
    found = intervals.nadeau_bengio(list(values), fraction)
    assert found == pytest.approx((values.mean(), se, values.mean() - half, values.mean() + half), abs=1e-10)


def test_nadeau_bengio_refuses_an_impossible_share() -> None:
    with pytest.raises(ValueError, match="test_fraction=30"):
        intervals.nadeau_bengio([0.8, 0.9], 30)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 19, 60])
def test_quantile_of_t_equals_that_of_scipy(freedom) -> None:
    assert intervals.t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("bins", [2, 10, 50, 200, 1000])
def test_binned_auroc_is_within_its_bound_of_the_exact_one(bins) -> None:
    found = metrics.summarise(total(metrics.evaluate(LINEAR, bins), HOSPITALS))
    exact = sklearn_metrics.roc_auc_score(POOLED["y"], LINEAR.predict(PARAMS, POOLED))
    assert abs(found["auroc"] - exact) <= found["auroc_error_bound"]
    assert found["auroc_error_bound"] <= 2 / bins


def test_binned_delong_error_is_close_to_the_exact_one() -> None:
    found = metrics.summarise(total(metrics.evaluate(LINEAR), HOSPITALS))
    assert found["auroc_se"] == pytest.approx(
        intervals.delong_se(POOLED["y"], LINEAR.predict(PARAMS, POOLED)), rel=1e-3
    )


def test_sums_over_hospitals_equal_the_sums_of_their_pool() -> None:
    measure = metrics.evaluate(LINEAR)
    apart, together = total(measure, HOSPITALS), measure(PARAMS, POOLED.train)
    assert {name: value for name, value in apart.items() if not torch.is_tensor(value)} == pytest.approx(
        {name: value for name, value in together.items() if not torch.is_tensor(value)}, rel=1e-6
    )
    assert torch.equal(apart["hist_pos"], together["hist_pos"])
    assert torch.equal(apart["hist_neg"], together["hist_neg"])


def test_summary_equals_scikit_learn() -> None:
    found = metrics.summarise(total(metrics.evaluate(LINEAR), HOSPITALS))
    y = POOLED["y"].double().numpy()
    probability = torch.sigmoid(LINEAR.predict(PARAMS, POOLED).double()).numpy()
    called = probability >= 0.5
    expected = {
        "n": len(y),
        "events": y.sum(),
        "loss": sklearn_metrics.log_loss(y, probability),
        "accuracy": sklearn_metrics.accuracy_score(y, called),
        "brier": sklearn_metrics.brier_score_loss(y, probability),
        "sensitivity": sklearn_metrics.recall_score(y, called),
        "specificity": sklearn_metrics.recall_score(1 - y, ~called),
        "calibration_observed_expected": y.sum() / probability.sum(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["auprc"] == pytest.approx(sklearn_metrics.average_precision_score(y, probability), abs=0.01)


def test_best_threshold_maximises_youdens_index_over_bin_edges() -> None:
    sums = total(metrics.evaluate(LINEAR, 100), HOSPITALS)
    y = POOLED["y"].numpy() > 0.5
    probability = torch.sigmoid(LINEAR.predict(PARAMS, POOLED).double()).numpy()
    edges = np.arange(100) / 100
    index = [(probability[y] >= edge).mean() + (probability[~y] < edge).mean() for edge in edges]
    assert metrics.summarise(sums)["threshold_best"] == pytest.approx(edges[int(np.argmax(index))])


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, 0.3), (1.5, -0.5)])
def test_calibration_finds_what_the_outcomes_were_drawn_with(slope, shift) -> None:
    y, logit = scored(200_000, slope=slope, shift=shift)
    found = intervals.calibration(logit, y, np.ones_like(y))
    assert found[:2] == pytest.approx((slope, shift), abs=0.03)


def test_calibration_equals_maximum_likelihood() -> None:
    y, logit = scored(300, slope=0.7, shift=0.2)
    found = intervals.calibration(logit, y, np.ones_like(y))
    error = y - special.expit(found.intercept + found.slope * logit)
    shifted = y - special.expit(logit + found.in_the_large)
    assert [error.sum(), error @ logit, shifted.sum()] == pytest.approx([0.0, 0.0, 0.0], abs=1e-8)


def test_calibration_from_bins_is_close_to_that_from_rows() -> None:
    y, logit = scored(5000, slope=0.8, shift=0.3)
    index = np.floor(special.expit(logit) * 1000).astype(int)
    pos, neg = (np.bincount(index[y == label], minlength=1000) for label in (1, 0))
    binned = intervals.calibration(special.logit((np.arange(1000) + 0.5) / 1000), pos, pos + neg)
    assert binned == pytest.approx(intervals.calibration(logit, y, np.ones_like(y)), abs=0.01)


@pytest.mark.parametrize(
    ("logit", "y"),
    [([0.1, 0.2, 3.0, 4.0], [0, 0, 1, 1]), ([1.0, 2.0], [0, 0]), ([1.0, 1.0], [0, 1]), ([], [])],
)
def test_calibration_slope_without_a_finite_fit_is_nan(logit, y) -> None:
    assert math.isnan(intervals.calibration(logit, np.array(y, float), np.ones(len(y))).slope)


def test_empty_federation_summarises_to_nan() -> None:
    found = metrics.summarise(metrics.evaluate(LINEAR)(PARAMS, HOSPITALS[3].train))
    assert found["n"] == 0 and all(math.isnan(found[name]) for name in ("loss", "auroc", "accuracy", "brier"))


def test_site_record_is_exact() -> None:
    data = HOSPITALS[1]
    found = metrics.site_record(LINEAR)(PARAMS, data.train)
    logit = LINEAR.predict(PARAMS, data).double()
    expected = intervals.delong_interval(data["y"], logit)
    assert (found["n"], found["events"]) == (300, int(data["y"].sum()))
    assert (found["auroc"], found["auroc_se"]) == (expected.value, expected.se)
    assert found["calibration_in_the_large"] == pytest.approx(
        intervals.calibration(logit, data["y"], np.ones(300)).in_the_large, abs=1e-9
    )


def test_site_record_has_none_where_a_metric_is_undefined() -> None:
    record = metrics.site_record(LINEAR)
    one_class = SiteData({"x": torch.zeros(3, 3), "y": torch.zeros(3)})
    found, empty = record(PARAMS, one_class), record(PARAMS, HOSPITALS[3])
    assert (found["n"], found["auroc"], found["auroc_se"], found["accuracy"]) == (3, None, None, 1.0)
    assert (empty["n"], empty["events"], empty["loss"], empty["auroc"]) == (0, 0, None, None)


def test_records_of_all_sites_have_the_same_names() -> None:
    record = metrics.site_record(LINEAR)
    assert len({tuple(record(PARAMS, each.train)) for each in HOSPITALS}) == 1


def test_classes_are_counted() -> None:
    model = learn.logistic(3, 4)
    data = SiteData({"x": POOLED["x"], "y": torch.arange(POOLED.num_rows) % 4})
    params = tree.flatten({"weight": torch.linspace(-1, 1, 12).view(4, 3), "bias": torch.zeros(4)})
    found = metrics.summarise(metrics.evaluate(model)(params, data))
    probability = torch.softmax(model.predict(params, data).double(), -1).numpy()
    assert found["accuracy"] == pytest.approx((probability.argmax(1) == data["y"].numpy()).mean())
    assert found["loss"] == pytest.approx(sklearn_metrics.log_loss(data["y"], probability), rel=1e-6)
    assert metrics.site_record(model)(params, data)["accuracy"] == pytest.approx(found["accuracy"])


def test_numbers_are_measured() -> None:
    model = learn.linear(3)
    data = SiteData({"x": POOLED["x"], "y": POOLED["x"][:, 0] * 2})
    found = metrics.summarise(total(metrics.evaluate(model), [data, HOSPITALS[3]]))
    predicted = model.predict(PARAMS, data).double()
    assert found["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(data["y"], predicted), rel=1e-6)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(data["y"], predicted), rel=1e-6)
    assert metrics.site_record(model)(PARAMS, data)["mse"] == pytest.approx(found["mse"])


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"threshold": 0.0}])
def test_impossible_evaluation_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="evaluate"):
        metrics.evaluate(LINEAR, **wrong)
