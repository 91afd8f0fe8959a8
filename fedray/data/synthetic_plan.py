"""The hospitals of the synthetic ICU: a cheap global plan, and what is peculiar to each hospital.

The plan fixes size, attributes and intercept of all hospitals and holds no patient. Everything else of a
hospital is drawn from its own named streams, on the host that opens it. Start reading at `plan_hospitals`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fedray.data import synthetic_profile as profile
from fedray.errors import DataError
from fedray.rng import derive

Array = np.ndarray
MIN_ROWS = 8  # no hospital is smaller, however small the scale
_UNITS = tuple(profile.UNIT_TYPES)
_BETWEEN = np.array([profile.BETWEEN[name] for name in profile.LOADINGS])
_SLOPES = np.array(list(profile.SIGNAL.values()))
_TOP = np.argsort(-np.abs(_SLOPES), kind="stable")[: profile.SLOPE_TERMS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far hospitals differ. The defaults are what a real federation of ICUs plausibly shows.

    `size_sd` of the log size within a bed class; `intercept_sd`, `slope_sd`, `region_sd` in log-odds of
    death (slopes per standard deviation of a value); `value_sd` and `missing_sd` multiply the profile's
    spread of day-1 values and of missing rates; `unit_mix` multiplies the share of hospitals with several
    unit types. `unit_faults` hospitals report creatinine and bilirubin in umol/L and glucose in mmol/L,
    `no_labs` have no laboratory values, `flipped_labels` exchange death and survival. Raises DataError on
    negative numbers.
    """

    size_sd: float = 0.9
    intercept_sd: float = 0.4
    slope_sd: float = 0.1
    value_sd: float = 1.0
    missing_sd: float = 1.0
    unit_mix: float = 1.0
    region_sd: float = 0.0
    unit_faults: int = 0
    no_labs: int = 0
    flipped_labels: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not getattr(self, entry.name) >= 0:
                raise DataError(f"synthetic ICU: {entry.name}={getattr(self, entry.name)} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """What the plan fixes of a hospital; `intercept` is its own log-odds, without the federation's."""

    number: int
    beds: str
    teaching: bool
    region: str
    rows: int
    intercept: float
    fault: str

    @property
    def name(self) -> str:
        """The site name, `h001` and so on."""
        return f"h{self.number:03d}"


@dataclass(frozen=True, slots=True)
class Habits:
    """What a hospital does to all its stays, drawn from its stream "habits"."""

    latents: Array  # (latents,) shift of each latent in its own deviations
    absence: Array  # (groups,) probit shift of the missing rates
    slopes: Array  # (terms,) the hospital's own coefficients
    units: Array  # (unit types,) shares
    no_apache: float  # probit shift of the share of stays without day-1 rows


def open_stream(seed: int, site: str, label: str) -> np.random.Generator:
    """Open the NumPy stream of these names; equal on every host."""
    return np.random.Generator(np.random.PCG64(derive(seed, 0, site, f"synthetic {label}")))


# --- the plan ----------------------------------------------------------------------------------------------
def _apportion(shares: Mapping[str, float], total: int) -> list[str]:
    """Return `total` names in proportion to `shares`, by largest remainders."""
    quotas = np.array(list(shares.values()), float) * total / sum(shares.values())
    counts = np.floor(quotas).astype(int)
    counts[np.argsort(counts - quotas, kind="stable")[: total - counts.sum()]] += 1
    return [name for name, count in zip(shares, counts, strict=True) for _ in range(count)]


def _plan_regions(beds: list[str], rng: np.random.Generator) -> list[str]:
    """Return a region each: the published counts, blanks mostly where the bed class is blank too."""
    regions = np.array(_apportion(profile.REGIONS, len(beds)), dtype=object)
    rng.shuffle(regions)
    for here in np.flatnonzero(regions == ""):
        if beds[here] != "" and rng.random() < profile.BLANK_REGION_AND_BEDS:
            others = [i for i, bed in enumerate(beds) if bed == "" and regions[i] != ""]
            if others:
                there = others[int(rng.integers(len(others)))]
                regions[here], regions[there] = regions[there], regions[here]
    return [str(region) for region in regions]


def _plan_rows(beds: list[str], scale: float, size_sd: float, rng: np.random.Generator) -> Array:
    """Return rows each: log-normal within a bed class, rescaled to the class's published mean."""
    sizes = np.exp(size_sd * np.clip(rng.standard_normal(len(beds)), *profile.SIZE_LIMITS))
    for bed, (hospitals, stays) in profile.BEDS.items():
        members = np.array([b == bed for b in beds])
        if members.any():
            sizes[members] *= stays / hospitals / sizes[members].mean()
    return np.maximum(MIN_ROWS, np.rint(sizes * scale)).astype(int)


def plan_hospitals(num_sites: int, scale: float, seed: int, shift: Shift) -> list[Hospital]:
    """Draw attributes, sizes and intercepts of all hospitals: numbers only, no patient.

    `scale=1` is 200,859 stays in 208 hospitals; fewer hospitals keep the mean size.
    Raises DataError for no site, a scale of 0 or less, or more faulty hospitals than hospitals.
    """
    faults = ["units"] * shift.unit_faults + ["no_labs"] * shift.no_labs + ["flipped"] * shift.flipped_labels
    if num_sites < 1 or not scale > 0 or len(faults) > num_sites:
        raise DataError(
            f"synthetic ICU: num_sites={num_sites} must be 1 or more, scale={scale} above 0, and the "
            f"{len(faults)} faulty hospitals (unit_faults + no_labs + flipped_labels) no more than sites"
        )
    rng = open_stream(seed, "", "plan")
    beds = _apportion({bed: hospitals for bed, (hospitals, _) in profile.BEDS.items()}, num_sites)
    rng.shuffle(beds)
    regions = _plan_regions(beds, rng)
    rows = _plan_rows(beds, scale, shift.size_sd, rng)
    teaching = np.zeros(num_sites, bool)
    for bed, count in profile.TEACHING.items():
        members = [i for i, b in enumerate(beds) if b == bed]
        largest = sorted(members, key=lambda i: -rows[i])[: round(count * num_sites / profile.NUM_HOSPITALS)]
        teaching[largest] = True
    effects = dict(zip(profile.REGIONS, rng.standard_normal(len(profile.REGIONS)), strict=True))
    own = rng.standard_normal(num_sites)
    order = rng.permutation(num_sites)
    fault = dict(zip((int(i) for i in order), faults, strict=False))
    return [
        Hospital(
            number=i + 1,
            beds=beds[i],
            teaching=bool(teaching[i]),
            region=regions[i],
            rows=int(rows[i]),
            intercept=float(shift.intercept_sd * own[i] + shift.region_sd * effects[regions[i]]),
            fault=fault.get(i, ""),
        )
        for i in range(num_sites)
    ]


def draw_habits(hospital: Hospital, seed: int, shift: Shift) -> Habits:
    """Draw what is peculiar to a hospital beyond the plan."""
    rng = open_stream(seed, hospital.name, "habits")
    latents = shift.value_sd * np.sqrt(_BETWEEN) * rng.standard_normal(len(_BETWEEN))
    spreads = np.array([group.habit_sd for group in profile.ABSENCE.values()])
    absence = shift.missing_sd * spreads * rng.standard_normal(len(spreads))
    slopes = _SLOPES.copy()
    slopes[_TOP] += shift.slope_sd * rng.standard_normal(len(_TOP))
    no_apache = shift.missing_sd * profile.NO_APACHE_ROW[1] * float(rng.standard_normal())
    weights = np.array([profile.UNIT_TYPES[name] for name in _UNITS])
    if rng.random() < shift.unit_mix * profile.SEVERAL_UNIT_TYPES[hospital.beds]:
        units = rng.dirichlet(np.where(np.array(_UNITS) == "Med-Surg ICU", 0.5, 8 * weights))
    else:
        units = np.zeros(len(_UNITS))
        general = rng.random() < 0.93
        units[0 if general else int(rng.integers(1, len(_UNITS)))] = 1.0
    return Habits(latents, absence, slopes, units, no_apache)
