"""IFCA beside a loop that is written from the paper, in numpy; which clusters are found."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.ifca import starts
from fedray.core.graph import Op, Placement
from fedray.core.trace import trace
from fedray.data.site import SiteData
from tests.unit.algorithms.cases import (
    COHORTS,
    INIT,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    sites,
    squares,
    tables,
    trained,
    uneven,
    vector,
    with_statistics,
)

FIRST = [np.full(NUM_FEATURES + 1, start) for start in (0.0, 5.0, 40.0)]  # nobody is near the third


def as_params(v):
    return {"w": torch.from_numpy(v[:-1].copy()), "b": torch.tensor(v[-1], dtype=torch.float64)}


def ifca_by_hand(option="II", weighted=False, by_position=False):
    """Ghosh et al., Algorithm 1, with its line numbers. `by_position` is the mistake: the model of the place
    in the cohort."""
    models, picks = [model.copy() for model in FIRST], []  # 1: initialization theta_j
    for cohort in COHORTS:  # 2: for t = 0, ..., T - 1; 4: M_t, a random subset of machines
        sums, members = [np.zeros(NUM_FEATURES + 1) for _ in models], [0] * len(models)
        for place, i in enumerate(cohort):  # 3: broadcast theta_j; 5: for worker i in M_t in parallel
            x, y = tables()[i]
            losses = [((x @ theta - y) ** 2).mean() / 2 for theta in models]
            j = place % len(models) if by_position else int(np.argmin(losses))  # 6: argmin_j F_i(theta_j)
            picks.append(j)
            own = models[j].copy()  # 7: one-hot s_i; 9: theta_i = LocalUpdate(theta_j, gamma, tau)
            for _ in range(STEPS[i]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            n = SIZES[i] if weighted else 1
            sums[j], members[j] = sums[j] + n * (own - models[j]), members[j] + n
        for j, total in enumerate(sums):  # 11: option I, over m; 12: option II, over sum_i s_ij
            over = sum(members) if option == "I" else members[j]
            models[j] = models[j] + (total / over if members[j] else 0.0)
    return models, picks


def found(**settings):
    algorithm = fr.algorithms.ifca(uneven(), 3, **settings)
    result, _ = trained(algorithm, init=[as_params(model) for model in FIRST])
    return [vector(model) for model in result.params]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("option", ["I", "II"])
def test_ifca_equals_the_papers_loop(option, weighted):
    expected, picks = ifca_by_hand(option, weighted)
    assert len(set(picks)) == 2  # two models are trained, one is not
    models = found(option=option, weighted=weighted)
    assert max(np.abs(a - b).max() for a, b in zip(models, expected, strict=True)) < 1e-12


def test_a_model_that_no_site_chose_stays_to_the_bit():
    assert found()[2].tolist() == FIRST[2].tolist()


def test_models_by_position_would_be_told_apart():
    wrong = ifca_by_hand(by_position=True)[0]
    assert max(np.abs(a - b).max() for a, b in zip(found(), wrong, strict=True)) > 1e-2


def two_kinds():
    """Six sites of two kinds: y = 2 x and y = -2 x."""
    draws = np.random.default_rng(3)
    made = {}
    for number in range(6):
        x = torch.from_numpy(draws.normal(size=(20, NUM_FEATURES)))
        made[f"h{number}"] = SiteData({"x": x, "y": (2 if number % 2 else -2) * x.sum(1)})
    return made


def test_two_kinds_of_sites_get_a_model_each_and_evaluation_takes_it():
    local = fr.learn.sgd(squares, lr=0.3, steps=5)
    algorithm = fr.algorithms.ifca(local, 2)
    near = [as_params(np.full(NUM_FEATURES + 1, start)) for start in (0.3, -0.1)]
    with fr.simulate(two_kinds(), packs=2) as federation:
        result = fr.fit(algorithm, federation, init=near, rounds=25)

        def round(server, site):
            own = algorithm.personal(fr.broadcast(server), site)
            return fr.Outputs(server=server, metrics=fr.gather(own, name="own"))

        program = fr.Algorithm(lambda params: params, round, name="look")
        own = fr.compute(program, federation, state=result.params)
    assert all(abs(own[f"h{n}"]["w"] - (2.0 if n % 2 else -2.0)).max() < 1e-3 for n in range(6))


def test_the_first_models_are_those_given_or_drawn_around_one():
    first, second, third = starts(INIT, 3, 0.5, seed=1)
    assert first.buffer.any() and not torch.equal(second.buffer, third.buffer)
    assert torch.equal(second.buffer, starts(INIT, 3, 0.5, seed=1)[1].buffer)
    assert not torch.equal(second.buffer, starts(INIT, 3, 0.5, seed=2)[1].buffer)
    model = with_statistics()[0].init(0)
    cut = model.schema.trainable
    assert torch.equal(starts(model, 2, 1.0, 0)[1].buffer[:, cut:], model.buffer[:, cut:])
    with pytest.raises(ValueError, match="2 models"):
        starts([INIT, INIT], 3, 0.1, 0)


def test_in_single_precision_and_as_one_program_a_round_is_the_same():
    model, data = fr.learn.linear(NUM_FEATURES), with_statistics()[1]
    assert set(data) == set(sites())
    init = [model.init(0), fr.learn.linear(NUM_FEATURES, zero=False).init(3)]
    stacked, plain = (
        trained(fr.algorithms.ifca(local, 2), data, 1, init=init)[0]
        for local in (fr.learn.sgd(model, lr=0.05, steps=2, form=form) for form in ("stacked", "loop"))
    )
    for a, b in zip(stacked.params, plain.params, strict=True):
        assert torch.allclose(a.buffer, b.buffer, atol=1e-4)


def test_only_sums_leave_so_no_sites_choice_is_seen():
    graph = trace(fr.algorithms.ifca(uneven(), 3))
    kinds = {node.params["kind"] for node in graph.nodes if node.op is Op.REDUCE}
    assert kinds == {"sum", "mean"}
    assert all(node.placement is Placement.SERVER for node in graph.reductions)


@pytest.mark.parametrize(("clusters", "option"), [(0, "II"), (2, "III")])
def test_settings_that_cannot_be_are_refused(clusters, option):
    with pytest.raises(ValueError, match="choose 'I' or 'II'|num_clusters=0"):
        fr.algorithms.ifca(uneven(), clusters, option)
