"""Numbers that cannot be meant: each setting of privacy and of robust rules says so by its name."""

import pytest

import fedray as fr
from fedray.accounting import PrivacyLedger
from fedray.errors import ConfigError

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
