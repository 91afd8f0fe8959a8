"""How many bytes does a round send to and from a host, for a model with a backbone of 10 MB?

    python experiments/frozen_backbone/bytes_a_round.py [--figure docs/images/adapters.svg]

Eight hosts with one site each, in one process, five rounds of one local step. Bytes are those that the run
counts (`bytes_down`, `site_bytes`), over the number of hosts. They do not depend on the machine. The last
line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fedray as fr
from fedray import tree
from fedray.data.site import SiteData

HOSTS, ROUNDS, FEATURES, RANK = 8, 5, 24, 4
WIDTHS = (FEATURES, 1024, 1024, 1024, 512)
ADAPTED = ["2", "4", "6"]


def model(is_frozen: bool) -> Any:
    """Return a network whose layers but the last are the backbone."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs).requires_grad_(not is_frozen), nn.ReLU()]
    return fr.learn.from_module(nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 1)), task="binary")


def hospitals() -> Mapping[str, SiteData]:
    """Return sites of 16 rows of noise: what is measured does not depend on them."""
    found = {}
    for site in range(HOSTS):
        x = torch.randn(16, FEATURES, generator=torch.Generator().manual_seed(site))
        found[f"h{site}"] = SiteData({"x": x, "y": (x[:, 0] > 0).float()})
    return found


def runs() -> dict[str, tuple[Any, Any, Sequence[Any]]]:
    """Return (algorithm, initial parameters, passes) of each row of the table."""
    whole, frozen = model(is_frozen=False), model(is_frozen=True)
    all_of_it, head = (fr.learn.sgd(each, lr=0.01, steps=1) for each in (whole, frozen))
    adapted = {
        f"FedLoRA, rank {RANK}, {variant}": fr.algorithms.fedlora(all_of_it, ADAPTED, RANK, variant=variant)
        for variant in ("stacked", "naive", "ffa")
    }
    both = fr.passes.bidirectional(fr.passes.ef21(0.01), fr.passes.ef21_broadcast(0.01))
    return {
        "everything trains and travels": (fr.algorithms.fedavg(all_of_it), whole.init(0), ()),
        "the same, ef21 and ef21_broadcast, 1%": (fr.algorithms.fedavg(all_of_it), whole.init(0), (both,)),
        **{name: (algorithm, whole.init(0), ()) for name, algorithm in adapted.items()},
        "frozen backbone, the head trains": (fr.algorithms.fedavg(head), frozen.init(0), ()),
    }


def measured(algorithm: Any, init: Any, passes: Sequence[Any]) -> dict[str, list[int]]:
    """Return the bytes down and up of a host in each round."""
    with fr.simulate(hospitals(), packs=HOSTS) as federation:
        result = fr.fit(algorithm, federation, init=init, rounds=ROUNDS, passes=passes)
    return {
        "down": [record.bytes_down // HOSTS for record in result.metrics],
        "up": [(record.site_bytes or 0) // HOSTS for record in result.metrics],
    }


def draw(found: Mapping[str, Mapping[str, Sequence[int]]], path: Path) -> None:
    """Draw what a host receives and sends, round by round."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "fedray"  # the same file each time
    figure = Figure(figsize=(9, 3.8))
    axes = figure.subplots(1, 2, sharey=True)
    for side, way in zip(axes, ("down", "up"), strict=True):
        for name, bytes_of in found.items():
            side.plot(range(1, ROUNDS + 1), bytes_of[way], marker="o", markersize=3, label=name)
        side.set(yscale="log", xlabel="round", title=f"{way} a round and host")
        side.set_xticks(range(1, ROUNDS + 1))
        side.grid(alpha=0.3)
    axes[0].set_ylabel("bytes")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=8)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the table, write the figure where one is asked for, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--figure", type=Path)
    figure = parser.parse_args().figure
    backbone = tree.nbytes(model(is_frozen=False).init(0))
    print(f"torch {torch.__version__}; {HOSTS} hosts; a model of {backbone:,} B; seed 0")
    print(f"{'':<40}{'down, round 1':>15}{'down, round 5':>15}{'up a round':>14}")
    found = {}
    for name, run in runs().items():
        found[name] = one = measured(*run)
        print(f"{name:<40}{one['down'][0]:>15,}{one['down'][-1]:>15,}{one['up'][-1]:>14,}", flush=True)
    if figure is not None:
        draw(found, figure)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
