"""The gate in the round: who is withheld, what the server learns, what a site keeps, what is refused."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fedray as fr
from fedray import config
from fedray.airlock import (
    Canaries,
    Exposure,
    Finding,
    Membership,
    Norm,
    Rebuilt,
    RowsBehind,
    airlock,
    of_policy,
)
from fedray.airlock.gate import Gate
from fedray.data.site import SiteData
from fedray.errors import PassError, QuorumError, SecurityConflict
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.test_egress import SHIPPED
from tests.unit.passes.stacks import ALGORITHMS, LOCAL, MODEL, NUM_SITES
from tests.unit.runtime.toy import sites

LOSING = fr.synchronous(quorum=0.1)
SMALL = ("h00", "h01", "h02")  # 8, 11 and 14 rows; the others have 17 and more


def fitted(passes, algorithm="fedavg", rounds=2, data=None, look=None, schedule=LOSING, **layout):
    more = {name: layout.pop(name) for name in ("checkpoint", "resume") if name in layout}
    with fr.simulate(data or sites(NUM_SITES), **layout) as federation:
        result = fr.fit(
            ALGORITHMS[algorithm](), federation, init=MODEL.init(0), rounds=rounds, passes=passes,
            schedule=schedule, **more,
        )  # fmt: skip
        federation.aggregator.root.commit([])
        return result, look(federation) if look else None


def kept(federation, slot="airlock"):
    packs = federation.aggregator.root.transport.hosts.values()
    return {site: pack.state_of(site, slot) for pack in packs for site in pack.sites}


def without(*lost):
    return {site: opened for site, opened in sites(NUM_SITES).items() if site not in lost}


def test_a_withheld_site_leaves_the_bits_of_a_run_that_never_asked_it():
    found, _ = fitted([airlock([RowsBehind(16)])])
    assert found.params_sha256 == fitted([], data=without(*SMALL))[0].params_sha256
    assert [record.counted for record in found.metrics] == [3, 3]
    assert found.row_invariant is True


@dataclass(frozen=True)
class Longer:
    """Refuse sites of many rows."""

    name: ClassVar[str] = "rows too many"

    def check(self, leaving):
        return Finding(self.name, leaving.training_rows["y"].numel(), 16)


def test_the_server_learns_the_word_withheld_and_neither_test_nor_number():
    large, small = (fitted([airlock([test])])[0].metrics[0].failures for test in (Longer(), RowsBehind(16)))
    assert sorted(failure.site for failure in small) == list(SMALL)
    assert [(each.kind, each.where) for each in large] == [(each.kind, each.where) for each in small]
    assert {failure.kind for failure in small} == {"withheld"}
    first = small
    assert first[0].where.startswith("gate.py:")


def test_what_a_withheld_site_keeps_does_not_move_on():
    passes = [airlock([RowsBehind(16)]), fr.passes.topk(0.2)]
    _, memory = fitted(passes, look=lambda f: kept(f, "topk.delta"))
    assert [site for site, value in memory.items() if value is None] == list(SMALL)
    _, models = fitted([airlock([RowsBehind(16)])], "ditto", look=lambda f: kept(f, "state"))
    assert [site for site, value in models.items() if value is None] == list(SMALL)


def test_a_report_changes_nothing_and_is_kept_at_the_site():
    found, findings = fitted([airlock(report=[RowsBehind(16), Norm(1e-9)])], look=kept)
    assert found.params_sha256 == fitted([])[0].params_sha256 and not found.failures
    assert findings["h01"]["rows behind the update"] == 11 and findings["h01"]["norm of the update"] > 0


@pytest.mark.parametrize("layout", [
    {"packs": 3}, {"packs": NUM_SITES}, {"group_size": 1}, {"packs": 2, "group_size": 2},
])  # fmt: skip
def test_layouts_give_equal_bits_and_equal_findings(layout):
    passes = [airlock([RowsBehind(16)], [Norm(1.0), Rebuilt()])]
    expected = fitted(passes, look=kept)
    found = fitted(passes, look=kept, **layout)
    assert (found[0].params_sha256, found[0].failures) == (expected[0].params_sha256, expected[0].failures)
    assert found[1] == expected[1]


def test_a_run_is_resumed_with_its_findings(tmp_path):
    passes = [airlock([RowsBehind(16)], [Norm(1.0)])]
    fitted(passes, rounds=2, checkpoint=Checkpoints(tmp_path), packs=3)
    resumed, found = fitted(passes, rounds=4, checkpoint=Checkpoints(tmp_path), resume=True, look=kept)
    whole, expected = fitted(passes, rounds=4, look=kept)
    assert resumed.params_sha256 == whole.params_sha256 and found == expected


def test_a_secure_sum_goes_on_without_who_withholds():
    passes = [
        airlock([RowsBehind(12)]),
        fr.passes.secure_sum(mode="ideal", min_cohort=4, clip=4.0, weight_cap=32),
    ]
    found, _ = fitted(passes)
    assert [record.counted for record in found.metrics] == [4, 4]
    plain, _ = fitted([airlock([RowsBehind(12)])])
    assert (found.params.buffer - plain.params.buffer).abs().max() < 1e-6


def test_too_many_withheld_sites_fail_the_round_as_any_failure_does():
    with pytest.raises(QuorumError, match="3 x withheld.*policy.airlock"):
        fitted([airlock([RowsBehind(16)])], schedule=fr.synchronous(quorum=0.8, retries=0))


CANARIES = Canaries(count=8, seed=5)
ICU = fr.data.synthetic_icu(num_sites=50, scale=1.0, seed=1)
WIDE = fr.learn.mlp(len(ICU.features), hidden=(64,))


def withheld(test, data, epochs, lr):
    local = fr.learn.sgd(WIDE, lr=lr, epochs=epochs, batch_size=32)
    schedule = fr.synchronous(quorum=0.01, retries=0, on_failure="skip")
    with fr.simulate(data) as federation:
        result = fr.fit(
            fr.algorithms.fedavg(local), federation, init=WIDE.init(0), rounds=1, passes=[airlock([test])],
            schedule=schedule,
        )  # fmt: skip
    return {site for site, kind in result.failures if kind == "withheld"}


@pytest.mark.parametrize(("test", "data"), [
    (Exposure(CANARIES), CANARIES.planted(ICU.select(["h002", "h007", "h011"]))),
    (Membership(), ICU.select(["h008", "h010"])),
])  # fmt: skip
def test_what_has_memorised_is_withheld_and_an_honest_update_passes(test, data):
    assert withheld(test, data, 100, 0.2) == set(data)
    assert not withheld(test, data, 1, 0.1)


SECRET = 87.125  # exact in float32


@dataclass(frozen=True)
class Telltale:
    """A test of a site's own that fails with a patient's value in its message."""

    name: ClassVar[str] = "telltale"

    def check(self, leaving):
        raise RuntimeError(f"row {leaving.training_rows['x'][0]}")


@pytest.mark.parametrize("test", [RowsBehind(10**6), Norm(1e-9), Rebuilt(), Telltale()])
def test_no_patient_value_is_in_a_log_a_record_or_the_servers_checkpoint(test, caplog, tmp_path):
    opened = {site: opener() for site, opener in sites(2).items()}
    opened["h00"] = SiteData({"x": torch.full((2, 5), SECRET), "y": torch.tensor([0.0, 1.0])})
    other = SiteData(
        {"x": torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), "y": torch.ones(40)}
    )
    data = {"h00": lambda: opened["h00"], "h01": lambda: other}
    schedule = fr.synchronous(quorum=0.5, retries=0, on_failure="skip")
    with caplog.at_level(logging.DEBUG):
        result, _ = fitted([airlock([test])], data=data, schedule=schedule, checkpoint=Checkpoints(tmp_path))
    assert "h00" in {site for site, _ in result.failures}
    told = [record.getMessage() + str(record.exc_info) for record in caplog.records]
    told += [str(failure) for record in result.metrics for failure in record.failures]
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in told if "87.12" in text] and told


def test_the_site_logs_numbers_for_itself_alone(caplog):
    with caplog.at_level(logging.DEBUG, "fedray.airlock"):
        fitted([airlock([RowsBehind(16)])], rounds=1)
    own = [record for record in caplog.records if record.name == "fedray.airlock.gate"]
    assert {record.levelno for record in own} == {logging.DEBUG}
    assert "h05, round 0: rows behind the update 23, at least 16" in [record.getMessage() for record in own]


VERTICAL = {"vertical_logistic", "vertical_towers", "vertical_towers_sum", "split", "splitfed", "splitfed_v2"}
LORA = {"fedlora", "fedlora_ffa", "fedlora_naive"}
OWN_TRAINING = LORA | {"mime", "fedamp", "fedgkt", "fedmatch", "pretrain", "pseudo_label"}
NO_UPDATE = {"local_only", "one_shot_ensemble", "evaluation", "evaluation_pooled", "moments"}
REFUSED = VERTICAL | OWN_TRAINING | NO_UPDATE


@pytest.mark.parametrize("name", SHIPPED)
def test_an_algorithm_is_tested_or_refused_by_name(name):
    if name not in REFUSED:
        assert "airlock" in fr.compile(SHIPPED[name](), passes=[airlock(report=[Norm(1.0)])]).slots
        return
    with pytest.raises(PassError, match="airlock: no update of a local training leaves"):
        fr.compile(SHIPPED[name](), passes=[airlock(report=[Norm(1.0)])])


def test_only_trainings_that_leave_are_tested():
    plan = fr.compile(ALGORITHMS["ditto"](), passes=[airlock(report=[Norm(1.0)])])
    assert len([node for node in plan.nodes if isinstance(node.fn, Gate)]) == 1


def test_an_airlock_behind_another_pass_is_refused():
    with pytest.raises(PassError, match="put airlock first"):
        fr.compile(ALGORITHMS["fedavg"](), passes=[fr.passes.topk(0.2), airlock(report=[Norm(1.0)])])


PRIVATE = fr.learn.private_sgd(MODEL, lr=0.1, clip=1.0, sampling_rate=0.5, noise_multiplier=1.0, steps=1)
LOCAL_NOISE = fr.passes.site_dp_local(clip=1.0, noise_multiplier=1.0, cohort=6, weights="uniform")
TRUSTED_NOISE = fr.passes.site_dp(clip=1.0, noise_multiplier=1.0, cohort=6, weights="uniform")


@pytest.mark.parametrize(("local", "noise"), [(PRIVATE, []), (LOCAL, [LOCAL_NOISE])])
def test_values_are_no_reason_to_withhold_where_noise_protects_from_the_server(local, noise):
    algorithm = fr.algorithms.fedavg(local)
    with pytest.raises(SecurityConflict, match="withholds by membership advantage.*epsilon of .* not cover"):
        fr.compile(algorithm, passes=[airlock(withhold=[Membership()]), *noise])
    plan = fr.compile(algorithm, passes=[airlock(withhold=[RowsBehind(4)], report=[Membership()]), *noise])
    assert "airlock" in plan.slots


def test_values_are_a_reason_where_the_server_is_trusted_with_them():
    assert fr.compile(ALGORITHMS["fedavg"](), passes=[airlock(withhold=[Membership()]), TRUSTED_NOISE])


def test_a_budget_of_steps_is_looked_through():
    plan = fr.compile(
        fr.algorithms.fedavg(fr.learn.budgeted(LOCAL, {"h00": 1})), passes=[airlock([RowsBehind(2)])]
    )
    assert "airlock" in plan.slots


@pytest.mark.parametrize(("withhold", "report"), [([], []), ([Norm(1.0)], [Norm(2.0)])])
def test_no_test_or_one_twice_is_refused(withhold, report):
    with pytest.raises(ValueError, match="at least one, each once"):
        airlock(withhold, report)


def test_a_policy_withholds_small_batches_and_reports_membership_unless_told_otherwise():
    def gate(**settings):
        plan = fr.compile(ALGORITHMS["fedavg"](), passes=[of_policy(**settings)])
        return next(node.fn for node in plan.nodes if isinstance(node.fn, Gate))

    assert (gate().withhold, gate().report) == ((RowsBehind(32),), (Membership(0.2),))
    strict = gate(min_rows=None, membership=0.1, max_rebuilt=0, max_update_l2=5.0, report=[])
    assert strict.withhold == (Rebuilt(0), Membership(0.1), Norm(5.0)) and not strict.report
    with pytest.raises(ValueError, match=r"report=\['norm'\] are none of min_rows"):
        of_policy(report=["norm"])


@pytest.mark.parametrize(("chosen", "expected"), [
    (["policy=hospital"], ["airlock", "require"]), (["policy=open"], []),
    (["policy=hospital", "policy.airlock=null"], ["require"]),
    (["policy=hospital", "compression=topk"], ["airlock", "topk(0.01)", "require"]),
])  # fmt: skip
def test_the_airlock_of_a_configuration_comes_before_all_other_passes(chosen, expected):
    experiment = config.build(config.compose("experiment=debug", "evaluate.per_site=false", *chosen))
    assert [step.__name__ for step in experiment.passes] == expected


def test_a_finding_of_a_test_of_ones_own_decides():
    @dataclass(frozen=True)
    class Odd:
        name: ClassVar[str] = "odd rows"

        def check(self, leaving):
            return Finding(self.name, len(leaving.training_rows["y"]) % 2, 0.0)

    found, _ = fitted([airlock([Odd()])], rounds=1)
    assert {failure.site for failure in found.metrics[0].failures} == {"h01", "h03", "h05"}


def test_a_site_withholds_in_an_actor_of_ray_as_in_process(ray_session):
    passes = [airlock([RowsBehind(16)], [Norm(1.0)])]
    with fr.simulate(sites(NUM_SITES), runtime="ray", packs=2, placement="actors") as federation:
        found = fr.fit(
            ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=2, passes=passes, schedule=LOSING
        )
    expected, _ = fitted(passes)
    assert (found.params_sha256, found.failures) == (expected.params_sha256, expected.failures)
