"""Every algorithm option: two rounds in two Ray actors give the bits of two packs in this process.

Federations are opened once for all options that read the same data, so that an option costs its rounds alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import fedray as fr
from fedray.config import SCHEMAS, build, compose

WORDS = ("experiment=debug", "model=mlp", "data.scale=0.02", "report=none")
MORE = {
    "fedbn": ("model.norm=batch",),
    "fedmatch": ("local.lr=0.01",),
    "private_heads": ("data=assays",),
}
LINKED = {"vertical_logistic", "vertical_towers"}  # rows are linked before: see test_vertical
Open = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def opened(ray_session: None) -> Iterator[Open]:
    """Return a function (option, runtime) that gives the federation of an option's data."""
    with ExitStack() as stack:
        found: dict[tuple[str, str], Any] = {}

        def of(option: str, runtime: str) -> Any:
            key = (option if option in ("pooled", "private_heads") else "", runtime)
            if key not in found:
                placed = {"placement": "actors"} if runtime == "ray" else {}
                packs = 1 if option == "pooled" else 2
                data = experiment(option).data
                found[key] = stack.enter_context(fr.simulate(data, runtime=runtime, packs=packs, **placed))
            return found[key]

        yield of


def experiment(option: str) -> Any:
    return build(compose(*WORDS, f"algorithm={option}", *MORE.get(option, ())))


@pytest.mark.parametrize("option", sorted(SCHEMAS["algorithm"].keys() - LINKED))
def test_two_ray_actors_give_the_bits_of_this_process(option: str, opened: Open) -> None:
    asked = experiment(option)
    both = [
        fr.fit(asked.training.algorithm, opened(option, runtime), init=asked.training.init, rounds=2,
               schedule=asked.schedule, seed=3)
        for runtime in ("ray", "in_process")
    ]  # fmt: skip
    assert both[0].params_sha256 == both[1].params_sha256
    assert [record.hashes for record in both[0].metrics] == [record.hashes for record in both[1].metrics]
    assert both[0].rounds == 2 and not both[0].failures


def test_what_a_schedule_learns_of_sites_is_the_same_on_ray(opened: Open) -> None:
    asked = build(compose(*WORDS, "algorithm=fedavg", "schedule=oort", "schedule.cohort=2"))
    both = [
        fr.fit(asked.training.algorithm, opened("fedavg", runtime), init=asked.training.init, rounds=4,
               schedule=asked.schedule, seed=3)
        for runtime in ("ray", "in_process")
    ]  # fmt: skip
    assert both[0].params_sha256 == both[1].params_sha256
    assert both[0].metrics[-1].hashes["loss_statistic"] == both[1].metrics[-1].hashes["loss_statistic"]
