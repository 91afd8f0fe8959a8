"""DRFA: distributionally robust federated averaging, which is AFL with many local steps.

Source: Deng, Kamani, Mahdavi, Distributionally robust federated averaging, NeurIPS 2020, Algorithm 1. In each
round of tau local steps the server draws m sites D by lambda, with replacement, and a step t' of the round:
  w <- mean over D of w_i after tau steps,      w' = mean over D of w_i after t' steps,
then m sites U uniformly, which tell their loss at w', and with v_i = N/m f_i(w') in U, else 0:
  lambda <- Project(lambda + tau gamma v) onto the simplex.
The server keeps lambda by site id and sees the losses of U: `egress` says so. The sites keep nothing.
Let the schedule ask ALL sites: D and U are drawn in the round, and the others do no work (0 steps, weight 0).
Deviations: a site takes its first t' steps twice, with the same draws, so that no model is kept in between;
where sites of U fail, N/m counts those that told; t' is drawn from 1 to tau; w is not projected; lambda
starts uniform.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray.algorithms.afl import BySite, raised, uniform
from fedray.algorithms.scaling import check_has
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole


@dataclass(frozen=True)
class DrfaState:
    """Global parameters, lambda by site, and the number of the next round."""

    params: Any
    weights: dict[str, float]
    round: int = 0


@dataclass(frozen=True)
class Draws:
    """By site: how often it is in D, its steps, its steps to the snapshot, and whether it is in U."""

    times: BySite
    steps: BySite
    until: BySite
    told: BySite


@dataclass(frozen=True)
class Draw:
    """Draw D by the weights, t', and U: a function of the seed, the round and the weights."""

    size: int
    steps: int
    seed: int

    def __call__(self, weights: Mapping[str, float], round: int) -> Draws:
        """Return the draws of a round."""
        generator = Key(self.seed, round, SERVER, "drfa").generator()
        names = sorted(weights)
        shares = torch.tensor([weights[name] for name in names], dtype=torch.float64)
        times = torch.bincount(
            torch.multinomial(shares, self.size, replacement=True, generator=generator), minlength=len(names)
        ).tolist()
        until = int(torch.randint(1, self.steps + 1, (), generator=generator))
        told = set(torch.randperm(len(names), generator=generator)[: self.size].tolist())
        return Draws(
            BySite(dict(zip(names, times, strict=True)), 1),
            BySite({name: self.steps * bool(n) for name, n in zip(names, times, strict=True)}, self.steps),
            BySite({name: until * bool(n) for name, n in zip(names, times, strict=True)}, until),
            BySite({name: index in told for index, name in enumerate(names)}, True),
        )


@dataclass(frozen=True)
class LossWhere:
    """The loss of a model at the sites that are to tell it."""

    loss: Callable[[Any, Any], float]

    def __call__(self, params: Any, data: Any, is_told: bool) -> float:
        """Return the loss, or 0 where it is not asked for."""
        return self.loss(params, data) if is_told else 0.0


def ascend(
    weights: Mapping[str, float], told: Mapping[str, bool], losses: Mapping[str, float], rate: float
) -> dict[str, float]:
    """Return the next weights, from the losses of U alone."""
    heard = {site: loss for site, loss in losses.items() if told[site]}
    return raised(weights, heard, rate) if heard else dict(weights)


def drfa(
    local: Any,
    sites: Sequence[str],
    steps: int = 10,
    size: int | None = None,
    rate: float = 0.01,
    seed: int = 0,
) -> fr.Algorithm:
    """Average `steps` local steps of sites that are drawn by how badly they fare.

    `sites` are the ids of all sites; `size` is the paper's m (None: N), `rate` its gamma; `local` has
    `loss(params, data)` and is told its number of steps. Raises ValueError on numbers that cannot be.
    """
    start = uniform(sites, "drfa")
    check_has(local, "drfa", "loss")
    size = len(start) if size is None else size
    check_whole("drfa", steps=steps)
    check_whole("drfa", most=len(start), size=size)
    check_numbers("drfa", least=0, rate=rate)

    def round(server: Any, site: Any) -> fr.Outputs:
        draws = fr.apply(Draw(size, steps, seed), server.weights, server.round)
        x, times = fr.broadcast(server.params), fr.scatter(draws.times)
        update = fr.map(local, x, site.data, site.rng, steps=fr.scatter(draws.steps))
        before = fr.map(local, x, site.data, site.rng, steps=fr.scatter(draws.until))
        snapshot = server.params + fr.mean(before.delta, weight=times, name="snapshot")
        told = fr.map(LossWhere(local.loss), fr.broadcast(snapshot), site.data, fr.scatter(draws.told))
        losses = fr.gather(told, name="loss")
        weights = fr.apply(ascend, server.weights, draws.told, losses, steps * rate)
        params = server.params + fr.mean(update.delta, weight=times)
        return fr.Outputs(
            server=DrfaState(params, weights, server.round + 1),
            metrics=fr.mean(update.metrics, weight=times),
        )

    return fr.Algorithm(lambda params: DrfaState(params, dict(start)), round, name="drfa", sites=tuple(sites))
