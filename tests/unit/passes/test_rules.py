"""What holds for every compression pass: bytes, bits in every layout, draws, memories, refusals."""

import os

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.explain import egress_rows
from fedray.core.trace import trace
from fedray.learn.update import Update
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.test_egress import GOLDEN, promised
from tests.unit.passes.cases import INIT, memory, trained, vector
from tests.unit.passes.stacks import ALGORITHMS, MODEL, NUM_SITES, PASSES, P, fitted
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import NUM_FEATURES, Breaks, ToyLocal, sites


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_with_every_pass_unedited(algorithm, name):
    result, _ = fitted([PASSES[name]()], algorithm)
    assert [record.counted for record in result.metrics] == [NUM_SITES] * 2 and not result.failures
    assert result.row_invariant is True


@pytest.mark.parametrize("packs", [1, 3, NUM_SITES])
@pytest.mark.parametrize("name", PASSES)
def test_names_and_bytes_that_left_are_those_of_egress(name, packs):
    result, sent = fitted([PASSES[name]()], packs=packs, look=lambda f: dict(f.aggregator.root.bytes_up))
    expected = promised(egress_rows(result.plan), [NUM_SITES // packs] * packs)
    assert sent == {row: 2 * size for row, size in expected.items()}
    alone = sum(row["site_bytes"] for row in egress_rows(result.plan))
    assert [record.site_bytes for record in result.metrics] == [NUM_SITES * alone] * 2
    if packs == NUM_SITES:
        assert result.bytes_up == 2 * NUM_SITES * alone


def test_bytes_of_a_site_are_as_many_as_the_form_of_its_update_needs():
    n = 5 * 16 + 16 + 16 + 1  # numbers of the model, in float32
    found = {}
    for name in PASSES:
        result, _ = fitted([PASSES[name]()], packs=NUM_SITES)
        found[name] = {row["name"]: row["site_bytes"] for row in egress_rows(result.plan)}
    kept = -(-n // 5)
    assert found["topk"]["delta"] == found["ef21"]["delta"] == 4 * kept + -(-7 * kept // 8)
    assert found["randk"]["delta"] == found["randk_unbiased"]["delta"] == 4 * kept
    assert found["qsgd"]["delta"] == 4 + -(-4 * n // 8)
    assert found["qsgd_buckets"]["delta"] == 4 * -(-n // 10) + -(-4 * n // 8)
    assert found["sign"]["delta"] == -(-n // 8) == found["scaled_sign"]["delta"] - 4
    assert (found["powersgd"]["delta.left"], found["powersgd"]["delta"]) == (4 * 16, 4 * (5 + 16 + 16 + 1))


@pytest.mark.parametrize("name", PASSES)
def test_the_list_of_what_leaves_is_the_golden_one(name):
    result, _ = fitted([PASSES[name]()], rounds=1)
    text = fr.egress(result.plan).replace(result.plan.digest[:8], "········") + "\n"
    path = GOLDEN.parent / "egress_passes" / f"{name}.txt"
    if os.environ.get("FEDRAY_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_a_fast_sum_sends_a_lone_sites_update_uncoded_and_says_so():
    schedule = fr.synchronous(cohort=1.0)
    with fr.simulate(sites(NUM_SITES), packs=NUM_SITES) as federation:
        result = fr.fit(
            ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=2, passes=[P.topk(0.2)],
            schedule=schedule, fold="fast",
        )
    (delta,) = [row for row in egress_rows(result.plan) if row["name"] == "delta"]
    assert delta["site_bytes"] == tree.nbytes(MODEL.init(0))
    assert [record.bytes_up for record in result.metrics] == [record.site_bytes for record in result.metrics]


def test_what_goes_down_is_counted_as_it_travels():
    plain, _ = fitted([], packs=NUM_SITES)
    down, _ = fitted([P.quantised_broadcast(15, bucket=None)], packs=NUM_SITES)
    assert plain.metrics[0].bytes_down == NUM_SITES * tree.nbytes(MODEL.init(0))
    assert down.metrics[0].bytes_down == NUM_SITES * (4 + -(-5 * 113 // 8))


def test_a_followed_model_goes_whole_only_to_hosts_that_missed_a_round():
    whole, message = tree.nbytes(MODEL.init(0)), 2 * 32 + 23 * 4 + -(-23 * 7 // 8)  # 23 of 113 numbers
    schedule = fr.synchronous(cohort=4, sampling="cyclic")  # 0123, 4501, 2345
    with fr.simulate(sites(NUM_SITES), packs=NUM_SITES) as federation:
        result = fr.fit(
            ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=3, schedule=schedule,
            passes=[P.ef21_broadcast(0.2)],
        )
    assert [record.bytes_down for record in result.metrics] == [
        4 * (2 * 32 + whole), 4 * message + 2 * whole, 4 * message + 2 * whole
    ]  # fmt: skip
    everybody, _ = fitted([P.ef21_broadcast(0.2)], rounds=3, packs=NUM_SITES)
    assert [record.bytes_down for record in everybody.metrics[1:]] == [NUM_SITES * message] * 2


@pytest.mark.parametrize("name", PASSES)
def test_layouts_give_equal_bits(name):
    whole, _ = fitted([PASSES[name]()], rounds=3)
    for layout in ({"packs": 3}, {"packs": NUM_SITES}, {"group_size": 1}, {"packs": 2, "group_size": 2},
                   {"regions": {"eu": ["h00", "h01"], "us": ["h02", "h03", "h04", "h05"]}}):
        assert fitted([PASSES[name]()], rounds=3, **layout)[0].params_sha256 == whole.params_sha256, layout


@pytest.mark.parametrize("compression", [P.topk(1.0), P.randk(1.0), P.randk(1.0, False), P.ef21(1.0)])
def test_a_pass_that_leaves_nothing_out_changes_nothing(compression):
    whole, _ = fitted([compression])
    plain, _ = fitted([])
    assert (whole.params.buffer - plain.params.buffer).abs().max() < 1e-7


@pytest.mark.parametrize("name", sorted(PASSES.keys() - {"bidirectional"}))
def test_a_pass_does_not_change_the_algorithms_draws(name):
    # the first round starts from the same model, so its losses are equal if its batches are
    passed, plain = (fitted(passes, rounds=1)[0] for passes in ([PASSES[name]()], []))
    assert passed.metrics[0].metrics == plain.metrics[0].metrics


@pytest.mark.parametrize("name", PASSES)
def test_a_site_that_breaks_leaves_the_bits_of_a_run_that_never_asked_it(name):
    local = Breaks(ToyNet(), ("h03",), 0, "nan")
    found = []
    for data, update in ((sites(NUM_SITES), local), (without("h03"), ToyNet())):
        with fr.simulate(data, packs=2) as federation:
            result = fr.fit(
                fr.algorithms.fedavg(update), federation, init=MODEL.init(0), rounds=1,
                passes=[PASSES[name]()], schedule=fr.synchronous(quorum=0.5),
            )
            found.append(result.params_sha256)
    assert found[0] == found[1]


def without(lost):
    return {site: opened for site, opened in sites(NUM_SITES).items() if site != lost}


class ToyNet:
    """One step of noise for the model of this file, from the site's own stream."""

    lr = 0.1

    def __call__(self, params, data, rng):
        noise = torch.randn(params.buffer.shape, generator=rng.generator())
        delta = tree.flatten({name: value.clone() for name, value in tree.Flat(noise, params.schema).items()})
        return Update(delta, data.train.num_rows, 1, {"loss": 0.0})


@pytest.mark.parametrize("name", PASSES)
def test_other_reductions_are_left_untouched(name):
    graph = trace(ALGORITHMS["scaffold"]())
    passed = PASSES[name]()(graph)
    before = {node.name: node for node in graph.reductions if node.name not in ("delta", "count")}
    after = {node.name: node for node in passed.reductions}
    if name not in ("bidirectional", "ef21_broadcast"):  # what follows from the broadcast is rebuilt
        assert all(after[other] is node for other, node in before.items())
    assert set(before) <= set(after) and before


@pytest.mark.parametrize("name", ["topk", "randk", "scaled_sign", "ef21", "powersgd"])
def test_a_run_is_resumed_with_the_memories_of_sites_and_server(name, tmp_path):
    def run(rounds, **more):
        with fr.simulate(sites(NUM_SITES), packs=more.pop("packs", 1)) as federation:
            return fr.fit(
                ALGORITHMS["fedavg"](), federation, init=MODEL.init(0), rounds=rounds,
                passes=[PASSES[name]()], schedule=fr.synchronous(cohort=4), **more,
            )

    run(3, packs=3, checkpoint=Checkpoints(tmp_path))
    resumed = run(6, checkpoint=Checkpoints(tmp_path), resume=True)
    assert resumed.params_sha256 == run(6).params_sha256


class Given:
    """A local update that does not train: what it sends depends on site and round alone."""

    lr = 0.1

    def __call__(self, params, data, rng):
        return Update(tree.flatten(update_of(rng.site, rng.round)), 1, 1, {"loss": 0.0})


def update_of(site, round):
    draws = np.random.default_rng([ord(site), round])
    return {name: torch.from_numpy(draws.normal(size=tuple(value.shape))) for name, value in INIT.items()}


@pytest.mark.parametrize("name", ["topk", "randk", "scaled_sign", "powersgd"])
def test_what_was_sent_and_what_is_remembered_is_what_was_computed(name):
    slot = f"{name}.delta"
    total = {}
    for site in "abcde":  # alone, so that the server's model is the sum of what the site has sent
        result, kept = alone(site, PASSES[name]())
        computed = sum(vector(update_of(site, round)) for round in range(8))
        total[site] = np.abs(vector(result.params) + kept[slot] - computed).max()
        assert np.abs(kept[slot]).max() > 0.1
    assert max(total.values()) < 1e-12


def alone(site, compression):
    from tests.unit.passes.cases import sites as five

    with fr.simulate({site: five()[site]}) as federation:
        result = fr.fit(
            fr.algorithms.fedavg(Given()), federation, init=INIT, rounds=8, passes=[compression]
        )
        federation.aggregator.root.commit([])
        (pack,) = federation.aggregator.root.transport.hosts.values()
        return result, {slot: vector(pack.state_of(site, slot)) for slot in result.plan.slots}


def test_a_site_that_is_not_counted_keeps_its_memory():
    before = memory("topk.delta")
    _, kept = trained([P.topk(0.2)], rounds=1, look=before)
    assert {site for site, value in kept.items() if value is None} == {"d", "e"}
    broken = train_broken(rounds=2)
    assert np.array_equal(broken[0]["h03"], broken[1]["h03"])
    assert not np.array_equal(broken[0]["h04"], broken[1]["h04"])


def train_broken(rounds):
    """Return every site's memory after each round; h03 sends numbers that are not finite in the second."""
    seen = []
    with fr.simulate(sites(NUM_SITES)) as federation:
        (pack,) = federation.aggregator.root.transport.hosts.values()

        class Look:
            def start(self, plan, facts):
                pass

            def round(self, record):
                federation.aggregator.root.commit([])
                seen.append({site: pack.state_of(site, "topk.delta").buffer.numpy() for site in pack.sites})

            def finish(self, result):
                pass

        fr.fit(
            averaging(Breaks(ToyLocal(), ("h03",), 1, "nan")), federation, tracker=Look(), rounds=rounds,
            init={"w": torch.zeros(NUM_FEATURES), "b": torch.zeros(())}, passes=[P.topk(0.5)],
        )
    return seen
