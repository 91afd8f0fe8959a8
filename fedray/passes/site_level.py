"""What all passes share that protect a whole site: which names they take, and whom the schedule may ask.

    noisy_sum(x, name, site) -> the sum of what sites send, clipped and with noise

`protected` puts such a function in the place of every reduction in `only`; a mean becomes the noisy sum over
the EXPECTED cohort, a constant: a divisor that depends on who came would change with one site. For the same
reason `fr.count` becomes that constant. What leaves under another name must be in `exact` (released as it is,
and said so) or in `drop` (not sent at all), else the pass is refused: a name forgotten is a leak.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

from fedray.accounting import Mechanism, calibrate
from fedray.core import trace as fr
from fedray.core.graph import Claim, Graph, Node, Op, Placement
from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, ScheduleError
from fedray.passes.clipping import Names, check_bound
from fedray.settings import check_numbers, check_whole, is_number

Clips = float | Mapping[str, float]
NoisySum = Callable[[Value, str, Site], Value]


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


def check_cohort(self: Any, schedule: Any, num_sites: int | None) -> None:
    """Raise ScheduleError where the run asks others than the noise of `self.cohort` reckons with.

    As `check_run` of a function in a plan, schedules call it: see runtime/schedule.py.
    """
    self.cohort.check(schedule, num_sites)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The arguments that all passes for a whole site share, checked together.

    `clip` is one bound, or one for each name. The noise is given by `noise_multiplier`, or by `epsilon`
    (at `delta`, over `rounds` rounds). `sampling="poisson"` claims amplification at cohort / population.
    `only` names the reductions to take, None every sum and mean that is not in `exact` or `drop`;
    `weights="uniform"` says that the weights of a mean are dropped, None refuses a weighted one.
    """

    who: str
    clip: Clips
    cohort: float | None
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    rounds: int | None
    max_noise: float
    only: Names | None
    exact: Names
    drop: Names
    weights: str | None
    population: float | None = None
    sampling: str | None = None
    releases: int | None = None  # of a run, where it is not one a round

    def __post_init__(self) -> None:
        for bound in self.clip.values() if isinstance(self.clip, Mapping) else [self.clip]:
            check_bound(self.who, bound)
        if not is_number(self.cohort) or self.cohort is None or self.cohort <= 0:
            self._refuse(f"cohort={self.cohort!r}: give the expected number of sites of a round")
        check_numbers(self.who, above=0, or_none=True, noise_multiplier=self.noise_multiplier,
                      population=self.population)  # fmt: skip
        check_whole(self.who, or_none=True, rounds=self.rounds)
        if isinstance(self.only, str):
            self._refuse(f"only={self.only!r}: give a list of names")
        if self.sampling not in (None, "poisson"):
            self._refuse(
                f"sampling={self.sampling!r}: say 'poisson' to claim amplification, or None to claim none"
            )
        if (self.noise_multiplier is None) == (self.epsilon is None):
            self._refuse("give noise_multiplier or epsilon, one of the two")
        if self.epsilon is not None and (self.rounds is None or self.only is None):
            self._refuse(f"epsilon={self.epsilon:g} needs the rounds of the run, and the names in `only`")
        if self.sampling and (self.population is None or self.population < self.cohort):
            self._refuse(f"population={self.population}: Poisson sampling takes {self.cohort:g} of how many?")
        if self.weights not in (None, "uniform"):
            self._refuse(f"weights={self.weights!r}: say 'uniform' to drop the weights of a mean")
        if both := sorted(set(self.exact) & {*self.drop, *(self.only or ())}):
            self._refuse(f"{both} are in `exact` and in `only` or `drop`: choose one")

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"{self.who}: {why}")

    @property
    def asked(self) -> Cohort:
        """Whom the noise reckons with."""
        assert self.cohort is not None
        rate = self.cohort / self.population if self.sampling and self.population else 1.0
        return Cohort(title=self.who, size=self.cohort, rate=rate)

    @cached_property
    def noise(self) -> float:
        """The noise multiplier, solved for where an epsilon was given."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None and self.rounds is not None and self.only is not None
        rounds = self.releases or self.rounds
        return calibrate.noise_multiplier(
            self.epsilon, self.delta, rounds, sampling_rate=self.asked.rate, steps=len(self.only)
        )

    @property
    def title(self) -> str:
        """As `explain` names the pass."""
        clip = "" if isinstance(self.clip, Mapping) else f"clip={self.clip:g}, "
        return f"{self.who}({clip}noise_multiplier={self.noise:.4g}, cohort={self.cohort:g})"

    def bound(self, name: str) -> float:
        """Return the bound of a name. Raises PassError where it has none."""
        if not isinstance(self.clip, Mapping):
            return self.clip
        if name not in self.clip:
            raise PassError(f"{self.who}: clip={dict(self.clip)} has no bound for {name!r}: add one")
        return self.clip[name]

    def mechanism(self, **others: Any) -> Mechanism:
        """Return what a ledger reads: by default noise that a trusted server adds."""
        rate, size = self.asked.rate, self.asked.size
        told = {
            "kind": "gaussian" if rate == 1 else "sampled_gaussian", "noise_multiplier": self.noise,
            "sampling_rate": rate, "noise_by": "server", "trusted": "server", "divisor": size,
        }  # fmt: skip
        return Mechanism(unit="site", delta=self.delta, max_noise=self.max_noise, **(told | others))

    @property
    def of_sampling(self) -> str:
        """What is claimed of sampling, in words."""
        if self.asked.rate == 1:
            return "no amplification by sampling claimed"
        return (
            f"amplified by Poisson sampling at rate {self.asked.rate:g}, for who does not learn the cohorts"
        )


def taken(terms: Terms, graph: Graph) -> dict[str, Node]:
    """Return the reductions to replace, by name. Raises PassError where one could not be protected."""
    leaving = {node.name: node for node in graph.reductions if node.params["kind"] != "count"}
    found = {name: node for name, node in leaving.items() if name not in {*terms.exact, *terms.drop}}
    for name, node in found.items():
        if why := _unprotected(terms, name, node):
            raise PassError(f"{terms.who}: {name} ({node.params['kind']}, {node.where}) {why}")
    if missing := sorted(set(terms.only or ()) - set(found)):
        raise PassError(
            f"{terms.who} found nothing named {missing} in {graph.name}; its reductions are "
            f"{', '.join(sorted(leaving))}: change `only`"
        )
    if not found:
        raise PassError(f"{terms.who} found nothing to protect in {graph.name}: change `exact`")
    return found


def _unprotected(terms: Terms, name: str, node: Node) -> str:
    """Return why noise would not protect what leaves under a name; "" where it does."""
    if terms.only is not None and name not in terms.only:
        return (
            "would leave without noise: name it in `only` (it then costs budget too), in `exact` (it leaves "
            "as it is) or in `drop` (it is not sent)"
        )
    if node.placement is Placement.SITES:
        return "goes from site to site, and noise on a sum at the server does not hide it"
    if node.params["kind"] not in ("sum", "mean"):
        return (
            "shows the server the value of each site, and noise on a sum does not hide it: use an algorithm "
            "whose updates leave as sums"
        )
    if node.params.get("by"):
        return "is a sum for each region, with cohorts that the pass does not know"
    if len(node.args) > 1 and terms.weights is None:
        return (
            "is a weighted mean, and a site must count as much as any other: train with equal weights "
            "(algorithm.weighted=false), or say weights='uniform' to drop them"
        )
    return ""


def protected(terms: Terms, noisy_sum: NoisySum, told: Callable[[str], str], trusts: str) -> Pass:
    """Return the pass that puts noisy sums in the place of what leaves; `told(name)` says what that does."""
    cohort, title = terms.asked, terms.title

    def run(graph: Graph) -> Graph:
        chosen = taken(terms, graph)
        result = graph
        for kind in ("mean", "sum"):
            if names := [name for name, node in chosen.items() if node.params["kind"] == kind]:
                result = _replaced(result, kind, names)
        result = _without(result, terms.drop, cohort)
        sentences, others = [told(name) for name in chosen], _others(graph, terms, chosen)
        claim = Claim(by=title, text="; ".join(sentences), trusts=trusts, but="; ".join(others))
        return replace(
            result,
            name=f"{graph.name} + {title}",
            note="\n".join(filter(None, [graph.note, *others])),
            claims=(*graph.claims, claim),
        )

    def _replaced(graph: Graph, kind: str, names: Names) -> Graph:
        def noisy(x: Value, weight: Value | None, name: str, site: Site) -> Value:
            total = noisy_sum(x, name, site)
            return total / cohort.size if kind == "mean" else total

        return on_reduce(kind, names, terms.who)(noisy)(graph)

    run.__name__ = title
    if isinstance(terms.clip, Mapping):
        run.named = {f"{terms.who}(clip=...)": tuple(terms.clip)}  # type: ignore[attr-defined]
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


def _others(graph: Graph, terms: Terms, chosen: Collection[str]) -> list[str]:
    names = dict.fromkeys(node.name for node in graph.reductions if node.params["kind"] != "count")
    exact = [name for name in names if name not in chosen and name not in terms.drop]
    dropped = [name for name in names if name in terms.drop]
    return [
        *([f"released exactly, without noise: {', '.join(exact)}"] if exact else []),
        *([f"not sent: {', '.join(dropped)}"] if dropped else []),
        "who was asked and who delivered is seen by the server exactly; evaluations are programs of their "
        "own, whose figures leave as egress says",
    ]
