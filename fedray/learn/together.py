"""Trials that train together: many configurations of many hospitals as one program.

Trials that differ only in numbers (learning rate, server learning rate, seed, mu) run each in a thread of
its own, with a `fit` that knows nothing of the others. Where their local trainings begin they meet: the last
one to come trains for all, and every thread goes on with its own update. Trials of one seed read the same
batches, so the first layer multiplies a batch once for all of them (`lanes` of `stacked.Training`).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.learn.batches import Read, steps_of
from fedray.learn.layout import layout_of
from fedray.learn.stacked import KEPT_TRAININGS, Extras, Training
from fedray.learn.update import Update
from fedray.rng import Key, Keys
from fedray.rows import Column, column
from fedray.tree import Flat, Schema

PROGRAM_BYTES = 13 * 2**18  # parameters of a program: what stays in a core's cache, as of a group
_meeting: ContextVar["Meeting | None"] = ContextVar("meeting", default=None)


@dataclass(frozen=True, slots=True)
class Request:
    """What one trial asks of local training for one group of sites."""

    local: Any
    how: Any
    schema: Schema
    start: Tensor  # (1 or k, stride)
    read: Read
    keys: Sequence[Key]
    extras: Extras
    rates: Tensor  # (1, 1) float64
    cache: dict[Any, Any]

    @property
    def kind(self) -> Any:
        """What requests must have in common to be one program."""
        return (
            self.settings, self.extras.correction is None, self.extras.prox, self.extras.anchor is self.start,
            len(self.start), _names(self.keys), tuple(map(id, self.read.items)),
        )  # fmt: skip

    @property
    def settings(self) -> Any:
        """What a training depends on besides numbers that are a trial's own."""
        kept: dict[int, tuple[Any, Any]] = self.cache.setdefault("settings", {})
        if id(self.local) not in kept:
            if len(kept) >= KEPT_TRAININGS:
                kept.pop(next(iter(kept)))
            kept[id(self.local)] = (self.local, self._settings())  # which keeps `local`, and so its id
        return kept[id(self.local)][1]

    def _settings(self) -> Any:
        local, model = self.local, self.local.model
        fixed = {
            name: getattr(local, name)
            for name in local.__dataclass_fields__
            if name not in ("model", "lr", "prox")
        }
        return (
            repr(fixed), repr(model.module), model.task, model.inputs, model.target, model.flatten,
            self.schema,
        )  # fmt: skip


