"""The robust rules in plain numpy, each a loop written from its paper over rows x of one round (n, d).

Nothing of fedray is imported. Where scores are equal the first row is taken.
"""

import numpy as np


def sorted_column(x, j):
    return np.sort(x[:, j])


def median(x):
    return np.array([np.median(x[:, j]) for j in range(x.shape[1])])


def trimmed_mean(x, f):
    """Yin et al. 2018, Definition 2: the largest and smallest f of each coordinate are left out."""
    return np.array([sorted_column(x, j)[f : len(x) - f].mean() for j in range(x.shape[1])])


def scores(x, neighbours):
    """Blanchard et al. 2017, section 4: s(i) = sum over the closest vectors of |V_i - V_j|^2."""
    found = []
    for i in range(len(x)):
        apart = sorted(((x[i] - x[j]) ** 2).sum() for j in range(len(x)) if j != i)
        found.append(sum(apart[:neighbours]))
    return np.array(found)


def first_smallest(values, count):
    order = sorted(range(len(values)), key=lambda i: (round(values[i], 9), i))
    return order[:count]


def multi_krum(x, f, keep):
    return x[first_smallest(scores(x, len(x) - f - 2), keep)].mean(0)


def krum(x, f):
    return multi_krum(x, f, 1)


def bulyan(x, f):
    """El Mhamdi et al. 2018, section 4: theta = n - 2f picks by Krum, beta = theta - 2f around the median."""
    left, picked = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        neighbours = min(max(1, len(left) - f - 2), len(left) - 1)
        best = first_smallest(scores(x[left], neighbours), 1)[0]
        picked.append(left.pop(best))
    s, beta = x[picked], len(picked) - 2 * f
    found = []
    for j in range(x.shape[1]):
        column = sorted_column(s, j)
        near = np.argsort(np.abs(column - np.median(column)), kind="stable")[:beta]
        found.append(column[near].mean())
    return np.array(found)


def weiszfeld(x, iterations=8, nu=1e-6):
    """Pillutla et al. 2022, Algorithm 2, with equal weights, started from the mean; on until it settles."""
    v, number, is_settled = x.mean(0), 0, False
    while number < iterations or not is_settled:
        far = np.array([max(nu, np.linalg.norm(v - row)) for row in x])
        last, v = v, ((1 / far)[:, None] * x).sum(0) / (1 / far).sum()
        number, is_settled = number + 1, np.linalg.norm(v - last) <= 0.01 * np.median(far)
    return v


def three_sigma(x, sigmas):
    far = np.linalg.norm(x - weiszfeld(x), axis=1)
    sd = 1.4826 * np.median(np.abs(far - np.median(far)))
    return x[far <= np.median(far) + sigmas * sd].mean(0)


def residual_reweighting(x, iterations=8, bound=2.0, least=0.1):
    n, v = len(x), x.mean(0)
    for _ in range(iterations):
        r = np.linalg.norm(x - v, axis=1)
        e = r / (1.48 * (1 + 5 / (n - 1)) * np.median(r))
        w = np.minimum(1, bound * np.sqrt(2 / n) / e)
        w[w < least] = 0
        v = (w[:, None] * x).sum(0) / w.sum()
    return v


def nearest_mixed(x, f):
    """Allouah et al. 2023, Algorithm 2: each row becomes the mean of its n - f nearest, itself included."""
    found = []
    for row in x:
        near = first_smallest([((row - other) ** 2).sum() for other in x], len(x) - f)
        found.append(x[near].mean(0))
    return np.array(found)


def bucketed(x, size, order):
    """Karimireddy et al. 2022, Algorithm 1, on a given order."""
    return np.array([x[order[i : i + size]].mean(0) for i in range(0, len(x), size)])


def norm_bound(x, bound=None):
    norms = np.linalg.norm(x, axis=1)
    bound = np.median(norms) if bound is None else bound
    return np.mean([row * min(1, bound / norm) for row, norm in zip(x, norms, strict=True)], axis=0)


def centred_clipping(x, v, iterations=1, tau=None):
    """Karimireddy et al. 2021, Algorithm 2: v <- v + mean (x_i - v) min(1, tau / |x_i - v|)."""
    for _ in range(iterations):
        far = np.linalg.norm(x - v, axis=1)
        radius = np.median(far) if tau is None else tau
        v = v + np.mean([(x[i] - v) * min(1, radius / far[i]) for i in range(len(x))], axis=0)
    return v


def fltrust(x, own):
    """Cao et al. 2021, Algorithm 2: TS_i = relu(cos(g_i, g_0)), updates at the length of g_0."""
    trust = [max(0, row @ own / np.linalg.norm(row) / np.linalg.norm(own)) for row in x]
    scaled = [np.linalg.norm(own) / np.linalg.norm(row) * row for row in x]
    return sum(t * row for t, row in zip(trust, scaled, strict=True)) / sum(trust)


def foolsgold(x, history):
    """Fung et al. 2020, Algorithm 1, over all coordinates, rates divided by their sum."""
    n = len(history)
    cs = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            cs[i, j] = history[i] @ history[j] / np.linalg.norm(history[i]) / np.linalg.norm(history[j])
    v = np.array([max(cs[i, j] for j in range(n) if j != i) for i in range(n)])
    alpha = np.zeros(n)
    for i in range(n):
        pardoned = [cs[i, j] * (v[i] / v[j] if v[j] > v[i] and v[j] > 0 else 1) for j in range(n) if j != i]
        alpha[i] = min(1, max(0, 1 - max(pardoned)))
    alpha = alpha / alpha.max()
    for i in range(n):
        if 0 < alpha[i] < 1:
            alpha[i] = min(1, max(0, np.log(alpha[i] / (1 - alpha[i])) + 0.5))
    return (alpha[:, None] * x).sum(0) / alpha.sum()
