"""FedML Flow programs: equal to the algorithms that they write out, under every pass; what is refused."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.adapters.flow import FedMLAlgorithmFlow, FedMLExecutor, Params
from fedray.core.explain import egress_rows
from fedray.errors import PolicyError
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    sites,
    tables,
    trained,
    uneven,
    vector,
)


class Client(FedMLExecutor):  # as a user of FedML writes it
    def handle_init(self):
        self.state["visits"] = 0
        return self.get_params()

    def local_training(self):
        w = self.get_params().get(Params.KEY_MODEL_PARAMS)
        x, y = self.data["x"], self.data["y"]
        weight, bias = w["w"].clone(), w["b"].clone()
        for _ in range(STEPS[self.rng.site]):
            error = x @ weight + bias - y
            weight, bias = weight - LR * x.T @ error / len(y), bias - LR * error.mean()
        self.state["visits"] = self.state.get("visits", 0) + 1
        params = Params()
        params.add(Params.KEY_MODEL_PARAMS, {"w": weight, "b": bias})
        params.add(Params.KEY_NUM_EXAMPLES, len(y))
        return params

    def scores(self):
        return Params(residual=float((self.data["y"]).mean()), **self.get_params())


class Server(FedMLExecutor):
    def init_global_model(self):
        return self.get_params()

    def aggregate(self):
        self.state["rounds"] = self.state.get("rounds", 0) + 1
        return self.get_params()

    def count_and_average(self):
        """FedML's own way: called once a client, silent until all are there."""
        got = self.get_params()
        rows = got[Params.KEY_NUM_EXAMPLES]
        self.state["seen"] = self.state.get("seen", 0) + 1
        self.state["total"] = self.state.get("total", 0) + rows
        model = tree.scale(got[Params.KEY_MODEL_PARAMS], float(rows))
        held = self.state.get("sum")
        self.state["sum"] = model if held is None else tree.add(held, model)
        if self.state["seen"] < 3:
            return None
        found = Params()
        found.add(Params.KEY_MODEL_PARAMS, tree.scale(self.state["sum"], 1.0 / self.state["total"]))
        self.state = {}
        return found

    def final_eval(self):
        self.state["is_final"] = 1
        return self.get_params()


def flow(aggregate=Server.aggregate, loops=5, each=False, client=None):
    found = FedMLAlgorithmFlow(client or Client(1), Server())
    found.add_flow("init_global_model", Server.init_global_model)
    found.add_flow("handle_init", Client.handle_init)
    for _ in range(loops):
        found.add_flow("local_training", Client.local_training, each=each)
        found.add_flow("aggregate", aggregate)
    found.add_flow("final_eval", Server.final_eval, FedMLAlgorithmFlow.FINISH)
    return found


