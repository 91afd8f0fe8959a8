"""FedML-style classes: bring a trainer with `train(data, device, args)`, run it as a traced round.

A default aggregation stays a weighted mean, so every pass applies to it. A `ServerAggregator` that overrides
`aggregate` needs each site's model: it becomes a gather, and a policy that hides single sites refuses it.
Every site trains a copy of the trainer as it was given, so that no site sees what another left behind.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.cancellation import stop_if_cancelled
from fedray.learn.update import Update
from fedray.rng import Key


@dataclass(frozen=True)
class Settings:
    """A configuration read as FedML's flat `args`: `args.lr` is the entry `lr`, or that of the first group
    which has one, `local` before all others.
    """

    config: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # copying and pickling ask for such names before there is a config
        groups = [self.config.get("local"), *self.config.values()]
        for found in (self.config, *(group for group in groups if isinstance(group, Mapping))):
            if name in found:
                return found[name]
        raise AttributeError(f"no setting {name!r}: neither the configuration nor a group of it has one")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Settings":
        return self  # read-only, and slow to copy


def settings_of(args: Any) -> Any:
    """Return a configuration as flat settings, anything else as it is."""
    return Settings(args) if isinstance(args, Mapping) else args


class ClientTrainer:
    """What runs at a site. Override `train`; `model` is a torch module, `args` a configuration or anything
    with the settings as attributes.
    """

    def __init__(self, model: Any, args: Any = None) -> None:
        self.model, self.args = model, settings_of(args)

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
        self.model, self.args = model, settings_of(args)

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
            stop_if_cancelled()
            yield self.data["x"][rows], self.data["y"][rows]


def shared(trainer: ClientTrainer) -> dict[str, Tensor]:
    """Return the floating-point parameters: what leaves a site."""
    return {name: value for name, value in trainer.get_model_params().items() if value.is_floating_point()}


def own(trainer: ClientTrainer) -> dict[str, Tensor]:
    """Return copies of the integer buffers (BatchNorm's batch counters): what stays at a site."""
    found = trainer.get_model_params().items()
    return {name: value.detach().clone() for name, value in found if not value.is_floating_point()}


@dataclass(frozen=True)
class Trained:
    """What changed at a site, and the integer buffers that it keeps."""

    update: Update
    own: dict[str, Tensor]


@dataclass(frozen=True)
class Train:
    """Run a trainer at a site. Draws of user code from torch's global generator are seeded."""

    trainer: ClientTrainer
    device: str = "cpu"

    def __call__(self, params: tree.Flat, kept: Mapping[str, Tensor], data: Any, rng: Key) -> Trained:
        """Return what one site learnt, from the received parameters and the buffers that it kept."""
        rows, trainer = data.train, copy.deepcopy(self.trainer)
        given = {name: params[name].clone() for name in params}
        trainer.set_model_params({**given, **{name: kept[name].clone() for name in kept}})
        size = getattr(trainer.args, "batch_size", 32) or rows.num_rows
        batches = Batches(rows, int(size), rng.generator())
        if rows.num_rows:
            with torch.random.fork_rng():
                torch.manual_seed(rng.child("trainer").value)  # noqa: TID251 (user code draws from it)
                trainer.train(batches, self.device, trainer.args)
        delta = tree.sub(tree.flatten(shared(trainer), params.schema), params)
        num_steps = len(batches) if rows.num_rows else 0
        return Trained(Update(delta, rows.num_rows, num_steps), own(trainer))


def weighted_model(params: tree.Flat, update: Update) -> tuple[int, tree.Flat]:
    """Return a site's rows and its model: what a custom `aggregate` takes."""
    return update.num_examples, tree.add(params, update.delta)


@dataclass(frozen=True)
class Combine:
    """Call a custom `aggregate` at the server, sites in the order of their ids."""

    aggregator: ServerAggregator

    def __call__(self, params: tree.Flat, models: Mapping[str, tuple[int, tree.Flat]]) -> tree.Flat:
        """Return the next parameters."""
        found = self.aggregator.aggregate([models[site] for site in sorted(models)])
        return tree.flatten(found, params.schema)


def from_fedml(
    trainer: ClientTrainer, aggregator: ServerAggregator | None = None, device: str = "cpu"
) -> fr.Algorithm:
    """Return the algorithm of a trainer, and of an aggregator that overrides `aggregate`.

    Integer buffers never leave: each site keeps its own.
    """
    is_custom = aggregator is not None and type(aggregator).aggregate is not ServerAggregator.aggregate
    start = own(trainer)

    def round(server: Any, site: Any) -> fr.Outputs:
        params = fr.broadcast(server)
        trained = fr.map(Train(trainer, device), params, site.state if start else {}, site.data, site.rng)
        update, kept = trained.update, trained.own if start else None
        if aggregator is not None and is_custom:
            models = fr.gather(fr.map(weighted_model, params, update), name="update")
            return fr.Outputs(server=fr.apply(Combine(aggregator), server, models), site=kept)
        return fr.Outputs(server=server + fr.mean(update.delta, weight=update.num_examples), site=kept)

    init_site = (lambda server: start) if start else None
    return fr.Algorithm(lambda params: params, round, init_site, name=f"fedml({type(trainer).__name__})")


class Runner:
    """Run a configuration, with its algorithm replaced by a trainer and an aggregator where they are
    given.
    """

    def __init__(
        self, config: Any, trainer: ClientTrainer | None = None, aggregator: ServerAggregator | None = None
    ) -> None:
        self.config, self.trainer, self.aggregator = config, trainer, aggregator

    def run(self) -> Any:
        """Train and return the `Result`. The data are prepared as `fedray run` prepares them."""
        from fedray.config import build
        from fedray.experiment import prepare

        experiment = build(self.config)
        with experiment.federate() as federation:
            experiment = prepare(experiment, federation).experiment
            return fr.fit(
                federation=federation,
                rounds=experiment.rounds,
                passes=experiment.passes,
                schedule=experiment.schedule,
                seed=experiment.seed,
                **self._what(experiment),
            )

    def _what(self, experiment: Any) -> dict[str, Any]:
        """Return what to train: the trainer, or what the configuration says."""
        if self.trainer is not None:
            algorithm = from_fedml(self.trainer, self.aggregator)
            return {"algorithm": algorithm, "init": tree.flatten(shared(self.trainer))}
        training = experiment.training
        return {
            "algorithm": training.algorithm,
            "init": training.init,
            "evaluate": training.evaluate,
            "every": experiment.every,
            "early_stop": experiment.early_stop,
        }
