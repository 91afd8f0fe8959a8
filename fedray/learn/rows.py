"""The twin of local training: what arrives tagged from the interpreter, and the update of k rows.

`LocalTraining` (local.py) says what is computed; `stacked.py` computes it for many sites as one program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn import together
from fedray.learn.batches import Batch, Read, num_rows, steps_of, training_rows, valid_rows
from fedray.learn.chain import Chain, chain_of
from fedray.learn.heads import Head, head_of
from fedray.learn.layout import WIDE, is_wide, layout_of
from fedray.learn.mapped import mapped_chain
from fedray.learn.models import Model
from fedray.learn.onestep import OneStep
from fedray.learn.partly import PartlyStill, can_train, holds_still
from fedray.learn.stacked import KEPT_TRAININGS, Extras, Training
from fedray.learn.update import Update
from fedray.learn.watched import Watched
from fedray.rng import Key
from fedray.rows import Column, Group, Ragged, Rows, Same, Tagged, column, only, row, stack
from fedray.tree import Flat

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining

KEPT_READS = 16  # groups whose data are known to fit


@dataclass(frozen=True)
class Stackable:
    """How a model is trained for many sites at once."""

    chain: Chain
    head: Head
    schema: tree.Schema


def stackable(local: "LocalTraining") -> Stackable | str:
    """Return how a local training is stacked, or why it is not."""
    model = local.model
    if local.objective is not None:
        return "the objective is more than the model's loss"
    if not isinstance(model, Model):
        return "the loss is a function of its own"
    if model.custom_loss is not None:
        return "the model has a loss of its own"
    if len(model.inputs) != 1:
        return "the model has several inputs"
    if local.amp:
        return "mixed precision"
    chain = mapped_chain(local) if local.form == "vmap" else chain_of(model.module)
    if isinstance(chain, str):
        return chain
    if chain is None:
        return f"{type(model.module).__name__} has a layer without a stacked form"
    if model.task == "classes" and local.pos_weight is not None and is_wide(local.batch_size):
        return f"class weights over batches of more than {WIDE} rows"
    head = head_of(model.task, chain.outputs or 1, local.pos_weight)  # 0: known from the first rows
    if head is None:
        return f"{chain.outputs} outputs for a {model.task} outcome"
    return Stackable(chain, head, model.functional.start().schema)


def buffer_of(tagged: Tagged, schema: tree.Schema) -> Tensor:
    """Return parameters, a correction or an anchor as a flat buffer of one row or k."""
    value = tagged.value
    if isinstance(value, Flat):
        return value.buffer.detach()
    if isinstance(value, Ragged):
        return torch.cat([tree.flatten(item, schema).buffer for item in value.items])
    if isinstance(tagged, Same):
        return tree.flatten(value, schema).buffer
    k = next(iter(value.values())).shape[0]
    return torch.cat(
        [tree.flatten({name: value[name][i] for name in value}, schema).buffer for i in range(k)]
    )


def items_of(tagged: Tagged, k: int) -> Sequence[Any]:
    if isinstance(tagged, Rows) and isinstance(tagged.value, Ragged):
        return tagged.value.items
    return [tagged.value] * k


def numbers_of(tagged: Tagged | None, k: int, otherwise: Any) -> list[Any]:
    """Return one number per row."""
    if tagged is None or tagged.value is None:
        return [otherwise] * k
    if isinstance(tagged, Rows) and isinstance(tagged.value, Column):
        return [tagged.value.row(i) for i in range(k)]
    return [tagged.value] * k


def train_rows(
    local: "LocalTraining", how: Stackable, group: Group, params: Tagged, data: Tagged, rng: Tagged,
    given: Mapping[str, Tagged],
) -> Update:  # fmt: skip
    """Train the sites of a group and return their updates as rows; `given` are a `LocalUpdate`'s extras."""
    k, keys, items = group.k, items_of(rng, group.k), items_of(data, group.k)
    schema = params.value.schema if isinstance(params.value, Flat) else how.schema
    start = buffer_of(params, schema)
    read = _read(group, local, how, items)
    if not read.fits or not can_train(local, how, schema):
        train = partial(train_rows, local, how)
        return one_by_one(local, how, group, (params, data, rng), given, train, local)
    rows, extras = read.rows, extras_from(local, schema, start, keys, given)
    seat, is_still, found = together.current(), holds_still(schema), []
    if seat is not None and not is_still and together.fits(local, how, given):
        rates = torch.tensor([[local.rate(keys[0].round)]], dtype=torch.float64)
        request = together.Request(local, how, schema, start, read, keys, extras, rates, group)
        return seat.train(request)
    most = numbers_of(given.get("steps"), k, local.steps)
    sizes, taken = read.sizes, steps_of(read.sizes, local.batch_size, local.epochs, most)
    is_large = not is_still and OneStep.fits(local, extras, start[0].nbytes)
    lone = {i for i in range(k) if is_large and taken[i] <= 1}
    parts = [[i] for i in sorted(lone)] + ([rest] if (rest := [i for i in range(k) if i not in lone]) else [])
    for part in parts:
        shape = [sizes[i] for i in part], [taken[i] for i in part]
        plan = layout_of(group.cache, *shape, local.batch_size, rows[part[0]], schema.dtype)
        kind = OneStep if part[0] in lone else _kind(local, is_still)
        training = training_of(group, kind, local, how, schema, start.device, len(part), plan.width)
        training.begin(plan, _of(part, k, start), _extras_of(part, k, extras), [keys[i] for i in part])
        if isinstance(training, Watched):
            training.watch([valid_rows(items[i]) for i in part])
        training.run([rows[i] for i in part])
        found.append((training.delta(), training.mean_loss()))
        if isinstance(training, Watched):
            for i, steps in zip(part, training.steps_taken(), strict=True):
                taken[i] = steps
    at = [i for part in parts for i in part]
    delta, loss = (_joined(parts_of, at) for parts_of in zip(*found, strict=True))
    numbers: Any = (column(sizes), column(taken), {"loss": Column(loss, False)})
    return Update(Flat(delta, schema), *numbers)


