"""Stacked training with a local early stop: a stopped site goes on being computed, and its snapshot counts.

Who is computed beside whom never depends on who has stopped, so rows keep their bits. Only a group of which
all sites have stopped is left early. Sites are measured one by one, by the plain model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedray.learn.batches import Batch
from fedray.learn.layout import Move, rows_drawn
from fedray.learn.planes import blank
from fedray.learn.stacked import Training
from fedray.learn.stopping import Watch
from fedray.tree import Flat


class Watched(Training):
    """The training of sites that may stop early. `watch` comes between `begin` and `run`."""

    def watch(self, valid: Sequence[Batch | None]) -> None:
        """Take the validation rows of each site, in the given order; None where it has none."""
        plan = self.plan
        self.best = self.planes("best")
        self.row = blank(1, self.schema, self.device)
        self.taken = torch.tensor(plan.steps)  # steps until the stop, by position
        self.watches: dict[int, tuple[Watch, Batch]] = {}
        for place, site in enumerate(plan.order):
            rows = valid[site]
            if rows is not None and plan.steps[place]:
                here = {name: column.to(self.device) for name, column in rows.items()}
                self.watches[place] = Watch(self.local, plan.sizes[place], plan.steps[place]), here

    def _chunk(self, moves: Sequence[Move], blocks: slice, x: Tensor, y: Tensor) -> None:
        first = moves[0].step
        if first and all(int(taken) <= first for taken in self.taken):
            return
        self.step_of = torch.zeros(x.shape[0], dtype=torch.int64)
        for move in moves:
            self.step_of[move.here] = move.step
        super()._chunk(moves, blocks, x, y)

    def _step(self, stepping: int, step: int) -> None:
        super()._step(stepping, step)
        done = step + 1
        for place, (watch, valid) in self.watches.items():
            if place < stepping and not watch.is_over and watch.is_due(done):
                self._measure(place, watch, valid)

    def _measure(self, place: int, watch: Watch, valid: Batch) -> None:
        self.weights.copy_row(place, self.row)
        with torch.no_grad():
            loss = self.local.model.loss(Flat(self.row, self.schema), valid, None, self.local.pos_weight)
        if watch.note(float(loss)):
            for best, weight in zip(self.best.tensors, self.weights.tensors, strict=True):
                best[place] = weight[place]
        if watch.is_over:
            self.taken[place] = watch.done

    def _account(self, outputs: Tensor, blocks: slice, stepping: int) -> None:
        """Add the loss of the rows that a site saw before it stopped."""
        site = self.plan.site[blocks]
        step = torch.full_like(site, self.frame.step) if self.plan.is_static else self.step_of
        found = self.head.loss(outputs).double().sum(1).cpu() * self.plan.lengths[blocks]
        counts = (site < stepping) & (step < self.taken[site])
        self.lost.index_add_(0, site[counts], found[counts])

    def delta(self) -> Tensor:
        """Return best - global as a flat buffer, (k, stride) in the given order."""
        places = torch.tensor(list(self.watches), dtype=torch.int64, device=self.device)
        for best, weight in zip(self.best.tensors, self.weights.tensors, strict=True):
            weight[places] = best[places]
        return super().delta()

    def mean_loss(self) -> Tensor:
        """Return the mean loss over the rows that each site saw until it stopped, (k,) in the given order."""
        size = np.array(self.plan.sizes)
        batch = np.minimum(self.local.batch_size or max(self.plan.sizes, default=0), size)
        seen = torch.from_numpy(rows_drawn(size, self.taken.numpy(), batch)).double()
        mean = self.lost / seen.clamp_min(1)
        return torch.empty_like(mean).index_copy_(0, torch.tensor(self.plan.order), mean)

    def steps_taken(self) -> list[int]:
        """Return the steps of each site until it stopped, in the given order."""
        found = [0] * self.k
        for site, taken in zip(self.plan.order, self.taken.tolist(), strict=True):
            found[site] = taken
        return found
