"""The rows of a synthetic hospital in the patient and APACHE tables of eICU-CRD.

Column names and order are eICU's; blanks are nulls, and -1 means missing in the APACHE tables. Start
reading at `admit`, which adds what only tables need (identities, times, which rows exist) to the columns of
`draw_stays`.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pyarrow as pa

from fedray.data import synthetic_profile as profile
from fedray.data.synthetic_plan import Array, Habits, Hospital
from fedray.data.synthetic_stays import draw_reference

DAY = 1440  # minutes
_CLOCK = pa.array([f"{minute // 60:02d}:{minute % 60:02d}:00" for minute in range(DAY)])
_FIRST_ID = 100_000
# shares of what is chosen per stay; the generator's own but for ethnicity (published)
_ETHNICITY: dict[str | None, float] = {
    "Caucasian": 0.77, "African American": 0.11, "Other/Unknown": 0.06, "Hispanic": 0.037, "Asian": 0.016,
    "Native American": 0.008}
_MEDICAL = {"Emergency Department": 0.68, "Floor": 0.16, "Direct Admit": 0.065, "Acute Care/Floor": 0.028,
            "Step-Down Unit (SDU)": 0.025, "Other ICU": 0.015, "Other Hospital": 0.012, None: 0.01,
            "Chest Pain Center": 0.001}
_SURGICAL: dict[str | None, float] = {"Operating Room": 0.72, "Recovery Room": 0.22, "PACU": 0.06}
_RETURN: dict[str | None, float] = {"ICU to SDU": 0.45, "Floor": 0.27, "Step-Down Unit (SDU)": 0.16,
                                    "ICU": 0.12}
_AT_FIRST: dict[str | None, float] = {"admit": 0.96, "stepdown/other": 0.04}
_AFTER_FIRST: dict[str | None, float] = {"stepdown/other": 0.55, "readmit": 0.25, "transfer": 0.2}
_HOME: dict[str | None, float] = {
    "Home": 0.66, "Skilled Nursing Facility": 0.14, "Other Hospital": 0.06, "Other External": 0.05,
    "Other": 0.04, "Rehabilitation": 0.045, "Nursing Home": 0.015}
_WARD: dict[str | None, float] = {
    "Floor": 0.5, "Home": 0.14, "Step-Down Unit (SDU)": 0.11, "Acute Care/Floor": 0.1, "Telemetry": 0.07,
    "Other Hospital": 0.04, "Other ICU": 0.03, "Other External": 0.01}
_SOURCE_CODES = {"Operating Room": 1, "Recovery Room": 2, "PACU": 2, "Step-Down Unit (SDU)": 3, "Floor": 4,
                 "Acute Care/Floor": 4, "Other ICU": 5, "ICU": 5, "ICU to SDU": 5, "Other Hospital": 6,
                 "Direct Admit": 7, "Emergency Department": 8, "Chest Pain Center": 8, None: -1}
_CONSTANT = {"sicuday": 1, "saps3day1": 0, "saps3today": 0, "saps3yesterday": 0, "teachtype": 0, "region": 3,
             "bedcount": 12, "graftcount": 3, "aids": 0, "managementsystem": 1, "var03hspxlos": 0,
             "ejectfx": -1, "amilocation": -1}
PATIENT_COLUMNS = (
    "patientunitstayid", "patienthealthsystemstayid", "gender", "age", "ethnicity", "hospitalid", "wardid",
    "apacheadmissiondx", "admissionheight", "hospitaladmittime24", "hospitaladmitoffset",
    "hospitaladmitsource", "hospitaldischargeyear", "hospitaldischargetime24", "hospitaldischargeoffset",
    "hospitaldischargelocation", "hospitaldischargestatus", "unittype", "unitadmittime24",
    "unitadmitsource", "unitvisitnumber", "unitstaytype", "admissionweight", "dischargeweight",
    "unitdischargetime24", "unitdischargeoffset", "unitdischargelocation", "unitdischargestatus",
    "uniquepid",
)
PRED_COLUMNS = (
    "apachepredvarid", "patientunitstayid", "sicuday", "saps3day1", "saps3today", "saps3yesterday",
    "gender", "teachtype", "region", "bedcount", "admitsource", "graftcount", "meds", "verbal", "motor",
    "eyes", "age", "admitdiagnosis", "thrombolytics", "diedinhospital", "aids", "hepaticfailure",
    "lymphoma", "metastaticcancer", "leukemia", "immunosuppression", "cirrhosis", "electivesurgery",
    "activetx", "readmit", "ima", "midur", "ventday1", "oobventday1", "oobintubday1", "diabetes",
    "managementsystem", "var03hspxlos", "pao2", "fio2", "ejectfx", "creatinine", "dischargelocation",
    "visitnumber", "amilocation", "day1meds", "day1verbal", "day1motor", "day1eyes", "day1pao2", "day1fio2",
)
RESULT_COLUMNS = (
    "apachepatientresultsid", "patientunitstayid", "physicianspeciality", "physicianinterventioncategory",
    "acutephysiologyscore", "apachescore", "apacheversion", "predictedicumortality", "actualicumortality",
    "predictediculos", "actualiculos", "predictedhospitalmortality", "actualhospitalmortality",
    "predictedhospitallos", "actualhospitallos", "preopmi", "preopcardiaccath", "ptcawithin24h",
    "unabridgedunitlos", "unabridgedhosplos", "actualventdays", "predventdays", "unabridgedactualventdays",
)
NO_APS_LATER = 0.5  # share without day-1 rows of unit stays after the first of a hospital stay
RESULT = 0.88  # share of day-1 rows with an APACHE result, scored in 0.92


def choose(shares: Mapping[str | None, float], rows: int, rng: np.random.Generator) -> Array:
    """Draw a key of `shares` each, as an object array."""
    weights = np.array(list(shares.values()))
    index = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(rows))
    return np.array(list(shares), dtype=object)[index]


def clock(minute: Array) -> pa.Array:
    """Return times of day as text."""
    return _CLOCK.take(pa.array(minute.astype(np.int64) % DAY))


def blanked(value: Array, blank: Array) -> pa.Array:
    """Return a column that is null where `blank`."""
    return pa.array(value, pa.string() if value.dtype == object else None, mask=blank)


def text(value: Array) -> pa.Array:
    """Return a text column; its type does not hang on there being rows."""
    return pa.array(value, pa.string())


def coded(value: Array, absent: Array, *, whole: bool = False) -> pa.Array:
    """Return an APACHE column: -1 where absent."""
    column = np.where(absent, -1.0, value)
    return pa.array(column.astype(np.int64) if whole else column)


def admit(columns: dict[str, Array], hospital: Hospital, habits: Habits, died: Array, first_row: int,
          rng: np.random.Generator) -> None:
    """Add identities, times and which rows exist, in place; `first_row` counts earlier hospitals' rows."""
    rows = len(died)
    columns["stay_id"] = _FIRST_ID + first_row + np.arange(rows)
    columns["admission_id"] = _FIRST_ID + first_row + columns["first_of_stay"]
    columns["patient"] = np.unique(columns["first_of_patient"], return_inverse=True)[1] + 1
    columns["died"] = died
    columns["unknown"] = (rng.random(rows) < profile.UNKNOWN_STATUS)[columns["first_of_stay"]]
    _add_times(columns, rng)
    spread = np.sqrt(1 + profile.NO_APACHE_ROW[1] ** 2)
    later, first = (NormalDist().inv_cdf(share) for share in (NO_APS_LATER, profile.NO_APACHE_ROW[0]))
    bound = spread * np.where(columns["visit"] > 1, later, first) + habits.no_apache
    columns["has_aps"] = rng.standard_normal(rows) > bound
    _add_arrival(columns, rng)


