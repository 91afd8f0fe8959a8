"""Vertical towers: a network at each site on its own columns, and a head at the server on what they give.

Source: Vepakomma, Gupta, Swedish and Raskar, Split learning for health: Distributed deep learning without
sharing raw patient data, 2018, the configuration for vertically partitioned data; how parts are merged:
Ceballos et al., SplitNN-driven vertical partitioning, 2020. A round is one step: sites pass the same records
through their towers; the server merges what comes (side by side in the order of site ids, or as a sum), takes
the loss with the labels of the one site that holds them, steps the head, and returns the gradient; each site
steps its tower. That is a gradient step on the whole network. A site keeps its tower, the server the head.
What is seen: the server sees the labels, and with merge="concat" every site's `hidden` of every record, which
can tell much about its columns; merge="sum" lets only the sum leave, as secure sums need, and loses nothing
where the head begins with a linear layer. The gradient that sites receive tells them labels: of two records
it points in opposite directions where labels differ. See docs/vertical.md.
Deviation: plain gradient steps. Not vectorised: towers differ in shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.algorithms.aligned import Labels, Records, evaluating, labels_of
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.split import Rate
from fedray.learn import halves as cutting
from fedray.learn.schedules import at
from fedray.rows import one_thread
from fedray.settings import check_rates, check_whole
from fedray.tree import Flat

MERGES = ("concat", "sum")
DISCLOSES = (
    "hidden is what a site's columns give for each record: its columns can be made out from it.",
    "to every site: the gradient of each record, whose direction tells its label.",
)


@dataclass(frozen=True)
class Tower:
    """A site's own network: `make(data, rng)` gives its first parameters, `forward(params, batch)` one row of
    numbers a record.
    """

    make: Callable[[Any, Any], Mapping[str, Tensor]]
    forward: cutting.Forward

    def own(self, kept: Flat | None, data: Any, rng: Any) -> Flat:
        """Return the parameters that the site keeps, or its first ones."""
        return tree.flatten(self.make(data, rng)) if kept is None else kept


@dataclass(frozen=True)
class Upward:
    """Pass a round's records through a tower."""

    tower: Tower
    records: Records

    def __call__(self, params: Flat, data: Any, rng: Any) -> Tensor:
        """Return one row of numbers a record."""
        return cutting.passed(self.tower.forward, params, self.records(data, rng))


@dataclass(frozen=True)
class Downward:
    """Step a tower along the gradient that came back."""

    tower: Tower
    lr: Rate
    records: Records

    def __call__(self, params: Flat, data: Any, rng: Any, gradient: Tensor) -> Flat:
        """Return the tower's parameters after the step."""
        pulled = cutting.pulled(self.tower.forward, params, self.records(data, rng), gradient)
        return cutting.stepped(params, pulled, at(self.lr, rng.round))


def merged(hidden: Any) -> Tensor:
    """Return what all towers gave as one table: a sum as it is, several side by side in the order of ids."""
    if isinstance(hidden, Tensor):
        return hidden
    return torch.cat([torch.as_tensor(hidden[site]).flatten(1) for site in sorted(hidden)], dim=1)


def parted(gradient: Tensor, hidden: Any) -> Any:
    """Return what goes back: the same to all where a sum came, else to each site its columns."""
    if isinstance(hidden, Tensor):
        return gradient
    widths = [hidden[site].flatten(1).shape[1] for site in sorted(hidden)]
    pieces = zip(sorted(hidden), gradient.split(widths, dim=1), strict=True)
    return {site: piece.reshape(hidden[site].shape).clone() for site, piece in pieces}


@dataclass(frozen=True)
class Headed:
    """The head after a step, what goes back to the sites, and the loss before the step."""

    params: Flat
    gradients: Any
    loss: float


@dataclass(frozen=True)
class StepHead:
    """Step the head on the merged table."""

    loss: cutting.Loss
    lr: Rate

    def __call__(self, params: Flat, hidden: Any, told: Any, round: int) -> Headed:
        """Return the step."""
        with one_thread():
            found = cutting.returned(self.loss, params, merged(hidden), labels_of(told))
            moved = cutting.stepped(params, found.gradient, at(self.lr, round))
        return Headed(moved, parted(found.entry, hidden), found.loss)


