"""Does the synthetic ICU behave like the federation it stands for?

Prints and checks: mortality, sizes, pooled logistic regression, FedAvg against it, and local-only models at
small hospitals. Plain NumPy, no fedray runtime. Usage: python experiments/synthetic_icu/acceptance.py
--scale 0.1 --seeds 7
"""

import argparse
import pickle
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

from fedray.data import synthetic_profile as profile
from fedray.data.site import SiteData
from fedray.data.synthetic import synthetic_icu
from fedray.data.synthetic_plan import MIN_ROWS, Shift, draw_habits, open_stream, plan_hospitals
from fedray.data.synthetic_stays import draw_outcome, draw_stays

Array = np.ndarray
L2 = 1e-3  # per sample, pooled and FedAvg
ROUNDS, LOCAL_STEPS, RATE = 60, 5, 0.3


def auroc(died: Array, score: Array) -> float:
    """Return the area under the ROC curve, ties counted half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    events = died.sum()
    return float((ranks[died > 0].sum() - events * (events + 1) / 2) / (events * (len(died) - events)))


def gradient(w: Array, x: Array, y: Array, l2: float) -> Array:
    """Return the gradient of the mean log loss with a ridge that spares the intercept (last)."""
    residual = 1 / (1 + np.exp(-(x @ w[:-1] + w[-1]))) - y
    return np.append(x.T @ residual / len(y) + l2 * w[:-1], residual.mean())


def newton(x: Array, y: Array, l2: float, steps: int = 25) -> Array:
    """Fit ridge logistic regression to convergence; a single class gives the rate, smoothed."""
    w = np.zeros(x.shape[1] + 1)
    rate = (y.sum() + 0.5) / (len(y) + 1)
    w[-1] = np.log(rate / (1 - rate))
    if y.min() == y.max():
        return w
    wide = np.hstack([x, np.ones((len(x), 1))])
    ridge = np.append(np.full(x.shape[1], l2), 1e-9)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-wide @ w))
        step = np.linalg.solve(
            (wide * (p * (1 - p) + 1e-9)[:, None]).T @ wide / len(y) + np.diag(ridge), gradient(w, x, y, l2)
        )
        w = w - step / max(1.0, np.abs(step).max() / 3)
        if np.abs(step).max() < 1e-9:
            break
    return w


def fedavg(sites: list[tuple[Array, Array]], rounds: int = ROUNDS) -> Array:
    """Average full-batch local gradient steps, weighted by rows."""
    weights = np.array([len(y) for _, y in sites], float)
    weights /= weights.sum()
    w = np.zeros(sites[0][0].shape[1] + 1)
    w[-1] = -2.3
    for _ in range(rounds):
        total = np.zeros_like(w)
        for weight, (x, y) in zip(weights, sites, strict=True):
            local = w.copy()
            for _ in range(LOCAL_STEPS):
                local -= RATE * gradient(local, x, y, L2)
            total += weight * local
        w = total
    return w


def arrays(view: SiteData) -> tuple[Array, Array]:
    """Return a view's x and y as float64."""
    return view["x"].numpy().astype(float), view["y"].numpy().astype(float)


def oracle(scale: float, seed: int, intercept: float) -> tuple[float, float]:
    """Return the AUROC of the true risk over all stays, with and without what is peculiar to hospitals."""
    shift, risks, died, common = Shift(), [], [], []
    for hospital in plan_hospitals(profile.NUM_HOSPITALS, scale, seed, shift):
        habits = draw_habits(hospital, seed, shift)
        stays = draw_stays(hospital, habits, hospital.rows, open_stream(seed, hospital.name, "stays"))
        died.append(draw_outcome(stays, hospital, intercept, open_stream(seed, hospital.name, "outcome")))
        risks.append(stays["risk"])
        common.append(stays["risk"] - hospital.intercept)
    y = np.concatenate(died)
    return auroc(y, np.concatenate(risks)), auroc(y, np.concatenate(common))


def score(w: Array, x: Array) -> Array:
    """Return the log-odds."""
    return x @ w[:-1] + w[-1]


def check_sizes(scale: float, seed: int) -> bool:
    """Print size quantiles; true if totals, bed classes and spread are those of the margins."""
    hospitals = plan_hospitals(profile.NUM_HOSPITALS, scale, seed, Shift())
    rows = np.array([hospital.rows for hospital in hospitals])
    print(
        "rows total",
        rows.sum(),
        "target",
        round(profile.NUM_STAYS * scale),
        "quantiles 0 .1 .25 .5 .75 .9 1",
        np.quantile(rows, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)).round().astype(int),
    )
    fits = abs(rows.sum() / (profile.NUM_STAYS * scale) - 1) < 0.03
    spreads = []
    for bed, (count, stays) in profile.BEDS.items():
        mine = np.array([hospital.rows for hospital in hospitals if hospital.beds == bed])
        print(
            f"  beds {bed or 'blank':>9}: {len(mine):2d} hospitals, mean {mine.mean() / scale:6.0f} "
            f"(published "
            f"{stays / count:6.0f}), median {np.median(mine) / scale:6.0f}"
        )
        fits &= len(mine) == count and abs(mine.mean() - stays / count * scale) < max(3, 0.05 * mine.mean())
        spreads += list(np.log(mine[mine > MIN_ROWS] / np.median(mine)))
    print(f"  sd of log size in a class {np.std(spreads):.2f} (0.9 before the floor of {MIN_ROWS})")
    return bool(fits and 0.65 < np.std(spreads) < 1.0)


