"""Each test of the airlock on updates made by hand: what it measures, and when it refuses."""

import math
from dataclasses import dataclass, field

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.airlock import Canaries, Exposure, Finding, Leaving, Membership, Norm, Rebuilt, RowsBehind
from fedray.data.site import SiteData
from fedray.learn.update import Update
from fedray.rng import Key

KEY = Key(0, 0, "a")
NAN = math.nan


@dataclass
class Told:
    """A training whose rows have the losses that stand in their column `loss`."""

    batch_size: int | None = None
    model: object = None
    asked: list = field(default_factory=list)

    def row_losses(self, params, rows):
        self.asked.append(params)
        return rows["loss"]


def leaving(data, delta=None, steps=1, training=None):
    start = tree.flatten({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)})
    update = Update(delta if delta is not None else start, 0, steps)
    return Leaving(training=training or Told(), params=start, update=update, data=data, rng=KEY)


def rows(count, split=None, **columns):
    data = {"x": torch.ones(count, 3), "y": torch.zeros(count), "loss": torch.zeros(count), **columns}
    cut = count if split is None else split
    places = torch.arange(count)
    return SiteData(data, {"train": places[:cut], "valid": places[cut:]})


@pytest.mark.parametrize(("count", "batch_size", "steps", "expected"), [
    (100, None, 1, 100), (100, 4, 1, 4), (100, 4, 10, 40), (6, 4, 10, 6), (100, 200, 1, 100), (100, 4, 0, 0),
])  # fmt: skip
def test_rows_behind_an_update_are_those_of_its_steps_each_row_once(count, batch_size, steps, expected):
    found = RowsBehind(32).check(leaving(rows(count), steps=steps, training=Told(batch_size)))
    assert (found.value, found.is_ok) == (expected, expected >= 32)


def test_a_norm_above_the_limit_is_refused():
    delta = tree.flatten({"weight": torch.full((1, 3), 2.0), "bias": torch.full((1,), 2.0)})
    assert Norm(4.01).check(leaving(rows(5), delta)).is_ok
    found = Norm(3.99).check(leaving(rows(5), delta))
    assert not found.is_ok and found.value == pytest.approx(4.0)


def test_the_model_that_is_tested_is_start_plus_what_leaves():
    training = Told()
    delta = tree.flatten({"weight": torch.tensor([[1.0, 2.0, 3.0]])})  # the bias stays at the site
    shown = leaving(rows(5), delta, training=training).model
    assert torch.equal(shown["weight"], delta["weight"]) and torch.equal(shown["bias"], torch.zeros(1))


def normal(count, seed, shift=0.0):
    return torch.randn(count, generator=Key(seed, 0, "x").generator()) + shift


def test_losses_that_tell_members_are_refused_and_equal_ones_are_not():
    told = torch.cat([normal(200, 1, -1.5), normal(60, 2)])
    found = Membership(0.2).check(leaving(rows(260, 200, loss=told)))
    assert not found.is_ok and 0.6 < found.value < 0.8  # 2 Phi(1.5 / sqrt 2) - 1 = .71
    honest = [
        Membership(0.2).check(leaving(rows(260, 200, loss=normal(260, seed)))).is_ok for seed in range(20)
    ]
    assert all(honest)


def test_a_rare_outcome_that_is_remembered_is_found_among_many_rows_that_are_not():
    y = torch.tensor(([1.0] * 20 + [0.0] * 180) + ([1.0] * 8 + [0.0] * 72))
    loss = normal(280, 3) - 5.0 * y * (torch.arange(280) < 200)
    assert not Membership(0.2).check(leaving(rows(280, 200, y=y, loss=loss))).is_ok
    assert Membership(0.2).check(leaving(rows(280, 200, loss=loss))).is_ok  # of one outcome it drowns


def test_membership_is_not_measured_on_few_rows_and_never_on_test_rows():
    found = Membership(0.0).check(leaving(rows(104, 100, loss=normal(104, 1))))
    assert math.isnan(found.value) and found.is_ok
    columns = rows(200, 100, loss=torch.cat([torch.zeros(100), torch.ones(100)])).columns
    tested = SiteData(columns, {"train": torch.arange(100), "test": torch.arange(100, 200)})
    assert math.isnan(Membership(0.0).check(leaving(tested)).value)


