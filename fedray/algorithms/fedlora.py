"""FedLoRA: federated averaging of low-rank adapters over a model that stays as it is.

Source: Wang et al., FLoRA: Federated fine-tuning large language models with heterogeneous low-rank
adaptations, NeurIPS 2024 (stacked); Zhang et al., Towards building the federated GPT: Federated instruction
tuning, ICASSP 2024 (naive); Sun et al., Improving LoRA in privacy-preserving federated learning, ICLR 2024
(ffa). A site trains B_i and A_i of W + s_i B_i A_i; p_i are the sites' shares of the rows.
  stacked: W <- W + sum_i p_i s_i B_i A_i, exactly, as [B_1 .. B_n] [p_1 s_1 A_1; ..; p_n s_n A_n]; in the
           next round adapters start anew; ranks may differ from site to site
  naive:   A <- sum_i p_i A_i and B <- sum_i p_i B_i apart: the product is not the mean of the products
  ffa:     A stays as it was drawn, B <- sum_i p_i B_i: the product is the mean of the products
The sites keep nothing. naive and ffa send sums (AGG); stacked needs the factors of every site (a `gather`,
VISIBLE), so that secure sums and a policy that forbids gathers do not go with it: ffa is exact and does. The
base goes to a host once, and so do the stacks of rounds: they are frozen leaves (runtime/kept.py).
Deviations: shares are of the cohort. Where the stacks take as many bytes as the adapted parameters, the
server merges them and these are sent. Models with statistics of batches are refused. Not vectorised: what
trains are factors of a layer, which the stacked engine has no layer for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.errors import QuorumError
from fedray.learn.adapters import INITS, Adapters, Trained, TrainedAnew, merged
from fedray.learn.objectives import pursuing
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, is_whole
from fedray.tree import Flat

VARIANTS = ("stacked", "naive", "ffa")
Rank = int | Mapping[str, int]
ALL = ""  # stands for every site where one rank is given


@dataclass(frozen=True)
class FedLoraState:
    """The model with all adapters merged, what it is made of, and the number of the next round.

    `base` and `fixed` are frozen; `factors` are those that train, or the stacks of the rounds so far.
    """

    params: Any
    base: Any
    fixed: Any
    factors: Any
    optimizer: Any = None
    round: int = 0


def still(params: Mapping[str, Any]) -> Flat:
    """Return tensors laid out as frozen."""
    return tree.flatten(dict(params), frozen=list(params))


def model_of(base: Flat, like: Any, scale: float, *factors: Any) -> Flat:
    """Return the model with products added, laid out as `like`."""
    return tree.flatten(merged(base, *factors, scale=scale), like.schema)


@dataclass(frozen=True)
class Merge:
    """The server's step of "stacked": add the weighted mean of the sites' products to the model."""

    adapters: Adapters

    def stack(self, factors: Mapping[str, Any], weights: Any) -> dict[str, Any]:
        """Return the factors of the mean: B side by side, A one on the other.

        Raises QuorumError where the weights add up to zero.
        """
        sites = sorted(factors)
        shares = {site: float(weights[site]) if weights is not None else 1.0 for site in sites}
        if not (total := sum(shares.values())):
            raise QuorumError("fedlora: no site that delivered had a row to learn from")
        found = {}
        for name in [name[2:] for name in factors[sites[0]] if name.startswith("B.")]:
            lower = {site: factors[site][f"A.{name}"] for site in sites}
            scales = {site: self.adapters.scale(len(lower[site])) for site in sites}
            found[f"A.{name}"] = torch.cat([lower[s] * (shares[s] / total * scales[s]) for s in sites])
            found[f"B.{name}"] = torch.cat([factors[site][f"B.{name}"] for site in sites], 1)
        return found

    def __call__(self, server: FedLoraState, factors: Any, weights: Any) -> FedLoraState:
        """Return the server's next state."""
        stack = still(self.stack(factors, weights))
        params = tree.flatten(merged(server.params, stack), server.params.schema)
        stacks = (*server.factors, stack)
        adapted = sum(params[name[2:]].numel() for name in stack if name.startswith("B."))
        if sum(each.schema.num_elements for each in stacks) >= adapted:
            return FedLoraState(params, still(params), {}, (), None, server.round + 1)
        return FedLoraState(params, server.base, {}, stacks, None, server.round + 1)


