"""Each compression pass beside a loop in numpy that is written from its paper, over five rounds of FedAvg.

The references import nothing of fedray. Draws are theirs to make from the names (run seed, round, site,
label) that fedray documents; coordinates and rounding are then worked out anew.
"""

import numpy as np
import pytest
import torch

import fedray as fr
from tests.unit.passes.cases import (
    INPUTS,
    OUTPUTS,
    SIZE,
    fedavg_by_hand,
    generator,
    mean,
    memory,
    trained,
)

K = 5  # of 24 numbers: a fraction of 0.2, rounded up


def largest(p, k=K):
    """Return p with all but the k largest magnitudes set to zero, the first of equal ones kept."""
    kept = np.argsort(-np.abs(p), kind="stable")[:k]
    found = np.zeros_like(p)
    found[kept] = p[kept]
    return found


class Remembering:
    """Mem-SGD (Stich et al. 2018, Algorithm 1) around any compressor."""

    def __init__(self, compress):
        self.compress, self.memory = compress, {}

    def __call__(self, t, updates, weights):
        sent = {}
        for i, update in updates.items():
            p = self.memory.get(i, np.zeros(SIZE)) + update  # 4: m_t + eta * gradient
            sent[i] = self.compress(p, t)  # 4: g_t = comp(m_t + eta * gradient)
            self.memory[i] = p - sent[i]  # 6: m_{t+1}
        return mean(sent, weights)


def at_common_places(p, t):
    places = torch.randperm(SIZE, generator=generator(t, "", "randk.delta"))[:K].numpy()
    found = np.zeros(SIZE)
    found[places] = p[places]
    return found


def scaled_signs(p, t):
    """EF-SIGNSGD (Karimireddy et al. 2019, Algorithm 1), line 5: (||p||_1 / d) sign(p)."""
    return np.abs(p).mean() * np.where(p >= 0, 1.0, -1.0)


REMEMBERING = {
    "topk": (fr.passes.topk(0.2), lambda p, t: largest(p)),
    "randk": (fr.passes.randk(0.2), at_common_places),
    "scaled_sign": (fr.passes.scaled_sign(), scaled_signs),
}


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", REMEMBERING)
def test_passes_with_memory_equal_the_papers_loop_and_so_do_their_memories(name, weighted):
    compression, compress = REMEMBERING[name]
    reference = Remembering(compress)
    expected = fedavg_by_hand(reference, weighted)
    result, kept = trained([compression], weighted, look=memory(f"{name}.delta"))
    assert np.abs(vector_of(result) - expected).max() < 1e-12
    assert max(np.abs(kept[i] - reference.memory[i]).max() for i in reference.memory) < 1e-12


def vector_of(result):
    return np.concatenate([result.params[name].numpy().ravel() for name in ("W", "b")])


def scaled_pick(t, updates, weights):
    """Random k of n numbers times n / k, without memory."""
    return mean({i: at_common_places(update, t) * (SIZE / K) for i, update in updates.items()}, weights)


@pytest.mark.parametrize(("levels", "bucket"), [(1, None), (7, None), (3, 10), (127, 512)])
def test_qsgd_equals_the_papers_rounding(levels, bucket):
    def qsgd(t, updates, weights):
        """Alistarh et al. 2017, section 3.1: Q(v_i) = ||v|| sgn(v_i) xi_i, bucket by bucket."""
        sent = {}
        for i, v in updates.items():
            u = torch.rand(SIZE, generator=generator(t, i, "qsgd.delta"), dtype=torch.float64).numpy()
            width = min(bucket or SIZE, SIZE)
            parts = [slice(start, min(start + width, SIZE)) for start in range(0, SIZE, width)]
            sent[i] = np.concatenate([rounded(v[part], u[part], levels) for part in parts])
        return mean(sent, weights)

    result, _ = trained([fr.passes.qsgd(levels, bucket)])
    assert np.abs(vector_of(result) - fedavg_by_hand(qsgd)).max() < 1e-12


def rounded(v, u, s):
    norm = np.sqrt((v**2).sum())
    a = s * np.abs(v) / norm
    level = np.floor(a)  # l with |v_i| / ||v|| in [l / s, (l + 1) / s]
    xi = (level + (u < a - level)) / s  # (l + 1) / s with probability a - l, else l / s
    return norm * np.sign(v) * xi


def test_randk_without_memory_equals_the_scaled_pick():
    result, _ = trained([fr.passes.randk(0.2, error_feedback=False)])
    assert np.abs(vector_of(result) - fedavg_by_hand(scaled_pick)).max() < 1e-12


def test_sign_equals_the_majority_vote():
    def vote(t, updates, weights):
        """Bernstein et al. 2018, Algorithm 3: workers send sign(g_m), the server sign(sum_m sign(g_m))."""
        votes = sum(np.where(update >= 0, 1.0, -1.0) for update in updates.values())
        return 0.01 * np.sign(votes)

    result, _ = trained([fr.passes.sign(0.01)], weighted=False)
    assert np.abs(vector_of(result) - fedavg_by_hand(vote, weighted=False)).max() < 1e-12
    dropped, _ = trained([fr.passes.sign(0.01, weights="uniform")])
    assert dropped.params_sha256 == result.params_sha256


class Ef21:
    """EF21 (Richtarik et al. 2021, Algorithm 2) over the sites that have taken part."""

    def __init__(self):
        self.g, self.weights = {}, {}

    def __call__(self, t, updates, weights):
        for i, update in updates.items():
            before = self.g.get(i, np.zeros(SIZE))
            c = largest(update - before)  # 6: c_i = C(grad f_i(x^{t+1}) - g_i^t)
            self.g[i] = before + c  # 7: g_i^{t+1} = g_i^t + c_i
            self.weights[i] = weights[i]
        return mean(self.g, self.weights)  # 9: g^{t+1} = g^t + (1 / n) sum_i c_i


