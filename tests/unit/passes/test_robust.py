"""Each robust rule beside the loop of its paper, known answers, ties, attacks on the arithmetic itself."""

import itertools

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.errors import QuorumError
from fedray.passes import gram
from fedray.passes.robust import Aggregate
from fedray.passes.stack import Stack, squared_distances
from fedray.rng import SERVER, Key
from tests.unit.passes import robust_papers as papers

P = fr.passes
POINTS = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (10, 10)], float)
KEY = Key(3, 1, SERVER, "robust.delta")


def named(x, dtype=torch.float64):
    return {f"s{i:02d}": torch.from_numpy(np.array(row)).to(dtype) for i, row in enumerate(x)}


def aggregated(robust, x, dtype=torch.float64, **more):
    return Aggregate(robust.rule)(named(x, dtype), KEY, **more)["value"].numpy()


def some_rows(n=13, size=40, seed=0):
    draws = np.random.default_rng(seed)
    rows = draws.normal(size=(n, size)) + 3
    rows[: n // 5] *= -4
    return rows


RULES = {
    "median": (P.median(), papers.median),
    "trimmed_mean": (P.trimmed_mean(2), lambda x: papers.trimmed_mean(x, 2)),
    "krum": (P.krum(2), lambda x: papers.krum(x, 2)),
    "multi_krum": (P.multi_krum(2), lambda x: papers.multi_krum(x, 2, len(x) - 2)),
    "multi_krum_keep": (P.multi_krum(2, 4), lambda x: papers.multi_krum(x, 2, 4)),
    "bulyan": (P.bulyan(2), lambda x: papers.bulyan(x, 2)),
    "rfa": (P.rfa(), papers.weiszfeld),
    "three_sigma": (P.three_sigma(), lambda x: papers.three_sigma(x, 3)),
    "residual_reweighting": (P.residual_reweighting(), papers.residual_reweighting),
    "nnm": (P.nnm(2), lambda x: papers.trimmed_mean(papers.nearest_mixed(x, 2), 2)),
    "nnm_median": (P.nnm(2, P.median()), lambda x: papers.median(papers.nearest_mixed(x, 2))),
    "nnm_krum": (P.nnm(2, P.krum(2)), lambda x: papers.krum(papers.nearest_mixed(x, 2), 2)),
    "norm_bound": (P.norm_bound(), papers.norm_bound),
    "norm_bound_fixed": (P.norm_bound(5.0), lambda x: papers.norm_bound(x, 5.0)),
    "centred_clipping": (P.centred_clipping(), lambda x: papers.centred_clipping(x, np.zeros(x.shape[1]))),
    "centred_clipping_3": (
        P.centred_clipping(3, 2.0), lambda x: papers.centred_clipping(x, np.zeros(x.shape[1]), 3, 2.0)
    ),
    "foolsgold": (P.foolsgold(), lambda x: papers.foolsgold(x, x)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_the_loop_of_its_paper(name):
    robust, paper = RULES[name]
    for seed in range(3):
        x = some_rows(seed=seed)
        assert np.abs(aggregated(robust, x) - paper(x)).max() < 1e-12


@pytest.mark.parametrize("inner", ["median", "trimmed_mean", "rfa", "krum"])
def test_bucketing_equals_its_loop_on_the_order_of_the_round(inner):
    robust, paper = RULES[inner]
    x = some_rows(15)
    order = torch.randperm(15, generator=KEY.generator()).tolist()
    found = aggregated(P.bucketing(2, robust), x)
    assert np.abs(found - paper(papers.bucketed(x, 2, order))).max() < 1e-12


def test_fltrust_equals_its_loop():
    x, own = some_rows(), np.random.default_rng(5).normal(size=40) + 1
    robust = P.fltrust(None, {})
    found = aggregated(robust, x, root=torch.from_numpy(own))
    assert np.abs(found - papers.fltrust(x, own)).max() < 1e-12


def test_rules_with_memory_go_on_from_it():
    first, second = some_rows(seed=1), some_rows(seed=2)
    for robust in (P.centred_clipping(), P.foolsgold()):
        kept = Aggregate(robust.rule)(named(first), KEY)["memory"]
        found = aggregated(robust, second, memory=kept)
        if robust.rule.title == "foolsgold":
            expected = papers.foolsgold(second, first + second)
        else:
            expected = papers.centred_clipping(second, papers.centred_clipping(first, np.zeros(40)))
        assert np.abs(found - expected).max() < 1e-12


def test_five_points_have_their_known_answers():
    stack = Stack([f"s{i}" for i in range(5)], [[torch.from_numpy(point)] for point in POINTS])
    scores = gram.krum_scores(squared_distances(stack.gram), 2)
    assert np.allclose(scores, [2, 2, 2, 2, 343], rtol=0, atol=1e-11)
    assert aggregated(P.krum(1), POINTS).tolist() == [0, 0]
    assert aggregated(P.multi_krum(1, 4), POINTS).tolist() == [0.5, 0.5]
    assert np.allclose(aggregated(P.trimmed_mean(1), POINTS), 2 / 3, rtol=0, atol=1e-15)
    assert aggregated(P.median(), POINTS).tolist() == [1, 1]
    assert np.allclose(aggregated(P.rfa(500), POINTS), 0.788675, rtol=0, atol=5e-7)


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e15])
@pytest.mark.parametrize("num_bad", [1, 4, 5])
def test_the_geometric_median_stays_near_honest_sites_however_far_the_others_lie(scale, num_bad):
    x = np.random.default_rng(0).normal(size=(11, 200))
    honest = x[num_bad:].mean(0)
    x[:num_bad] = scale
    spread = np.linalg.norm(x[num_bad:] - honest, axis=1).max()
    assert np.linalg.norm(aggregated(P.rfa(), x, torch.float32) - honest) < 2 * spread


def test_a_site_that_is_far_does_not_hide_behind_one_that_is_farther():
    x = np.random.default_rng(0).normal(size=(13, 20))
    x[0], x[1:3] = 2e17, 5e8  # beside them a row 30 away has the digits of a neighbour in float32
    x[3:5] = x[5:].mean(0) + 7 * np.where(np.arange(20) % 2, 1, -1)
    for robust in (P.krum(5), P.multi_krum(5), P.nnm(5)):
        assert np.linalg.norm(aggregated(robust, x, torch.float32) - x[5:].mean(0)) < 6


def test_equal_scores_go_to_the_first_site_by_id():
    for corner in range(4):  # the four corners of the square have equal scores
        turned = np.roll(POINTS[:4], corner, axis=0)
        for dtype in (torch.float32, torch.float64):
            found = aggregated(P.krum(1), np.vstack([turned, POINTS[4]]), dtype)
            assert found.tolist() == turned[0].tolist()


@pytest.mark.parametrize("name", RULES)
def test_rows_in_another_order_give_the_same_result(name):
    robust, _ = RULES[name]
    x = some_rows()
    shuffled = x[np.random.default_rng(7).permutation(len(x))]
    assert np.abs(aggregated(robust, x) - aggregated(robust, shuffled)).max() < 1e-12
    backwards = dict(reversed(named(x).items()))
    again = Aggregate(robust.rule)(backwards, KEY)["value"].numpy()
    assert again.tobytes() == aggregated(robust, x).tobytes()


@pytest.mark.parametrize("robust", [P.trimmed_mean(0), P.multi_krum(0), P.bulyan(0), P.nnm(0)])
def test_without_attackers_a_rule_is_the_mean(robust):
    x = some_rows()
    assert np.abs(aggregated(robust, x) - x.mean(0)).max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_sites_that_all_send_the_same_get_it_back(name):
    robust, _ = RULES[name]
    row = np.random.default_rng(1).normal(size=40)
    if name in ("norm_bound_fixed", "centred_clipping_3"):
        row /= 10  # within their fixed bounds
    if name == "foolsgold":
        assert not aggregated(robust, np.tile(row, (13, 1))).any()  # Sybils, all of them
        return
    assert np.abs(aggregated(robust, np.tile(row, (13, 1))) - row).max() < 1e-12


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"norm_bound", "norm_bound_fixed", "foolsgold"}))
def test_two_sites_cannot_take_the_result_away_from_the_others(name):
    robust, _ = RULES[name]
    x = np.random.default_rng(2).normal(size=(13, 40))
    x[[4, 9]] = 1e6
    others = np.delete(x, [4, 9], 0).mean(0)
    assert np.linalg.norm(aggregated(robust, x) - others) < 8.0  # one site alone lies 6.3 out
    assert np.linalg.norm(x.mean(0)) > 1e5


