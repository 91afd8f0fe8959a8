"""What local training returns, and what an algorithm may ask of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedray.rng import Key
from fedray.tree import Flat


@dataclass(frozen=True)
class Update:
    """What a site did: `delta` is local - global, to be added at the server; `num_steps` counts real steps."""

    delta: Flat
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalUpdate(Protocol):
    """Local training: from the global parameters and a site's data to an `Update`. Pure: called twice, it does the same."""

    def __call__(self, params: Flat, data: Any, rng: Key, **extra: Any) -> Update:
        """Train on the site's training rows."""
        ...
