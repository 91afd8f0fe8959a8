"""How many rounds an hour do 1,000 hospitals in 5 regions, or a million devices, run?

    python experiments/cluster_model/predict.py [--rounds 20]

Measures the costs of operations on this machine, fits the cluster model to one set of runs, checks it against
another set that the fit has not seen, and then predicts. See the README for what is assumed.
"""

import argparse
import json
import math
import os
import platform
import statistics
from dataclasses import replace

import torch
from measure import CORES, FEATURES, NAMES, NUM_SITES, ROWS, Case, as_costs, fit, predicted, run_all

import fedray as fr
from fedray.data.shard_writer import made_up_sites
from fedray.data.site import SiteData
from fedray.runtime.cluster_model import Cluster, Costs, Link, Region, Workload, predict, slowest, transfer_s
from fedray.runtime.schedule import LognormalLatency

LOCAL, RAY = "in_process", "ray"
FITTED = (
    *(Case(runtime=LOCAL, packs=p, cohort=c, elements=n)
      for p, c, n in ((1, 8, 1000), (1, 64, 1000), (8, 64, 1000), (1, 8, 250_000), (8, 16, 250_000))),
    Case(runtime=LOCAL, packs=1, cohort=16, elements=1000, stages=2),
    Case(runtime=LOCAL, packs=1, cohort=32, epochs=1),
    Case(runtime=LOCAL, packs=1, cohort=32, epochs=8),
    *(Case(runtime=RAY, packs=p, cohort=c, elements=n)
      for p, c, n in ((1, 8, 1000), (4, 8, 1000), (2, 64, 1000), (1, 8, 250_000), (4, 8, 250_000))),
    Case(runtime=RAY, packs=2, cohort=8, elements=1000, stages=2),
    Case(runtime=RAY, packs=2, cohort=48, elements=250_000),
    Case(runtime=RAY, packs=4, cohort=64, elements=1000),
    Case(runtime=RAY, packs=1, cohort=16, epochs=4),
    Case(runtime=RAY, packs=2, cohort=32, epochs=1),
    Case(runtime=RAY, packs=4, cohort=32, epochs=8),
)
CHECKED = (
    Case(runtime=LOCAL, packs=4, cohort=32, elements=80_000),
    Case(runtime=LOCAL, packs=2, cohort=48, epochs=3),
    Case(runtime=RAY, packs=2, cohort=16, elements=100_000),
    Case(runtime=RAY, packs=4, cohort=40, elements=1000),
    Case(runtime=RAY, packs=1, cohort=20, elements=600_000),
    Case(runtime=RAY, packs=2, cohort=48, epochs=4),
    Case(runtime=RAY, packs=4, cohort=24, epochs=2),
    Case(runtime=RAY, packs=1, cohort=24, epochs=4),
    Case(runtime=RAY, packs=4, cohort=16, elements=100_000, regions=2),
    Case(runtime=RAY, packs=2, cohort=32, epochs=2, regions=2),
)
# an earlier measurement on this code's Ray over a link of 83 ms and 8.8 MB/s; not repeated here
WIDE = Link(round_trip_s=0.083, bytes_per_s=8.8e6)
EARLIER = ((1e6, 1.4), (1e7, 2.0), (5e7, 5.25))


def check_costs(rounds: int) -> tuple[Costs, list[dict[str, object]]]:
    """Measure, fit, and print the error of every run."""
    sites = {name: Held(site) for name, site in made_up_sites(NUM_SITES, ROWS, FEATURES, seed=3)}
    measured = run_all((*FITTED, *CHECKED), sites, rounds)
    found = {}
    for runtime in (LOCAL, RAY):
        cases = [case for case in FITTED if case.runtime == runtime]
        found[runtime] = fit(cases, [measured[case] for case in cases])
        print(f"costs {runtime}:", ", ".join(f"{name} {found[runtime][name]:.3g} s" for name in NAMES))
    rows: list[dict[str, object]] = []
    for title, cases in (("used in the fit", FITTED), ("not used in the fit", CHECKED)):
        errors = []
        print(f"{title}:")
        for case in cases:
            real, model = measured[case], predicted(case, found[case.runtime])
            errors.append(model / real - 1)
            print(f"  {case}: {1000 * real:8.1f} ms measured, {1000 * model:8.1f} predicted, "
                  f"{errors[-1]:+.0%}")
            rows.append({"case": str(case), "measured_s": real, "predicted_s": model,
                         "is_fitted": cases is FITTED})
        sizes = sorted(map(abs, errors))
        print(f"  absolute error: median {statistics.median(sizes):.0%}, largest {sizes[-1]:.0%}")
    return as_costs(found[RAY]), rows