def _add_times(columns: dict[str, Array], rng: np.random.Generator) -> None:
    """Add, in minutes from each row's unit admission, when the hospital and unit stays begin and end."""
    died, first = columns["died"], columns["first_of_stay"]
    rows, index = len(died), np.arange(len(died))
    starts = np.flatnonzero(first == index)
    ends = np.append(starts[1:], rows) - 1
    last = np.repeat(ends, ends - starts + 1)
    in_unit = (died > 0) & (last == index) & (rng.random(rows) < profile.DIED_IN_UNIT)
    unit_los = np.exp(np.where(died > 0, 7.7, 7.5) + 1.4 * rng.standard_normal(rows))
    unit_los = np.clip(np.rint(unit_los), 10, 60 * DAY)
    gap = np.rint(np.exp(6.4 + rng.standard_normal(rows)))
    spent = np.cumsum(unit_los + gap) - (unit_los + gap)
    begin = spent - spent[first]
    ward = np.where(in_unit, 0, np.rint(np.exp(7.9 + 1.1 * rng.standard_normal(rows))))
    before = np.where(rng.random(rows) < 0.04, 0, np.rint(np.exp(5.35 + 1.6 * rng.standard_normal(rows))))
    before = np.minimum(before, 30 * DAY)[first] + begin
    columns.update(in_unit=in_unit, unit_los=unit_los, hospital_admit=-before, before=before,
                   hospital_end=(begin + unit_los + ward)[last] - begin)
    columns["admitted_at"] = rng.integers(DAY, size=rows)[first]
    columns["unit_at"] = columns["admitted_at"] + before


