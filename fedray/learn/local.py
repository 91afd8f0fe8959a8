"""Local training: gradient steps on a site's rows from the received parameters. Start at `LocalTraining`.

The loop works on one flat vector: leaves are views of it, gradients are collected in another, and a step is a
few operations over whole vectors. The gradient of a step is, in this order,
  loss + l2/2 ||w||^2 + prox/2 ||w - anchor||^2, clipped to `clip_norm`, plus `correction`;
with a `reference` (plain form only) the gradient of loss and l2 there, on the same batch, is taken off before
clipping. What the rule adds (weight decay, momentum) comes after. Momentum and moments start at zero in every
round; an algorithm that wants to keep them calls `with_state` and keeps what it returns in its site state.

This loop is the plain form. Where a model is a chain of known layers, the sites of a group are trained as one
program instead (`rows.py`, `stacked.py`), one site alone too; the two agree to float rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.cancellation import stop_if_cancelled
from fedray.learn.batches import Batch, batches, count_steps, num_rows, training_rows, valid_rows
from fedray.learn.clipping import Clipping, check_clippable
from fedray.learn.descent import Descent, Pull
from fedray.learn.losses import PosWeight, check_pos_weight
from fedray.learn.models import Model
from fedray.learn.rows import Stackable, stackable, train_rows
from fedray.learn.rules import AdamWRule, Rule, SgdRule
from fedray.learn.stopping import Watch
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.rows import Group, Tagged
from fedray.settings import check_numbers, check_rates, check_whole
from fedray.tree import Flat

LossFunction = Callable[[Mapping[str, Tensor], Batch], Tensor]
Objective = Callable[[LossFunction, Mapping[str, Tensor], Batch], Tensor]
Rate = float | Callable[[int], float]
COUNTS = ("epochs", "steps", "batch_size", "patience")
FORMS = ("auto", "stacked", "vmap", "loop")


@dataclass(frozen=True, slots=True)
class KeptUpdate:
    """An update and the optimizer state after it, both to be read by field."""

    update: Update
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """Train at a site by gradient steps: a `LocalUpdate`. `sgd` and `adamw` make it and say the options."""

    model: Model | LossFunction
    lr: Rate
    rule: Rule
    epochs: int | None = 1
    steps: int | None = None
    batch_size: int | None = None
    l2: float = 0.0
    unpenalised: tuple[str, ...] = ("bias",)
    clip_norm: float | None = None
    pos_weight: PosWeight = None
    prox: float = 0.0
    amp: bool = False
    record_clip: float | None = None
    form: str = "auto"
    patience: int | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("local training: give epochs or steps")
        if self.form not in FORMS:
            raise ValueError(f"local training: form={self.form!r}: choose one of {', '.join(FORMS)}")
        who = "local training"
        check_whole(who, or_none=True, **{name: getattr(self, name) for name in COUNTS})
        check_numbers(who, above=0, or_none=True, clip_norm=self.clip_norm, record_clip=self.record_clip)
        check_numbers(who, least=0, l2=self.l2, prox=self.prox)
        check_rates(who, lr=self.lr)
        if not isinstance(self.model, Model) and not callable(self.model):
            kind = type(self.model).__name__
            raise ValueError(f"local training: {kind} is neither a model nor a function loss(params, batch)")
        is_own_loss = not isinstance(self.model, Model) or self.model.custom_loss is not None
        check_pos_weight(None if is_own_loss else self.model.task, self.pos_weight)
        if self.record_clip is not None:
            check_clippable(self.model, self.pos_weight)
        if self.form in ("stacked", "vmap") and isinstance(self._stackable, str):
            raise ValueError(f"local training: form={self.form!r} is not possible: {self._stackable}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what was derived

    @cached_property
    def _stackable(self) -> Stackable | str:
        """How many sites are trained at once, or why they are not."""
        return "form='loop' was asked for" if self.form == "loop" else stackable(self)

    @cached_property
    def clipping(self) -> Clipping:
        """How the gradients of single rows are clipped in the plain form."""
        return Clipping(self.model, self.pos_weight)

    def with_objective(self, objective: Objective) -> "LocalTraining":
        """Return the same training of another objective (`objectives.py`), which is done site by site."""
        return replace(self, objective=objective)

    def lock_step(self, **options: Any) -> Any:
        """Return one private step of this training without its noise, for a pass (`distributed_record`)."""
        from fedray.learn.private_training import lock_step  # which stands on this file

        return lock_step(self, **options)

    @property
    def how(self) -> str:
        """Say how sites are trained: as one program, or one after the other and why."""
        found = self._stackable
        return f"site by site: {found}" if isinstance(found, str) else f"stacked, {found.chain.kind}"

    @property
    def rows(self) -> Callable[..., Update] | None:
        """The twin: train the sites of a group as one program. None where sites are trained one by one."""
        return None if isinstance(self._stackable, str) else self._train_rows

    def _train_rows(
        self,
        group: Group,
        params: Tagged,
        data: Tagged,
        rng: Tagged,
        *,
        correction: Tagged | None = None,
        anchor: Tagged | None = None,
        prox: Tagged | None = None,
        lr: Tagged | None = None,
        steps: Tagged | None = None,
    ) -> Update:
        found = self._stackable
        assert not isinstance(found, str)
        extras = {"correction": correction, "anchor": anchor, "prox": prox, "lr": lr, "steps": steps}
        told = {name: value for name, value in extras.items() if value is not None}
        given = {name: value for name, value in told.items() if value.value is not None}
        return train_rows(self, found, group, params, data, rng, given)

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the autocast context: bfloat16 (no loss scaling needed), only where the device has it."""
        on_gpu = device.type == "cuda"
        has_it = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
        if self.amp and has_it:
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()

    def rate(self, round: int) -> float:
        """Return the learning rate of a round."""
        return float(self.lr(round) if callable(self.lr) else self.lr)

    @property
    def momentum(self) -> float | None:
        """The momentum of gradient descent, 0 for plain steps; None where steps follow another rule."""
        return self.rule.momentum if isinstance(self.rule, SgdRule) else None

    def steps_at(self, data: Any, rng: Key) -> int:
        """Return how many steps a training on these rows takes, unless it is told another number."""
        return count_steps(num_rows(training_rows(data)), self.batch_size, self.epochs, self.steps)

    def init_state(self, params: Flat) -> dict[str, Any]:
        """Return the optimizer state before the first step, for `with_state`."""
        return {"count": 0, **{name: tree.zeros_like(params) for name in self.rule.slots}}

    def __call__(self, params: Flat, data: Any, rng: Key, **extras: Any) -> Update:
        """Train from `params`, with a fresh optimizer state. See `LocalUpdate` for the extras."""
        return self.with_state(params, data, rng, None, **extras).update

    def with_state(
        self,
        params: Flat,
        data: Any,
        rng: Key,
        state: Mapping[str, Any] | None,
        *,
        correction: Mapping[str, Tensor] | None = None,
        anchor: Mapping[str, Tensor] | None = None,
        prox: float | None = None,
        lr: float | None = None,
        steps: int | None = None,
        reference: Mapping[str, Tensor] | None = None,
    ) -> KeptUpdate:
        """Train from `params` and an optimizer state (`init_state`), and return both.

        Metrics: `loss`, the mean over the rows seen, before each step and without penalties.
        """
        params = tree.flatten(params)
        pull, rate = self.pull(params, correction, anchor, prox), self.rate(rng.round) if lr is None else lr
        rows, valid = training_rows(data), None if self.patience is None else valid_rows(data)
        limit = self.steps if steps is None else steps
        most = count_steps(num_rows(rows), self.batch_size, self.epochs, limit)
        watch = None if valid is None else Watch(self, num_rows(rows), most)
        descent = Descent(self, params, rng, reference)
        kept = tree.clone(self.init_state(params) if state is None else dict(state))
        vectors = {name: kept[name].buffer[0, : params.schema.trainable] for name in self.rule.slots}
        total, seen, done = torch.zeros((), dtype=torch.float64, device=descent.weights.device), 0, 0
        for batch in batches(rows, self.batch_size, most, rng, descent.weights.device):
            stop_if_cancelled()
            total += descent.differentiate(batch, done) * num_rows(batch)
            seen, done = seen + num_rows(batch), done + 1
            descent.adjust(pull)
            kept["count"] += 1
            self.rule.step(descent.weights, descent.gradient, vectors, rate, int(kept["count"]))
            descent.refresh()
            if watch is not None and watch.is_due(done) and descent.is_over(watch, valid):
                break
        loss = float(total) / seen if seen else 0.0
        return KeptUpdate(Update(descent.result(params), num_rows(rows), done, {"loss": loss}), kept)

    def loss(self, params: Flat, data: Any) -> float:
        """Return the mean loss over all training rows at `params`, 0 without rows.

        In evaluation mode and without penalties. It is not vectorised: rows that are read once cost less one
        site after the other.
        """
        params, rows = tree.flatten(params), training_rows(data)
        if not num_rows(rows):
            return 0.0
        here = {name: column.to(params.buffer.device) for name, column in rows.items()}
        with torch.no_grad():
            if isinstance(self.model, Model):
                return float(self.model.loss(params, here, None, self.pos_weight))
            return float(self.model(params, here))

    def row_losses(self, params: Flat, data: Any) -> Tensor:
        """Return the loss of each training row at `params`, each as a batch of its own: (rows,).

        In evaluation mode and without penalties; class weights cancel in a mean over one row. A loss function
        of one's own is called row by row.
        """
        params, rows = tree.flatten(params), training_rows(data)
        here = {name: column.to(params.buffer.device) for name, column in rows.items()}
        with torch.no_grad():
            if isinstance(self.model, Model) and self.model.custom_loss is None:
                return self.model.row_losses(params, here, self.pos_weight)
            loss = self.model.loss if isinstance(self.model, Model) else self.model
            places = range(num_rows(rows))
            found = [loss(params, {name: column[i : i + 1] for name, column in here.items()}) for i in places]
            return torch.stack(found) if found else params.buffer.new_zeros(0)

    def gradient(self, params: Flat, data: Any, rng: Key | None = None) -> Flat:
        """Return the full-batch gradient of loss and l2 at `params`, zero without rows. Option I of SCAFFOLD.

        In training mode, as the steps see it: batch statistics, and the dropout masks of the first step.
        """
        params = tree.flatten(params)
        rows, found = training_rows(data), tree.zeros_like(params)
        if num_rows(rows):
            descent = Descent(self, params, rng or Key(0, 0, ""))
            whole = {name: column.to(params.buffer.device) for name, column in rows.items()}
            found.buffer[0, : params.schema.trainable] = descent.penalised(whole)
        return found

    def pull_of(self, has_anchor: bool, prox: float | None) -> float:
        """Return how strong the pull to the anchor is. Raises ValueError on an anchor that pulls nowhere."""
        strength = self.prox if prox is None else prox
        if has_anchor and prox is None and not strength:
            raise ValueError("an anchor without prox pulls nowhere: give prox=")
        return strength

    def pull(self, params: Flat, correction: Any, anchor: Any, prox: float | None) -> Pull:
        """Return what acts on gradients besides the loss."""
        strength = self.pull_of(anchor is not None, prox)
        trainable = params.schema.trainable

        def vector(value: Any) -> Tensor:
            return tree.flatten(value, params.schema).buffer[0, :trainable].detach()

        return Pull(
            None if correction is None else vector(correction),
            vector(params if anchor is None else anchor),
            strength,
        )


