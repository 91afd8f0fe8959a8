"""A round: who is counted, what is committed, what happens to broken and lost sites."""

import gc
import time
import weakref

import pytest
import torch

import fedray as fr
from fedray import rows, tree
from fedray.core.trace import Algorithm, Outputs
from fedray.errors import ConfigError, DataError, QuorumError, ScheduleError
from tests.unit.runtime.toy import INIT, Breaks, Open, ToyLocal, sites, train


def averaging(local):
    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        return Outputs(
            server=server + fr.mean(update.delta, weight=update.num_examples),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return Algorithm(lambda params: params, round, name="averaging")


def stateful(local):
    """Every site adds up its own deltas; the server averages them."""

    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        return Outputs(
            server=server + fr.mean(update.delta, weight=update.num_examples), site=site.state + update.delta
        )

    return Algorithm(lambda params: params, round, tree.zeros_like, name="stateful")


def test_a_round_equals_a_loop_written_by_hand():
    result = train(averaging(ToyLocal()), rounds=2)
    from fedray.rng import Key

    params = tree.flatten(INIT)
    for number in range(2):
        updates = [ToyLocal()(params, opened(), Key(0, number, site)) for site, opened in sites().items()]
        total = sum(update.num_examples for update in updates)
        mean = sum(update.delta.buffer.double() * update.num_examples for update in updates) / total
        params = tree.Flat(params.buffer + mean.float(), params.schema)
    assert tree.equal(result.params, params)


@pytest.mark.parametrize(
    "layout",
    [
        {"packs": 2},
        {"packs": 4, "group_size": 1},
        {"packs": 8, "group_size": 7},
        {"group_size": 25},
        {"sites_per_actor": 1},
        {"regions": {"a": ["h00"], "b": {"c": ["h01", "h02"], "d": [f"h{i:02d}" for i in range(3, 12)]}}},
    ],
)
@pytest.mark.parametrize("make", [averaging, stateful])
def test_layouts_give_equal_bits(make, layout):
    schedule = fr.synchronous(cohort=0.5)
    expected = train(make(ToyLocal()), schedule=schedule)
    assert train(make(ToyLocal()), schedule=schedule, **layout).params_sha256 == expected.params_sha256


def test_the_order_of_the_site_mapping_does_not_matter():
    turned = dict(reversed(list(sites().items())))
    assert train(averaging(ToyLocal()), turned).params_sha256 == train(averaging(ToyLocal())).params_sha256


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_broken_site_leaves_the_bits_of_a_run_that_never_asked_it(how):
    broken = train(averaging(Breaks(ToyLocal(), ("h03", "h07"), 0, how)), rounds=1)
    without = {site: opened for site, opened in sites().items() if site not in ("h03", "h07")}
    assert broken.params_sha256 == train(averaging(ToyLocal()), without, rounds=1).params_sha256
    assert broken.metrics[0].counted == 10


def test_a_failure_names_site_class_and_line_and_never_the_message():
    failure = train(averaging(Breaks(ToyLocal(), ("h03",), 0, "raise")), rounds=1).metrics[0].failures[0]
    assert (failure.site, failure.kind) == ("h03", "RuntimeError")
    assert failure.where.startswith("toy.py:") and "patient" not in str(failure)


def test_a_site_that_was_not_counted_keeps_its_state():
    with fr.simulate(sites()) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        fr.fit(stateful(Breaks(ToyLocal(), ("h03",), 1, "nan")), federation, init=INIT, rounds=1)
        federation.call("start", federation.aggregator.training, federation.aggregator.state)
        federation.call("run_round", 0)
        federation.aggregator.root.commit([])
        before = pack.state_of("h03"), pack.state_of("h04")
        federation.call("run_round", 1)
        federation.aggregator.root.commit([])
        assert tree.equal(pack.state_of("h03"), before[0])
        assert not tree.equal(pack.state_of("h04"), before[1])


def test_below_quorum_the_server_state_is_unchanged_and_the_error_says_who():
    with fr.simulate(sites()) as federation:
        local = Breaks(ToyLocal(), tuple(sites())[:6], 0, "raise")
        with pytest.raises(QuorumError, match=r"6 of 12.*6 x RuntimeError.*quorum"):
            fr.fit(
                averaging(local), federation, init=INIT, rounds=1, schedule=fr.synchronous(on_failure="raise")
            )
        assert tree.equal(federation.aggregator.state, tree.flatten(INIT))


def test_a_skipped_round_leaves_the_state_and_goes_on():
    result = train(
        averaging(Breaks(ToyLocal(), tuple(sites())[:6], 1, "raise")),
        rounds=3,
        schedule=fr.synchronous(on_failure="skip"),
    )
    assert [record.status for record in result.metrics] == ["counted", "skipped", "counted"]


def test_a_value_out_of_range_repeats_the_fold_and_not_the_training():
    calls = []

    def huge(params, data, rng):
        calls.append(rng.site)  # the rehearsal is the thirteenth
        return tree.map(lambda leaf: leaf + 1e6, params)

    def round(server, site):
        return Outputs(server=fr.mean(fr.map(huge, fr.broadcast(server), site.data, site.rng), name="big"))

    result = train(Algorithm(lambda params: params, round), rounds=1, packs=3)
    assert len(set(calls)) == 13 and len(calls) == 13 and float(result.params["b"]) == 1e6
    assert result.metrics[0].grids["big"][0] >= 20


@pytest.mark.parametrize("fold", ["exact", "fast"])
def test_a_model_is_gone_when_the_next_ones_are_there_without_the_garbage_collector(fold):
    held = []

    class Watching:
        def round(self, record):
            held.append(weakref.ref(federation.aggregator.state["params"].buffer))

        def __getattr__(self, name):
            return lambda *args: None

    def round(server, site):
        update = fr.map(ToyLocal(), fr.broadcast(server["params"]), site.data, site.rng)
        mean = fr.mean(update.delta, weight=update.num_examples)
        return Outputs(server={"params": server["params"] + mean})

    algorithm = Algorithm(lambda params: {"params": params}, round)
    gc.disable()
    try:
        with fr.simulate(sites(), packs=2) as federation:
            fr.fit(algorithm, federation, init=INIT, rounds=5, tracker=Watching(), fold=fold)
            assert [reference() is not None for reference in held[:3]] == [False] * 3
            assert held[4]() is not None
    finally:
        gc.enable()


def test_every_attempt_of_a_host_is_answered_with_the_same_bytes():
    with fr.simulate(sites()) as federation:
        fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=1)
        root, calls = federation.aggregator.root, []
        pack = root.transport.hosts["pack0"]
        run = pack.run
        pack.run = lambda call, downlink: calls.append((call, downlink)) or run(call, downlink)
        federation.call("run_round", 1)
        assert run(*calls[0]).sums is run(*calls[0]).sums


