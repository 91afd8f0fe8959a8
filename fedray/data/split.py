"""Random splits of a site's rows into train, valid and test, reproducible from (seed, site) alone.

0 is train, 1 valid, 2 test. Rows of one group (a patient with several stays) never straddle splits. A row's
split does not depend on other sites, so a site can draw its own.
"""

import numpy as np

from fedray.errors import DataError
from fedray.rng import derive

TRAIN, VALID, TEST = 0, 1, 2
Array = np.ndarray


def stream(seed: int, site: str, label: str) -> np.random.Generator:
    """Open the numpy stream of (seed, site, label)."""
    return np.random.default_rng(derive(seed, 0, site, label))


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave no training rows. Raises: DataError."""
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise DataError(f"valid_fraction={valid_fraction} and test_fraction={test_fraction} must be 0 or "
                        "more and leave training rows. Fix: valid_fraction=0.1 test_fraction=0.2")


def split_rows(rows: int, valid_fraction: float, test_fraction: float, seed: int, site: str,
               group: Array | None = None, label: Array | None = None) -> Array:
    """Return 0/1/2 for each row, int8; shares are of groups, within each class of `label` where one is given.

    A group's class is the largest of its rows. Shares are rounded down or up by one draw, so that over many
    small sites they hold in the mean.
    """
    check_fractions(valid_fraction, test_fraction)
    names, group_of = np.unique(np.arange(rows) if group is None else np.asarray(group), return_inverse=True)
    kind = np.zeros(len(names))
    if label is not None:
        kind[:] = -np.inf
        np.maximum.at(kind, group_of, np.asarray(label, np.float64))
    rng = stream(seed, site, "split")
    part = np.zeros(len(names), np.int8)
    for value in np.unique(kind):
        members = rng.permutation(np.flatnonzero(kind == value))
        num_test = _share(len(members), test_fraction, rng)
        num_valid = min(_share(len(members), valid_fraction, rng), len(members) - num_test)
        part[members[:num_test]] = TEST
        part[members[num_test:num_test + num_valid]] = VALID
    return part[group_of]


def hold_out(part: Array, fraction: float, seed: int, site: str, group: Array | None = None) -> Array:
    """Return `part` with a share of the training rows (whole groups) moved to validation."""
    rows = np.flatnonzero(part == TRAIN)
    moved = split_rows(len(rows), fraction, 0.0, seed, site, None if group is None else group[rows])
    part = part.copy()
    part[rows] = moved
    return part


def _share(count: int, fraction: float, rng: np.random.Generator) -> int:
    exact = fraction * count
    return int(exact) + int(rng.random() < exact - int(exact))
