"""The square-root matrix mechanism in numbers: its coefficients, its sensitivity, its error.

Noise of round t is the t-th entry of C^-1 z, C the lower-triangular Toeplitz matrix of the first b
coefficients of (1 - x)^(-1/2), so that noise of neighbouring rounds cancels in a sum over rounds. A unit that
takes part at most k times, b or more rounds apart, moves C x by sqrt(k) |c|_2 at most, and all rounds
together are ONE Gaussian release of that sensitivity. With every unit in every round (b = 1) it is plain
Gaussian noise.
Source: Fichtenberger, Henzinger, Upadhyay, Constant matters, ICML 2023 (the square root); Choquette-Choo et
al., (Amplified) banded matrix factorization, NeurIPS 2023, Theorem 2 (participations).
"""

import math

import numpy as np
from numpy.typing import NDArray

LEAST_BANDS = 4


def square_root(bands: int) -> NDArray[np.float64]:
    """Return the first coefficients: c_0 = 1, c_k = c_(k-1) (2k - 1) / 2k."""
    steps = np.arange(1, bands, dtype=np.float64)
    return np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))


def bands_of(apart: int) -> int:
    """Return the bands for sites that take turns every so many rounds: fewer than 4 gain next to nothing."""
    return apart if apart >= LEAST_BANDS else 1


def sensitivity(bands: int, participations: int) -> float:
    """Return the sensitivity of all rounds, in clip bounds; who takes part rests for `bands - 1` rounds."""
    return math.sqrt(participations) * float(np.linalg.norm(square_root(bands)))


def rms_error(bands: int, rounds: int) -> float:
    """Return the root mean square, over rounds, of the standard deviation of the noise in the running sum.

    For noise of unit standard deviation; plain noise has sqrt((rounds + 1) / 2).
    """
    coefficients = square_root(min(bands, rounds))
    inverse = np.zeros(rounds)
    inverse[0] = 1.0
    for row in range(1, rounds):
        reach = min(row, len(coefficients) - 1)
        inverse[row] = -np.dot(coefficients[1 : reach + 1], inverse[row - reach : row][::-1])
    running = np.cumsum(inverse)  # the first column of A C^-1, itself Toeplitz
    return math.sqrt(float(np.sum(np.cumsum(running**2))) / rounds)
