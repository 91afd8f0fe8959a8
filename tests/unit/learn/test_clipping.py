"""Clipped gradients of units: by book-keeping, by vmap and row by row they are the same numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.learn.clipping import Clipping
from fedray.learn.ghost import Units, linear_norms
from fedray.rng import Key

FEATURES, ROWS, WORDS, BOUND = 6, 12, 7, 0.3
PATIENTS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 0])


class Series(nn.Module):
    """Linear layers over series, a mean over time, and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, 3, bias=False)
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.norm(self.second(torch.tanh(self.first(x)))).mean(1))


class Words(nn.Module):
    """Word vectors, one after the other, through a linear layer."""

    def __init__(self, padding=None):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4, padding_idx=padding), nn.Linear(4 * WORDS, 1)

    def forward(self, x):
        return self.head(torch.relu(self.table(x)).flatten(1))


class Called(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Places(nn.Module):
    """A table of places, looked up by place and not by row: its inputs are as long as the batch by chance."""

    def __init__(self):
        super().__init__()
        self.places, self.first, self.head = nn.Embedding(ROWS, 3), nn.Linear(1, 3), nn.Linear(3, 1)

    def forward(self, x):
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(torch.tanh(self.first(x.unsqueeze(2)) + places).mean(1))


class Beside(nn.Module):
    """A row is compared with the mean over the batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.head(x - x.mean(0))


def model_of(*layers, task="binary"):
    return learn.from_module(nn.Sequential(*layers), task=task)


NUMBERS, SERIES, WORDS_IN = (ROWS, FEATURES), (ROWS, 5, FEATURES), "words"
GHOSTS = {
    "mlp": (lambda: learn.mlp(FEATURES, (8, 4)), NUMBERS),
    "mlp without bias": (
        lambda: model_of(nn.Linear(FEATURES, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)), NUMBERS
    ),
    "layer norm": (lambda: learn.mlp(FEATURES, (8,), norm="layer"), NUMBERS),
    "norm of scales alone": (
        lambda: model_of(nn.Linear(FEATURES, 8), nn.LayerNorm(8, bias=False), nn.Linear(8, 1)), NUMBERS
    ),
    "words": (lambda: learn.from_module(Words()), WORDS_IN),
    "words with padding": (lambda: learn.from_module(Words(padding=2)), WORDS_IN),
    "bag": (lambda: learn.bag_of_embeddings(10, 4), WORDS_IN),
    "sum in a bag": (lambda: model_of(nn.EmbeddingBag(10, 4, mode="sum"), nn.Linear(4, 1)), WORDS_IN),
    "short series": (lambda: learn.from_module(Series(16)), SERIES),
    "long series": (lambda: learn.from_module(Series(2)), (ROWS, 30, FEATURES)),
}  # fmt: skip
OTHERS = {
    "convolution": (
        lambda: learn.from_module(nn.Sequential(nn.Conv1d(5, 3, 2), nn.Flatten(), nn.Linear(15, 1))), SERIES,
        "by vmap: Conv1d has no book-keeping form",
    ),
    "group norm": (
        lambda: model_of(nn.Linear(FEATURES, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 1)), NUMBERS,
        "by vmap: GroupNorm has no book-keeping form",
    ),
    "a layer called twice": (
        lambda: learn.from_module(Called()), NUMBERS, "by vmap: a layer is not called once"
    ),
    "written over": (
        lambda: model_of(nn.Linear(FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)), NUMBERS,
        "by vmap: what Linear gave or took is written over",
    ),
    "looked up by place": (
        lambda: learn.from_module(Places()), (ROWS, ROWS),
        "by vmap: a row's gradient depends on the rows beside it",
    ),
    "recurrent": (
        lambda: learn.gru(FEATURES, 4), SERIES, "row by row: GRU has no book-keeping form"
    ),
}  # fmt: skip


def case(make, shape):
    """Return a model, leaves that require gradients, and a batch."""
    model = make()
    generator = torch.Generator().manual_seed(3)
    start = model.init(5)
    leaves = {
        name: (start[name] + 0.1 * torch.randn(start[name].shape, generator=generator)).requires_grad_()
        for name in start
    }
    if shape == WORDS_IN:
        x = torch.randint(0, 6, (ROWS, WORDS), generator=generator)  # of ten: most rows hold a word twice
    else:
        x = torch.randn(shape, generator=generator)
    return model, leaves, {"x": x, "y": (torch.rand(ROWS, generator=generator) < 0.4).float()}


def one_by_one(model, leaves, batch, units, bound):
    """Clip by the definition: the gradient of every unit, by autograd on its rows alone."""
    total = [torch.zeros_like(leaf) for leaf in leaves.values()]
    for unit in range(units.count):
        rows = units.of_row == unit
        own = [{n: c[i : i + 1] for n, c in batch.items()} for i in rows.nonzero()[:, 0]]
        loss = sum(model.loss(leaves, one) for one in own)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        norm = torch.cat([part.flatten() for part in found]).norm()
        total = [t + part * min(1.0, bound / float(norm)) for t, part in zip(total, found, strict=True)]
    return total


def apart(found, expected):
    """Return the largest difference, relative to the largest number."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for b in expected)


@pytest.mark.parametrize("patients", [None, PATIENTS], ids=["rows", "patients"])
@pytest.mark.parametrize("name", [*GHOSTS, *OTHERS])
def test_units_are_clipped_as_by_the_definition(name, patients):
    make, shape, *how = {**GHOSTS, **OTHERS}[name]
    model, leaves, batch = case(make, shape)
    units = Units.alone(ROWS, torch.device("cpu")) if patients is None else Units(patients, 7)
    clipping = Clipping(model)
    found = clipping.clipped_sum(leaves, {}, batch, units, BOUND)
    assert clipping.how == (how[0] if how else "by book-keeping")
    assert apart(found, one_by_one(model, leaves, batch, units, BOUND)) < 1e-5


@pytest.mark.parametrize("name", GHOSTS)
def test_book_keeping_equals_vmap(name):
    model, leaves, batch = case(*GHOSTS[name])
    units = Units.alone(ROWS, torch.device("cpu"))
    mapped = Clipping(model, reason="asked for")
    found = [clip.clipped_sum(leaves, {}, batch, units, BOUND) for clip in (Clipping(model), mapped)]
    assert mapped.how.startswith("by vmap")
    assert apart(*found) < 1e-5


def test_without_a_bound_the_clipped_sum_is_the_gradient():
    model, leaves, batch = case(*GHOSTS["mlp"])
    found = Clipping(model).clipped_sum(leaves, {}, batch, Units.alone(ROWS, torch.device("cpu")), 1e9)
    plain = torch.autograd.grad(model.loss(leaves, batch) * ROWS, list(leaves.values()))
    assert apart(found, plain) < 1e-5


def test_a_row_that_depends_on_others_is_clipped_alone():
    model, leaves, batch = case(lambda: learn.from_module(Beside()), NUMBERS)
    units = Units.alone(ROWS, torch.device("cpu"))
    clipping = Clipping(model)
    found = clipping.clipped_sum(leaves, {}, batch, units, BOUND)
    assert "depends on the rows beside it" in clipping.how
    assert apart(found, one_by_one(model, leaves, batch, units, BOUND)) < 1e-5


def test_a_batch_of_one_row_does_not_show_that_rows_are_apart():
    model, leaves, batch = case(lambda: learn.from_module(Beside()), NUMBERS)
    units, first = Units.alone(ROWS, torch.device("cpu")), {name: rows[:1] for name, rows in batch.items()}
    clipping = Clipping(model)
    clipping.clipped_sum(leaves, {}, first, Units.alone(1, torch.device("cpu")), BOUND)
    found = clipping.clipped_sum(leaves, {}, batch, units, BOUND)
    assert apart(found, one_by_one(model, leaves, batch, units, BOUND)) < 1e-5


def test_a_loss_of_ones_own_is_clipped_row_by_row():
    def loss(params, batch):
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(ROWS, 3, generator=generator), "y": torch.ones(ROWS)}
    leaves = {"w": torch.ones(3, requires_grad=True)}
    clipping = Clipping(loss)
    (found,) = clipping.clipped_sum(leaves, {}, batch, Units(PATIENTS, 7), 0.5)
    rows = 2 * (batch["x"] @ leaves["w"] - batch["y"]).unsqueeze(1) * batch["x"]
    sums = torch.zeros(7, 3).index_add_(0, PATIENTS, rows.detach())
    expected = (sums * (0.5 / sums.norm(dim=1)).clamp(max=1)[:, None]).sum(0)
    assert clipping.how.startswith("row by row")
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_norms_of_a_series_are_those_of_its_gradient(steps):
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(4, steps, 5, generator=generator), torch.randn(4, steps, 3, generator=generator)
    formed = torch.einsum("bto,bti->boi", g, x).square().sum((1, 2))
    bias = g.sum(1).square().sum(1)
    assert torch.allclose(linear_norms(x, g, False), formed, rtol=1e-5)
    assert torch.allclose(linear_norms(x, g, True), formed + bias, rtol=1e-5)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.InstanceNorm1d(8, track_running_stats=True)])
def test_statistics_over_rows_are_refused_with_a_fix(layer):
    model = model_of(nn.Linear(FEATURES, 8), layer, nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"(?s)Norm1d.*Fix: LayerNorm or GroupNorm"):
        learn.sgd(model, lr=0.1, record_clip=1.0)
    with pytest.raises(ValueError, match="LayerNorm or GroupNorm"):
        learn.private_sgd(model, lr=0.1, sampling_rate=0.1, noise_multiplier=1.0)


@pytest.mark.parametrize("bound", [BOUND, 1e9])
def test_what_is_clipped_is_the_gradient_of_the_objective(bound):
    model, leaves, batch = case(*GHOSTS["mlp"])
    params = tree.flatten({name: leaf.detach() for name, leaf in leaves.items()})
    local = learn.sgd(model, lr=1.0, record_clip=bound)
    doubled = local.with_objective(lambda loss, params, batch: 2 * loss(params, batch))
    half = replace(local, record_clip=bound / 2)  # which doubled gradients reach at half their norm
    found = [one(params, batch, Key(0, 0, "h")).delta.buffer for one in (doubled, half)]
    assert torch.allclose(found[0], 2 * found[1], atol=1e-6)
