"""Secure sums under the algorithms of the library: what trains equals the plain run but for the fixed-point
step, what shows the server more than sums is refused with its reason.
"""

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.errors import SecurityConflict
from fedray.passes import secure_sum
from fedray.testing import difference
from tests.unit.passes.stacks import LOCAL, MODEL, NUM_SITES
from tests.unit.runtime.toy import sites

A, OPTIMIZER = fr.algorithms, fr.learn.optimizer
TRAINS = {
    "fedavg": lambda: A.fedavg(LOCAL),
    "fedprox": lambda: A.fedprox(LOCAL, mu=0.1),
    "fedadam": lambda: A.fedavg(LOCAL, OPTIMIZER.adam(0.01)),
    "fedyogi": lambda: A.fedavg(LOCAL, OPTIMIZER.yogi(0.01)),
    "fedadagrad": lambda: A.fedavg(LOCAL, OPTIMIZER.adagrad(0.01)),
    "scaffold": lambda: A.scaffold(LOCAL, NUM_SITES),
    "fednova": lambda: A.fednova(LOCAL),
    "feddyn": lambda: A.feddyn(LOCAL, NUM_SITES, alpha=0.1),
    "mime": lambda: A.mime(LOCAL),
    "mimelite": lambda: A.mimelite(LOCAL),
    "ditto": lambda: A.ditto(LOCAL, prox=0.1),
}
ROUNDS = 2
CAP = 64.0  # rows of the largest site at most
BOUND = 4.0  # |x| of every number that these runs send at most
MEAN_ROWS = 15.5  # of the toy sites
STEP = 0.5 * BOUND * CAP / MEAN_ROWS / ((2**31 - 1) // NUM_SITES)  # how far a mean may be off: 2.3e-8
MOST = ROUNDS * (4 * STEP + 2.0**-23)  # four steps a round at most, and a rounding of parameters near 1


def fitted(algorithm, passes, rounds=ROUNDS, init=None):
    with fr.simulate(sites(NUM_SITES)) as federation:
        return fr.fit(algorithm, federation, init=init or MODEL.init(0), rounds=rounds, passes=passes)


@pytest.mark.parametrize("name", TRAINS)
def test_an_algorithm_trains_as_without_but_for_the_fixed_point_step(name):
    plain = fitted(TRAINS[name](), [])
    summed = fitted(TRAINS[name](), [secure_sum(clip=BOUND, weight_cap=CAP)])
    assert difference(plain.params, summed.params) < MOST
    assert plain.metrics[-1].counted == summed.metrics[-1].counted == NUM_SITES


@pytest.mark.parametrize("name", ["scaffold", "fedadam"])
def test_masks_leave_the_bits_of_the_sum_as_they_are(name):
    found = [fitted(TRAINS[name](), [secure_sum(mode)], rounds=1).state for mode in ("ideal", "real")]
    assert tree.equal(*found)


def test_without_bounds_given_they_follow_the_last_sum():
    result = fitted(TRAINS["scaffold"](), [secure_sum()], rounds=4)
    plain = fitted(TRAINS["scaffold"](), [], rounds=4)
    assert difference(result.params, plain.params) < 1e-6


def test_a_site_beyond_the_bound_is_cut_and_the_log_says_so(caplog):
    result = fitted(TRAINS["scaffold"](), [secure_sum(clip=1e-4)], rounds=1)
    assert "numbers of delta were cut at their bound 0.0001" in caplog.text
    moved = difference(result.params, tree.flatten(MODEL.init(0)))
    assert 0 < moved <= 1.0001e-4


@pytest.mark.parametrize("make", [A.fedbn, A.fedper])
def test_models_whose_personal_part_stays_at_the_sites_train(make):
    own = [next(name for name in MODEL.init(0) if "bias" in name)]
    plain, summed = (
        fitted(make(LOCAL, own), passes) for passes in ([], [secure_sum(clip=BOUND, weight_cap=CAP)])
    )
    assert difference(plain.params, summed.params) < MOST


REFUSED = {
    "cfl": (lambda: A.cfl(LOCAL), "each site's own value|something for each site"),
    "fedamp": (lambda: A.fedamp(LOCAL), "something for each site.*fedper, fedbn, ditto"),
    "cyclic": (lambda: A.cyclic(LOCAL), "each site's own value"),
    "dpsgd": (lambda: A.dpsgd(LOCAL, tuple(sites(NUM_SITES))), "neighbours"),
    "hierfavg": (lambda: A.hierfavg(LOCAL, 2), "each region"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_shows_more_than_sums_is_refused_with_its_reason(name):
    make, why = REFUSED[name]
    with pytest.raises(SecurityConflict, match=why):
        fr.compile(make(), [secure_sum()])


def test_statistics_of_columns_are_summed_to_the_last_digits():
    def first(data):
        x = data.train["x"].double()
        return {"n": len(x), "sum": x.sum(0), "squares": (x**2).sum(0)}

    def round(server, site):
        return fr.Outputs(server=server, metrics=fr.sum(fr.map(first, site.data), name="moments"))

    program = fr.Algorithm(lambda state: state, round, name="statistics")
    with fr.simulate(sites(8)) as federation:
        plain = fr.compute(program, federation)
        summed = fr.compute(program, federation, passes=[secure_sum("real")])
    assert summed["n"] == plain["n"]
    for name in ("sum", "squares"):
        assert torch.allclose(summed[name], plain[name], rtol=0, atol=1e-10)
