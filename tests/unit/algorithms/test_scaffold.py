"""SCAFFOLD beside a loop that is written from the paper, in numpy; what each site keeps, and when."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.data.site import SiteData
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    CYCLIC,
    INIT,
    LR,
    NUM_FEATURES,
    STEPS,
    kept,
    quadratic,
    settled,
    sites,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
    with_statistics,
)
from tests.unit.runtime.toy import Breaks

NUM_SITES = 5
ONE_BY_ONE = fr.synchronous(cohort=1, sampling="cyclic")


def scaffold_by_hand(option="II", server_lr=1.0, cohorts=COHORTS):
    """Karimireddy et al., Algorithm 1, with its line numbers. Returns x, c and the c_i of every site."""
    x, c = np.zeros(NUM_FEATURES + 1), np.zeros(NUM_FEATURES + 1)  # 1: server input
    controls = {i: np.zeros(NUM_FEATURES + 1) for i in tables()}  # 2: client i's input
    for cohort in cohorts:  # 3: for each round; 4: sample clients S
        changes = []
        for i in cohort:  # 5: communicate (x, c); 6: on client i in S in parallel
            features, y = tables()[i]
            local, steps = x.copy(), STEPS[i]  # 7: initialize local model
            for _ in range(steps):  # 8: for k = 1, ..., K
                slope = features.T @ (features @ local - y) / len(y)  # 9: compute the gradient at y_i
                local = local - LR * (slope - controls[i] + c)  # 10
            if option == "I":  # 12: (i) the gradient at the server's x
                following = features.T @ (features @ x - y) / len(y)
            else:  # 12: (ii)
                following = controls[i] - c + (x - local) / (steps * LR)
            changes.append((local - x, following - controls[i]))  # 13: communicate both changes
            controls[i] = following  # 14
        step = sum(change for change, _ in changes) / len(cohort)  # 16
        drift = sum(change for _, change in changes) / len(cohort)  # 16
        x, c = x + server_lr * step, c + len(cohort) / NUM_SITES * drift  # 17
    return x, c, controls


@pytest.mark.parametrize(("option", "server_lr"), [("I", 1.0), ("II", 1.0), ("I", 0.5), ("II", 0.5)])
def test_scaffold_equals_the_papers_loop(option, server_lr):
    algorithm = fr.algorithms.scaffold(uneven(), NUM_SITES, server_lr, option)
    result, controls = trained(algorithm, look=kept)
    x, c, expected = scaffold_by_hand(option, server_lr)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.abs(vector(result.state.control) - c).max() < 1e-12
    assert max(np.abs(controls[i] - expected[i]).max() for i in expected) < 1e-12


def test_the_servers_control_is_the_mean_over_all_sites_also_those_never_asked():
    algorithm = fr.algorithms.scaffold(uneven(), NUM_SITES)
    result, controls = trained(algorithm, rounds=1, look=kept)
    found = {i: np.zeros(4) if control is None else control for i, control in controls.items()}
    assert {i for i in found if not found[i].any()} == {"d", "e"}
    assert np.abs(vector(result.state.control) - sum(found.values()) / NUM_SITES).max() < 1e-12


def test_a_site_that_was_not_counted_keeps_its_control():
    broken = Breaks(uneven(), ("b",), 2, "nan")  # b is asked in rounds 0, 2 and 3
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    algorithm = fr.algorithms.scaffold(broken, NUM_SITES)
    result, controls = trained(algorithm, rounds=3, schedule=schedule, look=kept)
    x, c, expected = scaffold_by_hand(cohorts=["abc", "ade", "cd"])
    assert [record.counted for record in result.metrics] == [3, 3, 2]
    assert max(np.abs(controls[i] - expected[i]).max() for i in expected) < 1e-12
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.abs(vector(result.state.control) - c).max() < 1e-12


@pytest.mark.slow
# plain averaging settles elsewhere as soon as there are several steps: test_fedavg.py
@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize(("steps", "rounds"), [(1, 150), (10, 60), (50, 80)])
def test_scaffold_reaches_the_optimum_for_any_number_of_steps(option, steps, rounds):
    local = fr.learn.sgd(quadratic, lr=0.05, steps=steps)
    assert settled(fr.algorithms.scaffold(local, 2, option=option), rounds) == pytest.approx(-0.6, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize(("schedule", "rounds"), [(fr.synchronous(), 60), (ONE_BY_ONE, 120)])
def test_scaffold_reaches_the_optimum_under_full_and_cyclic_participation(option, schedule, rounds):
    local = fr.learn.sgd(quadratic, lr=0.05, steps=5)
    algorithm = fr.algorithms.scaffold(local, 2, option=option)
    result, _ = trained(algorithm, two_quadratics(), rounds, schedule, AT_ZERO)
    assert float(result.params["x"]) == pytest.approx(-0.6, abs=1e-8)


def test_a_site_that_took_no_step_keeps_its_control():
    none = SiteData({"x": torch.zeros(0, NUM_FEATURES).double(), "y": torch.zeros(0).double()})
    data = {**sites(), "z": none}
    with fr.simulate(data, packs=2, allow_empty=True) as federation:
        algorithm = fr.algorithms.scaffold(uneven(), 6)
        fr.fit(algorithm, federation, init=INIT, rounds=2)
        federation.aggregator.root.commit([])
        assert not kept(federation)["z"].any()


def half_then_nothing(round):
    return LR if round == 0 else 0.0


def test_a_rate_of_zero_keeps_parameters_and_controls():
    algorithm = fr.algorithms.scaffold(uneven(half_then_nothing), NUM_SITES)
    one, before = trained(algorithm, rounds=1, schedule=fr.synchronous(), look=kept)
    two, after = trained(algorithm, rounds=2, schedule=fr.synchronous(), look=kept)
    assert two.params_sha256 == one.params_sha256 and not two.failures
    assert all(np.array_equal(before[i], after[i]) for i in before)


def test_statistics_of_batches_are_averaged_whatever_the_servers_rate():
    model, data = with_statistics()
    local = fr.learn.sgd(model, lr=0.01, steps=1)
    found = [
        trained(fr.algorithms.scaffold(local, NUM_SITES, rate), data, 1, CYCLIC, model.init(0))[0].params
        for rate in (1.0, 3.0)
    ]
    cut = found[0].schema.trainable
    assert torch.equal(found[0].buffer[:, cut:], found[1].buffer[:, cut:])
    assert not tree.equal(found[0], found[1])


@pytest.mark.parametrize("option", ["III", ""])
def test_an_unknown_option_is_refused(option):
    with pytest.raises(ValueError, match="choose 'II', or 'I'"):
        fr.algorithms.scaffold(uneven(), NUM_SITES, option=option)


def test_option_one_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"gradient\(\)"):
        fr.algorithms.scaffold(Breaks(uneven(), (), 0, "nan"), NUM_SITES, option="I")
