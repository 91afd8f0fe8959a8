"""Algorithms for few labels and of distillation: a resume and Ray give the bits of an undisturbed process."""

from contextlib import ExitStack
from functools import cache

import pytest

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from tests.equivalence import study

A = fr.algorithms
SITES = sorted(study.hospitals())[:6]
DATA = fr.data.few_labels(study.hospitals().select(SITES), 0.5, seed=1)
FULL = study.hospitals().select(SITES)
LABELLED = ("feddf", "fedgkt")
WIDTH = len(DATA.features)
MODEL = fr.learn.mlp(WIDTH, hidden=(4,))
LOCAL = fr.learn.sgd(MODEL, lr=0.05, epochs=1, batch_size=16)
MAKE = {
    "feddf": lambda: A.feddf(LOCAL, where="sites", steps=3, num_features=WIDTH),
    "fedgkt": lambda: A.fedgkt(LOCAL, hidden=(5,)),
    "fedmatch": lambda: A.fedmatch(LOCAL, noise=0.1, threshold=0.5),
    "pretrain": lambda: A.pretrain(LOCAL, rounds=2, num_features=WIDTH),
    "pseudo_label": lambda: A.pseudo_label(LOCAL, ramp=(0, 2)),
    "pseudo_label_once": lambda: A.pseudo_label(LOCAL, ramp=(0, 0), labels="round"),
}


def run(name, rounds=4, folder=None, resume=False, **layout):
    """Return the bits of what the server ends with; FedGKT's model there is not its `params`."""
    with fr.simulate(data_of(name), **layout) as federation:
        return fit(name, federation, rounds, Checkpoints(folder) if folder else None, resume)


def data_of(name):
    return FULL if name in LABELLED else DATA


def fit(name, federation, rounds=4, checkpoint=None, resume=False):
    result = fr.fit(
        MAKE[name](), federation, init=MODEL.init(0), rounds=rounds, schedule=fr.synchronous(cohort=0.75),
        checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    assert not result.failures
    found = result.state.net if name == "fedgkt" else result.params
    return fr.tree.flatten(found).buffer.numpy().tobytes()


@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_run_on_other_packs_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path):
    expected = run(name)
    assert run(name, 2, tmp_path, packs=2) != expected
    assert run(name, 4, tmp_path, resume=True, packs=3) == expected


@pytest.fixture(scope="module")
def opened(ray_session):
    """Return a function that gives the federation of two actors, one for labelled data and one for others."""
    on_ray = {"runtime": "ray", "packs": 2, "placement": "actors"}
    with ExitStack() as stack:
        yield cache(
            lambda is_labelled: stack.enter_context(fr.simulate(FULL if is_labelled else DATA, **on_ray))
        )


@pytest.mark.parametrize(
    "name", ["fedmatch", *(pytest.param(name, marks=pytest.mark.slow) for name in MAKE if name != "fedmatch")]
)
def test_two_ray_actors_give_the_bits_of_one_process(opened, name):
    assert fit(name, opened(name in LABELLED)) == run(name)
