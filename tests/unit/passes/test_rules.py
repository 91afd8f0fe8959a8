"""What holds for every compression pass: bytes, bits in every layout, draws, memories, refusals."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.explain import egress_rows
from fedray.core.graph import Op, Placement
from fedray.core.rewrite import refuse_coded
from fedray.core.trace import trace
from fedray.errors import PassError
from fedray.learn.update import Update
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.test_egress import promised
from tests.unit.passes.cases import INIT, memory, trained, vector
from tests.unit.runtime.test_round import averaging
from tests.unit.runtime.toy import NUM_FEATURES, Breaks, ToyLocal, sites

P = fr.passes
PASSES = {
    "topk": lambda: P.topk(0.2),
    "randk": lambda: P.randk(0.2),
    "randk_unbiased": lambda: P.randk(0.2, error_feedback=False),
    "qsgd": lambda: P.qsgd(7),
    "qsgd_buckets": lambda: P.qsgd(7, bucket=10),
    "sign": lambda: P.sign(0.01, weights="uniform"),
    "scaled_sign": P.scaled_sign,
    "ef21": lambda: P.ef21(0.2),
    "powersgd": lambda: P.powersgd(1),
    "bidirectional": lambda: P.bidirectional(P.topk(0.2), P.quantised_broadcast(15, bucket=10)),
}
MODEL = fr.learn.mlp(NUM_FEATURES, hidden=(16,))
LOCAL = fr.learn.sgd(MODEL, lr=0.1, epochs=1, batch_size=4)
NUM_SITES = 6
ALGORITHMS = {
    "fedavg": lambda: fr.algorithms.fedavg(LOCAL),
    "fedadam": lambda: fr.algorithms.fedavg(LOCAL, fr.learn.optimizer.adam(0.01)),
    "fedprox": lambda: fr.algorithms.fedprox(LOCAL, mu=0.1),
    "scaffold": lambda: fr.algorithms.scaffold(LOCAL, NUM_SITES),
    "ditto": lambda: fr.algorithms.ditto(LOCAL, prox=0.1),
}


def fitted(passes, algorithm="fedavg", rounds=2, look=None, **layout):
    schedule = fr.synchronous(cohort=1.0)
    with fr.simulate(sites(NUM_SITES), **layout) as federation:
        result = fr.fit(
            ALGORITHMS[algorithm](), federation, init=MODEL.init(0), rounds=rounds, passes=passes,
            schedule=schedule,
        )
        return result, look(federation) if look else None


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


def test_what_goes_down_is_counted_as_it_travels():
    plain, _ = fitted([], packs=NUM_SITES)
    down, _ = fitted([P.quantised_broadcast(15, bucket=None)], packs=NUM_SITES)
    assert plain.metrics[0].bytes_down == NUM_SITES * tree.nbytes(MODEL.init(0))
    assert down.metrics[0].bytes_down == NUM_SITES * (4 + -(-5 * 113 // 8))


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
    graph = trace(fr.algorithms.scaffold(LOCAL, NUM_SITES))
    passed = PASSES[name]()(graph)
    before = {node.name: node for node in graph.reductions if node.name not in ("delta", "count")}
    after = {node.name: node for node in passed.reductions}
    if name != "bidirectional":  # there all that follows from the broadcast is rebuilt
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


def hidden(graph):
    """Stand in for a pass that masks sums."""
    for node in graph.reductions:
        refuse_coded(node, "secure_sum")
    return graph


@pytest.mark.parametrize(("name", "why"), [
    ("topk", r"compressed by topk\(0.2\), and its values lie at other coordinates at each site: use randk"),
    ("ef21", r"compressed by topk\(0.2\)"),
    ("qsgd", r"compressed by qsgd\(7\), and its codes have another scale at each site"),
    ("sign", "compressed by sign"),
    ("scaled_sign", "compressed by scaled_sign"),
])
def test_what_does_not_add_up_coded_is_refused_before_a_secure_sum(name, why):
    with pytest.raises(PassError, match=f"secure_sum: delta .*{why}"):
        fr.compile(ALGORITHMS["fedavg"](), [PASSES[name](), hidden])


@pytest.mark.parametrize("name", ["randk", "randk_unbiased", "powersgd"])
def test_what_is_linear_may_be_masked(name):
    assert fr.compile(ALGORITHMS["fedavg"](), [PASSES[name](), hidden])


def test_a_vote_is_refused_where_weights_are_meant():
    with pytest.raises(PassError, match="a site has one vote.*algorithm.weighted=false"):
        fr.compile(ALGORITHMS["fedavg"](), [P.sign(0.01)])


def test_a_pass_twice_is_refused_since_it_has_one_memory():
    with pytest.raises(PassError, match=r"topk\(0.2\) is applied to .* twice"):
        fr.compile(ALGORITHMS["fedavg"](), [P.topk(0.1), P.topk(0.2)])


def test_a_mean_within_a_region_is_refused():
    def round(server, site):
        update = fr.map(LOCAL, fr.broadcast(server), site.data, site.rng)
        shared = fr.mean(update.delta, name="delta", within="region")
        return fr.Outputs(server=server, site=shared)

    regional = fr.Algorithm(lambda params: params, round, lambda server: server, name="regional")
    with pytest.raises(PassError, match="goes from site to site"):
        fr.compile(regional, [P.topk(0.1)])


@pytest.mark.parametrize("compression", [P.topk(0.1, only={"dleta"}), P.quantised_broadcast(only={"parms"})])
def test_a_name_that_is_not_there_is_refused(compression):
    with pytest.raises(PassError, match="found no"):
        fr.compile(ALGORITHMS["fedavg"](), [compression])


@pytest.mark.parametrize("make", [
    lambda: P.topk(0.0), lambda: P.topk(1.5), lambda: P.randk(0), lambda: P.ef21(-1), lambda: P.qsgd(0),
    lambda: P.qsgd(2**15), lambda: P.qsgd(4, bucket=0), lambda: P.sign(0.0),
    lambda: P.sign(0.1, weights="equal"), lambda: P.powersgd(0), lambda: P.quantised_broadcast(0),
])
def test_settings_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError, match="is not|say "):
        make()


def test_ef21_refuses_weights_that_change():
    def round(server, site):
        update = fr.map(LOCAL, fr.broadcast(server.params), site.data, site.rng)
        weight = fr.map(growing, site.rng)
        delta = fr.mean(update.delta, weight=weight)
        return fr.Outputs(server=fr.apply(moved, server, delta))

    algorithm = fr.Algorithm(fr.algorithms.fedavg(LOCAL).init, round, name="growing")
    with fr.simulate(sites(3)) as federation, pytest.raises(fr.errors.QuorumError, match="ValueError"):
        fr.fit(algorithm, federation, init=MODEL.init(0), rounds=2, passes=[P.ef21(0.2)])


def growing(rng):
    return rng.round + 1


def moved(state, delta):
    return type(state)(tree.add(state.params, delta), state.optimizer)


def test_fractional_weights_keep_their_public_bound():
    def round(server, site):
        update = fr.map(LOCAL, fr.broadcast(server.params), site.data, site.rng)
        delta = fr.mean(update.delta, weight=fr.map(fraction, site.rng), weight_cap=1.0)
        return fr.Outputs(server=fr.apply(moved, server, delta))

    algorithm = fr.Algorithm(fr.algorithms.fedavg(LOCAL).init, round, name="fractional")
    found = []
    for passes in ([], [P.topk(1.0)]):
        with fr.simulate(sites(3)) as federation:
            found.append(fr.fit(algorithm, federation, init=MODEL.init(0), rounds=2, passes=passes))
    assert found[0].params_sha256 == found[1].params_sha256 and not found[1].failures


def fraction(rng):
    return 0.25 + ord(rng.site[-1]) % 3 / 7


def test_every_function_that_a_pass_maps_has_a_twin():
    for name, make in PASSES.items():
        plan = fr.compile(ALGORITHMS["fedavg"](), [make()])
        mapped = [node for node in plan.nodes if node.op is Op.CALL and node.placement is Placement.SITES
                  and node.params["lift"] == "site"]
        assert mapped and all(hasattr(node.fn, "rows") for node in mapped), name
