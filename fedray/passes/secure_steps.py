"""The steps that a secure sum places in a round, whether masks are added or not: agree, write, read, learn.

Functions at the sites have twins; functions at the server are plain. What masks is in `secure_masks.py`.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fedray import coded, rows
from fedray.core.graph import MADE_UP, Label
from fedray.errors import QuorumError
from fedray.passes.secure_words import START_BOUND, START_WEIGHT, Agreed, Read, read, written
from fedray.rows import Column, Group, Ragged, Same, Tagged

HEADROOM = 64.0  # a site's number may exceed the mean's largest so many times before it is cut
WIDER = 16.0  # times wider after a round that has cut a number
NARROWER = 4.0
LEAST_BOUND = 2.0**-8  # where totals are zero: 200 sites of 20 rows still show means of 2e-8
Lane = tuple[str, int, int | None, bool]  # name, place of the value, place of its weight, whether a mean's
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agree:
    """Say by which bounds all sites encode: those given, else what the last total was and room above it."""

    fixed: Mapping[str, float]
    weighted: tuple[str, ...]
    weight_cap: float | None

    def __call__(self, num_asked: int, memory: Any) -> Agreed:
        """Return what the sites are told: from the server's memory, which only totals have entered."""
        known: Mapping[str, Any] = memory or {}
        bounds = {name: tuple(found) for name, found in known.get("bounds", {}).items()}
        start = dict.fromkeys(self.weighted, self.weight_cap or START_WEIGHT)
        learnt = {} if self.weight_cap else known.get("weights", {})
        return Agreed(max(int(num_asked), 1), {**bounds, **self.fixed}, {**start, **learnt})


@dataclass(frozen=True)
class Write:
    """Write the values of a site as words of the ring. What leaves is to be masked, and is treated so."""

    lanes: tuple[Lane, ...]
    guard: str = ""  # as `egress` shows it, where no mask follows
    grants: ClassVar[Label] = Label.MASKED

    def __call__(self, agreed: Agreed, *values: Any) -> Any:
        """Write the words of one site."""
        return coded.alone(self.rows, Same(agreed), *values)

    def rows(self, group: Group, agreed: Tagged, *values: Tagged) -> Any:
        """Write the words of a group, a row for each site."""
        given = {name: rows.expand(values[place], group.k) for name, place, _, _ in self.lanes}
        weights = {
            name: _weights(values[place], group.k) for name, _, place, _ in self.lanes if place is not None
        }
        told: Agreed = rows.row(agreed, 0)
        return written(group, given, weights, told)


def _weights(tagged: Tagged, k: int) -> np.ndarray:
    value = rows.expand(tagged, k)
    numbers = value.numbers if isinstance(value, Column) else value
    if not isinstance(numbers, torch.Tensor):
        return np.full(k, float(numbers))
    return numbers.reshape(k).to("cpu", torch.float64).numpy()


IDEAL_GUARD = "simulated, no protection"


@dataclass(frozen=True)
class Named:
    """Say which site delivers, in the stage in which its words leave."""

    grants: ClassVar[Label] = Label.PUBLIC

    def __call__(self, site: str, words: Any) -> str:
        """Return the site's name."""
        return site

    def rows(self, group: Group, site: Tagged, words: Tagged) -> Any:
        """Return the names of a group."""
        return Ragged(list(group.ids))


@dataclass(frozen=True, slots=True)
class Opened:
    """The sums of a stage: by name as the round reads them, the number of sites in them, and what the total
    teaches of the next bounds.
    """

    sums: Mapping[str, Any]
    num_sites: int
    largest: Mapping[str, list[float]]
    weights: Mapping[str, float]
    num_cut: Mapping[str, int]


def opened(found: Read, lanes: tuple[Lane, ...]) -> Opened:
    """Return what was read as a round takes it: means still to be divided, sums rounded once."""
    sums = {
        name: found.sums[name] if is_mean else found.sums[name].divided_by(1.0)
        for name, _, _, is_mean in lanes
    }
    weights = {name: sum_.own_weight for name, sum_ in found.sums.items() if sum_.own_weight is not None}
    largest = {name: sum_.largest for name, sum_ in found.sums.items()}
    return Opened(sums, found.num_sites, largest, weights, found.num_cut)


def check_cohort(sites: Mapping[str, Any], least: int) -> None:
    """Raise QuorumError where fewer sites than agreed would be in a sum; made-up ones may be few."""
    if len(sites) < least and not set(sites) <= set(MADE_UP):
        raise QuorumError(
            f"E_COHORT: {len(sites)} sites are in the round and a secure sum takes {least} at least "
            "(min_cohort): ask more sites (schedule.cohort), or lower it if you know what a smaller sum shows"
        )


@dataclass(frozen=True)
class ReadPlain:
    """Read a total to which no mask was added."""

    lanes: tuple[Lane, ...]
    min_cohort: int
    grants: ClassVar[Label] = Label.AGG

    def __call__(self, total: Any, delivered: Mapping[str, Any]) -> Opened:
        """Return the sums of the sites that delivered."""
        check_cohort(delivered, self.min_cohort)
        flat = total.parts
        return opened(read(flat.buffer.numpy()[0], flat.schema, len(delivered)), self.lanes)


@dataclass(frozen=True)
class Learn:
    """Learn the next bounds from a total, which is public: its largest mean and room above it.

    A bound shrinks by 4 a round at most and grows by 16 after a round that has cut numbers. Where a total is
    zero, updates may lie below a step, so it shrinks by 16, to 2^-8 at least. The log tells of both.
    """

    def __call__(self, memory: Any, agreed: Agreed, found: Opened) -> Any:
        """Return what the server remembers, with what it knows of sums of other rounds."""
        known: Mapping[str, Any] = memory or {}
        bounds, weights = dict(known.get("bounds", {})), dict(known.get("weights", {}))
        for name, largest in found.largest.items():
            weight = found.weights.get(name) or float(found.num_sites)
            is_cut = bool(found.num_cut.get(name, 0))
            if is_cut:
                told = agreed.bounds.get(name, START_BOUND)
                cut = found.num_cut[name]
                logger.warning("secure_sum: %d numbers of %s were cut at their bound %s", cut, name, told)
            elif name in found.weights and not any(largest):
                logger.warning("secure_sum: %s came to 0; it may lie below a step: smaller clip=?", name)
            bounds[name] = [
                _next_bound(agreed.bound(name, leaf), value / weight, is_cut)
                for leaf, value in enumerate(largest)
            ]
        for name, total in found.weights.items():
            weights[name] = power_above(HEADROOM * total / found.num_sites)
        return {"bounds": bounds, "weights": weights}


def _next_bound(bound: float, mean: float, is_cut: bool) -> float:
    if is_cut:
        return bound * WIDER
    if not mean:
        return max(bound / WIDER, min(bound, LEAST_BOUND))
    return max(power_above(HEADROOM * mean), bound / NARROWER)


def power_above(number: float) -> float:
    """Return the smallest power of two above a number."""
    return math.ldexp(1.0, math.frexp(number)[1])
