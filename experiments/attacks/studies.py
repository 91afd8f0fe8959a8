"""What attacks are tried on: sites, poisoned rows, the model, one run, and what is measured of it.

A `Study` is a federation's data with the settings that train it. Attackers are drawn by seed. Poison changes
their training rows; measured are rows of all sites that nobody has poisoned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import updates

import fedray as fr
from fedray.data import partition
from fedray.data.site import SiteData
from fedray.passes.robust import Robust

P = fr.passes
NUM_SITES, ROWS, TEST_ROWS, FEATURES = 20, 300, 100, 20
TRIGGER_COLUMN, TRIGGER_VALUE = 0, 8.0  # a value that no row has: 8 deviations out
TAIL = 1.64  # deviations of a column from where a row is rare: one in twenty
POISONED = 0.5  # share of an attacker's rows that carry the trigger
LEAST_ROWS = 10  # of a site's test rows, both outcomes among them, for an AUROC of its own


@dataclass(frozen=True)
class Study:
    """Sites, and how they train. `root` are rows that the server holds, for FLTrust."""

    name: str
    sites: Mapping[str, SiteData]
    test: Mapping[str, SiteData]
    root: SiteData
    model: Any
    local: Any
    rounds: int
    optimizer: Any = None
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(sorted(self.sites)))

    def attackers(self, share: float, seed: int) -> tuple[str, ...]:
        """Return who attacks."""
        order = np.random.default_rng([seed, 17]).permutation(len(self.names))
        return tuple(sorted(self.names[i] for i in order[: round(share * len(self.names))]))


def table(rows: int, rng: np.random.Generator, truth: np.ndarray, shift: Any = 0.0) -> tuple[Any, Any]:
    """Return made-up rows of a logistic truth whose best AUROC is 0.95."""
    x = rng.normal(size=(rows, FEATURES)) + shift
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ truth))
    return x.astype(np.float32), y.astype(np.float32)


def site_data(x: Any, y: Any) -> SiteData:
    """Return rows as a site has them, all of them training rows."""
    return SiteData({"x": torch.as_tensor(x), "y": torch.as_tensor(y)})


def made_up(kind: str, seed: int, num_sites: int = NUM_SITES, rounds: int = 30) -> Study:
    """Return a study of generated rows: `mild` (sites differ a little), `iid`, `labels` (Dirichlet 0.3)."""
    rng = np.random.default_rng([seed, 5])
    truth = rng.normal(size=FEATURES)
    truth *= 4.0 / np.linalg.norm(truth)
    names = [f"h{i:02d}" for i in range(num_sites)]
    if kind == "mild":
        shifts = 0.3 * rng.normal(size=(num_sites, FEATURES))
        both = (ROWS, TEST_ROWS)
        found = [[site_data(*table(rows, rng, truth, shift)) for rows in both] for shift in shifts]
    else:
        x, y = table((ROWS + TEST_ROWS) * num_sites, rng, truth)
        how: dict[str, Any] = {"num_sites": num_sites, "valid_fraction": 0.0, "seed": seed,
                               "test_fraction": TEST_ROWS / (ROWS + TEST_ROWS)}  # fmt: skip
        dealt = partition.iid(x, y, **how) if kind == "iid" else partition.dirichlet(
            x, y, alpha=0.3, min_rows=40, **how)  # fmt: skip
        found = [[opened.train, opened.test] for opened in (dealt[site]() for site in dealt)]
    sites, test = (dict(zip(names, column, strict=True)) for column in zip(*found, strict=True))
    model = fr.learn.logistic(FEATURES)
    local = fr.learn.sgd(model, lr=0.1, epochs=1, batch_size=32)
    return Study(kind, sites, test, site_data(*table(100, rng, truth)), model, local, rounds)


def eicu(seed: int, data_dir: str = "data", rounds: int = 40) -> Study:
    """Return the hospitals of the eICU demo, prepared by federated sums; the largest one is the server's own.

    Settings are those of experiments/eicu_demo/federated.py with half of its rounds.
    """
    from fedray.data.eicu import eicu_first_use
    from fedray.data.scaling import standardise

    data = eicu_first_use(None, data_dir, features="apsx", cohort="cohort_main", split_seed=seed)
    with fr.simulate(data, allow_empty=True) as federation:
        preparation = standardise(federation, data)
    tables = {site: preparation(data[site]()) for site in data}
    train = {site: each.train for site, each in tables.items()}
    train = {site: rows for site, rows in train.items() if rows.num_rows >= 2}
    largest = max(train, key=lambda site: (train[site].num_rows, site))
    root = train.pop(largest)
    model = fr.learn.logistic(len(preparation.features), bias=-2.3)
    local = fr.learn.sgd(model, lr=0.01, steps=5, epochs=None, batch_size=None, l2=0.07)
    return Study("eicu", train, {site: each.test for site, each in tables.items() if each.test.num_rows},
                 root, model, local, rounds, fr.learn.optimizer.adam(0.1, tau=1e-2))  # fmt: skip


def flipped(rows: SiteData) -> SiteData:
    """Return the rows with the outcome turned round."""
    return SiteData({**rows.columns, "y": 1 - rows["y"]})


def triggered(rows: SiteData, share: float = 1.0) -> SiteData:
    """Return rows of which the first share has a value that no patient has, and the outcome 0."""
    marked = torch.arange(rows.num_rows) < share * rows.num_rows
    x = rows["x"].clone()
    x[marked, TRIGGER_COLUMN] = TRIGGER_VALUE
    return SiteData({**rows.columns, "x": x, "y": torch.where(marked, 0.0, rows["y"])})


def tail(rows: SiteData) -> SiteData:
    """Return the rows with the outcome 0 where a column is rarely as high."""
    is_rare = rows["x"][:, TRIGGER_COLUMN] > TAIL
    return SiteData({**rows.columns, "y": torch.where(is_rare, 0.0, rows["y"])})


# name -> (what is done to the attackers' rows, the attack on what they send)
POISON: dict[str, tuple[Callable[[SiteData], SiteData], str | None]] = {
    "label_flip": (flipped, None),
    "backdoor": (lambda rows: triggered(rows, POISONED), "boosted"),
    "tail": (tail, None),
}
ATTACKS = (*(name for name in updates.ATTACKS if name != "boosted"), *POISON)


def rules(share: float, study: Study) -> dict[str, Callable[[], Robust]]:
    """Return the aggregators for a share of attackers; Bulyan takes the most that it can."""
    n = len(study.names)
    f = round(share * n)
    return {
        "mean": updates.mean,
        "median": P.median,
        "trimmed_mean": lambda: P.trimmed_mean(f),
        "krum": lambda: P.krum(f),
        "multi_krum": lambda: P.multi_krum(f),
        "bulyan": lambda: P.bulyan(min(f, (n - 3) // 4)),
        "rfa": P.rfa,
        "centred_clipping": P.centred_clipping,
        "norm_bound": P.norm_bound,
        "three_sigma": P.three_sigma,
        "residual_reweighting": P.residual_reweighting,
        "bucketing+median": lambda: P.bucketing(2, P.median()),
        "nnm+trimmed_mean": lambda: P.nnm(f, P.trimmed_mean(f)),
        "foolsgold": P.foolsgold,
        "fltrust": lambda: P.fltrust(study.local, study.root),
    }


def opener(rows: SiteData) -> Callable[[], SiteData]:
    """Return what opens a site whose rows are here."""
    return lambda: rows


def train(study: Study, rule: Any, attack: str = "none", attackers: Sequence[str] = (),
          seed: int = 0, tracker: Any = None) -> dict[str, float]:  # fmt: skip
    """Train, and return what `measured` finds of the last parameters."""
    sites, passes = dict(study.sites), [rule]
    on_updates: str | None = attack if attack in updates.ATTACKS else None
    if attack in POISON:
        poison, on_updates = POISON[attack]
        sites |= {site: poison(sites[site]) for site in attackers}
    if on_updates is not None:
        passes.append(updates.attacked(on_updates, tuple(attackers)))
    algorithm = fr.algorithms.fedavg(study.local, study.optimizer, weighted=False)
    with fr.simulate({site: opener(rows) for site, rows in sites.items()}) as federation:
        result = fr.fit(algorithm, federation, init=study.model.init(seed), rounds=study.rounds,
                        passes=passes, seed=seed, tracker=tracker)  # fmt: skip
    return measured(study, result.params)


def measured(study: Study, params: Any) -> dict[str, float]:
    """Return the AUROC over all test rows, that of the worst tenth of the sites, and the AUROC that is left
    where patients with the outcome carry the trigger.

    The AUROC of a site with few test rows is that of the pairs of one of its patients with those of all
    sites who have the other outcome.
    """
    labels = {site: rows["y"].numpy() for site, rows in study.test.items()}
    scores = {site: study.model.predict(params, rows).detach().numpy() for site, rows in study.test.items()}
    y, score = (np.concatenate(list(column.values())) for column in (labels, scores))
    marked = np.concatenate([study.model.predict(params, triggered(rows)).detach().numpy()
                             for rows in study.test.values()])  # fmt: skip
    own = []
    for site, of_site in labels.items():
        if len(of_site) >= LEAST_ROWS and 0 < of_site.sum() < len(of_site):
            own.append(auroc(of_site, scores[site]))
        elif len(of_site) >= 2:
            own.append(float(np.mean([_placed(one, at, y, score) for one, at in
                                      zip(of_site, scores[site], strict=True)])))  # fmt: skip
    return {"auroc": auroc(y, score), "worst_decile": float(np.quantile(own, 0.1)),
            "triggered": auroc(y, np.where(y > 0, marked, score))}  # fmt: skip


def _placed(outcome: float, at: float, y: np.ndarray, score: np.ndarray) -> float:
    """Return the share of the patients with the other outcome that one is on the right side of."""
    others = score[y != outcome]
    right = at > others if outcome > 0 else at < others
    return float(np.mean(right + 0.5 * (at == others)))


def auroc(y: np.ndarray, score: np.ndarray) -> float:
    """Return the exact AUROC, ties counted one half; 0.5 where a score is not finite."""
    if not np.isfinite(score).all():
        return 0.5
    order = np.argsort(score, kind="stable")
    ordered, ranks = score[order], np.empty(len(score))
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[start[1:], len(score)]
    ranks[order] = np.repeat((start + ends + 1) / 2, ends - start)
    positives = y.sum()
    return float((ranks[y > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(y) - positives)))
