"""The patient split of the eICU cohorts against a plain rewrite of the published recipe."""

import math

import numpy as np
import pandas as pd

from fedray.data.eicu_split import split_stays


def made_stays(num_patients: int = 400, num_hospitals: int = 12) -> pd.DataFrame:
    """Return generated stays: every fifth patient has two, some of those in two hospitals."""
    rng = np.random.default_rng(3)
    rows = [(f"p{rng.integers(10**6):06d}-{patient}", int(rng.integers(num_hospitals)),
             int(rng.random() < 0.15))
            for patient in range(num_patients)]
    again = [(name, int(rng.integers(num_hospitals)), int(rng.random() < 0.3)) for name, _, _ in rows[::5]]
    frame = pd.DataFrame(rows + again, columns=["patient", "hospital", "died"])
    frame["stay"] = rng.permutation(len(frame)) + 1000
    return frame


def plain_split(frame: pd.DataFrame, seed: int) -> set[str]:
    """Return the test patients, written from the recipe's text."""
    ordered = frame.sort_values("stay")
    home = ordered.groupby("patient")["hospital"].first()
    died = ordered.groupby("patient")["died"].max()
    rng = np.random.RandomState(seed)
    test: set[str] = set()
    for hospital, ever_died in sorted(set(zip(home, died, strict=True))):
        members = np.array(sorted(home.index[(home == hospital) & (died == ever_died)]), dtype=object)
        rng.shuffle(members)
        share = 0.3 * len(members)
        u = rng.uniform()
        count = math.floor(share) + 1 if u < share - math.floor(share) else math.floor(share)
        test |= set(members[:count])
    return test


def split(frame: pd.DataFrame, seed: int) -> np.ndarray:
    return split_stays(*(frame[name].to_numpy() for name in ("stay", "hospital", "patient", "died")), seed)


def test_split_equals_the_published_recipe():
    frame = made_stays()
    assert [set(frame["patient"][split(frame, seed)]) for seed in range(5)] == [plain_split(frame, seed)
                                                                                for seed in range(5)]


def test_no_patient_is_on_both_sides():
    frame = made_stays()
    is_test = split(frame, 0)
    assert not set(frame["patient"][is_test]) & set(frame["patient"][~is_test])


def test_order_of_the_rows_does_not_matter():
    frame = made_stays()
    shuffled = frame.sample(frac=1.0, random_state=1)
    assert set(frame["stay"][split(frame, 4)]) == set(shuffled["stay"][split(shuffled, 4)])


def test_share_of_deaths_is_kept_on_average():
    frame = made_stays()
    deaths = [frame["died"][split(frame, seed)].sum() for seed in range(40)]
    assert abs(np.mean(deaths) / frame["died"].sum() - 0.3) < 0.02