def test_empty_sites_are_refused_by_name_unless_allowed():
    data = {**sites(3), "empty": Open(1, empty=True)}
    with pytest.raises(DataError, match=r"empty.*allow_empty"):
        train(averaging(ToyLocal()), data)
    assert (
        train(averaging(ToyLocal()), data, allow_empty=True, rounds=2).params_sha256
        == train(averaging(ToyLocal()), sites(3), rounds=2).params_sha256
    )


def test_a_weight_that_is_not_whole_is_reported_by_site():
    def local(params, data, rng):
        return {"delta": params, "weight": 0.5 if rng.site == "h01" else 1.0}

    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        return Outputs(server=fr.mean(update["delta"], weight=update["weight"]))

    failures = train(Algorithm(lambda params: params, round), rounds=1).metrics[0].failures
    assert [(failure.site, "weight_cap" in failure.kind) for failure in failures] == [("h01", True)]


def test_fractional_weights_count_with_a_public_cap():
    def local(params, data, rng):
        return {"x": 1.0 if rng.site == "h00" else 0.0, "weight": 0.75 if rng.site == "h00" else 0.25}

    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        return Outputs(
            server=server, metrics={"x": fr.mean(update["x"], weight=update["weight"], weight_cap=1.0)}
        )

    assert train(Algorithm(lambda params: params, round), sites(2), rounds=1).metrics[0].metrics["x"] == 0.75


