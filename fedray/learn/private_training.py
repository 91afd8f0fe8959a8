"""Gradient descent at a site with differential privacy for its patients (DP-SGD). Start at `private_sgd`.

    local = fr.learn.private_sgd(model, lr=0.5, clip=1.0, sampling_rate=0.1, epsilon=3, rounds=50,
                                 unit="patient")

Unit: a patient (all records of one at a site, where `unit` names the column that tells them apart), else a
row, which is a guarantee per stay and not per patient. Adjacency: add/remove of one unit at one site. Noise
by the site, from the operating system's entropy; trusted with plaintext: nobody outside the site.
Public by assumption: how many patients a site has (it divides by the expected batch and weighs the update),
and the learning rate. Nothing else leaves: there is no training loss among the metrics, and the functions of
`LocalTraining` that read all rows without noise (`loss`, `gradient`, `row_losses`) are not here, so an
algorithm that needs them is refused. Penalties, momentum, corrections and `prox` act on the noisy gradient.

What the guarantee assumes: who attacks does not know which patients a step drew. They follow from the run's
seed and the order of the site's rows, so that a run can be repeated; `is_secret` draws them from the
operating system instead, for runs whose server is not trusted with that.
Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, Deep learning with differential privacy, CCS
2016, Algorithm 1; Poisson batches and the expected batch size as divisor, as its analysis needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedray import noise, tree
from fedray.accounting import Mechanism
from fedray.cancellation import stop_if_cancelled
from fedray.core.graph import Label
from fedray.learn.batches import Batch, num_rows, training_rows
from fedray.learn.descent import Descent
from fedray.learn.layout import Layout
from fedray.learn.local import LocalTraining, Rate
from fedray.learn.losses import PosWeight
from fedray.learn.models import Model
from fedray.learn.partly import can_train
from fedray.learn.patients import Privacy, records_of, sample
from fedray.learn.poisson import poisson_layout
from fedray.learn.rows import (
    Stackable,
    buffer_of,
    extras_from,
    fits_chain,
    items_of,
    numbers_of,
    one_by_one,
    stackable,
    training_of,
)  # fmt: skip
from fedray.learn.rules import SgdRule
from fedray.learn.stacked import Extras, Training
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.rows import Group, Tagged, column
from fedray.settings import is_whole
from fedray.tree import Flat, Schema


@dataclass(frozen=True, kw_only=True)
class PrivateTraining:
    """Train at a site with noise: a `LocalUpdate`. `private_sgd` makes it and says the options."""

    training: LocalTraining
    privacy: Privacy
    one_shot: ClassVar[bool] = True
    grants: ClassVar[Label] = Label.DP

    @property
    def mechanism(self) -> Mechanism:
        """What a round spends, for the ledger."""
        return self.privacy.mechanism

    @property
    def model(self) -> Any:
        """The model."""
        return self.training.model

    @property
    def lr(self) -> Rate:
        """The learning rate, or a schedule of the round."""
        return self.training.lr

    @property
    def momentum(self) -> float | None:
        """The momentum of gradient descent; None where steps follow another rule."""
        return self.training.momentum

    @cached_property
    def _stackable(self) -> Stackable | str:
        return "form='loop' was asked for" if self.training.form == "loop" else stackable(self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what was derived

    @property
    def how(self) -> str:
        """Say how sites are trained, and whom the guarantee is for."""
        found = self._stackable
        form = f"site by site: {found}" if isinstance(found, str) else f"stacked, {found.chain.kind}"
        by_row = f"per row (of {self.model.target}: a stay), not per patient"
        return f"{form}; privacy {by_row if self.privacy.unit is None else f'per {self.privacy.unit}'}"

    def count_units(self, data: Any) -> int:
        """Return how many units a site has, for the ledger: what a batch size spends depends on it."""
        return records_of(training_rows(data), self.privacy, Key(0, 0, "")).count

    def steps_at(self, data: Any, rng: Key) -> int:
        """Return how many steps a training on these rows takes."""
        return self.privacy.steps_at(self.count_units(data))

    @property
    def rows(self) -> Callable[..., Update] | None:
        """The twin: train the sites of a group as one program. None where sites are trained one by one."""
        return None if isinstance(self._stackable, str) else self._train_rows

    def __call__(
        self,
        params: Flat,
        data: Any,
        rng: Key,
        *,
        correction: Mapping[str, Tensor] | None = None,
        anchor: Mapping[str, Tensor] | None = None,
        prox: float | None = None,
        lr: float | None = None,
        steps: int | None = None,
    ) -> Update:
        """Train from `params`. See `LocalUpdate` for the extras."""
        local, params = self.training, tree.flatten(params)
        _check_dtype(params.schema.dtype)
        rows, rate = training_rows(data), local.rate(rng.round) if lr is None else lr
        sampled = sample(rows, self.privacy, rng, steps)
        descent, pull = Descent(local, params, rng), local.pull(params, correction, anchor, prox)
        source, trainable = self.privacy.source(), params.schema.trainable
        kept = local.init_state(params)
        vectors = {name: kept[name].buffer[0, :trainable] for name in local.rule.slots}
        std = sampled.noise * self._clip / sampled.divisor
        for number, (chosen, units) in enumerate(sampled.batches()):
            stop_if_cancelled()
            batch = {n: c[chosen.to(c.device)].to(descent.weights.device) for n, c in rows.items()}
            descent.clip_units(batch, units.to(descent.weights.device), sampled.divisor, number)
            if std:
                drawn = Flat(draw(1, params.schema, source).to(descent.weights.device), params.schema)
                torch._foreach_add_(descent.slots, [drawn[name] for name in descent.leaves], alpha=std)
            descent.adjust(pull)
            local.rule.step(descent.weights, descent.gradient, vectors, rate, number + 1)
            descent.refresh()
        descent.step = None  # what a module's forward left in buffers has no noise, and stays
        return Update(descent.result(params), num_rows(rows), sampled.steps)

    @property
    def _clip(self) -> float:
        bound = self.training.record_clip
        assert bound is not None
        return bound

    def _train_rows(
        self, group: Group, params: Tagged, data: Tagged, rng: Tagged, **extras: Tagged | None
    ) -> Update:
        given = {name: v for name, v in extras.items() if v is not None and v.value is not None}
        how = self._stackable
        assert not isinstance(how, str)
        return self._train(how, group, params, data, rng, given)

    def _train(
        self, how: Stackable, group: Group, params: Tagged, data: Tagged, rng: Tagged,
        given: Mapping[str, Tagged],
    ) -> Update:  # fmt: skip
        """Train the sites of a group and return their updates as rows."""
        local, k = self.training, group.k
        keys, tables = items_of(rng, k), [training_rows(item) for item in items_of(data, k)]
        schema = params.value.schema if isinstance(params.value, Flat) else how.schema
        if not can_train(local, how, schema) or not all(fits_chain(local, how, rows) for rows in tables):
            train = partial(self._train, how)
            return one_by_one(local, how, group, (params, data, rng), given, train, self)
        _check_dtype(schema.dtype)
        start = buffer_of(params, schema)
        steps = numbers_of(given.get("steps"), k, None)
        sampled = [sample(*site) for site in zip(tables, [self.privacy] * k, keys, steps, strict=True)]
        plan = poisson_layout(sampled, self.privacy, _row_bytes(tables), schema.dtype)
        noised = training_of(group, Noised, local, how, schema, start.device, k, plan.width)
        assert isinstance(noised, Noised)
        noised.add([one.noise * self._clip / one.divisor for one in sampled], self.privacy.source())
        noised.begin(plan, start, extras_from(local, schema, start, keys, given), keys)
        noised.run(tables)
        numbers: Any = column(list(map(num_rows, tables))), column([one.steps for one in sampled])
        return Update(Flat(noised.delta(), schema), *numbers)


class Noised(Training):
    """The stacked training whose steps add noise to the gradient, and which tells no loss."""

    def add(self, stds: Sequence[float], source: noise.Source) -> None:
        """Take the standard deviation of each site's noise, in the given order, before `begin`."""
        self.stds, self.source = torch.tensor(stds, dtype=torch.float64).view(-1, 1), source

    def begin(self, plan: Layout, start: Tensor, extras: Extras, keys: Sequence[Key]) -> None:
        """Take a group: see `Training`."""
        super().begin(plan, start, extras, keys)
        self.stds = self._sorted(self.stds.to(start))

    def _step(self, stepping: int, step: int) -> None:
        if bool(self.stds.any()):
            drawn = draw(self.k, self.schema, self.source).to(self.device)
            added = self.planes("noise").load(drawn, None, self.stds).active(stepping)
            for gradient, part in zip(self.frame.vector_gradients.active(stepping), added, strict=True):
                gradient.add_(part)
        super()._step(stepping, step)

    def _account(self, outputs: Tensor, blocks: slice, stepping: int) -> None:
        """Read nothing: a loss on the rows that were drawn would leave without noise."""


