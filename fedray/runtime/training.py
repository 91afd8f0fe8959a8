"""The run that an aggregator is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray.runtime.buffered import Buffered
from fedray.runtime.plan import Plan
from fedray.runtime.schedule import Synchronous


@dataclass(frozen=True, slots=True)
class Training:
    """Its plan, schedule, seed and name."""

    plan: Plan
    schedule: Synchronous | Buffered
    seed: int
    run: str
    row_invariant: bool | None = None  # as the probe found
    storage: str = ""  # where every machine of the run can write and read; "" where there is no such place
    folder: str = ""  # of the checkpoints, where the aggregator writes down itself what it does
    name: str = ""  # of the run directory, where there is one

    @property
    def is_layout_free(self) -> bool:
        """Tell whether equal bits are promised in every layout."""
        return self.plan.fold == "exact" and self.row_invariant is not False

    def facts(self, grids: Mapping[str, Mapping[str, Sequence[int]]], start: str) -> dict[str, Any]:
        """Return what a checkpoint says of the run; `grids` are those of its lanes, by kind of round."""
        of_kinds = {
            kind.digest: {name: list(found) for name, found in grids.get(kind.digest, {}).items()}
            for kind in self.plan.kinds
        }
        return {"digest": self.plan.digest, "seed": self.seed, "run": self.run, "start": start,
                "grids": of_kinds}  # fmt: skip
