"""Stacked training leaves the device only where it says so; the meta device stands for a GPU.

Values are not computed there, so this finds an operation between a tensor on the device and one in memory and
nothing else. Tests with a GPU are in tests/unit/runtime/test_devices.py.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedray import learn
from fedray.learn import stacked
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same
from fedray.tree import Flat

from .test_mapped import Residual
from .test_rows import MODELS, SETTINGS, data_of, start


class Mixed(TorchDispatchMode):
    """Note operations between devices, less copies and single numbers."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor) and x.dim()]
        if len({tensor.device for tensor in given}) > 1 and "copy" not in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def fetched(tensor, real=torch.Tensor.cpu):
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else real(tensor)

    def joined(columns):  # where a column lies in a shared table is read from its address
        ends = torch.tensor([0, *(len(column) for column in columns[:-1])])
        return torch.cat(list(columns)), ends.cumsum(0).tolist()

    monkeypatch.setattr(torch.Tensor, "cpu", fetched)
    monkeypatch.setattr(stacked, "table_of", joined)
    monkeypatch.setattr(stacked, "width_of", lambda model, params, row: 1)


def away(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def mixed(model, target, rule=learn.sgd, **settings):
    local, params = rule(model, lr=0.1, **settings), start(model)
    tables = [data_of(rows, target, i) for i, rows in enumerate((5, 40, 33, 17))]
    data = Rows(Ragged([{name: away(column) for name, column in table.items()} for table in tables]))
    keys = [Key(1, 2, f"h{i}") for i in range(len(tables))]
    given = [Same(Flat(away(params.buffer), params.schema)), data, Rows(Ragged(keys))]
    with Mixed() as mode:
        for extras in ({}, {"correction": given[0]}):
            update = local.rows(Group([key.site for key in keys]), *given, **extras)
            assert update.delta.buffer.is_meta and not update.metrics["loss"].numbers.is_meta
    return mode.found


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_no_operation_of_stacked_training_mixes_devices(name, settings):
    assert mixed(*MODELS[name](), **SETTINGS[settings]) == []


@pytest.mark.parametrize(
    "settings",
    [{"rule": learn.adamw}, {"record_clip": 0.2}, {"pos_weight": 2.0}, {"batch_size": None, "epochs": 2}],
    ids=" ".join,
)
def test_no_operation_of_other_settings_mixes_devices(settings):
    assert mixed(*MODELS["mlp"](), **{"batch_size": 16, **settings}) == []


def test_no_operation_of_mapped_modules_mixes_devices():
    assert mixed(learn.from_module(Residual), "binary", form="vmap", batch_size=16, weight_decay=0.1) == []


def test_a_mixture_is_found():
    with Mixed() as mode:
        away(torch.ones(1, 2, 2)).bmm(torch.ones(1, 2, 2))
    assert mode.found == ["aten.bmm.default"]
