"""Attacks do what their papers say, to the attackers' rows alone; the smoke table, in a small form."""

import json
from pathlib import Path

import bench
import foolsgold
import numpy as np
import pytest
import smoke
import studies
import torch
import updates
from updates import ATTACKS, Attacked, Scene

import fedray as fr
from fedray.report import attacks
from fedray.rng import SERVER, Key

P = fr.passes
RNG = np.random.default_rng(0)
HONEST, OWN = RNG.normal(size=(12, 30)) + 1, RNG.normal(size=(4, 30)) + 1


def rows_of(attack, **known):
    return ATTACKS[attack](Scene(HONEST, OWN, np.random.default_rng(1), **known))


def test_simple_attacks_send_what_they_say():
    mean = HONEST.mean(0)
    expected = {
        "sign_flip": -4 * OWN, "scaled": -4 * OWN, "boosted": 4 * OWN, "lazy": 0 * OWN, "stale": OWN,
        "ipm_0.1": np.tile(-0.1 * mean, (4, 1)), "ipm_1.1": np.tile(-1.1 * mean, (4, 1)),
        "mimic": np.tile(HONEST[0], (4, 1)), "sybil": np.tile(-OWN.mean(0), (4, 1)),
    }  # fmt: skip
    for attack, rows in expected.items():
        assert np.allclose(rows_of(attack), rows, rtol=0, atol=1e-12), attack
    assert np.array_equal(rows_of("stale", memory=2 * OWN), 2 * OWN)


def test_a_little_is_enough_lies_z_deviations_from_the_honest_mean():
    z = 0.21042839424792484  # Phi^-1((16 - 4 - s) / (16 - 4)) with s = 16 // 2 + 1 - 4 = 5
    assert np.allclose(rows_of("alie"), np.tile(HONEST.mean(0) - z * HONEST.std(0), (4, 1)))


def test_min_max_and_min_sum_go_as_far_as_honest_rows_do():
    apart = ((HONEST[:, None] - HONEST[None]) ** 2).sum(-1)
    towards = ((HONEST - rows_of("min_max")[0]) ** 2).sum(1)
    assert 0.999 < towards.max() / apart.max() <= 1 + 1e-6
    towards = ((HONEST - rows_of("min_sum")[0]) ** 2).sum()
    assert 0.999 < towards / apart.sum(1).max() <= 1 + 1e-6


def test_noise_is_ten_times_as_long_as_an_honest_row():
    lengths = np.linalg.norm(rows_of("gaussian"), axis=1) / np.median(np.linalg.norm(HONEST, axis=1))
    assert (np.abs(lengths - 10) < 4).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_sites_keep_their_values_and_attackers_send_others(attack):
    values = {f"h{i}": torch.from_numpy(row).float() for i, row in enumerate(HONEST)}
    values |= {f"x{i}": torch.from_numpy(row).float() for i, row in enumerate(OWN)}
    bad = tuple(f"x{i}" for i in range(4))
    found = Attacked(attack, bad)(values, None, Key(0, 0, SERVER, "attack"))["values"]
    assert all(found[name] is values[name] for name in values if name not in bad)
    assert set(found) == set(values) and found["x0"].dtype == torch.float32
    changed = [not torch.equal(found[name], values[name]) for name in bad]
    assert all(changed) or attack == "stale"


def test_an_attack_stands_between_what_is_gathered_and_the_rule():
    study = studies.made_up("iid", 0, num_sites=5, rounds=2)
    bad = study.attackers(0.2, 0)
    algorithm = fr.algorithms.fedavg(study.local)
    for passes in ([updates.mean(), updates.attacked("scaled", bad)],
                   [P.median(), updates.attacked("alie", bad)]):
        plan = fr.compile(algorithm, passes)
        shown = fr.explain(plan)
        assert shown.index("gather 'delta'") < shown.index("apply Attacked") < shown.index("apply Aggregate")


def test_poison_changes_the_attackers_training_rows_alone():
    rows = studies.made_up("iid", 0, num_sites=4).sites["h00"]
    before = {name: column.clone() for name, column in rows.columns.items()}
    assert torch.equal(studies.flipped(rows)["y"], 1 - rows["y"])
    marked = studies.triggered(rows, 0.5)
    number = int((marked["x"][:, 0] == studies.TRIGGER_VALUE).sum())
    assert number == -(-rows.num_rows // 2) and not marked["y"][:number].any()
    rare = rows["x"][:, 0] > studies.TAIL
    assert not studies.tail(rows)["y"][rare].any()
    assert torch.equal(studies.tail(rows)["y"][~rare], rows["y"][~rare])
    assert all(torch.equal(rows[name], column) for name, column in before.items())


def test_a_site_with_few_rows_is_measured_on_pairs_with_all_sites():
    y, score = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.9, 0.8, 0.8])
    assert studies.auroc(y, score) == 0.875
    assert studies._placed(1, 0.8, y, score) == 0.75 and studies._placed(0, 0.1, y, score) == 1


def test_the_report_of_the_bench_is_the_table_of_its_figures(tmp_path):
    found = {"iid 0.2": {"mean": {"none": [[0.9, 0.8, 0.7]], "scaled": [[0.2, 0.1, 0.3]],
                                  "backdoor": [[0.8, 0.7, 0.25]]},
                         "rfa": {"none": [[0.88, 0.8, 0.7]], "scaled": [[0.87, 0.79, 0.7]],
                                 "backdoor": [[0.86, 0.75, 0.5]]}}}  # fmt: skip
    (tmp_path / "attacks.json").write_text(json.dumps(bench.report(found)))
    study = attacks.read(tmp_path / "attacks.json")["studies"][0]
    assert (study["name"], study["share"], study["seeds"]) == ("iid", 0.2, 1)
    assert study["rules"][0] == {"rule": "rfa", "clean": 0.88, "cost": 0.02, "worst": 0.86, "by": "backdoor",
                                 "sites_clean": 0.8, "sites_worst": 0.75, "backdoor": 0.5}  # fmt: skip
    assert study["rules"][1]["by"] == "scaled" and study["rules"][1]["worst"] == 0.2


def test_the_table_that_is_kept_is_that_of_the_benchs_figures():
    results = Path(bench.__file__).parent / "results"
    found = json.loads((results / "bench.json").read_text())
    assert bench.report(found) == json.loads((results / "attacks.json").read_text())


@pytest.mark.parametrize("sybils", [3, 30])
def test_foolsgold_silences_any_number_of_sybils_among_sites_that_differ(sybils):
    taken, others = foolsgold.one_class_each(P.foolsgold(), sybils, seed=0, rounds=30)
    assert taken < 0.05 and others > 0.9
    assert foolsgold.one_class_each(updates.mean(), sybils, seed=0, rounds=30)[0] > 0.8


def test_foolsgold_judges_honest_sites_that_are_alike_as_it_does_attackers_who_are_not_alike():
    found = foolsgold.judged("sign_flip", seed=0)
    assert found["honest"].min() > 0.8 and found["bad"].max() < found["honest"].max() and found["auroc"] < 0.6
    assert foolsgold.judged("sybil", seed=0)["share"] < 0.01


@pytest.mark.slow
def test_the_mean_fails_and_every_robust_rule_holds_where_it_is_easy():
    found = smoke.smoke(seeds=1, rounds=15)
    assert smoke.problems(found) == []
    assert found["mean"]["sign_flip"][0] < 0.6 < 0.9 < found["mean"]["none"][0]
