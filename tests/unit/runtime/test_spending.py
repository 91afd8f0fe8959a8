"""What a run does with the privacy ledger: each attempt is charged before it is asked for, and no less."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

import fedray as fr
from fedray.accounting import Mechanism, PrivacyLedger, accountant
from fedray.core.graph import Label
from fedray.errors import BudgetError, ConfigError, LedgerError, QuorumError, ScheduleError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.plan import compile
from fedray.runtime.releases import exact_names, releases_of
from tests.unit.runtime import toy

SITE = Mechanism(kind="gaussian", noise_multiplier=10.0, unit="site", noise_by="server", trusted="server")
PATIENT = replace(SITE, noise_multiplier=20.0, unit="patient", noise_by="sites", trusted="", max_noise=1e3)
DIES_IN = "FEDRAY_TEST_DIES_IN"  # a folder with a ledger
MATRIX = replace(SITE, kind="matrix", rounds=4, sensitivity=2.0)


@dataclass(frozen=True)
class ServerNoise:
    """Stands for noise at the server, and adds none; where a test says so it kills its process instead."""

    mechanism: Mechanism = SITE
    one_shot: bool = True

    def __call__(self, value):
        folder = os.environ.get(DIES_IN)
        if folder and len(events(Path(folder), "charge")) == 3:  # that of round 2, on disk, nothing released
            os.kill(os.getpid(), signal.SIGKILL)
        return value


@dataclass(frozen=True)
class SiteNoise(toy.ToyLocal):
    mechanism: Mechanism = PATIENT
    grants: Label = Label.DP
    one_shot: bool = True


@dataclass(frozen=True)
class Failing(SiteNoise):
    """A site that fails in the first attempts of a round."""

    tries: list = None

    def __call__(self, *args, **kwargs):
        self.tries.append(1)
        if len(self.tries) <= 4:
            raise ValueError("no power")
        return super().__call__(*args, **kwargs)


def noised(mechanism=SITE, local=None):
    """An algorithm whose mean passes the server's noise, and whose metrics do not."""

    def round(server, site):
        update = fr.map(local or toy.ToyLocal(), fr.broadcast(server), site.data, site.rng)
        delta = fr.mean(update.delta, name="delta")
        if mechanism is not None:
            delta = fr.apply(ServerNoise(mechanism), delta)
        return fr.Outputs(server=server + delta, metrics=fr.mean(update.metrics, name="metrics"))

    return fr.Algorithm(lambda params: params, round, name="noised")


def pooled(program):
    """The program as an evaluation, whose metrics are pooled."""

    def round(server, site):
        found = program.round(server, site)
        return fr.Outputs(metrics=fr.apply(as_pooled, found.server, found.metrics))

    return replace(program, round=round)


def as_pooled(_, metrics):
    return {"pooled": dict(metrics)}


def trained(algorithm, rounds=4, sites=4, **settings):
    with fr.simulate(toy.sites(sites)) as federation:
        return fr.fit(algorithm, federation, init=toy.INIT, rounds=rounds, **settings)


def kept(folder, **settings):
    return PrivacyLedger(folder / "ledger.jsonl", dataset="toy 1", **settings)


def events(folder, kind):
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return [entry for entry in (json.loads(line)["entry"] for line in lines) if entry["ev"] == kind]


def spent(mechanism, rounds):
    return accountant.epsilon({mechanism: rounds}, 1e-5)


def test_every_round_is_charged_and_its_record_tells_epsilon(tmp_path):
    result = trained(noised(), ledger=kept(tmp_path))
    assert [entry["round"] for entry in events(tmp_path, "charge")] == [0, 1, 2, 3]
    assert [record.epsilon for record in result.metrics] == [spent(SITE, n) for n in (1, 2, 3, 4)]
    assert result.privacy["epsilon"] == result.ledger.epsilon() == spent(SITE, 4)


def test_run_without_a_ledger_counts_for_itself():
    assert trained(noised()).ledger.epsilon() == spent(SITE, 4)


def test_run_without_noise_has_no_epsilon():
    result = trained(noised(mechanism=None))
    assert result.ledger is None and result.privacy is None and result.metrics[-1].epsilon is None


def test_ledger_of_a_run_without_noise_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="draws no noise"):
        trained(noised(mechanism=None), ledger=kept(tmp_path))


def test_ledger_that_does_not_know_its_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="dataset="):
        trained(noised(), ledger=PrivacyLedger(tmp_path / "ledger.jsonl"))


def test_run_that_would_overspend_is_refused_and_touches_no_site(tmp_path):
    with pytest.raises(BudgetError, match="E_BUDGET: 400 rounds"):
        trained(noised(), rounds=400, ledger=kept(tmp_path, epsilon=1.0))
    assert events(tmp_path, "charge") == []


@dataclass
class Rival:
    """A tracker in whose place another study spends from the same ledger."""

    folder: Path

    def start(self, plan, facts):
        return

    def round(self, record):
        if record.round == 1:
            trained(noised(replace(SITE, noise_multiplier=3.0)), rounds=1, ledger=kept(self.folder))

    def evaluation(self, record):
        return

    def finish(self, result):
        return


