"""Late work: counted in a later round, by its age, as a plain loop counts it; kept by a checkpoint."""

import pytest
import torch

import fedray as fr
from fedray.errors import ScheduleError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.schedule import LognormalLatency

SITES = [f"h{i}" for i in range(9)]
TARGETS = {site: float(i * i - 7) for i, site in enumerate(SITES)}
NUMBERS = {site: i + 1 for i, site in enumerate(SITES)}
LATENCY = LognormalLatency(median_s=1.0, site_sigma=0.8, round_sigma=0.6, seed=3)
DEADLINE_S = 1.1
ROUNDS = 12


def pull(x, data):
    return {"delta": 0.3 * (data["target"][0] - x["x"]), "n": float(data["n"][0])}


def training():
    def round(server, site):
        update = fr.map(pull, fr.broadcast(server), site.data)
        delta = fr.mean(update["delta"], weight=update["n"], name="delta")
        server = fr.apply(lambda x, d: {"x": x["x"] + d}, server, delta)
        return fr.Outputs(server=server, site=site.state + 1, metrics=fr.sum(update["n"], name="n"))

    return fr.Algorithm(lambda params: params, round, lambda server: 0, name="pulling")


def hospitals():
    return {site: {"target": torch.tensor([TARGETS[site]], dtype=torch.float64),
                   "n": torch.tensor([NUMBERS[site]])} for site in SITES}  # fmt: skip


def fit(late, rounds=ROUNDS, packs=1, look=None, **settings):
    schedule = fr.synchronous(deadline_s=DEADLINE_S, quorum=0.1, late=late)
    init = {"x": torch.zeros((), dtype=torch.float64)}
    with fr.simulate(hospitals(), latency=LATENCY, packs=packs) as federation:
        result = fr.fit(training(), federation, init=init, rounds=rounds, schedule=schedule, **settings)
        return (result, look(federation)) if look else result


def reference(discount, rounds=ROUNDS):
    """The rule in plain numbers: the parameter after each round, and how many late ones each counts."""
    x, clock, busy, path, late = 0.0, 0.0, {}, [], []
    for round in range(rounds):
        if len(busy) == len(SITES):
            clock = max(clock, min(lands for _, lands, _ in busy.values()))
        landed = {site: of for site, of in busy.items() if of[1] <= clock}
        asked = {site: LATENCY(site, round) for site in SITES if site not in busy}
        terms = [(1.0, site, x) for site, seconds in asked.items() if seconds <= DEADLINE_S]
        terms += [(discount(round - of[0]), site, of[2]) for site, of in landed.items()]
        busy = {site: of for site, of in busy.items() if site not in landed}
        busy |= {site: (round, clock + seconds, x) for site, seconds in asked.items() if seconds > DEADLINE_S}
        if asked:
            clock += DEADLINE_S if max(asked.values()) > DEADLINE_S else max(asked.values())
        weight = sum(factor * NUMBERS[site] for factor, site, _ in terms)
        x += sum(factor * NUMBERS[site] * 0.3 * (TARGETS[site] - at) for factor, site, at in terms) / weight
        path.append(x)
        late.append(len(landed))
    return path, late


@pytest.mark.parametrize(("late", "discount"), [("carry", lambda age: 1.0),
                                                ("polynomial 1", lambda age: 1 / (1 + age)),
                                                (lambda age: 0.5 if age > 1 else 0.25, None)])  # fmt: skip
@pytest.mark.parametrize("packs", [1, 3])
def test_late_work_is_counted_as_a_plain_loop_counts_it(late, discount, packs):
    path, number = reference(discount or late)
    result = fit(late, packs=packs)
    assert float(result.state["x"]) == pytest.approx(path[-1], rel=1e-12)
    assert [record.late or 0 for record in result.metrics] == number and sum(number) > 5
    assert max(record.staleness_max or 0 for record in result.metrics) > 1


def test_layouts_have_equal_bits_and_dropped_work_gives_another_model():
    one, three = fit("polynomial 0.5"), fit("polynomial 0.5", packs=3)
    assert [record.hashes for record in one.metrics] == [record.hashes for record in three.metrics]
    assert float(fit("drop").state["x"]) != float(one.state["x"])