def test_mix_gives_each_site_its_neighbours():
    matrix = {"h00": {"h00": 0.5, "h01": 0.5}, "h01": {"h00": 0.25, "h01": 0.75}}

    def local(state, data, rng):
        return state + (1.0 if rng.site == "h00" else 0.0)

    def round(server, site):
        mixed = fr.mix(fr.map(local, site.state, site.data, site.rng), matrix, name="model")
        return Outputs(server=server, site=mixed, metrics={"all": fr.sum(mixed, name="all")})

    algorithm = Algorithm(lambda params: params, round, lambda server: 0.0)
    assert train(algorithm, sites(2), rounds=1).metrics[0].metrics["all"] == 0.75


def test_mean_within_a_region_stays_in_the_region():
    def one(data, rng):
        return float(rng.site[1:])

    def round(server, site):
        near = fr.mean(fr.map(one, site.data, site.rng), name="near", within="region")
        return Outputs(server=server, metrics={"seen": fr.gather(near, name="seen")})

    with fr.simulate(sites(3), regions={"a": ["h00", "h01"], "b": ["h02"]}) as federation:
        seen = fr.compute(Algorithm(lambda params: params, round), federation)["seen"]
    assert seen == {"h00": 0.5, "h01": 0.5, "h02": 2.0}


def test_a_late_site_is_not_counted_on_the_simulated_clock():
    def latency(site, round):
        return 10.0 if site == "h05" else 1.0

    result = train(averaging(ToyLocal()), rounds=2, latency=latency, schedule=fr.synchronous(deadline_s=5.0))
    record = result.metrics[0]
    assert ([failure.kind for failure in record.failures], record.counted, record.seconds) == (
        ["late"],
        11,
        5.0,
    )


def test_sampling_depends_on_seed_and_round_alone():
    names = tuple(sites())
    for sampling in ("uniform", "poisson", "weighted", "cyclic", "shuffled"):
        schedule = fr.synchronous(cohort=4, sampling=sampling)
        sizes = dict.fromkeys(names, 3)
        chosen = [schedule.cohort_of(number, 1, names, sizes) for number in range(6)]
        assert chosen == [schedule.cohort_of(number, 1, names, dict(sizes)) for number in range(6)]
        assert len(set(chosen)) > 1


def test_a_cohort_above_the_number_of_sites_is_refused_with_the_number():
    with pytest.raises(ScheduleError, match="at most 12"):
        train(averaging(ToyLocal()), schedule=fr.synchronous(cohort=13))


def test_a_site_in_two_regions_is_refused():
    with pytest.raises(ConfigError, match="two regions"):
        fr.simulate(sites(2), regions={"a": ["h00", "h01"], "b": ["h01"]})


def test_no_mapped_function_may_change_the_servers_parameters_through_a_twin():
    def rows(group, params, data, rng):
        return {"delta": tree.Flat(params.value.buffer.expand(group.k, -1) * 0 + 1, params.value.schema)}

    def local(params, data, rng):
        return {"delta": tree.map(torch.ones_like, params)}

    local.rows = rows

    def round(server, site):
        update = fr.map(local, fr.broadcast(server), site.data, site.rng)
        return Outputs(server=server + fr.mean(update["delta"]))

    alone, twin = Algorithm(lambda params: params, round), train
    assert float(twin(alone, rounds=2).params["b"]) == 2.0


