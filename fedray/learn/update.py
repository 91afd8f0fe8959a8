"""What local training returns, and what an algorithm may ask of it.

An algorithm knows nothing of models and optimizers: it calls a `LocalUpdate` with parameters, data and a
random key, and gets an `Update`. `fedray.learn.sgd` makes the usual ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedray.cancellation import stop_if_cancelled  # noqa: F401 (public here, beside what calls it)
from fedray.rng import Key
from fedray.tree import Flat


@dataclass(frozen=True, slots=True)
class Update:
    """What one site learnt in one round.

    `delta` is local - global, to be ADDED to the global parameters; `num_examples` are the training rows;
    `num_steps` counts the steps that were really taken (0 without rows); `metrics` are means over rows.
    """

    delta: Flat
    num_examples: int
    num_steps: int
    metrics: dict[str, float] = field(default_factory=dict)


class LocalUpdate(Protocol):
    """Train at a site. Writes to none of its inputs; the same arguments give the same bits.

    A loop of many steps calls `fr.learn.stop_if_cancelled()` in each, so that a deadline ends it.
    Some algorithms ask for more, and say so: `momentum` (0 where it is not there, None for rules other than
    gradient descent), `gradient(params, data)` over all training rows, `steps_at(data, rng)`, and the extra
    `reference`: parameters whose gradient, on the batch of each step, is subtracted (MIME).
    """

    @property
    def lr(self) -> float | Callable[[int], float]:
        """The learning rate, or a schedule of the round."""

    def __call__(
        self,
        params: Flat,
        data: Any,
        rng: Key,
        *,
        correction: Mapping[str, Any] | None = None,
        anchor: Mapping[str, Any] | None = None,
        prox: float | None = None,
        lr: float | None = None,
        steps: int | None = None,
    ) -> Update:
        """Return the update of one site.

        `correction` is added to every gradient (SCAFFOLD: c - c_i). `prox` adds prox/2 ||y - anchor||^2 to
        the loss, the anchor being the received parameters unless one is given. `lr` overrides the rate,
        `steps` the number of
        batches.
        """
