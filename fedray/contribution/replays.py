"""A game whose coalitions are trainings: replays of one run in which only some sites are asked.

What does not change is shared: one federation, its hosts and open data, the plan and what made-up rows said
of it. A replay asks its sites as a federation of them alone would, and gives the bits of that federation:
random draws follow from a site's name, and sums are exact. The utility is measured on the rows of all sites,
those outside the coalition too.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fedray as fr
from fedray.contribution.games import Coalition, Game
from fedray.core.flow import has_noise_of_sites
from fedray.core.rewrite import policies
from fedray.errors import ConfigError, ScheduleError, SecurityConflict
from fedray.runtime.learnt import Learnt
from fedray.runtime.result import params_of
from fedray.runtime.schedule import Synchronous

SMALLER_IS_BETTER = ("loss", "brier", "mse", "rmse", "mae")
MakeAlgorithm = fr.Algorithm | Callable[[tuple[str, ...]], fr.Algorithm]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One training of one coalition, and what its model was measured to be on the rows of all sites."""

    sites: tuple[str, ...]
    value: float  # the metric as it is, small or large as its kind wants it
    metrics: Mapping[str, float] = field(repr=False)
    per_site: Sequence[Mapping[str, Any]] = field(repr=False)  # none where the utility gathers none
    rounds: int
    seconds: float
    failures: int  # of asked sites, over all rounds: what was left out
    params_sha256: str

    @property
    def coalition(self) -> Coalition:
        """The sites as a set."""
        return frozenset(self.sites)


