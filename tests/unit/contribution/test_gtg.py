"""GTG-Shapley against the values of every round's game, put together and averaged over all orders in numpy.

The reference is `brute.steps` and `brute.put_together`: lines 3 to 15 of the paper's Algorithm 1 without
truncation, all orders in the place of drawn ones.
"""

import numpy as np
import pytest

import fedray as fr
from fedray import contribution, passes
from fedray.contribution.gtg import guided
from fedray.errors import PassError, PolicyError
from fedray.rng import Key
from tests.unit.contribution import brute, federated
from tests.unit.contribution.federated import TABLES

ROUNDS, LR = 3, 0.4
ERROR = 0.03  # of the whole, with 600 orders a round: stated in docs/contribution.md
NEVER = {"within": 0.0, "between": -1.0, "change": 0.0}


def reference(sites, rounds=ROUNDS, lr=LR):
    """Return the sum over rounds of the exact Shapley values of the models put together."""
    models, updates = brute.steps(TABLES, sites, rounds, lr)
    totals = dict.fromkeys(sites, 0.0)
    for model, sent in zip(models[:-1], updates, strict=True):
        found = brute.shapley(
            sites, lambda some: brute.utility(TABLES, brute.put_together(TABLES, some, model, sent))  # noqa: B023
        )
        totals = {site: totals[site] + found[site] for site in sites}
    return totals, brute.utility(TABLES, models[-1]) - brute.utility(TABLES, models[0])


def gtg(sites="abce", rounds=ROUNDS, lr=LR, passes=(), **settings):
    with fr.simulate(federated.data(sites), packs=2) as federation:
        everything = federated.data()
        game = federated.game(federation, rounds, lr, passes=passes, utility=over(everything))
        return contribution.gtg_shapley(game, federated.local(lr), **settings)


def over(data):
    """Return a utility over the rows of all sites, also where fewer are there: as the reference's."""
    def everywhere(params, _):
        found = [federated.errors(params, site) for site in data.values()]
        return {"sum": sum(each["sum"] for each in found), "n": sum(each["n"] for each in found)}

    def round(server, site):
        total = fr.sum(fr.map(everywhere, fr.broadcast(server), site.data), name="errors")
        return fr.Outputs(server=server, metrics=fr.apply(federated.summary, total))
    return fr.Algorithm(lambda params: params, round)


def test_values_come_near_the_mean_over_all_orders_of_every_round():
    exact, gain = reference(list("abce"))
    found = gtg(permutations=600, **NEVER)
    assert found.whole - found.empty == pytest.approx(gain, rel=1e-9)
    assert found.values == pytest.approx(exact, abs=ERROR * gain)
    assert all(abs(found.values[site] - exact[site]) < 4 * found.errors[site] + 1e-9 for site in exact)
    assert found.rest == pytest.approx(0, abs=1e-9) and found.trainings == 1
    assert found.permutations == ROUNDS * 600 and not found.converged


def test_of_one_round_it_values_what_retraining_values():
    found = gtg(rounds=1, lr=1.0, permutations=600, **NEVER)
    exact = brute.shapley(list("abce"), lambda some: brute.utility(TABLES, brute.regression(TABLES, some)))
    assert found.values == pytest.approx(exact, abs=ERROR * (found.whole - found.empty))


def test_orders_end_where_they_have_settled_and_no_model_is_measured_twice():
    found = gtg(within=0.0, between=0.0)
    assert found.converged and ROUNDS * 32 <= found.permutations < ROUNDS * 600
    assert found.evaluations <= ROUNDS * (2**4 - 1) + 1  # subsets of a round, and the first parameters


def test_a_round_that_changes_little_adds_nothing():
    found = gtg(between=1e9)
    assert found.values == dict.fromkeys("abce", 0.0) and found.evaluations == ROUNDS + 1
    assert found.rest == pytest.approx(found.whole - found.empty)


def test_within_a_round_orders_are_cut():
    cut, whole = gtg(within=1e9, between=0.0), gtg(within=0.0, between=0.0)
    assert cut.values == dict.fromkeys("abce", 0.0) and cut.evaluations < whole.evaluations


def test_equal_updates_of_a_server_optimizer_are_stepped_by_it():
    step = fr.learn.optimizer.yogi(0.1)
    with fr.simulate(federated.data("abc")) as federation:
        made = fr.algorithms.fedavg(federated.local(LR), step)
        game = contribution.game(made, federation, init=federated.INIT, rounds=2, metric="mse",
                                 utility=federated.mean_squared_error())  # fmt: skip
        found = contribution.gtg_shapley(game, federated.local(LR), optimizer=step, between=0.0, within=0.0)
        assert found.whole == game("abc")  # the run that is valued is the run of everybody
        assert abs(found.rest) < 1e-9


def test_each_site_is_first_in_one_order_of_a_turn_and_orders_follow_from_the_key():
    orders = guided("abcd", Key(0, 3, "", "x"))
    assert [order[0] for order in orders] == list("abcd")
    assert all(set(order) == set("abcd") for order in orders)
    assert orders == guided("abcd", Key(0, 3, "", "x")) != guided("abcd", Key(1, 3, "", "x"))


def test_policy_that_shows_no_site_refuses_it_and_allows_methods_that_only_train():
    policy = passes.require(visible=("own",))
    with fr.simulate(federated.data("abc")) as federation:
        game = federated.game(federation, passes=[policy])
        with pytest.raises(PolicyError, match="updates .gather.* shows the value of one site"):
            contribution.gtg_shapley(game, federated.local())
        assert np.isfinite(list(contribution.leave_one_out(game).values.values())).all()


def test_passes_that_change_updates_are_refused_with_what_to_use_instead():
    with fr.simulate(federated.data("abc")) as federation:
        game = federated.game(federation, passes=[passes.topk(0.5, only=("delta",))])
        with pytest.raises(PassError, match="topk.* would change or hide it: use tmc_shapley"):
            contribution.gtg_shapley(game, federated.local())


def test_game_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="gtg_shapley needs a game of trainings"):
        contribution.gtg_shapley(contribution.Game("ab", lambda asked: [0.0] * len(asked)), federated.local())