def test_a_late_site_is_not_asked_again_before_it_is_counted_and_is_counted_once():
    def visits(federation):
        federation.aggregator.root.commit([])
        packs = federation.aggregator.root.transport.hosts.values()
        return {site: pack.state_of(site) for pack in packs for site in pack.sites}

    result, kept = fit("carry", packs=2, look=visits)
    counted = sum(record.counted + (record.late or 0) for record in result.metrics)
    assert sum(kept.values()) == counted
    numbers = [record.metrics["n"] for record in result.metrics]
    assert all(number <= sum(NUMBERS.values()) for number in numbers)


def test_an_attempt_that_fails_waits_for_nobody():
    """The second attempt asks all again, and no site is counted twice."""
    calls = []

    def latency(site, round):
        calls.append(site)
        return 5.0 if len(calls) <= 6 else 0.5  # of the nine of the first attempt, six are late

    schedule = fr.synchronous(deadline_s=1.0, quorum=0.5, late="carry")
    init = {"x": torch.zeros((), dtype=torch.float64)}
    with fr.simulate(hospitals(), latency=latency) as federation:
        result = fr.fit(training(), federation, init=init, rounds=3, schedule=schedule)
    assert [(record.attempt, record.counted, record.late) for record in result.metrics] == [
        (1, 9, None), (0, 9, None), (0, 9, None)
    ]  # fmt: skip


def test_a_site_that_raises_when_it_is_late_is_named_and_asked_again():
    opened = []

    def fails_once(x, site):
        if site["n"][0] == 9 and not opened:
            opened.append(site)
            raise ValueError("no")
        return pull(x, site)

    def round(server, site):
        update = fr.map(fails_once, fr.broadcast(server), site.data)
        delta = fr.mean(update["delta"], weight=update["n"], name="delta")
        return fr.Outputs(server=fr.apply(lambda x, d: {"x": x["x"] + d}, server, delta))

    slow = {site: 1.5 if site == "h8" else 0.5 for site in SITES}
    schedule = fr.synchronous(deadline_s=1.0, quorum=0.5, late="carry")
    with fr.simulate(hospitals(), latency=lambda site, number: slow[site]) as federation:
        algorithm = fr.Algorithm(lambda params: params, round, name="breaks")
        init = {"x": torch.zeros((), dtype=torch.float64)}
        result = fr.fit(algorithm, federation, init=init, rounds=5, schedule=schedule)
    kinds = [[(failure.site, failure.kind) for failure in record.failures] for record in result.metrics]
    assert ("h8", "late") in kinds[0] and ("h8", "ValueError") in kinds[2]
    assert [record.late for record in result.metrics].count(1) >= 1


@pytest.mark.parametrize("last", range(1, 8))
def test_a_run_that_goes_on_from_a_checkpoint_has_equal_bits(tmp_path, last):
    whole = fit("polynomial 0.5")
    checkpoint = Checkpoints(tmp_path, every_s=1e9)
    fit("polynomial 0.5", rounds=last, checkpoint=checkpoint)
    again = fit("polynomial 0.5", checkpoint=checkpoint, resume=True)
    assert [record.hashes for record in again.metrics] == [record.hashes for record in whole.metrics[last:]]
    assert [record.late for record in again.metrics] == [record.late for record in whole.metrics[last:]]


def test_what_it_cannot_be_used_with_is_refused_before_a_site_is_touched():
    with pytest.raises(ScheduleError, match="set schedule.deadline_s"):
        fr.synchronous(late="carry")
    with pytest.raises(ScheduleError, match=r"synchronous\(\): late='polynom'"):
        fr.synchronous(deadline_s=1.0, late="polynom")
    schedule = fr.synchronous(deadline_s=1.0, late="carry")
    model = fr.learn.logistic(4)
    fedavg = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.1))
    with pytest.raises(ScheduleError, match="masked"):
        fr.compile(fedavg, [fr.passes.secure_sum("ideal", min_cohort=3)], schedule)
    noise = fr.passes.site_dp(clip=1.0, noise_multiplier=1.0, cohort=4, only={"delta"}, weights="uniform")
    with pytest.raises(ScheduleError, match=r"late='drop'"):
        fr.compile(fedavg, [noise], schedule)
