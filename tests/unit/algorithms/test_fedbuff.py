"""FedBuff and FedAsync beside an event-driven loop in numpy, written from the papers.

Sites have unequal rows, steps and speeds; answers tie (b and c need the same time, and so do whole groups of
equal speeds); two sites hold the same rows; fewer sites are busy than there are. Which idle site is asked is
drawn by fedray: the loop is given the order of asking, as the other references are given their cohorts.
"""

import heapq

import numpy as np
import pytest

import fedray as fr
from tests.unit.algorithms.cases import (
    INIT,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    gradient,
    single,
    sites,
    tables,
    uneven,
    vector,
)

SECONDS = {"a": 1.0, "b": 2.5, "c": 2.5, "d": 7.0, "e": 3.0}
EQUAL = dict.fromkeys(SECONDS, 1.0)


class Clock:
    """Seconds of each site; notes who was asked, in order."""

    def __init__(self, seconds=SECONDS):
        self.seconds, self.asks = seconds, {}

    def __call__(self, site, number):
        self.asks[number] = site
        return self.seconds[site]


def trained(algorithm, schedule, rounds, clock=None, packs=2, init=INIT, data=None, **settings):
    with fr.simulate(data or sites(), packs=packs, latency=clock) as federation:
        return fr.fit(algorithm, federation, init=init, rounds=rounds, schedule=schedule, **settings)


def client(x, site):
    """Nguyen et al., Algorithm 2 (FedBuff-client): Q local steps from x, here along the full gradient."""
    y = x.copy()  # 1: y_0 <- w
    for _ in range(STEPS[site]):  # 2: for q = 1, ..., Q
        y = y - LR * gradient(site, y)  # 3: y_q <- y_(q-1) - eta_l g_q(y_(q-1))
    return y - x  # 5: delta (ours is added, the paper's is y_0 - y_Q and subtracted)


def by_hand(server, asks, size, concurrency, rounds, seconds=SECONDS):
    """Nguyen et al., Algorithm 1 (FedBuff-server), driven by events. Returns the model, times and ages.

    `server(x, buffer)` steps from a buffer of (site, age, version's model, delta).
    """
    x, versions = np.zeros(NUM_FEATURES + 1), []
    now, number, away, answered, log = 0.0, 0, [], set(), []
    buffer = []  # k = 0
    while len(versions) < rounds:  # 1: repeat
        if not away or away[0][0] > now:  # all of an instant land before anyone is asked
            busy = {site for _, _, site, _ in away}
            free = [site for site in SIZES if site not in busy | answered]
            for _ in range(min(concurrency - len(away), len(free))):  # 2: sample available clients
                site = asks[number]
                assert site in free
                heapq.heappush(away, (now + seconds[site], number, site, (len(versions), x)))  # 3
                number += 1
        now, _, site, (version, start) = heapq.heappop(away)  # 4: if receive client update
        answered.add(site)
        buffer.append((site, len(versions) - version, start, client(start, site)))  # 5 to 7
        if len(buffer) == size:  # 9: if k == K
            x = server(x, buffer)  # 10, 11
            log.append((now, [age for _, age, _, _ in buffer]))
            versions.append(x)
            buffer, answered = [], set()  # 12
    return x, [time for time, _ in log], [ages for _, ages in log]


def fedbuff_step(server_lr, discount):
    def step(x, buffer):
        total = sum(discount(age) * delta for _, age, _, delta in buffer)  # 6: delta <- delta + delta_i
        return x + server_lr * total / len(buffer)  # 10: delta / K; 11: w <- w - eta_g delta

    return step


def root(age):
    return 1 / np.sqrt(1 + age)


@pytest.mark.parametrize(("size", "concurrency"), [(2, 4), (3, 5), (4, 2)])
def test_fedbuff_equals_the_papers_loop(size, concurrency):
    clock, server_lr = Clock(), 0.7
    algorithm = fr.algorithms.fedbuff(uneven(), fr.learn.optimizer.sgd(server_lr))
    result = trained(algorithm, fr.buffered(size=size, concurrency=concurrency), 12, clock)
    step = fedbuff_step(server_lr, root)
    x, times, ages = by_hand(step, clock.asks, size, concurrency, 12)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.cumsum([record.seconds for record in result.metrics]) == pytest.approx(times, abs=1e-12)
    assert [record.staleness_max for record in result.metrics] == [max(each) for each in ages]
    found = [record.staleness_mean for record in result.metrics]
    assert found == pytest.approx([np.mean(each) for each in ages])
    assert max(max(each) for each in ages) >= 2 or concurrency < size


