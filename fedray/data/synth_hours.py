"""The hourly grid of a synthetic hospital (48 laboratory values and vital signs), and the raw tables behind
it.

Layout of the grid: one row an hour from unit admission to discharge, at most 7 days, for stays of 6 hours
or more; `stay_id`, `time` (duration), then VARIABLES, null where nothing was charted. Values follow the
latents and factors that also made the day-1 values. `raw_tables` turns a grid into lab and vitalPeriodic
rows that average back to it. Start reading at `draw_grid`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from fedray.data import synthetic_profile as profile
from fedray.data.synthetic_plan import Array, Hospital
from fedray.data.synthetic_stays import latent_of, to_value

CHUNK = 500  # stays at a time: about 27,000 hours, 11 MB
MIN_HOURS, MAX_HOURS = 6, 168
VARIABLES = (
    "alb", "alp", "alt", "ast", "be", "bicar", "bili", "bili_dir", "bnd", "bun", "ca", "cai", "ck", "ckmb",
    "cl", "crea", "crp", "dbp", "fgn", "fio2", "glu", "hgb", "hr", "inr_pt", "k", "lact", "lymph", "map",
    "mch", "mchc", "mcv", "methb", "mg", "na", "neut", "o2sat", "pco2", "ph", "phos", "plt", "po2", "ptt",
    "resp", "sbp", "temp", "tnt", "urine", "wbc",
)
GRID_SCHEMA = pa.schema(
    [("stay_id", pa.int32()), ("time", pa.duration("s")), *((n, pa.float64()) for n in VARIABLES)]
)
STATIC_SCHEMA = pa.schema(
    [
        ("stay_id", pa.int32()),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("height", pa.float64()),
        ("weight", pa.float64()),
    ]
)

# mean, sd between stays, sd within a stay, latent that it follows and how closely, share of hours charted,
# limits, decimals
_VITALS = {
    "hr": (84, 15, 8, "heartrate", 0.6, 0.94, 20, 220, 0),
    "resp": (19.5, 4, 4.5, "respiratoryrate", 0.5, 0.84, 2, 60, 1),
    "map": (81, 11, 10, "meanbp", 0.5, 0.86, 25, 180, 1),
    "o2sat": (96.8, 1.7, 2.2, "pao2", 0.3, 0.87, 60, 100, 1),
    "temp": (36.8, 0.45, 0.4, "temperature", 0.6, 0.26, 32, 42, 2),
}
# laboratory values that have a day-1 counterpart
_TWINS = {
    "crea": "creatinine",
    "bun": "bun",
    "glu": "glucose",
    "wbc": "wbc",
    "na": "sodium",
    "alb": "albumin",
    "bili": "bilirubin",
    "ph": "ph",
    "po2": "pao2",
    "pco2": "pco2",
}
# the others: log or not, location, sd, loadings on (reserve, drive, carbon, support, kidney), decimals
_OTHERS = {
    "alp": (True, 79, 0.5, (0.2, 0, 0, 0, 0), 0),
    "alt": (True, 30, 1.0, (0, 0.3, 0, 0.1, 0), 0),
    "ast": (True, 35, 1.1, (0, 0.3, 0, 0.2, 0), 0),
    "be": (False, -1, 6.5, (0, -0.3, 0.4, 0, -0.3), 1),
    "bicar": (False, 24, 5, (0, -0.3, 0.4, 0, -0.3), 0),
    "bili_dir": (True, 0.3, 1.1, (0, 0.3, 0, 0, 0), 1),
    "bnd": (True, 9, 1.0, (0, 0.4, 0, 0, 0), 0),
    "ca": (False, 8.2, 0.8, (-0.5, 0, 0, 0, -0.1), 1),
    "cai": (False, 1.1, 0.09, (-0.3, 0, 0, 0, 0), 2),
    "ck": (True, 200, 1.4, (0, 0.1, 0, 0.1, 0.2), 0),
    "ckmb": (True, 5, 1.3, (0, 0.1, 0, 0, 0.1), 1),
    "cl": (False, 104, 6, (0.1, 0, -0.3, 0, 0), 0),
    "crp": (True, 60, 1.2, (0.3, 0.4, 0, 0, 0), 1),
    "fgn": (True, 330, 0.5, (0.1, 0.2, 0, 0, 0), 0),
    "inr_pt": (True, 1.3, 0.3, (0.3, 0.2, 0, 0, 0.1), 1),
    "k": (False, 4.1, 0.65, (0, 0, 0, 0, 0.4), 1),
    "lact": (True, 1.8, 0.65, (0.1, 0.5, -0.1, 0.2, 0), 1),
    "lymph": (True, 10, 0.8, (0, -0.3, 0, 0, 0), 0),
    "mch": (False, 30, 2.6, (0, 0, 0, 0, 0), 1),
    "mchc": (False, 33, 1.4, (0, 0, 0, 0, 0), 1),
    "mcv": (False, 91, 7, (0, 0, 0, 0, 0), 1),
    "methb": (True, 0.4, 0.7, (0, 0, 0, 0, 0), 1),
    "mg": (False, 1.9, 0.4, (0, 0, 0, 0, 0.2), 1),
    "neut": (False, 77, 13, (0, 0.3, 0, 0, 0), 0),
    "phos": (True, 3.2, 0.42, (0, 0, 0.1, 0, 0.5), 1),
    "plt": (True, 185, 0.48, (0.1, -0.1, 0, 0, 0), 0),
    "ptt": (True, 35, 0.4, (0.2, 0, 0, 0, 0), 0),
    "tnt": (True, 0.1, 1.6, (0, 0.2, 0, 0.1, 0.2), 2),
}
# what is taken together, and in what share of hours
_PANELS = {
    ("bun", "crea", "na", "cl", "bicar", "ca"): 0.05,
    ("k",): 0.055,
    ("glu",): 0.15,
    ("ph", "po2", "pco2", "be"): 0.02,
    ("hgb", "wbc", "plt", "mch", "mchc", "mcv"): 0.04,
    ("alb", "alp", "alt", "ast", "bili"): 0.017,
    ("neut", "lymph"): 0.021,
    ("mg",): 0.025,
    ("phos",): 0.015,
    ("inr_pt",): 0.014,
    ("lact",): 0.013,
    ("ptt",): 0.01,
    ("ck",): 0.008,
    ("ckmb",): 0.006,
    ("methb",): 0.005,
    ("bnd",): 0.0033,
    ("tnt",): 0.0024,
    ("bili_dir",): 0.002,
    ("fgn",): 0.0018,
    ("cai",): 0.0014,
    ("crp",): 0.0007,
}
_FIRST_HOURS, _FIRST_TIMES = 3, 4.0  # panels are four times as frequent in the first three hours
_VENTILATED = {"ph": (2.5, 0.6), "lact": (2.0, 0.75)}  # times as often with and without ventilation
_LABEL = {  # eICU's labname, unit and labtypeid (1 chemistry, 3 haematology, 7 blood gas) of each variable
    "alb": ("albumin", "g/dL", 1),
    "alp": ("alkaline phos.", "Units/L", 1),
    "alt": ("ALT (SGPT)", "Units/L", 1),
    "ast": ("AST (SGOT)", "Units/L", 1),
    "be": ("Base Excess", "mEq/L", 7),
    "bicar": ("bicarbonate", "mmol/L", 1),
    "bili": ("total bilirubin", "mg/dL", 1),
    "bili_dir": ("direct bilirubin", "mg/dL", 1),
    "bnd": ("-bands", "%", 3),
    "bun": ("BUN", "mg/dL", 1),
    "ca": ("calcium", "mg/dL", 1),
    "cai": ("ionized calcium", "mmol/L", 1),
    "ck": ("CPK", "Units/L", 1),
    "ckmb": ("CPK-MB", "ng/mL", 1),
    "cl": ("chloride", "mmol/L", 1),
    "crea": ("creatinine", "mg/dL", 1),
    "crp": ("CRP", "mg/L", 1),
    "fgn": ("fibrinogen", "mg/dL", 3),
    "fio2": ("FiO2", "%", 7),
    "glu": ("glucose", "mg/dL", 1),
    "hgb": ("Hgb", "g/dL", 3),
    "inr_pt": ("PT - INR", "ratio", 3),
    "k": ("potassium", "mmol/L", 1),
    "lact": ("lactate", "mmol/L", 1),
    "lymph": ("-lymphs", "%", 3),
    "mch": ("MCH", "pg", 3),
    "mchc": ("MCHC", "g/dL", 3),
    "mcv": ("MCV", "fL", 3),
    "methb": ("Methemoglobin", "%", 7),
    "mg": ("magnesium", "mg/dL", 1),
    "na": ("sodium", "mmol/L", 1),
    "neut": ("-polys", "%", 3),
    "pco2": ("paCO2", "mm Hg", 7),
    "ph": ("pH", "Units", 7),
    "phos": ("phosphate", "mg/dL", 1),
    "plt": ("platelets x 1000", "K/mcL", 3),
    "po2": ("paO2", "mm Hg", 7),
    "ptt": ("PTT", "sec", 3),
    "tnt": ("troponin - T", "ng/mL", 1),
    "wbc": ("WBC x 1000", "K/mcL", 3),
}
_MONITOR = {  # column of vitalPeriodic: variable of the grid, and how far it wanders within an hour
    "temperature": ("temp", 0.1), "sao2": ("o2sat", 1.0), "heartrate": ("hr", 4.0),
    "respiration": ("resp", 2.0), "cvp": ("", 0), "etco2": ("", 0), "systemicsystolic": ("sbp", 6.0),
    "systemicdiastolic": ("dbp", 4.0), "systemicmean": ("map", 4.0), "pasystolic": ("", 0),
    "padiastolic": ("", 0), "pamean": ("", 0), "st1": ("", 0), "st2": ("", 0), "st3": ("", 0), "icp": ("", 0)}


def chunks(columns: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield the stays that have a grid, CHUNK at a time."""
    keep = np.flatnonzero(columns["unit_los"] >= 60 * MIN_HOURS)
    for start in range(0, len(keep), CHUNK):
        rows = keep[start : start + CHUNK]
        yield {name: column[rows] for name, column in columns.items()}