@dataclass(frozen=True)
class OfSplit:
    """Pass a split's rows through a tower."""

    tower: Tower
    split: str

    def __call__(self, params: Flat, data: Any) -> Tensor:
        """Return one row of numbers a row."""
        return cutting.passed(self.tower.forward, params, data.view(self.split))


@dataclass(frozen=True)
class Predict:
    """Pass the merged table through a head that can predict."""

    head: Any

    def __call__(self, params: Flat, hidden: Any) -> Tensor:
        """Return the outputs."""
        with one_thread():
            found: Tensor = self.head.predict(params, {"x": merged(hidden)})
        return found


def _init(params: Any) -> FedAvgState:
    return FedAvgState(tree.flatten(params), {})


def _none(server: Any) -> None:
    return None


def vertical_towers(
    tower: Tower, head: Any, lr: Rate = 0.1, batch_size: int | None = None, merge: str = "concat"
) -> fr.Algorithm:
    """Train a network at each site on its own columns, and a head at the server above them.

    The head is a model, or a function loss(params, batch) of one's own; its batch has `x`, the merged table,
    and `y`. The first parameters are the head's. Only a model's predictions can be evaluated.
    Raises ValueError on another `merge`.
    """
    if merge not in MERGES:
        raise ValueError(f"vertical_towers: merge={merge!r}: choose one of {', '.join(MERGES)}")
    check_rates("vertical_towers", lr=lr)
    records, reduce = Records(batch_size), fr.gather if merge == "concat" else fr.sum
    send = fr.scatter if merge == "concat" else fr.broadcast
    loss = head.loss if hasattr(head, "loss") else head

    def round(server: Any, site: Any) -> fr.Outputs:
        params = fr.map(tower.own, site.state, site.data, site.stream("tower"))
        hidden = reduce(fr.map(Upward(tower, records), params, site.data, site.rng), name="hidden")
        label = fr.gather(fr.map(Labels(records), site.data, site.rng), name="label")
        step = fr.apply(StepHead(loss, lr), server.params, hidden, label, server.round)
        down = Downward(tower, lr, records)
        return fr.Outputs(
            server=FedAvgState(step.params, {}, server.round + 1),
            site=fr.map(down, params, site.data, site.rng, send(step.gradients)),
            metrics={"loss": step.loss},
        )

    def outputs(params: Any, site: Any, split: str) -> Any:
        own = fr.map(tower.own, site.state, site.data, site.stream("tower"))
        hidden = reduce(fr.map(OfSplit(tower, split), own, site.data), name="split_hidden")
        return fr.broadcast(fr.apply(Predict(head), params, hidden))

    evaluate = evaluating("vertical_towers", head.task, outputs) if hasattr(head, "predict") else None
    return fr.Algorithm(
        _init, round, _none, "vertical_towers", evaluate=evaluate, needs_all=True, note="\n".join(DISCLOSES)
    )


@dataclass(frozen=True)
class Layers:
    """Fully connected layers on however many columns a site has, with ReLU between them."""

    widths: tuple[int, ...]

    def make(self, data: Any, rng: Any) -> dict[str, Tensor]:
        """Draw a site's first parameters as torch does: U(-b, b) with b = 1 / sqrt(inputs of the layer)."""
        generator, made, inputs = rng.generator(), {}, data["x"].shape[1:].numel()
        for place, width in enumerate(self.widths):
            bound = 1 / math.sqrt(inputs) if inputs else 0.0
            for name, shape in (("weight", (width, inputs)), ("bias", (width,))):
                made[f"{place}.{name}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            inputs = width
        return made

    def forward(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return one row of numbers a record."""
        found = batch["x"].flatten(1)
        for place in range(len(self.widths)):
            weight = params[f"{place}.weight"]
            found = F.relu(found) if place else found.to(weight.dtype)
            found = F.linear(found, weight, params[f"{place}.bias"])
        return found


def mlp_tower(hidden: Sequence[int] = (), width: int = 8) -> Tower:
    """Return a tower of fully connected layers with ReLU between them."""
    check_whole("mlp_tower", width=width, **{f"hidden[{place}]": each for place, each in enumerate(hidden)})
    layers = Layers((*hidden, width))
    return Tower(layers.make, layers.forward)