def test_a_mean_is_divided_by_the_scaled_weights():
    def step(x, buffer):
        weights = [root(age) * len(tables()[site][1]) for site, age, _, _ in buffer]
        deltas = [delta for _, _, _, delta in buffer]
        return x + sum(w * delta for w, delta in zip(weights, deltas, strict=True)) / sum(weights)

    clock = Clock()
    schedule = fr.buffered(size=3, concurrency=4)
    result = trained(fr.algorithms.fedavg(uneven()), schedule, 10, clock)
    assert np.abs(vector(result.params) - by_hand(step, clock.asks, 3, 4, 10)[0]).max() < 1e-12


def test_a_uniform_mean_is_divided_by_the_scaled_number_of_sites():
    def step(x, buffer):
        total = sum(root(age) * delta for _, age, _, delta in buffer)
        return x + total / sum(root(age) for _, age, _, _ in buffer)

    clock = Clock()
    algorithm = fr.algorithms.fedavg(uneven(), weighted=False)
    result = trained(algorithm, fr.buffered(size=3, concurrency=4), 10, clock)
    assert np.abs(vector(result.params) - by_hand(step, clock.asks, 3, 4, 10)[0]).max() < 1e-12


STALENESS = {  # Xie et al., section 5
    "constant": lambda s: 1.0,
    "polynomial 0.7": lambda s: (1 + s) ** -0.7,
    "hinge 3 1": lambda s: 1.0 if s <= 1 else 1 / (3 * (s - 1) + 1),
}


@pytest.mark.parametrize("name", STALENESS)
def test_fedasync_equals_the_papers_loop(name):
    def updater(x, buffer):
        """Xie et al., Algorithm 1, thread Updater: x_t from a pair (x_new, tau) that was received."""
        ((_, age, start, delta),) = buffer
        alpha_t = 0.6 * STALENESS[name](age)  # alpha_t <- alpha s(t - tau)
        return (1 - alpha_t) * x + alpha_t * (start + delta)  # x_t <- (1 - alpha_t) x_(t-1) + alpha_t x_new

    clock = Clock()
    schedule = fr.buffered(size=1, concurrency=4, discount=name)
    result = trained(fr.algorithms.fedasync(uneven()), schedule, 20, clock)
    x, times, ages = by_hand(updater, clock.asks, 1, 4, 20)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert max(ages) >= [3]
    assert np.cumsum([record.seconds for record in result.metrics]) == pytest.approx(times, abs=1e-12)


def test_two_equal_sites_count_as_much_as_each_other():
    """c and d hold the same rows and take as many steps: from equal models their updates are equal."""
    (only_c, only_d) = ({**dict.fromkeys(SIZES, 9.0), site: 1.0} for site in "cd")
    schedule = fr.buffered(size=1, concurrency=5)
    found = [trained(fr.algorithms.fedbuff(uneven()), schedule, 1, Clock(each)) for each in (only_c, only_d)]
    assert found[0].params_sha256 == found[1].params_sha256


@pytest.mark.parametrize("cohort", [3, 5])
def test_equal_speeds_and_a_buffer_of_all_who_are_busy_give_the_bits_of_synchronous_rounds(cohort):
    algorithm = fr.algorithms.fedavg(uneven())
    schedule = fr.buffered(size=cohort, concurrency=cohort)
    found = trained(algorithm, schedule, 5, Clock(EQUAL))
    expected = trained(algorithm, fr.synchronous(cohort=cohort), 5)
    assert [record.hashes for record in found.metrics] == [record.hashes for record in expected.metrics]
    assert {record.staleness_max for record in found.metrics} == {0}


def test_packs_and_groups_give_equal_bits():
    local, data, init = single()
    schedule = fr.buffered(size=2, concurrency=4)
    found = [
        trained(fr.algorithms.fedavg(local), schedule, 8, Clock(), packs=packs, init=init, data=data)
        for packs in (1, 2, 4)
    ]
    assert len({result.params_sha256 for result in found}) == 1
    alone, _, _ = single("loop")
    slow = trained(fr.algorithms.fedavg(alone), schedule, 8, Clock(), init=init, data=data)
    assert np.abs(vector(slow.params) - vector(found[0].params)).max() < 1e-4


def test_what_fedasync_refuses():
    for alpha in (0.0, 1.5):
        with pytest.raises(ValueError, match="alpha"):
            fr.algorithms.fedasync(uneven(), alpha)
