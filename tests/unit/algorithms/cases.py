"""Five hospitals with a linear regression in float64: unequal rows, unequal steps, two that are equal.

Three of five take part in a round, in turn, so the references can be handed the cohorts as a list.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import fedray as fr
from fedray.core.graph import Op, Placement
from fedray.core.trace import trace
from fedray.data.site import SiteData

NUM_FEATURES, LR = 3, 0.1
SIZES = {"a": 5, "b": 9, "c": 12, "d": 12, "e": 31}
STEPS = {"a": 1, "b": 4, "c": 2, "d": 2, "e": 3}
COHORTS = ["abc", "ade", "bcd", "abe", "cde"]  # what sampling="cyclic" gives for three of five
CYCLIC = fr.synchronous(cohort=3, sampling="cyclic")
INIT = {"w": torch.zeros(NUM_FEATURES, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}


def tables():
    """Return {site: (x with a column of ones, y)}; c and d hold the same rows."""
    draws = np.random.default_rng(7)
    made = {}
    for shift, (site, rows) in enumerate(SIZES.items()):
        x = np.hstack([draws.normal(size=(rows, NUM_FEATURES)), np.ones((rows, 1))])
        made[site] = (x, x @ (1.0 + shift * np.arange(NUM_FEATURES + 1)) + draws.normal(size=rows))
    return {**made, "d": made["c"]}


def sites():
    return {
        site: SiteData({"x": torch.from_numpy(x[:, :-1].copy()), "y": torch.from_numpy(y)})
        for site, (x, y) in tables().items()
    }


def squares(params, batch):
    """Half the mean squared error."""
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]).square().mean() / 2


@dataclass(frozen=True)
class Uneven:
    """A local update that takes each site's own number of steps."""

    inner: Any
    steps: Any

    @property
    def lr(self):
        return self.inner.lr

    def loss(self, params, data):
        return self.inner.loss(params, data)

    def __call__(self, params, data, rng, **extras):
        return replace(self.inner, steps=self.steps.get(rng.site, 1))(params, data, rng, **extras)

    def gradient(self, params, data):
        return self.inner.gradient(params, data)

    def with_objective(self, objective):
        return replace(self, inner=self.inner.with_objective(objective))


def uneven(lr=LR):
    return Uneven(fr.learn.sgd(squares, lr=lr), STEPS)


def trained(algorithm, data=None, rounds=5, schedule=CYCLIC, init=None, look=None):
    """Fit on two packs and return the result, and what `look(federation)` sees after the last commit."""
    with fr.simulate(data or sites(), packs=2) as federation:
        result = fr.fit(algorithm, federation, init=init or INIT, rounds=rounds, schedule=schedule)
        federation.aggregator.root.commit([])
        return result, look(federation) if look else None


def kept(federation):
    """Return what each site keeps, as vectors."""
    packs = federation.aggregator.root.transport.hosts.values()
    return {site: vector(pack.state_of(site)) for pack in packs for site in pack.sites}


def own_models(algorithm, federation, params):
    """Return {site: the model that the site has for itself} beside the global one."""

    def round(server, site):
        own = algorithm.personal(fr.broadcast(server), site)
        return fr.Outputs(server=server, metrics=fr.gather(own, name="own"))

    program = fr.Algorithm(lambda params: params, round, lambda params: params, name="look")
    found = fr.compute(program, federation, state=params)
    return {site: vector(model) for site, model in found.items()}


def personal_models(algorithm):
    """Return a function of a federation in this process that gives its sites' own models."""
    return lambda federation: own_models(algorithm, federation, federation.aggregator.state.params)


def vector(params):
    """Return parameters in their order, which is that of the columns of `tables`; None as it is."""
    if params is None:
        return None
    return np.concatenate([params[name].double().numpy().ravel() for name in params])


SAME_STEPS = dict.fromkeys(SIZES, 2)


def single(form="stacked"):
    """Return (local, data, init) of the same regression in float32, trained as one program: two steps."""
    model = fr.learn.linear(NUM_FEATURES)
    local = fr.learn.sgd(model, lr=LR / 2, steps=2, form=form)  # its loss is not halved
    data = {
        site: SiteData({"x": table["x"].float(), "y": table["y"].float()}) for site, table in sites().items()
    }
    return local, data, model.init(0)


def gradient(site, at):
    """Return the gradient of `squares` at a site, for a vector of weights and intercept."""
    x, y = tables()[site]
    return x.T @ (x @ at - y) / len(y)


def sources(node, stop=False):
    """Return the site inputs that a node is computed from; with `stop`, "trained" for local training."""
    if stop and isinstance(node.fn, Uneven):
        return {"trained"}
    found = {node.params["slot"]} if node.op is Op.INPUT and node.placement is Placement.SITES else set()
    return found.union(*(sources(arg, stop) for arg in node.args))


def leaving(algorithm, stop=False):
    """Return {name: what it is computed from} of everything that leaves a site."""
    return {node.name: sources(node, stop) for node in trace(algorithm).reductions}


def quadratic(params, batch):
    """a/2 (x - b)^2, the mean over rows."""
    return (batch["a"] / 2 * (params["x"] - batch["b"]).square()).mean()


def two_quadratics(a=(1.0, 4.0), b=(1.0, -1.0)):
    """Return the drift oracle's two sites of one row."""
    return {
        f"h{i}": SiteData({"a": torch.tensor([a[i]]).double(), "b": torch.tensor([b[i]]).double()})
        for i in range(2)
    }


AT_ZERO = {"x": torch.zeros((), dtype=torch.float64)}


def settled(algorithm, rounds):
    """Return where training on the two quadratics ends."""
    result, _ = trained(algorithm, two_quadratics(), rounds, fr.synchronous(), AT_ZERO)
    return float(result.params["x"])


def with_statistics():
    """Return a model with BatchNorm, whose statistics travel and are averaged, and the five sites for it."""
    layers = torch.nn.BatchNorm1d(NUM_FEATURES), torch.nn.Linear(NUM_FEATURES, 1)
    model = fr.learn.from_module(torch.nn.Sequential(*layers), task="number")
    tables = {site: data.train for site, data in sites().items()}
    return model, {site: SiteData({n: rows[n].float() for n in ("x", "y")}) for site, rows in tables.items()}
