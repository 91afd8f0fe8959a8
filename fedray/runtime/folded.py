"""Folded: the reductions of one stage over a pack's groups, summed as the groups come.

Small operands are kept, so that a coarser grid costs a second fold and no second training. Large ones are
added to the sum on the call's grid and let go, in batches of rows, so that memory does not grow with the
number of sites. Where a large operand does not fit the grid, the answer says what all of them need, and the
stage is run again: a site stage is pure, so its bits are equal.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedray import rows
from fedray.errors import FoldError, SiteError
from fedray.rows import Group, Tagged
from fedray.runtime import fold
from fedray.runtime.devices import Fetched
from fedray.runtime.host import Contribution, StageCall, in_region
from fedray.runtime.interpret import Interpreter, broken_weights, own, weights_of
from fedray.runtime.plan import Plan

KEPT_BYTES = 64 * 2**20  # operands of a pack that are kept
MOST_KEPT_BYTES = 512 * 2**20  # of which there may be more while they are fewer than a batch of rows
BATCH_ROWS = 24  # a pass over the lanes costs four rows of float32
FAST_BYTES = 32 * 2**20  # operands of a fast sum that are added together: large rows each by itself
SMALL_BYTES = 2**20  # a sum whose operands are smaller is always kept

Grid = tuple[int, ...]


class _Sum:
    """One named sum: operands that are kept, and the buffers of those that were added and let go."""

    def __init__(self, name: str, operand: fold.Operand) -> None:
        self.name, self.spec = name, operand.spec
        self.leaves = fold.specs(operand.spec)
        self.is_fast = any(leaf.is_fast for leaf in self.leaves)
        self.kept: list[tuple[fold.Operand, Group]] = []
        self.needs: Grid = operand.needs
        self.weight = 0
        self.grid: Grid | None = None  # that the buffers lie on, once an operand was let go
        self.buffers: list[Tensor] = []
        self.is_lost = False  # an operand was let go that does not fit the grid

    @property
    def start(self) -> Grid:
        """The grid where the call names none."""
        return tuple(leaf.start for leaf in self.leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of the operands that are kept."""
        return sum(operand.nbytes for operand, _ in self.kept)

    @property
    def num_rows(self) -> int:
        """Living rows among them."""
        return sum(len(group.alive) for _, group in self.kept)

    def take(self, operand: fold.Operand, group: Group) -> None:
        if fold.specs(operand.spec) != self.leaves:
            raise FoldError(
                f"sites sent {self.name!r} in different shapes: every site must return the same structure"
            )
        self.needs = tuple(map(max, self.needs, operand.needs))
        self.weight += int(operand.weights.sum())
        fold.check_weight(self.name, self.weight)
        self.kept.append((operand, group))

    def fits(self, grid: Grid) -> bool:
        return all(need <= exponent for need, exponent in zip(self.needs, grid, strict=True))

    def can_answer(self, grid: Grid) -> bool:
        return self.grid is None or (self.grid == grid and not self.is_lost)

    def let_go(self, grid: Grid) -> None:
        """Add the kept operands to the buffers; once one does not fit, only needs are still of use."""
        self.grid = grid
        self.is_lost = self.is_lost or not self.fits(grid)
        if self.is_lost:
            self.buffers = []
        elif self.kept:
            operands = [operand for operand, _ in self.kept]
            if self.buffers:
                fold.add(self.buffers, operands, grid)
            else:
                self.buffers = fold.summed(operands, grid)
        self.kept = []

    def total(self, grid: Grid, is_single: bool) -> fold.LaneSum:
        """Return the sum on a grid; of one site its own row. Operands that could be kept stay kept."""
        if self.grid is not None:
            self.let_go(grid)
            return fold.closed(self.spec, grid, self.buffers, self.weight)
        if is_single and not self.is_fast:
            operand, group = next((operand, group) for operand, group in self.kept if group.alive)
            return fold.single(operand, group.alive[0])
        buffers = fold.summed([operand for operand, _ in self.kept], grid)
        return fold.closed(self.spec, grid, buffers, self.weight)


