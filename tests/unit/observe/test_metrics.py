"""Figures for Prometheus: when they are asked for, and what is handed to a stand-in for Ray's metrics."""

from types import SimpleNamespace

import pytest

from fedray import experiment
from fedray.config import compose_run, recompose, to_plain
from fedray.config_check import problems
from fedray.runtime import ray_metrics
from fedray.runtime.observed import Observed, Span
from tests.unit import sample_run


@pytest.mark.parametrize(("words", "fix"), [
    (("metrics.enabled=true", "runtime=in_process"), ["runtime=ray_local"]),
    (("metrics.sites=true", "runtime=in_process"), ["runtime=ray_local"]),
    (("metrics.sites=true", "metrics.enabled=false", "runtime=ray_local"), ["metrics.enabled=true"]),
    (("runtime=in_process",), []), (("metrics.enabled=true", "runtime=ray_local"), [])])
def test_metrics_that_cannot_be_meant_are_refused_with_their_fix(words, fix):
    found = problems(to_plain(compose_run(["experiment=debug", *words]).config))
    assert [text.partition("Fix: ")[2] for text in found] == fix


def test_metrics_may_change_on_resuming():
    saved = compose_run(["experiment=debug", "runtime=ray_local"])
    from omegaconf import OmegaConf

    changed = recompose(OmegaConf.to_yaml(saved.config, resolve=True), ["metrics.enabled=true"])
    assert changed.metrics.enabled is True


@pytest.mark.parametrize(("kind", "asked", "is_made"), [
    ("in_process", {}, False), ("ray", {}, False), ("ray", {"enabled": True}, True),
    ("ray", {"sites": True}, True), ("cluster", {}, True), ("cluster", {"enabled": False}, False)])
def test_metrics_are_made_where_asked_for_and_on_clusters(tmp_path, monkeypatch, kind, asked, is_made):
    monkeypatch.setattr(ray_metrics, "metrics", Recorded())
    settings = SimpleNamespace(tree={"metrics": asked, "runtime": {"kind": kind}}, rounds=3)
    made = experiment._metrics(settings, SimpleNamespace(path=tmp_path))
    assert (made is not None) == is_made


class Recorded:
    """Stands in for `ray.util.metrics`: keeps what was recorded, by name and labels."""

    def __init__(self):
        self.found = {}

    def _metric(self, name, told, *rest):
        def record(value, tags):
            assert name.startswith("fedray_") and value >= 0
            key = (name, *(f"{label}={text}" for label, text in sorted(tags.items()) if label != "run"))
            self.found[key] = self.found.get(key, 0) + value

        return SimpleNamespace(inc=record, set=record, observe=record)

    Counter = Gauge = Histogram = _metric


def recorded(monkeypatch, sites):
    kept = Recorded()
    monkeypatch.setattr(ray_metrics, "metrics", kept)
    made = ray_metrics.RayMetrics("icu", 3, sites)
    made.start(None, {})
    span = Span("pack0", "compute", 1.0, 1.5, 1, 1, ("h000", "h001"))
    failures = [sample_run.failure(kind="late"), sample_run.failure("h018", kind="late")]
    made.round(sample_run.round_record(0, failures, waited_s=0.25, observed=Observed(spans=[span])))
    made.saved(0)
    return kept.found


def test_drops_are_counted_by_kind_and_no_site_is_named(monkeypatch):
    found = recorded(monkeypatch, sites=False)
    assert found[("fedray_sites_dropped", "kind=late")] == 2
    assert (found[("fedray_rounds",)], found[("fedray_waited_seconds",)]) == (1, 0.25)
    assert (found[("fedray_sites_asked",)], found[("fedray_sites_counted",)]) == (60, 58)
    assert not [key for key in found if any("h0" in part for part in key)]


def test_sites_are_named_where_that_is_asked_for(monkeypatch):
    found = recorded(monkeypatch, sites=True)
    assert found[("fedray_site_dropped", "kind=late", "site=h018")] == 1
    assert found[("fedray_site_seconds", "site=h001")] == pytest.approx(0.5)