def fedlora(
    local: Any,
    layers: Sequence[str] | None = None,
    rank: Rank = 4,
    alpha: float | None = None,
    variant: str = "stacked",
    init: str = "kaiming",
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
    seed: int = 0,
) -> fr.Algorithm:
    """Train adapters of `rank` for the parameters under `layers` (all of two dimensions or more).

    s is alpha / rank, 1 without `alpha`. A starts by `init`, "kaiming" or "gaussian". `rank` may be {site:
    rank} for "stacked"; a site that is not named has the largest, which is what `egress` counts. `optimizer`
    moves the factors of "naive" and "ffa"; `seed` draws their A.
    Raises ValueError on settings that cannot be.
    """
    _check(rank, variant, init, optimizer, local)
    check_numbers("fedlora", above=0, or_none=True, alpha=alpha)
    adapters = Adapters(None if layers is None else tuple(layers), alpha, init)
    if not isinstance(rank, int):
        return _stacking(local, adapters, rank, weighted)
    if variant == "stacked":
        return _stacking(local, adapters, {ALL: rank}, weighted)
    return _averaging(local, adapters, rank, variant == "ffa", optimizer or sgd(1.0), weighted, seed)


def _check(rank: Rank, variant: str, init: str, optimizer: Any, local: Any) -> None:
    ranks = list(rank.values()) if isinstance(rank, Mapping) else [rank]
    pursuing(local, None, "fedlora")  # refused here where it cannot have an objective
    for name, value, among in (("variant", variant, VARIANTS), ("init", init, INITS)):
        if value not in among:
            raise ValueError(f"fedlora: {name}={value!r}: choose one of {', '.join(among)}")
    if not ranks or not all(is_whole(each, 1) for each in ranks):
        raise ValueError(f"fedlora: rank={rank!r}: give a whole number, 1 or more, or one for each site")
    if variant != "stacked" and not isinstance(rank, int):
        raise ValueError(f"fedlora: {variant} averages factors, which needs one rank: use 'stacked'")
    if variant == "stacked" and optimizer is not None:
        raise ValueError("fedlora: 'stacked' adds the mean of the products and has no server optimizer")


def _checked(params: Any, adapters: Adapters) -> Flat:
    params = tree.flatten(params)
    if params.schema.trainable < params.schema.moving:
        raise ValueError(
            "fedlora: the model has statistics of batches, and adapters alone travel: use a model with layer "
            "or group normalisation, or none"
        )
    adapters.names(params)
    return params


@dataclass(frozen=True)
class RankOf:
    """The rank of each site; the largest where it is not named."""

    ranks: Mapping[str, int]

    @property
    def named_sites(self) -> dict[str, tuple[str, ...]]:
        """The sites that were named, and where: a run refuses those that there are not."""
        return {"fedlora(rank=...)": tuple(site for site in self.ranks if site != ALL)}

    def __call__(self, site: str) -> int:
        """Return the rank of a site."""
        return self.ranks.get(site, max(self.ranks.values()))


def _stacking(local: Any, adapters: Adapters, ranks: Mapping[str, int], weighted: bool) -> fr.Algorithm:
    train = TrainedAnew(local, adapters, RankOf(dict(ranks)))

    def init(params: Any) -> FedLoraState:
        params = _checked(params, adapters)
        return FedLoraState(params, still(params), {}, ())

    def round(server: Any, site: Any) -> fr.Outputs:
        base, stacks = fr.broadcast(server.base), fr.broadcast(server.factors, name="stacks")
        learnt = fr.map(train, base, stacks, site.data, site.rng, site.stream("lora"))
        weights = fr.gather(learnt.num_examples) if weighted else None
        return fr.Outputs(
            server=fr.apply(Merge(adapters), server, fr.gather(learnt.factors), weights),
            metrics=fr.mean(learnt.metrics, weight=learnt.num_examples),
        )

    return fr.Algorithm(init, round, name="fedlora")


def _averaging(
    local: Any,
    adapters: Adapters,
    rank: int,
    is_lower_fixed: bool,
    optimizer: ServerOptimizer,
    weighted: bool,
    seed: int,
) -> fr.Algorithm:
    scale = adapters.scale(rank)
    train = Trained(local, scale)

    def init(params: Any) -> FedLoraState:
        params = _checked(params, adapters)
        lower = adapters.lower(params, rank, Key(seed, 0, SERVER, "lora"))
        upper = adapters.upper(params, rank)
        fixed, factors = (lower, upper) if is_lower_fixed else ({}, lower | upper)
        moving = tree.flatten(factors)
        kept = still(fixed) if fixed else {}
        return FedLoraState(params, still(params), kept, moving, optimizer.init(moving))

    def round(server: Any, site: Any) -> fr.Outputs:
        base, fixed = fr.broadcast(server.base), fr.broadcast(server.fixed)
        update = fr.map(train, fr.broadcast(server.factors), base, fixed, site.data, site.rng)
        delta = fr.mean(update.delta, weight=update.num_examples if weighted else None)
        step = fr.apply(optimizer.step, server.factors, server.optimizer, delta, server.round)
        both = fr.apply(beside, server.fixed, step.params)
        params = fr.apply(model_of, server.base, server.params, scale, both)
        return fr.Outputs(
            server=FedLoraState(params, server.base, server.fixed, step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name="fedlora")


def beside(fixed: Mapping[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return all factors."""
    return {**fixed, **factors}
