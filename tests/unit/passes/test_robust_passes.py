"""Robust rules as passes of a round: what leaves, bits in every layout, composition, refusals, resuming."""

import numpy as np
import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.core.trace import trace
from fedray.errors import PassError, QuorumError, SecurityConflict
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.test_egress import promised
from tests.unit.passes import robust_papers as papers
from tests.unit.passes.cases import fedavg_by_hand, trained, vector
from tests.unit.passes.stacks import ALGORITHMS, LOCAL, MODEL, NUM_SITES, P, fitted
from tests.unit.runtime.toy import sites

ROBUST = {
    "median": P.median, "trimmed_mean": lambda: P.trimmed_mean(1), "krum": lambda: P.krum(1),
    "multi_krum": lambda: P.multi_krum(1), "bulyan": lambda: P.bulyan(0), "rfa": P.rfa,
    "three_sigma": P.three_sigma, "residual_reweighting": P.residual_reweighting,
    "bucketing": lambda: P.bucketing(2, P.median()), "nnm": lambda: P.nnm(1), "norm_bound": P.norm_bound,
    "norm_bound_fixed": lambda: P.norm_bound(0.05), "centred_clipping": P.centred_clipping,
    "foolsgold": P.foolsgold, "fltrust": lambda: P.fltrust(LOCAL, sites(1)["h00"]),
    "quarantine": lambda: P.quarantine(P.rfa()),
}  # fmt: skip


@pytest.mark.parametrize("name", ROBUST)
def test_a_rule_trains_and_names_and_bytes_that_left_are_those_of_egress(name):
    result, sent = fitted([ROBUST[name]()], packs=3, look=lambda f: dict(f.aggregator.root.bytes_up))
    assert [record.counted for record in result.metrics] == [NUM_SITES] * 2 and not result.failures
    assert result.row_invariant is True
    (delta,) = [row for row in egress_rows(result.plan) if row["name"] == "delta"]
    assert (delta["kind"], delta["visible"]) == ("gather", "yes")
    assert "delta.weight" not in sent
    expected = promised(egress_rows(result.plan), [2, 2, 2])
    assert sent["delta"] == 2 * NUM_SITES * delta["site_bytes"]
    assert {row: size for row, size in sent.items() if row != "delta"} == {
        row: 2 * size for row, size in expected.items() if row != "delta"
    }


@pytest.mark.parametrize("name", ROBUST)
def test_layouts_give_equal_bits(name):
    whole, _ = fitted([ROBUST[name]()], rounds=2)
    for layout in ({"packs": NUM_SITES}, {"group_size": 1}, {"packs": 2, "group_size": 2}):
        assert fitted([ROBUST[name]()], rounds=2, **layout)[0].params_sha256 == whole.params_sha256, layout


def test_updates_with_noise_of_their_sites_are_those_of_each_site():
    local = fr.learn.private_sgd(MODEL, 0.1, sampling_rate=0.5, noise_multiplier=1.0, steps=1)
    for rule in (P.median(), P.nnm(1), P.quarantine(P.rfa())):
        fr.compile(fr.algorithms.fedavg(local), [rule])
    with pytest.raises(SecurityConflict, match="secure_sum exposes only their sum"):
        fr.compile(fr.algorithms.fedavg(local), [P.median(), P.secure_sum()])


PAPERS = {
    "median": papers.median,
    "trimmed_mean": lambda x: papers.trimmed_mean(x, 1),
    "rfa": papers.weiszfeld,
    "norm_bound_fixed": lambda x: papers.norm_bound(x, 0.05),
}


@pytest.mark.parametrize("name", PAPERS)
def test_fedavg_with_a_rule_is_the_loop_with_the_rule_in_place_of_the_weighted_mean(name):
    def by_hand(t, updates, weights):
        return PAPERS[name](np.array([updates[site] for site in sorted(updates)]))

    result, _ = trained([ROBUST[name]()])
    assert np.abs(vector(result.params) - fedavg_by_hand(by_hand)).max() < 1e-12


def test_centred_clipping_starts_a_round_from_the_result_of_the_last_one():
    centre = np.zeros(24)

    def by_hand(t, updates, weights):
        nonlocal centre
        centre = papers.centred_clipping(np.array([updates[site] for site in sorted(updates)]), centre)
        return centre

    result, _ = trained([P.centred_clipping()])
    assert np.abs(vector(result.params) - fedavg_by_hand(by_hand)).max() < 1e-12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["median", "multi_krum", "fltrust", "quarantine"])
def test_every_algorithm_trains_with_a_rule_unedited(algorithm, name):
    result, _ = fitted([ROBUST[name]()], algorithm)
    assert [record.counted for record in result.metrics] == [NUM_SITES] * 2


@pytest.mark.parametrize("name", ROBUST)
def test_other_reductions_are_left_untouched(name):
    graph = trace(ALGORITHMS["scaffold"]())
    passed = ROBUST[name]()(graph)
    before = {node.name: node for node in graph.reductions if node.name not in ("delta", "count")}
    after = {node.name: node for node in passed.reductions}
    assert all(after[other] is node for other, node in before.items()) and before


def test_a_rule_takes_several_means_each_by_itself():
    result, _ = fitted([P.median(only=("delta", "drift"))], "scaffold")
    kinds = {row["name"]: row["kind"] for row in egress_rows(result.plan)}
    assert kinds == {"delta": "gather", "drift": "gather", "metrics": "sum", "metrics.weight": "sum"} or (
        kinds["delta"] == kinds["drift"] == "gather"
    )