def _kind(local: "LocalTraining", is_still: bool) -> type[Training]:
    if is_still:
        return PartlyStill
    return Training if local.patience is None else Watched


def _read(group: Group, local: "LocalTraining", how: Stackable, items: Sequence[Any]) -> Read:
    """Return what a group's data are to a training, looked at once where the same sequence comes again."""
    kept: dict[Any, tuple[Any, Read]] = group.cache.setdefault("read", {})
    key = (id(items), id(local))
    if key not in kept:
        if len(kept) >= KEPT_READS:
            kept.pop(next(iter(kept)))
        rows = [training_rows(item) for item in items]
        fits = all(fits_chain(local, how, batch) for batch in rows)
        found = Read(items, rows, [num_rows(batch) for batch in rows], fits)
        kept[key] = (local, found)  # which keeps both, and so their ids
    return kept[key][1]


def fits_chain(local: "LocalTraining", how: Stackable, batch: Batch) -> bool:
    """Tell whether a site's columns have the shapes and kinds that the stacked form takes for granted.

    What does not is left to the plain form, which takes more, or says what is wrong.
    """
    x, y = batch[local.model.inputs[0]], batch[local.model.target]
    task, outputs = local.model.task, how.chain.outputs
    if task == "hazards":
        is_target = y.dim() == 2 and y.shape[1] == 2
    elif task == "number" and outputs != 1:
        is_target = y.dim() == 2 and (y.shape[1] == outputs or not outputs)
    else:
        is_target = y.dim() == 1
    if local.form == "vmap":
        return is_target
    if not how.chain.inputs:  # words
        return is_target and x.dim() == 2 and x.dtype in (torch.int64, torch.int32)
    width = x.shape[1:].numel() if local.model.flatten else x.shape[1] if x.dim() == 2 else -1
    return is_target and x.is_floating_point() and width == how.chain.inputs


