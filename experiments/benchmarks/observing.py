"""What does watching a run cost: 200 stacked sites without it, with the timeline, with all of its files?

    python experiments/benchmarks/observing.py [--rounds 30] [--runs 7] [--runtime in_process|ray]

Milliseconds from round to round, and of CPU of this process, which a busy machine disturbs less; medians of a
run without its first three rounds; runs of the variants in turn, after one warm-up each. `none` calls hosts
without stamps and drops their spans (in process only: on Ray hosts always stamp); `timeline` is what every
`fit` does; `files` adds log.jsonl, status.json with its heartbeat, and timeline.jsonl; on Ray `metrics` adds
the figures for Prometheus. `direct` is the CPU of the watching code alone, in microseconds a round of one
host, and of one heartbeat. Also the size of the files of 10,000 rounds of 200 hosts. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tables
from peers import machine

import fedray as fr
from fedray.observe import chrome, trace
from fedray.observe.observer import Observer
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.notes import Times
from fedray.runtime.observed import Observed, Span, clock
from fedray.runtime.records import RoundRecord
from fedray.runtime.timeline import Stamped, Watch
from fedray.runtime.transport import InProcess
from fedray.track import combine

SITES, LEFT_OUT, MOST = 200, 3, 0.02
WHAT = ("wall_ms", "cpu_ms")
VARIANTS = {"in_process": ("none", "timeline", "files"), "ray": ("timeline", "files", "metrics")}


class Told:
    """A tracker that keeps when each round was told."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.cpu: list[float] = []

    def start(self, plan: Any, facts: Any) -> None:
        """Take the plan."""

    def round(self, record: Any) -> None:
        """Take a round."""
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def evaluation(self, record: Any) -> None:
        """Take an evaluation."""

    def finish(self, result: Any) -> None:
        """Take the result."""


class Untold(Times):
    """Tell no span."""

    def told(self, call: Any) -> dict[str, Any]:
        """Return the seconds of a stage alone."""
        return {"work_s": clock() - self.began}


@contextmanager
def unwatched(is_wanted: bool) -> Iterator[None]:
    """Call hosts without stamps, and let them report no spans."""
    with ExitStack() as stack:
        if is_wanted:
            stack.enter_context(mock.patch("fedray.runtime.federation.Stamped", lambda transport: transport))
            stack.enter_context(mock.patch("fedray.runtime.pack.Times", Untold))
        yield


def run(variant: str, runtime: str, hospitals: Any, rounds: int) -> tuple[float, float]:
    """Return the median seconds from round to round, and of CPU of this process."""
    model = fr.learn.mlp(num_features=len(hospitals.features), hidden=[64])
    algorithm = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.05, epochs=1, batch_size=32))
    where: dict[str, Any] = {"runtime": runtime}
    if runtime == "ray":
        where |= {"packs": 2, "placement": "actors"}
    times = Told()
    with tempfile.TemporaryDirectory() as name, unwatched(variant == "none"), ExitStack() as stack:
        federation = stack.enter_context(fr.simulate(hospitals, **where))
        trackers: list[Any] = []
        if variant in ("files", "metrics"):
            progress = federation.aggregator.progress if runtime == "in_process" else None
            trackers.append(stack.enter_context(Observer(Path(name), rounds, progress)))
        if variant == "metrics":
            from fedray.runtime.ray_metrics import RayMetrics
            trackers.append(RayMetrics("bench", rounds))
        fr.fit(algorithm, federation, init=model.init(0), rounds=rounds, tracker=combine(*trackers, times))
    passed = [[later - before for before, later in pairwise(found)] for found in (times.at, times.cpu)]
    wall, cpu = (statistics.median(found[LEFT_OUT:]) for found in passed)
    return wall, cpu