@pytest.mark.parametrize("name", ROBUST)
def test_what_a_rule_bears_with_is_a_line_of_the_trust_statement(name):
    plan = fr.compile(ALGORITHMS["fedavg"](), [ROBUST[name]()])
    (claim,) = plan.graph.claims
    assert claim.text.startswith("delta is aggregated so that it bears with ")
    assert f"{claim.by}: {claim.text}" in fr.explain(plan)
    assert not claim.is_hidden and claim.but


def test_a_name_that_no_mean_has_is_refused():
    with pytest.raises(PassError, match="found no mean named"):
        fr.compile(ALGORITHMS["fedavg"](), [P.median(only=("gradient",))])


@pytest.mark.parametrize("compression", [P.topk(0.2), P.qsgd(7), P.randk(0.2), P.scaled_sign()])
def test_what_was_compressed_travels_coded_and_is_aggregated_decoded(compression):
    result, _ = fitted([compression, P.median()], packs=NUM_SITES)
    plain, _ = fitted([P.median()], packs=NUM_SITES)
    size = {row["name"]: row["site_bytes"] for row in egress_rows(result.plan)}["delta"]
    whole = {row["name"]: row["site_bytes"] for row in egress_rows(plain.plan)}["delta"]
    assert size < whole / 2
    assert result.params_sha256 == fitted([compression, P.median()])[0].params_sha256


def test_fewer_sites_than_a_rule_needs_end_the_round_and_leave_the_state():
    with pytest.raises(QuorumError, match=r"krum\(2\): 6 rows delivered and 7 are needed"):
        fitted([P.krum(2)])


def test_a_site_that_is_not_finite_leaves_the_bits_of_a_run_that_never_asked_it():
    from tests.unit.passes.test_rules import ToyNet, without
    from tests.unit.runtime.toy import Breaks

    found = []
    for data, local in ((sites(NUM_SITES), Breaks(ToyNet(), ("h03",), 0, "nan")), (without("h03"), ToyNet())):
        with fr.simulate(data, packs=2) as federation:
            result = fr.fit(
                fr.algorithms.fedavg(local), federation, init=MODEL.init(0), rounds=1, passes=[P.krum(1)],
                schedule=fr.synchronous(quorum=0.5),
            )
            found.append(result.params_sha256)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["centred_clipping", "foolsgold", "quarantine", "bucketing"])
def test_a_run_is_resumed_with_what_a_rule_remembers(name, tmp_path):
    def run(rounds, **more):
        with fr.simulate(sites(NUM_SITES), packs=more.pop("packs", 1)) as federation:
            return fr.fit(
                ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=rounds,
                passes=[ROBUST[name]()], schedule=fr.synchronous(cohort=4), **more,
            )

    run(3, packs=3, checkpoint=Checkpoints(tmp_path))
    resumed = run(5, checkpoint=Checkpoints(tmp_path), resume=True)
    assert resumed.params_sha256 == run(5).params_sha256


def test_a_fixed_bound_is_kept_where_the_update_is_and_checked_at_the_server():
    shown = fr.explain(fr.compile(ALGORITHMS["fedavg"](), [P.norm_bound(0.05)]))
    assert shown.index("map ClipByNorm") < shown.index("gather 'delta'") < shown.index("apply Aggregate")


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "nnm"])
def test_a_rule_compares_the_means_of_groups_where_sums_are_secure(name):
    groups = P.group_secure_sum(5, mode="ideal", min_cohort=3)
    with fr.simulate(sites(15)) as federation:
        result = fr.fit(
            ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=2, passes=[ROBUST[name](), groups]
        )
    assert [record.counted for record in result.metrics] == [15, 15] and result.row_invariant is True
    assert not any(row["visible"] == "yes" and row["name"] == "delta" for row in egress_rows(result.plan))


@pytest.mark.parametrize("name", ["foolsgold", "quarantine"])
def test_a_rule_that_knows_sites_again_is_refused_over_groups_that_are_drawn_anew(name):
    groups = P.group_secure_sum(5, mode="ideal", min_cohort=3)
    with pytest.raises(SecurityConflict, match=r"remembers sites .* Fix: "):
        fr.compile(ALGORITHMS["fedavg"](), [ROBUST[name](), groups])


@pytest.mark.parametrize("name", ["krum", "quarantine"])
def test_a_rule_is_refused_beside_one_sum_that_hides_its_rows(name):
    with pytest.raises(SecurityConflict, match=f"{name}.*needs per-site updates at the server"):
        fr.compile(ALGORITHMS["fedavg"](), [ROBUST[name](), P.secure_sum(mode="ideal")])


def test_fltrust_needs_to_see_which_parameters_the_sites_start_from():
    def round(server, site):
        return fr.Outputs(server=fr.mean(fr.map(lambda rng: 1.0, site.rng), name="delta"))

    with pytest.raises(PassError, match="0 broadcasts named 'params'"):
        fr.compile(fr.Algorithm(lambda params: params, round), [ROBUST["fltrust"]()])


def test_rounds_differ_in_their_buckets():
    found = [fitted([P.bucketing(3, P.median())], rounds=rounds)[0].params_sha256 for rounds in (1, 2)]
    assert found[0] != found[1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnm", "bulyan", "centred_clipping"])
def test_two_ray_actors_give_the_bits_of_one_process(ray_session, name):
    on_ray, _ = fitted([ROBUST[name]()], rounds=3, runtime="ray", packs=2, placement="actors")
    assert on_ray.params_sha256 == fitted([ROBUST[name]()], rounds=3)[0].params_sha256
