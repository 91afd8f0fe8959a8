"""Pre-training: a tabular encoder learns from masked rows, then the model from rows with a label.

Source: Yoon, Zhang, Jordon and van der Schaar, VIME: Extending the success of self- and semi-supervised
learning to tabular domain, NeurIPS 2020, section 4.1 (equations 3 to 6), in federated averaging. Of a row x
every entry is masked with probability p_m, a masked one being replaced by that of another row; from z =
e(x~) two linear estimators tell which entries were masked and what the row was:
  min over e, s_m, s_r of mean l_m(m, s_m(z)) + alpha l_r(x, s_r(z)),     cross-entropy and squared error.
For the first `rounds` rounds sites train that on all training rows and the server averages encoder and
estimators; from then on sites train the model on rows that have a label (`NO_LABEL`, -1, is none), from the
encoder found, the server optimizer starting anew. The sites keep nothing; the server keeps the estimators.
Deviations: replacements come from the batch and are drawn at every step; s_r is linear, columns being
standardised, where the authors' program has a sigmoid; all of the model is fine-tuned, where the paper holds
the encoder still (`frozen`); the paper's semi-supervised consistency of section 4.2 is not done. Not
vectorised: masks are drawn site by site.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.learn import parts
from fedray.learn.masking import WORD, MaskedRows, estimators
from fedray.learn.objectives import features_of, pursuing
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.learn.supervision import labelled_rows, target_of
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole

ESTIMATORS = parts.Part((WORD,))


@dataclass(frozen=True)
class PretrainState:
    """The model, the estimators, the server optimizer's state over both, and the number of the next round."""

    params: Any
    estimators: Any
    optimizer: Any
    round: int = 0


@dataclass(frozen=True)
class Phases:
    """Local training: of the encoder with the estimators, then of the model."""

    local: Any
    objective: MaskedRows
    rounds: int
    target: str
    still: parts.Part | None

    @property
    def how(self) -> str:
        """Say why sites are trained one after the other."""
        return "site by site: masks are drawn site by site"

    def __call__(self, both: Any, data: Any, rng: Any) -> Any:
        """Train; the update has what moved in the layout of model and estimators."""
        if rng.round < self.rounds:
            objective = replace(self.objective, generator=rng.child("mask").generator())
            return pursuing(self.local, objective, "pretrain")(both, data, rng)
        model = ESTIMATORS.rest(both)
        start = model if self.still is None else parts.Still(self.still)(model)
        update = self.local(start, labelled_rows(data, self.target), rng)
        delta = tree.zeros_like(both)
        for name in update.delta:
            delta[name].copy_(update.delta[name])
        return replace(update, delta=delta)


@dataclass(frozen=True)
class Anew:
    """Start the server optimizer anew with the second phase: what is held then would go on moving else."""

    optimizer: ServerOptimizer
    rounds: int

    def __call__(self, both: Any, kept: Any, round: int) -> Any:
        """Return the optimizer's state to step from."""
        return self.optimizer.init(both) if round == self.rounds else kept


def drawn(model: Any, columns: int | None, params: Any, seed: int) -> dict[str, Tensor]:
    """Return the estimators' first parameters for the columns of a model and what its last layer reads."""
    if columns is None:
        raise ValueError("pretrain: give num_features=, the number of columns of x, or estimators=")
    (name,) = parts.last_layer(model)
    width = model.module.get_submodule(name).in_features
    generator = Key(seed, 0, SERVER, "vime").generator()
    return estimators(columns, width, generator, tree.flatten(params).schema.dtype)


def pretrain(
    local: Any, rounds: int = 10, share: float = 0.3, weight: float = 2.0, frozen: bool = False,
    head: Sequence[str] | None = None, features: Callable[[Any, Any], Tensor] | None = None,
    first_estimators: Mapping[str, Tensor] | None = None, optimizer: ServerOptimizer | None = None,
    weighted: bool = True, num_features: int | None = None, seed: int = 0,
) -> fr.Algorithm:  # fmt: skip
    """Train the encoder on masked rows for `rounds` rounds, then the model on rows with a label.

    `share` is p_m, `weight` alpha. The encoder is all but the `head` (the last layer), which alone is
    fine-tuned where `frozen`. `features(params, batch)` and `first_estimators` (mask.weight, mask.bias,
    feature.weight, feature.bias) are for losses that are functions of their own.
    Raises ValueError on settings that cannot be.
    """
    check_whole("pretrain", least=0, rounds=rounds)
    check_whole("pretrain", or_none=True, num_features=num_features)
    check_numbers("pretrain", above=0, below=1, share=share)
    check_numbers("pretrain", least=0, weight=weight)
    still = parts.part_of(head, local, parts.last_layer).rest if frozen else None
    optimizer = optimizer or sgd(1.0)
    objective = MaskedRows(features=features or features_of(local, "pretrain"), share=share, weight=weight)
    pursuing(local, objective, "pretrain")  # raises here where it cannot be
    phases = Phases(local, objective, rounds, target_of(local), still)

    def init(params: Any) -> PretrainState:
        params = ESTIMATORS.keep_free(params, "pretrain")
        given = first_estimators or drawn(getattr(local, "model", None), num_features, params, seed)
        beside = parts.prefixed(given, WORD)
        return PretrainState(params, beside, optimizer.init(parts.join(params, beside)))

    def round(server: Any, site: Any) -> fr.Outputs:
        both = fr.apply(parts.join, server.params, server.estimators)
        update = fr.map(phases, fr.broadcast(both), site.data, site.rng)
        delta = fr.mean(update.delta, weight=update.num_examples if weighted else None)
        kept = fr.apply(Anew(optimizer, rounds), both, server.optimizer, server.round)
        step = fr.apply(optimizer.step, both, kept, delta, server.round)
        params, beside = fr.apply(parts.put, server.params, step.params), fr.apply(ESTIMATORS, step.params)
        metrics = fr.mean(update.metrics, weight=update.num_examples)
        return fr.Outputs(PretrainState(params, beside, step.state, server.round + 1), metrics=metrics)

    return fr.Algorithm(init, round, name="pretrain")
