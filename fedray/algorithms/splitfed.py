"""SplitFed: split learning with all sites at once, whose front layers are averaged as in FedAvg.

Source: Thapa, Arachchige, Camtepe and Sun, SplitFed: When federated learning meets split learning, AAAI 2022,
Algorithms 1 and 2. Every site k passes batches through its copy of the front; the server passes what comes
through the back and returns the gradient at the cut. After the round the fronts are averaged by rows,
sum_k n_k / n, by what the paper calls the fed server. The back differs between the variants:
  V1: a copy a site, all stepped side by side, averaged by rows after the round. The figures are FedAvg's.
  V2: one back, which the sites' batches step one after the other, in an order drawn anew for each round.
The sites keep nothing. What leaves: activations and labels of every batch, visible to the server; the fronts
leave as a sum. Here one server plays main and fed server: where only sums of fronts reach it (secure sums) it
sees no site's front, and still sees the activations: no protection of a site's rows from it (see split.py).
V1 also shows it how many rows each site has.
Deviations: plain gradient steps; a site takes `steps` batches a round, one by default, where V2 walks through
the sites once for every step (with one step that is the paper's order); deltas are averaged, which for
weights that sum to one is the same; a site without rows sends none and counts nothing.
Not vectorised: a stage is one pass of one batch, and the server takes the sites one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray.algorithms.scaling import num_rows_of
from fedray.algorithms.split import (
    DISCLOSES,
    Homeward,
    Onward,
    Rate,
    check,
    following,
    mean_of,
    numbered,
    starting,
)
from fedray.learn import halves as cutting
from fedray.learn import parts
from fedray.learn.schedules import at
from fedray.rows import one_thread
from fedray.tree import Flat

VARIANTS = ("V1", "V2")


@dataclass(frozen=True)
class Backs:
    """The server's half after a step: one for all sites (V2), or what each site's batches made of it (V1)."""

    params: Any
    of_site: dict[str, Any]
    gradients: dict[str, Tensor]
    loss: float


@dataclass(frozen=True)
class AllAtOnce:
    """Step the back on a batch of every site: a copy each, or one after the other in a drawn order."""

    back: cutting.Loss
    lr: Rate
    is_shared: bool

    def __call__(
        self,
        params: Any,
        of_site: Mapping[str, Any],
        hidden: Mapping[str, Tensor],
        label: Mapping[str, Tensor],
        round: int,
        order: Any,
    ) -> Backs:
        """Return the step. Sites without rows go by."""
        copies, gradients, total = dict(of_site), {}, 0.0
        with one_thread():
            for site in self._walk(sorted(hidden), order):
                start = params if self.is_shared else copies.get(site, params)
                moved, gradients[site] = start, torch.zeros_like(hidden[site])
                if len(hidden[site]):
                    found = cutting.returned(self.back, start, hidden[site], label[site])
                    moved = cutting.stepped(start, found.gradient, at(self.lr, round))
                    gradients[site], total = found.entry, total + found.loss * len(hidden[site])
                if self.is_shared:
                    params = moved
                else:
                    copies[site] = moved
        rows = sum(len(sent) for sent in hidden.values())
        return Backs(params, copies, gradients, total / rows if rows else 0.0)

    def _walk(self, sites: Sequence[str], order: Any) -> Sequence[str]:
        if not self.is_shared:
            return sites
        places = torch.randperm(len(sites), generator=order.generator()).tolist()
        return [sites[place] for place in places]


def averaged(start: Flat, of_site: Mapping[str, Flat], rows: Mapping[str, int]) -> Flat:
    """Return the mean of the copies that took part to the end, weighted by rows; none changes nothing."""
    total = sum(rows[site] for site in of_site if site in rows)
    if not total:
        return start
    found = start.buffer.clone()
    for site in sorted(of_site):
        if site in rows:
            found += (rows[site] / total) * (of_site[site].buffer - start.buffer)
    return Flat(found, start.schema)


def rows_beside(front: Any, data: Any) -> int:
    """Return a site's rows, once it has its layers: so that both leave from the same sites."""
    return num_rows_of(data)


def splitfed(
    model: Any, cut: int | None = 1, lr: Rate = 0.1, batch_size: int | None = None, steps: int = 1,
    variant: str = "V1",
) -> fr.Algorithm:  # fmt: skip
    """Train a model whose first `cut` layers run at every site at once, and are averaged after the round.

    `model` is a sequence of layers (`fr.learn.mlp`), or `fr.learn.Halves` of one's own. The first parameters
    are those of the whole model.
    Raises ValueError on another variant, or where the model cannot be cut there.
    """
    if variant not in VARIANTS:
        raise ValueError(f"splitfed: variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    check(steps, batch_size, lr, "splitfed")
    halves = cutting.cut(model, cut)
    part = parts.Part(halves.words)
    onto = AllAtOnce(halves.back, lr, is_shared=variant == "V2")

    def round(server: Any, site: Any) -> fr.Outputs:
        start, back = fr.apply(part, server.params), fr.apply(part.rest, server.params)
        front, step, losses = fr.broadcast(start), None, []
        for number in range(steps):
            sent = fr.map(Onward(halves.front, batch_size, number), front, site.data, site.rng)
            hidden = fr.gather(sent.hidden, name=numbered("hidden", number, steps))
            label = fr.gather(sent.label, name=numbered("label", number, steps))
            before = (back, {}) if step is None else (step.params, step.of_site)
            order = site.server.stream(f"order {number}")
            step = fr.apply(onto, *before, hidden, label, server.round, order)
            home = Homeward(halves.front, lr, batch_size, number)
            front = fr.map(home, front, site.data, site.rng, fr.scatter(step.gradients))
            losses = [*losses, step.loss]
        rows = fr.map(rows_beside, front, site.data)
        delta = fr.mean(front - fr.broadcast(start), weight=rows, name="delta")
        if variant == "V1":
            back = fr.apply(averaged, back, step.of_site, fr.gather(rows, name="rows"))
        last = step.params if variant == "V2" else back
        return fr.Outputs(
            server=following(server, start + delta, last), metrics=fr.apply(mean_of, *losses)
        )

    return fr.Algorithm(starting(part, "splitfed"), round, name="splitfed", note="\n".join(DISCLOSES[:1]))
