"""Rounds of several kinds, sums by region and mixing: the verbs, apart from the algorithms that use them."""

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.trace import Algorithm, Outputs
from fedray.errors import ConfigError, ScheduleError, TraceError, VerifyError
from tests.unit.runtime.toy import INIT, Breaks, ToyLocal, sites

REGIONS = {"a": ["h00", "h01"], "b": ["h02"]}


def number(data, rng):
    return float(rng.site[1:]) + 1


def rows(data, rng):
    return 2 if rng.site == "h00" else 1


def told(round, count=3, regions=REGIONS, **layout):
    """Return the metrics of one round."""
    with fr.simulate(sites(count), regions=regions, **layout) as federation:
        return fr.compute(Algorithm(lambda params: params, round), federation)


@pytest.mark.parametrize("packs", [1, 2])
def test_means_and_sums_by_region_are_told_by_region(packs):
    def round(server, site):
        value, weight = fr.map(number, site.data, site.rng), fr.map(rows, site.data, site.rng)
        found = {
            "mean": fr.mean(value, name="mean", by="region"),
            "weighted": fr.mean(value, weight=weight, name="weighted", by="region"),
            "sum": fr.sum(value, name="sum", by="region"),
            "all": fr.sum(value, name="all"),
        }
        return Outputs(server=server, metrics=found)

    found = told(round, packs=packs)
    assert {name: found[name] for name in ("mean", "sum", "all")} == {
        "mean": {"a": 1.5, "b": 3.0}, "sum": {"a": 3.0, "b": 3.0}, "all": 6.0,
    }  # fmt: skip
    assert found["weighted"] == {"a": pytest.approx(4 / 3), "b": 3.0}


def test_a_scatter_by_region_gives_each_site_its_regions_entry_or_the_one_for_all():
    def round(server, site):
        near = fr.scatter(fr.apply(lambda _: {"b": 7.0, "": 1.0}, server), by="region")
        return Outputs(server=server, metrics=fr.gather(near, name="near"))

    assert told(round) == {"h00": 1.0, "h01": 1.0, "h02": 7.0}


def test_a_site_whose_region_gets_nothing_is_left_out_by_name():
    def round(server, site):
        near = fr.scatter(fr.apply(lambda _: {"b": 7.0}, server), by="region")
        return Outputs(server=server, metrics=fr.sum(near, name="near"))

    with fr.simulate(sites(3), regions=REGIONS) as federation:
        result = fr.fit(
            Algorithm(lambda params: params, round), federation, init=INIT, rounds=1,
            schedule=fr.synchronous(quorum=0.3),
        )  # fmt: skip
    failures = result.metrics[0].failures
    told = {failure.site: failure.kind for failure in failures}
    assert told == dict.fromkeys(["h00", "h01"], "nothing for its region")


def test_a_mean_within_a_region_shows_the_server_no_sites_value():
    def round(server, site):
        near = fr.mean(fr.map(number, site.data, site.rng), name="near", within="region")
        return Outputs(server=server, metrics=fr.sum(near, name="all"))

    plan = fr.compile(Algorithm(lambda params: params, round))
    assert "gather" not in fr.egress(plan) and "no, by region" in fr.egress(plan)
    assert told(round) == 1.5 + 1.5 + 3.0


@pytest.mark.parametrize("call", [
    lambda value: fr.mean(value, name="x", by="country"),
    lambda value: fr.sum(value, name="x", by="country"),
    lambda value: fr.mean(value, name="x", by="region", within="region"),
    lambda value: fr.mix(value, {}, name="x", keep="both"),
])
def test_groupings_that_are_not_declared_are_refused_with_file_and_line(call):
    with pytest.raises(TraceError, match=r"test_kinds\.py:\d+"):
        fr.compile(Algorithm(lambda params: params, lambda server, site: call(site.state), lambda server: 0))


def test_a_name_that_could_be_that_of_a_region_is_refused():
    def round(server, site):
        return Outputs(server=server, metrics=fr.sum(fr.map(rows, site.data, site.rng), name="x @ y"))

    with pytest.raises(VerifyError, match="give it another name="):
        fr.compile(Algorithm(lambda params: params, round))


def test_evaluations_by_region_need_regions_too():
    def round(server, site):
        found = fr.map(rows, site.data, site.rng)
        return Outputs(server=server, metrics=fr.sum(found, name="x", by="region"))

    with pytest.raises(ConfigError, match="goes by regions, and 3 sites declare none"):
        told(round, regions=None)


def counting(step):
    """Return a round function that adds `step` to the server's number, and tells it."""

    def round(server, site):
        told = {"step": fr.apply(lambda _: step, server)}
        return Outputs(server=server + step * fr.count(site), metrics=told)

    return round


def steps(every, rounds=7, **more):
    algorithm = Algorithm(lambda params: 0.0, counting(1.0), every=every)
    with fr.simulate(sites(2)) as federation:
        result = fr.fit(algorithm, federation, init=INIT, rounds=rounds, **more)
    return [record.metrics["step"] for record in result.metrics], result.state


def test_the_number_of_a_round_decides_which_function_it_runs():
    assert steps({3: counting(10.0)}) == ([1, 1, 10, 1, 1, 10, 1], 50.0)
    assert steps({2: counting(10.0), 4: counting(100.0)}) == ([1, 10, 1, 100, 1, 10, 1], 248.0)


