"""FedML-style classes: bring a trainer with `train(data, device, args)`, run it as a traced round.

A default aggregation stays a weighted mean, so every pass applies to it. A `ServerAggregator` that overrides
`aggregate` needs each site's model: it becomes a gather, and a policy that hides single sites refuses it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.learn.update import Update
from fedray.rng import Key


class ClientTrainer:
    """What runs at a site. Override `train`; `model` is a torch module, `args` anything with the settings."""

    def __init__(self, model: Any, args: Any = None) -> None:
        self.model, self.args = model, args

    def get_model_params(self) -> Mapping[str, Tensor]:
        """Return the parameters to share."""
        found: Mapping[str, Tensor] = self.model.state_dict()
        return found

    def set_model_params(self, params: Mapping[str, Tensor]) -> None:
        """Take parameters over."""
        self.model.load_state_dict(params)

    def train(self, data: Any, device: Any, args: Any) -> None:
        """Train on `data`, which yields (x, y) batches and has the columns of the site's training rows."""
        raise TypeError(f"{type(self).__name__} must define train(data, device, args)")


class ServerAggregator:
    """What runs at the server. Override `aggregate` only where a weighted mean will not do."""

    def __init__(self, model: Any, args: Any = None) -> None:
        self.model, self.args = model, args

    def aggregate(self, updates: Sequence[tuple[int, Mapping[str, Tensor]]]) -> Mapping[str, Tensor]:
        """Return the next parameters from (number of rows, parameters) of each site."""
        raise TypeError("aggregate() was not overridden; the default is a weighted mean of deltas")


class Batches:
    """A site's training rows as an iterable of (x, y) batches, shuffled by the site's own stream."""

    def __init__(self, data: Any, batch_size: int, generator: torch.Generator) -> None:
        self.data, self.batch_size, self.generator = data, batch_size, generator

    def __len__(self) -> int:
        return int((self.data.num_rows + self.batch_size - 1) // self.batch_size)

    def __getitem__(self, name: str) -> Tensor:
        column: Tensor = self.data[name]
        return column

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self.data.num_rows, generator=self.generator)
        for rows in order.split(self.batch_size):
            yield self.data["x"][rows], self.data["y"][rows]


def shared(trainer: ClientTrainer) -> dict[str, Tensor]:
    """Return the floating-point parameters; integer buffers (batch counters) stay at the site."""
    return {name: value for name, value in trainer.get_model_params().items() if value.is_floating_point()}


@dataclass(frozen=True)
class Train:
    """Run a trainer at a site and return what changed. Draws of user code from torch's global generator are
    seeded.
    """

    trainer: ClientTrainer
    device: str = "cpu"

    def __call__(self, params: tree.Flat, data: Any, rng: Key) -> Update:
        """Return the update of one site."""
        rows, trainer = data.train, self.trainer
        own = {
            name: value for name, value in trainer.get_model_params().items() if not value.is_floating_point()
        }
        trainer.set_model_params({**{name: params[name].clone() for name in params}, **own})
        batches = Batches(rows, int(getattr(trainer.args, "batch_size", 32)), rng.generator())
        if rows.num_rows:
            with torch.random.fork_rng():
                torch.manual_seed(rng.child("trainer").value)  # noqa: TID251 (user code draws from it)
                trainer.train(batches, self.device, trainer.args)
        return Update(
            delta=tree.sub(tree.flatten(shared(trainer), params.schema), params),
            num_examples=rows.num_rows,
            num_steps=len(batches),
            metrics={},
        )


def from_fedml(
    trainer: ClientTrainer, aggregator: ServerAggregator | None = None, device: str = "cpu"
) -> fr.Algorithm:
    """Return the algorithm of a trainer, and of an aggregator that overrides `aggregate`."""
    is_custom = aggregator is not None and type(aggregator).aggregate is not ServerAggregator.aggregate

    def weighted_model(params: tree.Flat, update: Update) -> tuple[int, tree.Flat]:
        return update.num_examples, tree.add(params, update.delta)

    def combine(params: tree.Flat, models: Mapping[str, tuple[int, tree.Flat]]) -> tree.Flat:
        assert aggregator is not None
        return tree.flatten(aggregator.aggregate([models[site] for site in sorted(models)]), params.schema)

    def round(server: Any, site: Any) -> fr.Outputs:
        params = fr.broadcast(server)
        update = fr.map(Train(trainer, device), params, site.data, site.rng)
        if not is_custom:
            return fr.Outputs(server=server + fr.mean(update.delta, weight=update.num_examples))
        return fr.Outputs(
            server=fr.apply(combine, server, fr.gather(fr.map(weighted_model, params, update), name="update"))
        )

    return fr.Algorithm(lambda params: params, round, name=f"fedml({type(trainer).__name__})")


class Runner:
    """Run a configuration, with its algorithm replaced by a trainer and an aggregator where they are
    given.
    """

    def __init__(
        self, config: Any, trainer: ClientTrainer | None = None, aggregator: ServerAggregator | None = None
    ) -> None:
        self.config, self.trainer, self.aggregator = config, trainer, aggregator

    def run(self) -> Any:
        """Train and return the `Result`."""
        from fedray.config import build

        experiment = build(self.config)
        training = experiment.training
        algorithm, init = training.algorithm, training.init
        if self.trainer is not None:
            algorithm = from_fedml(self.trainer, self.aggregator)
            init = tree.flatten(shared(self.trainer))
        with experiment.federate() as federation:
            return fr.fit(
                algorithm,
                federation,
                init=init,
                rounds=experiment.rounds,
                passes=experiment.passes,
                schedule=experiment.schedule,
                seed=experiment.seed,
                evaluate=training.evaluate if self.trainer is None else None,
            )
