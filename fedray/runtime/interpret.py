"""Interpret one site stage for one group of sites: for node, once per group or once per site.

A mapped function with a twin (`fn.rows`) is run once for the group, also when the group is one site; without
a twin it is called per site on row views. A site that raises is masked out and reported by class and
`file:line`, never by message; the bits of the others are those of a run that never asked it. One that is
late is masked out too, and nothing of it is tried again.
"""

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from fedray import cancellation, frozen, rows, tree
from fedray.cancellation import Cancelled
from fedray.core.graph import Node, Op, function_name
from fedray.core.value import Record
from fedray.errors import LATE, SecrecyError, SiteError, Withheld
from fedray.rows import Column, Group, Ragged, Rows, Same, Tagged
from fedray.runtime import values
from fedray.runtime.host import StageCall
from fedray.runtime.plan import Plan

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = (_PACKAGE + os.sep, os.path.dirname(os.path.dirname(torch.__file__)) + os.sep)
ReadInputs = Callable[[str, Sequence[str]], Sequence[Any]]  # (slot, site ids) -> values: data, ids and keys
ReadState = Callable[[str, Sequence[str]], Any]  # (slot, site ids) -> stacked value


def place_of(error: BaseException) -> str:
    """Return `file.py:line` of the innermost frame of an error in the user's code, without its folder."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    last = (own or frames)[-1:]
    return f"{os.path.basename(last[0].filename)}:{last[0].lineno}" if last else ""


# index, node, and of a twin that needs no more than its arguments: itself, its only one or what reads several
Step = tuple[int, Node, Callable[..., Any] | None, int, Callable[[Mapping[int, Any]], Sequence[Any]] | None]


def steps_of(plan: Plan, stage: int) -> list[Step]:
    """Return the nodes of a stage in order, with what `run` looks up once for all groups and rounds."""
    found: list[Step] = []
    for index in plan.local(stage):
        node, args = plan.nodes[index], plan.args[index]
        is_plain = node.op is Op.CALL and node.params["lift"] == "site" and not node.params["kwargs"]
        twin = getattr(node.fn, "rows", None) if is_plain and args else None
        several = itemgetter(*args) if len(args) > 1 else None
        found.append((index, node, twin, args[0] if args else -1, several))
    return found


class Interpreter:
    """Run the nodes of one stage of a plan for a group."""

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[Step],
        call: StageCall,
        downlink: Mapping[int, Any],
        read_inputs: ReadInputs,
        read_state: ReadState,
        is_given_up: Callable[[], bool] | None = None,
    ) -> None:
        self.plan, self.steps, self.call, self.downlink = plan, steps, call, downlink
        self.read_inputs, self.read_state = read_inputs, read_state
        self.is_given_up = is_given_up
        self.failures: list[SiteError] = []
        self.first: BaseException | None = None  # stays here: its message may hold a value
        self.broke_group: set[str] = set()  # sites for which a twin raised, so that their group went apart

    def run(self, group: Group) -> None:
        """Compute every node of the stage; the group keeps the values that later stages and reductions
        need. A deadline also stops the group between two local steps: all of it is late then.
        """
        if self.call.deadline is None:
            self._run(group)
            return
        try:
            with cancellation.asking(self._is_late):
                self._run(group)
        except Cancelled:
            self._lose_all(group)

    def _run(self, group: Group) -> None:
        held, is_alive, k, is_timed = group.values, group.is_alive, group.k, self.call.deadline is not None
        for index, node, twin, only, get in self.steps:
            if True not in is_alive:
                return
            if twin is None or is_timed:
                held[index] = self._node(index, node, group)
                continue
            try:
                found = twin(group, held[only]) if get is None else twin(group, *get(held))
            except Exception:  # noqa: BLE001 (one site broke it: each is asked alone, and reported)
                held[index] = self._apart(twin, [held[arg] for arg in self.plan.args[index]], {}, group)
                continue
            if not values.has_rows(found, k):
                self._check_count(node, found, group)
            held[index] = Rows(found)

    def lose(self, group: Group, row: int, kind: str, where: str = "") -> None:
        """Mask a site out of the rest of the round."""
        if group.is_alive[row]:
            group.is_alive[row] = False
            self.failures.append(SiteError(group.ids[row], self.call.round, self.call.stage, kind, where))

    def _lose_all(self, group: Group) -> None:
        for row in group.alive:
            self.lose(group, row, LATE)

    def _node(self, index: int, node: Node, group: Group) -> Tagged:
        op = node.op
        if op is Op.CALL:
            return self._lifted(index, node, group)
        if op is Op.CONST:
            return Same(node.params["value"])
        if op is Op.BROADCAST:
            return Same(self.downlink[index])
        if op is Op.SCATTER and node.params.get("by"):
            return self._of_region(self.downlink[index], node, group)
        if op is Op.SCATTER:
            found = self._each(group, lambda row: self.downlink[index][group.ids[row]])
            return rows.stack(found) if group.alive else Rows(Ragged(found))
        if op is Op.INPUT:
            slot = node.params["slot"]
            if slot in ("data", "id") or slot.split(":")[0] == "rng":
                return Rows(Ragged(self._inputs(slot, group)))
            return Rows(self.read_state(slot, group.ids))
        operand = group.values[self.plan.args[index][0]]
        return values.read(operand, node.params["key"], node.params["attribute"])

    def _of_region(self, values: Mapping[str, Any], node: Node, group: Group) -> Tagged:
        """Return the value of the group's region, that of "" where it has none of its own."""
        key = group.region if group.region in values else ""
        if key in values:
            return Same(values[key])
        for row in group.alive:
            self.lose(group, row, "nothing for its region", node.where)
        return Rows(Ragged([None] * group.k))

    def _lifted(self, index: int, node: Node, group: Group) -> Tagged:
        operands = [group.values[arg] for arg in self.plan.args[index]]
        lift = node.params["lift"]
        if lift == "site":
            return self._call(node, operands, group)
        if lift == "check":
            return self._check(self._cut(operands[0], group) if node.params["is_cut"] else operands[0], group)
        if lift == "leafwise":
            return values.leafwise(_need(node.fn), operands)
        assert isinstance(node.fn, Record)
        return values.record(node.fn, operands, group.k)

    def _is_late(self) -> bool:
        """Tell whether the deadline has passed, by this clock or by that of who waits."""
        if self.call.deadline is None:
            return False
        return time.monotonic() > self.call.deadline or (self.is_given_up is not None and self.is_given_up())

    def _inputs(self, slot: str, group: Group) -> Sequence[Any]:
        """Read what every site has; where one cannot be read, or time presses, site by site."""
        if self.call.deadline is None and all(group.is_alive):
            try:
                return self.read_inputs(slot, group.ids)
            except Exception as error:  # noqa: BLE001 (found again below, and told by site)
                self.first = self.first or error
        return self._each(group, lambda row: self.read_inputs(slot, group.ids[row : row + 1])[0])

    def _each(self, group: Group, fn: Callable[[int], Any]) -> list[Any]:
        """Call `fn` for every living row; lost rows hold a filler."""
        found: dict[int, Any] = {}
        for row in group.alive:
            if self._is_late():
                self.lose(group, row, LATE)
                continue
            try:
                found[row] = fn(row)
            except Cancelled:
                self.lose(group, row, LATE)
            except Exception as error:  # noqa: BLE001 (becomes this site's SiteError; all others go on)
                self.first = self.first or error
                kind = error.kind if isinstance(error, (SecrecyError, Withheld)) else type(error).__name__
                self.lose(group, row, kind, place_of(error))
        if not found:
            return [None] * group.k
        blank = None
        if len(found) < group.k:
            first = next(iter(found.values()))
            blank = values.filler(first) if not hasattr(first, "splits") else first
        return [found.get(row, blank) for row in range(group.k)]

    def _call(self, node: Node, operands: Sequence[Tagged], group: Group) -> Tagged:
        names = node.params["kwargs"]
        cut = len(operands) - len(names)
        fn = _need(node.fn)
        twin = getattr(fn, "rows", None)
        if twin is not None:
            named = dict(zip(names, operands[cut:], strict=True)) if names else {}
            found = self._twin(twin, operands[:cut], named, group)
            if not values.has_rows(found.value, group.k):
                self._check_count(node, found.value, group)
            return found

        def one(row: int) -> Any:
            args = [rows.row(operand, row) for operand in operands]
            return fn(*args[:cut], **dict(zip(names, args[cut:], strict=True)))

        results = self._each(group, one)
        return rows.stack(results) if group.alive else Rows(Ragged(results))

    def _twin(
        self, twin: Callable[..., Any], args: Sequence[Tagged], kwargs: Mapping[str, Tagged], group: Group
    ) -> Tagged:
        if self._is_late():
            self._lose_all(group)
            return Rows(Ragged([None] * group.k))
        try:
            return Rows(twin(group, *args, **kwargs))
        except Exception:  # noqa: BLE001 (one site broke it: each is asked alone, and reported)
            return self._apart(twin, args, kwargs, group)

    def _apart(
        self, twin: Callable[..., Any], args: Sequence[Tagged], kwargs: Mapping[str, Tagged], group: Group
    ) -> Tagged:
        """Call a twin for each living row alone."""

        def alone(row: int) -> Any:
            single = Group([group.ids[row]], group.cache)
            named = {name: _one(arg, row) for name, arg in kwargs.items()}
            return rows.row(Rows(twin(single, *(_one(arg, row) for arg in args), **named)), 0)

        known = len(self.failures)
        results = self._each(group, alone)
        self.broke_group.update(lost.site for lost in self.failures[known:] if lost.kind != LATE)
        return rows.stack(results) if group.alive else Rows(Ragged(results))

    def _check_count(self, node: Node, found: Any, group: Group) -> None:
        values.check_count(Rows(found), group, f"{node.where}: the twin of {function_name(_need(node.fn))}")

    def _cut(self, operand: Tagged, group: Group) -> Tagged:
        """Return an update without its frozen leaves; a site whose update moves one is lost."""
        value = rows.expand(operand, group.k)
        for row, has_strayed in enumerate(frozen.strayed(value, group.k)):
            if has_strayed:
                self.lose(group, row, "moved a frozen parameter")
        return Rows(frozen.without_frozen(value))

    def _check(self, operand: Tagged, group: Group) -> Tagged:
        is_finite = values.finite_rows(operand, group, is_largest_needed=self.plan.fold != "fast")
        if all(is_finite):
            return operand
        for row in group.alive:
            if not is_finite[row]:
                self.lose(group, row, "not finite")
        return operand


