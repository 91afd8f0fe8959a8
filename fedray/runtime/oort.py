"""Oort: ask the sites that promise most for the time that they take, and some that were never asked.

Source: Lai, Zhu, Madhyastha, Chowdhury, Oort: Efficient federated learning via guided participant selection,
OSDI 2021, Algorithm 1 and sections 4.2 to 4.4. What a site promises is learnt from what it told when it was
last asked: `loss_statistic`, its rows times the root of their mean squared loss. It is told in the round, so
`egress` lists it there, and what is known of the sites is memory of the server: it becomes current with the
round, is part of every checkpoint, and the same seed asks the same sites.

Deviations: the losses are those of the received parameters over all training rows (the paper takes those of
the mini-batches in training). The seconds are simulated ones. Where too few sites are left that were not
picked too often, those are asked too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedray.core.graph import Node, Op, Placement, toposort
from fedray.core.trace import Algorithm, Outputs, Value, apply, gather, map
from fedray.core.value import lift
from fedray.errors import ScheduleError
from fedray.rng import Key
from fedray.runtime.schedule import Latency, Synchronous, synchronous
from fedray.runtime.traces import Trace, read_trace
from fedray.settings import is_number, is_whole

SLOT, TOLD = "oort", "loss_statistic"
Memory = Mapping[str, Any]  # rounds, preferred_s, gained: [a number a round], sites: {site: list of `Seen`}
UTILITY, LAST, ROUND, TIMES = range(4)  # of a site: statistic; round of participation, counted and of the run


@dataclass(frozen=True)
class LossStatistic:
    """A site's rows times the root of their mean squared loss; 0 without rows."""

    row_losses: Callable[[Any, Any], Any]

    def __call__(self, params: Any, data: Any) -> float:
        """Return it."""
        losses = self.row_losses(params, data).double()
        return float(len(losses) * losses.square().mean().sqrt()) if len(losses) else 0.0


@dataclass(frozen=True, kw_only=True)
class Oort:
    """Algorithm 1 with its settings: see `oort`. A `Learner`."""

    statistic: LossStatistic
    epsilon: float
    epsilon_decay: float
    epsilon_least: float
    alpha: float
    pacer_step_s: float
    pacer_window: int
    cutoff: float
    clip: float
    most_times: int
    slot: str = SLOT

    def __post_init__(self) -> None:
        fractions = ("epsilon", "epsilon_decay", "epsilon_least", "cutoff", "clip")
        wrong = [
            f"{name}={getattr(self, name)!r}: give a number in [0, 1]"
            for name in fractions
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1)
        ]
        checks = {
            f"alpha={self.alpha!r}: give 0 or more": is_number(self.alpha) and self.alpha >= 0,
            f"pacer_step_s={self.pacer_step_s!r}: give seconds above 0": is_number(self.pacer_step_s)
            and self.pacer_step_s > 0,
            f"pacer_window={self.pacer_window!r}: give 1 round or more": is_whole(self.pacer_window, 1),
            f"most_times={self.most_times!r}: give 1 or more": is_whole(self.most_times, 1),
        }
        if wrong := wrong + [problem for problem, is_fine in checks.items() if not is_fine]:
            raise ScheduleError("oort(): " + "; ".join(wrong))

    def watching(self, algorithm: Algorithm) -> Algorithm:
        """Return the algorithm whose sites tell their statistic in the stage in which they train."""

        def round(server: Value, site: Any) -> Outputs:
            outputs = algorithm.round(server, site)
            told = gather(map(self.statistic, received(algorithm.title, outputs), site.data), name=TOLD)
            memory = site.server
            memory.store(SLOT, apply(self.learn, memory.slot(SLOT), told, memory.stream(SLOT)))
            return outputs

        return replace(algorithm, round=round, name=algorithm.title)

    def learn(self, memory: Memory | None, told: Mapping[str, float], key: Key) -> Memory:
        """Return what is known after a round, the pacer's preferred duration among it."""
        known = memory or {"rounds": 0, "preferred_s": self.pacer_step_s, "gained": [], "sites": {}}
        number, window = int(known["rounds"]) + 1, self.pacer_window
        sites = dict(known["sites"])
        for site in sorted(told):
            times = int(sites[site][TIMES]) if site in sites else 0
            sites[site] = [float(told[site]), number, key.round, times + 1]
        gained = [*known["gained"], math.fsum(float(each) for each in told.values())][-2 * window :]
        before, lately = math.fsum(gained[:window]), math.fsum(gained[window:])
        is_slower = len(gained) == 2 * window and before > lately
        preferred_s = known["preferred_s"] + (self.pacer_step_s if is_slower else 0.0)
        return {"rounds": number, "preferred_s": preferred_s, "gained": gained, "sites": sites}

    def pick(
        self, memory: Memory | None, names: Sequence[str], cohort: int, key: Key, latency: Latency | None
    ) -> tuple[str, ...]:
        """Return whom a round asks, sorted by id. Without simulated time all sites are as fast."""
        sites = {} if memory is None else memory["sites"]
        number = 1 if memory is None else int(memory["rounds"]) + 1
        explored = [name for name in names if name in sites and sites[name][TIMES] < self.most_times]
        fresh = [name for name in names if name not in sites]
        epsilon = max(self.epsilon_least, self.epsilon * self.epsilon_decay ** (number - 1))
        exploited = min(math.floor((1 - epsilon) * cohort + 1e-9), len(explored))
        unknown = min(cohort - exploited, len(fresh))
        exploited = min(cohort - unknown, len(explored))
        draws = torch.rand(cohort, generator=key.generator(), dtype=torch.float64).tolist()
        found = self._exploited(memory, explored, exploited, draws[:exploited], latency)
        speeds = {name: 1.0 / max(latency(name, 0), 1e-9) if latency else 1.0 for name in fresh}
        found += sampled(speeds, draws[exploited : exploited + unknown])
        left = {name: 1.0 for name in names if name in sites and name not in explored}
        return tuple(sorted(found + sampled(left, draws[exploited + unknown :])))

    def _exploited(
        self,
        memory: Memory | None,
        explored: Sequence[str],
        number: int,
        draws: Sequence[float],
        latency: Latency | None,
    ) -> list[str]:
        """Return explored sites, drawn by utility among those near the best or above."""
        if memory is None or not number:
            return []
        utility = self.utilities(memory, explored, latency)
        cut = self.cutoff * sorted(utility.values(), reverse=True)[number - 1]
        return sampled({name: each for name, each in utility.items() if each >= cut}, draws)

    def utilities(
        self, memory: Memory, explored: Sequence[str], latency: Latency | None
    ) -> dict[str, float]:
        """Return what each explored site promises: statistic, clipped, and staleness, times its speed."""
        sites, preferred_s = memory["sites"], memory["preferred_s"]
        ordered = sorted(sites[name][UTILITY] for name in explored)
        most = ordered[min(len(ordered) - 1, int(self.clip * len(ordered)))]
        logarithm, found = math.log(memory["rounds"] + 1), {}
        for name in explored:
            statistic, last, round, _ = sites[name]
            found[name] = min(statistic, most) + math.sqrt(0.1 * logarithm / last)
            took_s = latency(name, int(round)) if latency else 0.0
            if preferred_s < took_s:
                found[name] *= (preferred_s / took_s) ** self.alpha
        return found


