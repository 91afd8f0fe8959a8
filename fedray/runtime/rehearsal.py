"""Rehearsal: what made-up rows tell of a run before any site is asked.

One host does it: the bytes of every name that leaves, and whether rows are invariant. So the driver and the
aggregator hold no second model for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.runtime import devices
from fedray.runtime.plan import Plan, Size
from fedray.runtime.probe import row_invariant
from fedray.runtime.result import params_of
from fedray.runtime.sizes import rehearse


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Sizes by name of the plan, of each evaluation program and of rounds of other kinds, by period; and why
    a round could not be tried ("").

    `once` are the bytes of a broadcast, by its node, that a host gets once.
    """

    sizes: Mapping[str, Size]
    of_programs: Mapping[str, Mapping[str, Size]]
    why: str
    row_invariant: bool | None
    of_kinds: Mapping[int, Mapping[str, Size]] = field(default_factory=dict)
    once: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToRehearse:
    """The plan of a run, its evaluation programs by split, and the server's first state."""

    plan: Plan
    programs: Mapping[str, Plan]
    state: Any
    device: str = devices.CPU

    def on(self, blank: Any) -> Rehearsal:
        """Try them on a made-up site."""
        plan, why = rehearse(replace(self.plan, every={}), self.state, blank)
        of_kinds = {}
        for period, other in self.plan.every.items():
            tried, wrong = rehearse(other, self.state, blank)
            of_kinds[period], why = tried.sizes, why or wrong
        of_programs = {
            split: rehearse(program, params_of(self.state), blank)[0].sizes
            for split, program in self.programs.items()
        }
        found = [] if why else [
            row_invariant(kind, self.state, blank, self.device) for kind in (plan, *self.plan.every.values())
        ]
        known = [each for each in found if each is not None]
        is_invariant = all(known) if known else None
        return Rehearsal(plan.sizes, of_programs, why, is_invariant, of_kinds, plan.once)