def _one(operand: Tagged, row: int) -> Tagged:
    return operand if isinstance(operand, Same) else Rows(rows.only(operand.value, row))


def _need(fn: Callable[..., Any] | None) -> Callable[..., Any]:
    assert fn is not None
    return fn


def weights_of(tagged: Tagged | None, group: Group) -> torch.Tensor:
    """Return each row's weight, float64, zero for lost rows; without a weight every living row counts one."""
    is_whole = all(group.is_alive)
    alive = torch.ones(group.k, dtype=torch.float64)
    if not is_whole:
        alive.copy_(torch.tensor(group.is_alive))
    if tagged is None:
        return alive
    value = rows.expand(tagged, group.k)
    numbers = value.numbers if isinstance(value, Column) else value
    if not isinstance(numbers, torch.Tensor):
        numbers = torch.full((group.k,), float(numbers), dtype=torch.float64)
    numbers = numbers.reshape(group.k).to("cpu", torch.float64)
    return numbers if is_whole else torch.where(alive > 0, numbers, alive)


def broken_weights(weights: torch.Tensor) -> list[int]:
    """Return the rows whose weight cannot enter an exact sum: below zero, or not whole."""
    is_whole = (weights >= 0) & (weights == weights.round())
    return [] if bool(is_whole.all()) else torch.nonzero(~is_whole).flatten().tolist()


def own(value: Any) -> Any:
    """Return a copy that shares no memory with a pack's buffers."""
    return tree.clone(value)
