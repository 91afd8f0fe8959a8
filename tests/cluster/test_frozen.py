"""Over Ray: hosts read what is frozen once, and once more where they were started again; same bits, same
bytes.
"""

import pytest

import fedray as fr
from fedray import tree
from tests.cluster.test_killed import KillsBetween
from tests.equivalence import study

MODEL = fr.learn.mlp(len(study.hospitals().features), hidden=(64,))
LOCAL = fr.learn.sgd(MODEL, lr=0.05, steps=2, batch_size=16)
SITES = sorted(study.hospitals())[:4]
ROUNDS, KILLED = 4, 1


def stacked():
    return fr.algorithms.fedlora(LOCAL, rank=1), []


def followed():
    return fr.algorithms.fedavg(LOCAL), [fr.passes.ef21_broadcast(0.1)]


def trained(make, kills=(), **layout):
    algorithm, passes = make()
    with fr.simulate(study.hospitals().select(SITES), packs=2, **layout) as federation:
        tracker = KillsBetween(federation, list(kills))
        return fr.fit(
            algorithm, federation, init=MODEL.init(0), rounds=ROUNDS, passes=passes, tracker=tracker
        )


@pytest.mark.parametrize("make", [stacked, followed])
def test_actors_get_what_hosts_in_process_get(ray_session, make):
    here, there = trained(make), trained(make, runtime="ray", placement="actors")
    assert there.params_sha256 == here.params_sha256
    assert [r.bytes_down for r in there.metrics] == [r.bytes_down for r in here.metrics]
    assert [r.bytes_up for r in there.metrics] == [r.bytes_up for r in here.metrics]
    assert there.metrics[1].bytes_down < there.metrics[0].bytes_down / 2


@pytest.mark.parametrize("make", [stacked, followed])
def test_a_host_that_was_killed_reads_it_again_and_no_bit_changes(ray_session, make):
    here = trained(make)
    killed = trained(make, [KILLED], runtime="ray", placement="actors")
    assert killed.params_sha256 == here.params_sha256
    more = [r.bytes_down - calm.bytes_down for r, calm in zip(killed.metrics, here.metrics, strict=True)]
    [again] = [extra for extra in more if extra]
    assert more.index(again) == KILLED + 1
    assert tree.nbytes(MODEL.init(0)) <= again < 2 * tree.nbytes(MODEL.init(0))
