"""Buffers that groups and columns share: nothing goes from one to another through them."""

import pytest
import torch
from torch import nn

from fedray import learn
from fedray.data.site import SiteData
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same
from tests.unit.learn.test_rows import FEATURES, MODELS, data_of, start


@pytest.mark.parametrize("rule", [{}, {"momentum": 0.9}, {"l2": 0.1}, {"clip_norm": 1.0}])
@pytest.mark.parametrize("name", ["logistic 16", "mlp of odd widths", "layer norm"])
def test_a_site_that_is_not_finite_leaves_nothing_to_the_next_group(name, rule):
    model = learn.logistic(16) if name == "logistic 16" else MODELS[name]()[0]
    features = 16 if name == "logistic 16" else FEATURES
    target = "classes" if name == "mlp of odd widths" else "binary"
    local, params = learn.sgd(model, lr=0.1, prox=0.2, batch_size=8, **rule), start(model)
    data = [data_of(20, target, i, features) for i in range(4)]
    broken = data[1].with_columns(x=data[1]["x"].clone().index_fill_(0, torch.tensor([0]), float("nan")))
    cache = {}

    def trained(given):
        ids = [f"h{i}" for i in range(len(given))]
        keys = Rows(Ragged([Key(1, 2, site) for site in ids]))
        return local.rows(Group(ids, cache), Same(params), Rows(Ragged(given)), keys).delta.buffer.clone()

    before = trained(data)
    assert not torch.isfinite(trained([data[0], broken, *data[2:]])).all()
    assert torch.equal(trained(data), before)


@pytest.mark.parametrize(("inputs", "target"), [("outputs", "y"), ("x", "outputs")])
def test_a_column_may_have_any_name(inputs, target):
    data = [data_of(n, "number", n) for n in (20, 31)]
    named = [SiteData({inputs: each["x"], target: each["y"]}) for each in data]
    module = nn.Sequential(nn.Linear(FEATURES, 2))
    found = []
    for given, names in ((data, ("x", "y")), (named, (inputs, target))):
        model = learn.from_module(module, inputs=names[:1], target=names[1], task="number")
        keys = Rows(Ragged([Key(1, 2, "a"), Key(1, 2, "b")]))
        local = learn.sgd(model, lr=0.1, batch_size=8)
        update = local.rows(Group(["a", "b"]), Same(start(model)), Rows(Ragged(given)), keys)
        found.append((update.delta.buffer, update.metrics))
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("outputs", [1, 8])
def test_the_bits_of_a_product_do_not_depend_on_where_its_operands_begin(outputs):
    """Groups and packs lay rows at other places; without MKL_CBWR some processors round otherwise."""
    features, num_rows = 23, 37
    x, weight = (
        torch.randn(n, features, generator=torch.Generator().manual_seed(n)) for n in (num_rows, outputs)
    )

    def at(values, start):
        room = torch.empty(values.numel() + 32)
        first = -(room.data_ptr() // room.element_size()) % 16 + start
        return room[first : first + values.numel()].view(values.shape).copy_(values)

    products = [at(x, start) @ at(weight, start + more).t() for start in range(16) for more in (0, 5)]
    assert all(torch.equal(product, products[0]) for product in products)