def static_table(c: Mapping[str, Array]) -> pa.Table:
    """Return the rows of the grid's static table."""
    return pa.table(
        {
            "stay_id": pa.array(c["stay_id"], pa.int32()),
            "age": pa.array(c["age"], pa.float64()),
            "sex": pa.array(np.where(c["female"] > 0, "Female", "Male").astype(object)),
            "height": pa.array(c["height"], mask=c["no_height"]),
            "weight": pa.array(c["weight"], mask=c["no_weight"]),
        },
        schema=STATIC_SCHEMA,
    )


def draw_grid(
    c: Mapping[str, Array], hospital: Hospital, rng: np.random.Generator
) -> tuple[Array, Array, dict[str, Array]]:
    """Return stay number, hour and variables (NaN where not charted), one entry an hour of each stay."""
    hours = np.minimum(c["unit_los"] // 60, MAX_HOURS).astype(int) + 1
    stay = np.repeat(np.arange(len(hours)), hours)
    hour = np.arange(len(stay)) - np.repeat(np.cumsum(hours) - hours, hours)
    grid = {name: np.full(len(stay), np.nan) for name in VARIABLES}
    _add_vitals(grid, c, stay, rng)
    _add_support(grid, c, stay, rng)
    if hospital.fault != "no_labs":
        _add_labs(grid, c, stay, hour, rng)
    if hospital.fault == "units":
        for name in ("crea", "bili", "glu"):
            grid[name] = np.round(grid[name] * profile.UNIT_FAULTS[_TWINS[name]], 1)
    return stay, hour, grid


def _add_vitals(
    grid: dict[str, Array], c: Mapping[str, Array], stay: Array, rng: np.random.Generator
) -> None:
    """Fill vital signs: a stay's own level, which follows a day-1 latent, and noise from hour to hour."""
    for name, (mean, between, within, latent, tie, rate, low, high, decimals) in _VITALS.items():
        level = tie * latent_of(c, latent) + np.sqrt(1 - tie**2) * rng.standard_normal(len(c["age"]))
        value = mean + between * level[stay] + within * rng.standard_normal(len(stay), dtype=np.float32)
        charted = rng.random(len(stay), dtype=np.float32) < rate
        grid[name] = np.where(charted, np.clip(np.round(value, decimals), low, high), np.nan)
    for name, ratio, noise in (("sbp", 1.47, 9.0), ("dbp", 0.8, 5.0)):
        value = ratio * grid["map"] + noise * rng.standard_normal(len(stay), dtype=np.float32)
        grid[name] = np.clip(np.round(value), 15, 260)


def _add_support(
    grid: dict[str, Array], c: Mapping[str, Array], stay: Array, rng: np.random.Generator
) -> None:
    """Fill FiO2 and urine output, which only some stays chart."""
    uniform = rng.random((2, len(stay)), dtype=np.float32)
    vent = c["vent"][stay] > 0
    z = latent_of(c, "fio2")[stay] + 0.4 * rng.standard_normal(len(stay), dtype=np.float32)
    value = np.where(vent, np.clip(np.round(45 + 15 * z), 21, 100), np.clip(np.round(32 + 8 * z), 21, 60))
    grid["fio2"] = np.where(uniform[0] < np.where(vent, 0.3, 0.05), value, np.nan)
    measured = (rng.random(len(c["age"])) < 0.67)[stay]
    root = 14 + 4 * latent_of(c, "urine")[stay] + 5 * rng.standard_normal(len(stay), dtype=np.float32)
    grid["urine"] = np.where(measured & (uniform[1] < 0.29), np.round(np.maximum(root, 0) ** 2), np.nan)


def _add_labs(
    grid: dict[str, Array], c: Mapping[str, Array], stay: Array, hour: Array, rng: np.random.Generator
) -> None:
    """Fill laboratory values, panel by panel; only what is charted is drawn."""
    levels = _lab_levels(c, rng)
    early = np.where(hour < _FIRST_HOURS, _FIRST_TIMES, 1.0)
    for panel, rate in _PANELS.items():
        with_vent, without = _VENTILATED.get(panel[0], (1.0, 1.0))
        chance = rate * early * np.where(c["vent"] > 0, with_vent, without)[stay]
        rows = np.flatnonzero(rng.random(len(stay), dtype=np.float32) < chance)
        for name in panel:
            z = 0.95 * levels[name][stay[rows]] + 0.31 * rng.standard_normal(len(rows))
            grid[name][rows] = _lab_value(name, z)


def _lab_levels(c: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Return a standard normal level of each stay for each laboratory value."""
    levels = {name: latent_of(c, twin) for name, twin in _TWINS.items()} | {"hgb": latent_of(c, "hematocrit")}
    for name, (_, _, _, loadings, _) in _OTHERS.items():
        own = np.sqrt(1 - sum(value * value for value in loadings)) * rng.standard_normal(len(c["age"]))
        levels[name] = np.einsum("rf,f->r", c["factors"], np.array(loadings)) + own
    return levels


def _lab_value(name: str, z: Array) -> Array:
    """Return charted values of a laboratory value from standard normal latents."""
    if name in _TWINS:
        return to_value(profile.MARGINALS[_TWINS[name]], z)
    if name == "hgb":  # a third of the hematocrit
        return np.round(to_value(profile.MARGINALS["hematocrit"], z) / 3, 1)
    log, location, sd, _, decimals = _OTHERS[name]
    value = location * np.exp(sd * z) if log else location + sd * z
    return np.round(value if name == "be" else np.maximum(value, 10.0**-decimals), decimals)


def grid_table(c: Mapping[str, Array], stay: Array, hour: Array, grid: Mapping[str, Array]) -> pa.Table:
    """Return the grid as a table in its layout."""
    return pa.table(
        [
            pa.array(c["stay_id"][stay], pa.int32()),
            pa.array(hour * 3600, pa.int64()).cast(pa.duration("s")),
            *(pa.array(grid[name], from_pandas=True) for name in VARIABLES),
        ],
        schema=GRID_SCHEMA,
    )


def vital_table(c: Mapping[str, Array], stay: Array, hour: Array, grid: Mapping[str, Array], first_id: int,
                rng: np.random.Generator) -> pa.Table:
    """Return vitalPeriodic rows, twelve an hour, whose hourly mean is the grid's value up to rounding."""
    rows = 12 * len(stay)
    offset = np.repeat(hour * 60, 12) + np.tile(np.arange(0, 60, 5), len(stay))
    columns: dict[str, object] = {"vitalperiodicid": first_id + np.arange(rows),
                                  "patientunitstayid": np.repeat(c["stay_id"][stay], 12),
                                  "observationoffset": offset}
    for name, (source, step) in _MONITOR.items():
        if not source:
            columns[name] = pa.nulls(rows, pa.float64())
            continue
        wobble = step * rng.standard_normal((len(stay), 6), dtype=np.float32)
        value = grid[source][:, None] + np.concatenate([wobble, -wobble], axis=1)  # in pairs: the mean stays
        value = np.round(value, 1 if source == "temp" else 0).ravel()
        columns[name] = pa.array(np.clip(value, 0, 100 if source == "o2sat" else None), from_pandas=True)
    return pa.table(columns)


def lab_table(
    c: Mapping[str, Array],
    stay: Array,
    hour: Array,
    grid: Mapping[str, Array],
    first_id: int,
    rng: np.random.Generator,
) -> pa.Table:
    """Return lab rows: each charted value of the grid, at a minute of its hour."""
    found = {name: np.flatnonzero(~np.isnan(grid[name])) for name in _LABEL}
    rows = np.concatenate(list(found.values()))
    which = np.repeat(np.arange(len(found)), [len(places) for places in found.values()])
    value = np.concatenate([grid[name][places] for name, places in found.items()])
    offset = hour[rows] * 60 + rng.integers(60, size=len(rows))
    order = np.lexsort((which, offset, stay[rows]))
    rows, which, value, offset = rows[order], which[order], value[order], offset[order]
    labels = list(_LABEL.values())
    names, units = (pa.array([label[part] for label in labels]).take(pa.array(which)) for part in (0, 1))
    return pa.table(
        {
            "labid": first_id + np.arange(len(rows)),
            "patientunitstayid": c["stay_id"][stay[rows]],
            "labresultoffset": offset,
            "labtypeid": np.array([label[2] for label in labels])[which],
            "labname": names,
            "labresult": value,
            "labresulttext": pa.array(value).cast(pa.string()),
            "labmeasurenamesystem": units,
            "labmeasurenameinterface": units,
            "labresultrevisedoffset": offset + 30,
        }
    )
