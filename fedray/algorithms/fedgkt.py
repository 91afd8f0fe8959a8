"""FedGKT: small models at the sites and a large one at the server teach each other.

Source: He, Annavaram and Avestimehr, Group knowledge transfer: Federated learning of large CNNs at the edge,
NeurIPS 2020, Algorithm 1 and its losses. Site k trains an extractor and a classifier, server and sites by
  l_k = CE + KL(p_s || p_k),        l_s = CE + KL(p_k || p_s),        p = softmax(z / T):
the site sends features H_k, logits Z_k and labels Y_k of its training rows, the server trains its model on
them for some epochs, site after site, and sends its own logits Z_s back, with which the site trains next. In
a site's first round there are none yet. A site keeps its model, which is averaged with no other, and Z_s.
The server SEES features, logits and LABELS of every training row: say so to whoever signs, and use no secure
sums with it. Deviations: both KL terms have one `weight` (1, as in the paper); both are taken in evaluation
mode; features are those that the last layer reads, after the site's training, as in the paper.
Not vectorised: a site's rows have teachers, and what leaves has a row a patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.afl import BySite
from fedray.learn import models, parts
from fedray.learn.batches import training_rows
from fedray.learn.distilling import Taught
from fedray.learn.objectives import features_of, pursuing
from fedray.learn.supervision import Logits, logits_of, target_of
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole


@dataclass(frozen=True)
class GktState:
    """The common start of the sites' models, the server's model, and the number of the next round."""

    params: Any
    net: Any
    round: int = 0


@dataclass(frozen=True)
class GktSite:
    """A site's model, and the server's logits of its training rows (None before the first)."""

    net: Any
    teacher: Any


@dataclass(frozen=True)
class Sent:
    """What a site sends of its training rows."""

    features: Any
    logits: Any
    labels: Any


@dataclass(frozen=True)
class Back:
    """The server's model, and its logits by site."""

    net: Any
    logits: Any


@dataclass(frozen=True)
class Learn:
    """Local training on labels and on what the server says."""

    local: Any

    @property
    def how(self) -> str:
        """Say why sites are trained one after the other."""
        return "site by site: its rows have a teacher"

    def __call__(self, net: Any, teacher: Any, data: Any, rng: Any) -> Any:
        """Train."""
        rows = training_rows(data)
        return self.local(net, rows if teacher is None else {**rows, "teacher": teacher}, rng)


@dataclass(frozen=True)
class Extract:
    """What a model makes of a site's training rows."""

    features: Logits
    logits: Logits
    target: str

    def __call__(self, net: Any, data: Any) -> Sent:
        """Return features, logits and labels."""
        rows = training_rows(data)
        with torch.no_grad():
            return Sent(self.features(net, rows), self.logits(net, rows), rows[self.target])


@dataclass(frozen=True)
class Teach:
    """The server's training, and what it says then."""

    server: Any
    logits: Logits
    target: str
    epochs: int
    seed: int

    def __call__(self, net: Any, sent: Mapping[str, Sent], round: int) -> Back:
        """Return the server's model and its logits of every site's rows."""
        sites = sorted(sent)
        for epoch in range(self.epochs):
            for site in sites:
                told = sent[site]
                rows = {"x": told.features, self.target: told.labels, "teacher": told.logits}
                key = Key(self.seed, round, SERVER, f"fedgkt {site} {epoch}")
                net = tree.add(net, self.server(net, rows, key).delta)
        with torch.no_grad():
            said = {site: self.logits(net, {"x": sent[site].features}) for site in sites}
        return Back(net, BySite(said, None))


def server_of(local: Any, hidden: Sequence[int], num_classes: int) -> Any:
    """Return a fully connected model on the features of a site's last layer, trained as the sites train."""
    (name,) = parts.last_layer(getattr(local, "model", None))
    check_whole("fedgkt", least=2, num_classes=num_classes)
    width = local.model.module.get_submodule(name).in_features
    net = models.mlp(width, hidden, num_classes, task=local.model.task)
    return replace(local, model=replace(net, target=local.model.target))


def fedgkt(
    local: Any, server: Any = None, start: Any = None, features: Logits | None = None,
    logits: Logits | None = None, server_logits: Logits | None = None, weight: float = 1.0,
    temperature: float = 1.0, epochs: int = 1, hidden: Sequence[int] = (64, 64), num_classes: int = 2,
    seed: int = 0,
) -> fr.Algorithm:  # fmt: skip
    """Train a model at each site and one at the server on the sites' features.

    `server` is the local update that trains the server's model, one call a site for `epochs` passes over the
    sites, `start` its first parameters; without, it is a fully connected model of widths `hidden` that is
    trained as the sites train. `features`, `logits` and `server_logits` are functions of (params, batch)
    where losses are own ones. A site's own model is the small one. Raises ValueError on wrong settings.
    """
    check_numbers("fedgkt", least=0, weight=weight)
    check_numbers("fedgkt", above=0, temperature=temperature)
    check_whole("fedgkt", epochs=epochs)
    server = server or server_of(local, hidden, num_classes)
    says = logits_of(local, "fedgkt", logits)
    extract = Extract(features or features_of(local, "fedgkt"), says, target_of(local))
    learn = Learn(pursuing(local, Taught(says, weight, temperature), "fedgkt"))
    answers = logits_of(server, "fedgkt", server_logits)
    taught = pursuing(server, Taught(answers, weight, temperature), "fedgkt")
    teach = Teach(taught, answers, extract.target, epochs, seed)

    def init(params: Any) -> GktState:
        net = server.model.init(seed) if start is None else start
        return GktState(tree.flatten(params), tree.flatten(net))

    def round(state: Any, site: Any) -> fr.Outputs:
        update = fr.map(learn, site.state.net, site.state.teacher, site.data, site.rng)
        net = site.state.net + update.delta
        sent = fr.gather(fr.map(extract, net, site.data), name="rows")
        back = fr.apply(teach, state.net, sent, state.round)
        return fr.Outputs(
            server=GktState(state.params, back.net, state.round + 1),
            site=GktSite(net, fr.scatter(back.logits)),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, lambda state: GktSite(state.params, None), "fedgkt", _own)


def _own(params: Any, site: Any) -> Any:
    return site.state.net
