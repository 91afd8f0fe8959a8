"""SCAFFOLD: stochastic controlled averaging.

Source: Karimireddy et al., SCAFFOLD: Stochastic controlled averaging for federated learning, ICML 2020,
Algorithm 1. Local steps follow g_i(y) - c_i + c. Afterwards, with K real local steps of size eta:
  option I:  c_i+ = grad f_i(x)                      option II: c_i+ = c_i - c + (x - y_i) / (K eta)
  x <- x + eta_g mean_S (y_i - x)                    c <- c + |S|/N mean_S (c_i+ - c_i)
c is divided by ALL sites N. Means are uniform, as in the paper. A site keeps c_i, committed only where it
was counted, so that c stays the mean of all c_i. Deviations: a site that took no step, or steps of size 0,
keeps its c_i; BatchNorm statistics are averaged, whatever eta_g is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import check_num_sites, check_plain, share_of_all
from fedray.learn.optimizer import sgd
from fedray.rows import beside, expand, row
from fedray.settings import check_rates


@dataclass(frozen=True)
class ScaffoldState:
    """Global parameters x, the server's control variate c, and the number of the next round."""

    params: Any
    control: Any
    round: int = 0


@dataclass(frozen=True)
class NextControl:
    """c_i - c - delta / (K eta): option II of the paper, delta being y_i - x, from the correction c - c_i."""

    lr: float | Callable[[int], float]

    def __call__(self, own: Any, correction: Any, delta: Any, num_steps: int, rng: Any) -> Any:
        """Return the site's next control variate; where no step has moved it, the one it has."""
        eta = self.lr(rng.round) if callable(self.lr) else self.lr
        if num_steps * eta == 0:
            return own
        return tree.sub(tree.scale(delta, -1.0 / (num_steps * eta)), correction)

    def rows(self, group: Any, own: Any, correction: Any, delta: Any, num_steps: Any, rng: Any) -> Any:
        """Return the next control variates of a group."""
        eta = self.lr(row(rng, 0).round) if callable(self.lr) else self.lr
        moves = expand(num_steps, group.k).numbers * eta
        is_moved, share = moves != 0, -1.0 / torch.where(moves == 0, 1.0, moves)

        def next_one(mine: Any, fix: Any, moved: Any) -> Any:
            found = (moved * beside(share, moved)).sub_(fix)
            return found if bool(is_moved.all()) else torch.where(beside(is_moved, found).bool(), found, mine)

        return tree.map(next_one, *(expand(value, group.k) for value in (own, correction, delta)))


def scaffold(local: Any, num_sites: int, server_lr: float = 1.0, option: str = "II") -> fr.Algorithm:
    """Correct the drift of local steps with control variates.

    `local` takes plain SGD steps and says its `lr`; option I needs its `gradient(params, data)`, of all rows.
    Raises ValueError on another option, where option I has no gradient, or steps are not plain SGD. A run
    with another number of sites than `num_sites`, which are all, not those of a round, is refused.
    """
    check_plain(local, "scaffold")
    check_num_sites(num_sites, "scaffold")
    check_rates("scaffold", server_lr=server_lr)
    if option not in ("I", "II") or (option == "I" and not hasattr(local, "gradient")):
        raise ValueError(f"scaffold: option={option!r}: choose 'II', or 'I' where local has gradient()")
    optimizer = sgd(server_lr)

    def init(params: Any) -> ScaffoldState:
        return ScaffoldState(params, tree.zeros_like(params))

    def init_site(server: ScaffoldState) -> Any:
        return tree.zeros_like(server.params)

    def round(server: Any, site: Any) -> fr.Outputs:
        x, c = fr.broadcast(server.params), fr.broadcast(server.control)
        correction = c - site.state
        update = fr.map(local, x, site.data, site.rng, correction=correction)
        if option == "I":
            control = fr.map(local.gradient, x, site.data)
        else:
            told = (site.state, correction, update.delta, update.num_steps, site.rng)
            control = fr.map(NextControl(local.lr), *told)
        delta, drift = fr.mean(update.delta), fr.mean(control - site.state, name="drift")
        step = fr.apply(optimizer.step, server.params, {}, delta, server.round)
        share = fr.apply(share_of_all, fr.count(site), num_sites)
        return fr.Outputs(
            server=ScaffoldState(step.params, server.control + share * drift, server.round + 1),
            site=control,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, init_site, name="scaffold", num_sites=num_sites)
