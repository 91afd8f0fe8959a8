"""Tests of an update that every site can do with what it has: rows behind it, norm, inversion, membership."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedray import tree
from fedray.airlock.inversion import rebuilt_rows
from fedray.airlock.leaving import Finding, Leaving
from fedray.learn.batches import Batch, num_rows
from fedray.learn.intervals import Array, delong_interval
from fedray.settings import check_numbers, check_whole, is_whole


@dataclass(frozen=True)
class RowsBehind:
    """Refuse an update that is the sum of fewer gradients of rows than `least`.

    Counted are the rows that a step takes, times the steps, each row of the site once. What leaves of one
    step on two or four rows is these rows (experiments/attacks/privacy).
    """

    least: int = 32
    name: ClassVar[str] = "rows behind the update"

    def __post_init__(self) -> None:
        if not is_whole(self.least, 1):
            raise ValueError(f"RowsBehind: least={self.least!r}: give a whole number, 1 or more")

    def check(self, leaving: Leaving) -> Finding:
        """Count the rows, from the settings of the training and the number of the site's rows."""
        rows, size = leaving.num_rows, getattr(leaving.training, "batch_size", None)
        seen = min(rows, (size or rows) * leaving.update.num_steps)
        return Finding(self.name, seen, self.least, is_floor=True)


@dataclass(frozen=True)
class Norm:
    """Refuse an update whose L2 norm is above `limit`."""

    limit: float
    name: ClassVar[str] = "norm of the update"

    def __post_init__(self) -> None:
        check_numbers("Norm", above=0, limit=self.limit)

    def check(self, leaving: Leaving) -> Finding:
        """Return the norm over all leaves that leave."""
        return Finding(self.name, float(tree.norm(leaving.update.delta)), self.limit)


@dataclass(frozen=True)
class Rebuilt:
    """Refuse an update from which more than `limit` training rows can be read off, to within `tolerance`.

    It is the attack itself, of `inversion.rebuilt_rows`, by who knows the rows. It reads the layers that see
    the rows, so a model whose first layer is none of these cannot be measured.
    """

    limit: int = 0
    tolerance: float = 0.1
    name: ClassVar[str] = "training rows rebuilt"

    def __post_init__(self) -> None:
        check_whole("Rebuilt", least=0, limit=self.limit)
        check_numbers("Rebuilt", above=0, tolerance=self.tolerance)

    def check(self, leaving: Leaving) -> Finding:
        """Count the rebuilt rows."""
        rows = leaving.training_rows.get("x")
        found = None if rows is None else rebuilt_rows(leaving.update.delta, rows, self.tolerance)
        return Finding(self.name, math.nan if found is None else int(found.sum()), self.limit)


Mask = NDArray[np.bool_]
MAX_OUTCOMES = 10  # more values of an outcome are a number's, whose rows are not told apart by it


@dataclass(frozen=True)
class Membership:
    """Refuse an update whose model tells the rows that were trained on from others of the site.

    The advantage is 2 AUROC - 1 of the loss as a score: the chance that a training row has the smaller loss,
    less that of the contrary; 0 is a model that tells nothing. It is taken over all rows and over those of
    each outcome, since what is rare is remembered first, and the worst counts. It is above `limit` where it
    is by more than `margin` standard errors (DeLong's, or that of no difference where it is larger), so few
    rows refuse nothing; where fewer than `least` of a kind are there, nothing is measured.
    Source: Yeom et al., Privacy risk in machine learning, CSF 2018 (the loss as a score); deviations: AUROC
    in place of one threshold, and the outcomes apart.
    """

    limit: float = 0.2
    margin: float = 2.0
    least: int = 5
    name: ClassVar[str] = "membership advantage"

    def __post_init__(self) -> None:
        check_numbers("Membership", least=0, below=1, limit=self.limit)
        check_numbers("Membership", least=0, margin=self.margin)
        if not is_whole(self.least, 2):
            raise ValueError(f"Membership: least={self.least!r}: give a whole number, 2 or more")

    def check(self, leaving: Leaving) -> Finding:
        """Compare the losses of training and of validation rows."""
        training, held_out = leaving.training_rows, leaving.held_out
        nothing = Finding(self.name, math.nan, self.limit)
        if held_out is None or min(num_rows(training), num_rows(held_out)) < self.least:
            return nothing
        members, others = (losses.numpy() for losses in leaving.losses(training, held_out))
        found = [
            self._compare(members[mine], others[theirs])
            for mine, theirs in alike(training, held_out)
            if min(np.count_nonzero(mine), np.count_nonzero(theirs)) >= self.least
        ]
        return max(found, key=lambda finding: finding.value - finding.margin, default=nothing)

    def _compare(self, members: Array, others: Array) -> Finding:
        m, n = len(members), len(others)
        area = delong_interval(np.repeat([1.0, 0.0], [m, n]), -np.concatenate([members, others]))
        no_difference = math.sqrt((m + n + 1) / (12 * m * n))  # of U / (m n), Mann and Whitney 1947
        se = max(area.se, no_difference)
        return Finding(self.name, 2 * area.value - 1, self.limit, self.margin * 2 * se)


def alike(training: Batch, held_out: Batch, outcome: str = "y") -> list[tuple[Mask, Mask]]:
    """Return pairs of masks of training and held-out rows that are compared: all, and each outcome."""
    pairs = [(np.ones(num_rows(training), np.bool_), np.ones(num_rows(held_out), np.bool_))]
    if outcome in training and training[outcome].dim() == 1:
        mine, theirs = training[outcome].cpu().numpy(), held_out[outcome].cpu().numpy()
        values = np.unique(mine)
        if 1 < len(values) <= MAX_OUTCOMES:
            pairs += [(mine == value, theirs == value) for value in values]
    return pairs