@dataclass(kw_only=True)
class Replays:
    """What a coalition is worth, by training it; `game` makes one. `done` holds every replay so far."""

    algorithm: MakeAlgorithm
    federation: Any
    init: Any
    rounds: int
    utility: fr.Algorithm
    metric: str
    mode: str
    schedule: Synchronous
    passes: Sequence[Any]
    seed: int
    settings: Mapping[str, Any]  # further ones of `fr.fit`
    tell: Callable[[Replay], None] | None = None
    done: dict[Coalition, Replay] = field(default_factory=dict)
    measured: int = 0  # models

    crew: Any = None  # trains coalitions side by side: a `together.Crew`

    def __post_init__(self) -> None:
        if type(self.schedule) is not Synchronous:
            raise ScheduleError(
                f"contribution: {type(self.schedule).__name__} cannot be cut to a coalition: use "
                "synchronous() or power_of_choice()"
            )
        if self.mode not in ("min", "max"):
            raise ValueError(f"contribution: mode={self.mode!r}: choose min or max")
        self._refuse_hidden_sums()
        self.plan = fr.compile(self.utility, policies(self.passes))
        self.federation.learnt = self.federation.learnt or Learnt()

    def _refuse_hidden_sums(self) -> None:
        """Raise SecurityConflict where first rounds of two coalitions would show the site between them."""
        graph = fr.compile(self.algorithm_of(self.federation.sites), self.passes).graph
        hiding = [claim.by for claim in graph.claims if claim.is_hidden and claim.hub == "trusted"]
        if hiding and not has_noise_of_sites(graph):
            raise SecurityConflict(
                "contribution: coalitions that differ by one site begin with one model, so the difference of "
                f"their first sums is that site's own update, which {hiding[0]} hides. Fix: noise at the "
                "sites (privacy=), or secure=none, where the server may see single updates"
            )

    def __call__(self, coalitions: Sequence[Coalition]) -> list[float]:
        """Train coalitions and return what they are worth."""
        if self.crew is not None and len(coalitions) > 1:
            self.take(self.crew.train(self, coalitions))
        else:
            for each in coalitions:
                self.take([self.replay(each)])
        return [self.worth(self.done[each].value) for each in coalitions]

    def take(self, replays: Sequence[Replay]) -> None:
        """Take replays as done, and tell of them."""
        for replay in replays:
            self.done[replay.coalition] = replay
            if self.tell is not None:
                self.tell(replay)

    def worth(self, value: float) -> float:
        """Return the utility that a metric stands for: large is good."""
        return -value if self.mode == "min" else value

    def algorithm_of(self, sites: Iterable[str]) -> fr.Algorithm:
        """Return the algorithm for these sites."""
        made = self.algorithm
        return made if isinstance(made, fr.Algorithm) else made(tuple(sorted(sites)))

    def replay(self, coalition: Coalition) -> Replay:
        """Train one coalition and measure its model: without sites or rows that is the first parameters."""
        started, rows = time.monotonic(), self.federation.hello()
        if any(rows[site] for site in coalition):
            result = self.fit(self.algorithm_of(coalition), coalition)
            params, rounds, sha256 = result.params, result.rounds, result.params_sha256
            failures = sum(len(record.failures) for record in result.metrics)
        else:
            made = self.algorithm_of(self.federation.sites)
            params, rounds, sha256, failures = params_of(made.init(self.init)), 0, "", 0
        metrics, per_site = self.measure(params)
        return Replay(
            sites=tuple(sorted(coalition)), value=self.value_of(metrics), metrics=metrics, per_site=per_site,
            rounds=rounds, seconds=time.monotonic() - started, failures=failures, params_sha256=sha256,
        )  # fmt: skip

    def fit(self, algorithm: fr.Algorithm, coalition: Coalition, tracker: Any = None) -> Any:
        """Train among some sites. Raises KeyboardInterrupt where it is cut short: half a run is no worth."""
        schedule = replace(self.schedule, among=coalition)
        result = fr.fit(
            algorithm, self.federation, init=self.init, rounds=self.rounds, passes=self.passes,
            schedule=schedule, tracker=tracker, seed=self.seed, **self.settings,
        )  # fmt: skip
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return result

    def measure(self, params: Any) -> tuple[dict[str, float], Sequence[Mapping[str, Any]]]:
        """Return the pooled metrics of a model that are single numbers, and the records of the sites."""
        self.measured += 1
        found = self.federation.call("compute", self.plan, params, self.seed, 0, 1.0)["metrics"]
        return _numbers(found.get("pooled", found)), found.get("sites", ())

    def value_of(self, metrics: Mapping[str, float]) -> float:
        """Return the metric that the game is about. Raises ConfigError where there is none of its name."""
        if self.metric not in metrics:
            raise ConfigError(
                f"metric={self.metric}: the utility measures {', '.join(metrics)}. "
                f"Fix: metric={next(iter(metrics), 'loss')}"
            )
        return metrics[self.metric]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are single numbers."""
    single = {
        name: value for name, value in metrics.items()
        if isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1
    }  # fmt: skip
    return {name: float(value) for name, value in single.items()}


def default_mode(metric: str) -> str:
    """Return whether a metric is to be small (`min`) or large (`max`)."""
    return "min" if metric in SMALLER_IS_BETTER else "max"


def game(
    algorithm: MakeAlgorithm,
    federation: Any,
    *,
    init: Any,
    rounds: int,
    utility: fr.Algorithm,
    metric: str = "auroc",
    mode: str | None = None,
    schedule: Synchronous | None = None,
    passes: Sequence[Any] = (),
    seed: int = 0,
    together: bool = False,
    tell: Callable[[Replay], None] | None = None,
    done: Sequence[Replay] = (),
    **settings: Any,
) -> Game:
    """Return the game of a federation's sites: a coalition is worth what the model that it trains is worth.

    `utility` is an evaluation program, such as `fr.algorithms.evaluation(model, split="test")`; `metric` is
    one of its pooled metrics. `mode="min"` makes a small
    metric a large utility; by default losses and Brier scores are small. An algorithm that has to know its
    sites, or how many they are, is given as a function of their names. A round asks the schedule's fraction
    of the coalition; a fixed number is at most the coalition. `together` trains up to 32 coalitions as one
    program, in this process; worths then differ by float rounding, and those of equal sites may too. `tell`
    is called with every `Replay`, and `done` are those of an earlier session; `settings` are further
    arguments of `fr.fit`. An early stop reads the validation rows of all sites.
    Raises ScheduleError for other schedules than synchronous ones, whose cohorts could not be cut.
    """
    replays = Replays(
        algorithm=algorithm, federation=federation, init=init, rounds=rounds, utility=utility, metric=metric,
        mode=mode or default_mode(metric), schedule=schedule or fr.synchronous(), passes=tuple(passes),
        seed=seed, settings=settings, tell=tell, crew=_crew() if together else None,
        done={each.coalition: each for each in done},
    )  # fmt: skip
    made = Game(federation.sites, replays, metric if replays.mode == "max" else f"-{metric}")
    values = {each.coalition: replays.value_of(each.metrics) for each in done}
    made.know({each: replays.worth(value) for each, value in values.items() if not undefined(value)})
    return made


def _crew() -> Any:
    from fedray.contribution.together import Crew

    return Crew()


def replays_of(game: Game, what: str) -> Replays:
    """Return the trainings behind a game. Raises ValueError where its worths are of another kind."""
    if not isinstance(game.worth, Replays):
        raise ValueError(f"{what} needs a game of trainings: make it with fedray.contribution.game()")
    return game.worth


def undefined(value: Any) -> bool:
    """Tell whether a metric is missing or not a number."""
    return value is None or not math.isfinite(value)
