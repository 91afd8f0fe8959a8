"""What one noisy release of a round is, as a plain record that a ledger can read off a plan.

The function that draws the noise carries it as its attribute `mechanism`. All differential privacy in fedray
is for add/remove adjacency: two data sets are neighbours where one has one unit (a site, a patient, a record)
more than the other. Replacing one unit doubles the sensitivity and is not what these numbers say.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedray.settings import check_numbers, check_whole

Kind = Literal["gaussian", "sampled_gaussian", "skellam", "matrix"]
Unit = Literal["site", "patient", "record"]
KINDS: tuple[Kind, ...] = ("gaussian", "sampled_gaussian", "skellam", "matrix")
UNITS: tuple[Unit, ...] = ("site", "patient", "record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One noisy release, made `steps` times a round.

    `noise_multiplier` is the standard deviation of the noise over the L2 sensitivity of one unit: over the
    clip bound for all kinds but two. For `matrix` the sensitivity is that of all `rounds` rounds together,
    `sensitivity` clip bounds (`sqrt(k) * |c|_2` of k participations), and the first charge of a run pays for
    them all. For `skellam` noise and sensitivities are in units of the integer ring, and `noise_multiplier`
    is sqrt(variance) / l2.

    `sampling_rate` is the probability by which Poisson sampling takes a unit into a step; 1.0 claims no
    amplification. Where every site has its own (`private_sgd`: one batch size, sites of other sizes), it is
    None and `batch_size` decides; `steps` is None where `epochs` decides, `noise_multiplier` is None where it
    follows from `epsilon` over `rounds` rounds: `at_site` fills all three in.

    `divisor` is what the noisy sum is divided by (the expected cohort or the expected batch); with it the
    noise is compared with the clip bound before training, and a run whose noise is `max_noise` clip bounds
    long or longer is refused (`float("inf")` lets any pass).
    """

    kind: Kind
    noise_multiplier: float | None
    unit: Unit
    noise_by: Literal["server", "sites"]
    trusted: str  # who must be trusted with plaintext, in words: "server", "nobody"
    epsilon: float | None = None  # what the configuration asked for, at delta; a ledger may ask for another
    delta: float = 1e-5
    sampling_rate: float | None = 1.0
    steps: int | None = 1
    batch_size: float | None = None
    epochs: float | None = None
    adjacency: Literal["add-remove"] = "add-remove"
    divisor: float | None = None
    max_noise: float = 10.0
    variance: float = 0.0  # skellam: of the noise sum, in ring units
    l2: float = 0.0  # skellam: sensitivities in ring units, rounding included
    l1: float = 0.0
    rounds: int = 1  # that it was made for; of a matrix, which one charge pays for
    sensitivity: float = 1.0  # matrix: of all its rounds, in clip bounds

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.unit not in UNITS:
            raise ValueError(f"kind={self.kind!r}, unit={self.unit!r}: choose of {KINDS} and {UNITS}")
        if self.noise_multiplier is None and self.epsilon is None:
            raise ValueError("noise_multiplier=None needs the epsilon that each site's noise follows from")
        check_numbers("privacy", above=0, below=1, delta=self.delta)
        check_numbers("privacy", above=0, or_none=True, noise_multiplier=self.noise_multiplier,
                      epsilon=self.epsilon, batch_size=self.batch_size, epochs=self.epochs)  # fmt: skip
        check_whole("privacy", rounds=self.rounds)
        check_whole("privacy", or_none=True, steps=self.steps)
        if not self.max_noise > 0:
            raise ValueError(f"max_noise={self.max_noise}: give a number above 0")
        if self.sampling_rate is None and self.batch_size is None:
            raise ValueError("sampling_rate=None needs a batch_size, from which each site's rate follows")
        if self.sampling_rate is not None and not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate={self.sampling_rate}: give a number in (0, 1]")
        if self.steps is None and self.epochs is None:
            raise ValueError("steps=None needs epochs, from which each site's steps follow")
        if self.kind == "skellam" and not (self.variance > 0 and self.l2 > 0 and self.l1 > 0):
            raise ValueError("skellam noise needs variance, l2 and l1, in units of the ring")

    @property
    def is_per_site(self) -> bool:
        """Tell whether every site spends for itself, by its own number of units."""
        return self.sampling_rate is None or self.steps is None or self.noise_multiplier is None

    @property
    def known(self) -> tuple[float, float, int]:
        """Noise multiplier, sampling rate, steps a round. Raises ValueError where each site has its own."""
        noise, rate, steps = self.noise_multiplier, self.sampling_rate, self.steps
        if noise is None or rate is None or steps is None:
            raise ValueError("the mechanism is another at every site: ask at_site(num_units) of one")
        return noise, rate, steps

    def at_site(self, num_units: int) -> "Mechanism":
        """Return the mechanism at a site of so many units (patients, or records)."""
        rate, steps = self.sampling_rate, self.steps
        if rate is None:
            assert self.batch_size is not None
            rate = min(1.0, self.batch_size / num_units)
        if steps is None:
            assert self.epochs is not None
            steps = max(1, round(self.epochs / rate))
        noise = self.noise_multiplier
        if noise is None:
            from fedray.accounting.calibrate import noise_multiplier  # its libraries load slowly

            assert self.epsilon is not None
            noise = noise_multiplier(self.epsilon, self.delta, self.rounds, sampling_rate=rate, steps=steps)
        divisor = rate * num_units if self.divisor is None else self.divisor
        return replace(self, sampling_rate=rate, steps=steps, noise_multiplier=noise, divisor=divisor)
