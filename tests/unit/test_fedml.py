"""FedML's classes: the short example runs, equals averaging by hand, and says what a custom mean costs."""

import numpy as np
import pytest
import torch
from ray import cloudpickle

import fedray as fr
from fedray import tree
from fedray.adapters.fedml import Batches, ClientTrainer, Runner, ServerAggregator, from_fedml
from fedray.config import build, compose
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from fedray.errors import PolicyError

DEBUG = ("experiment=debug", "local.lr=0.5", "local.epochs=3", "local.batch_size=null")

ALL = fr.synchronous()


def one_epoch(model, data, lr):
    for x, y in data:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x.double())[:, 0], y.double())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), list(grads), alpha=-lr)


def linear(num_features):
    model = torch.nn.Linear(num_features, 1, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    return model


class Trainer(ClientTrainer):  # as a user of FedML writes it
    def get_model_params(self):
        return self.model.state_dict()

    def set_model_params(self, params):
        self.model.load_state_dict(params)

    def train(self, data, device, args):
        for _ in range(args.epochs):
            one_epoch(self.model, data, lr=args.lr)


class Mean(ServerAggregator):
    def aggregate(self, updates):
        total = sum(rows for rows, _ in updates)
        return {name: sum(rows / total * model[name] for rows, model in updates) for name in updates[0][1]}


def averaged_by_hand(sites, rounds, epochs, lr):
    """Federated averaging of a logistic regression in numpy: x with a column of ones, y, for each site."""
    w = np.zeros(sites[0][0].shape[1])
    total = sum(len(y) for _, y in sites)
    for _ in range(rounds):
        models = []
        for x, y in sites:
            own = w.copy()
            for _ in range(epochs):
                own -= lr * x.T @ (1 / (1 + np.exp(-x @ own)) - y) / len(y)
            models.append(len(y) / total * own)
        w = sum(models)
    return w


def opened(config):
    tables = [opener().train for opener in build(config).data.values()]
    return [
        (np.hstack([t["x"].double().numpy(), np.ones((t.num_rows, 1))]), t["y"].double().numpy())
        for t in tables
    ]


def test_the_short_example_equals_averaging_by_hand():
    config = compose(*DEBUG)
    model = linear(len(build(config).data.features))

    result = Runner(config, Trainer(model, config), ServerAggregator(model, config)).run()

    found = np.append(result.params["weight"].numpy(), result.params["bias"].numpy())
    assert np.abs(found - averaged_by_hand(opened(config), 2, 3, 0.5)).max() < 1e-12
    assert result.rounds == 2 and not result.failures


def test_an_own_aggregate_gets_every_model_with_its_rows_and_becomes_a_gather():
    config = compose(*DEBUG)
    model = linear(len(build(config).data.features))

    result = Runner(config, Trainer(model, config), Mean(model, config)).run()

    assert [(row["name"], row["kind"]) for row in egress_rows(result.plan)] == [("update", "gather")]
    found = np.append(result.params["weight"].numpy(), result.params["bias"].numpy())
    assert np.abs(found - averaged_by_hand(opened(config), 2, 3, 0.5)).max() < 1e-12


def test_a_policy_refuses_an_own_aggregate_by_name_and_lets_the_default_pass():
    trainer = Trainer(linear(3))
    fr.compile(from_fedml(trainer, ServerAggregator(trainer.model)), passes=[fr.passes.require()])
    with pytest.raises(PolicyError, match=r"update \(gather, fedml\.py:\d+\) shows the value of one site"):
        fr.compile(from_fedml(trainer, Mean(trainer.model)), passes=[fr.passes.require()])


def test_the_policy_of_the_configuration_holds_for_a_runner():
    config = compose(*DEBUG, "policy=hospital", "policy.airlock=null", "evaluate.per_site=false")
    model = linear(len(build(config).data.features))
    with pytest.raises(PolicyError, match="update"):
        Runner(config, Trainer(model, config), Mean(model, config)).run()


def test_a_runner_without_a_trainer_runs_the_configuration():
    config = compose("experiment=debug")
    experiment = build(config)
    with experiment.federate() as federation:
        training = experiment.training
        expected = fr.fit(training.algorithm, federation, init=training.init, rounds=2, seed=experiment.seed)
    result = Runner(config).run()
    assert result.params_sha256 == expected.params_sha256
    assert [record.split for record in result.evaluations] == ["valid", "valid", "test"]


def test_a_runner_brings_columns_to_one_scale_where_the_configuration_asks():
    config = compose(*DEBUG, "data.prepared=false", "data.standardise=true")
    raw = compose(*DEBUG, "data.prepared=false")
    assert Runner(config).run().params.schema.num_elements > len(build(raw).data.features)  # indicators


class Counting(ClientTrainer):
    """Counts what it was asked in an own attribute, which must not pass from one site to the next."""

    calls = 0

    def train(self, data, device, args):
        self.calls += 1
        self.model.train()
        for x, _ in data:
            self.model(x + self.calls)


def normalised_sites():
    draws = torch.Generator().manual_seed(3)
    return {
        f"h{i}": SiteData({"x": torch.randn(8 + i, 2, generator=draws) + i, "y": torch.zeros(8 + i)})
        for i in range(3)
    }


def run_counting(packs, rounds=3, schedule=ALL):
    trainer = Counting(
        torch.nn.BatchNorm1d(2, momentum=None)
    )  # cumulative: the counter enters the statistics
    init = tree.flatten({name: v for name, v in trainer.get_model_params().items() if v.is_floating_point()})
    with fr.simulate(normalised_sites(), packs=packs) as federation:
        result = fr.fit(from_fedml(trainer), federation, init=init, rounds=rounds, schedule=schedule)
        federation.aggregator.root.commit([])
        hosts = federation.aggregator.root.transport.hosts.values()
        counters = {site: pack.state_of(site) for pack in hosts for site in pack.sites}
    return result, counters, trainer


def test_integer_buffers_stay_at_the_site_and_count_its_own_batches():
    result, kept, trainer = run_counting(2, 6, fr.synchronous(cohort=1, sampling="cyclic"))
    assert "num_batches_tracked" not in result.params
    assert {row["name"] for row in egress_rows(result.plan)} == {"delta", "delta.weight"}
    assert [int(kept[site]["num_batches_tracked"]) for site in ("h0", "h1", "h2")] == [2, 2, 2]
    assert trainer.calls == 0 and int(trainer.model.num_batches_tracked) == 0


def test_the_layout_of_sites_does_not_change_a_bit():
    alone, together = run_counting(packs=3), run_counting(packs=1)
    assert alone[0].params_sha256 == together[0].params_sha256
    assert tree.equal(alone[1], together[1])


def test_statistics_of_batches_are_averaged_by_rows():
    result, _, _ = run_counting(packs=1)
    tables = [site["x"].double() + 1 for site in normalised_sites().values()]
    means = [table.mean(0) for table in tables]
    rows = [len(table) for table in tables]
    first = sum(n * mean for n, mean in zip(rows, means, strict=True)) / sum(rows)
    # in round t a site moves 1/(t+1) of the way to its own mean; the average of these is the first again
    assert torch.allclose(result.params["running_mean"].double(), first, atol=1e-6)


def test_batches_hold_every_row_once_in_the_order_of_their_generator():
    data = SiteData({"x": torch.arange(10.0).view(10, 1), "y": torch.arange(10.0)})
    batches = Batches(data, 4, torch.Generator().manual_seed(1))
    found = [y for _, y in batches]
    assert [len(y) for y in found] == [4, 4, 2] and len(batches) == 3
    assert sorted(torch.cat(found).tolist()) == list(range(10))
    again = Batches(data, 4, torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat(found), torch.cat([y for _, y in again]))


class Loud(ClientTrainer):
    """Draws from torch's global generator, as code of one's own does."""

    def train(self, data, device, args):
        with torch.no_grad():
            self.model.weight += torch.rand_like(self.model.weight)


def test_draws_of_own_code_are_seeded_by_site_and_round_and_leave_no_trace():
    trainer, found = Loud(linear(2)), []
    before = torch.get_rng_state()
    for packs in (1, 3):
        with fr.simulate(normalised_sites(), packs=packs) as federation:
            init = tree.flatten(trainer.get_model_params())
            found.append(fr.fit(from_fedml(trainer), federation, init=init, rounds=2).params_sha256)
    assert found[0] == found[1] and torch.equal(torch.get_rng_state(), before)


def test_settings_are_found_in_the_configuration_then_in_local_then_in_other_groups():
    args = ClientTrainer(
        linear(1), {"lr": 1, "data": {"size": 2, "epochs": 9}, "local": {"lr": 5, "epochs": 3}}
    ).args
    assert (args.lr, args.epochs, args.size) == (1, 3, 2)
    with pytest.raises(AttributeError, match="no setting 'momentum'"):
        _ = args.momentum


def test_a_plan_with_a_trainer_can_be_shipped_to_another_process():
    config = compose(*DEBUG)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    plan = fr.compile(from_fedml(Trainer(model, config), Mean(model, config)))
    assert cloudpickle.loads(cloudpickle.dumps(plan)).digest == plan.digest


def test_a_trainer_without_train_says_what_to_define():
    with pytest.raises(TypeError, match="must define train"):
        ClientTrainer(linear(1)).train(None, "cpu", None)
