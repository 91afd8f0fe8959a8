"""A synthetic intensive care federation that needs no file: 208 hospitals, death in hospital from day-1
values.

Start reading at `synthetic_icu`. A plan (`synthetic_plan.py`) fixes size and attributes of each hospital;
its stays (`synthetic_stays.py`) are drawn when it is opened, on the host that opens it, from streams named
by the hospital, so no host generates the patients of another. The constants are in `synthetic_profile.py`;
`synth_tables.py` writes the same federation as eICU tables.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedray.data import synthetic_profile as profile
from fedray.data.site import Dataset, SiteData
from fedray.data.synthetic_plan import (
    MIN_ROWS,
    Array,
    Hospital,
    Shift,
    draw_habits,
    open_stream,
    plan_hospitals,
)
from fedray.data.synthetic_stays import (
    apply_unit_fault,
    draw_absence,
    draw_outcome,
    draw_reference,
    draw_stays,
    standardise,
)
from fedray.errors import DataError

_REFERENCE_ROWS = 25_000  # stays behind the intercept of 208 hospitals: their mean risk is known to 0.001
PREPARED = (*profile.FEATURES, *(f"missing_{name}" for name in profile.INDICATORS))


def synthetic_icu(num_sites: int = 208, scale: float = 0.1, seed: int = 7, *, test_fraction: float = 0.2,
                  valid_fraction: float = 0.1, prepared: bool = True, size_sd: float = 0.9,
                  intercept_sd: float = 0.4, slope_sd: float = 0.1, value_sd: float = 1.0,
                  missing_sd: float = 1.0, unit_mix: float = 1.0, region_sd: float = 0.0,
                  unit_faults: int = 0, no_labs: int = 0, flipped_labels: int = 0) -> Dataset:
    """Return a federation of simulated ICUs: death in hospital (8.96 %) from the first day's worst values.

    `scale=1` is the size of eICU-CRD, 200,859 stays in 208 hospitals; no hospital has fewer than 8. One row
    is one hospital stay. Columns: `x` (rows, features), `y`, and `reference`, an APACHE-IVa-like predicted
    mortality (NaN where unscored), never an input. With `prepared`, `x` is standardised with the generator's
    public constants, 0 where missing, with 12 missing indicators (51 features), and needs no federated
    preparation; without, it is 39 columns in natural units, NaN where missing. Patients never straddle
    splits. The other knobs are those of `Shift`. Raises DataError on sizes, fractions or knobs that cannot
    be.
    """
    if not (test_fraction >= 0 and valid_fraction >= 0 and test_fraction + valid_fraction < 1):
        raise DataError(f"synthetic ICU: test_fraction={test_fraction} and valid_fraction={valid_fraction} "
                        "must be 0 or more and leave training rows: their sum must be below 1")
    shift = Shift(size_sd=size_sd, intercept_sd=intercept_sd, slope_sd=slope_sd, value_sd=value_sd,
                  missing_sd=missing_sd, unit_mix=unit_mix, region_sd=region_sd, unit_faults=unit_faults,
                  no_labs=no_labs, flipped_labels=flipped_labels)
    hospitals = plan_hospitals(num_sites, scale, seed, shift)
    recipe = (profile.GENERATOR_VERSION, num_sites, scale, seed, test_fraction, valid_fraction, prepared,
              shift)
    intercept = find_intercept(hospitals, seed, shift)
    return Dataset(
        sites={hospital.name: OpenHospital(hospital, shift, seed, intercept, test_fraction, valid_fraction,
                                           prepared) for hospital in hospitals},
        name="synthetic_icu", features=PREPARED if prepared else profile.FEATURES, outcome="binary",
        sizes={hospital.name: hospital.rows for hospital in hospitals},
        regions={hospital.name: hospital.region or "unknown" for hospital in hospitals},
        version=hashlib.sha256(repr(recipe).encode()).hexdigest()[:16])


def find_intercept(hospitals: list[Hospital], seed: int, shift: Shift) -> float:
    """Return the federation's intercept at which the mean risk is the published mortality.

    The sample are the federation's own stays where these are few (then only the draw of deaths is left to
    chance, a deviation of 0.0018 in 20,000), else as many stays of the same hospitals, weighted by size.
    """
    total = sum(hospital.rows for hospital in hospitals)
    share = min(1.0, max(_REFERENCE_ROWS * len(hospitals) / profile.NUM_HOSPITALS, 4_000) / total)
    risks, weights = [], []
    for hospital in hospitals:
        rows = max(MIN_ROWS, round(share * hospital.rows))
        habits = draw_habits(hospital, seed, shift)
        risks.append(draw_stays(hospital, habits, rows, open_stream(seed, hospital.name, "stays"))["risk"])
        weights.append(np.full(rows, hospital.rows / rows))
    risk, weight = np.concatenate(risks), np.concatenate(weights)
    low, high = -15.0, 15.0
    for _ in range(40):  # 30 / 2^40: far below what a draw can see
        middle = (low + high) / 2
        rate = float((weight / (1.0 + np.exp(-risk - middle))).sum() / weight.sum())
        low, high = (middle, high) if rate < profile.MORTALITY else (low, middle)
    return round((low + high) / 2, 6)


@dataclass(frozen=True, slots=True)
class OpenHospital:
    """Generate one hospital's `SiteData` when called; it holds a few numbers and no patient."""

    hospital: Hospital
    shift: Shift
    seed: int
    intercept: float
    test_fraction: float
    valid_fraction: float
    prepared: bool

    def __call__(self) -> SiteData:
        """Draw the stays, the same on every host."""
        hospital = self.hospital
        habits = draw_habits(hospital, self.seed, self.shift)
        columns = draw_stays(hospital, habits, hospital.rows, self._stream("stays"))
        absent = draw_absence(columns, habits, hospital, self._stream("absence"))
        died = draw_outcome(columns, hospital, self.intercept, self._stream("outcome"))
        stream = self._stream("reference")
        reference = draw_reference(columns["risk"] + self.intercept, stream)
        reference[stream.random(hospital.rows) < profile.UNSCORED] = np.nan
        if hospital.fault == "units":
            apply_unit_fault(columns)
        x = prepare(columns, absent) if self.prepared else natural(columns, absent)
        return SiteData(
            {
                "x": torch.from_numpy(x),
                "y": torch.from_numpy(died.astype(np.float32)),
                "reference": torch.from_numpy(reference.astype(np.float32)),
            },
            split_patients(
                columns["first_of_patient"],
                died,
                self.test_fraction,
                self.valid_fraction,
                self._stream("splits"),
            ),
        )

    def _stream(self, label: str) -> np.random.Generator:
        return open_stream(self.seed, self.hospital.name, label)