def test_a_site_that_breaks_a_twin_is_alone_from_the_next_round_on():
    calls = []

    def moved(params, data, rng):
        return tree.map(lambda leaf: leaf + len(rng.site), params)

    def moved_rows(group, params, data, rng):
        calls.append(group.ids)
        if "h03" in group.ids:
            raise ArithmeticError("a value")
        return rows.stack([moved(rows.row(params, i), None, rows.row(rng, i)) for i in range(group.k)]).value

    def round(server, site):
        return Outputs(server=fr.mean(fr.map(moved, fr.broadcast(server), site.data, site.rng), name="w"))

    moved.rows = moved_rows
    with fr.simulate(sites()) as federation:
        fr.fit(Algorithm(lambda params: params, round), federation, init=INIT, rounds=3)
        asked = [ids for ids in calls if ids[0].startswith("h")]
    every = tuple(sites())
    rest = tuple(site for site in every if site != "h03")
    assert sorted(asked[0]) == sorted(every) and len(asked) == 1 + 12 + 2 * 3
    assert federation.aggregator.root.transport.hosts["pack0"]._broken == {"h03"}
    for first in (13, 16):  # of a round: the others together; it alone, and once more to say what it raised
        assert sorted(asked[first]) == sorted(rest) and asked[first + 1 : first + 3] == [("h03",)] * 2


def test_who_is_late_is_not_set_apart():
    def slow(params, data, rng):
        raise AssertionError("the twin is used")

    def slow_rows(group, params, data, rng):
        if "h00" in group.ids:
            time.sleep(0.3)
            raise ArithmeticError("a value")
        return tree.map(lambda leaf: leaf.expand(group.k, *leaf.shape[1:]), rows.expand(params, group.k))

    slow.rows = slow_rows

    def round(server, site):
        return Outputs(server=fr.mean(fr.map(slow, fr.broadcast(server), site.data, site.rng), name="w"))

    schedule = fr.synchronous(deadline_s=0.2, quorum=0.01, on_failure="skip")
    with fr.simulate(sites()) as federation:
        fr.fit(Algorithm(lambda params: params, round), federation, init=INIT, rounds=2, schedule=schedule)
        assert federation.aggregator.root.transport.hosts["pack0"]._broken <= {"h00"}


def rows_of_site(data):
    return float(data.train.num_rows)


def plus_or_lost(x, shift, id):
    if id == "h02":
        raise RuntimeError("lost in the second stage")
    return x + shift


def test_a_mean_of_a_later_stage_is_divided_by_the_weights_of_the_sites_that_reached_it():
    def round(server, site):
        size = fr.map(rows_of_site, site.data)
        first = fr.mean(size, weight=size, name="first")
        later = fr.map(plus_or_lost, size, fr.broadcast(first), site.id)
        mean = fr.mean(later, weight=size, name="later")
        return fr.Outputs(server=server, metrics={"first": first, "later": mean})

    algorithm = fr.Algorithm(lambda params: params, round, name="two_stages")
    result = train(algorithm, sites(4), rounds=1, schedule=fr.synchronous(quorum=0.5))
    sizes = {0: 8, 1: 11, 2: 14, 3: 17}
    first = sum(n * n for n in sizes.values()) / sum(sizes.values())
    del sizes[2]
    assert result.metrics[0].metrics["first"] == pytest.approx(first, abs=1e-12)
    expected = first + sum(n * n for n in sizes.values()) / sum(sizes.values())
    assert result.metrics[0].metrics["later"] == pytest.approx(expected, abs=1e-12)


def test_program_that_is_run_again_on_another_state_is_not_answered_with_what_the_first_came_to():
    def round(server, site):
        found = fr.map(_times, fr.broadcast(server), site.data)
        return Outputs(server=server, metrics=fr.sum(found, name="all"))

    with fr.simulate({"a": [0], "b": [0, 0]}, packs=2) as federation:
        program = Algorithm(lambda state: state, round)
        found = [fr.compute(program, federation, state=float(state)) for state in (1, 2, 1)]
    assert found == [3.0, 6.0, 3.0]


def _times(factor, data):
    return factor * len(data)
