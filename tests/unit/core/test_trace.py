"""The traced round: what is written down, and what is refused with the user's file and line."""

from dataclasses import dataclass
from typing import Any

import pytest

import fedray as fr
from fedray.core.graph import Op, Placement, stages
from fedray.core.trace import trace
from fedray.errors import PassError, PlacementError, PolicyError, TraceError, VerifyError
from fedray.passes import on_reduce, require


@dataclass(frozen=True)
class State:
    params: Any


def train(params, data, rng):
    return params


def algorithm(round, init_site=None):
    return fr.Algorithm(State, round, init_site, name="example")


def averaging(server, site):
    update = fr.map(train, fr.broadcast(server.params), site.data, site.rng)
    delta = fr.mean(update.delta, weight=update.num_examples)
    return fr.Outputs(server=State(server.params + delta), metrics=fr.mean(update.metrics))


def test_fedavg_has_one_site_stage_and_its_reductions_carry_field_names():
    graph = trace(algorithm(averaging))
    assert [node.name for node in graph.reductions] == ["delta", "metrics"]
    assert fr.compile(algorithm(averaging)).site_stages == [1]


def test_mixing_placements_names_file_and_line():
    def round(server, site):
        return fr.Outputs(server=server.params + site.state)

    with pytest.raises(PlacementError, match=r"test_trace\.py:\d+.*broadcast\(\)"):
        trace(algorithm(round, lambda server: server))


@pytest.mark.parametrize("use", [bool, list, len, float, int])
def test_a_value_refuses_to_be_looked_at(use):
    def round(server, site):
        use(server.params)

    with pytest.raises(TraceError, match=r"test_trace\.py:\d+"):
        trace(algorithm(round))


def test_a_computed_reduction_needs_a_name():
    def round(server, site):
        update = fr.map(train, fr.broadcast(server.params), site.data, site.rng)
        return fr.Outputs(server=State(fr.sum(update.a + update.b)))

    with pytest.raises(TraceError, match="name="):
        trace(algorithm(round))


def test_an_unknown_site_input_is_named():
    def round(server, site):
        return fr.Outputs(server=fr.sum(site.patients))

    with pytest.raises(TraceError, match="no 'patients'"):
        trace(algorithm(round))


def test_reading_site_state_without_a_start_is_refused():
    def round(server, site):
        return fr.Outputs(
            server=server, metrics=fr.mean(fr.map(train, site.state, site.data, site.rng), name="m")
        )

    with pytest.raises(TraceError, match="init_site"):
        trace(algorithm(round))


def test_an_output_at_the_wrong_side_is_refused():
    def round(server, site):
        return fr.Outputs(server=fr.map(train, site.data, site.rng, site.id))

    with pytest.raises(TraceError, match=r"Outputs\(server"):
        trace(algorithm(round))


def test_two_reductions_of_one_name_are_refused():
    def round(server, site):
        update = fr.map(train, site.data, site.rng, site.id)
        return fr.Outputs(server=fr.sum(update.delta) + fr.sum(update.delta))

    with pytest.raises(VerifyError, match="two reductions"):
        fr.compile(algorithm(round))


def test_a_hand_built_leak_is_refused():
    from fedray.core.graph import Graph, Node
    from fedray.core.verify import verify

    data = Node(Op.INPUT, Placement.SITES, params={"slot": "data"}, where="leak.py:1")
    leak = Node(
        Op.CALL, Placement.SERVER, (data,), train, {"lift": "server", "kwargs": ()}, where="leak.py:2"
    )
    with pytest.raises(VerifyError, match=r"leak\.py"):
        verify(Graph({(Placement.SERVER, "state"): leak}))


def test_count_counts_the_stage_in_which_it_is_used():
    def round(server, site):
        first = fr.sum(fr.map(train, site.data, site.rng, site.id), name="first")
        second = fr.sum(fr.map(train, fr.broadcast(first), site.data, site.rng), name="second")
        return fr.Outputs(server=second / fr.count(site))

    graph = trace(algorithm(round))
    stage = stages(graph.nodes)
    assert [stage[node] for node in graph.nodes if node.params.get("kind") == "count"] == [4]


def test_all_sums_of_a_stage_leave_as_one_record():
    plan = fr.compile(algorithm(averaging))
    reductions = [node for node in plan.nodes if node.op is Op.REDUCE and node.params["kind"] == "sum"]
    assert [node.name for node in reductions] == ["delta+delta.weight+metrics"]


def test_the_digest_follows_a_number_inside_a_mapped_function_and_nothing_else():
    def make(lr):
        def local(params, data, rng):
            return lr

        def round(server, site):
            return fr.Outputs(
                server=fr.sum(fr.map(local, fr.broadcast(server), site.data, site.rng), name="x")
            )

        return algorithm(round)

    assert fr.compile(make(0.1)).digest == fr.compile(make(0.1)).digest
    assert fr.compile(make(0.1)).digest != fr.compile(make(0.2)).digest


def test_a_pass_that_matches_nothing_is_an_error():
    @on_reduce("mean", only={"dleta"})
    def clip(x, weight, name, site):
        return fr.mean(x, weight=weight, name=name)

    with pytest.raises(PassError, match="dleta.*delta"):
        fr.compile(algorithm(averaging), [clip])


def test_a_pass_leaves_the_reductions_it_was_not_asked_for_untouched():
    @on_reduce("mean", only={"delta"})
    def halve(x, weight, name, site):
        return fr.mean(x * 0.5, weight=weight, name=name)

    before, after = trace(algorithm(averaging)), halve(trace(algorithm(averaging)))
    metrics = [node for node in before.reductions if node.name == "metrics"]
    assert [node.args[0].params for node in after.reductions if node.name == "metrics"] == [
        node.args[0].params for node in metrics
    ]


def test_policy_names_every_release_too_many():
    with pytest.raises(PolicyError, match=r"metrics \(mean"):
        fr.compile(algorithm(averaging), [require(released={"delta"})])


def test_policy_refuses_a_visible_value():
    def round(server, site):
        return fr.Outputs(server=server, metrics=fr.gather(site.id, name="who"))

    with pytest.raises(PolicyError, match="who"):
        fr.compile(algorithm(round), [require()])


def test_egress_lists_each_name_once():
    text = fr.egress(fr.compile(algorithm(averaging)))
    assert text.count("delta.weight") == 1 and "nothing else leaves a site" in text


def test_explain_as_mermaid_draws_crossings_with_thick_arrows():
    chart = fr.explain(fr.compile(algorithm(averaging)), mermaid=True)
    assert chart.startswith("flowchart TD") and "==>" in chart


def test_comparing_a_value_is_refused_with_its_line():
    def round(server, site):
        return fr.Outputs(server=server.params) if server.params > 0 else fr.Outputs()

    with pytest.raises(TraceError, match=r"test_trace\.py:\d+.*comparison"):
        trace(algorithm(round))
