"""FedMatch: labelled and unlabelled rows train disjoint parts of the weights, and like sites help each other.

Source: Jeong, Yoon, Yang and Hwang, Federated semi-supervised learning with inter-client consistency and
disjoint learning, ICLR 2021, section 4 and its algorithm for labels at the client. The model is theta = sigma
+ psi. For each batch a site takes, in this order,
  sigma <- sigma - eta grad lambda_s CE(y, p_theta) on its labelled rows, psi held
  psi   <- psi - eta grad [Phi on the others + lambda_L2 ||sigma - psi||^2 + lambda_L1 ||psi||_1], sigma held
Phi, over rows that theta predicts with a probability of at least tau, is lambda_a CE(y^, p_theta(pi(u))) +
lambda_i/H sum_j KL(p_hj || p_theta): helper j is sigma received + psi of another site, y^ the class that most
of theta and the helpers vote for. Helpers are the H sites whose last models answer most alike to one input of
Gaussian noise. A site that was not yet counted has none.
As in the paper: the decomposition and its two losses, their order, agreement, consistency, the choice of
helpers by noise. Deviations: rows of both kinds share a batch; pi is additive Gaussian noise (`noise`, 0 for
none), RandAugment being for images; helpers are chosen every round, not every tenth, among all sites ever
counted; whole weights travel, where the paper sends large differences only; sites are weighed by rows; theta
starts at the parameters given, psi being `psi_share` of them (1/6, as sigma and a fifth of it). Defaults are
those of the authors' program, which is where Phi has two strengths. Where `local` is not plain gradient
descent, psi's gradient is taken at the sigma of a plain step.
The server must SEE each site's psi (a `gather`) and keeps it; secure sums and a policy that forbids gathers
do not go with it. The sites keep nothing. Not vectorised: several models see every batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.algorithms.afl import BySite
from fedray.learn import parts
from fedray.learn.objectives import pursuing
from fedray.learn.supervision import (
    Logits,
    Matching,
    Strengths,
    log_probabilities,
    logits_of,
    target_of,
    whole,
)
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole

PSI = parts.Part(("psi",))


Told = dict[str, Any]  # a site's `psi`, and its model's `answer` to noise; plain, for checkpoints


@dataclass(frozen=True)
class FedMatchState:
    """The model, sigma with psi beside it, what sites told last, and the number of the next round."""

    params: Any
    both: Any
    known: dict[str, Told]
    round: int = 0


def decomposed(params: Any, share: float) -> Any:
    """Return sigma with psi beside it, whose sum the parameters are."""
    flat = tree.flatten(params)
    psi = tree.scale(parts.trained(flat), share)
    sigma = flat.clone()
    for name in psi:
        sigma[name].sub_(psi[name])
    return parts.beside(sigma, psi=psi)


def model_of(both: Any) -> Any:
    """Return the model: sigma + psi."""
    found = PSI.rest(both).clone()
    for name, part in parts.under(both, "psi").items():
        found[name].add_(part)
    return found


@dataclass(frozen=True)
class Matched:
    """Local training on both kinds of rows."""

    local: Any
    objective: Matching

    @property
    def how(self) -> str:
        """Say why sites are trained one after the other."""
        return "site by site: several models see every batch"

    def __call__(self, both: Any, helpers: Any, data: Any, rng: Any) -> Any:
        """Train."""
        rate, sigma = self.local.lr, PSI.rest(both)
        objective = replace(
            self.objective,
            helpers=[whole(sigma, parts.under(helper, "psi")) for helper in helpers],
            rate=rate(rng.round) if callable(rate) else rate,
            generator=rng.child("fedmatch").generator(),
        )
        return pursuing(self.local, objective, "fedmatch")(both, data, rng)


@dataclass(frozen=True)
class Tell:
    """What a site tells for the choice of helpers."""

    logits: Logits
    seed: int

    def __call__(self, both: Any, delta: Any, data: Any) -> Told:
        """Return psi and the answer to noise, which is the same at every site."""
        now = tree.add(both, delta)
        x = data["x"]
        generator = Key(self.seed, 0, SERVER, "fedmatch").generator()
        noise = torch.randn((1, *x.shape[1:]), generator=generator, dtype=torch.float64)
        with torch.no_grad():
            said = self.logits(model_of(now), {"x": noise.to(x)})
        return {"psi": PSI(now), "answer": log_probabilities(said).exp().double()}


@dataclass(frozen=True)
class Helpers:
    """Choose the sites that answer most alike; of equal ones the first by name."""

    most: int

    def __call__(self, known: Mapping[str, Told]) -> BySite:
        """Return {site: the psi of its helpers}."""
        names = sorted(known)
        found = {}
        for name in names:
            others = [other for other in names if other != name]
            others.sort(key=lambda other: float(_apart(known[name]["answer"], known[other]["answer"])))
            found[name] = [known[other]["psi"] for other in others[: self.most]]
        return BySite(found, [])


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).norm()


def remember(known: Mapping[str, Told], told: Mapping[str, Told]) -> dict[str, Told]:
    """Return what each site told last."""
    return {**known, **told}


def fedmatch(
    local: Any, threshold: float = 0.75, helpers: int = 2, supervised: float = 10.0,
    consistency: float = 1e-2, agreement: float = 1e-2, l2: float = 10.0, l1: float = 1e-4,
    noise: float = 0.0, psi_share: float = 1 / 6, logits: Logits | None = None, weighted: bool = True,
    seed: int = 0,
) -> fr.Algorithm:  # fmt: skip
    """Train sigma on rows with a label and psi on those without (-1), with `helpers` models of other sites.

    `threshold` is tau; `supervised`, `consistency`, `agreement`, `l2` and `l1` are the lambdas s, i, a, L2
    and L1. Raises ValueError where a setting is negative, or the rate is so high that l2 throws psi apart.
    """
    strengths = Strengths(supervised=supervised, consistency=consistency, agreement=agreement, l2=l2, l1=l1,
                          threshold=threshold, noise=noise)  # fmt: skip
    _check(local, strengths, helpers, psi_share)
    said = logits_of(local, "fedmatch", logits)
    matched = Matched(local, Matching(logits=said, target=target_of(local), strengths=strengths))
    pursuing(local, matched.objective, "fedmatch")  # raises here where it cannot be

    def init(params: Any) -> FedMatchState:
        params = PSI.keep_free(params, "fedmatch")
        return FedMatchState(params, decomposed(params, psi_share), {})

    def round(server: Any, site: Any) -> fr.Outputs:
        both = fr.broadcast(server.both)
        near = fr.scatter(fr.apply(Helpers(helpers), server.known))
        update = fr.map(matched, both, near, site.data, site.rng)
        told = fr.gather(fr.map(Tell(said, seed), both, update.delta, site.data), name="psi")
        after = server.both + fr.mean(update.delta, weight=update.num_examples if weighted else None)
        known = fr.apply(remember, server.known, told)
        return fr.Outputs(
            server=FedMatchState(fr.apply(model_of, after), after, known, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name="fedmatch")


def _check(local: Any, strengths: Strengths, helpers: int, psi_share: float) -> None:
    check_numbers("fedmatch", least=0, **dict(tree.children(strengths)))
    check_numbers("fedmatch", most=1, threshold=strengths.threshold)
    check_numbers("fedmatch", least=0, below=1, psi_share=psi_share)
    check_whole("fedmatch", least=0, helpers=helpers)
    rate = getattr(local, "lr", 0.0)
    if not callable(rate) and rate * strengths.l2 >= 1:
        raise ValueError(f"fedmatch: lr={rate} times l2={strengths.l2} must be below 1, or psi is thrown "
                         "apart: lower either")  # fmt: skip
