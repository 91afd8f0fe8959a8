"""FedPer and LG-FedAvg beside one loop written from the papers, in numpy; what is kept, what leaves."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.graph import Op
from fedray.core.trace import trace
from fedray.learn import optimizer, parts
from fedray.testing import check_rows
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    SIZES,
    STEPS,
    gradient,
    kept,
    leaving,
    personal_models,
    single,
    tables,
    trained,
    uneven,
    vector,
)
from tests.unit.runtime.toy import Breaks

BODY = np.array([True, True, True, False])  # the weights are shared, the intercept is personal
MAKE = {
    "fedper": (lambda local, **more: fr.algorithms.fedper(local, ["b"], **more), BODY),
    "lg_fedavg": (lambda local, **more: fr.algorithms.lg_fedavg(local, ["b"], **more), ~BODY),
}


def partly_by_hand(shared, cohorts=COHORTS, weighted=True, server_lr=1.0, steps=STEPS):
    """Arivazhagan et al., Algorithms 1 and 2 (lines quoted); Liang et al., Algorithm 1, shares the others.

    Returns the shared parameters (with the start of the personal ones) and every site's model.
    """
    server = np.zeros(NUM_FEATURES + 1)  # "Initialize W_B^(0) at random"
    own = {j: server.copy() for j in tables()}  # client: "Require: Initialize W_Pj^(0) at random"
    for cohort in cohorts:  # "for k = 0, 1, ... do"
        found = {}
        for j in cohort:  # "Send W_B^(k) to each client"
            model = np.where(shared, server, own[j])  # client: "Receive W_B"
            for _ in range(steps[j]):  # "(W_Bj, W_Pj) <- SGD_j(W_B, W_Pj, eta)"
                model = model - LR * gradient(j, model)
            found[j], own[j] = model, model  # "Send W_Bj to server"
        rows = {j: SIZES[j] if weighted else 1 for j in cohort}  # "gamma_j = n_j / sum n_j"
        mean = sum(rows[j] * found[j] for j in cohort) / sum(rows.values())  # "W_B <- sum gamma_j W_Bj"
        server = np.where(shared, server + server_lr * (mean - server), server)
    return server, {j: np.where(shared, server, own[j]) for j in own}


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", MAKE)
def test_partly_shared_training_equals_the_papers_loop(name, weighted):
    make, shared = MAKE[name]
    algorithm = make(uneven(), weighted=weighted)
    result, found = trained(algorithm, look=personal_models(algorithm))
    server, models = partly_by_hand(shared, weighted=weighted)
    assert np.abs(vector(result.params) - server).max() < 1e-12
    assert max(np.abs(found[j] - models[j]).max() for j in models) < 1e-12


@pytest.mark.parametrize("name", MAKE)
def test_the_twin_in_single_precision_comes_to_the_same_after_a_round(name):
    local, data, init = single()
    words = ["bias"]
    algorithm = getattr(fr.algorithms, name)(local, words)
    result, found = trained(algorithm, data, 1, init=init, look=personal_models(algorithm))
    server, models = partly_by_hand(MAKE[name][1], COHORTS[:1], steps=SAME_STEPS)
    assert np.abs(vector(result.params) - server).max() < 1e-4
    assert max(np.abs(found[j] - models[j]).max() for j in models) < 1e-4


def test_equal_sites_keep_equal_heads_and_others_do_not():
    _, found = trained(fr.algorithms.fedper(uneven(), ["b"]), schedule=fr.synchronous(), look=kept)
    assert np.array_equal(found["c"], found["d"])
    assert abs(found["c"] - found["e"]) > 1e-2


def test_a_server_optimizer_moves_the_shared_part_alone():
    result, _ = trained(fr.algorithms.fedper(uneven(), ["b"], optimizer.sgd(0.3)))
    assert np.abs(vector(result.params) - partly_by_hand(BODY, server_lr=0.3)[0]).max() < 1e-12
    adam = trained(fr.algorithms.fedper(uneven(), ["b"], optimizer.adam()))[0]
    assert float(adam.params["b"]) == 0.0 and list(adam.state.optimizer["m"]) == ["w"]


def test_a_site_that_was_not_counted_keeps_its_head():
    broken = Breaks(uneven(), ("b",), 2, "raise")
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    _, found = trained(fr.algorithms.fedper(broken, ["b"]), rounds=3, schedule=schedule, look=kept)
    _, models = partly_by_hand(BODY, ["abc", "ade", "cd"])
    assert max(abs(found[j][0] - models[j][3]) for j in models) < 1e-12


@pytest.mark.parametrize("name", MAKE)
def test_what_a_site_keeps_meets_a_reduction_through_training_alone(name):
    local = uneven()
    algorithm = MAKE[name][0](local)
    assert leaving(algorithm, stop=True) == {"delta": {"trained"}, "metrics": {"trained"}}
    assert "state" in leaving(algorithm)["delta"]  # the walk does see it where it is not stopped


@pytest.mark.parametrize("name", MAKE)
def test_the_mean_is_over_shared_parameters_and_only_those_are_sent(name):
    algorithm = MAKE[name][0](uneven())
    graph = trace(algorithm)
    shared = {"fedper": ["w"], "lg_fedavg": ["b"]}[name]
    (delta,) = (node for node in graph.reductions if node.name == "delta")
    (sent,) = (node for node in graph.nodes if node.op is Op.BROADCAST)
    whole = tree.flatten({"w": torch.ones(3), "b": torch.ones(())})
    assert list(delta.args[0].fn(whole)) == shared and list(sent.args[0].fn(whole)) == shared


def test_bytes_of_the_head_do_not_leave():
    model = fr.learn.mlp(NUM_FEATURES, hidden=(16,), num_classes=10)
    local = fr.learn.sgd(model, lr=0.1)
    data = {
        site: fr.data.SiteData({"x": table["x"].float(), "y": (table["y"] > 0).long()})
        for site, table in single()[1].items()
    }
    counted = {}
    for name, algorithm in (("all", fr.algorithms.fedavg(local)), ("body", fr.algorithms.fedper(local))):
        with fr.simulate(data, packs=5) as federation:
            fr.fit(algorithm, federation, init=model.init(0), rounds=1)
            counted[name] = federation.aggregator.root.bytes_up["delta"]
    layout = [model.init(0).schema.stride, parts.Part(("2",), True)(model.init(0)).schema.stride]
    assert counted["body"] * layout[0] == counted["all"] * layout[1]
    assert layout[1] < layout[0]


@pytest.mark.parametrize("words", [["c"], ["w", "b"], []])
def test_a_part_that_is_none_is_refused_before_a_site_is_asked(words):
    with pytest.raises(ValueError, match="name a part of"):
        trained(fr.algorithms.fedper(uneven(), words))


def test_a_model_without_layers_needs_names():
    with pytest.raises(ValueError, match="is not known of this model: name them"):
        fr.algorithms.fedper(uneven())
    with pytest.raises(ValueError, match="give a list of names"):
        fr.algorithms.fedper(uneven(), "b")


def test_words_name_whole_layers():
    part = parts.Part(("4",))
    assert [name for name in ("4.weight", "40.weight", "4", "0.4") if part.holds(name)] == ["4.weight", "4"]
    assert parts.last_layer(fr.learn.mlp(4, hidden=(8, 8))) == ("4",)
    assert parts.last_layer(fr.learn.gru(4)) == ("head",)


TWINS = {
    "part": (parts.Part(("0",)), []),
    "rest": (parts.Part(("0",), True), []),
    "still": (parts.Still(parts.Part(("0",))), []),
    "put": (parts.put, [fr.learn.mlp(4, hidden=(8,)).init(9)]),
    "join": (parts.join, [parts.Part(("2",))(fr.learn.mlp(4, hidden=(8,)).init(9))]),
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_of_parts_copy_the_same_bits(name):
    fn, shared = TWINS[name]
    model = fr.learn.mlp(4, hidden=(8,))
    assert check_rows(fn, [[model.init(seed)] for seed in range(30)], shared=shared) == 0.0
