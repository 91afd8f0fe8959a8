"""What made-up rows say serves the runs that follow where plan and shapes are equal, and no other."""

from dataclasses import replace

import pytest
import torch

import fedray as fr
from fedray import learn
from fedray.data.site import SiteData
from fedray.runtime import learnt, rehearsal
from fedray.runtime.learnt import Learnt
from fedray.runtime.plan import compile
from fedray.runtime.rehearsal import ToRehearse


def blank(features=3):
    return SiteData({"x": torch.zeros(4, features), "y": torch.zeros(4)}, {"train": torch.arange(4)})


def plan_of(lr=0.1, features=3):
    local = learn.sgd(learn.logistic(features), lr=lr, batch_size=2)
    return compile(fr.algorithms.fedavg(local)), local.model.init(0)


def state_of(params):
    return fr.algorithms.fedavg(learn.sgd(learn.logistic(3), lr=0.1)).init(params)


@pytest.fixture
def tried(monkeypatch):
    """What was rehearsed and probed, in order."""
    found = []
    for name in ("rehearse", "row_invariant"):
        inner = getattr(rehearsal, name)
        monkeypatch.setattr(
            rehearsal, name, lambda *given, n=name, f=inner: found.append((n, given[0].digest)) or f(*given)
        )
    return found


def learnt_of(known, plan, state, site):
    asked = ToRehearse(plan, {}, state)
    return known.of(asked, site, lambda: asked.on(site))


def test_an_equal_plan_is_rehearsed_and_probed_once(tried):
    known = Learnt()
    for _ in range(2):
        plan, params = plan_of()
        found = learnt_of(known, plan, state_of(params), blank())
        assert found.why == "" and found.sizes["delta"].row_bytes > 0 and found.row_invariant is True
    assert [name for name, _ in tried] == ["rehearse", "row_invariant"]


def test_another_plan_is_rehearsed_anew(tried):
    known = Learnt()
    for lr in (0.1, 0.2):
        plan, params = plan_of(lr)
        learnt_of(known, plan, state_of(params), blank())
    assert len({digest for _, digest in tried}) == 2


def test_other_columns_or_another_state_or_device_or_program_are_tried_anew(tried):
    known, (plan, params) = Learnt(), plan_of()
    learnt_of(known, plan, state_of(params), blank())
    learnt_of(known, plan, state_of(params), blank().with_columns(z=torch.zeros(4)))
    assert len(tried) == 4
    wide = params.buffer.new_zeros(1, params.schema.stride).double()
    other = fr.tree.Flat(wide, replace(params.schema, dtype=torch.float64))
    asked = ToRehearse(plan, {}, state_of(params))
    others = [replace(asked, state=state_of(other)), replace(asked, device="cuda")]
    others.append(replace(asked, programs={"valid": plan}))
    keys = [learnt._key(each, blank()) for each in (asked, *others)]
    assert all(keys[0] != key for key in keys[1:])


def test_a_rehearsal_that_fails_is_tried_again(tried):
    known, (plan, params) = Learnt(), plan_of()
    for _ in range(2):
        assert learnt_of(known, plan, state_of(params), blank(features=2)).why
    assert len(tried) == 2


def test_runs_on_one_federation_share_what_was_learnt_only_where_they_are_told_to(tried):
    data = {"a": blank(), "b": blank()}
    local = learn.sgd(learn.logistic(3), lr=0.1, batch_size=2)

    def fitted(federation):
        fr.fit(fr.algorithms.fedavg(local), federation, init=local.model.init(0), rounds=1)

    with fr.simulate(data) as federation:
        fitted(federation)
        fitted(federation)
        assert len(tried) == 4
        federation.learnt = Learnt()
        fitted(federation)
        fitted(federation)
        assert len(tried) == 6
