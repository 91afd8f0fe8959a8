"""Objectives on models of layers: dropout, batch statistics, recurrence, and a local early stop."""

import pytest
import torch

import fedray as fr
from fedray.data.site import SiteData

A = fr.algorithms
MODELS = {
    "dropout": (lambda: fr.learn.mlp(5, (8,), dropout=0.2), (5,)),
    "batch statistics": (lambda: fr.learn.mlp(5, (8,), norm="batch"), (5,)),
    "images": (lambda: fr.learn.cnn((1, 8, 8), (4,), norm="batch"), (1, 8, 8)),
    "series": (lambda: fr.learn.gru(3, 8), (6, 3)),
}
MAKE = {
    "apfl": A.apfl,
    "per_fedavg": A.per_fedavg,
    "first order": lambda local: A.per_fedavg(local, variant="fo"),
    "moon": A.moon,
    "fedrep": A.fedrep,
}


def sites(shape):
    draws = torch.Generator().manual_seed(0)
    splits = {"train": torch.arange(14), "valid": torch.arange(14, 20)}
    return {
        f"h{i}": SiteData(
            {
                "x": torch.randn(20, *shape, generator=draws),
                "y": (torch.rand(20, generator=draws) > 0.5).float(),
            },
            splits,
        )
        for i in range(3)
    }


@pytest.mark.slow
@pytest.mark.parametrize("patience", [None, 1])
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_trains_and_its_own_models_can_be_measured(name, kind, patience):
    make, shape = MODELS[name]
    model = make()
    local = fr.learn.sgd(model, lr=0.1, batch_size=6, epochs=2, patience=patience)
    algorithm = MAKE[kind](local)
    watch = {"valid": A.evaluation(model, personal=algorithm.personal or False, bins=20)}
    with fr.simulate(sites(shape)) as federation:
        result = fr.fit(algorithm, federation, init=model.init(0), rounds=2, evaluate=watch)
    moved = {leaf for leaf in result.params if not torch.equal(result.params[leaf], model.init(0)[leaf])}
    assert not result.failures and bool(torch.isfinite(result.params.buffer).all())
    assert len(moved) >= len(result.params) - 2  # all, but the head that stays at a site
