"""What all passes share that protect a whole site: which names they take, and whom the schedule may ask.

    noisy_sum(x, name, site) -> the sum of what sites send, clipped and with noise

`protected` puts such a function in the place of every reduction in `only`; a mean becomes the noisy sum over
the EXPECTED cohort, a constant: a divisor that depends on who came would change with one site. For the same
reason `fr.count` becomes that constant. What leaves under another name must be in `exact` (released as it is,
and said so) or in `drop` (not sent at all), else the pass is refused: a name forgotten is a leak.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from fedray.core import trace as fr
from fedray.core.graph import Graph, Node, Op, Placement
from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, ScheduleError

Names = Collection[str]
NoisySum = Callable[[Value, str, Site], Value]
SAMPLINGS = (None, "poisson")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Whom the noise of a pass reckons with: the expected cohort, and the rate of Poisson sampling.

    `rate` is 1.0 where no amplification by sampling is claimed.
    """

    title: str
    size: float
    rate: float = 1.0

    def check(self, schedule: Any, num_sites: int | None) -> None:
        """Raise ScheduleError where the schedule asks others than the noise reckons with.

        `num_sites` is None before a federation is there: then only the kind of sampling is judged.
        """
        if getattr(schedule, "choice", None) is not None or getattr(schedule, "learner", None) is not None:
            raise ScheduleError(
                f"{self.title} cannot protect sites that are asked by what they tell before a round or have "
                "told in earlier ones: that leaves without noise. Use schedule.sampling=uniform or poisson"
            )
        sampling = getattr(schedule, "sampling", None)
        if self.rate < 1 and (sampling != "poisson" or not hasattr(schedule, "cohort_of")):
            raise ScheduleError(
                f"{self.title} claims amplification by Poisson sampling and the schedule's sampling is "
                f"{sampling!r}: use schedule.sampling=poisson, or sampling=None, which claims none"
            )
        if num_sites is None:
            return
        among = getattr(schedule, "among", None)
        there = num_sites if among is None else len(among)
        asked = schedule.expected_cohort(num_sites)
        if asked != self.size:
            raise ScheduleError(
                f"{self.title} divides by a cohort of {self.size:g} and the schedule asks {asked} of {there} "
                f"sites: give the pass cohort={asked}"
            )
        if self.rate < asked / there - 1e-12:
            raise ScheduleError(
                f"{self.title} claims that a site is asked with probability {self.rate:g} and it is "
                f"{asked / there:g}: give the pass population={there}"
            )


