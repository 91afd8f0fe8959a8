"""What does the interpreter cost: an empty round of 1,000 sites, and one more node over a group of sites?

    python experiments/benchmarks/interpreter.py [--sites 1000] [--nodes 200] [--rounds 40]

In process, one thread, CPU time of rounds after the second: once a plan that only returns what it received,
once the same with `--nodes` further nodes, each with a twin that returns its argument. The difference over
nodes and groups is the cost of a node. Bounds of the design: 2 ms for the empty round, 1 us for a node. The
last line is JSON.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from gpu import Clock
from peers import machine
from systems.engine_run import Rows, State

import fedray as fr
from fedray.core.trace import Algorithm
from fedray.rows import expand, rows_of

GROUP = 256  # sites of a group


def echo(params: Any, data: Any, rng: Any) -> Any:
    """Return the received parameters."""
    return params["w"]


@rows_of(echo)
def echo_rows(group: Any, params: Any, data: Any, rng: Any) -> Any:
    """Return the received parameters for each site."""
    return expand(params, group.k)["w"]


def passed(value: Any) -> Any:
    """Return the argument."""
    return value


@rows_of(passed)
def passed_rows(group: Any, value: Any) -> Any:
    """Return the argument of each site."""
    return value.value


def kept(params: Any, mean: Any) -> Any:
    """Take the mean as the new parameters."""
    return {"w": mean}


def algorithm(nodes: int) -> Algorithm:
    """Return a round of that many further nodes."""

    def round(server: Any, site: Any) -> fr.Outputs:
        value = fr.map(echo, fr.broadcast(server.params), site.data, site.rng)
        for _ in range(nodes):
            value = fr.map(passed, value)
        return fr.Outputs(server=State(fr.apply(kept, server.params, fr.mean(value, name="w"))))

    return Algorithm(State, round, name=f"{nodes} nodes")


def measure(nodes: int, sites: int, rounds: int) -> float:
    """Return the CPU seconds of a round."""
    clock = Clock()
    with fr.simulate({f"site{index:05d}": Rows() for index in range(sites)}, group_size=GROUP) as federation:
        fr.fit(algorithm(nodes), federation, init={"w": torch.zeros(8)}, rounds=rounds, tracker=clock)
    return statistics.median(clock.seconds("cpu"))


def main() -> int:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [[measure(nodes, given.sites, given.rounds) for nodes in (0, given.nodes)] for _ in range(5)]
    groups = -(-given.sites // GROUP)
    empty = statistics.median(low for low, _ in pairs)
    node = statistics.median((high - low) / given.nodes / groups for low, high in pairs)
    told = {"empty_round_ms": round(empty * 1e3, 2), "node_us": round(node * 1e6, 2), "sites": given.sites,
            "groups": groups, "nodes": given.nodes, "rounds": given.rounds, "machine": machine()}
    out = Path(__file__).resolve().parent / "results" / "interpreter.json"
    out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
