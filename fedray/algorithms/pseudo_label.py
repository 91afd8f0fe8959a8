"""Pseudo-labels: rows without a label are trained on with the class that the model itself predicts.

Source: Lee, Pseudo-label: The simple and efficient semi-supervised learning method for deep neural networks,
ICML workshop on challenges in representation learning, 2013, equations 14 to 16, at every site of federated
averaging. At each step the local model labels the batch's rows that have no label (`NO_LABEL`, -1), and
  L = mean over labelled rows of l(y, f) + alpha(t) mean over the others of l(y', f),   y' = argmax f,
alpha(t) being 0 before T1, rising to alpha_f at T2. `threshold` leaves out rows predicted with less (Sohn et
al., FixMatch, 2020, equation 4); 0 is the paper's form. The sites keep nothing.
Variant labels="round": the model received labels the rows, once a round; each counts as a labelled row from
round T1 on, and the sites of a group train as one program. Deviations: t counts rounds, where the paper's are
epochs (T1 = 100, T2 = 600); labelled and other rows share a batch; y' is predicted in evaluation mode; a
site's weight is all its training rows (in the variant: those it trained on).
Not vectorised with labels="step": labels change from step to step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn.objectives import pursuing
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.learn.supervision import Logits, PseudoLabels, Relabelled, logits_of, target_of
from fedray.settings import check_numbers, is_whole


@dataclass(frozen=True)
class Ramped:
    """Local training with pseudo-labels, whose weight rises from round to round."""

    local: Any
    objective: PseudoLabels
    ramp: tuple[int, int]

    @property
    def how(self) -> str:
        """Say why sites are trained one after the other."""
        return "site by site: labels change from step to step"

    def weight(self, round: int) -> float:
        """Return alpha(t)."""
        first, last = self.ramp
        if round < first:
            return 0.0
        return self.objective.weight * (1.0 if round >= last else (round - first) / (last - first))

    def __call__(self, params: Any, data: Any, rng: Any) -> Any:
        """Train."""
        objective = replace(self.objective, weight=self.weight(rng.round))
        return pursuing(self.local, objective, "pseudo_label")(params, data, rng)


def pseudo_label(
    local: Any, weight: float | None = None, ramp: Sequence[int] = (10, 60), threshold: float = 0.0,
    labels: str = "step", logits: Logits | None = None, optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:  # fmt: skip
    """Federated averaging of models that label the rows that have no label (-1).

    `weight` is alpha_f (3 unless given), `ramp` is (T1, T2). `logits(params, batch)` gives predictions where
    the loss of `local` is a function of its own; its batches then hold rows with labels alone, made up ones
    included.
    Raises ValueError on settings that cannot be.
    """
    train = _training(local, weight, ramp, threshold, labels, logits)
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> FedAvgState:
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        update = train(fr.broadcast(server.params), site)
        delta = fr.mean(update.delta, weight=update.num_examples if weighted else None)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name="pseudo_label")


def _training(
    local: Any, weight: float | None, ramp: Sequence[int], threshold: float, labels: str,
    logits: Logits | None,
) -> Callable[[Any, Any], Any]:  # fmt: skip
    """Return what the sites do with the model received."""
    rounds = list(ramp) if isinstance(ramp, Sequence) else []
    if len(rounds) != 2 or not all(map(is_whole, rounds)) or rounds != sorted(rounds):
        raise ValueError(f"pseudo_label: ramp={ramp!r}: give two rounds, the first one first")
    if labels not in ("step", "round"):
        raise ValueError(f"pseudo_label: labels={labels!r}: choose 'step' or 'round'")
    check_numbers("pseudo_label", least=0, most=1, threshold=threshold)
    check_numbers("pseudo_label", least=0, or_none=True, weight=weight)
    if weight is not None and labels == "round":
        raise ValueError(f"pseudo_label: weight={weight}: labels='round' has none, every row counts 1")
    said, target = logits_of(local, "pseudo_label", logits), target_of(local)
    if labels == "round":
        relabelled = Relabelled(said, target, threshold, rounds[0])
        return lambda x, site: fr.map(local, x, fr.map(relabelled, x, site.data, site.rng), site.rng)
    objective = PseudoLabels(said, target, 3.0 if weight is None else weight, threshold)
    pursuing(local, objective, "pseudo_label")  # raises here where it cannot be
    ramped = Ramped(local, objective, (rounds[0], rounds[1]))
    return lambda x, site: fr.map(ramped, x, site.data, site.rng)