# --- features and splits -----------------------------------------------------------------------------------
def _group_of(name: str) -> str:
    """Return the missing group of a feature, "" if it is always there."""
    source = name.removeprefix("dev_")
    return next((group for group, entry in profile.ABSENCE.items() if source in entry.columns), "")


_GROUPS = tuple(_group_of(name) for name in profile.FEATURES)


def natural(columns: Mapping[str, Array], absent: Mapping[str, Array]) -> Array:
    """Return the 39 features in natural units, (rows, 39) float32, NaN where missing."""
    x = np.stack([columns[name] for name in profile.FEATURES], axis=1).astype(np.float32)
    for place, group in enumerate(_GROUPS):
        if group:
            x[absent[group], place] = np.nan
    return x


def prepare(columns: Mapping[str, Array], absent: Mapping[str, Array]) -> Array:
    """Return the features standardised, 0 where missing, and the centred missing indicators."""
    values = [standardise(name, columns[name]) for name in profile.FEATURES]
    for place, group in enumerate(_GROUPS):
        if group:
            values[place] = np.where(absent[group], 0.0, values[place])
    flags = [absent[name] - profile.ABSENCE[name].rate for name in profile.INDICATORS]
    return np.stack([*values, *flags], axis=1).astype(np.float32)


def split_patients(
    first_of_patient: Array,
    died: Array,
    test_fraction: float,
    valid_fraction: float,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Return row numbers of train, valid and test: whole patients, shuffled within those who died and who
    did not.

    The share of each group is rounded up with probability equal to its fraction, down otherwise.
    """
    patients, place = np.unique(first_of_patient, return_inverse=True)
    ever_died = np.zeros(len(patients), bool)
    np.logical_or.at(ever_died, place, died > 0)
    split = np.zeros(len(patients), int)  # 0 train, 1 valid, 2 test
    for outcome in (False, True):
        members = rng.permutation(np.flatnonzero(ever_died == outcome))
        num_test, num_valid = np.floor(
            np.array([test_fraction, valid_fraction]) * len(members) + rng.random(2)
        ).astype(int)
        split[members[:num_test]] = 2
        split[members[num_test : num_test + num_valid]] = 1
    return {
        name: torch.from_numpy(np.flatnonzero(split[place] == number))
        for number, name in enumerate(("train", "valid", "test"))
    }
