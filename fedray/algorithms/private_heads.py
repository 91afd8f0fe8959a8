"""Private heads: sites with label spaces of their own share a trunk; nobody learns what another site
predicts.

Source: Heyndrickx et al., MELLODDY: Cross-pharma federated learning at unprecedented scale unlocks benefits
in QSAR without compromising proprietary information, J. Chem. Inf. Model. 2024: a common trunk, one head a
partner with its own tasks, a loss over the labels that are there. It is FedPer (fedper.py) with heads of
unequal shape: the server knows the trunk alone, and each site makes its head from its own labels when it is
first asked. Only the trunk travels, both ways. Deviation: the server averages deltas of trunks, by rows. Not
vectorised: heads differ in shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer, sgd

HEAD = parts.Part(("head",))


@dataclass(frozen=True)
class WholeModel:
    """The trunk with the site's head, which is made where there is none yet."""

    make_head: Callable[[Any, Any], Mapping[str, Any]]

    def __call__(self, trunk: Any, head: Any, data: Any, rng: Any) -> Any:
        """Return all parameters of a site, the head's leaves under `head`."""
        made = parts.prefixed(self.make_head(data, rng), "head") if head is None else head
        return parts.join(trunk, made)


def moved_head(whole: Any, delta: Any) -> Any:
    """Return the head after training."""
    return HEAD(tree.add(whole, delta))


def trunk_of(delta: Any) -> Any:
    """Return the trunk's part: what may leave."""
    return HEAD.rest(delta)


def private_heads(
    local: Any,
    make_head: Callable[[Any, Any], Mapping[str, Any]],
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Average the trunk of models whose heads, of any shape, stay at the sites.

    `make_head(data, rng)` gives a site's first head, from its own data; the loss of `local` finds its tensors
    under `head.<name>`. The first parameters are those of the trunk.
    """
    optimizer = optimizer or sgd(1.0)
    whole = WholeModel(make_head)

    def init(params: Any) -> FedAvgState:
        params = HEAD.keep_free(params, "private_heads")
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        trunk = fr.broadcast(server.params)
        x = fr.map(whole, trunk, site.state, site.data, site.stream("head"))
        update = fr.map(local, x, site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(fr.map(trunk_of, update.delta), weight=weight, name="delta")
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            site=fr.map(moved_head, x, update.delta),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    def own(params: Any, site: Any) -> Any:
        return fr.map(whole, params, site.state, site.data, site.stream("head"))

    return fr.Algorithm(init, round, lambda server: None, "private_heads", own)
