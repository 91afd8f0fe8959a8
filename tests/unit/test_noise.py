"""Noise from the operating system's entropy: its distribution, its independence of any seed."""

import math

import numpy as np
import pytest
import torch

from fedray import noise

KEY = bytes(range(32))
N = 400_000


def distance(sample, cdf):
    """Return Kolmogorov's distance times sqrt(n): above 1.95 once in a thousand samples."""
    ordered = sample.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    here = cdf(ordered)
    return (
        float(torch.maximum((here - steps[:-1]).abs(), (here - steps[1:]).abs()).max()) * len(ordered) ** 0.5
    )


def skellam_probabilities(variance, last):
    """Return P(-last..last) by the definition: two Poisson laws, convolved."""
    counts = np.arange(int(variance / 2 + 30 * math.sqrt(variance) + 80))
    logs = counts * math.log(variance / 2) - variance / 2 - np.array([math.lgamma(c + 1) for c in counts])
    law = np.convolve(np.exp(logs), np.exp(logs)[::-1])
    return law[len(counts) - 1 - last : len(counts) + last]


def test_keystream_is_that_of_aes_256_in_counter_mode():
    # the published known answer of AES-256 for a zero key and a zero block
    block = noise.keystream(bytes(32))(16)
    assert block.hex() == "dc95c078a2408989ad48a21492842087"


def test_gaussian_numbers_follow_the_normal_law():
    sample = noise.gaussian(N, 2.5, noise.keystream(KEY))
    assert sample.dtype == torch.float32
    assert distance(sample / 2.5, torch.special.ndtr) < 1.63  # 1 in 100, of a fixed key
    z = sample.double() / 2.5
    assert abs(float(z.mean())) < 4 / N**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / N) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / N) ** 0.5


@pytest.mark.parametrize("bound", [3.0, 4.0])
def test_gaussian_tails_are_as_heavy_as_they_must_be(bound):
    expected = N * 2 * float(torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)))
    found = int((noise.gaussian(N, 1.0, noise.keystream(KEY)).abs() > bound).sum())
    assert abs(found - expected) < 4 * math.sqrt(expected)


def test_neighbours_and_pairs_of_one_draw_are_not_related():
    z = noise.gaussian(2 * noise.BLOCK, 1.0, noise.keystream(KEY)).double()
    pairs = z.view(-1, 2, noise.BLOCK // 2)  # cosines, then sines of a block
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 / len(z) ** 0.5
    assert abs(float((pairs[:, 0] * pairs[:, 1]).mean())) < 4 / (len(z) / 2) ** 0.5
    assert abs(float((pairs[:, 0] ** 2 * pairs[:, 1] ** 2).mean()) - 1) < 4 * 8 / (len(z) / 2) ** 0.5


@pytest.mark.parametrize("variance", [0.5, 9.0, 127.0, 129.0, 5000.0])
def test_skellam_numbers_follow_their_law(variance):
    sample = noise.skellam(N, variance, noise.keystream(KEY))
    assert sample.dtype == torch.int64
    last = int(4 * math.sqrt(variance)) + 1
    expected = N * skellam_probabilities(variance, last)
    found = torch.bincount(sample[sample.abs() <= last] + last, minlength=2 * last + 1).numpy()
    often = expected > 20
    chi2 = float((((found - expected) ** 2) / expected)[often].sum())
    assert abs(chi2 - often.sum()) < 4 * math.sqrt(2 * often.sum())


@pytest.mark.parametrize("variance", [1e7, 3.3e12, 1e17])
def test_wide_skellam_numbers_are_normal_to_their_moments(variance):
    z = noise.skellam(N, variance, noise.keystream(KEY)).double() / math.sqrt(variance)
    assert distance(z, torch.special.ndtr) < 1.63
    assert abs(float(z.var()) - 1) < 4 * (2 / N) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / N) ** 0.5


def test_poisson_probabilities_keep_their_accuracy_at_large_means():
    near = np.arange(-2000.0, 2001.0, 50.0)
    exact = [(1000 + int(k)) * math.log(1e3) - 1e3 - math.lgamma(1001 + int(k)) for k in near if k > -980]
    assert np.allclose(noise._log_poisson(near[near > -980], 1e3), exact, rtol=1e-12, atol=1e-10)
    far = np.array([0.0, 1e8, -1e8, 3e8])  # of a mean 1e17 with a deviation of 3.2e8
    normal = -(far**2) / 2e17 - 0.5 * math.log(2 * math.pi * 1e17)
    assert np.allclose(noise._log_poisson(far, 1e17), normal, atol=1e-8)


@pytest.mark.parametrize("draw", [lambda: noise.gaussian(8), lambda: noise.skellam(8, 1e6)])
def test_no_seed_of_torch_or_numpy_reaches_the_noise(draw):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        first = draw()
        torch.random.default_generator.manual_seed(1)
        assert not torch.equal(first, draw())


def test_a_source_of_a_test_gives_the_same_noise_again():
    for draw in (lambda s: noise.gaussian((3, 5), 2.0, s), lambda s: noise.skellam((3, 5), 1e4, s)):
        first = draw(noise.keystream(KEY))
        assert first.shape == (3, 5)
        assert torch.equal(first, draw(noise.keystream(KEY)))


def test_no_noise_is_exactly_zero_and_nonsense_is_refused():
    assert not noise.gaussian(5, 0.0).any()
    assert not noise.skellam(5, 0.0).any()
    assert 0 < float(noise.uniform(1000).min()) < float(noise.uniform(1000).max()) < 1
    with pytest.raises(ValueError, match="std"):
        noise.gaussian(5, -1.0)
    with pytest.raises(ValueError, match="variance"):
        noise.skellam(5, math.inf)
