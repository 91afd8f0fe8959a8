"""Coalitions that train: against brute-force values of a regression in closed form, and against federations
of their own.
"""

from dataclasses import replace

import pytest

import fedray as fr
from fedray import contribution
from fedray.data.site import SiteData
from fedray.errors import ConfigError, ScheduleError, SecurityConflict
from fedray.learn import together
from fedray.runtime.traces import by_trace, generate
from tests.unit.algorithms import cases
from tests.unit.contribution import brute, federated
from tests.unit.contribution.federated import TABLES


def closed_form(sites):
    return brute.utility(TABLES, brute.regression(TABLES, sites))


def test_shapley_values_of_federated_regression_are_those_of_the_closed_form():
    with fr.simulate(federated.data(), packs=2) as federation:
        found = contribution.shapley(federated.game(federation))
    assert found.values == pytest.approx(brute.shapley(list(TABLES), closed_form), rel=1e-9)
    assert found.values["c"] == found.values["d"]  # the same rows, the same bits
    assert found.trainings == 31 and found.metric == "-mse" and abs(found.rest) < 1e-12
    assert found.whole == pytest.approx(closed_form(list(TABLES)), rel=1e-9)


def test_leave_one_out_and_drawn_orders_agree_with_the_closed_form_and_share_trainings():
    with fr.simulate(federated.data()) as federation:
        game = federated.game(federation)
        without = contribution.leave_one_out(game)
        drawn = contribution.tmc_shapley(game, permutations=400, tolerance=0.0, change=0.0)
    everybody = tuple(TABLES)
    lost = {s: closed_form(everybody) - closed_form([o for o in everybody if o != s]) for s in everybody}
    assert without.values == pytest.approx(lost, rel=1e-9, abs=1e-12) and without.trainings == 6
    exact, span = brute.shapley(everybody, closed_form), drawn.whole - drawn.empty
    assert drawn.values == pytest.approx(exact, abs=0.05 * span) and drawn.trainings <= 25
    assert all(abs(drawn.values[site] - exact[site]) < 3.5 * drawn.errors[site] for site in everybody)


@pytest.mark.parametrize("make", [
    lambda local: lambda sites: fr.algorithms.scaffold(local, len(sites)),
    lambda local: lambda sites: fr.algorithms.fedavg(local, fr.learn.optimizer.yogi(0.1)),
    lambda local: lambda sites: fr.algorithms.swarm(local, sites),
    lambda local: lambda sites: fr.algorithms.dpsgd(local, sites),
    lambda local: lambda sites: fr.algorithms.push_sum(local, sites),
    lambda local: lambda sites: fr.algorithms.afl(local, sites),
], ids=["scaffold", "fedyogi", "swarm", "dpsgd", "push_sum", "afl"])  # fmt: skip
def test_replay_has_the_bits_of_a_federation_of_its_sites_alone(make):
    model, table = fr.learn.linear(3), cases.single()[1]
    algorithm = make(fr.learn.sgd(model, lr=0.05, epochs=2, batch_size=4))
    init, schedule = model.init(0), fr.synchronous(cohort=2)
    utility = fr.algorithms.evaluation(model, split="train")
    with fr.simulate(table, packs=2) as federation:
        game = contribution.game(algorithm, federation, init=init, rounds=3, schedule=schedule,
                                 utility=utility, metric="loss", seed=5)  # fmt: skip
        game(list(table))
        game("bde")  # after another, in the same hosts
    alone = {site: table[site] for site in "bde"}
    with fr.simulate(alone) as federation:
        own = fr.fit(algorithm("bde"), federation, init=init, rounds=3, schedule=schedule, seed=5)
    assert game.worth.done[frozenset("bde")].params_sha256 == own.params_sha256


def test_a_fixed_cohort_is_at_most_the_coalition_and_a_fraction_is_one_of_it():
    schedule = replace(fr.synchronous(cohort=3), among=frozenset("bd"))
    assert schedule.cohort_of(0, 0, "abcde", {}) == ("b", "d")
    half = replace(fr.synchronous(cohort=0.5), among=frozenset("abde"))
    assert len(half.cohort_of(0, 0, "abcde", {})) == 2 and half.expected_cohort(5) == 2
    drawn = {site for round in range(30) for site in half.cohort_of(round, 0, "abcde", {})}
    assert drawn == set("abde")


def test_coalitions_that_train_together_come_to_what_they_come_to_apart(monkeypatch):
    model, table = fr.learn.linear(3), cases.single()[1]
    local = fr.learn.sgd(model, lr=0.05, epochs=2, batch_size=4)
    lanes, train = [], together.train_mixed
    watched = lambda asked, *rest: lanes.append(len(asked)) or train(asked, *rest)  # noqa: E731
    monkeypatch.setattr(together, "train_mixed", watched)
    utility = fr.algorithms.evaluation(model, split="train")

    def found(**more):
        with fr.simulate(table, packs=2) as federation:
            game = contribution.game(fr.algorithms.fedavg(local), federation, init=model.init(0), rounds=2,
                                     utility=utility, metric="loss", **more)  # fmt: skip
            return contribution.shapley(game), game.worth.done
    apart, alone = found()
    assert lanes == []
    joined, side_by_side = found(together=True)
    assert max(lanes) == 31  # all coalitions but that of nobody, one program a round
    assert joined.values == pytest.approx(apart.values, rel=1e-4)
    for coalition, replay in alone.items():
        assert side_by_side[coalition].value == pytest.approx(replay.value, rel=1e-5)