class Meeting:
    """Where the trainings of several trials meet. A trial that ends, or fails, leaves.

    One trial runs at a time, until it comes to the next meeting: threads that run side by side would take the
    interpreter from each other at every operation.
    """

    def __init__(self, trials: int) -> None:
        self._condition = threading.Condition()
        self._turn = threading.Lock()
        self._present = trials
        self._waiting: list[tuple[Request, list[Any]]] = []
        self._is_stopped = False
        self.programs = 0  # trainings of several trials at once, for tests and reports

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Take part from this thread until the block ends."""
        token = _meeting.set(self)
        self._turn.acquire()
        try:
            yield
        finally:
            _meeting.reset(token)
            with self._condition:
                self._present -= 1
                self._train_if_all_are_here()
            self._turn.release()

    def stop(self) -> None:
        """Let every trial end with KeyboardInterrupt where it trains next."""
        with self._condition:
            self._is_stopped = True
            waiting, self._waiting = self._waiting, []
            for _, answer in waiting:
                answer.append(KeyboardInterrupt())
            self._condition.notify_all()

    def train(self, request: Request) -> Update:
        """Wait until every trial has come, and return the update of this one. Raises what its training
        raised.
        """
        answer: list[Any] = []
        with self._condition:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._waiting.append((request, answer))
            self._train_if_all_are_here()
        if not answer:
            self._turn.release()
            with self._condition:
                self._condition.wait_for(lambda: answer)
            self._turn.acquire()
        found = answer[0]
        if isinstance(found, BaseException):
            raise found
        return found  # type: ignore[no-any-return]

    def _train_if_all_are_here(self) -> None:
        if not self._waiting or len(self._waiting) < self._present:
            return
        waiting, self._waiting = self._waiting, []
        answers = {id(request): answer for request, answer in waiting}
        kinds: dict[Any, list[Request]] = {}
        for request, answer in waiting:
            try:
                kinds.setdefault(request.kind, []).append(request)
            except Exception as error:  # noqa: BLE001 (raised again in the thread of its trial)
                answer.append(error)
        for members in kinds.values():
            for part in _even(members):
                self._train(part, answers)
        self._condition.notify_all()

    def _train(self, requests: list[Request], answers: Mapping[int, list[Any]]) -> None:
        try:
            found: Sequence[Any] = train_together(requests)
            self.programs += len(requests) > 1
        except Exception as error:  # noqa: BLE001 (raised again in the thread of each trial)
            found = [error] * len(requests)
        for request, update in zip(requests, found, strict=True):
            answers[id(request)].append(update)


def _names(keys: Sequence[Key]) -> Any:
    """Return what keys are besides their seed."""
    if isinstance(keys, Keys):
        return keys.sites, keys.round, keys.label
    return tuple((key.site, key.round, key.label) for key in keys)


def fits(local: Any, how: Any, given: Mapping[str, Any]) -> bool:
    """Tell whether a training can be one of several lanes."""
    is_linear = local.form != "vmap" and how.chain.inputs > 0  # the first layer can be shared
    return is_linear and local.patience is None and not set(given) & {"lr", "steps"}


def current() -> Meeting | None:
    """Return the meeting that this thread takes part in."""
    return _meeting.get()


def _even(requests: Sequence[Request]) -> list[list[Request]]:
    """Return requests by seed, seeds with equally many trials in one list: seed by seed, trial by trial."""
    seeds: dict[int, list[Request]] = {}
    for request in requests:
        seeds.setdefault(request.keys[0].seed, []).append(request)
    sizes: dict[int, list[Request]] = {}
    for members in seeds.values():
        sizes.setdefault(len(members), []).extend(members)
    return list(sizes.values())


def train_together(requests: Sequence[Request]) -> list[Update]:
    """Train the groups of several trials: requests of one seed follow each other, equally many of each
    seed.
    """
    first = requests[0]
    sites, seeds = len(first.keys), len({request.keys[0].seed for request in requests})
    lanes = len(requests) // seeds
    most = max(1, PROGRAM_BYTES // (first.start[0].nbytes * lanes))
    if most >= sites * seeds:
        programs = [[(seed, slice(0, sites)) for seed in range(seeds)]]
    else:
        programs = [[(s, slice(at, at + most))] for s in range(seeds) for at in range(0, sites, most)]
    deltas = torch.empty(len(requests), sites, first.schema.stride, dtype=first.schema.dtype)
    losses = torch.empty(len(requests), sites, dtype=torch.float64)
    for program in programs:
        _run(requests, lanes, program, deltas, losses)
    local = first.local
    steps = steps_of(first.read.sizes, local.batch_size, local.epochs, [local.steps] * sites)
    numbers = [column(found) for found in (first.read.sizes, steps)]
    return [
        Update(Flat(delta, first.schema), *numbers, {"loss": Column(loss, False)})  # type: ignore[arg-type, dict-item]
        for delta, loss in zip(deltas, losses, strict=True)
    ]


def _run(
    requests: Sequence[Request], lanes: int, program: Sequence[tuple[int, slice]], deltas: Tensor,
    losses: Tensor,
) -> None:  # fmt: skip
    """Train some sites of some seeds, every lane of them, and put the updates where they belong."""
    first, local, read = requests[0], requests[0].local, requests[0].read
    chosen = [batch for _, part in program for batch in read.rows[part]]
    keys = [key for seed, part in program for key in requests[seed * lanes].keys[part]]
    sizes = [size for _, part in program for size in read.sizes[part]]
    taken = steps_of(sizes, local.batch_size, local.epochs, [local.steps] * len(chosen))
    plan = layout_of(first.cache, sizes, taken, local.batch_size, chosen[0], first.schema.dtype)
    kept: dict[Any, Training] = first.cache.setdefault("together", {})
    shape = (first.schema, first.start.device, len(chosen), plan.width, lanes)
    key = (first.settings, shape)
    if key not in kept:
        if len(kept) >= KEPT_TRAININGS:
            kept.pop(next(iter(kept)))
        kept[key] = Training(local, first.how, *shape)
    training = kept[key]
    members = [requests[seed * lanes : (seed + 1) * lanes] for seed, _ in program]
    start = _rows(members, program, lambda each: each.start)
    has_correction, is_anchored = first.extras.correction is not None, first.extras.anchor is not first.start
    extras = Extras(
        _rows(members, program, lambda each: each.extras.correction) if has_correction else None,
        _rows(members, program, lambda each: each.extras.anchor) if is_anchored else start,
        first.extras.prox,
        _rows(members, program, lambda each: each.rates),
    )
    training.begin(plan, start, extras, keys)
    training.run(chosen)
    delta, loss = training.delta(), training.mean_loss()
    at = 0
    for seed, part in program:
        count = len(read.rows[part])
        here = slice(at * lanes, (at + count) * lanes)
        deltas[seed * lanes : (seed + 1) * lanes, part] = delta[here].view(count, lanes, -1).transpose(0, 1)
        losses[seed * lanes : (seed + 1) * lanes, part] = loss[here].view(count, lanes).T
        at += count


def _rows(members: Sequence[Sequence[Request]], program: Sequence[tuple[int, slice]], read: Any) -> Tensor:
    """Return one row for every site and lane: site by site, lane by lane."""
    found = []
    for lanes, (_, part) in zip(members, program, strict=True):
        k, columns = len(lanes[0].keys[part]), [read(each) for each in lanes]
        if all(len(column) == 1 for column in columns):
            found.append(torch.cat(columns).repeat(k, 1))
        else:
            sites = len(lanes[0].keys)
            found.append(torch.stack([each.expand(sites, -1)[part] for each in columns], 1).flatten(0, 1))
    return torch.cat(found) if len(found) > 1 else found[0]
