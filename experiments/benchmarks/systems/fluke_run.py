"""fluke in its one process on the CPU: FedAVG, FastDataLoader over tensors in memory, nothing evaluated.

fluke shuffles with its own seed and samples cohorts itself, so its learning check compares the metric. The
loss is a function of our own: its configurations by name know only losses over two logits. Clients forget
their model after a round (`persistency=False`), which is fluke's setting for stateless algorithms.
torchvision is replaced by empty modules: the published build of this release does not import beside a torch
for the CPU, and nothing of it is used here.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import learning
import torch
import workloads
from systems import reporting

TORCHVISION = {"": (), ".models": ("resnet18", "resnet34", "resnet50", "VGG16_Weights", "vgg16"),
               ".datasets": ("VisionDataset", "ImageFolder"), ".transforms": ("Lambda", "ToTensor"),
               ".datasets.utils": ("download_and_extract_archive",)}


def stand_in_for_torchvision() -> None:
    """Put empty modules in torchvision's place."""
    for suffix, names in TORCHVISION.items():
        module = ModuleType(f"torchvision{suffix}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        for name in names:
            setattr(module, name, type(name, (), {}))
        sys.modules[module.__name__] = module
        parent, _, own = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def settings(data: workloads.Data) -> dict[str, Any]:
    """Return fluke's hyper-parameters."""
    loss = learning.loss_of(data.workload)
    client = {"batch_size": workloads.BATCH_SIZE, "local_epochs": 1, "loss": lambda: loss,
              "persistency": False, "optimizer": {"name": "SGD", "lr": workloads.LEARNING_RATE},
              "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1}}
    return {"client": client, "server": {"weighted": True, "lr": 1.0}, "model": learning.started(data)}


def main() -> None:
    """Train and save."""
    path, report, out = reporting.start("fluke-fl")
    stand_in_for_torchvision()
    from fluke import FlukeENV
    from fluke.algorithms.fedavg import FedAVG
    from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
    from fluke.utils import FederationObserver

    class Lines(FederationObserver):
        """Tell the end of each round."""

        def end_round(self, round: int) -> None:
            """Tell a round; fluke counts from 1."""
            report.round(round - 1)
            if round == report.rounds:  # its closing evaluation of every client is left out
                reporting.save(out, federation.server.model.state_dict())

    data = workloads.read(path)
    workload = data.workload
    FlukeENV().set_seed(0)
    FlukeENV().set_eval_cfg(server=False, locals=False, pre_fit=False, post_fit=False)
    num_labels = 2 if workload.metric == "auroc" else 10
    loaders = [FastDataLoader(*map(torch.from_numpy, data.site(index)), num_labels=num_labels, shuffle=True,
                              batch_size=workloads.BATCH_SIZE, skip_singleton=False)
               for index in range(workload.num_sites)]
    sites = DummyDataContainer(loaders, [None] * len(loaders), None, num_classes=num_labels)
    federation = FedAVG(workload.num_sites, DataSplitter(sites), settings(data))
    federation.set_callbacks([Lines()])
    report.begin()
    federation.run(report.rounds, workload.cohort / workload.num_sites)