def test_run_ends_with_what_it_has_where_another_study_spends_the_rest(tmp_path, caplog):
    budget = spent(SITE, 8)
    with caplog.at_level(logging.WARNING):
        result = trained(noised(), ledger=kept(tmp_path, epsilon=budget), tracker=Rival(tmp_path))
    assert (result.stopped, result.rounds) == ("budget", 2)
    assert "E_BUDGET: round 2" in caplog.text and result.state is not None
    assert [entry["round"] for entry in events(tmp_path, "refused")] == [2]


def test_attempt_that_failed_is_paid_for_and_the_next_is_charged(tmp_path):
    local = Failing(tries=[])
    result = trained(noised(mechanism=None, local=local), rounds=1, sites=4, ledger=kept(tmp_path))
    assert result.metrics[0].attempt == 1
    assert [entry["attempt"] for entry in events(tmp_path, "charge")] == [0, 1]
    assert result.privacy["epsilon"] == spent(PATIENT, 2)


def test_round_that_never_succeeds_is_charged_for_each_attempt(tmp_path):
    local = Failing(tries=[], lr=0.1)
    with pytest.raises(QuorumError):
        trained(noised(mechanism=None, local=local), rounds=1, ledger=kept(tmp_path),
                schedule=fr.synchronous(retries=0))
    assert len(events(tmp_path, "charge")) == 1


def test_patients_of_sites_that_are_not_asked_spend_nothing(tmp_path):
    schedule = fr.synchronous(cohort=1, sampling="cyclic")
    ledger = kept(tmp_path)
    trained(noised(mechanism=None, local=SiteNoise()), schedule=schedule, ledger=ledger)
    assert list(ledger.accounts().values()) == [spent(PATIENT, 1)] * 4


def test_patients_of_all_sites_spend_where_a_pass_leaves_sites_out(tmp_path):
    ledger, watched = kept(tmp_path), fr.passes.quarantine(fr.passes.rfa(), limit=1.01, strikes=1)
    schedule = fr.synchronous(cohort=0.5, quorum=0.5)  # whom it draws changes with who is left out
    trained(noised(mechanism=None, local=SiteNoise()), passes=[watched], schedule=schedule, ledger=ledger)
    assert list(ledger.accounts().values()) == [spent(PATIENT, 4)] * 4


def test_sites_that_are_not_asked_spend_where_they_are_protected_as_a_whole(tmp_path):
    ledger = kept(tmp_path)
    trained(noised(), schedule=fr.synchronous(cohort=1, sampling="cyclic"), ledger=ledger)
    assert list(ledger.accounts().values()) == [spent(SITE, 4)] * 4


def test_sites_of_other_sizes_have_rates_of_their_own():
    mechanism = replace(PATIENT, kind="sampled_gaussian", unit="record", sampling_rate=None, batch_size=4)
    result = trained(noised(mechanism=None, local=SiteNoise(mechanism=mechanism)), rounds=1, sites=3)
    rates = [noise["sampling_rate"] for noise in result.privacy["noise"]]
    assert rates == [4 / 8, 4 / 11, 4 / 14]


def test_patients_are_counted_by_the_training_and_not_by_rows():
    @dataclass(frozen=True)
    class Counting(SiteNoise):
        def count_units(self, data):
            return 4

    mechanism = replace(PATIENT, kind="sampled_gaussian", sampling_rate=None, batch_size=1)
    result = trained(noised(mechanism=None, local=Counting(mechanism=mechanism)), rounds=1, sites=3)
    assert [(n["sampling_rate"], n["datasets"]) for n in result.privacy["noise"]] == [(0.25, 3)]
    with pytest.raises(ConfigError, match="nothing counts them"):
        trained(noised(mechanism=None, local=SiteNoise(mechanism=mechanism)), rounds=1)


def test_noise_and_epsilon_of_the_whole_run_are_told_before_it(caplog):
    with caplog.at_level(logging.INFO, "fedray.runtime.spending"):
        trained(noised(replace(SITE, divisor=4)), rounds=5)
    assert "noise multiplier 10: 2.5 on each number, 6.12 clip bounds long" in caplog.text
    assert f"epsilon {spent(SITE, 5):.3g} at delta 1e-05 after 5 rounds" in caplog.text
    assert "add or remove one site; noise by the server, trusted: server" in caplog.text


def test_hopeless_noise_is_refused_before_a_round():
    with pytest.raises(ConfigError, match="max_noise"):
        trained(noised(replace(SITE, noise_multiplier=100.0, divisor=4)))
    trained(noised(replace(SITE, noise_multiplier=100.0, divisor=4, max_noise=math.inf)), rounds=1)


def test_private_training_at_its_own_pace_is_refused():
    from fedray.runtime.buffered import buffered

    with pytest.raises(ScheduleError, match="own pace"):
        trained(noised(mechanism=None, local=SiteNoise()), schedule=buffered(size=2, concurrency=3))