@pytest.mark.parametrize("weighted", [True, False])
def test_ef21_equals_the_papers_loop_and_so_does_what_sites_keep(weighted):
    reference = Ef21()
    expected = fedavg_by_hand(reference, weighted)
    result, kept = trained([fr.passes.ef21(0.2)], weighted, look=memory("ef21.delta"))
    assert np.abs(vector_of(result) - expected).max() < 1e-12
    assert max(np.abs(kept[i] - reference.g[i]).max() for i in reference.g) < 1e-12


class PowerSgd:
    """PowerSGD (Vogels et al. 2019, Algorithms 1 and 2), without momentum; QR in place of Gram-Schmidt."""

    def __init__(self, rank):
        start = generator(0, "", "powersgd.delta.0")
        self.q = torch.randn(OUTPUTS, rank, generator=start, dtype=torch.float64).numpy()
        self.memory = {}

    def __call__(self, t, updates, weights):
        cut = INPUTS * OUTPUTS
        owed = {i: update + self.memory.get(i, np.zeros(SIZE)) for i, update in updates.items()}
        matrices = {i: p[:cut].reshape(INPUTS, OUTPUTS) for i, p in owed.items()}
        p_hat, _ = np.linalg.qr(mean({i: m @ self.q for i, m in matrices.items()}, weights))  # 2, 3, 4
        q = {i: m.T @ p_hat for i, m in matrices.items()}  # 5
        self.q = mean(q, weights)  # 6: all-reduce mean; where the next round starts
        for i, p in owed.items():  # e_w = Delta_w - decompress(C(Delta_w)); vectors go as they are
            self.memory[i] = np.concatenate([p[:cut] - (p_hat @ q[i].T).ravel(), np.zeros(OUTPUTS)])
        rest = mean({i: p[cut:] for i, p in owed.items()}, weights)
        return np.concatenate([(p_hat @ self.q.T).ravel(), rest])


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_equals_the_papers_loop_and_so_do_its_memories(rank, weighted):
    reference = PowerSgd(rank)
    expected = fedavg_by_hand(reference, weighted)
    result, kept = trained([fr.passes.powersgd(rank)], weighted, look=memory("powersgd.delta"))
    assert np.abs(vector_of(result) - expected).max() < 1e-12
    assert max(np.abs(kept[i] - reference.memory[i]).max() for i in reference.memory) < 1e-12


def from_rounded_models(levels, mean_of):
    """FedAvg whose sites start from the rounded model: Caldas et al. 2018 with QSGD's rounding."""

    def received(t, x):
        u = torch.rand(SIZE, generator=generator(t, "", "broadcast.params"), dtype=torch.float64).numpy()
        return rounded(x, u, levels) if x.any() else x

    return fedavg_by_hand(mean_of, received=received)


def test_a_rounded_model_is_where_sites_start_and_the_server_keeps_its_own():
    result, _ = trained([fr.passes.quantised_broadcast(15)])
    expected = from_rounded_models(15, lambda t, updates, weights: mean(updates, weights))
    assert np.abs(vector_of(result) - expected).max() < 1e-12


def test_bidirectional_equals_its_loop():
    both = fr.passes.bidirectional(fr.passes.topk(0.2), fr.passes.quantised_broadcast(15))
    result, _ = trained([both])
    expected = from_rounded_models(15, Remembering(lambda p, t: largest(p)))
    assert np.abs(vector_of(result) - expected).max() < 1e-12


class Ef21P:
    """EF21-P (Gruntkowska et al. 2023): workers compute at w^t, which follows the server's x^t."""

    def __init__(self):
        self.w = None

    def __call__(self, t, x):
        # w^0 = x^0; w^{t+1} = w^t + C(x^{t+1} - w^t)
        self.w = x if self.w is None else self.w + largest(x - self.w)
        return self.w


@pytest.mark.parametrize("up", [None, "topk", "ef21"])
def test_a_followed_model_is_where_sites_start(up):
    ups = {None: (lambda graph: graph, lambda t, updates, weights: mean(updates, weights)),
           "topk": (fr.passes.topk(0.2), Remembering(lambda p, t: largest(p))),
           "ef21": (fr.passes.ef21(0.2), Ef21())}  # fmt: skip
    compression, mean_of = ups[up]
    estimate = Ef21P()
    expected = fedavg_by_hand(mean_of, received=estimate)
    both = fr.passes.bidirectional(compression, fr.passes.ef21_broadcast(0.2))
    result, believed = trained([both], look=lambda federation: federation.aggregator.memory)
    assert np.abs(vector_of(result) - expected).max() < 1e-12
    kept = believed["ef21_broadcast.params"]
    assert np.abs(np.concatenate([kept[n].numpy().ravel() for n in ("W", "b")]) - estimate.w).max() < 1e-12


def test_without_memory_the_followed_model_would_be_another():
    def forgets(t, x):
        return largest(x)

    plain = fedavg_by_hand(lambda t, updates, weights: mean(updates, weights), received=forgets)
    right = fedavg_by_hand(lambda t, updates, weights: mean(updates, weights), received=Ef21P())
    assert np.abs(plain - right).max() > 1e-2


@pytest.mark.parametrize("compression", [item[0] for item in REMEMBERING.values()], ids=list(REMEMBERING))
def test_float32_is_close_to_float64_after_one_round(compression):
    wide, _ = trained([compression], rounds=1)
    narrow, _ = trained([compression], rounds=1, dtype=torch.float32)
    assert np.abs(vector_of(wide) - vector_of(narrow)).max() < 1e-4