def _add_arrival(columns: dict[str, Array], rng: np.random.Generator) -> None:
    """Add admission source, kind of unit stay, height and weight."""
    rows, later = len(columns["died"]), columns["visit"] > 1
    columns["surgical"] = columns["surgical"] & ~later
    source = np.where(later, choose(_RETURN, rows, rng), choose(_MEDICAL, rows, rng))
    columns["source"] = np.where(columns["surgical"], choose(_SURGICAL, rows, rng), source)
    columns["kind"] = np.where(later, choose(_AFTER_FIRST, rows, rng), choose(_AT_FIRST, rows, rng))
    patient, female = columns["first_of_patient"], columns["female"] > 0
    tall = np.where(female, 162.0, 176.0) + 8.5 * rng.standard_normal(rows)
    heavy = np.exp(np.where(female, 4.31, 4.45) + 0.27 * rng.standard_normal(rows))
    columns.update(height=np.round(tall[patient], 1), weight=np.round(heavy[patient], 1),
                   no_height=rng.random(rows) < 0.02, no_weight=rng.random(rows) < 0.06)


def patient_table(c: Mapping[str, Array], hospital: Hospital, rng: np.random.Generator) -> pa.Table:
    """Return the rows of `patient`."""
    rows = len(c["died"])
    patient, stay = c["first_of_patient"], c["first_of_stay"]
    ages = np.array([*(str(year) for year in range(90)), "> 89"], dtype=object)
    names = np.array([name for name, _ in profile.DIAGNOSIS_NAMES.values()], dtype=object)[c["diagnosis"]]
    units = np.array(list(profile.UNIT_TYPES), dtype=object)
    numbers = {"patientunitstayid": c["stay_id"], "patienthealthsystemstayid": c["admission_id"],
               "hospitalid": np.full(rows, hospital.number), "wardid": hospital.number * 10 + c["unit"],
               "hospitaladmitoffset": c["hospital_admit"].astype(np.int64), "unitvisitnumber": c["visit"]}
    words = {
        "gender": blanked(np.where(c["female"] > 0, "Female", "Male").astype(object),
                          (rng.random(rows) < 0.001)[patient]),
        "age": blanked(ages[np.minimum(c["age"], 90).astype(int)], (rng.random(rows) < 0.0005)[patient]),
        "ethnicity": blanked(choose(_ETHNICITY, rows, rng)[patient], (rng.random(rows) < 0.01)[patient]),
        "apacheadmissiondx": blanked(names, names == ""), "unittype": text(units[c["unit"]]),
        "hospitaladmitsource": blanked(c["source"][stay], rng.random(rows) < 0.24),
        "unitadmitsource": text(c["source"]), "unitstaytype": text(c["kind"]),
        "uniquepid": pa.array([f"{hospital.number:03d}-{number}" for number in c["patient"]], pa.string())}
    measured = {"admissionheight": blanked(c["height"], c["no_height"]),
                "admissionweight": blanked(c["weight"], c["no_weight"]),
                "dischargeweight": blanked(np.round(c["weight"] * (1 + 0.03 * rng.standard_normal(rows)), 1),
                                           rng.random(rows) < 0.5)}
    times = {"hospitaladmittime24": clock(c["admitted_at"]), "unitadmittime24": clock(c["unit_at"])}
    by_name = {**numbers, **words, **measured, **times, **_discharge(c, rng)}
    return pa.table({name: by_name[name] for name in PATIENT_COLUMNS})


