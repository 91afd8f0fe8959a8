"""Sizes: the bytes of every name that leaves, learnt from a rehearsal on made-up rows before any site is
asked.

The rehearsal runs the plan's site stages once, in one host (rehearsal.py), for one site whose data are zeros
shaped as the data of the federation. It needs no patient row: names, shapes and dtypes of columns, nothing
else.
"""

from dataclasses import dataclass
from typing import Any

from fedray import tree
from fedray.core.graph import MADE_UP
from fedray.errors import FedrayError
from fedray.runtime.federation import HostSpec, in_process_transport
from fedray.runtime.fold import specs
from fedray.runtime.host import Contribution, StageCall, name_of
from fedray.runtime.interpret import place_of
from fedray.runtime.kept import boxed_bytes
from fedray.runtime.pack import Pack
from fedray.runtime.plan import Plan, Size
from fedray.runtime.region import Region
from fedray.runtime.round import Aggregator
from fedray.runtime.schedule import Synchronous
from fedray.runtime.training import Training

# what a function may raise on made-up rows
MISHAPS = (
    FedrayError, ValueError, RuntimeError, TypeError, KeyError, ArithmeticError, AttributeError,
)  # fmt: skip


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
        spec = HostSpec("rehearsal", {MADE_UP[0]: Given(data)}, allow_empty=True)
        transport = in_process_transport()([spec])
        super().__init__("rehearsal", {spec.name: spec.all_sites}, transport)
        self.hosts = transport.hosts
        self.seen: dict[str, Size] = {}
        self.once: dict[int, int] = {}  # bytes of a broadcast that a host gets once

    def first_error(self) -> BaseException | None:
        """Return what the mapped function raised."""
        pack = self.hosts["rehearsal"]
        return pack.first_error if isinstance(pack, Pack) else None

    def ask(self, call: StageCall, downlink: Any) -> Contribution:
        """Run a stage and note the bytes of each name."""
        answer = super().ask(call, downlink)
        self.once |= {index: size for index, value in downlink.items() if (size := boxed_bytes(value))}
        for key, (part,) in answer.sums.items():
            self.seen[name_of(key)] = Size(part.nbytes, sum(leaf.sum_bytes for leaf in specs(part.spec)))
        for name, values in answer.gathered.items():
            self.seen[name] = Size(max(tree.nbytes(value) for value in values.values()), 0)
        return answer


def rehearse(plan: Plan, state: Any, data: Any) -> tuple[Plan, str]:
    """Return the plan with the size of each name, and why not all could be learnt ("" where they could).

    `state` is the server's first state, `data` a made-up site. The plan itself is not changed. What went
    wrong may be said in full: no patient's value was near.
    """
    region = _Watching(data)
    aggregator = Aggregator(region)
    aggregator.hello()
    aggregator.start(Training(plan, Synchronous(quorum=1.0, on_failure="raise"), 0, "rehearsal"), state)
    try:
        aggregator.run_round(0)
    except MISHAPS as error:
        return plan.with_sizes(region.seen, once=region.once), _told(region.first_error() or error)
    return plan.with_sizes(region.seen, once=region.once), ""


def _told(error: BaseException) -> str:
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''} ({place_of(error)})"
