"""What compression passes refuse, and what they do in rounds of several stages."""

import pytest

import fedray as fr
from fedray import tree
from fedray.core.graph import Op, Placement
from fedray.core.rewrite import refuse_coded
from fedray.errors import PassError
from tests.unit.passes.stacks import ALGORITHMS, LOCAL, MODEL, NUM_SITES, PASSES, P
from tests.unit.runtime.toy import sites


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


def shifted(x, shift, id):
    if id == "h02":
        raise RuntimeError("lost in the second stage")
    return tree.add(x, tree.scale(shift, 0.5))


@pytest.mark.parametrize("name", ["none", "topk", "ef21", "powersgd"])
def test_all_sums_of_a_later_stage_see_the_sites_that_reached_it(name):
    def round(server, site):
        update = fr.map(LOCAL, fr.broadcast(server.params), site.data, site.rng)
        first = fr.mean(update.delta, weight=update.num_examples, name="first")
        later = fr.map(shifted, update.delta, fr.broadcast(first), site.id)
        delta = fr.mean(later, weight=update.num_examples, name="delta")
        return fr.Outputs(server=fr.apply(moved, server, delta))

    algorithm = fr.Algorithm(fr.algorithms.fedavg(LOCAL).init, round, name="two_stages")
    passes = {"none": [], "topk": [P.topk(1.0)], "ef21": [P.ef21(1.0)], "powersgd": [P.powersgd(1)]}
    found = []
    for chosen in ([], passes[name]):
        with fr.simulate(sites(NUM_SITES), packs=2) as federation:
            result = fr.fit(
                algorithm, federation, init=MODEL.init(0), rounds=1, passes=chosen,
                schedule=fr.synchronous(quorum=0.5),
            )
            found.append(result.params)
        assert [record.counted for record in result.metrics] == [NUM_SITES - 1]
    whole = [leaf for leaf in found[0] if name != "powersgd" or found[0][leaf].dim() == 1]  # what is exact
    assert whole and max((found[0][leaf] - found[1][leaf]).abs().max() for leaf in whole) < 1e-7
