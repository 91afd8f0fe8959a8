"""Private heads over unequal label spaces beside a plain loop, in numpy; only trunks leave, to the byte."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.cases import (
    COHORTS,
    CYCLIC,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    Uneven,
    leaving,
    tables,
    trained,
)

WIDTH = 2
TASKS = {"a": 1, "b": 3, "c": 2, "d": 2, "e": 5}  # each site's own; c and d are equal
TRUNK = np.random.default_rng(4).normal(size=(WIDTH, NUM_FEATURES))
INIT = {"w": torch.tensor(TRUNK)}
MISSING = -1.0


def labels():
    """Return {site: labels (rows, tasks)}, about half of which are missing."""
    made = {}
    for place, (site, (x, _)) in enumerate(tables().items()):
        draws = np.random.default_rng(10 + place)
        y = (x @ draws.normal(size=(x.shape[1], TASKS[site])) > 0).astype(float)
        made[site] = np.where(draws.random(y.shape) < 0.5, y, MISSING)
    return {**made, "d": made["c"]}


def sites():
    return {
        i: SiteData({"x": torch.from_numpy(x[:, :-1].copy()), "y": torch.from_numpy(labels()[i])})
        for i, (x, _) in tables().items()
    }


def loss(params, batch):
    """Half the mean squared error over the labels that are there."""
    there = batch["y"] != MISSING
    error = batch["x"] @ params["w"].T @ params["head.v"].T - batch["y"]
    return (error.square() * there).sum() / there.sum() / 2


def first_head(data, rng):
    return {"v": torch.full((data.train["y"].shape[1], WIDTH), 0.3, dtype=torch.float64)}


def local():
    return Uneven(fr.learn.sgd(loss, lr=LR), STEPS)


def by_hand(cohorts=COHORTS, weighted=True):
    """The plain loop. Returns the trunk and every head."""
    trunk, heads = TRUNK.copy(), {i: np.full((TASKS[i], WIDTH), 0.3) for i in TASKS}
    for cohort in cohorts:
        found = {}
        for i in cohort:
            x, y, w = tables()[i][0][:, :-1], labels()[i], trunk.copy()
            there = y != MISSING
            for _ in range(STEPS[i]):
                error = (x @ w.T @ heads[i].T - y) * there / there.sum()
                w, heads[i] = w - LR * (error @ heads[i]).T @ x, heads[i] - LR * error.T @ (x @ w.T)
            found[i] = w
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        trunk = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())
    return trunk, heads


def heads_of(federation):
    packs = federation.aggregator.root.transport.hosts.values()
    states = {site: pack.state_of(site) for pack in packs for site in pack.sites}
    return {site: state["head.v"].numpy() for site, state in states.items() if state is not None}


@pytest.mark.parametrize("weighted", [True, False])
def test_private_heads_equal_the_plain_loop(weighted):
    algorithm = fr.algorithms.private_heads(local(), first_head, weighted=weighted)
    result, found = trained(algorithm, sites(), init=INIT, look=heads_of)
    trunk, heads = by_hand(weighted=weighted)
    assert np.abs(result.params["w"].numpy() - trunk).max() < 1e-12
    assert {i: head.shape for i, head in found.items()} == {i: (n, WIDTH) for i, n in TASKS.items()}
    assert max(np.abs(found[i] - heads[i]).max() for i in heads) < 1e-12


def test_only_trunks_leave_and_the_bytes_say_so():
    algorithm = fr.algorithms.private_heads(local(), first_head)
    assert leaving(algorithm, stop=True) == {"delta": {"trained"}, "metrics": {"trained"}}
    with fr.simulate(sites(), packs=5) as federation:
        result = fr.fit(algorithm, federation, init=INIT, rounds=1)
        counted = dict(federation.aggregator.root.bytes_up)
    assert {row["name"] for row in egress_rows(result.plan)} == set(counted)
    stride = fr.tree.flatten(INIT).buffer.numel() * 8
    assert counted["delta"] == len(TASKS) * stride


def test_heads_of_unequal_shape_survive_a_resume_and_other_packs(tmp_path):
    def run(rounds, packs, **more):
        algorithm = fr.algorithms.private_heads(local(), first_head)
        with fr.simulate(sites(), packs=packs) as federation:
            result = fr.fit(algorithm, federation, init=INIT, rounds=rounds, schedule=CYCLIC, **more)
            federation.aggregator.root.commit([])
            found = heads_of(federation)
        return result.params_sha256, {i: found[i].tobytes() for i in sorted(found)}

    expected = run(4, 1)
    assert run(4, 3) == expected
    run(2, 3, checkpoint=Checkpoints(tmp_path))
    assert run(4, 3, checkpoint=Checkpoints(tmp_path), resume=True) == expected