def test_training_with_noise_inside_another_function_is_refused():
    hidden = partial(lambda local, *args: local(*args), SiteNoise())
    with pytest.raises(ConfigError, match="cannot be counted"):
        trained(noised(mechanism=None, local=hidden))


def test_names_that_leave_without_noise_are_told_apart():
    def names(algorithm):
        plan = compile(algorithm)
        return exact_names(plan, releases_of(plan))

    assert names(noised()) == ["metrics"]
    assert names(noised(mechanism=None, local=SiteNoise())) == []
    assert names(noised(mechanism=None)) == ["delta", "metrics"]


def test_single_program_with_noise_pays_once_and_is_refused_when_nothing_is_left(tmp_path):
    ledger = kept(tmp_path, epsilon=spent(SITE, 1))
    with fr.simulate(toy.sites(3)) as federation:
        assert fr.compute(noised(), federation, state=fr.tree.flatten(toy.INIT), ledger=ledger) is not None
        with pytest.raises(BudgetError):
            fr.compute(noised(), federation, state=fr.tree.flatten(toy.INIT), ledger=ledger)
    assert ledger.epsilon() == spent(SITE, 1)


def test_evaluation_that_draws_noise_is_charged_beside_the_rounds(tmp_path):
    ledger = kept(tmp_path)
    evaluation = replace(noised(replace(SITE, noise_multiplier=7.0)), name="evaluation")
    trained(noised(), evaluate={"valid": pooled(evaluation)}, every=2, ledger=ledger)
    expected = {SITE: 4, replace(SITE, noise_multiplier=7.0): 2}
    assert ledger.epsilon() == accountant.epsilon(expected, 1e-5)


def test_evaluation_that_would_overspend_is_not_made(tmp_path):
    ledger = kept(tmp_path, epsilon=spent(SITE, 4))
    evaluation = pooled(replace(noised(replace(SITE, noise_multiplier=1.0)), name="evaluation"))
    result = trained(noised(), evaluate={"valid": evaluation, "test": evaluation}, every=2, ledger=ledger)
    assert result.evaluations == [] and result.rounds == 4 and ledger.epsilon() == spent(SITE, 4)


def run_on(folder, rounds, resume, **settings):
    checkpoint = Checkpoints(folder / "checkpoints", every_s=1e9)
    return trained(noised(**settings), rounds=rounds, checkpoint=checkpoint, resume=resume,
                   ledger=kept(folder))


def test_run_that_goes_on_has_spent_what_it_had_and_charges_on(tmp_path):
    run_on(tmp_path, 2, resume=False)
    result = run_on(tmp_path, 5, resume=True)
    assert result.privacy["epsilon"] == spent(SITE, 5)
    assert len(events(tmp_path, "open")) == 1


def test_run_without_a_ledger_of_its_own_goes_on_with_what_it_had_spent(tmp_path):
    checkpoint = Checkpoints(tmp_path)
    trained(noised(), rounds=2, checkpoint=checkpoint)
    assert trained(noised(), rounds=5, checkpoint=checkpoint, resume=True).ledger.epsilon() == spent(SITE, 5)


def test_run_does_not_go_on_with_another_ledger(tmp_path):
    run_on(tmp_path, 2, resume=False)
    for path in tmp_path.glob("ledger.jsonl*"):
        path.unlink()
    with pytest.raises(LedgerError, match="go on with the same ledger"):
        run_on(tmp_path, 5, resume=True)


PROGRAM = """
import sys
from pathlib import Path
from tests.unit.runtime import test_spending as t
t.run_on(Path(sys.argv[1]), 4, resume=False, mechanism=getattr(t, sys.argv[2]))
"""


@pytest.mark.parametrize(("name", "expected"), [
    ("SITE", {SITE: 5}),
    pytest.param("MATRIX", {MATRIX: 1, replace(SITE, noise_multiplier=20.0): 1}, marks=pytest.mark.slow),
])
def test_run_killed_between_charge_and_release_pays_and_tries_the_round_again(tmp_path, name, expected):
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), name]
    dying = {**os.environ, DIES_IN: str(tmp_path)}
    assert subprocess.run(program, env=dying, check=False).returncode == -signal.SIGKILL
    assert [entry["round"] for entry in events(tmp_path, "charge")] == [0, 1, 2]
    result = run_on(tmp_path, 4, resume=True, mechanism=globals()[name])
    told = [(entry["round"], entry["attempt"]) for entry in events(tmp_path, "charge")]
    assert told == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]
    assert result.privacy["epsilon"] == accountant.epsilon(expected, 1e-5)


def test_noise_differs_between_runs_of_one_seed_and_the_data_order_does_not():
    def run(noise):
        passes = [fr.passes.site_dp(clip=1.0, noise_multiplier=noise, cohort=4, max_noise=math.inf)]
        result = trained(noised(mechanism=None), rounds=1, passes=passes, seed=5)
        return torch.cat([leaf.reshape(-1) for _, leaf in fr.tree.leaves(dict(result.state))])

    assert not torch.equal(run(1.0), run(1.0))
    assert torch.allclose(run(1e-9), run(1e-9), atol=1e-7)
