"""Step budgets: a site that has no time for all of its local steps takes those it has time for.

What it did counts. The update says the steps that were really taken, which is what FedNova and SCAFFOLD
divide by; FedProx keeps partial work as it is (Li et al., MLSys 2020, section 3: gamma-inexact solutions).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedray.learn.objectives import pursuing
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.rows import Group, Rows, Tagged, column, row
from fedray.tree import Flat

Budget = Mapping[str, int | None] | Callable[[str, int], int | None]


@dataclass(frozen=True)
class Budgeted:
    """A local update whose sites stop early; see `budgeted`."""

    inner: Any
    budget: Budget

    @property
    def named_sites(self) -> dict[str, tuple[str, ...]]:
        """The sites that were named, and where: a run refuses those that there are not."""
        return {"budgeted(budget=...)": () if callable(self.budget) else tuple(self.budget)}

    @property
    def lr(self) -> Any:
        """The learning rate of the inner update, or its schedule."""
        return self.inner.lr

    @property
    def momentum(self) -> float | None:
        """The momentum of the inner update."""
        found: float | None = getattr(self.inner, "momentum", 0.0)
        return found

    @property
    def model(self) -> Any:
        """The model of the inner update, None where it has none."""
        return getattr(self.inner, "model", None)

    @property
    def batch_size(self) -> int | None:
        """The rows of a batch, None where it is all rows."""
        found: int | None = getattr(self.inner, "batch_size", None)
        return found

    @property
    def rows(self) -> Callable[..., Update] | None:
        """The twin: the sites of a group train as one program, each its own number of steps."""
        return None if getattr(self.inner, "rows", None) is None else self._train_rows

    def with_objective(self, objective: Any) -> "Budgeted":
        """Return the same budget for the inner update of another objective."""
        return replace(self, inner=pursuing(self.inner, objective, "budgeted"))

    def steps_at(self, data: Any, rng: Key) -> int:
        """Return the steps of a site in a round: its work, or its budget where that is less."""
        work: int = self.inner.steps_at(data, rng)
        budget = self.budget
        most = budget(rng.site, rng.round) if callable(budget) else budget.get(rng.site)
        if most is not None and most < 0:
            raise ValueError(f"budgeted: a budget of {most} steps in round {rng.round} must be 0 or more")
        return work if most is None else min(work, most)

    def loss(self, params: Flat, data: Any) -> float:
        """Return the inner update's loss over all training rows."""
        found: float = self.inner.loss(params, data)
        return found

    def gradient(self, params: Flat, data: Any, rng: Key | None = None) -> Flat:
        """Return the inner update's full-batch gradient, which no budget cuts."""
        found: Flat = self.inner.gradient(params, data, rng)
        return found

    def __call__(self, params: Flat, data: Any, rng: Key, **extras: Any) -> Update:
        """Train for as many steps as the site has. See `LocalUpdate` for the extras."""
        update: Update = self.inner(params, data, rng, **{"steps": self.steps_at(data, rng), **extras})
        return update

    def _train_rows(
        self, group: Group, params: Tagged, data: Tagged, rng: Tagged, **extras: Tagged
    ) -> Update:
        if "steps" not in extras:
            counts = [self.steps_at(row(data, i), row(rng, i)) for i in range(group.k)]
            extras = {**extras, "steps": Rows(column(counts))}
        update: Update = self.inner.rows(group, params, data, rng, **extras)
        return update


def budgeted(local: Any, budget: Budget) -> Budgeted:
    """Bound a site's local steps by its budget: {site id: steps}, or a function of (site id, round).

    A site that is not named, or whose number is None, does all of its work; 0 steps leave the parameters as
    they came. Raises ValueError where `local` does not say how many steps it takes, or on a negative number.
    """
    if not hasattr(local, "steps_at"):
        raise ValueError(f"budgeted: {type(local).__name__} has no steps_at(data, rng)")
    if not isinstance(budget, Mapping) and not callable(budget):
        raise ValueError(f"budgeted: budget={budget!r}: give {{site id: steps}} or f(site id, round)")
    named = budget.values() if isinstance(budget, Mapping) else ()
    if any(steps is not None and (not isinstance(steps, int) or steps < 0) for steps in named):
        raise ValueError("budgeted: a budget must be 0 or more steps, a whole number")
    return Budgeted(local, budget)
