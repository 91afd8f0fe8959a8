"""The probe: a run says whether its sites have the same bits alone and together."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

import fedray as fr
from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn.update import Update
from fedray.rows import Column, column
from fedray.runtime.plan import compile
from fedray.runtime.probe import made_up, row_invariant
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import INIT, NUM_FEATURES, ToyLocal, sites

BLANK = SiteData({"x": torch.zeros(4, NUM_FEATURES), "y": torch.zeros(4)})


class Leaning:
    """A local update whose twin adds the number of sites of the group to every update."""

    lr = 0.1

    def __call__(self, params, data, rng):
        return Update(tree.scale(params, 0), 1, 1, {"loss": 0.0})

    def rows(self, group, params, data, rng):
        k = group.k
        delta = tree.Flat(torch.full((k, params.value.schema.stride), float(k)), params.value.schema)
        return Update(
            delta, column([1] * k), column([1] * k), {"loss": Column(torch.zeros(k).double(), False)}
        )


def fit(algorithm, init=INIT, **options):
    with fr.simulate(sites(4)) as federation:
        return fr.fit(algorithm, federation, init=init, rounds=1, **options)


def local(**settings):
    return learn.sgd(learn.mlp(NUM_FEATURES, (8,)), lr=0.1, batch_size=16, **settings)


@pytest.mark.parametrize(
    "make",
    [fr.algorithms.fedavg, lambda given: fr.algorithms.scaffold(given, num_sites=4),
     lambda given: fr.algorithms.ditto(given, prox=0.1)],
)  # fmt: skip
def test_stacked_training_is_row_invariant(make):
    assert fit(make(local()), local().model.init(0)).row_invariant is True


def test_a_fast_fold_does_not_make_rows_variant():
    assert fit(fr.algorithms.fedavg(local()), local().model.init(0), fold="fast").row_invariant is True


def test_a_plan_without_a_twin_is_not_probed():
    assert fit(averaging(ToyLocal())).row_invariant is None


def test_a_twin_that_looks_at_its_neighbours_is_found_and_told_once(caplog):
    with caplog.at_level(logging.WARNING, "fedray.runtime.loop"):
        result = fit(averaging(Leaning()))
    assert result.row_invariant is False
    assert sum("row_invariant=false" in record.message for record in caplog.records) == 1


def test_what_cannot_be_rehearsed_is_not_probed():
    class Broken(Leaning):
        def rows(self, group, params, data, rng):
            raise ValueError("made-up rows are not for me")

    plan = compile(averaging(Broken()))
    assert row_invariant(plan, tree.flatten(INIT), BLANK) is None


def test_a_twin_that_draws_on_its_own_is_not_called_variant():
    class Drawing(Leaning):
        calls = 0

        def rows(self, group, params, data, rng):
            Drawing.calls += 1
            update = super().rows(group, params, data, rng)
            update.delta.buffer.fill_(Drawing.calls)
            return update

    assert row_invariant(compile(averaging(Drawing())), tree.flatten(INIT), BLANK) is None


def test_large_models_are_not_probed():
    given = learn.sgd(learn.mlp(NUM_FEATURES, (1500, 1500)), lr=0.1)
    assert row_invariant(compile(fr.algorithms.fedavg(given)), given.model.init(0), BLANK) is None


def test_made_up_sites_have_the_columns_of_the_blank_one():
    x, words = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.int64)
    blank = SiteData({"x": x, "words": words, "y": torch.zeros(4)})
    site = made_up(blank, 9, 0)
    kinds = {name: (column.dtype, column.shape[1:]) for name, column in site.items()}
    assert kinds == {name: (column.dtype, column.shape[1:]) for name, column in blank.items()}
    assert site.num_rows == len(site.splits["train"]) == len(site.splits["valid"]) == 9
    assert set(site["y"].tolist()) | set(site["words"].flatten().tolist()) <= {0, 1}
    assert len(set(site["x"].flatten().tolist())) == 27


def test_the_tracker_is_told_at_the_start():
    told = {}
    quiet = dict.fromkeys(("round", "evaluation", "finish"), lambda given: None)
    tracker = SimpleNamespace(start=lambda plan, facts: told.update(facts), **quiet)
    fit(fr.algorithms.fedavg(local()), local().model.init(0), tracker=tracker)
    assert told["row_invariant"] is True and json.dumps(told["row_invariant"]) == "true"