def fit_local(sites: list[SiteData]) -> tuple[list[Array], float]:
    """Fit a ridge model at each site, with the one penalty that suits their validation rows best."""
    losses, fits = {}, {}
    for l2 in (0.03, 0.1, 0.3, 1.0, 3.0):
        fits[l2] = [newton(*arrays(site.train), l2) for site in sites]
        valid = [arrays(site.valid) for site in sites]
        logits = np.concatenate([score(w, x) for w, (x, _) in zip(fits[l2], valid, strict=True)])
        losses[l2] = float(
            np.logaddexp(0, logits).mean() - (logits * np.concatenate([y for _, y in valid])).mean()
        )
    best = min(losses, key=lambda l2: losses[l2])
    return fits[best], best


def compare_models(sites: list[SiteData]) -> dict[str, float]:
    """Score pooled, FedAvg and, at hospitals with fewer than 100 stays, local-only models on test rows."""
    train = [arrays(site.train) for site in sites]
    test = [arrays(site.test) for site in sites]
    x, y = (np.concatenate(part) for part in zip(*test, strict=True))
    central = newton(*(np.concatenate(part) for part in zip(*train, strict=True)), L2)
    shared = fedavg(train)
    small = [site for site in sites if site.num_rows < 100]
    local, l2 = fit_local(small)
    rows = [
        (y, score(w, x), score(shared, x))
        for w, (x, y) in zip(local, (arrays(s.test) for s in small), strict=True)
    ]
    both = [row for row in rows if 0 < row[0].sum() < len(row[0])]
    died, own, common = (np.concatenate(part) for part in zip(*rows, strict=True))
    return {
        "central": auroc(y, score(central, x)),
        "fedavg": auroc(y, score(shared, x)),
        "test_rows": len(y),
        "test_deaths": int(y.sum()),
        "small_sites": len(small),
        "small_test_deaths": int(died.sum()),
        "small_local": auroc(died, own),
        "small_fedavg": auroc(died, common),
        "small_local_l2": l2,
        "small_sites_with_both_classes": len(both),
        "small_local_mean_of_sites": float(np.mean([auroc(d, o) for d, o, _ in both])),
        "small_fedavg_mean_of_sites": float(np.mean([auroc(d, c) for d, _, c in both])),
    }


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """Return a result and the CPU seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(scale: float, seed: int) -> dict[str, float]:
    """Generate one federation and return its figures."""
    data, plan_s = timed(lambda: synthetic_icu(scale=scale, seed=seed))
    sites, open_s = timed(lambda: [data[name]() for name in data])
    opener = next(iter(data.sites.values()))
    y = np.concatenate([site["y"].numpy() for site in sites])
    apache = np.concatenate([site["reference"].numpy() for site in sites])
    scored = ~np.isnan(apache)
    whole, common = oracle(scale, seed, opener.intercept)
    logit = np.log(apache[scored] / (1 - apache[scored]))
    return {
        "rows": len(y),
        "plan_cpu_s": plan_s,
        "open_all_cpu_s": open_s,
        "opener_bytes": len(pickle.dumps(opener)),
        "features": len(data.features),
        "mortality": float(y.mean()),
        "site_mortality_sd": float(np.std([site["y"].mean() for site in sites if site.num_rows >= 100])),
        "reference_auroc": auroc(y[scored], apache[scored]),
        "reference_mean": float(apache[scored].mean()),
        "reference_logit_mean": float(logit.mean()),
        "reference_logit_sd": float(logit.std()),
        "oracle": whole,
        "oracle_without_site_intercepts": common,
        **compare_models(sites),
    }


def main() -> int:
    """Print figures and checks (on the mean over the seeds); exit 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    options = parser.parse_args()
    print(platform.machine(), "python", platform.python_version(), "numpy", np.__version__, vars(options))
    runs = [measure(options.scale, seed) for seed in options.seeds]
    mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    for name, value in mean.items():
        spread = [run[name] for run in runs]
        print(
            f"{name:34s} {value:10.4f}"
            + (f"   {min(spread):.4f} to {max(spread):.4f}" if len(runs) > 1 else "")
        )
    checks = {
        "mortality .0896 +- .003": abs(mean["mortality"] - profile.MORTALITY) <= 0.003,
        "sizes as published": all(check_sizes(options.scale, seed) for seed in options.seeds),
        "central AUROC .83-.87": 0.83 <= mean["central"] <= 0.87,
        "oracle AUROC .865-.90": 0.865 <= mean["oracle"] <= 0.90,
        "FedAvg >= .99 of central": min(run["fedavg"] / run["central"] for run in runs) >= 0.99,
        "hospitals < 100 stays: local-only .1 below FedAvg, pooled test rows": mean["small_local"]
        <= mean["small_fedavg"] - 0.1,
        "hospitals < 100 stays: local-only .1 below FedAvg, mean of hospitals": mean[
            "small_local_mean_of_sites"
        ]
        <= mean["small_fedavg_mean_of_sites"] - 0.1,
    }
    for name, holds in checks.items():
        print("ok  " if holds else "FAIL", name)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