def test_distances_survive_a_common_base_that_is_long():
    draws = np.random.default_rng(0)
    base = draws.normal(size=10_000)
    models = 5000 * base / np.linalg.norm(base) + draws.normal(size=(50, 10_000)) / 10
    expected = ((models[0].astype(np.float32).astype(float) - models[1].astype(np.float32)) ** 2).sum()
    stack = Stack([f"s{i}" for i in range(50)], [[row] for row in named(models, torch.float32).values()])
    assert abs(squared_distances(stack.gram)[0, 1] / expected - 1) < 1e-6
    assert abs(squared_distances(stack.inner)[0, 1] / expected - 1) > 1e-3


def test_an_enormous_update_does_not_blur_the_distances_of_the_others():
    x = np.random.default_rng(0).normal(size=(20, 5000)).astype(np.float32)
    x[:8] = 1e9
    stack = Stack([f"s{i}" for i in range(20)], [[row] for row in torch.from_numpy(x)])
    expected = ((x[10].astype(float) - x[11]) ** 2).sum()
    assert abs(squared_distances(stack.gram)[10, 11] / expected - 1) < 1e-5
    assert np.flatnonzero(gram.krum(stack.gram, 8, 1, 1e-5))[0] >= 8


def test_the_gram_matrix_of_two_shards_is_their_sum():
    x = some_rows(seed=4)
    parts = [Stack([str(i) for i in range(13)], [[torch.from_numpy(row[cut])] for row in x])
             for cut in (slice(0, 17), slice(17, 40))]
    whole = Stack([str(i) for i in range(13)], [[torch.from_numpy(row)] for row in x])
    assert np.abs(parts[0].gram + parts[1].gram - whole.gram).max() < 1e-11


