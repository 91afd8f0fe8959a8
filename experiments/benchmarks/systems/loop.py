"""The loops without a framework: one module is trained site by site and the weighted mean is kept.

`plain` is what the targets are stated against; `lean` does without `torch.optim` and is shown beside it.
"""

import sys

import learning
import torch
import workloads
from systems import reporting

LOCAL = {"plain": learning.train_plain, "lean": learning.train_lean}


def main() -> None:
    """Train a workload with the loop that the fourth word names, and report its rounds."""
    path, report, out = reporting.start()
    kind = sys.argv[4]
    data = workloads.read(path)
    workload, module, train = data.workload, learning.started(data), LOCAL[kind]
    loss = learning.loss_of(workload)
    sites = [tuple(map(torch.from_numpy, data.site(index))) for index in range(workload.num_sites)]
    params = [parameter.data for parameter in module.parameters()]
    server = [value.clone() for value in params]
    report.begin()
    for round in range(report.rounds):
        cohort = workloads.cohort(workload, round)
        rows = int(data.sizes[cohort].sum())
        total = [torch.zeros_like(value) for value in server]
        for site in cohort.tolist():
            torch._foreach_copy_(params, server)
            x, y = sites[site]
            train(module, x, y, learning.batch_order(round, site, len(x)), loss)
            torch._foreach_add_(total, params, alpha=len(x) / rows)
        server = total
        report.round(round)
    torch._foreach_copy_(params, server)
    reporting.save(out, module.state_dict())