def bounded() -> dict[str, float]:
    """Return what 10,000 rounds of 200 hosts of one site each leave behind, and what a round takes."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        file = trace.TimelineFile(folder)
        file.start(0)
        for number in range(10_000):
            at = 1e9 + number
            spans = [Span(f"host{host}", what, at + 0.1 * step, at + 0.1 * step + 0.1, number, 1,
                          (f"h{host:03}",) if what == "compute" else ())
                     for host in range(SITES) for step, what in enumerate(("downlink", "compute", "uplink"))]
            file.round(number, Observed(began=at, ended=at + 1, spans=spans))
        file.close()
        seconds = time.perf_counter() - began
        chrome.write(folder)
        return {"ms_a_round": 1e3 * seconds / 10_000, "jsonl_mb": os.path.getsize(folder / trace.FILE) / 1e6,
                "json_mb": os.path.getsize(folder / chrome.FILE) / 1e6, "rounds_kept": len(file.lines)}


def direct(repeats: int = 5000) -> dict[str, float]:
    """Return microseconds of CPU of what is done for watching alone."""
    sites = tuple(f"h{number:03}" for number in range(SITES))
    host = SimpleNamespace(run=lambda call, downlink: Contribution(delivered=sites, failures=()))
    call = StageCall(run="r", plan="p", seed=0, round=1, attempt=0, stage=1, cohort=sites)
    times = Times("pack0")
    plain = InProcess({"pack0": host})
    stamped = Stamped(plain)
    watch = Watch(SimpleNamespace(transport=stamped, children={"pack0": host}))

    def once(transport: Any) -> None:
        dict(transport.wait([transport.submit("pack0", "run", call, None)], None))

    def watched() -> None:
        watch.begin(1)
        times.start()
        once(stamped)
        times.group(sites)
        times.told(call)
        watch.end(True)

    told = {"timeline_us": cpu_us(watched, repeats) - cpu_us(lambda: once(plain), repeats)}
    with tempfile.TemporaryDirectory() as name, Observer(Path(name), repeats) as observer:
        observer.start(SimpleNamespace(name="fedavg"), {"sites": SITES})
        spans, numbers = [Span("pack0", "compute", 1.0, 2.0, 0, 1, sites)], iter(range(10 * repeats))
        facts: dict[str, Any] = {"attempt": 0, "metrics": {"loss": 0.5}, "asked": SITES, "counted": SITES,
                                 "failures": (), "seconds": 1.0, "bytes_up": 1, "bytes_down": 1}
        seen = Observed(began=1.0, ended=2.0, spans=spans)
        told["files_us"] = cpu_us(lambda: observer.round(RoundRecord(round=next(numbers), observed=seen,
                                                                     **facts)), repeats)  # fmt: skip
        told["heartbeat_us"] = cpu_us(observer.write, repeats // 10)
    return told


def cpu_us(act: Callable[[], None], repeats: int) -> float:
    """Return microseconds of CPU of this process for one call."""
    began = time.process_time()
    for _ in range(repeats):
        act()
    return 1e6 * (time.process_time() - began) / repeats


def main() -> int:
    """Print the figures; the exit code is 1 where watching costs more than MOST of a round."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--runtime", choices=tuple(VARIANTS), default="in_process")
    given = parser.parse_args()
    hospitals = fr.data.synthetic_icu(num_sites=SITES, seed=7)
    variants = VARIANTS[given.runtime]
    found: dict[str, dict[str, list[float]]] = {what: {name: [] for name in variants} for what in WHAT}
    for number in range(given.runs + 1):
        for variant in variants:
            for what, seconds in zip(WHAT, run(variant, given.runtime, hospitals, given.rounds), strict=True):
                found[what][variant] += [1e3 * seconds] if number else []
    told: dict[str, Any] = {"machine": machine(), "load": os.getloadavg(), "runtime": given.runtime,
                            "rounds": given.rounds, "runs": given.runs}
    for what, own in found.items():
        told[what] = {name: tables.spread(values) for name, values in own.items()}
        told[f"{what}_ratio"] = {name: tables.spread(ratios(own[name], own[variants[0]]))
                                 for name in variants[1:]}
    found_us = direct()
    share = (found_us["timeline_us"] + found_us["files_us"]) / (1e3 * told["cpu_ms"][variants[0]]["median"])
    print(json.dumps(told | {"direct": found_us, "direct_share": share, "bounded": bounded()}))
    return int(share > MOST)


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Return the ratios of two variants, run by run."""
    return [value / base for value, base in zip(values, bases, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