def _discharge(c: Mapping[str, Array], rng: np.random.Generator) -> dict[str, pa.Array | Array]:
    """Return the columns of `patient` that are known only at the end: none of them may be an input."""
    rows, stay, dead = len(c["died"]), c["first_of_stay"], c["died"] > 0
    where = np.where(dead, "Death", choose(_HOME, rows, rng)[stay])
    status = np.where(dead, "Expired", "Alive").astype(object)
    return {
        "hospitaldischargeyear": np.where(rng.random(rows) < 0.4755, 2014, 2015)[stay],
        "hospitaldischargetime24": clock(c["unit_at"] + c["hospital_end"]),
        "hospitaldischargeoffset": c["hospital_end"].astype(np.int64),
        "hospitaldischargelocation": blanked(where, c["unknown"]),
        "hospitaldischargestatus": blanked(status, c["unknown"]),
        "unitdischargetime24": clock(c["unit_at"] + c["unit_los"]),
        "unitdischargeoffset": c["unit_los"].astype(np.int64),
        "unitdischargelocation": text(np.where(c["in_unit"], "Death", choose(_WARD, rows, rng))),
        "unitdischargestatus": text(np.where(c["in_unit"], "Expired", "Alive").astype(object))}


def _take(columns: Mapping[str, Array], keep: Array) -> dict[str, Array]:
    return {name: column[keep] for name, column in columns.items()}


def _scores(c: Mapping[str, Array], absent: Mapping[str, Array]) -> dict[str, pa.Array]:
    """Return coma score parts and meds: -1 where not known, meds 1 where not assessable."""
    parts = {name: coded(c[name], absent["gcs"], whole=True) for name in ("verbal", "motor", "eyes")}
    return parts | {"meds": pa.array(np.where(c["gcs_unable"] > 0, 1, np.where(absent["gcs"], -1, 0)))}


def aps_table(columns: Mapping[str, Array], absence: Mapping[str, Array]) -> pa.Table:
    """Return the rows of `apacheApsVar`."""
    c, absent = _take(columns, columns["has_aps"]), _take(absence, columns["has_aps"])
    scores = _scores(c, absent)
    group_of = {name: group for group, entry in profile.ABSENCE.items() for name in entry.columns}
    return pa.table({
        "apacheapsvarid": c["stay_id"] + 1, "patientunitstayid": c["stay_id"],
        **{name: c[name].astype(np.int64) for name in ("intubated", "vent", "dialysis")},
        **{name: scores[name] for name in ("eyes", "motor", "verbal", "meds")},
        **{name: coded(c[name], absent[group_of[name]]) for name in profile.APS}})


def pred_table(columns: Mapping[str, Array], absence: Mapping[str, Array],
               rng: np.random.Generator) -> pa.Table:
    """Return the rows of `apachePredVar`: eICU's 51 columns, constant where they are constant there."""
    c, absent = _take(columns, columns["has_aps"]), _take(absence, columns["has_aps"])
    rows, vent = len(c["stay_id"]), c["vent"] > 0
    scores = _scores(c, absent) | {name: coded(c[name], absent["abg"]) for name in ("pao2", "fio2")}
    codes = np.array([code for _, code in profile.DIAGNOSIS_NAMES.values()], dtype=object)[c["diagnosis"]]
    flags = {
        "activetx": rng.random(rows) < 0.53, "readmit": c["kind"] == "readmit", "diedinhospital": c["died"],
        "ima": c["surgical"] & (rng.random(rows) < 0.15), "midur": rng.random(rows) < 0.007,
        "thrombolytics": rng.random(rows) < 0.012, "ventday1": vent,
        "oobventday1": vent | (rng.random(rows) < 0.08),
        "oobintubday1": (c["intubated"] > 0) | (vent & (rng.random(rows) < 0.6)),
        "gender": c["female"], **{name: c[name] for name in profile.COMORBID}}
    by_name: dict[str, object] = {
        **{name: np.full(rows, value) for name, value in _CONSTANT.items()}, **scores,
        **{f"day1{name}": column for name, column in scores.items()},
        **{name: flag.astype(np.int64) for name, flag in flags.items()},
        "apachepredvarid": c["stay_id"] + 2, "patientunitstayid": c["stay_id"], "visitnumber": c["visit"],
        "admitsource": np.array([_SOURCE_CODES[name] for name in c["source"]], np.int64),
        "age": blanked(c["age"].astype(np.int64), c["age"] >= 90),
        "admitdiagnosis": blanked(codes, codes == ""),
        "creatinine": coded(c["creatinine"], absent["creatinine"]),
        "electivesurgery": blanked(c["elective"].astype(np.int64), ~c["surgical"]),
        "dischargelocation": np.where(c["died"] > 0, 9, 4)}
    return pa.table({name: by_name[name] for name in PRED_COLUMNS})


