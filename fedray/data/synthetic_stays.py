"""The stays of one synthetic hospital, drawn as whole columns: values, dependence, gaps and outcome.

A stay's latents are five factors (moved by its diagnosis) times loadings, plus its own noise, plus the
hospital's shift; marginals turn latents into charted values; the outcome is a logistic model of the true
values, so what goes missing afterwards is lost to a model but not to the outcome. Start reading at
`draw_stays`.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from fedray.data import synthetic_profile as profile
from fedray.data.synthetic_plan import Array, Habits, Hospital

_LATENTS = tuple(profile.LOADINGS)
_LOADINGS = np.array([profile.LOADINGS[name] for name in _LATENTS])
_OWN = np.sqrt(1.0 - (_LOADINGS**2).sum(axis=1))  # what the factors leave of a latent's deviation
_BETWEEN = np.array([profile.BETWEEN[name] for name in _LATENTS])
_UNITS = tuple(profile.UNIT_TYPES)
_DIAGNOSES = tuple(profile.DIAGNOSES.values())
_SURGICAL = [list(profile.DIAGNOSES).index(name) for name in profile.SURGICAL]
_CHRONIC = [profile.FACTORS.index(name) for name in ("reserve", "kidney")]


def latent_of(columns: Mapping[str, Array], name: str) -> Array:
    """Return the standard normal latent behind a day-1 value."""
    return columns["latents"][:, _LATENTS.index(name)]


def to_value(marginal: profile.Marginal, z: Array) -> Array:
    """Map a standard normal latent to a value of this marginal, rounded and limited as if charted."""
    if marginal.shape == "heavy":
        value = marginal.low + marginal.low_sd * np.sinh(marginal.high_sd * z)
    else:
        away = z - marginal.split
        low, high = (
            np.log((marginal.low, marginal.high))
            if marginal.shape == "log"
            else (marginal.low, marginal.high)
        )
        value = np.where(away < 0, low + marginal.low_sd * away, high + marginal.high_sd * away)
        if marginal.shape == "log":
            value = np.exp(value)
        elif marginal.shape == "square":
            value = np.maximum(value, 0.0) ** 2
    return np.clip(np.round(value, marginal.decimals), marginal.minimum, marginal.maximum)


def _draw_groups(rows: int, visits: bool, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return each row's first row of the same patient, first row of the same hospital stay, visit number."""
    index = np.arange(rows)
    several, new_patient = rng.random((2, rows))
    num_visits = 1 + (several < 0.13).astype(int) + (several < 0.03) if visits else np.ones(rows, int)
    stay = np.repeat(index, num_visits)[:rows]
    begins_stay = np.diff(stay, prepend=-1) > 0
    begins_patient = begins_stay & (new_patient < profile.NEW_PATIENT)
    begins_patient[:1] = True
    first_of_stay = np.maximum.accumulate(np.where(begins_stay, index, 0))
    return np.maximum.accumulate(np.where(begins_patient, index, 0)), first_of_stay, index - first_of_stay + 1


def _draw_diagnoses(unit: Array, rng: np.random.Generator) -> Array:
    """Return a diagnosis number each, drawn from the mix of the row's unit type."""
    uniform = rng.random(len(unit))
    diagnosis = np.zeros(len(unit), int)
    for number in np.unique(unit):
        weights = np.array(
            [
                entry.share * (6.0 if entry.unit and entry.unit in _UNITS[number] and number else 1.0)
                for entry in _DIAGNOSES
            ]
        )
        members = unit == number
        diagnosis[members] = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], uniform[members])
    return diagnosis


def draw_stays(
    hospital: Hospital, habits: Habits, rows: int, rng: np.random.Generator, *, visits: bool = False
) -> dict[str, Array]:
    """Draw `rows` unit stays: values before anything goes missing, and the linear predictor without
    intercept.

    Returns columns by name: the natural features, `unit`, `diagnosis`, comorbidities, `surgical`,
    `elective`, `factors` (rows, 5), `latents` (rows, latents), `first_of_patient`, `first_of_stay`, `visit`,
    `risk` (log-odds but for the federation's intercept). Without `visits` every hospital stay has one unit
    stay. Stays of a patient are neighbours and share age, sex and part of reserve and kidney function.
    """
    patient, stay, visit = _draw_groups(rows, visits, rng)
    unit = np.searchsorted(np.cumsum(habits.units)[:-1], rng.random(rows), side="right")
    columns: dict[str, Array] = {"first_of_patient": patient, "first_of_stay": stay}
    columns.update(visit=visit, unit=unit)
    diagnosis = _draw_diagnoses(unit, rng)
    shared = np.arange(rows) != patient
    factors = rng.standard_normal((rows, len(profile.FACTORS)))
    chronic = factors[:, _CHRONIC]
    factors[:, _CHRONIC] = np.where(shared[:, None], 0.8 * chronic[patient] + 0.6 * chronic, chronic)
    factors += np.array([entry.factors for entry in _DIAGNOSES])[diagnosis]
    noise = rng.standard_normal((rows, len(_LATENTS)))
    within = np.sqrt(1.0 - _BETWEEN)  # einsum without BLAS: the same bits whatever the number of threads
    latents = within * (np.einsum("rf,vf->rv", factors, _LOADINGS) + _OWN * noise) + habits.latents
    columns.update(diagnosis=diagnosis, factors=factors, latents=latents)
    for name, marginal in profile.MARGINALS.items():
        columns[name] = to_value(marginal, latent_of(columns, name))
    columns["age"] = columns["age"][patient]
    columns["female"] = (rng.random(rows) < profile.FEMALE)[patient].astype(float)
    _add_flags(columns, rng)
    add_derived(columns)
    effect = np.array([entry.effect for entry in _DIAGNOSES])[diagnosis]
    for name, (rate, log_odds) in profile.COMORBID.items():
        columns[name] = (rng.random(rows) < rate)[patient].astype(float)
        effect = effect + log_odds * columns[name]
    columns["surgical"] = np.isin(diagnosis, _SURGICAL)
    columns["elective"] = (columns["surgical"] & (rng.random(rows) < 0.9)).astype(float)
    columns["risk"] = predictor(columns, habits.slopes) + effect + hospital.intercept
    return columns