def one_by_one(
    local: "LocalTraining", how: Stackable, group: Group, inputs: Sequence[Tagged],
    given: Mapping[str, Tagged], train: Callable[..., Update], plain: Callable[..., Update],
) -> Update:  # fmt: skip
    """Train a group in which some sites do not fit: those by the plain form, the others as if alone."""
    schema = inputs[0].value.schema if isinstance(inputs[0].value, Flat) else how.schema
    is_trainable = can_train(local, how, schema)
    found = []
    for place, site in enumerate(group.ids):
        params, data, rng, *extras = (
            value if isinstance(value, Same) else Rows(only(value.value, place))
            for value in (*inputs, *given.values())
        )
        named = dict(zip(given, extras, strict=True))
        item = row(data, 0)
        if is_trainable and fits_chain(local, how, training_rows(item)):
            single = Group([site], group.cache)
            found.append(row(Rows(train(single, params, data, rng, named)), 0))
        else:
            told = {name: row(value, 0) for name, value in named.items()}
            found.append(plain(row(params, 0), item, row(rng, 0), **told))
    stacked: Update = stack(found).value
    return stacked


def training_of(group: Group, kind: type[Training], local: "LocalTraining", *shape: Any) -> Training:
    """Return the training of so many sites, with the buffers that it had the last time."""
    kept: dict[Any, Training] = group.cache.setdefault("trainings", {})
    key = (kind, id(local), *shape[1:])
    if key not in kept:
        if len(kept) >= KEPT_TRAININGS:
            kept.pop(next(iter(kept)))
        kept[key] = kind(local, *shape)  # which keeps `local`, and so its id
    return kept[key]


def extras_from(
    local: "LocalTraining",
    schema: tree.Schema,
    start: Tensor,
    keys: Sequence[Key],
    given: Mapping[str, Tagged],
) -> Extras:
    lr = given.get("lr")
    rates = [local.rate(keys[0].round)]
    if lr is not None:
        rates = [float(rate) for rate in numbers_of(lr, len(keys), rates[0])]
    return Extras(
        None if (fix := given.get("correction")) is None else buffer_of(fix, schema),
        start if (anchor := given.get("anchor")) is None else buffer_of(anchor, schema),
        local.pull_of("anchor" in given, _one(given.get("prox"))),
        # one rate a row is another program than one for all: which it is depends on what was given alone
        torch.tensor(rates, dtype=torch.float64).view(-1, 1) if isinstance(lr, Rows) else rates[0],
    )


def _of(part: Sequence[int], k: int, rows: Tensor) -> Tensor:
    """Return some rows of a buffer that has one row for all or k."""
    return rows if rows.shape[0] == 1 or len(part) == k else rows[list(part)]


def _extras_of(part: Sequence[int], k: int, extras: Extras) -> Extras:
    if len(part) == k:
        return extras
    fix, rate = extras.correction, extras.rate
    return Extras(
        None if fix is None else _of(part, k, fix),
        _of(part, k, extras.anchor),
        extras.prox,
        rate[list(part)] if isinstance(rate, Tensor) else rate,
    )


def _joined(parts: Sequence[Tensor], at: Sequence[int]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    whole = torch.cat(list(parts))
    return torch.empty_like(whole).index_copy_(0, torch.tensor(list(at), device=whole.device), whole)


def _one(tagged: Tagged | None) -> float | None:
    if tagged is None or tagged.value is None:
        return None
    k = len(tagged.value.numbers) if isinstance(tagged.value, Column) else 1
    found = set(numbers_of(tagged, k, None))
    if len(found) > 1:
        raise ValueError("prox differs between the sites of a group: give one number")
    return float(found.pop())
