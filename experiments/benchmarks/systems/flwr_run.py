"""Flower's simulation engine: its Ray backend with two actors, FedAvg, the plain local loop in its ClientApp.

The best case for it: data are read once per actor, tensors are sliced, nothing is evaluated, warnings only
are logged. Flower samples a cohort itself. A round is told from the strategy's hook for a central
evaluation, which does nothing else.
"""

import logging
import os
from functools import lru_cache
from typing import Any

import learning
import torch
import workloads
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from systems import reporting

ACTORS = 2
DATA = "FEDRAY_BENCH_DATA"  # in the environment, which Ray's workers inherit
client = ClientApp()


@lru_cache(maxsize=1)
def opened() -> tuple[workloads.Data, torch.nn.Module]:
    """Load the data once in each actor, and make the one module that is trained there."""
    torch.set_num_threads(1)
    data = workloads.read(os.environ[DATA])
    return data, learning.module_of(data.workload)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the site that this node stands for."""
    data, module = opened()
    site, round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = map(torch.from_numpy, data.site(site))
    loss = learning.loss_of(data.workload)
    learning.train_plain(module, x, y, learning.batch_order(round, site, len(x)), loss)
    content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})}
    return Message(content=RecordDict(content), reply_to=message)


def server_of(data: workloads.Data, report: reporting.Report, out: str) -> ServerApp:
    """Return the server's side."""
    server, workload = ServerApp(), data.workload

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=workload.cohort / workload.num_sites, fraction_evaluate=0.0)

        def told(number: int, arrays: ArrayRecord) -> Any:
            if number:
                report.round(number - 1)
            else:
                report.begin()

        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(learning.started(data).state_dict()),
                                num_rounds=report.rounds, evaluate_fn=told)
        reporting.save(out, result.arrays.to_torch_state_dict())

    return server


def main() -> None:
    """Run the simulation."""
    path, report, out = reporting.start("flwr", "ray")
    os.environ[DATA] = path
    logging.getLogger("flwr").setLevel(logging.WARNING)
    data = workloads.read(path)
    # the app of this module by its importable name: an app of a script would travel by value with each call
    run_simulation(server_app=server_of(data, report, out), client_app=client,
                   num_supernodes=data.workload.num_sites,
                   backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0},
                                   "init_args": {"num_cpus": ACTORS, "include_dashboard": False,
                                                 "address": "local", "log_to_driver": False}})