def test_a_row_that_stands_alone_in_an_update_is_rebuilt_and_rows_in_a_sum_are_not():
    draws = torch.randn(40, 3, generator=KEY.generator())
    alone = tree.flatten({"weight": -0.3 * draws[:1], "bias": torch.tensor([-0.3])})
    found = Rebuilt().check(leaving(rows(40, x=draws), alone))
    assert (found.value, found.is_ok) == (1, False)
    summed = tree.flatten({"weight": draws.sum(0, keepdim=True), "bias": torch.tensor([40.0])})
    assert Rebuilt(tolerance=0.01).check(leaving(rows(40, x=draws), summed)).is_ok


def test_rows_that_no_layer_sees_cannot_be_measured():
    delta = tree.flatten({"weight": torch.ones(1, 7), "bias": torch.ones(1)})
    assert math.isnan(Rebuilt().check(leaving(rows(5), delta)).value)


CANARIES = Canaries(count=6, references=60, seed=3)


def planted(loss_of_canaries):
    data = CANARIES.plant(rows(30, 20), KEY)
    data.columns["loss"] = torch.linspace(0, 1, data.num_rows)
    data.columns["loss"][30:36] = loss_of_canaries
    data.columns["y"].zero_()
    return data


def test_canaries_that_rank_first_are_exposed_by_all_bits_and_in_the_middle_by_one():
    found = Exposure(CANARIES).check(leaving(planted(-1.0)))
    assert found.value == pytest.approx(math.log2(61)) and not found.is_ok
    middle = planted(0.0)
    middle.columns["loss"][30:36] = middle["loss"][36:].median() + 1e-4
    assert Exposure(CANARIES).check(leaving(middle)).value == pytest.approx(math.log2(61 / 31), abs=0.05)


def test_canaries_are_training_rows_references_are_in_no_split_and_a_site_has_its_own():
    before = rows(30, 20, x=torch.randn(30, 3, generator=KEY.generator()))
    after = CANARIES.plant(before, KEY)
    assert after.train.num_rows == 26 and after.valid.num_rows == 10 and after.num_rows == 30 + 66
    assert set(after["x"][30:].flatten().tolist()) <= set(before["x"].flatten().tolist())
    assert not torch.equal(after["x"][30:], CANARIES.plant(before, Key(0, 0, "b"))["x"][30:])
    dataset = fr.data.synthetic_icu(num_sites=3, scale=0.01)
    opened = {site: CANARIES.planted(dataset)[site]() for site in dataset}
    assert [data.train.num_rows - dataset[site]().train.num_rows for site, data in opened.items()] == [6] * 3


def test_a_finding_tells_numbers_and_its_own_name():
    assert str(Finding("norm of the update", 12.345, 10.0)) == "norm of the update 12.3, at most 10"
    assert str(Finding("rows", 4, 32, is_floor=True)) == "rows 4, at least 32"
    assert str(Finding("advantage", 0.5, 0.2, 0.1)) == "advantage 0.5 (+- 0.1), at most 0.2"


@pytest.mark.parametrize("make", [
    lambda: RowsBehind(0), lambda: Norm(0.0), lambda: Membership(1.0), lambda: Membership(margin=-1.0),
    lambda: Membership(least=1), lambda: Canaries(count=0), lambda: Canaries(references=0),
    lambda: RowsBehind(NAN), lambda: RowsBehind(-1), lambda: RowsBehind(2.5), lambda: Norm(NAN),
    lambda: Norm(-1.0), lambda: Norm(math.inf), lambda: Rebuilt(NAN), lambda: Rebuilt(-1),
    lambda: Rebuilt(tolerance=NAN), lambda: Rebuilt(tolerance=-0.1), lambda: Membership(NAN),
    lambda: Membership(-0.1), lambda: Membership(margin=NAN), lambda: Membership(least=NAN),
    lambda: Exposure(Canaries(), NAN), lambda: Exposure(Canaries(), -1.0), lambda: Canaries(count=NAN),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(ValueError, match="give a"):
        make()
