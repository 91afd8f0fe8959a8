"""What a method says of the sites: one record, plain enough for a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What each site adds, in units of the utility: above 0 makes the model better.

    `errors` are standard errors of the drawing of permutations, by site; empty where nothing is drawn. They
    do not cover the chance in training itself, nor that of the rows that the utility is measured on.
    `trainings` and `evaluations` are those that this method had to do, beyond what the game knew already.
    """

    method: str
    values: Mapping[str, float]
    whole: float  # the utility of all sites together
    empty: float  # of none: the first parameters
    metric: str = "utility"
    trainings: int = 0
    evaluations: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    permutations: int = 0
    seed: int | None = None  # of the permutations
    converged: bool | None = None  # None where nothing is drawn

    @property
    def rest(self) -> float:
        """What the values leave of `whole - empty`: 0 where the method is efficient."""
        return math.fsum([self.whole, -self.empty, *(-value for value in self.values.values())])


@dataclass(frozen=True, slots=True, kw_only=True)
class TakingPart:
    """What each site has of taking part: the federated model against one of its own rows alone.

    Both are measured on the site's own rows of one split; `gains` are above 0 where the federated model is
    better. None where the metric is not defined there, as an AUROC of one class is not.
    """

    metric: str
    alone: Mapping[str, float | None]
    federated: Mapping[str, float | None]
    gains: Mapping[str, float | None]
    num_examples: Mapping[str, float | None]  # of the rows that both are measured on
    trainings: int = 0
