"""Sizes: the bytes of every name that leaves, learnt from a rehearsal on made-up rows before any site is
asked.

The rehearsal runs the plan's site stages once, in this process, for one site whose data are zeros shaped as
the data of the federation. It needs no patient row: hosts tell names, shapes and dtypes of columns, nothing
else.
"""

from dataclasses import dataclass
from typing import Any

from fedray import tree
from fedray.errors import FedrayError
from fedray.runtime.federation import HostSpec, in_process_transport
from fedray.runtime.fold import specs
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.plan import Plan, Size
from fedray.runtime.region import Region
from fedray.runtime.round import Aggregator, Training
from fedray.runtime.schedule import Synchronous


@dataclass(frozen=True)
class Given:
    """Open a site whose data are given."""

    data: Any

    def __call__(self) -> Any:
        """Return the data."""
        return self.data


class _Watching(Region):
    """A region that notes what its one site sends."""

    def __init__(self, data: Any) -> None:
        spec = HostSpec("rehearsal", {"rehearsal": Given(data)}, allow_empty=True)
        super().__init__("rehearsal", {spec.name: spec.all_sites}, in_process_transport()([spec]))
        self.seen: dict[str, Size] = {}

    def run(self, call: StageCall, downlink: Any) -> Contribution:
        """Run a stage and note the bytes of each name."""
        answer = super().run(call, downlink)
        for name, part in answer.sums.items():
            self.seen[name] = Size(part.nbytes, sum(leaf.sum_bytes for leaf in specs(part.spec)))
        for name, values in answer.gathered.items():
            self.seen[name] = Size(max(tree.nbytes(value) for value in values.values()), 0)
        return answer


def rehearse(plan: Plan, state: Any, data: Any) -> tuple[Plan, str]:
    """Return the plan with the size of each name, and why not all could be learnt ("" where they could).

    `state` is the server's first state, `data` a made-up site. The plan itself is not changed.
    """
    region = _Watching(data)
    aggregator = Aggregator(region)
    aggregator.hello()
    aggregator.start(Training(plan, Synchronous(quorum=1.0, on_failure="raise"), 0, "rehearsal"), state)
    try:
        aggregator.run_round(0)
    except (FedrayError, ValueError, RuntimeError, TypeError, KeyError, ArithmeticError) as error:
        return plan.with_sizes(region.seen), f"{type(error).__name__}: {error}"
    return plan.with_sizes(region.seen), ""