class Held:
    """A site's data in memory, opened by a call."""

    def __init__(self, site: SiteData) -> None:
        self.site = site

    def __call__(self) -> SiteData:
        """Return it."""
        return self.site


def check_stragglers(rounds: int) -> None:
    """Compare the slowest of a cohort with rounds on the simulated clock."""
    model = fr.learn.logistic(4)
    sites = {name: Held(site) for name, site in made_up_sites(400, 4, 4)}
    for site_sigma, round_sigma, cohort in ((0.5, 0.2, 40), (0.3, 0.6, 100)):
        latency = LognormalLatency(median_s=10, site_sigma=site_sigma, round_sigma=round_sigma)
        with fr.simulate(sites, latency=latency) as federation:
            result = fr.fit(fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.1)), federation, init=model.init(0),
                            rounds=rounds, schedule=fr.synchronous(cohort=cohort))
        real = statistics.mean(record.seconds for record in result.metrics)
        spread = math.hypot(site_sigma, round_sigma)
        found = 10 * math.exp(spread**2 / 2) * slowest(cohort, spread)
        print(f"  slowest of {cohort}, spread {spread:.2f}: {real:6.1f} s on the simulated clock, "
              f"{found:6.1f} predicted, {found / real - 1:+.0%}")


def check_transfers() -> None:
    """Compare the formula of a transfer with figures that were measured earlier on a link with latency."""
    for size, real in EARLIER:
        found = transfer_s(size, WIDE)
        print(f"  {size / 1e6:.0f} MB over 83 ms and 8.8 MB/s: {real:.2f} s measured, {found:.2f} predicted, "
              f"{found / real - 1:+.0%}")


def hospitals(costs: Costs, model_bytes: float, bytes_per_s: float) -> None:
    """Print 1,000 hospitals in 5 regions."""
    wide = Link(round_trip_s=0.08, bytes_per_s=bytes_per_s)
    local = Link(round_trip_s=0.02, bytes_per_s=bytes_per_s)
    region = Region(hosts=200, wide=wide, local=local, ingress_bytes_per_s=10 * bytes_per_s)
    cluster = Cluster(regions=(region,) * 5, root_bytes_per_s=10 * bytes_per_s)
    work = Workload(cohort=1000, steps=28, down_bytes=model_bytes, up_bytes=model_bytes, spread=0.5)
    title = f"1,000 hospitals, {model_bytes / 1e6:g} MB, {8 * bytes_per_s / 1e6:.0f} Mbit/s"
    show(title, work, costs, cluster)


def devices(costs: Costs, model_bytes: float) -> None:
    """Print a million devices, 10,000 a round, in 5 regions."""
    wide = Link(round_trip_s=0.08, bytes_per_s=125e6)
    local = Link(round_trip_s=0.1, bytes_per_s=2.5e6)
    region = Region(hosts=200_000, wide=wide, local=local, ingress_bytes_per_s=125e6)
    cluster = Cluster(regions=(region,) * 5, root_bytes_per_s=125e6)
    slow = replace(costs, site_s=5 * costs.site_s, step_s=5 * costs.step_s, site_byte_s=5 * costs.site_byte_s)
    work = Workload(cohort=10_000, steps=4, down_bytes=model_bytes, up_bytes=model_bytes, spread=0.8)
    show(f"10^6 devices, 10,000 a round, {model_bytes / 1e6:g} MB", work, slow, cluster)


def show(title: str, work: Workload, costs: Costs, cluster: Cluster) -> None:
    """Print both ways of aggregating."""
    for kind in ("flat", "regional"):
        found = predict(work, costs, cluster, kind)
        print(f"  {title}, {kind}: {found.round_s:8.2f} s a round, {found.rounds_per_hour:7.0f} an hour "
              f"(server {found.server_s:.2f}, down {found.down_s:.2f}, work {found.work_s:.2f}, up "
              f"{found.up_s:.2f}, fold {found.fold_s:.2f}), {found.root_bytes / 1e9:.3g} GB at the root")


def main() -> int:
    """Measure, fit, check, predict."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(f"{platform.platform()}, {os.cpu_count()} cores ({CORES} used), python "
          f"{platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, "
          f"{rounds} rounds a run")
    costs, rows = check_costs(rounds)
    print("parts that this machine alone cannot time:")
    check_stragglers(3 * rounds)
    check_transfers()
    print("predictions:")
    for size, rate in ((66_564, 12.5e6), (1e7, 12.5e6), (1e8, 12.5e6), (1e8, 125e6)):
        hospitals(costs, size, rate)
    for size in (66_564, 1e6):
        devices(costs, size)
    print(json.dumps({"workload": "cluster_model", "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