def averaged_by_hand():
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:
        total, rows = np.zeros_like(w), 0
        for site in cohort:
            (x, y), own = tables()[site], w.copy()
            for _ in range(STEPS[site]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            total, rows = total + len(y) * own, rows + len(y)
        w = total / rows
    return w


@pytest.mark.parametrize("program", [flow(), flow(Server.count_and_average, each=True)], ids=["mean", "each"])
def test_averaging_as_a_flow_equals_averaging(program):
    result, _ = trained(program.build(), rounds=program.rounds)
    expected, _ = trained(fr.algorithms.fedavg(uneven()))
    assert np.abs(vector(result.params) - vector(expected.params)).max() < 1e-12
    assert np.abs(vector(result.params) - averaged_by_hand()).max() < 1e-12


def test_executors_keep_their_state_and_the_end_runs_once():
    program = flow()
    result, kept = trained(program.build(), look=lambda federation: {
        site: pack.state_of(site)
        for pack in federation.aggregator.root.transport.hosts.values() for site in pack.sites
    })  # fmt: skip
    asked = {site: sum(site in cohort for cohort in COHORTS) for site in SIZES}
    assert {site: state["own"]["visits"] for site, state in kept.items()} == asked
    assert result.state.kept == {"rounds": 5}
    assert program.finish(result.state).kept == {"rounds": 5, "is_final": 1}


def test_a_tagged_loop_is_the_one_that_is_written_out():
    tagged = FedMLAlgorithmFlow(Client(1), Server(), loop_times=5)
    tagged.add_flow("init_global_model", Server.init_global_model)
    tagged.add_flow("handle_init", Client.handle_init)
    tagged.add_flow("local_training", Client.local_training, FedMLAlgorithmFlow.LOOP_START)
    tagged.add_flow("aggregate", Server.aggregate, FedMLAlgorithmFlow.LOOP_END)
    tagged.add_flow("final_eval", Server.final_eval)
    assert tagged.rounds == flow().rounds == 5
    one, two = trained(tagged.build())[0], trained(flow().build())[0]
    assert one.params_sha256 == two.params_sha256


def test_only_the_change_of_the_model_leaves_and_only_each_shows_a_site():
    assert [row["name"] for row in egress_rows(fr.compile(flow().build()))] == [
        "local_training", "local_training.weight"]  # fmt: skip
    strict = fr.passes.require()
    fr.compile(flow().build(), [strict])
    with pytest.raises(PolicyError, match="local_training"):
        fr.compile(flow(Server.count_and_average, each=True).build(), [strict])


def test_compression_of_the_model_keeps_what_it_left_out():
    algorithm, passes = flow().build(), [fr.passes.topk(0.5, only={"local_training"})]
    plain = fr.algorithms.fedavg(uneven())
    for each, names in ((algorithm, passes), (plain, [fr.passes.topk(0.5, only={"delta"})])):
        with fr.simulate(sites()) as federation:
            init = {"w": torch.zeros(NUM_FEATURES).double(), "b": torch.zeros(()).double()}
            result = fr.fit(each, federation, init=init, rounds=3, passes=names)
        passes = vector(result.params) if each is algorithm else passes
    assert np.abs(passes - vector(result.params)).max() < 1e-12


def test_two_exchanges_in_a_round_hand_on_more_than_the_model():
    program = FedMLAlgorithmFlow(Client(1), Server(), loop_times=2)
    program.add_flow("scores", Client.scores, FedMLAlgorithmFlow.LOOP_START)
    program.add_flow("between", Server.init_global_model)
    program.add_flow("local_training", Client.local_training)
    program.add_flow("aggregate", Server.aggregate, FedMLAlgorithmFlow.LOOP_END)
    plan = fr.compile(program.build())
    assert plan.site_stages == [1, 3]
    one, two = trained(program.build(), rounds=2)[0], trained(flow().build(), rounds=2)[0]
    assert np.abs(vector(one.params) - vector(two.params)).max() < 1e-12


class Other(FedMLExecutor):
    def elsewhere(self):
        return self.get_params()


def test_clients_that_branch_off_are_refused_with_the_reason():
    program = flow()
    with pytest.raises(ValueError, match="'elsewhere'.*all clients run the same steps and none branches"):
        program.add_flow("elsewhere", Other.elsewhere)
    with pytest.raises(ValueError, match=r"clients that send to clients.*fr\.mix"):
        flow(client=Client(1, [0, 2])).build()


def test_what_is_no_round_is_refused():
    ends_at_clients = FedMLAlgorithmFlow(Client(1), Server())
    ends_at_clients.add_flow("init_global_model", Server.init_global_model)
    ends_at_clients.add_flow("local_training", Client.local_training)
    with pytest.raises(ValueError, match="ends with one of the server"):
        ends_at_clients.build()
    half_tagged = flow(loops=2)
    half_tagged.add_flow("last", Server.aggregate, FedMLAlgorithmFlow.LOOP_END)
    with pytest.raises(ValueError, match="a LOOP_START and a LOOP_END"):
        half_tagged.build()
    uneven_rounds = flow(loops=2)
    uneven_rounds.add_flow("local_training", Client.local_training)
    with pytest.raises(ValueError, match="repeats the same steps"):
        uneven_rounds.build()


class Silent(Client):
    def local_training(self):
        return None


def test_a_client_that_hands_on_nothing_is_named():
    program = FedMLAlgorithmFlow(Silent(1), Server())
    program.add_flow("local_training", Silent.local_training)
    program.add_flow("aggregate", Server.aggregate)
    with pytest.raises(fr.errors.QuorumError):
        trained(program.build(), rounds=1)
