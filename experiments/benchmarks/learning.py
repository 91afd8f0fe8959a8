"""The torch side of the workloads: modules, losses, batch order, local loops and metrics.

Every system that lets the user write the local loop runs `train_plain`; `train_lean` takes the same steps
without `torch.optim`. Neither uses a DataLoader: slices of tensors are the peers' best case.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import BATCH_SEED_STRIDE, BATCH_SIZE, LEARNING_RATE, Data, Workload

Loss = Callable[[Tensor, Tensor], Tensor]


def module_of(workload: Workload) -> nn.Module:
    """Return the module of a workload; its weights come from the workload's file."""
    if workload.name == "w2":
        return nn.Linear(*reversed(workload.layers[0].shape))
    if workload.name == "w3":
        return nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                             nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10))
    stack: list[nn.Module] = []
    for layer in workload.layers:
        stack += [nn.Linear(layer.shape[1], layer.shape[0]), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


def started(data: Data) -> nn.Module:
    """Return the module with the workload's initial weights."""
    module = module_of(data.workload)
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in data.init.items()})
    return module


def binary_loss(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy on logits of shape (rows, 1)."""
    return F.binary_cross_entropy_with_logits(output.squeeze(1), target)


def loss_of(workload: Workload) -> Loss:
    """Return the loss of a workload."""
    return binary_loss if workload.metric == "auroc" else F.cross_entropy


def batch_order(round: int, site: int, num_rows: int) -> Tensor:
    """Return the order in which a site reads its rows in a round."""
    generator = torch.Generator().manual_seed(round * BATCH_SEED_STRIDE + site)
    return torch.randperm(num_rows, generator=generator)


def batches(x: Tensor, y: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of an epoch: one gather, then slices."""
    return zip(x[order].split(BATCH_SIZE), y[order].split(BATCH_SIZE), strict=True)


def train_plain(module: nn.Module, x: Tensor, y: Tensor, order: Tensor, loss: Loss) -> None:
    """Train a module in place for one epoch with `torch.optim.SGD`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    for x_batch, y_batch in batches(x, y, order):
        optimizer.zero_grad()
        loss(module(x_batch), y_batch).backward()
        optimizer.step()


def train_lean(module: nn.Module, x: Tensor, y: Tensor, order: Tensor, loss: Loss) -> None:
    """Train a module in place for one epoch by `autograd.grad` and steps in place."""
    weights = list(module.parameters())
    values = [weight.detach() for weight in weights]
    for x_batch, y_batch in batches(x, y, order):
        gradients = torch.autograd.grad(loss(module(x_batch), y_batch), weights)
        torch._foreach_add_(values, gradients, alpha=-LEARNING_RATE)


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Return the area under the ROC curve; ties count one half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive = label > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / num_positive / num_negative)


def metric(data: Data, weights: Mapping[str, np.ndarray]) -> float:
    """Return the workload's learning check of these weights: AUROC, accuracy, or training loss."""
    module = module_of(data.workload)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    target = torch.from_numpy(data.y_test)
    with torch.no_grad():
        output = torch.cat([module(rows) for rows in torch.from_numpy(data.x_test).split(2048)])
    if data.workload.metric == "auroc":
        return auroc(output.squeeze(1).double().numpy(), data.y_test)
    if data.workload.metric == "accuracy":
        return float((output.argmax(1) == target).float().mean())
    return float(F.cross_entropy(output, target))
