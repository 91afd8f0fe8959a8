"""Split learning (SplitNN): the first layers of a model run at the site, the others at the server, and the
sites take turns.

Source: Gupta and Raskar, Distributed learning of deep neural network over multiple agents, Journal of Network
and Computer Applications 2018, Algorithms 1 and 2: a site passes a batch through its layers and sends the
activations at the cut and the labels; the server passes them through its own layers, steps these, and returns
the gradient at the cut, with which the site steps its layers. The next site goes on with these layers: it
gets them through the server (the paper's centralised mode). Since one batch follows the other, the outcome is
that of training the whole model on the same batches in the same order. The sites keep nothing.
The schedule decides whose turn it is: `synchronous(cohort=1, sampling="cyclic")`, or "shuffled".
What leaves: the activations and the labels of every batch, and the site's layers after its turn, each
visible to the server. Activations of an early cut can be turned back into inputs, all the more by who has
the layers that made them: this saves work at a site, and is no protection of its rows from the server.
Deviations: plain gradient steps; a turn is `steps` batches, one by default, each an exchange of its own.
Where labels may not leave, Vepakomma's U-shaped form is needed, which is not here.
Not vectorised: a stage is one pass of one batch, and one site is asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.errors import ScheduleError
from fedray.learn import halves as cutting
from fedray.learn import parts
from fedray.learn.batches import nth_batch, training_rows
from fedray.learn.schedules import at
from fedray.rows import one_thread
from fedray.settings import check_rates, check_whole

Rate = float | Callable[[int], float]
DISCLOSES = (
    "hidden is what a site's rows give at the cut, row by row: inputs can be made out from it.",
    "front is the site's layers after its turn, which the next site gets.",
)


@dataclass(frozen=True)
class Sent:
    """What a site sends of a batch: one row a record at the cut, and the labels."""

    hidden: Tensor
    label: Tensor


@dataclass(frozen=True)
class Onward:
    """Pass a batch of a site through the front."""

    front: cutting.Forward
    batch_size: int | None
    number: int

    def __call__(self, params: Any, data: Any, rng: Any) -> Sent:
        """Return the activations and the labels of batch `number` of the site's turn."""
        batch = nth_batch(training_rows(data), self.batch_size, self.number, rng)
        return Sent(cutting.passed(self.front, params, batch), batch["y"])


@dataclass(frozen=True)
class Homeward:
    """Step the front along the gradient that came back for a batch."""

    front: cutting.Forward
    lr: Rate
    batch_size: int | None
    number: int

    def __call__(self, params: Any, data: Any, rng: Any, gradient: Tensor) -> Any:
        """Return the front after batch `number` of the site's turn."""
        batch = nth_batch(training_rows(data), self.batch_size, self.number, rng)
        if not len(gradient):
            return tree.clone(params)
        pulled = cutting.pulled(self.front, params, batch, gradient)
        return cutting.stepped(params, pulled, at(self.lr, rng.round))


@dataclass(frozen=True)
class Stepped:
    """The server's half after a batch, what goes back to each site, and the mean loss of the batch."""

    params: Any
    gradients: dict[str, Tensor]
    loss: float


@dataclass(frozen=True)
class InTurn:
    """Step the back on the batch of the one site whose turn it is."""

    back: cutting.Loss
    lr: Rate

    def __call__(
        self, params: Any, hidden: Mapping[str, Tensor], label: Mapping[str, Tensor], round: int
    ) -> Stepped:
        """Return the step. Raises ScheduleError where several sites were asked at once."""
        site = only(hidden, "split")
        if not len(hidden[site]):
            return Stepped(params, {site: torch.zeros_like(hidden[site])}, 0.0)
        with one_thread():
            found = cutting.returned(self.back, params, hidden[site], label[site])
            moved = cutting.stepped(params, found.gradient, at(self.lr, round))
        return Stepped(moved, {site: found.entry}, found.loss)


def only(told: Mapping[str, Any], name: str) -> str:
    """Return the one site of a round. Raises ScheduleError where there are several."""
    if len(told) != 1:
        raise ScheduleError(
            f"{name}: the sites take turns, and {len(told)} were asked at once: "
            'use synchronous(cohort=1, sampling="cyclic") or sampling="shuffled"'
        )
    return next(iter(told))


def of_one(told: Mapping[str, Any]) -> Any:
    """Return the layers that the one site of the round sent."""
    return told[only(told, "split")]


def mean_of(*losses: float) -> dict[str, float]:
    """Return the mean loss of a turn's batches, each before its step."""
    return {"loss": sum(losses) / len(losses)}


def numbered(name: str, number: int, steps: int) -> str:
    """Return a name for each of several steps of a round; of one step the name itself."""
    return name if steps == 1 else f"{name}.{number}"


def check(steps: int, batch_size: int | None, lr: Rate, name: str) -> None:
    """Raise ValueError where there is no step, no row in a batch, or no rate."""
    check_whole(name, steps=steps)
    check_whole(name, or_none=True, batch_size=batch_size)
    check_rates(name, lr=lr)


def starting(part: parts.Part, name: str) -> Callable[[Any], FedAvgState]:
    """Return an `init` that takes the whole model, and refuses one that does not have both halves."""

    def init(params: Any) -> FedAvgState:
        part.check(params, name)
        return FedAvgState(tree.flatten(params), {})

    return init


def following(server: Any, front: Any, back: Any) -> FedAvgState:
    """Return the server's next state: the whole model with both halves as they are now."""
    params = fr.apply(parts.put, server.params, fr.apply(parts.join, front, back))
    return FedAvgState(params, {}, server.round + 1)


def split(
    model: Any, cut: int | None = 1, lr: Rate = 0.1, batch_size: int | None = None, steps: int = 1
) -> fr.Algorithm:
    """Train a model whose first `cut` layers run at the site whose turn it is.

    `model` is a sequence of layers (`fr.learn.mlp`), or `fr.learn.Halves` of one's own. The first parameters
    are those of the whole model. `steps` batches make a turn; one is the paper's exchange.
    Raises ValueError where the model cannot be cut there.
    """
    check(steps, batch_size, lr, "split")
    halves = cutting.cut(model, cut)
    part = parts.Part(halves.words)

    def round(server: Any, site: Any) -> fr.Outputs:
        front, back = fr.broadcast(fr.apply(part, server.params)), fr.apply(part.rest, server.params)
        losses = []
        for number in range(steps):
            sent = fr.map(Onward(halves.front, batch_size, number), front, site.data, site.rng)
            hidden = fr.gather(sent.hidden, name=numbered("hidden", number, steps))
            label = fr.gather(sent.label, name=numbered("label", number, steps))
            step = fr.apply(InTurn(halves.back, lr), back, hidden, label, server.round)
            home = Homeward(halves.front, lr, batch_size, number)
            front = fr.map(home, front, site.data, site.rng, fr.scatter(step.gradients))
            back, losses = step.params, [*losses, step.loss]
        last = fr.apply(of_one, fr.gather(front, name="front"))
        return fr.Outputs(server=following(server, last, back), metrics=fr.apply(mean_of, *losses))

    return fr.Algorithm(starting(part, "split"), round, name="split", note="\n".join(DISCLOSES))
