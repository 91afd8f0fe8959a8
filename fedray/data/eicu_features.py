"""The day-1 features of the eICU mortality tasks: cohort, APACHE values, comorbidities, admission, diagnosis.

Start reading at `select_stays` (who is in), then `day1_features`. Everything is in natural units with NaN
for missing (-1 in the APACHE tables); nothing is clipped, scaled or filled here: that is fitted over all
hospitals together. Leakage: columns with an outcome in them are never read (`COLUMNS` is the complete list
of what is), and APACHE IVa's prediction is a reference beside the features.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fedray.data import eicu_columns as names

STAY = "patientunitstayid"
# table -> (numbers, texts): all that is ever read
COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "patient": ((STAY, "patienthealthsystemstayid", "hospitalid", "unitvisitnumber", "hospitaladmitoffset",
                 "unitdischargeoffset", "admissionheight", "admissionweight"),
                ("uniquepid", "gender", "age", "apacheadmissiondx", "unittype", "unitadmitsource",
                 "hospitaldischargestatus")),
    "apacheApsVar": ((STAY, *names.APS, "eyes", "motor", "verbal", "meds", "intubated", "vent", "dialysis"),
                     ()),
    "apachePredVar": ((STAY, *names.CHRONIC), ()),
    "apachePatientResult": ((STAY, "predictedhospitalmortality"), ("apacheversion",))}
LANDMARK_MIN = 1440
MIN_AGE = 16


def select_stays(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the main cohort, one row a hospital stay, by ascending stay id, with a 0/1 column `died`.

    First unit stay of each hospital stay, known outcome, age 16 or more, with a row of day-1 APACHE values.
    """
    ids = [STAY, "patienthealthsystemstayid", "hospitalid", "uniquepid"]
    patient = tables["patient"].dropna(subset=ids).astype(dict.fromkeys(ids[:3], "int64"))
    patient["age"] = read_age(patient["age"])
    known = patient["hospitaldischargestatus"].isin(["Alive", "Expired"])
    first_adult = (patient["unitvisitnumber"] == 1) & (patient["age"] >= MIN_AGE)
    stays = patient[known & first_adult & patient[STAY].isin(tables["apacheApsVar"][STAY])].sort_values(STAY)
    stays = stays.drop_duplicates("patienthealthsystemstayid", keep="first").reset_index(drop=True)
    stays[names.OUTCOME] = (stays["hospitaldischargestatus"] == "Expired").astype("int64")
    return stays


def select_landmark(stays: pd.DataFrame) -> pd.DataFrame:
    """Return the stays still in the unit at 24 hours: those that a prediction at that time is made for."""
    return stays[stays["unitdischargeoffset"] >= LANDMARK_MIN].reset_index(drop=True)


def read_age(text: pd.Series) -> pd.Series:
    """Return ages in years: "> 89" is 90, blank is missing."""
    return pd.to_numeric(text.str.replace(r"^>\s*89$", "90", regex=True), errors="coerce")


def day1_features(stays: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the 101 features of `ctx` (aps16 and apsx among them), one row a stay, in natural units."""
    aps = _aligned(tables["apacheApsVar"], stays)
    pred = _aligned(tables["apachePredVar"], stays)
    values = {**_aps_features(aps, stays), **_chronic_features(pred), **_admission_features(stays)}
    return pd.DataFrame(values)[list(names.FEATURE_SETS["ctx"])].astype("float64")


def apache_reference(stays: pd.DataFrame, results: pd.DataFrame) -> pd.Series:
    """Return APACHE IVa's predicted probability of death in hospital, NaN where unscored. Never a feature."""
    scored = results[results["apacheversion"] == "IVa"].drop_duplicates(STAY)
    probability = scored.set_index(STAY)["predictedhospitalmortality"].reindex(stays[STAY])
    return probability.where(probability.between(0, 1)).reset_index(drop=True)


def diagnosis_group(text: pd.Series) -> pd.Series:
    """Return the group of the first keyword, in the order of DIAGNOSES, that occurs; blank is `unknown`."""
    lower = text.str.lower().fillna("unknown")
    group = pd.Series("other", index=text.index)
    for name, keywords in reversed(names.DIAGNOSES):  # earlier ones are written later, so they win
        hit = pd.Series(False, index=text.index)
        for keyword in keywords:
            hit |= lower.str.contains(keyword, regex=False)
        group[hit] = name
    return group.where(~group.isin(names.RARE_DIAGNOSES), "other")


def _aligned(table: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    """Return one row a stay in the order of `stays`, -1 (missing) as NaN."""
    rows = table.drop_duplicates(STAY).set_index(STAY).reindex(stays[STAY]).reset_index(drop=True)
    return rows.mask(rows == -1)


def _aps_features(aps: pd.DataFrame, stays: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the 39 features of apsx."""
    values = {name: aps[name] for name in names.APS}
    values["pf"] = aps["pao2"] / (aps["fio2"] / 100)
    sedated = aps["meds"] == 1
    for part in ("eyes", "motor", "verbal"):
        values[part] = aps[part].mask(sedated)
    values["gcs"] = values["eyes"] + values["motor"] + values["verbal"]
    values["gcs_not_assessable"] = sedated.astype(float)
    values |= {name: aps[name] for name in ("intubated", "vent", "dialysis")}
    values["age"] = stays["age"]
    values["female"] = stays["gender"].map({"Female": 1.0, "Male": 0.0})
    values |= {f"dev_{name}": (aps[name] - normal).abs() for name, normal in names.NORMAL.items()}
    values["age2"] = (stays["age"] - 60) ** 2 / 100
    return values


def _chronic_features(pred: pd.DataFrame) -> dict[str, pd.Series]:
    """Return comorbidities and kind of admission; a blank electivesurgery is no surgery, 0 an emergency
    one.
    """
    values = {name: pred[name] for name in names.CHRONIC}
    surgery = pred["electivesurgery"]
    return {**values, "electivesurgery": surgery.fillna(0.0),
            "emergencysurgery": (surgery == 0).astype(float)}


def _admission_features(stays: pd.DataFrame) -> dict[str, pd.Series]:
    """Return body size, hours in hospital before the unit, and one column a value of source, unit and
    diagnosis.
    """
    weight = stays["admissionweight"].where(stays["admissionweight"].between(25, 300))
    height = stays["admissionheight"].where(stays["admissionheight"].between(120, 220))
    source = stays["unitadmitsource"].replace(names.ADMIT_ALIASES)
    source = source.where(source.isin(names.ADMIT_SOURCES), "Unknown")
    values = {"bmi": weight / (height / 100) ** 2, "weight": weight,
              "preicu_h": (-stays["hospitaladmitoffset"] / 60).clip(0, 720)}
    for columns, given in ((names.ADMIT_COLUMNS, source), (names.UNIT_COLUMNS, stays["unittype"]),
                           (names.DIAGNOSIS_COLUMNS, diagnosis_group(stays["apacheadmissiondx"]))):
        values |= {column: np.equal(given, code).astype(float) for column, code in columns.items()}
    return values
