"""Selection: cohorts that depend on what sites tell, by a named reduction, before a round.

The schedule draws candidates, a function of (seed, round) alone; a small program asks them; the rule chooses.
What they tell is listed by `egress` under the stage "before", and a policy that refuses to see one site's
value refuses it. A resumed run chooses as the first did: it asks again, of the same parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedray.core.trace import Algorithm, Outputs, Value, broadcast, gather, map
from fedray.errors import ScheduleError
from fedray.rng import Key
from fedray.runtime.schedule import Synchronous, synchronous
from fedray.settings import is_whole


@dataclass(frozen=True)
class HighestLoss:
    """Choose the sites with the highest loss of the parameters; equal ones by lot. A `Choice`."""

    loss: Callable[[Any, Any], float]
    candidates: int | None = None

    @property
    def program(self) -> Algorithm:
        """Gather the loss of each candidate."""

        def round(server: Value, site: Any) -> Outputs:
            told = gather(map(self.loss, broadcast(server), site.data), name="candidate_loss")
            return Outputs(server=server, metrics=told)

        return Algorithm(_as_it_is, round, name="highest_loss")

    def num_candidates(self, cohort: int, num_sites: int) -> int:
        """Return the candidates, by default twice the cohort. Raises ScheduleError where they are too few."""
        number = self.candidates if self.candidates is not None else 2 * cohort
        if number < cohort:
            raise ScheduleError(f"candidates={number} must be at least the cohort of {cohort}")
        return min(number, num_sites)

    def chosen(self, told: Mapping[str, float], cohort: int, key: Key) -> tuple[str, ...]:
        """Return the sites with the highest loss."""
        names = sorted(told)
        lots = torch.randperm(len(names), generator=key.generator()).tolist()
        order = sorted(range(len(names)), key=lambda i: (-float(told[names[i]]), lots[i]))
        return tuple(sorted(names[i] for i in order[:cohort]))


def _as_it_is(params: Any) -> Any:
    return params


def power_of_choice(
    local: Any,
    candidates: int | None = None,
    cohort: float | int = 0.1,
    sampling: str = "weighted",
    quorum: float = 0.8,
    deadline_s: float | None = None,
    on_failure: str = "retry",
    retries: int = 2,
    wait_for: int = 0,
    wait_s: float = 60.0,
) -> Synchronous:
    """Ask, of `candidates` sites drawn by rows, those with the highest loss; else as `synchronous`.

    `local` has `loss(params, data)`; no number of candidates means twice the cohort, and as many as the
    cohort means plain sampling. The server sees the loss of each candidate. Average the updates uniformly
    (`weighted=False`), as in the paper.
    Source: Cho, Wang, Joshi, Towards understanding biased client selection in federated learning, AISTATS
    2022, section 4 (pow-d). Raises ScheduleError on values that cannot be meant.
    """
    if candidates is not None and not is_whole(candidates, 1):
        raise ScheduleError(f"power_of_choice(): candidates={candidates!r}: give 1 or more, or none")
    found = synchronous(cohort, sampling, quorum, deadline_s, on_failure, retries, wait_for, wait_s)
    return replace(found, choice=HighestLoss(local.loss, candidates))