def test_programs_of_few_sites_and_lanes_that_are_repeated_change_no_worth(monkeypatch):
    monkeypatch.setattr(together, "PROGRAM_BYTES", 1)  # one site a program
    model, table = fr.learn.linear(3), cases.single()[1]
    local = fr.learn.sgd(model, lr=0.05, epochs=2, batch_size=4)
    asked = [frozenset(each) for each in ("a", "ab", "abe", "bcde", "de")]  # a site is in 1, 2 or 3 of them

    def found(**more):
        with fr.simulate(table) as federation:
            game = contribution.game(
                lambda sites: fr.algorithms.scaffold(local, len(sites)), federation, init=model.init(0),
                rounds=3, utility=fr.algorithms.evaluation(model, split="train"), metric="loss", **more,
            )  # fmt: skip
            return game.values(asked)
    assert found(together=True) == pytest.approx(found(), rel=1e-5)


@pytest.mark.parametrize("is_together", [False, True])
def test_a_site_without_rows_adds_nothing(is_together):
    empty = {name: column[:0] for name, column in federated.data()["a"].items()}
    with fr.simulate({**federated.data("ab"), "z": SiteData(empty)}, allow_empty=True) as federation:
        game = federated.game(federation, utility=federated.mean_squared_error(per_site=False),
                              together=is_together)  # fmt: skip
        found = contribution.shapley(game)
    assert found.values["z"] == 0.0 and game("z") == found.empty
    assert found.values["a"] + found.values["b"] == pytest.approx(found.whole - found.empty)


def test_error_of_a_coalition_that_trains_beside_others_is_raised():
    def broken(params, batch):
        raise RuntimeError("no")
    with fr.simulate(federated.data()) as federation:
        game = contribution.game(fr.algorithms.fedavg(fr.learn.sgd(broken, lr=1.0)), federation,
                                 init=federated.INIT, rounds=1, utility=federated.mean_squared_error(),
                                 metric="mse", together=True)  # fmt: skip
        with pytest.raises(fr.errors.QuorumError):
            contribution.shapley(game)


def test_value_of_taking_part_is_the_difference_on_a_sites_own_rows():
    with fr.simulate(federated.data()) as federation:
        game = federated.game(federation)
        found = contribution.value_of_taking_part(game)
        assert contribution.shapley(game).trainings == 25  # those of one site and of all are there already
        assert contribution.value_of_taking_part(game).trainings == 0
    everybody = brute.regression(TABLES, list(TABLES))
    for site, (x, y) in TABLES.items():
        own = brute.regression(TABLES, [site])
        alone, federation_wide = (float(((x @ w - y) ** 2).mean()) for w in (own, everybody))
        assert found.alone[site] == pytest.approx(alone, rel=1e-9)
        assert found.gains[site] == pytest.approx(alone - federation_wide, rel=1e-9)
        assert found.num_examples[site] == len(y)
    assert all(gain < 0 for gain in found.gains.values())  # least squares on own rows cannot be beaten there


def test_value_of_taking_part_needs_records_of_single_sites():
    with fr.simulate(federated.data()) as federation:
        game = federated.game(federation, utility=federated.mean_squared_error(per_site=False))
        with pytest.raises(ConfigError, match="no mse of a alone"):
            contribution.value_of_taking_part(game)


def test_trainings_of_an_earlier_session_are_not_done_again():
    told = []
    with fr.simulate(federated.data()) as federation:
        contribution.leave_one_out(federated.game(federation, tell=told.append))
        again = federated.game(federation, done=told)
        assert contribution.leave_one_out(again).trainings == 0
        assert contribution.shapley(again).trainings == 31 - 6
    assert {len(replay.sites) for replay in told} == {0, 4, 5}


def test_metric_that_is_not_measured_and_schedules_that_cannot_be_cut_are_refused():
    with fr.simulate(federated.data()) as federation:
        with pytest.raises(ConfigError, match="metric=auroc: the utility measures mse"):
            federated.game(federation, metric="auroc")("ab")
        with pytest.raises(ScheduleError, match="OfTrace cannot be cut"):
            federated.game(federation, schedule=by_trace(generate("abcde")))


def test_interrupted_replay_is_no_worth(monkeypatch):
    with fr.simulate(federated.data()) as federation:
        game = federated.game(federation)
        cut = lambda *_, **__: type("Cut", (), {"stopped": "interrupted"})()  # noqa: E731
        monkeypatch.setattr(fr, "fit", cut)
        with pytest.raises(KeyboardInterrupt):
            game("ab")
        assert game.num_known == 0


@pytest.mark.ray
def test_ray_gives_the_bits_of_one_process(ray_session):
    def found(**where):
        with fr.simulate(federated.data("abc"), **where) as federation:
            return contribution.shapley(federated.game(federation)).values
    assert found() == found(runtime="ray", packs=2, placement="actors")


@pytest.mark.parametrize("mode", ["ideal", "real"])
def test_coalitions_under_a_secure_sum_would_show_the_site_between_them(mode):
    hidden = fr.passes.secure_sum(mode, min_cohort=3)
    told = pytest.raises(SecurityConflict, match="secure_sum hides")
    with fr.simulate(federated.data()) as federation, told:
        federated.game(federation, passes=[hidden])
