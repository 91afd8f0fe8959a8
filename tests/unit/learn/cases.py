"""Small sites, losses and plain loops that the tests of `learn` share."""

import torch

from fedray import tree
from fedray.data.site import SiteData
from fedray.rng import Key

KEY = Key(0, 0, "h1")


def site(rows=23, features=5, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=dtype)
    chance = torch.sigmoid(x @ torch.linspace(-1, 1, features, dtype=dtype))
    y = (torch.rand(rows, generator=generator, dtype=dtype) < chance).to(dtype)
    return SiteData({"x": x, "y": y})


def double(flat):
    return tree.map(lambda buffer: buffer.double(), flat)


def random_params(model, seed=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    flat = model.init(0)
    return tree.flatten(
        {name: 0.3 * torch.randn(flat[name].shape, generator=generator, dtype=dtype) for name in flat},
        flat_schema(flat, dtype),
    )


def flat_schema(flat, dtype):
    buffers = [leaf.name for leaf in flat.schema.leaves if leaf.offset >= flat.schema.trainable]
    return tree.schema_of({name: flat[name].to(dtype) for name in flat}, buffers)


def quadratic(params, batch):
    """a/2 (x - b)^2, the mean over rows."""
    return (batch["a"] / 2 * (params["x"] - batch["b"]).square()).mean()


def quadratic_site(a, b):
    return SiteData(
        {"a": torch.tensor([a], dtype=torch.float64), "b": torch.tensor([b], dtype=torch.float64)}
    )


def at(value):
    return tree.flatten({"x": torch.tensor(float(value), dtype=torch.float64)})


def trained_by_torch(model, params, data, optimizer, batches, adjust=lambda module: None):
    """Return the parameters after torch's own optimizer stepped through `batches` of row numbers."""
    module = model.as_module(params).train()
    stepper = optimizer(module.parameters())
    for rows in batches:
        stepper.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            module(data["x"][rows])[:, 0], data["y"][rows]
        )
        loss.backward()
        adjust(module)
        stepper.step()
    return dict(module.named_parameters())


def epochs_of(rows, size, epochs, rng=KEY):
    """Return the batches of row numbers that the site's generator gives."""
    generator = rng.generator()
    orders = [torch.randperm(rows, generator=generator) for _ in range(epochs)]
    return [part for order in orders for part in order.split(size)]


def difference(delta, params, expected):
    return max(float((params[name] + delta[name] - expected[name].detach()).abs().max()) for name in expected)