def sgd(
    model: Model | LossFunction,
    lr: Rate,
    epochs: int | None = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    l2: float = 0.0,
    clip_norm: float | None = None,
    pos_weight: PosWeight = None,
    prox: float = 0.0,
    *,
    unpenalised: Sequence[str] = ("bias",),
    amp: bool = False,
    record_clip: float | None = None,
    form: str = "auto",
    patience: int | None = None,
) -> LocalTraining:
    """Gradient descent at a site.

    `steps` batches, or `epochs` passes where no steps are given; `batch_size=None` takes all rows. `lr` is a
    number or a schedule of the round. `weight_decay` adds weight_decay * w for every weight, as torch does;
    `l2` is a penalty l2/2 ||w||^2 without leaves whose own name starts with a word of `unpenalised`.
    `pos_weight` weighs the positive class (a number) or every class (a sequence). `amp` computes the loss in
    bfloat16 where the processor or GPU has it, and changes nothing elsewhere. `record_clip` scales the
    gradient of every row to a norm of at most this before the mean. `form` says how a group of sites is
    trained: `auto` (as one program where the model allows it), `stacked` (or refuse), `vmap` (any model
    without dropout and batch statistics; rows are then not promised to be invariant), `loop` (one by one).
    `patience` stops a site after so many epochs in which the loss on its own validation rows did not fall;
    the update is that of its best epoch. Sites without validation rows train to the end.
    Raises ValueError on settings that cannot be.
    """
    return LocalTraining(
        model=model, lr=lr, rule=SgdRule(momentum, weight_decay), epochs=epochs, steps=steps,
        batch_size=batch_size, l2=l2, unpenalised=tuple(unpenalised), clip_norm=clip_norm,
        pos_weight=pos_weight, prox=prox, amp=amp,
        record_clip=record_clip, form=form, patience=patience,
    )  # fmt: skip


def adamw(
    model: Model | LossFunction,
    lr: Rate = 1e-3,
    epochs: int | None = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    weight_decay: float = 0.01,
    l2: float = 0.0,
    clip_norm: float | None = None,
    pos_weight: PosWeight = None,
    prox: float = 0.0,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    unpenalised: Sequence[str] = ("bias",),
    amp: bool = False,
    record_clip: float | None = None,
    form: str = "auto",
    patience: int | None = None,
) -> LocalTraining:
    """AdamW at a site, its moments reset each round; the other settings are those of `sgd`."""
    return LocalTraining(
        model=model, lr=lr, rule=AdamWRule(beta1, beta2, eps, weight_decay), epochs=epochs, steps=steps,
        batch_size=batch_size, l2=l2, unpenalised=tuple(unpenalised), clip_norm=clip_norm,
        pos_weight=pos_weight, prox=prox, amp=amp,
        record_clip=record_clip, form=form, patience=patience,
    )  # fmt: skip
