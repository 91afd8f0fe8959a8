"""Numbers that cannot be meant: each setting of privacy and of robust rules says so by its name."""

from dataclasses import replace

import pytest

import fedray as fr
from fedray.accounting import PrivacyLedger
from fedray.core.rewrite import policies
from fedray.errors import ConfigError, PassError

SOLVED = {"noise_multiplier": None, "epsilon": 1.0, "rounds": 5}
INF, NAN = float("inf"), float("nan")
SITE_DP = {"cohort": 8, "noise_multiplier": 1.0, "weights": "uniform"}
IN_TURN = {**SITE_DP, "population": 64, "rounds": 20}
RECORDS = {"clip": 1.0, "sampling_rate": 0.1, "num_patients": 1000, "num_params": 7, "cohort": 8,
           "noise_multiplier": 1.0}  # fmt: skip
LOCAL_DP = {"model": fr.learn.logistic(3), "lr": 0.1, "sampling_rate": 0.1, "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("make", "given", "wrong"),
    [
        (fr.passes.site_dp, SITE_DP, {"delta": [0, 1, 2, -1, NAN], "noise_multiplier": [INF, "1"],
                                      "clip": ["1", True], "cohort": ["8"], "max_noise": [NAN, 0],
                                      "only": ["delta"]}),
        (fr.passes.site_dp, SITE_DP | SOLVED, {"epsilon": [INF, NAN, 0], "rounds": [0, 2.5]}),
        (fr.passes.site_dp_adaptive, SITE_DP | {"cohort": 200},
         {"target": [0, 1, NAN], "lr": [0, NAN], "mark_std": [NAN, INF], "noise_multiplier": [0]}),
        (fr.passes.site_dp_matrix, IN_TURN, {"bands": [2.5, True], "rounds": [2.5], "population": [INF]}),
        (fr.passes.site_dp_distributed, SITE_DP | {"num_params": 9}, {"num_params": [2.5, 0]}),
        (fr.passes.distributed_record, RECORDS, {"num_params": [2.5], "cohort": [INF], "max_site_norm": [0]}),
        (fr.learn.private_sgd, LOCAL_DP, {"steps": [0, -1, 2.5, NAN], "epochs": [0, INF],
                                          "max_records_per_unit": [1.5], "delta": [0, 1]}),
        (fr.learn.private_sgd, LOCAL_DP | SOLVED, {"rounds": [0, 2.5]}),
        (fr.learn.private_sgd, LOCAL_DP | SOLVED | {"sampling_rate": None, "batch_size": 8},
         {"epsilon": [-1, 0, INF, NAN], "batch_size": [0, INF]}),
        (fr.passes.multi_krum, {}, {"keep": [1.5, NAN, True]}),
        (fr.passes.rfa, {}, {"iterations": [1.5, NAN], "smoothing": [NAN, INF]}),
        (fr.passes.three_sigma, {}, {"sigmas": [NAN, INF]}),
        (fr.passes.residual_reweighting, {}, {"bound": [NAN, INF]}),
        (fr.passes.centred_clipping, {}, {"iterations": [1.5], "radius": [NAN, INF]}),
        (fr.passes.bucketing, {}, {"size": [1.5, NAN]}),
        (fr.passes.quarantine, {"then": fr.passes.rfa()},
         {"limit": [INF], "strikes": [1.5], "rounds": [1.5]}),
        (PrivacyLedger, {}, {"epsilon": [0, -1, NAN], "delta": [0.0, 1, 2, NAN]}),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused_at_the_door(make, given, wrong):
    make(**given)
    for name, values in wrong.items():
        for value in values:
            with pytest.raises((ValueError, ConfigError), match=name.removeprefix("max_")):
                make(**given | {name: value})


P, UNIFORM = fr.passes, {"cohort": 8, "noise_multiplier": 1.0, "weights": "uniform", "only": ["delta"]}


@pytest.mark.parametrize(
    "make",
    [
        lambda clip: [P.secure_sum(clip=clip)],
        lambda clip: [P.secure_sum("real", clip=clip)],
        lambda clip: [P.two_server(clip=clip)],
        lambda clip: [P.median(), P.group_secure_sum(clip=clip)],
        lambda clip: [P.site_dp(clip={"delta": 1.0} | clip, **UNIFORM)],
        lambda clip: [P.site_dp_matrix(clip={"delta": 1.0} | clip, **UNIFORM, population=64, rounds=20)],
    ],
)
def test_a_bound_for_a_name_that_nothing_leaves_under_is_refused_with_the_nearest(make):
    algorithm = fr.algorithms.fedavg(fr.learn.sgd(fr.learn.logistic(3), lr=0.1))
    fr.compile(algorithm, make({"delta": 1.0}))
    with pytest.raises(PassError, match=r"\(clip=...\) names 'dleta', .* but delta, metrics\. Fix: delta"):
        fr.compile(algorithm, make({"dleta": 1.0}))


def test_a_bound_of_rounds_is_no_mistake_in_evaluations_and_one_kind_of_round_is_enough():
    model = fr.learn.logistic(3)
    passes = [P.secure_sum(clip={"delta": 1.0})]
    fr.compile(fr.algorithms.evaluation(model, per_site=False), policies(passes))
    kinds = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.1))

    def other(server, site):
        return fr.Outputs(server, metrics=fr.sum(fr.map(float, 1.0), name="others"))

    both = replace(kinds, every={2: other})
    fr.compile(both, [P.secure_sum(clip={"others": 1.0, "delta": 2.0})])
    with pytest.raises(PassError, match="names 'ohters'"):
        fr.compile(both, [P.secure_sum(clip={"ohters": 1.0, "delta": 2.0})])
