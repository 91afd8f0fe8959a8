"""Trials that train together: many configurations of many hospitals as one program.

Trials that differ only in numbers (learning rate, server learning rate, seed, mu) run each in a thread of
its own, with a `fit` that knows nothing of the others. Where their local trainings begin they meet: the last
one to come trains for all, and every thread goes on with its own update. Trials of one seed read the same
batches, so the first layer multiplies a batch once for all of them (`lanes` of `stacked.Training`). Trials
may ask for different sites (coalitions): see `mixed.py`.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.cancellation import Ask, Cancelled, asked, asking, of_all
from fedray.learn.batches import Read, steps_of
from fedray.learn.layout import layout_of
from fedray.learn.mixed import train_mixed
from fedray.learn.stacked import KEPT_TRAININGS, Extras, Training
from fedray.learn.update import Update
from fedray.rng import Key, Keys
from fedray.rows import Column, Group, column
from fedray.tree import Flat, Schema

PROGRAM_BYTES = 13 * 2**18  # parameters of a program: what stays in a core's cache, as of a group
Lock = Any  # of threading: a function there, no type
_seat: ContextVar["Seat | None"] = ContextVar("seat", default=None)


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
    group: Group

    @property
    def kind(self) -> Any:
        """What requests must have in common to be one program."""
        first = self.keys[0]
        return (
            self.settings, self.extras.correction is None, self.extras.prox, self.extras.anchor is self.start,
            len(self.start) > 1, first.round, first.label,
        )  # fmt: skip

    @property
    def sites(self) -> Any:
        """The sites that are asked for, by name and by their open data."""
        return _names(self.keys), tuple(map(id, self.read.items))

    @property
    def settings(self) -> Any:
        """What a training depends on besides numbers that are a trial's own."""
        kept: dict[int, tuple[Any, Any]] = self.group.cache.setdefault("settings", {})
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


class _Turn:
    """Whose turn it is: one thread runs, and hands over to the one that has waited longest.

    Each waits at a lock of its own, so that handing over wakes one thread and no other.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._ready: deque[Lock] = deque()
        self._is_taken = False

    def take(self) -> None:
        """Wait for the turn."""
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            bell = _closed()
            self._ready.append(bell)
        bell.acquire()

    def hand_over(self, ready: Sequence[Lock] = ()) -> None:
        """End the turn; `ready` are the bells of threads that need not wait for anything else."""
        with self._guard:
            self._ready.extend(ready)
            self._is_taken = bool(self._ready)
            if self._ready:
                self._ready.popleft().release()

    def let_in(self, ready: Sequence[Lock]) -> None:
        """Say that threads need not wait for anything but the turn."""
        with self._guard:
            self._ready.extend(ready)
            if self._ready and not self._is_taken:
                self._is_taken = True
                self._ready.popleft().release()


def _closed() -> Lock:
    """Return a lock at which a thread waits until it is released."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False, slots=True)
class _Waiting:
    """A trial that waits for its update, or for the error that its training raised."""

    place: int  # of the trial
    request: Request
    bell: Lock
    is_cancelled: Ask | None
    answer: Any = None


class Meeting:
    """Where the trainings of several trials meet. A trial that ends, or fails, leaves.

    One trial runs at a time, until it comes to the next meeting: threads that run side by side would take the
    interpreter from each other at every operation.
    """

    def __init__(self, trials: int) -> None:
        self._turn = _Turn()
        self._lock = threading.Lock()  # of what follows: `stop` comes from outside
        self.size = self._present = trials
        self._waiting: list[_Waiting] = []
        self._is_stopped = False
        self._cache: dict[Any, Any] = {}  # of programs: whoever asks first, they have the same buffers
        self.programs = 0  # trainings of several trials at once, for tests and reports

    @contextmanager
    def joined(self, place: int) -> Iterator[None]:
        """Take part from this thread until the block ends; programs hold trials in the order of places."""
        token = _seat.set(Seat(self, place))
        self._turn.take()
        try:
            yield
        finally:
            _seat.reset(token)
            with self._lock:
                self._present -= 1
                answered = self._train_if_all_are_here()
            self._turn.hand_over([each.bell for each in answered])

    def stop(self) -> None:
        """Let every trial end with KeyboardInterrupt where it trains next."""
        with self._lock:
            self._is_stopped = True
            waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.answer = KeyboardInterrupt()
        self._turn.let_in([each.bell for each in waiting])

    def train(self, place: int, request: Request) -> Update:
        """Wait until every trial has come, and return the update of this one. Raises what its training
        raised.
        """
        mine = _Waiting(place, request, _closed(), asked())
        with self._lock:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._waiting.append(mine)
            answered = self._train_if_all_are_here()
        # who trained goes on in its own place: the last trial then trains every time, in memory it has
        self._turn.hand_over([each.bell for each in answered])
        mine.bell.acquire()
        if isinstance(mine.answer, BaseException):
            raise mine.answer
        return mine.answer  # type: ignore[no-any-return]

    def _train_if_all_are_here(self) -> list[_Waiting]:
        """Train where nobody is missing; return who has an answer now."""
        if not self._waiting or len(self._waiting) < self._present:
            return []
        waiting, self._waiting = sorted(self._waiting, key=lambda each: each.place), []
        kinds: dict[Any, list[_Waiting]] = {}
        for each in waiting:
            try:
                kinds.setdefault(each.request.kind, []).append(each)
            except Exception as error:  # noqa: BLE001 (raised again in the thread of its trial)
                each.answer = error
        for members in kinds.values():
            for part in _even(members):
                self._train(part)
        return waiting

    def _train(self, members: Sequence[_Waiting]) -> None:
        try:
            with asking(of_all([each.is_cancelled for each in members])):  # a program stops for no one alone
                found: Sequence[Any] = train_together([each.request for each in members], self._cache)
            self.programs += len(members) > 1
        except (Exception, Cancelled) as error:  # noqa: BLE001 (raised again in the thread of each trial)
            found = [error] * len(members)
        for each, update in zip(members, found, strict=True):
            each.answer = update