def sampled(weights: Mapping[str, float], draws: Sequence[float]) -> list[str]:
    """Return a name for each draw in [0, 1), without replacement and by weight; all weights 0 are equal."""
    left, found = dict(sorted(weights.items())), []
    for draw in draws:
        if not left:
            break
        total = math.fsum(left.values())
        steps = left if total > 0 else dict.fromkeys(left, 1.0)
        aim, sum_so_far, chosen = draw * (total or len(left)), 0.0, ""
        for name, weight in steps.items():
            if weight > 0:
                chosen, sum_so_far = name, sum_so_far + weight
            if chosen and aim < sum_so_far:
                break
        found.append(chosen)
        del left[chosen]
    return found


def received(title: str, outputs: Outputs) -> Value:
    """Return the parameters that a round broadcasts, so that they need not travel twice.

    Raises ScheduleError where it broadcasts none as they are.
    """
    roots = [lift(part) for part in (outputs.server, outputs.site) if part is not None]
    for node in toposort(roots):
        if node.op is Op.BROADCAST and _is_params(node.args[0]):
            return Value(node)
    raise ScheduleError(
        f"oort(): {title} broadcasts no global parameters as they are, so sites have nothing whose loss they "
        "could tell: use synchronous() or by_trace()"
    )


def _is_params(node: Node) -> bool:
    if node.op is Op.GET and node.params["key"] == "params":
        node = node.args[0]
    return node.op is Op.INPUT and node.placement is Placement.SERVER and node.params["slot"] == "state"


@dataclass(frozen=True, kw_only=True)
class OfOort(Synchronous):
    """Cohorts by `Oort`; see `oort`."""

    trace: Trace | None = None

    @property
    def latency(self) -> Latency | None:
        """The seconds of an answer, for `simulate(latency=...)`, where a trace says them."""
        return None if self.trace is None else self.trace.latency


def oort(
    local: Any, trace: Trace | str | None = None,
    epsilon: float = 0.9, epsilon_decay: float = 0.98, epsilon_least: float = 0.2,
    alpha: float = 2.0, pacer_step_s: float = 60.0, pacer_window: int = 20,
    cutoff: float = 0.95, clip: float = 0.95, most_times: int = 10,
    cohort: float | int = 0.1, quorum: float = 0.8, deadline_s: float | None = None,
    on_failure: str = "retry", retries: int = 2, wait_for: int = 0, wait_s: float = 60.0,
) -> OfOort:
    """Ask sites by what they promise: utility = rows x sqrt(mean loss^2) + sqrt(0.1 ln R / last asked).

    It is multiplied by (T / t)^alpha where a site's last answer took t > T simulated seconds: a latency model
    of the federation says t, or `trace` (a trace or its file, of which the speeds alone are used); without
    simulated time t plays no part, since measured seconds differ from run to run. The pacer adds
    `pacer_step_s`, where T starts, when the sum of what was told fell over `pacer_window` rounds. A share
    epsilon of the cohort (decaying, at least `epsilon_least`) are sites never asked, by speed; the others are
    drawn by utility among those above `cutoff` of the last one needed. Statistics are clipped to their `clip`
    quantile; a site that took part `most_times` is left out. `local` has `row_losses(params, data)`.
    Source: see the module. Raises ScheduleError on values that cannot be meant.
    """
    if not hasattr(local, "row_losses"):
        kind = type(local).__name__
        raise ScheduleError(f"oort(): {kind} has no row_losses(params, data): use fedray.learn.sgd or adamw")
    rule = Oort(
        statistic=LossStatistic(local.row_losses), epsilon=epsilon, epsilon_decay=epsilon_decay,
        epsilon_least=epsilon_least, alpha=alpha, pacer_step_s=pacer_step_s, pacer_window=pacer_window,
        cutoff=cutoff, clip=clip, most_times=most_times,
    )  # fmt: skip
    plain = synchronous(cohort, "uniform", quorum, deadline_s, on_failure, retries, wait_for, wait_s)
    settings = {name: getattr(plain, name) for name in Synchronous.__dataclass_fields__}
    found = read_trace(trace) if isinstance(trace, str) else trace
    return OfOort(**{**settings, "learner": rule}, trace=found)