@pytest.mark.parametrize("period", [1, 0, 2.5])
def test_a_period_that_is_none_is_refused(period):
    with pytest.raises(TraceError, match="a period is a whole number of rounds, 2 or more"):
        steps({period: counting(10.0)})


def test_a_schedule_checks_every_kind_of_round():
    class OneStage(type(fr.synchronous())):
        def check(self, plan):
            if len(plan.site_stages) > 1:
                raise ScheduleError("two stages")

    def twice(server, site):
        near = fr.mean(fr.map(number, site.data, site.rng), name="near")
        far = fr.sum(fr.map(lambda value: value, fr.broadcast(near)), name="far")
        return Outputs(server=server + far)

    with pytest.raises(ScheduleError, match="two stages"):
        fr.compile(Algorithm(lambda params: 0.0, counting(1.0), every={2: twice}), schedule=OneStage())


def test_what_a_pass_keeps_at_the_server_outlives_rounds_that_it_has_no_part_in():
    def keeping(graph):
        is_there = "n" in {node.name for node in graph.reductions}
        return fr.passes.on_reduce("sum", only={"n"}, title="keeping")(kept)(graph) if is_there else graph

    def kept(x, weight, name, site):
        total = fr.sum(x, name=name)
        so_far = fr.apply(lambda old, new: (old or 0.0) + new, site.server.slot("so far"), total)
        site.server.store("so far", so_far)
        return so_far

    def telling(server, site):
        found = fr.sum(fr.map(lambda data, rng: 1.0, site.data, site.rng), name="n")
        return Outputs(server=server, metrics={"so far": found})

    algorithm = Algorithm(lambda params: 0.0, telling, every={2: counting(1.0)})
    with fr.simulate(sites(2)) as federation:
        found = fr.fit(algorithm, federation, init=INIT, rounds=5, passes=[keeping]).metrics
    assert [record.metrics["so far"] for record in found[::2]] == [2.0, 4.0, 6.0]


def mixing(keep, matrix):
    def own(rng, data):
        return {"x": torch.full((3,), float(rng.site[1:])).double(), "n": 1.0}

    def round(server, site):
        value = fr.map(own, site.rng, site.data)
        found = fr.mix(value, fr.apply(lambda _: matrix, server), name="x", keep=keep)
        return Outputs(server=server, metrics=fr.gather(found, name="found"))

    return round


def test_a_matrix_of_the_round_mixes_tensors_and_numbers():
    matrix = {"h00": {"h00": 0.5, "h02": 0.5}, "h01": {"h01": 1.0}, "h02": {"h00": 2.0}}
    found = told(mixing("rows", matrix), packs=2)
    assert {site: one["x"].tolist() for site, one in found.items()} == {
        "h00": [1.0] * 3, "h01": [1.0] * 3, "h02": [0.0] * 3,
    }  # fmt: skip
    assert {site: one["n"] for site, one in found.items()} == {"h00": 1.0, "h01": 1.0, "h02": 2.0}


def test_a_host_is_sent_what_is_scattered_to_its_own_sites_alone():
    def round(server, site):
        mine = fr.scatter(fr.apply(lambda _: {f"h0{i}": torch.ones(2) * i for i in range(4)}, server))
        total = fr.sum(mine + fr.broadcast(server["b"]), name="total")
        return Outputs(server=server, metrics={"total": total})

    with fr.simulate(sites(4), packs=2) as federation:
        transport, sent = federation.aggregator.root.transport, {}
        submit = transport.submit
        transport.submit = lambda *call: sent.update({call[:2]: call[2:]}) or submit(*call)
        result = fr.fit(Algorithm(lambda params: params, round), federation, init=INIT, rounds=1)
    for name, pack in transport.hosts.items():
        (entries,) = [part for part in sent[name, "run"][1].values() if isinstance(part, dict)]
        assert set(entries) == set(pack.sites)
    assert result.metrics[0].bytes_down == 4 * 2 * 4 + 2 * 4  # a row of two float32 a site, a bias a host


def test_values_of_different_shapes_are_not_mixed():
    def own(rng, data):
        return torch.zeros(1 + int(rng.site[1:]))

    def round(server, site):
        even = {i: dict.fromkeys(("h00", "h01"), 0.5) for i in ("h00", "h01")}
        found = fr.mix(fr.map(own, site.rng, site.data), even, name="x")
        return Outputs(server=server, metrics=fr.gather(found, name="found"))

    with pytest.raises(ValueError, match="different structures"):
        told(round, count=2, regions=None)


def test_a_lost_site_leaves_a_sum_by_region_as_if_it_was_never_asked():
    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        deltas = fr.mean(update.delta, weight=update.num_examples, by="region")
        return Outputs(server=fr.apply(lambda x, d: tree.add(x, d["a"]), server, deltas))

    local, found = Breaks(ToyLocal(), ("h01",), 0, "nan"), []
    for names in (["h00", "h01", "h02"], ["h00", "h02"]):
        data = {name: sites(3)[name] for name in names}
        layout = {"a": [name for name in names if name != "h02"], "b": ["h02"]}
        with fr.simulate(data, regions=layout) as federation:
            algorithm = Algorithm(lambda params: params, round)
            schedule = fr.synchronous(quorum=0.5)
            result = fr.fit(algorithm, federation, init=INIT, rounds=1, schedule=schedule)
            found.append((result.params_sha256, result.metrics[0].hashes))
    assert found[0] == found[1]