def test_a_value_of_several_leaves_is_one_row_and_comes_back_in_its_form():
    x = some_rows()
    values = {
        name: {"w": tree.flatten({"a": row[:5], "b": row[5:39].view(2, 17)}), "n": float(row[39]), "no": None}
        for name, row in named(x).items()
    }
    for name in ("krum", "median", "rfa"):
        found = Aggregate(RULES[name][0].rule)(values)["value"]
        flat = np.concatenate([found["w"]["a"], found["w"]["b"].ravel(), [found["n"]]])
        assert np.abs(flat - aggregated(RULES[name][0], x)).max() < 1e-12
        assert found["no"] is None and isinstance(found["w"], tree.Flat)


def test_many_columns_are_taken_block_by_block(monkeypatch):
    x = some_rows(size=100)
    whole = {name: aggregated(robust, x) for name, (robust, _) in RULES.items()}
    monkeypatch.setattr("fedray.passes.stack.BLOCK", 7)
    for name, (robust, _) in RULES.items():
        assert np.abs(aggregated(robust, x) - whole[name]).max() < 1e-12, name


@pytest.mark.parametrize("name", RULES)
def test_half_precision_and_single_precision_come_back_as_they_were(name):
    robust, paper = RULES[name]
    x = some_rows()
    found = Aggregate(robust.rule)(named(x, torch.float32), KEY)["value"]
    assert found.dtype == torch.float32 and np.abs(found.numpy() - paper(x)).max() < 1e-4
    assert Aggregate(robust.rule)(named(x, torch.bfloat16), KEY)["value"].dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e38])
