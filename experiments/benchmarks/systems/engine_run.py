"""A federation that trains nothing: sites return the parameters that they received, 10 MB, on two packs.

The further words are the number of sites and how sums are made (`exact`, `fast`). The driver loads neither
torch nor a model by itself: if torch is in its process, fedray has loaded it; the first parameters are then
tensors, else numpy arrays.
"""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from systems import reporting

import fedray as fr

PACKS, LEAVES, LEAF = 2, 10, 260_000  # 2.6 M float32
SETTLE_S = 2.0  # for processes that still import when all have answered


@dataclass(frozen=True)
class State:
    """The server's parameters."""

    params: Any


@dataclass(frozen=True)
class Rows:
    """Opens a site of one row, where its pack lives."""

    def __call__(self) -> Any:
        """Return the row."""
        import torch

        from fedray.data.site import SiteData

        return SiteData({"x": torch.zeros(1, 1), "y": torch.zeros(1)})


def echo(params: Any, data: Any, rng: Any) -> Any:
    """Return the received parameters as the update of one example."""
    from fedray.learn.update import Update

    return Update(delta=params, num_examples=1, num_steps=0)


def kept(params: Any, delta: Any) -> Any:
    """Take the mean as the new parameters."""
    return delta


def round(server: Any, site: Any) -> fr.Outputs:
    """Send the parameters to each site and take their mean back."""
    update = fr.map(echo, fr.broadcast(server.params), site.data, site.rng)
    delta = fr.mean(update.delta, weight=update.num_examples)
    return fr.Outputs(server=State(fr.apply(kept, server.params, delta)))


def first_parameters(as_tensors: bool) -> dict[str, Any]:
    """Return parameters of the stated size."""
    arrays = {f"leaf{index}": np.full(LEAF, index / 10, dtype=np.float32) for index in range(LEAVES)}
    if not as_tensors:
        return arrays
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def main() -> None:
    """Run, and tell which processes to look at before the first round and whether torch is in the driver."""
    _, report, out = reporting.start("ray", loads_torch=False)
    algorithm = fr.Algorithm(State, round, name="echo")
    sites = {f"site{index:03d}": Rows() for index in range(int(sys.argv[4]))}
    with fr.simulate(sites, runtime="ray", packs=PACKS, placement="actors") as federation:
        federation.hello()
        time.sleep(SETTLE_S)
        report.ask(idle=True, driver=os.getpid(), pids=federation.call("pids"),
                   torch_in_driver="torch" in sys.modules)
        result = fr.fit(algorithm, federation, init=first_parameters(as_tensors="torch" in sys.modules),
                        rounds=report.rounds, fold=sys.argv[5],
                        tracker=reporting.RoundLines(report, asks_at_end=False))
        value = result.params["leaf3"]
        if abs(float(value[-1]) - 0.3) > 1e-6:
            raise RuntimeError("the mean of equal parameters is not what was sent")
        report.say(torch_in_driver_at_end="torch" in sys.modules)
    reporting.save(out, {})
