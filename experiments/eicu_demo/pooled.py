"""How well does one model of all hospitals' rows do on the eICU demo? The bar for federated training.

    python experiments/eicu_demo/pooled.py [--src $FEDRAY_DATA/eicu-demo] [--data-dir data] [--seeds 20]

For each split: ridge logistic regression on the pooled rows, trained until its gradient norm is below 1e-6
and compared with scikit-learn's, one ridge model a hospital, and APACHE IVa's own prediction on the stays
that it scored. AUROC over the test stays of all hospitals together. L2 penalties were tuned on splits 100
to 105 only.
"""

import argparse
import logging
import os
import platform
from pathlib import Path

import baselines
import numpy as np

from fedray.data.contract import Contract
from fedray.data.eicu import eicu_first_use
from fedray.data.folder import OpenSite
from fedray.data.site import Dataset

Array = np.ndarray
# feature set, cohort -> penalties of the pooled and of the local models, smallest mean AUROC accepted
TASKS = {
    ("full", "cohort_grid24"): (0.2, 20.0, 0.845), ("apsx", "cohort_main"): (0.07, 5.0, 0.84),
    ("full", "landmark24"): (0.2, 20.0, 0.80)}
SKLEARN_WITHIN = 1e-4


def pool(data: Dataset) -> dict[str, Array]:
    """Return all sites' rows in one table: x, y, reference, is_test, site."""
    parts = []
    for number, name in enumerate(data):
        table = data[name]()
        is_test = np.zeros(table.num_rows, bool)
        is_test[table.splits["test"].numpy()] = True
        parts.append({"x": table["x"].numpy(), "y": table["y"].numpy(),
                      "reference": table["reference"].numpy(),
                      "is_test": is_test, "site": np.full(table.num_rows, number)})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def limits_of(data: Dataset) -> baselines.Limits:
    """Return the contract's limits of the features of `x`."""
    opener = data[next(iter(data))]
    assert isinstance(opener, OpenSite)
    contract: Contract = opener.contract
    columns = [contract[name] for name in data.features]
    flag = (0.0, 1.0)
    return baselines.Limits(
        low=np.array([flag[0] if column.low is None else column.low for column in columns]),
        high=np.array([flag[1] if column.high is None else column.high for column in columns]),
        skewed=np.array([column.log1p for column in columns]))


def sklearn_auroc(x: Array, y: Array, train: Array, test: Array, l2: float) -> float:
    """Return the AUROC of scikit-learn's model with the same penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    model = LogisticRegression(C=1 / (l2 * train.sum()), solver="newton-cholesky", tol=1e-8, max_iter=1000)
    return float(roc_auc_score(y[test], model.fit(x[train], y[train]).decision_function(x[test])))


def one_split(data: Dataset, l2: float, local_l2: float) -> dict[str, float]:
    """Return the figures of one split."""
    rows = pool(data)
    test, train, y = rows["is_test"], ~rows["is_test"], rows["y"].astype(np.float64)
    x = baselines.prepare(rows["x"], train, limits_of(data))
    weights, norm = baselines.fit_ridge(x[train], y[train], l2)
    pooled = baselines.auroc(y[test], baselines.predict(x[test], weights))
    local = baselines.local_only(x, y, rows["site"], train, local_l2)
    scored = test & ~np.isnan(rows["reference"])
    return {"pooled": pooled, "local": baselines.auroc(y[test], local[test]),
            "apache_iva": baselines.auroc(y[scored], rows["reference"][scored]),
            "pooled_scored": baselines.auroc(y[scored], baselines.predict(x[scored], weights)),
            "from_sklearn": abs(pooled - sklearn_auroc(x, y, train, test, l2)), "gradient": norm,
            "columns": x.shape[1], "test_stays": test.sum(), "test_deaths": y[test].sum()}


def report(features: str, cohort: str, found: list[dict[str, float]], smallest: float) -> bool:
    """Print the figures of a task; return whether they are as they must be."""
    print(f"\n{features} on {cohort}: {len(found)} splits, test stays "
          f"{np.mean([f['test_stays'] for f in found]):.0f} (deaths "
          f"{np.mean([f['test_deaths'] for f in found]):.0f}), columns with indicators "
          f"{min(f['columns'] for f in found):.0f} to {max(f['columns'] for f in found):.0f}")
    for name in ("pooled", "local", "apache_iva", "pooled_scored"):
        print(f"  {name:14s} {baselines.summary([f[name] for f in found])}")
    worst, gradient = max(f["from_sklearn"] for f in found), max(f["gradient"] for f in found)
    print(f"  largest difference from scikit-learn {worst:.1e}, largest gradient norm {gradient:.1e}")
    mean = float(np.mean([f["pooled"] for f in found]))
    holds = mean >= smallest and worst <= SKLEARN_WITHIN
    print(f"  pooled {mean:.4f}, wanted {smallest}: {'holds' if holds else 'FAILS'}")
    return holds


def main() -> int:
    """Print the figures; the exit code is 1 if one is below what is wanted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--src", type=Path, default=None, help="folder of the tables")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where built data sets lie")
    parser.add_argument("--seeds", type=int, default=20, help="splits 0 to n-1")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{platform.platform()}, {os.cpu_count()} cores, python {platform.python_version()}, numpy "
          f"{np.__version__}")
    holds = True
    for (features, cohort), (l2, local_l2, smallest) in TASKS.items():
        found = [one_split(eicu_first_use(given.src, given.data_dir, features=features, cohort=cohort,
                                          split_seed=seed), l2, local_l2) for seed in range(given.seeds)]
        holds &= report(features, cohort, found, smallest)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
