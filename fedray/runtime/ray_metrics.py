"""Figures of a run for Prometheus, through Ray: each node serves them at its metrics port as `ray_fedray_*`.

That page asks for no token, so a figure names no site unless `sites` says so. A tracker like the others: what
is not asked for makes no metric and costs nothing.
"""

import time
from collections.abc import Mapping
from typing import Any

from ray.util import metrics

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
COUNTED = {
    "fedray_rounds": "Rounds that are done.",
    "fedray_seconds": "Seconds of all rounds.",
    "fedray_bytes_down": "Bytes that were sent to hosts.",
    "fedray_bytes_up": "Bytes that hosts sent.",
    "fedray_waited_seconds": "Seconds for the slowest hosts, after half of them had answered.",
    "fedray_sites_asked": "Sites that were asked, over all rounds.",
    "fedray_sites_counted": "Sites that were counted, over all rounds.",
}


class RayMetrics:
    """Export rounds, bytes, waits, sites and the age of the last checkpoint of one run."""

    def __init__(self, run: str, rounds: int, sites: bool = False) -> None:
        self._tags, self._sites = {"run": run}, sites
        self._counters = {name: _counter(name, told) for name, told in COUNTED.items()}
        self._dropped = _counter("fedray_sites_dropped", "Sites left out of a round.", "kind")
        # Ray makes its sum up from the middles of the buckets
        self._seconds = metrics.Histogram("fedray_round_seconds", "Seconds of a round.", SECONDS, ("run",))
        self._age = _gauge("fedray_checkpoint_age_seconds", "Seconds since the last checkpoint.")
        self._planned = _gauge("fedray_rounds_planned", "Rounds that the run is asked for.")
        self._planned.set(rounds, self._tags)
        self._saved: float | None = None
        if sites:
            self._of_site = _gauge("fedray_site_seconds", "Seconds of a site's last stage, shared with the "
                                   "sites of its stacked program.", "site")  # fmt: skip
            self._dropped_site = _counter("fedray_site_dropped", "Rounds without a site.", "site", "kind")

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Take the plan; there is nothing to export before a round."""

    def round(self, record: Any) -> None:
        """Export a round."""
        found = (1, record.seconds, record.bytes_down, record.bytes_up, record.waited_s, record.asked,
                 record.counted)  # fmt: skip
        for counter, value in zip(self._counters.values(), found, strict=True):
            if value > 0:  # Ray refuses zero
                counter.inc(float(value), self._tags)
        self._seconds.observe(record.seconds, self._tags)
        for failure in record.failures:
            self._dropped.inc(1.0, {**self._tags, "kind": failure.kind})
        if self._sites:
            self._by_site(record)
        self.beat()

    def _by_site(self, record: Any) -> None:
        for failure in record.failures:
            self._dropped_site.inc(1.0, {**self._tags, "site": failure.site, "kind": failure.kind})
        for span in record.observed.spans if record.observed is not None else ():
            for site in span.sites:
                self._of_site.set(span.ended - span.began, {**self._tags, "site": site})

    def evaluation(self, record: Any) -> None:
        """Take an evaluation; there is nothing to export."""

    def saved(self, round: int) -> None:
        """Take that a checkpoint was written."""
        self._saved = time.monotonic()
        self.beat()

    def beat(self) -> None:
        """Export the age of the last checkpoint as it is now."""
        if self._saved is not None:
            self._age.set(time.monotonic() - self._saved, self._tags)

    def finish(self, result: Any) -> None:
        """Take the result; there is nothing to export."""


def _counter(name: str, told: str, *labels: str) -> Any:
    return metrics.Counter(name, told, ("run", *labels))


def _gauge(name: str, told: str, *labels: str) -> Any:
    return metrics.Gauge(name, told, ("run", *labels))
