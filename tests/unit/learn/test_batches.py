"""Which rows a local training sees, in which batches and in which order."""

from itertools import chain

import pytest
import torch

from fedray import learn
from fedray.data.site import SiteData
from fedray.rng import Key

from .cases import KEY, at, epochs_of, quadratic, random_params, site

MODEL = learn.logistic(5)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 2, "batch_size": 8}, 6),
        ({"epochs": 1}, 1),
        ({"steps": 7, "batch_size": 8}, 7),
        ({"steps": 5}, 5),
        ({"epochs": 3, "batch_size": 23}, 3),
        ({"epochs": 2, "batch_size": 100}, 2),
        ({"epochs": None, "steps": 100, "batch_size": 4}, 100),
    ],
)
def test_real_steps_are_counted(settings, steps) -> None:
    update = learn.sgd(MODEL, lr=0.1, **settings)(random_params(MODEL), site(), KEY)
    assert (update.num_steps, update.num_examples) == (steps, 23)


def seen_rows(**settings):
    """Return the rows of each batch that a loss was asked for."""
    seen = []

    def loss(params, batch):
        seen.append(batch["row"].tolist())
        return params["x"] * 0.0

    data = SiteData({"row": torch.arange(10)})
    learn.sgd(loss, lr=0.1, **settings)(at(0), data, KEY)
    return seen


def test_last_partial_batch_is_kept_and_every_row_is_seen_once_an_epoch() -> None:
    seen = seen_rows(epochs=2, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:])) == list(range(10))


def test_batch_order_is_that_of_one_generator_across_epochs() -> None:
    assert seen_rows(epochs=2, batch_size=4) == [part.tolist() for part in epochs_of(10, 4, 2)]


def test_order_differs_between_epochs_and_rounds() -> None:
    seen = seen_rows(epochs=2, batch_size=4)
    other = epochs_of(10, 4, 1, Key(0, 1, "h1"))
    assert seen[:3] != seen[3:] and seen[:3] != [part.tolist() for part in other]


def test_steps_go_on_through_epochs_with_the_partial_batch() -> None:
    assert [len(batch) for batch in seen_rows(steps=5, batch_size=4)] == [4, 4, 2, 4, 4]
    assert seen_rows(steps=5, batch_size=4) == seen_rows(epochs=2, batch_size=4)[:5]


def test_full_batch_keeps_the_order_of_the_table() -> None:
    assert seen_rows(epochs=1) == [list(range(10))]


def test_only_training_rows_are_seen() -> None:
    data = SiteData(
        {"a": torch.ones(3).double(), "b": torch.tensor([1.0, 5.0, 9.0]).double()},
        {"train": torch.tensor([0]), "test": torch.tensor([1, 2])},
    )
    update = learn.sgd(quadratic, lr=1.0)(at(0), data, KEY)
    assert (float(update.delta["x"]), update.num_examples) == (1.0, 1)