def _twice(value: Array) -> Array:
    """Return each row twice, for the two APACHE versions."""
    return np.repeat(value, 2)


def result_table(columns: Mapping[str, Array], intercept: float, rng: np.random.Generator) -> pa.Table:
    """Return the rows of `apachePatientResult`: versions IV and IVa of each stay that has a result."""
    c = _take(columns, np.flatnonzero(columns["has_aps"] & (rng.random(len(columns["died"])) < RESULT)))
    rows = len(c["died"])
    risk = c["risk"] + intercept
    unscored = _twice(rng.random(rows) < 0.08)
    chance = _twice(draw_reference(risk, rng))
    logit = np.log(chance / (1 - chance)) - np.tile([0.1, 0.0], rows)  # version IV predicts a little less
    acute = np.clip(np.rint(40 + 11 * (risk - profile.MEAN_RISK) + 6 * rng.standard_normal(rows)), 0, 200)
    expected = np.exp(0.9 + 0.25 * (risk - profile.MEAN_RISK) + 0.3 * rng.standard_normal(rows))
    days, all_days = np.round(c["unit_los"] / DAY, 4), np.round((c["before"] + c["hospital_end"]) / DAY, 4)
    vent_days, off_vent = np.ceil(c["unit_los"] / DAY * rng.random(rows)), _twice(c["vent"] == 0)
    fates = np.array(["ALIVE", "EXPIRED"], dtype=object)
    by_name = {
        "apachepatientresultsid": 2 * _twice(c["stay_id"]) + np.tile([0, 1], rows),
        "patientunitstayid": _twice(c["stay_id"]), "acutephysiologyscore": _twice(acute.astype(np.int64)),
        "apachescore": _twice((acute + np.clip(np.rint((c["age"] - 40) / 2.5), 0, 24)).astype(np.int64)),
        "physicianspeciality": text(np.full(2 * rows, "Specialty Not Specified", object)),
        "physicianinterventioncategory": text(np.full(2 * rows, "Unknown", object)),
        "apacheversion": text(np.tile(np.array(["IV", "IVa"], object), rows)),
        "predictedicumortality": np.where(unscored, -1.0, 1 / (1 + np.exp(-logit + 0.6))),
        "predictedhospitalmortality": np.where(unscored, -1.0, 1 / (1 + np.exp(-logit))),
        "predictediculos": np.where(unscored, -1.0, np.round(_twice(expected), 4)),
        "predictedhospitallos": np.where(unscored, -1.0, np.round(_twice(3 * expected), 4)),
        "actualicumortality": text(_twice(fates[c["in_unit"].astype(int)])),
        "actualhospitalmortality": text(_twice(fates[c["died"].astype(int)])),
        "actualiculos": _twice(np.minimum(days, 30)), "actualhospitallos": _twice(np.minimum(all_days, 50)),
        "unabridgedunitlos": _twice(days), "unabridgedhosplos": _twice(all_days),
        "ptcawithin24h": _twice((rng.random(rows) < 0.05).astype(np.int64)),
        **{name: np.zeros(2 * rows, np.int64) for name in ("preopmi", "preopcardiaccath")},
        "actualventdays": blanked(_twice(np.minimum(vent_days, 30)), off_vent),
        "predventdays": blanked(_twice(np.round(expected, 4)), off_vent),
        "unabridgedactualventdays": blanked(_twice(vent_days), off_vent)}
    return pa.table({name: by_name[name] for name in RESULT_COLUMNS})
