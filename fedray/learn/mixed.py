"""Trainings of several trials that ask for different sites, as one program: the lanes of a site are the
trials that ask for it.

`together.py` brings the requests; those for the same sites it trains itself, without a look at single rows.
A site for which fewer trials ask than for another repeats its last lane, and what comes of that is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.learn.batches import steps_of
from fedray.learn.layout import layout_of
from fedray.learn.stacked import KEPT_TRAININGS, Extras, Training
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.rows import Column, column
from fedray.tree import Flat

Cell = tuple[int, int]  # a request, and the row of a site in it


@dataclass(frozen=True, slots=True)
class _Site:
    """A site that is asked for: its rows, its key, and where."""

    rows: Any
    size: int
    key: Key
    cells: list[Cell]


def train_mixed(requests: Sequence[Any], cache: dict[Any, Any], program_bytes: int) -> list[Update]:
    """Train requests of one seed and kind, each for sites of its own; one update each, in the order given.

    The cache keeps layouts and buffers for the next round.
    """
    first, sites = requests[0], _sites(requests)
    lanes = max(len(site.cells) for site in sites)
    most = max(1, program_bytes // (first.start[0].nbytes * lanes))
    sizes = [len(request.keys) for request in requests]
    begins = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    deltas = torch.empty(begins[-1], first.schema.stride, dtype=first.schema.dtype)
    losses = torch.empty(begins[-1], dtype=torch.float64)
    for at in range(0, len(sites), most):
        _run(requests, sites[at : at + most], lanes, cache, (begins, deltas, losses))
    return [
        _update(request, deltas[begin : begin + size], losses[begin : begin + size])
        for request, begin, size in zip(requests, begins[:-1], sizes, strict=True)
    ]


def _sites(requests: Sequence[Any]) -> list[_Site]:
    """Return every site that is asked for, the largest first; one object of data is one site."""
    found: dict[Any, _Site] = {}
    for number, request in enumerate(requests):
        for row, key in enumerate(request.keys):
            name = key.site, id(request.read.items[row])
            if name not in found:
                found[name] = _Site(request.read.rows[row], request.read.sizes[row], key, [])
            found[name].cells.append((number, row))
    return sorted(found.values(), key=lambda site: (-site.size, site.key.site))


def _run(
    requests: Sequence[Any], sites: Sequence[_Site], lanes: int, cache: dict[Any, Any], into: Any
) -> None:
    """Train some sites in all their lanes and put the updates where they belong."""
    first, local, (begins, deltas, losses) = requests[0], requests[0].local, into
    sizes = [site.size for site in sites]
    taken = steps_of(sizes, local.batch_size, local.epochs, [local.steps] * len(sites))
    names = tuple(site.key.site for site in sites)
    layouts = cache.setdefault(("layouts of sites", names), {})
    plan = layout_of(layouts, sizes, taken, local.batch_size, sites[0].rows, first.schema.dtype)
    training = _training(first, cache, len(sites), plan.width, lanes)
    cells = [site.cells[min(lane, len(site.cells) - 1)] for site in sites for lane in range(lanes)]
    extras = first.extras
    start = _rows(requests, cells, lambda each: each.start)
    is_own_anchor, has_correction = extras.anchor is not first.start, extras.correction is not None
    told = Extras(
        _rows(requests, cells, lambda each: each.extras.correction) if has_correction else None,
        _rows(requests, cells, lambda each: each.extras.anchor) if is_own_anchor else start,
        extras.prox,
        _rows(requests, cells, lambda each: each.rates),
    )
    training.begin(plan, start, told, [site.key for site in sites])
    training.run([site.rows for site in sites])
    real = [
        (place * lanes + lane, begins[number] + row)
        for place, site in enumerate(sites)
        for lane, (number, row) in enumerate(site.cells)
    ]
    here, there = torch.tensor(real).T
    deltas[there], losses[there] = training.delta()[here], training.mean_loss()[here]


def _training(first: Any, cache: dict[Any, Any], sites: int, width: int, lanes: int) -> Training:
    """Return the buffers of a program of this shape, those of the last round where there are any."""
    kept: dict[Any, Training] = cache.setdefault("together", {})
    shape = (first.schema, first.start.device, sites, width, lanes)
    key = (first.settings, shape)
    if key not in kept:
        if len(kept) >= KEPT_TRAININGS:
            kept.pop(next(iter(kept)))
        kept[key] = Training(first.local, first.how, *shape)
    return kept[key]


def _rows(requests: Sequence[Any], cells: Sequence[Cell], read: Any) -> Tensor:
    """Return one row for each cell, of tensors of one row or one a site."""
    tables = [read(request) for request in requests]
    begins = [0, *torch.tensor([len(table) for table in tables]).cumsum(0).tolist()]
    at = [begins[number] + (row if len(tables[number]) > 1 else 0) for number, row in cells]
    return torch.cat(tables)[torch.tensor(at)]


def _update(request: Any, delta: Tensor, losses: Tensor) -> Update:
    """Return the update of one request, and tell its group how large each row is: it would look itself."""
    local, sizes = request.local, request.read.sizes
    request.group.largest[id(delta)] = (delta, torch.maximum(delta.amax(1), -delta.amin(1)))
    steps = steps_of(sizes, local.batch_size, local.epochs, [local.steps] * len(sizes))
    numbers: Any = (column(sizes), column(steps), {"loss": Column(losses, False)})
    return Update(Flat(delta, request.schema), *numbers)
