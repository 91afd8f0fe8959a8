"""CFL beside a loop that is written from the paper, in numpy; who is divided from whom, and when."""

from itertools import combinations

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.cfl import halves
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    STEPS,
    quadratic,
    tables,
    trained,
    uneven,
    vector,
)


def best_halves(alike):
    """Try every division in two: argmin over c1, c2 of max alpha_ij across."""
    everyone = range(len(alike))
    options = [c for size in range(1, len(alike)) for c in combinations(everyone, size) if 0 in c]
    across = {c: max(alike[i][j] for i in c for j in everyone if j not in c) for c in options}
    return min(across, key=across.get), min(across.values())


def cfl_by_hand(eps1, eps2, gamma=0.0, by_position=False):
    """Sattler et al., its steps quoted. `by_position` is the mistake: clusters by the place in the cohort."""
    models, members = [np.zeros(NUM_FEATURES + 1)], {}
    for cohort in COHORTS:
        deltas = {}
        for place, i in enumerate(cohort):
            x, y = tables()[i]
            key = place if by_position else i
            start = models[members.setdefault(key, 0)]
            own = start.copy()
            for _ in range(STEPS[i]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            deltas[key] = own - start  # "Delta theta_i <- SGD(theta_i, D_i) - theta_i"
        for c in range(len(models)):  # "for c in C do"
            names = sorted(i for i in members if members[i] == c)
            here = [i for i in names if i in deltas]
            if not here:
                continue
            mean = np.mean([deltas[i] for i in here], axis=0)  # "Delta theta_c <- 1/|c| sum Delta theta_i"
            models[c] = models[c] + mean
            norms = {i: np.linalg.norm(deltas[i]) for i in here}
            if here != names or len(here) < 2:
                continue
            # "if ||Delta theta_c|| < eps_1 and max ||Delta theta_i|| > eps_2"
            if np.linalg.norm(mean) < eps1 and max(norms.values()) > eps2:
                # "alpha_ij <- <Delta theta_i, Delta theta_j> / ||Delta theta_i|| ||Delta theta_j||"
                alike = [[deltas[i] @ deltas[j] / norms[i] / norms[j] for j in here] for i in here]
                first, across = best_halves(alike)  # "c_1, c_2 <- argmin max alpha_ij"
                if gamma < np.sqrt((1 - across) / 2):  # "C <- (C \ c) + c_1 + c_2"
                    members.update({i: len(models) for p, i in enumerate(here) if p not in first})
                    models.append(models[c])
    return models, members


@pytest.mark.parametrize(
    ("eps1", "eps2", "gamma", "count"),
    [(1e9, 0.0, 0.0, 5), (1e9, 0.0, 0.3, 3), (1.5, 1.0, 0.0, 3), (0.0, 0.0, 0.0, 1)],
)
def test_cfl_equals_the_papers_loop(eps1, eps2, gamma, count):
    result, _ = trained(fr.algorithms.cfl(uneven(), eps1, eps2, gamma))
    models, members = cfl_by_hand(eps1, eps2, gamma)
    assert result.params.members == members
    assert len(models) == count
    assert max(np.abs(vector(a) - b).max() for a, b in zip(result.params.models, models, strict=True)) < 1e-12


def test_clusters_by_position_would_be_told_apart():
    assert cfl_by_hand(1e9, 0.0)[1] != cfl_by_hand(1e9, 0.0, by_position=True)[1]


def test_sites_with_equal_rows_are_never_divided():
    algorithm = fr.algorithms.cfl(uneven(), 1e9, 0.0)
    members = trained(algorithm, rounds=6, schedule=fr.synchronous())[0].params.members
    assert members["c"] == members["d"] and len(set(members.values())) == 4


@pytest.mark.parametrize("seed", range(6))
def test_the_halves_are_the_best_of_all(seed):
    draws = np.random.default_rng(seed).normal(size=(6, 3))
    unit = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    first, second = halves(torch.from_numpy(unit @ unit.T))
    assert tuple(first) == best_halves((unit @ unit.T).tolist())[0]
    assert sorted(first + second) == list(range(6))


def opposed():
    """Four sites of one number: two rest at 1, two at -1."""
    return {
        f"h{i}": SiteData({"a": torch.ones(1).double(), "b": torch.tensor([1.0 if i % 2 else -1.0]).double()})
        for i in range(4)
    }


def test_two_kinds_of_sites_are_divided_and_reach_their_own_optimum():
    algorithm = fr.algorithms.cfl(fr.learn.sgd(quadratic, lr=0.3, steps=3), eps1=0.05, eps2=0.2)
    with fr.simulate(opposed(), packs=2) as federation:
        result = fr.fit(algorithm, federation, init=AT_ZERO, rounds=20)

        def round(server, site):
            own = algorithm.personal(fr.broadcast(server), site)
            return fr.Outputs(server=server, metrics=fr.gather(own, name="own"))

        program = fr.Algorithm(lambda params: params, round, name="look")
        own = fr.compute(program, federation, state=result.params)
    assert result.params.members == {"h0": 0, "h1": 1, "h2": 0, "h3": 1}
    assert [float(own[f"h{i}"]["x"]) for i in range(4)] == pytest.approx([-1.0, 1.0, -1.0, 1.0], abs=1e-6)


def test_that_the_server_sees_each_update_is_listed():
    rows = egress_rows(fr.compile(fr.algorithms.cfl(uneven())))
    assert [row["name"] for row in rows if row["visible"].startswith("yes")] == ["delta"]


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match="eps1=-1"):
        fr.algorithms.cfl(uneven(), eps1=-1)
