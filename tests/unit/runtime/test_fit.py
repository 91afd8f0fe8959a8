"""The loop around rounds: evaluation, early stop, selection, Ctrl-C, refusals before the start."""

import os
import signal

import pytest
import torch

import fedray as fr
from fedray.data.site import SiteData
from fedray.errors import ConfigError, FedrayError, HostError, MemoryForecastError, ScheduleError
from fedray.runtime import memory
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.loop import EarlyStop
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import INIT, ToyLocal, sites, train


class Notes:
    """A tracker that keeps what it is told."""

    def __init__(self, on_round=None):
        self.told, self.on_round = [], on_round

    def start(self, plan, facts):
        self.told.append(("start", facts["first_round"]))

    def round(self, record):
        self.told.append(("round", record.round))
        if self.on_round:
            self.on_round(record)

    def evaluation(self, record):
        self.told.append((record.split, record.round))

    def finish(self, result):
        self.told.append(("finish", result.stopped))


def split_sites():
    def opener(site):
        def opened():
            generator = torch.Generator().manual_seed(site)
            x = torch.randn(40, 5, generator=generator)
            y = (torch.rand(40, generator=generator) < torch.sigmoid(2 * x[:, 0])).float()
            rows = torch.arange(40)
            return SiteData({"x": x, "y": y}, {"train": rows[:20], "valid": rows[20:30], "test": rows[30:]})

        return opened

    return {f"h{number}": opener(number) for number in range(4)}


def fit(rounds=6, every=2, tracker=None, **options):
    model = fr.learn.logistic(5)
    programs = {split: fr.algorithms.evaluation(model, split=split) for split in ("valid", "test")}
    algorithm = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.5))
    with fr.simulate(split_sites()) as federation:
        return fr.fit(
            algorithm,
            federation,
            init=model.init(0),
            rounds=rounds,
            every=every,
            evaluate=programs,
            tracker=tracker,
            **options,
        )


def test_valid_rows_are_evaluated_every_few_rounds_and_test_rows_once():
    notes = Notes()
    fit(tracker=notes)
    assert [item for item in notes.told if item[0] in ("valid", "test")] == [
        ("valid", 1),
        ("valid", 3),
        ("valid", 5),
        ("test", 5),
    ]
    assert notes.told[0] == ("start", 0) and notes.told[-1] == ("finish", "done")


def test_early_stop_ends_when_the_validation_metric_has_stalled():
    stop = EarlyStop(metric="loss", mode="min", patience=1, min_delta=100.0)
    result = fit(rounds=20, every=1, early_stop=stop)
    assert (result.stopped, result.rounds) == ("early", 2)


def test_the_best_validated_parameters_can_be_selected():
    last = fit(rounds=6, every=1)
    values = [record.metrics["auroc"] for record in last.evaluations if record.split == "valid"]
    best = fit(rounds=1 + values.index(max(values)), every=1)
    assert fit(rounds=6, every=1, select="best_valid").params_sha256 == best.params_sha256


def test_the_server_evaluates_on_its_own_data():
    result = fit(server_evaluate=lambda params: {"norm": float(params["weight"].norm())})
    records = [record for record in result.evaluations if record.split == "server"]
    assert [record.round for record in records] == [1, 3, 5] and records[-1].metrics["norm"] > 0


def test_ctrl_c_ends_after_the_round_with_a_checkpoint_and_the_run_goes_on(tmp_path):
    whole = fit()
    notes = Notes(lambda record: record.round == 2 and os.kill(os.getpid(), signal.SIGINT))
    stopped = fit(tracker=notes, checkpoint=Checkpoints(tmp_path))
    assert (stopped.stopped, stopped.rounds) == ("interrupted", 3)
    resumed = fit(checkpoint=Checkpoints(tmp_path), resume=True)
    assert resumed.params_sha256 == whole.params_sha256


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)

    def twice(record):
        signal.raise_signal(signal.SIGINT)  # in this thread: two that are sent to the process may become one
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tracker=Notes(twice))
    assert signal.getsignal(signal.SIGINT) is before


def test_more_rounds_can_be_asked_of_a_finished_run(tmp_path):
    fit(rounds=2, checkpoint=Checkpoints(tmp_path))
    assert fit(rounds=6, checkpoint=Checkpoints(tmp_path), resume=True).params_sha256 == fit().params_sha256


@pytest.mark.parametrize(
    "options",
    [{"rounds": 0}, {"every": 0}, {"select": "luckiest"}, {"early_stop": EarlyStop(), "evaluate": {}}],
)
def test_settings_that_cannot_be_meant_are_refused_before_a_site_is_asked(options):
    def never():
        raise AssertionError("a site was opened")

    settings = {"rounds": 1, **options}
    with fr.simulate({"h0": never}) as federation, pytest.raises(ConfigError):
        fr.fit(averaging(ToyLocal()), federation, init=INIT, **settings)


@pytest.mark.parametrize(
    "options",
    [
        {"cohort": 0.0},
        {"cohort": 1.5},
        {"cohort": 0},
        {"quorum": 1.2},
        {"sampling": "lucky"},
        {"on_failure": "hope"},
        {"deadline_s": 0.0},
        {"retries": -1},
    ],
)
def test_a_schedule_names_the_setting_that_cannot_be_meant(options):
    with pytest.raises(ScheduleError, match=next(iter(options))):
        fr.synchronous(**options)


def test_a_run_that_cannot_fit_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**10)
    with pytest.raises(MemoryForecastError, match="GiB needed"):
        train(averaging(ToyLocal()), rounds=1)


def test_waiting_for_more_sites_than_answer_names_both_numbers():
    with fr.simulate(sites(3)) as federation:
        root = federation.aggregator.root
        root.transport.wait = lambda tickets, timeout: iter(())
        with pytest.raises(HostError, match="0 of 3 sites"):
            federation.call("wait_for", 2, 0.1)


def test_a_closed_federation_says_so():
    federation = fr.simulate(sites(2))
    federation.close()
    federation.close()
    with pytest.raises(FedrayError, match="closed"):
        fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=1)


def test_data_is_prepared_where_it_lies():
    def doubled(data):
        return data.with_columns(x=2 * data["x"])

    plain = {site: (lambda opened=opened: doubled(opened())) for site, opened in sites(3).items()}
    with fr.simulate(sites(3), packs=2) as federation:
        federation.prepare(doubled)
        prepared = fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=2)
    assert prepared.params_sha256 == train(averaging(ToyLocal()), plain, rounds=2).params_sha256


def test_a_second_run_in_the_same_federation_starts_from_nothing():
    from tests.unit.runtime.test_round import stateful

    with fr.simulate(sites(4), packs=2) as federation:
        algorithm = fr.algorithms.scaffold(ToyLocal(), 4)
        first = fr.fit(algorithm, federation, init=INIT, rounds=3)
        fr.fit(stateful(ToyLocal()), federation, init=INIT, rounds=2)
        assert fr.fit(algorithm, federation, init=INIT, rounds=3).params_sha256 == first.params_sha256


def test_a_policy_holds_for_evaluations_too():
    from fedray.errors import PolicyError
    from fedray.passes import require

    with pytest.raises(PolicyError, match="site_metrics"):
        fit(passes=[require()])


def test_a_metric_that_is_one_number_has_its_reductions_name():
    def round(server, site):
        update = fr.map(ToyLocal(), fr.broadcast(server), site.data, site.rng)
        return fr.Outputs(server=server, metrics=fr.sum(update.num_examples))

    result = train(fr.Algorithm(lambda params: params, round), rounds=1)
    assert set(result.metrics[0].metrics) == {"num_examples"}