class Folded:
    """What one stage of a plan comes to in a pack, and its answers."""

    def __init__(self, plan: Plan, call: StageCall, is_placed: bool = False) -> None:
        self.plan, self.call, self.is_placed = plan, call, is_placed
        # a later stage reads what the stages before it left, which is gone once the last one has run
        self.can_run_again = call.stage == plan.site_stages[0]
        self.sums: dict[str, _Sum] = {}
        self.gathered: dict[str, dict[str, Any]] = {}
        self.delivered: list[str] = []
        self.failures: tuple[SiteError, ...] = ()
        self.answers: dict[Any, Contribution] = {}

    def take(self, group: Group, interpreter: Interpreter) -> None:
        """Take what a group has to reduce; all reductions of a stage see the same sites."""
        reduced = self.plan.reduced(self.call.stage)
        given = {
            self.plan.args[index][weight]
            for index in reduced
            for _, _, weight, _, _ in self.plan.nodes[index].params.get("lanes", ())
            if weight is not None
        }
        for index in given:
            if group.alive:
                for row in broken_weights(weights_of(group.values[index], group)):
                    interpreter.lose(group, row, "weight is not a whole number (give weight_cap)")
        if not group.alive:
            return
        self.delivered += group.ids if all(group.is_alive) else [group.ids[row] for row in group.alive]
        weights = {index: weights_of(group.values[index], group) for index in given}
        values = group.values
        if self.is_placed:
            fetched = Fetched(group)
            values = {arg: fetched(values[arg]) for index in reduced for arg in self.plan.args[index]}
        for index in reduced:
            self._reduce(index, group, values, weights)
        self._let_go()

    def _reduce(
        self, index: int, group: Group, values: Mapping[int, Tagged], given: Mapping[int, Tensor]
    ) -> None:
        node, args = self.plan.nodes[index], self.plan.args[index]
        if node.params["kind"] == "gather":
            into = self.gathered.setdefault(node.name, {})
            into.update({group.ids[row]: own(rows.row(values[args[0]], row)) for row in group.alive})
            return
        for name, value, weight, _, coded in node.params["lanes"]:
            weights = weights_of(None, group) if weight is None else given[args[weight]]
            stacked = rows.expand(values[args[value]], group.k)
            wire = rows.expand(values[args[coded]], group.k) if coded is not None else None
            operand = fold.operand(stacked, weights, self.plan.fold, group.largest, wire)
            key = in_region(name, group.region) if node.params.get("by") else name
            if key not in self.sums:
                self.sums[key] = _Sum(key, operand)
            self.sums[key].take(operand, group)

    def _let_go(self) -> None:
        """Add large operands to their sums, so that the pack keeps few of them."""
        for item in self.sums.values():
            is_gridless = all(leaf.is_fast or leaf.is_ring for leaf in item.leaves)
            if (is_gridless or (item.is_fast and self.can_run_again)) and item.nbytes >= FAST_BYTES:
                item.let_go(self._grid(item, self.call))
        kept = sum(item.nbytes for item in self.sums.values())
        if self.call.is_apart or not self.can_run_again or kept <= KEPT_BYTES or len(self.delivered) == 1:
            return  # of one site its own row is sent
        large = [item for item in self.sums.values() if item.nbytes > SMALL_BYTES]
        if kept > MOST_KEPT_BYTES or max((item.num_rows for item in large), default=0) >= BATCH_ROWS:
            for item in large:
                item.let_go(self._grid(item, self.call))

    def _grid(self, item: _Sum, call: StageCall) -> Grid:
        return call.exponents.get(item.name, item.start)

    def can_answer(self, call: StageCall) -> bool:
        """Tell whether the operands, their sum on this grid, or the answer itself, are still here."""
        if _key(call) in self.answers:
            return True
        return all(item.can_answer(self._grid(item, call)) for item in self.sums.values())

    def answer(self, call: StageCall) -> Contribution:
        """Return the contribution on the grid that the call asks for; the same bytes each time."""
        if _key(call) not in self.answers:
            self.answers[_key(call)] = self._fold(call)
        return self.answers[_key(call)]

    def _apart(self) -> Contribution:
        """Return each site's own rows."""
        found: dict[str, dict[str, fold.LaneSum]] = {site: {} for site in self.delivered}
        for name, item in self.sums.items():
            for operand, group in item.kept:
                for row in group.alive:
                    found[group.ids[row]][name] = fold.single(operand, row)
        _freeze([own] for each in found.values() for own in each.values())
        return Contribution(
            delivered=tuple(sorted(self.delivered)),
            failures=self.failures,
            gathered=self.gathered,
            rows=found,
            processes=(os.getpid(),),
        )

    def _fold(self, call: StageCall) -> Contribution:
        if call.is_apart:
            return self._apart()
        grids = {name: self._grid(item, call) for name, item in self.sums.items()}
        needs = {
            name: item.needs if name in call.exponents else tuple(map(max, item.start, item.needs))
            for name, item in self.sums.items()
        }
        is_wide = all(item.fits(grids[name]) for name, item in self.sums.items())
        sums = (
            {name: (item.total(grids[name], item.num_rows == 1),) for name, item in self.sums.items()}
            if is_wide
            else {}
        )
        _freeze(sums.values())
        return Contribution(
            delivered=tuple(sorted(self.delivered)),
            failures=self.failures,
            sums=sums,
            gathered=self.gathered,
            needs=needs,
            is_folded=is_wide,
            processes=(os.getpid(),),
        )


def _key(call: StageCall) -> tuple[tuple[str, Grid], ...]:
    return tuple(sorted(call.exponents.items()))


def _freeze(sums: Iterable[Sequence[fold.LaneSum]]) -> None:
    """Forbid writing to an answer: who reads it in this process must not change what is kept."""
    for part in (part for parts in sums for part in parts):
        for array in part.arrays:
            array.flags.writeable = False
