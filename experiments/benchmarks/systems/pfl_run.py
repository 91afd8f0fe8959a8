"""pfl in one process: FederatedAveraging over tensors in memory, weighted by rows.

pfl's users hold their batches ready sliced; order and cohorts are set here to those of the plain loop, by a
user data set that iterates in the round's order. With one process pfl trains one model for all users.
It cannot do without an evaluation in its first round; there the rows are counted.
"""

from collections.abc import Iterator
from typing import Any

import learning
import torch
import workloads
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from systems import reporting


class Site(PyTorchTensorDataset):
    """A user whose batches come in the order of the round."""

    def __init__(self, tensors: tuple[torch.Tensor, torch.Tensor], order: torch.Tensor) -> None:
        super().__init__(tensors)
        self.order = order

    def iter(self, batch_size: int | None) -> Iterator[Any]:
        """Return the batches; all rows as they lie where no size is given."""
        return iter([self.raw_data]) if batch_size is None else learning.batches(*self.raw_data, self.order)


def with_loss(module: torch.nn.Module, loss: learning.Loss) -> torch.nn.Module:
    """Give a module the two methods that pfl asks for."""
    module.loss = lambda x, y: loss(module(x), y)
    module.metrics = lambda x, y: {"rows": Weighted(len(x), len(x))}
    return module


class Lines(TrainingProcessCallback):
    """Tell the end of each round."""

    def __init__(self, report: reporting.Report) -> None:
        self.report = report

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Start the clock."""
        self.report.begin()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *,
                                central_iteration: int) -> tuple[bool, Metrics]:
        """Tell a round, and stop after the last: pfl would begin one more, to evaluate only."""
        self.report.round(central_iteration)
        return central_iteration == self.report.rounds - 1, Metrics()


def users(data: workloads.Data, rounds: int) -> FederatedDataset:
    """Return the sites, sampled in the order of the workload's cohorts."""
    sites = [tuple(map(torch.from_numpy, data.site(index))) for index in range(data.workload.num_sites)]
    turns = iter([(round, int(site)) for round in range(rounds)
                  for site in workloads.cohort(data.workload, round)])

    def make(turn: tuple[int, int]) -> Site:
        round, site = turn
        return Site(sites[site], learning.batch_order(round, site, len(sites[site][0])))

    return FederatedDataset(make, lambda: next(turns))


def main() -> None:
    """Train and save."""
    path, report, out = reporting.start("pfl")
    data = workloads.read(path)
    module = with_loss(learning.started(data), learning.loss_of(data.workload))
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD,
                         central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(training_data=users(data, report.rounds), val_data=None,
                               postprocessors=[WeightByDatapoints()])
    settings = NNAlgorithmParams(central_num_iterations=report.rounds, evaluation_frequency=report.rounds + 1,
                                 train_cohort_size=data.workload.cohort, val_cohort_size=0)
    train = NNTrainHyperParams(local_learning_rate=workloads.LEARNING_RATE, local_num_epochs=1,
                               local_batch_size=workloads.BATCH_SIZE)
    FederatedAveraging().run(settings, backend, model, train, NNEvalHyperParams(local_batch_size=None),
                             callbacks=[Lines(report)], send_metrics_to_platform=False)
    reporting.save(out, module.state_dict())