def draw(rows: int, schema: Schema, source: noise.Source) -> Tensor:
    """Draw normal noise of standard deviation 1 for every number of some flat rows."""
    return noise.gaussian((rows, schema.stride), 1.0, source, schema.dtype)


def _check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError on numbers whose rounding moves a sum by more than one unit may."""
    if dtype.itemsize < 4:
        raise ValueError(
            f"private_sgd: parameters of {dtype}: sums of clipped gradients are rounded before the noise is "
            "added, by more than one unit adds. Fix: parameters of float32"
        )


def _row_bytes(tables: Sequence[Batch]) -> int:
    sizes = (sum(c[0].numel() * c.element_size() for c in rows.values()) for rows in tables if num_rows(rows))
    return max(next(sizes, 1), 1)


def private_sgd(
    model: Model | Callable[..., Tensor], lr: Rate, clip: float = 1.0, *,
    sampling_rate: float | None = None, batch_size: float | None = None,
    noise_multiplier: float | None = None, epsilon: float | None = None, delta: float = 1e-5,
    rounds: int | None = None, steps: int | None = None, epochs: float | None = 1.0,
    unit: str | None = None, max_records_per_unit: int | None = None, is_secret: bool = False,
    momentum: float = 0.0, weight_decay: float = 0.0, l2: float = 0.0, prox: float = 0.0,
    pos_weight: PosWeight = None, unpenalised: Sequence[str] = ("bias",), form: str = "auto",
    source: Callable[[], noise.Source] = noise.keystream,
) -> PrivateTraining:  # fmt: skip
    """Gradient descent at a site, whose steps are differentially private for its patients.

    Each step takes every unit with one probability, clips the gradient of each (the sum over its rows) to
    the norm `clip`, adds normal noise of `noise_multiplier` x `clip` and divides by the expected number of
    units. With `sampling_rate` all sites have one probability, one noise and one epsilon (the usual choice);
    with `batch_size` a site of n units takes each with batch_size / n, and spends its own epsilon or, where
    `epsilon` is given, adds its own noise. `epsilon` at `delta` is spent when all `rounds` rounds are done,
    as if the site were asked in each. `steps` a round, or as many as take a unit `epochs` times on average.
    `unit` is the column of whole numbers that says whose a row is. All records of a unit are clipped
    together, or `max_records_per_unit` of them, drawn once. `source` opens the noise's keystream, for tests.
    Raises ValueError on settings that cannot be, and on models whose rows have no gradient of their own.
    """
    _check(sampling_rate, batch_size, noise_multiplier, epsilon, rounds, max_records_per_unit)
    mechanism = Mechanism(
        kind="sampled_gaussian", noise_multiplier=noise_multiplier, epsilon=epsilon, delta=delta,
        sampling_rate=sampling_rate, batch_size=batch_size, steps=steps, epochs=epochs,
        rounds=1 if rounds is None else rounds, unit="record" if unit is None else "patient",
        noise_by="sites", trusted="nobody",
    )  # fmt: skip
    if sampling_rate is not None:
        mechanism = replace(mechanism.at_site(1), divisor=None)  # one rate: the same at all sites
    training = LocalTraining(
        model=model, lr=lr, rule=SgdRule(momentum, weight_decay), steps=1, record_clip=clip, l2=l2, prox=prox,
        pos_weight=pos_weight, unpenalised=tuple(unpenalised), form=form,
    )  # fmt: skip
    privacy = Privacy(mechanism=mechanism, unit=unit, max_records=max_records_per_unit, is_secret=is_secret,
                      source=source)  # fmt: skip
    return PrivateTraining(training=training, privacy=privacy)


def _check(
    sampling_rate: float | None, batch_size: float | None, noise_multiplier: float | None,
    epsilon: float | None, rounds: int | None, max_records: int | None,
) -> None:  # fmt: skip
    is_one_rate = (sampling_rate is None) != (batch_size is None)
    is_one_noise = (noise_multiplier is None) != (epsilon is None)
    problems = {
        "give sampling_rate or batch_size, and leave the other None": is_one_rate,
        "give noise_multiplier or epsilon, and leave the other None": is_one_noise,
        "epsilon needs rounds, all that are to come": epsilon is None or rounds is not None,
        f"max_records_per_unit={max_records} must be 1 or more": max_records is None
        or is_whole(max_records, 1),
    }
    if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
        raise ValueError("private_sgd: " + "; ".join(wrong))


@dataclass(frozen=True)
class LockStep:
    """The sum of the clipped gradients of the units that one step draws, negative, as the update.

    What `LocalTraining.lock_step` makes, for a pass that adds noise and divides; `lr` is then the step.
    """

    training: PrivateTraining
    lr: float
    adds_noise: ClassVar[bool] = False

    @property
    def one_shot(self) -> bool:
        """Tell whether a second call would draw other units."""
        return self.training.privacy.is_secret

    @property
    def rows(self) -> Callable[..., Update] | None:
        """The twin."""
        return self.training.rows

    def __call__(self, params: Flat, data: Any, rng: Key) -> Update:
        """Return the sum at one site."""
        return self.training(params, data, rng)


def lock_step(
    local: LocalTraining, mechanism: Mechanism, clip: float, unit: str | None, max_records: int | None,
    is_secret: bool,
) -> LockStep:  # fmt: skip
    """Return what a site does of one step in lock step; see `LockStep`.

    Raises ValueError where the local training is more than one plain step of a constant rate.
    """
    is_one = local.steps == 1 or (local.steps is None and local.epochs == 1 and local.batch_size is None)
    problems = {
        "steps=1": is_one,
        "a constant lr (schedules belong to the server's optimizer)": not callable(local.lr) and local.lr > 0,
        "no momentum and no decay (they belong to the server's optimizer)": local.rule == SgdRule(),
        "no l2, prox, clip_norm, patience, amp, objective": not (
            local.l2 or local.prox or local.clip_norm or local.patience or local.amp or local.objective
        ),
    }
    if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
        raise ValueError("distributed_record: local training must be one plain step: " + "; ".join(wrong))
    plain = replace(local, lr=1.0, steps=1, batch_size=None, record_clip=clip)
    privacy = Privacy(mechanism=mechanism, unit=unit, max_records=max_records, is_secret=is_secret,
                      adds_noise=False, divisor=1.0)  # fmt: skip
    return LockStep(PrivateTraining(training=plain, privacy=privacy), float(local.lr))  # type: ignore[arg-type]