@dataclass(frozen=True, slots=True)
class Seat:
    """A trial's place in a meeting."""

    meeting: Meeting
    place: int

    def train(self, request: Request) -> Update:
        """Wait until every trial has come, and return the update of this one."""
        return self.meeting.train(self.place, request)


def _names(keys: Sequence[Key]) -> Any:
    """Return what keys are besides their seed."""
    if isinstance(keys, Keys):
        return keys.sites, keys.round, keys.label
    return tuple((key.site, key.round, key.label) for key in keys)


def fits(local: Any, how: Any, given: Mapping[str, Any]) -> bool:
    """Tell whether a training can be one of several lanes."""
    is_linear = local.form != "vmap" and how.chain.inputs > 0  # the first layer can be shared
    return is_linear and local.patience is None and not set(given) & {"lr", "steps"}


def current() -> Seat | None:
    """Return the seat of this thread's trial, None where it trains alone."""
    return _seat.get()


def _even(members: Sequence[_Waiting]) -> list[list[_Waiting]]:
    """Return trials by seed, seeds with equally many trials in one list: seed by seed, trial by trial.

    Where trials ask for different sites, every seed has a list of its own.
    """
    seeds: dict[int, list[_Waiting]] = {}
    for each in members:
        seeds.setdefault(each.request.keys[0].seed, []).append(each)
    if len({each.request.sites for each in members}) > 1:
        return list(seeds.values())
    sizes: dict[int, list[_Waiting]] = {}
    for found in seeds.values():
        sizes.setdefault(len(found), []).extend(found)
    return list(sizes.values())


def train_together(requests: Sequence[Request], cache: dict[Any, Any]) -> list[Update]:
    """Train the groups of several trials: requests of one seed follow each other, equally many of each
    seed; those for different sites are of one seed. The cache keeps layouts and buffers for the next round.
    """
    if len({request.sites for request in requests}) > 1:
        return train_mixed(requests, cache, PROGRAM_BYTES)
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
        _run(requests, lanes, program, cache, deltas, losses)
    rows_of = list(deltas)
    most = torch.maximum(deltas.amax(2), -deltas.amin(2))  # of each row: every trial would look for it alone
    for request, delta, found in zip(requests, rows_of, most, strict=True):
        request.group.largest[id(delta)] = (delta, found)
    local = first.local
    steps = steps_of(first.read.sizes, local.batch_size, local.epochs, [local.steps] * sites)
    numbers = [column(found) for found in (first.read.sizes, steps)]
    return [
        Update(Flat(delta, first.schema), *numbers, {"loss": Column(loss, False)})  # type: ignore[arg-type, dict-item]
        for delta, loss in zip(rows_of, losses, strict=True)
    ]


def _run(
    requests: Sequence[Request], lanes: int, program: Sequence[tuple[int, slice]], cache: dict[Any, Any],
    deltas: Tensor, losses: Tensor,
) -> None:  # fmt: skip
    """Train some sites of some seeds, every lane of them, and put the updates where they belong."""
    first, local, read = requests[0], requests[0].local, requests[0].read
    chosen = [batch for _, part in program for batch in read.rows[part]]
    keys = [key for seed, part in program for key in requests[seed * lanes].keys[part]]
    sizes = [size for _, part in program for size in read.sizes[part]]
    taken = steps_of(sizes, local.batch_size, local.epochs, [local.steps] * len(chosen))
    layouts = cache.setdefault(("layouts", program[0][1].start), {})  # as many are kept as a group has parts
    plan = layout_of(layouts, sizes, taken, local.batch_size, chosen[0], first.schema.dtype)
    kept: dict[Any, Training] = cache.setdefault("together", {})
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
