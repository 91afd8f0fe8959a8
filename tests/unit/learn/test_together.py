"""Trials that train together: each comes to what it comes to alone, fails alone, and leaves alone."""

import threading

import pytest
import torch
from torch import nn

import fedray as fr
from fedray import learn
from fedray.cancellation import Cancelled, asking
from fedray.data.site import SiteData
from fedray.learn import together as together_module
from fedray.learn.together import Meeting
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same

SIZES = (40, 5, 17, 64, 33, 90)


def sites(features=6):
    generator = torch.Generator().manual_seed(1)
    made = {}
    for number, rows in enumerate(SIZES):
        x = torch.randn(rows, features, generator=generator)
        made[f"h{number}"] = SiteData({"x": x, "y": (x[:, 0] > 0).float()})
    return made


def trained(data, model, local, make, seed, rounds=4):
    with fr.simulate(data) as federation:
        return fr.fit(make(local), federation, init=model.init(0), rounds=rounds, seed=seed).params


def together(trials, step=1):
    """Run functions in threads that share a meeting; return results (or errors) in order, and the meeting."""
    meeting, found = Meeting(len(trials)), [None] * len(trials)

    def run(place, trial):
        with meeting.joined(place):
            try:
                found[place] = trial()
            except Exception as error:  # noqa: BLE001 (looked at by the test)
                found[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(trials)]
    for thread in threads[::step]:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found, meeting


MODELS = {
    "logistic": (6, lambda: learn.logistic(6)),
    "logistic of whole lines": (32, lambda: learn.logistic(32)),
    "mlp": (6, lambda: learn.mlp(6, (16, 8))),
    "odd": (6, lambda: learn.mlp(6, (7,), dropout=0.2)),
}
ALGORITHMS = {
    "fedavg": fr.algorithms.fedavg,
    "scaffold": lambda local: fr.algorithms.scaffold(local, len(SIZES)),
    "ditto": lambda local: fr.algorithms.ditto(local, prox=0.3),
    "fedper": lambda local: fr.algorithms.fedper(local, ["bias" if "bias" in local.model.init(0) else "0"]),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [16, None])
def test_trials_together_come_to_what_they_come_to_alone(name, algorithm, batch_size):
    (features, made), make = MODELS[name], ALGORITHMS[algorithm]
    data = sites(features)
    trials, alone = [], []
    for seed in (0, 1):
        for lr in (0.05, 0.1, 0.3):
            model = made()
            local = learn.sgd(model, lr=lr, batch_size=batch_size)
            alone.append(trained(data, model, local, make, seed))
            trials.append(lambda m=model, u=local, s=seed: trained(data, m, u, make, s))
    found, meeting = together(trials)
    assert meeting.programs > 0
    for one, other in zip(found, alone, strict=True):
        assert torch.allclose(one.buffer, other.buffer, atol=2e-6)


def test_layers_that_are_held_still_make_no_lane():
    data, locals_ = sites(), [learn.sgd(learn.mlp(6, (8,)), lr=lr, batch_size=None) for lr in (0.1, 0.2)]
    trials = [lambda u=u: trained(data, u.model, u, fr.algorithms.fedrep, 0, rounds=2) for u in locals_]
    found, meeting = together(trials)
    assert meeting.programs == 0
    for one, local in zip(found, locals_, strict=True):
        alone = trained(data, local.model, local, fr.algorithms.fedrep, 0, rounds=2)
        assert torch.equal(one.buffer, alone.buffer)


def test_trials_of_other_settings_meet_and_train_apart():
    data = sites()
    locals_ = [learn.sgd(learn.logistic(6), lr=0.1, batch_size=size) for size in (8, 16)]
    trials = [lambda u=u: trained(data, u.model, u, fr.algorithms.fedavg, 0) for u in locals_]
    found, meeting = together(trials)
    assert meeting.programs == 0
    for one, local in zip(found, locals_, strict=True):
        assert torch.equal(one.buffer, trained(data, local.model, local, fr.algorithms.fedavg, 0).buffer)