def test_a_row_that_is_no_row_of_numbers_is_left_out(wrong):
    x = named(some_rows(), torch.float32)
    without = Aggregate(P.median().rule)({name: row for name, row in x.items() if name != "s03"})["value"]
    broken = {**x, "s03": torch.full((40,), wrong)}
    assert torch.equal(Aggregate(P.median().rule)(broken)["value"], without)
    for other in (torch.zeros(39), {"a": torch.zeros(40)}, None):
        assert torch.equal(Aggregate(P.median().rule)({**x, "s03": other})["value"], without)
    with pytest.raises(QuorumError, match="none of 2 sites sent finite numbers"):
        Aggregate(P.median().rule)({"a": torch.full((3,), wrong), "b": torch.full((3,), wrong)})


@pytest.mark.parametrize(("robust", "least"), [
    (P.trimmed_mean(2), 5), (P.krum(2), 7), (P.multi_krum(2), 7), (P.bulyan(2), 11),
    (P.nnm(2, P.median()), 5), (P.nnm(2, P.krum(2)), 7), (P.foolsgold(), 2), (P.krum(0.25), 7),
    (P.bucketing(2, P.trimmed_mean(2)), 9),
])
def test_too_few_sites_for_a_rule_are_a_quorum_error(robust, least):
    x = np.random.default_rng(0).normal(size=(least, 4))
    assert aggregated(robust, x).shape == (4,)
    with pytest.raises(QuorumError, match="assume fewer attackers"):
        aggregated(robust, x[1:])


@pytest.mark.parametrize("make", [
    lambda: P.krum(-1), lambda: P.krum(0.5), lambda: P.trimmed_mean(True),
    lambda: P.multi_krum(1, 0), lambda: P.rfa(0), lambda: P.rfa(smoothing=0), lambda: P.three_sigma(0),
    lambda: P.norm_bound(0), lambda: P.centred_clipping(0), lambda: P.bucketing(0),
    lambda: P.bucketing(2, P.topk(0.1)), lambda: P.nnm(1, P.norm_bound(1.0)),
    lambda: P.residual_reweighting(0),
])
def test_settings_that_cannot_be_meant_are_refused(make):
    with pytest.raises(ValueError, match=r"^\w+: "):
        make()


def test_foolsgold_in_buckets_is_refused():
    with pytest.raises(ValueError, match="use it alone"):
        aggregated(P.bucketing(2, P.foolsgold()), some_rows())


def test_a_share_of_attackers_is_rounded_up_and_counts_sites_not_buckets():
    from fedray.passes.robust import attackers_among

    stack = Stack([str(i) for i in range(10)], [[torch.zeros(1)]] * 10)
    assert [attackers_among(share, stack) for share in (0.0, 0.1, 0.2, 0.25, 0.3)] == [0, 1, 2, 3, 3]
    assert attackers_among(0.2, stack.mixed(np.full((5, 10), 0.1))) == 2


def test_means_of_groups_are_rows_like_any_other():
    x = some_rows()
    groups = {f"group{i}": torch.from_numpy(x[i::3].mean(0)) for i in range(3)}
    found = Aggregate(P.median().rule)(groups)["value"].numpy()
    assert np.abs(found - np.median([x[i::3].mean(0) for i in range(3)], axis=0)).max() < 1e-12


def test_every_rule_asks_for_each_sites_value():
    from fedray.core.graph import Label

    assert {Aggregate(robust.rule).needs for robust, _ in RULES.values()} == {Label.VISIBLE}


def test_equal_numbers_around_a_median_are_taken_as_in_the_loop():
    draws = np.random.default_rng(3)
    for n, f in itertools.product((7, 8, 11), (0, 1)):
        x = draws.integers(0, 4, size=(n, 30)).astype(float)
        from fedray.passes.coordinate import around_median

        for count in range(1, n + 1):
            expected = []
            for column in np.sort(x, axis=0).T:
                near = np.argsort(np.abs(column - np.median(column)), kind="stable")[:count]
                expected.append(column[near].mean())
            assert np.abs(around_median(torch.from_numpy(x), count).numpy() - expected).max() < 1e-12, f
