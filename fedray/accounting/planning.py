"""What a kind of differential privacy would cost, before anything runs: `fedray privacy plan` prints it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedray.accounting import accountant, calibrate, matrix
from fedray.accounting.mechanism import Kind, Mechanism, Unit
from fedray.errors import ConfigError
from fedray.settings import check_numbers, check_whole

USUAL = (1.0, 3.0, 8.0, 20.0)  # epsilons that are told where none is asked for


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to be private: whom it protects, who adds the noise, and who is trusted with what."""

    unit: Unit
    noise_by: str
    trusted: str
    when: str
    kind: Kind = "gaussian"


MODES = {
    "record": Mode("patient", "sites", "nobody outside the hospital",
                   "hospitals train by themselves; works with any cohort", "sampled_gaussian"),
    "distributed_record": Mode("patient", "sites", "nobody, while most sites add their share of the noise",
                               "one step a round on patients of all sites, under a secure sum",
                               "sampled_gaussian"),
    "site_dp": Mode("site", "server", "the server, with each site's update", "500 sites and more"),
    "site_dp_adaptive": Mode("site", "server", "the server, with each site's update",
                             "500 sites and more, norms that change"),
    "site_dp_distributed": Mode("site", "sites", "nobody, while most sites add their share of the noise",
                                "500 sites and more, under a secure sum"),
    "site_dp_matrix": Mode("site", "server", "the server, with each site's update",
                           "sites take part every few rounds", "matrix"),
    "site_dp_local": Mode("site", "sites", "nobody", "almost never useful"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan is made for. `units` are patients, `rate` the probability that a step takes one."""

    mode: str
    rounds: int
    steps: int = 1
    delta: float = 1e-5
    epsilon: float | None = None
    noise: float | None = None
    cohort: int | None = None
    population: int | None = None
    is_poisson: bool = False
    units: int | None = None
    rate: float | None = None
    params: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One answer: so much noise gives this epsilon, and is so long beside what is learnt."""

    epsilon: float
    delta: float
    noise_multiplier: float
    epsilon_by_renyi: float
    noise_per_coordinate: float | None
    noise_norm: float | None
    is_hopeless: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a plan came to, and the sentences that belong to its numbers."""

    mode: str
    unit: str
    noise_by: str
    trusted: str
    when: str
    amplification: str
    rounds: int
    planned: list[Planned]
    adjacency: str = "add or remove one unit"
    notes: list[str] = field(default_factory=list)

    def told(self) -> Mapping[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def answer(asked: Asked) -> Answer:
    """Plan. Raises ConfigError where something is missing that the mode needs."""
    if asked.mode not in MODES:
        raise ConfigError(f"there is no mode {asked.mode!r}. Fix: one of {', '.join(MODES)}")
    _check(asked)
    if asked.epsilon is not None and asked.noise is not None:
        raise ConfigError("--epsilon and --noise say the same thing twice. Fix: leave one out")
    made, rounds = mechanism_of(asked)
    mode = MODES[asked.mode]
    if asked.noise is not None:
        found = [_planned(calibrate.with_noise(made, asked.noise), asked, rounds)]
    else:
        wanted = USUAL if asked.epsilon is None else (asked.epsilon,)
        found = [_planned(calibrate.solve(made, each, asked.delta, rounds), asked, rounds) for each in wanted]
    rate = made.sampling_rate or 1.0
    sampled = f"Poisson sampling at rate {rate:g}, unknown to whom it protects against"
    return Answer(
        mode=asked.mode,
        unit=mode.unit,
        noise_by=mode.noise_by,
        trusted=mode.trusted,
        when=mode.when,
        amplification="none is claimed" if rate == 1.0 else sampled,
        rounds=asked.rounds,
        planned=found,
        notes=_notes(asked, made),
    )


def _check(asked: Asked) -> None:
    """Raise ConfigError on a number that cannot be meant."""
    try:
        check_whole("a plan", rounds=asked.rounds, steps=asked.steps)
        check_whole("a plan", or_none=True, cohort=asked.cohort, units=asked.units, params=asked.params)
        check_whole("a plan", or_none=True, least=asked.cohort or 1, population=asked.population)
        check_numbers("a plan", above=0, below=1, delta=asked.delta)
        check_numbers("a plan", above=0, or_none=True, epsilon=asked.epsilon, noise=asked.noise)
        check_numbers("a plan", above=0, most=1, or_none=True, rate=asked.rate)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def mechanism_of(asked: Asked) -> tuple[Mechanism, int]:
    """Return the mechanism, its noise still open, and how many of its rounds are accounted."""
    mode = MODES[asked.mode]
    made = Mechanism(
        kind=mode.kind,
        noise_multiplier=1.0,
        unit=mode.unit,
        noise_by="server" if mode.noise_by == "server" else "sites",
        trusted=mode.trusted,
        steps=asked.steps,
    )
    if mode.unit == "patient":
        rate = _needed(asked.rate, asked, "--rate, or --batch and --units")
        divisor = None if asked.units is None else rate * asked.units
        return replace(made, sampling_rate=rate, divisor=divisor), asked.rounds
    cohort = _needed(asked.cohort, asked, "--cohort")
    rate = cohort / asked.population if asked.is_poisson and asked.population else 1.0
    made = replace(made, sampling_rate=rate, divisor=cohort)
    if asked.mode == "site_dp_local":  # the mean of n noisy values
        return replace(made, divisor=math.sqrt(cohort)), asked.rounds
    if asked.mode == "site_dp_matrix":
        apart = _needed(asked.population, asked, "--population") // cohort
        times = math.ceil(asked.rounds * cohort / (asked.population or cohort) - 1e-9)
        reached = matrix.sensitivity(matrix.bands_of(apart), times)
        return replace(made, rounds=asked.rounds, sensitivity=reached), 1
    return made, asked.rounds


def _needed(value: Any, asked: Asked, name: str) -> Any:
    if value is None:
        raise ConfigError(f"a plan of {asked.mode} needs {name}. Fix: add it")
    return value


def _planned(made: Mechanism, asked: Asked, rounds: int) -> Planned:
    events = {made: rounds}
    noise = calibrate.noise_of(made, asked.params or 1)
    per_coordinate = None if noise is None else noise.per_coordinate
    norm = None if noise is None or asked.params is None else noise.norm
    return Planned(
        epsilon=accountant.epsilon(events, asked.delta),
        delta=asked.delta,
        noise_multiplier=made.known[0],
        epsilon_by_renyi=accountant.epsilon_by_renyi(events, asked.delta),
        noise_per_coordinate=per_coordinate,
        noise_norm=norm,
        is_hopeless=norm is not None and norm > made.max_noise,
    )


def _notes(asked: Asked, made: Mechanism) -> list[str]:
    notes = []
    if asked.mode == "site_dp_matrix":
        notes.append(
            f"all {asked.rounds} rounds are one release of sensitivity {made.sensitivity:.4g} clip bounds; "
            "noise of neighbouring rounds cancels in what is learnt"
        )
    if asked.mode == "site_dp_adaptive":
        notes.append("the moving clip bound is paid for out of this noise: see docs/privacy-sites.md")
    if asked.mode in ("distributed_record", "site_dp_distributed"):
        notes.append(
            "for noise in whole numbers (Skellam) the ledger uses a bound by Rényi divergences, up to a "
            "tenth above what is told here"
        )
    if made.unit == "patient" and asked.units is not None and asked.delta > 1 / asked.units:
        notes.append(
            f"delta is more than 1 / {asked.units}: so much would allow to publish a patient outright"
        )
    if asked.is_poisson and not asked.population:
        notes.append("without --population no amplification can be claimed")
    return notes