def test_a_trial_that_fails_or_ends_early_leaves_the_others_to_go_on():
    data = sites()

    def failing():
        raise ArithmeticError("broken")

    locals_ = [learn.sgd(learn.logistic(6), lr=lr, batch_size=16) for lr in (0.1, 0.2)]
    long = [lambda u=u: trained(data, u.model, u, fr.algorithms.fedavg, 0, rounds=6) for u in locals_]
    short = lambda: trained(data, locals_[0].model, locals_[0], fr.algorithms.fedavg, 0, rounds=2)  # noqa: E731
    found, _ = together([failing, *long, short])
    assert isinstance(found[0], ArithmeticError)
    expected = trained(data, locals_[1].model, locals_[1], fr.algorithms.fedavg, 0, rounds=6)
    assert torch.allclose(found[2].buffer, expected.buffer, atol=2e-6)
    assert all(isinstance(result, fr.tree.Flat) for result in found[1:])


def asked_together(first, second):
    """Train two trials together, each with what tells whether it is cancelled; return what each came to."""
    data, model = sites(), learn.logistic(6)
    local, keys = learn.sgd(model, lr=0.1, batch_size=16), [Key(0, 0, site) for site in data]

    def train(ask):
        with asking(ask):
            params, sent = Same(model.init(0)), (Rows(Ragged(list(data.values()))), Rows(Ragged(keys)))
            try:
                return local.rows(Group(list(data)), params, *sent).num_steps.numbers.tolist()
            except Cancelled:
                return "late"

    return together([lambda: train(first), lambda: train(second)])[0]


def test_a_program_of_several_trials_stops_when_all_of_them_are_late():
    steps = [3, 1, 2, 4, 3, 6]
    assert asked_together(lambda: True, None) == asked_together(None, lambda: True) == [steps, steps]
    assert asked_together(lambda: True, lambda: False) == [steps, steps]
    assert asked_together(lambda: True, lambda: True) == ["late", "late"]


def test_models_that_cannot_be_stacked_train_as_they_always_do():
    data = sites()
    model = learn.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    trials = []
    for lr in (0.1, 0.2):
        local = learn.sgd(model, lr=lr, batch_size=None)
        trials.append(lambda u=local: trained(data, u.model, u, fr.algorithms.fedavg, 0))
    found, meeting = together(trials)
    assert meeting.programs == 0 and all(isinstance(result, fr.tree.Flat) for result in found)


def test_stop_ends_every_trial_where_it_trains_next():
    data, meeting, ended = sites(), Meeting(2), []
    local = learn.sgd(learn.logistic(6), lr=0.1, batch_size=16)

    def run(place):
        try:
            with meeting.joined(place):
                trained(data, local.model, local, fr.algorithms.fedavg, 0, rounds=10_000)
        except KeyboardInterrupt:
            ended.append(True)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    meeting.stop()
    for thread in threads:
        thread.join(60)
    assert ended == [True, True]


def some_trials(data, rates=(0.05, 0.1, 0.3), rounds=4):
    locals_ = [learn.sgd(learn.mlp(6, (8,)), lr=lr, batch_size=16) for lr in rates]
    return [lambda u=u: trained(data, u.model, u, fr.algorithms.fedavg, 0, rounds) for u in locals_]


def test_a_program_has_its_buffers_and_its_thread_from_round_to_round(monkeypatch):
    made, threads = [], []
    inner, train = together_module.Training, together_module.train_together
    monkeypatch.setattr(
        together_module, "Training", lambda *given: made.append(given[-1]) or inner(*given)
    )
    monkeypatch.setattr(
        together_module, "train_together",
        lambda asked, cache: threads.append((len(asked), threading.get_ident())) or train(asked, cache),
    )  # fmt: skip
    together(some_trials(sites(), rounds=5))
    assert made.count(3) == 1
    whole = [thread for trials, thread in threads if trials == 3]
    assert len(whole) == 5 and len(set(whole)) == 1


def test_bits_do_not_depend_on_which_thread_starts_first():
    data = sites()
    first, _ = together(some_trials(data))
    second, _ = together(some_trials(data), step=-1)
    assert all(torch.equal(one.buffer, other.buffer) for one, other in zip(first, second, strict=True))


def test_made_up_rows_of_a_rehearsal_wait_for_no_other_trial(monkeypatch):
    asked = []
    train = together_module.train_together
    monkeypatch.setattr(
        together_module, "train_together", lambda given, cache: asked.append(given) or train(given, cache)
    )
    together(some_trials(sites(), rounds=1))
    assert [len(requests) for requests in asked] == [3]
    assert all(len(request.keys) == len(SIZES) for request in asked[0])