def _add_flags(columns: dict[str, Array], rng: np.random.Generator) -> None:
    """Add ventilation, dialysis and coma score parts, from the latents drawn before."""
    for name, rate in profile.FLAG_RATES.items():
        columns[name] = (latent_of(columns, name) > NormalDist().inv_cdf(1 - rate)).astype(float)
    shared = latent_of(columns, "gcs")
    for name, cuts in profile.GCS_CUTS.items():
        own = np.sqrt(1 - profile.GCS_SHARED**2) * rng.standard_normal(len(shared))
        columns[name] = 1.0 + np.searchsorted(cuts, profile.GCS_SHARED * shared + own)
    unable = profile.UNABLE_RATE * np.where(columns["vent"] > 0, 3.0, 0.5)
    columns["gcs_unable"] = (rng.random(len(shared)) < unable).astype(float)
    columns["gcs"] = columns["eyes"] + columns["motor"] + columns["verbal"]


def add_derived(columns: dict[str, Array]) -> None:
    """Add P/F, the distances from normal and the age term, in place, from the day-1 columns."""
    columns["pf"] = columns["pao2"] / (columns["fio2"] / 100.0)
    for name, middle in profile.NORMAL.items():
        columns[f"dev_{name}"] = np.abs(columns[name] - middle)
    columns["age2"] = (columns["age"] - 60.0) ** 2 / 100.0


def standardise(name: str, value: Array) -> Array:
    """Return a feature in public standard deviations from its public mean, limited to +-CLIP."""
    mean, sd = profile.STANDARD[name]
    seen = np.log1p(np.maximum(value, 0.0)) if name in profile.LOGGED else value
    return np.clip((seen - mean) / sd, -profile.CLIP, profile.CLIP)


def predictor(columns: Mapping[str, Array], slopes: Array) -> Array:
    """Return the log-odds of death that the day-1 values carry, without any intercept."""
    total = np.zeros(len(columns["age"]))
    for name, slope in zip(profile.SIGNAL, slopes, strict=True):
        total += slope * standardise(name, columns[name])
    return total


def draw_absence(
    columns: Mapping[str, Array], habits: Habits, hospital: Hospital, rng: np.random.Generator
) -> dict[str, Array]:
    """Return, for each group of columns in `profile.ABSENCE`, which rows lack it."""
    rows = len(columns["age"])
    panels = rng.standard_normal((rows, 2))
    severity = (columns["risk"] - hospital.intercept) / profile.RISK_SD
    absent = {}
    for number, (name, group) in enumerate(profile.ABSENCE.items()):
        own = rng.standard_normal(rows)
        latent = (
            own if group.panel > 1 else group.tie * panels[:, group.panel] + np.sqrt(1 - group.tie**2) * own
        )
        spread = np.sqrt(1 + group.habit_sd**2 + group.severity**2)
        bound = spread * NormalDist().inv_cdf(group.rate) + habits.absence[number]
        absent[name] = latent + group.severity * severity < bound
    absent["gcs"] |= columns["gcs_unable"] > 0
    if hospital.fault == "no_labs":
        absent.update({name: np.ones(rows, bool) for name in profile.LABS})
    return absent


def draw_outcome(
    columns: dict[str, Array], hospital: Hospital, intercept: float, rng: np.random.Generator
) -> Array:
    """Return death (0/1) of each row's hospital stay, and let a patient end with it.

    A stay that follows a death becomes another patient's, so nobody dies twice. A hospital with flipped
    labels reports the opposite of what happened.
    """
    stay = columns["first_of_stay"]
    risk = columns["risk"] + intercept
    died = (rng.random(len(risk)) < 1.0 / (1.0 + np.exp(-risk)))[stay]
    index = np.arange(len(risk))
    begins = columns["first_of_patient"] == index
    begins[1:] |= died[:-1] & (stay[1:] == index[1:])
    columns["first_of_patient"] = np.maximum.accumulate(np.where(begins, index, 0))
    reported = ~died if hospital.fault == "flipped" else died
    return np.asarray(reported, dtype=float)


def apply_unit_fault(columns: dict[str, Array]) -> None:
    """Turn creatinine and bilirubin into umol/L and glucose into mmol/L, in place."""
    for name, factor in profile.UNIT_FAULTS.items():
        columns[name] = np.round(columns[name] * factor, 1)
    add_derived(columns)


def draw_reference(risk: Array, rng: np.random.Generator) -> Array:
    """Return an APACHE-IVa-like predicted mortality: the true one with error, and too high on average."""
    offset, slope, error = profile.REFERENCE
    return 1.0 / (1.0 + np.exp(-offset - slope * (risk + error * rng.standard_normal(len(risk)))))
