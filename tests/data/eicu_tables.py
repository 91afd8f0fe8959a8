"""Small generated eICU tables for tests: 60 stays, 4 hospitals, every trap of the original in them."""

from pathlib import Path

import numpy as np
import pandas as pd

from fedray.data import eicu_columns as names

LABS = {"creatinine": "crea", "lactate": "lact", "FiO2": "fio2", "glucose": "glu", "bedside glucose": "glu"}
PERIODIC = {"heartrate": "hr", "sao2": "o2sat", "respiration": "resp", "temperature": "temp",
            "systemicmean": "map", "systemicsystolic": "sbp", "systemicdiastolic": "dbp"}


def make_tables(num_stays: int = 60, seed: int = 5) -> dict[str, pd.DataFrame]:
    """Return the tables that a build reads, the columns that it must not read among them."""
    rng = np.random.default_rng(seed)
    stay = np.arange(num_stays) * 7 + 1000
    died = rng.random(num_stays) < 0.25
    stays = {"patientunitstayid": stay}
    patient = pd.DataFrame({
        **stays, "patienthealthsystemstayid": stay + 5, "gender": rng.choice(["Male", "Female"], num_stays),
        "age": rng.integers(20, 89, num_stays).astype(str), "hospitalid": rng.choice([7, 12, 60, 301],
                                                                                     num_stays),
        "apacheadmissiondx": rng.choice(["Sepsis, pulmonary", "CABG alone", "Rash"], num_stays),
        "admissionheight": 170.0, "hospitaladmitoffset": rng.integers(-3000, 0, num_stays),
        "hospitaldischargestatus": np.where(died, "Expired", "Alive"), "unittype": "MICU",
        "unitadmitsource": rng.choice(["PACU", "Floor", "Emergency Department"], num_stays),
        "unitvisitnumber": 1,
        "admissionweight": 80.0, "unitdischargeoffset": rng.integers(300, 6000, num_stays),
        "uniquepid": [f"00{rng.integers(2, 9)}-{number}" for number in range(num_stays)]})
    aps = pd.DataFrame({**stays, **{name: rng.uniform(limits.low, limits.high, num_stays).round(1)
                                    for name, limits in names.APS.items()},
                        "eyes": 4, "motor": 6, "verbal": rng.integers(1, 6, num_stays), "meds": 0,
                        "intubated": 0, "vent": 1, "dialysis": 0})
    pred = pd.DataFrame({**stays, **dict.fromkeys(names.CHRONIC, 0), "diedinhospital": died.astype(int),
                         "dischargelocation": np.where(died, 9, 4)})
    result = pd.DataFrame({**stays, "apacheversion": "IVa",
                           "predictedhospitalmortality": rng.random(num_stays),
                           "actualhospitalmortality": np.where(died, "EXPIRED", "ALIVE")})
    return {"patient": patient, "apacheApsVar": aps, "apachePredVar": pred, "apachePatientResult": result}


def make_raw(stays: np.ndarray, seed: int = 6) -> dict[str, pd.DataFrame]:
    """Return lab and vitalPeriodic: also rows before admission, after a day, of others, and artefacts."""
    rng = np.random.default_rng(seed)
    known = np.append(stays, [5, 10**7])
    rows = 3000
    vital = pd.DataFrame({"vitalperiodicid": np.arange(rows), "patientunitstayid": rng.choice(known, rows),
                          "observationoffset": rng.integers(-200, 2500, rows)})
    for column in PERIODIC:
        vital[column] = rng.uniform(30, 100, rows).round(1)
        vital.loc[rng.random(rows) < 0.5, column] = np.nan
    vital.loc[:20, "heartrate"] = 900.0
    lab = pd.DataFrame({"labid": np.arange(rows), "patientunitstayid": rng.choice(known, rows),
                        "labresultoffset": rng.integers(-200, 2500, rows),
                        "labname": rng.choice([*LABS, "not a lab of ours"], rows),
                        "labresult": rng.uniform(0.2, 1.8, rows).round(2)})
    lab.loc[rng.random(rows) < 0.1, "labresult"] = np.nan
    return {"vitalPeriodic": vital, "lab": lab}


def write_tables(folder: Path, tables: dict[str, pd.DataFrame], ending: str = ".csv.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}{ending}", index=False)
    return folder


def expected_hours(raw: dict[str, pd.DataFrame], stays: np.ndarray) -> pd.DataFrame:
    """Return the features of the first 24 hours by plain pandas: mean of each hour, then the statistics."""
    vital = raw["vitalPeriodic"].rename(columns={"observationoffset": "minute", **PERIODIC})
    vital.loc[~vital["hr"].between(0, 300), "hr"] = np.nan
    vital.loc[~vital["temp"].between(32, 42), "temp"] = np.nan
    vital.loc[~vital["o2sat"].between(50, 100), "o2sat"] = np.nan
    lab = raw["lab"].assign(name=raw["lab"]["labname"].map(LABS)).dropna(subset=["name"])
    lab["labresult"] = lab["labresult"].where((lab["name"] != "fio2") | (lab["labresult"] > 1),
                                              lab["labresult"] * 100)
    wide = lab.pivot_table(index="labid", columns="name", values="labresult", dropna=False)
    lab = lab.set_index("labid")[["patientunitstayid", "labresultoffset"]].join(wide)
    lab = lab.rename(columns={"labresultoffset": "minute"})
    columns = {}
    for table, stats in ((vital, names.VITAL_STATS), (lab, names.LAB_STATS)):
        inside = table[table["minute"].between(0, 1439)]
        hourly = inside.groupby(["patientunitstayid", inside["minute"] // 60]).mean(numeric_only=True)
        for name in set(PERIODIC.values()) | set(LABS.values()):
            if name in hourly:
                for stat in stats:
                    columns[f"d24_{name}_{stat}"] = hourly[name].groupby("patientunitstayid").agg(stat)
    return pd.DataFrame(columns).reindex(stays)