def cohort_of(title: str, cohort: float | None, population: float | None, sampling: str | None) -> Cohort:
    """Return the cohort of a pass's arguments. Raises ValueError where they do not go together."""
    if cohort is None or not 0 < cohort < math.inf:
        raise ValueError(f"{title}: cohort={cohort}: give the expected number of sites of a round")
    if sampling not in SAMPLINGS:
        raise ValueError(
            f"{title}: sampling={sampling!r}: say 'poisson' to claim amplification, or None to claim none"
        )
    if sampling is None:
        return Cohort(title=title, size=cohort)
    if population is None or population < cohort:
        raise ValueError(f"{title}: population={population}: Poisson sampling takes {cohort:g} of how many?")
    return Cohort(title=title, size=cohort, rate=cohort / population)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Which reductions a pass takes: `only` (None: every sum and mean), `exact` and `drop`.

    `weights="uniform"` says that the weights of a mean are dropped; None refuses a weighted one.
    """

    title: str
    only: Names | None = ("delta",)
    exact: Names = ("metrics",)
    drop: Names = ()
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in (None, "uniform"):
            raise ValueError(
                f"{self.title}: weights={self.weights!r}: say 'uniform' to drop the weights of a mean"
            )
        if both := sorted(set(self.exact) & {*self.drop, *(self.only or ())}):
            raise ValueError(f"{self.title}: {both} are in `exact` and in `only` or `drop`: choose one")

    def of(self, graph: Graph) -> dict[str, Node]:
        """Return the reductions to replace, by name. Raises PassError where one could not be protected."""
        leaving = {node.name: node for node in graph.reductions if node.params["kind"] != "count"}
        found = {}
        for name, node in leaving.items():
            if name in self.exact or name in self.drop:
                continue
            if self.only is not None and name not in self.only:
                self._refuse(node, "would leave without noise: name it in `only` (it then costs budget too)"
                                   ", in `exact` (it leaves as it is) or in `drop` (it is not sent)")
            self._check(node)
            found[name] = node
        if missing := sorted(set(self.only or ()) - set(found)):
            raise PassError(
                f"{self.title} found nothing named {missing} in {graph.name}; its reductions are "
                f"{', '.join(sorted(leaving))}: change `only`"
            )
        if not found:
            raise PassError(f"{self.title} found nothing to protect in {graph.name}: change `exact`")
        return found

    def _check(self, node: Node) -> None:
        if node.placement is Placement.SITES:
            self._refuse(node, "goes from site to site, and noise on a sum at the server does not hide it")
        if node.params["kind"] not in ("sum", "mean"):
            self._refuse(node, "shows the server the value of each site, and noise on a sum does not hide it:"
                               " use site_dp_local, or an algorithm whose updates leave as sums")
        if node.params.get("by"):
            self._refuse(node, "is a sum for each region, with cohorts that the pass does not know")
        if len(node.args) > 1 and self.weights is None:
            self._refuse(node, "is a weighted mean, and a site must count as much as any other: train with "
                               "equal weights (algorithm.weighted=false), or say weights='uniform' to drop "
                               "them")

    def _refuse(self, node: Node, why: str) -> None:
        raise PassError(f"{self.title}: {node.name} ({node.params['kind']}, {node.where}) {why}")


def protected(taken: Taken, cohort: Cohort, noisy_sum: NoisySum, claims: Callable[[str], str]) -> Pass:
    """Return the pass that puts noisy sums in the place of what leaves; `claims(name)` says what that does."""

    def run(graph: Graph) -> Graph:
        chosen = taken.of(graph)
        result = replace(graph, note="")
        for kind in ("mean", "sum"):
            if names := [name for name, node in chosen.items() if node.params["kind"] == kind]:
                result = _replaced(result, kind, names)
        result = _without(result, taken.drop, cohort)
        told = [claims(name) for name in chosen] + _others(graph, taken, chosen)
        note = "\n".join(filter(None, [graph.note, *told]))
        return replace(result, name=f"{graph.name} + {taken.title}", note=note)

    def _replaced(graph: Graph, kind: str, names: Names) -> Graph:
        def noisy(x: Value, weight: Value | None, name: str, site: Site) -> Value:
            total = noisy_sum(x, name, site)
            return total / cohort.size if kind == "mean" else total

        return on_reduce(kind, names, taken.title)(noisy)(graph)

    run.__name__ = taken.title
    return run


def _without(graph: Graph, drop: Names, cohort: Cohort) -> Graph:
    """Put nothing in the place of what is dropped, and the expected cohort in that of a count."""

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE:
            return None
        if node.params["kind"] == "count":
            size = int(cohort.size) if float(cohort.size).is_integer() else cohort.size
            return Node(Op.CONST, Placement.ANY, params={"value": size}, where=node.where)
        return fr.apply(nothing).node if node.name in drop else None

    return rewrite(graph, rule)


def nothing() -> dict[str, Any]:
    """Return what the server has of a name that is not sent."""
    return {}


def _others(graph: Graph, taken: Taken, chosen: Collection[str]) -> list[str]:
    names = dict.fromkeys(node.name for node in graph.reductions if node.params["kind"] != "count")
    exact = [name for name in names if name not in chosen and name not in taken.drop]
    dropped = [name for name in names if name in taken.drop]
    return [
        *([f"released exactly, without noise: {', '.join(exact)}"] if exact else []),
        *([f"not sent: {', '.join(dropped)}"] if dropped else []),
        "who was asked and who delivered is seen by the server exactly",
    ]
