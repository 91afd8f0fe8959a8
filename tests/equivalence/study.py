"""The federation that the equal-bits tests train on: 24 generated ICU hospitals, logistic regression."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import fedray as fr
from fedray.learn import optimizer
from tests.unit.passes.site_level import Same

NUM_SITES, ROUNDS = 24, 4
# a site that is lost in the second has been in the sums of the first
TWO_EXCHANGES = ("fedlin", "mime", "term")
ALGORITHMS = (
    "fedavg", "fedadam", "scaffold", "ditto", "feddyn", "fedexp", "fedlin", "fednova", "ifca", "mime",
    "qfedavg", "term", "dpsgd", "hierfavg", "push_sum",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Gives a site's data, drawn once: a fifth of a second for all sites, for hundreds of runs."""

    data: Any

    def __call__(self) -> Any:
        return self.data


@cache
def hospitals() -> Any:
    made = fr.data.synthetic_icu(num_sites=NUM_SITES, scale=0.02, seed=3)
    return replace(made, sites={site: Drawn(draw()) for site, draw in made.sites.items()})


@cache
def model() -> Any:
    return fr.learn.logistic(len(hospitals().features))


def local() -> Any:
    return fr.learn.sgd(model(), lr=0.05, epochs=1, batch_size=16)


def algorithm(name: str, update: Any = None) -> Any:
    update = update or local()
    if name == "scaffold":
        return fr.algorithms.scaffold(update, NUM_SITES)
    if name == "ditto":
        return fr.algorithms.ditto(update, prox=0.5)
    if name == "feddyn":
        return fr.algorithms.feddyn(update, NUM_SITES, alpha=0.5)
    if name == "ifca":
        return fr.algorithms.ifca(update, 2)
    if name in ("dpsgd", "push_sum"):
        return getattr(fr.algorithms, name)(update, tuple(hospitals()))
    if name == "hierfavg":
        return fr.algorithms.hierfavg(update, 2)
    if name in ("fedexp", "fedlin", "fednova", "mime", "qfedavg", "term"):
        return getattr(fr.algorithms, name)(update)
    if name == "apfl":
        return fr.algorithms.apfl(update)
    return fr.algorithms.fedavg(update, optimizer.adam(0.05) if name == "fedadam" else None)


def passes(name: str) -> list[Any]:
    """Return the passes of a study: those of FedAvg compressed."""
    if name == "topk":
        return [fr.passes.topk(0.1)]
    if name == "ef21":
        return [fr.passes.ef21(0.1)]
    if name == "bidirectional":
        return [fr.passes.bidirectional(fr.passes.qsgd(7), fr.passes.quantised_broadcast(127))]
    if name in ("site_dp", "site_dp_local"):
        cohort = round(0.75 * NUM_SITES)
        return [getattr(fr.passes, name)(0.1, 0.5, cohort, weights="uniform", source=Same())]
    return []


def fit(name: str, federation: Any, update: Any = None, rounds: int = ROUNDS, seed: int = 5) -> Any:
    return fr.fit(
        algorithm(name, update),
        federation,
        init=model().init(0),
        rounds=rounds,
        seed=seed,
        passes=passes(name),
        schedule=fr.synchronous(cohort=0.75),
    )


def train(
    name: str, update: Any = None, data: Any = None, rounds: int = ROUNDS, seed: int = 5, **layout: Any
) -> Any:
    with fr.simulate(data or hospitals(), **layout) as federation:
        return fit(name, federation, update, rounds, seed)


@cache
def expected(name: str) -> Any:
    return train(name)


@dataclass(frozen=True)
class Broken:
    """A local update that raises or sends NaN at some sites, in the middle of a round."""

    inner: Any
    how: str
    sites: tuple[str, ...]

    @property
    def lr(self) -> Any:
        return self.inner.lr

    def loss(self, params: Any, data: Any) -> float:
        return self.inner.loss(params, data)

    def __call__(self, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        update = self.inner(params, data, rng, **extra)
        if rng.site in self.sites and rng.label == "":
            if self.how == "raise":
                raise ArithmeticError("broken")
            update.delta.buffer.fill_(float("nan"))
        return update

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        """Train the sites of a group; one that raises breaks it, and each is then asked alone."""
        update = self.inner.rows(group, params, data, rng, **extra)
        for row, key in enumerate(rng.value.items):
            if key.site in self.sites and key.label == "":
                if self.how == "raise":
                    raise ArithmeticError("broken")
                update.delta.buffer[row] = float("nan")
        return update
