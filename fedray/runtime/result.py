"""What a run came to, and when it may stop early."""

from dataclasses import dataclass, field
from typing import Any

from fedray.runtime.hashes import sha256_of
from fedray.runtime.plan import Plan
from fedray.runtime.records import EvaluationRecord, RoundRecord


@dataclass(frozen=True)
class EarlyStop:
    """Stop when `metric` of the validation rows has not improved by `min_delta` in `patience` evaluations."""

    metric: str = "auroc"
    patience: int = 5
    min_delta: float = 0.0
    mode: str = "max"

    def is_better(self, new: float, best: float | None) -> bool:
        """Tell whether a value improves on the best so far."""
        if best is None:
            return True
        return new > best + self.min_delta if self.mode == "max" else new < best - self.min_delta


@dataclass(kw_only=True)
class Result:
    """What a run came to."""

    state: Any
    plan: Plan
    seed: int
    metrics: list[RoundRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "done"  # or "early", "interrupted", "budget": the next round would have overspent
    ledger: Any = None  # the PrivacyLedger that was charged; None where nothing drew noise
    privacy: dict[str, Any] | None = None  # what was spent: see spending.py
    first_round: int = 0  # of this run: above 0 where it was resumed
    row_invariant: bool | None = None  # has a site equal bits alone and among others: see runtime/probe.py

    @property
    def params(self) -> Any:
        """The global parameters: `state.params` where the state has them, else the state."""
        return params_of(self.state)

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the parameters' bits."""
        return sha256_of(self.params)

    @property
    def rounds(self) -> int:
        """The number of rounds done, those before a resume included."""
        return self.metrics[-1].round + 1 if self.metrics else self.first_round

    @property
    def bytes_up(self) -> int:
        """Bytes from hosts to the aggregator."""
        return sum(record.bytes_up for record in self.metrics)

    @property
    def bytes_down(self) -> int:
        """Bytes from the aggregator to hosts."""
        return sum(record.bytes_down for record in self.metrics)

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """How often each (site, kind of failure) occurred."""
        counts: dict[tuple[str, str], int] = {}
        for record in self.metrics:
            for failure in record.failures:
                counts[failure.site, failure.kind] = counts.get((failure.site, failure.kind), 0) + 1
        return counts

    @property
    def test(self) -> EvaluationRecord | None:
        """The evaluation on all sites' test rows, at the end."""
        return next((record for record in reversed(self.evaluations) if record.split == "test"), None)


def params_of(state: Any) -> Any:
    """Return the global parameters in a server state."""
    return state.params if hasattr(state, "params") else state
