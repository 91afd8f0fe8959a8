"""The synthetic federation as eICU tables: schema, keys, codes, times, and memory that does not grow."""

import gzip
import hashlib

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fedray.data import synth_hours, synth_rows, synth_tables
from fedray.data import synthetic_profile as profile
from fedray.errors import DataError

# keywords of the eICU task, in order: a diagnosis belongs to the first group of which it contains one
KEYWORDS = {
    "sepsis": ("sepsis",), "cardiac_arrest": ("arrest",), "ami": ("infarction",),
    "chf": ("chf", "congestive"),
    "rhythm": ("rhythm",), "acs": ("angina",), "stroke": ("cva", "cerebrov"),
    "ich": ("hemorrhage, intracr", "intracranial", "hematoma", "subarach"), "seizure": ("seizure",),
    "coma": ("coma",), "pneumonia": ("pneumonia",), "copd": ("emphysema", "bronchitis", "asthma"),
    "resp": ("respiratory",), "pe": ("embolus, pulm",), "gi_bleed": ("bleeding",), "dka": ("diabetic",),
    "overdose": ("overdose", "withdrawal"), "renal": ("renal",), "trauma": ("trauma",),
    "cabg": ("cabg", "coronary artery bypass"), "valve": ("valve",), "neurosurg": ("craniotomy",),
    "vascular": ("endarterectomy", "aneurysm", "graft"), "surgery": ("surgery", "surgical")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("eicu")
    rows = synth_tables.write(out, scale=0.03, seed=3, num_hospitals=40, periodic=True)
    return out, rows


def read(written, name: str) -> pd.DataFrame:
    return pd.read_csv(written[0] / f"{name}.csv.gz")


def test_every_table_is_there_with_the_rows_that_are_reported(written):
    out, rows = written
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}.csv.gz" for name in (*synth_tables.TABLES, *synth_tables.PERIODIC)]
        + ["los_dyn.parquet", "los_sta.parquet"])
    assert rows["hospital"] == 40
    assert {name: len(read(written, name)) for name in synth_tables.TABLES} == {
        name: rows[name] for name in synth_tables.TABLES}


def test_columns_are_those_of_eicu(written):
    assert list(read(written, "patient").columns) == list(synth_rows.PATIENT_COLUMNS)
    assert list(read(written, "apachePredVar").columns) == list(synth_rows.PRED_COLUMNS)
    assert list(read(written, "apachePatientResult").columns) == list(synth_rows.RESULT_COLUMNS)
    assert list(read(written, "apacheApsVar").columns) == [
        "apacheapsvarid", "patientunitstayid", "intubated", "vent", "dialysis", "eyes", "motor", "verbal",
        "meds", *profile.APS]
    assert list(read(written, "hospital").columns) == [
        "hospitalid", "numbedscategory", "teachingstatus", "region"]


def test_keys_are_unique_and_refer_to_stays(written):
    patient = read(written, "patient")
    stays = set(patient["patientunitstayid"])
    assert patient["patientunitstayid"].is_unique
    for name in ("apacheApsVar", "apachePredVar", "vitalPeriodic", "lab"):
        table = read(written, name)
        assert table.iloc[:, 0].is_unique and set(table["patientunitstayid"]) <= stays
    assert patient.groupby("patienthealthsystemstayid")["uniquepid"].nunique().max() == 1
    assert patient.groupby("uniquepid")["hospitalid"].nunique().max() == 1


def test_a_hospital_stay_has_one_outcome_and_visits_in_order(written):
    patient = read(written, "patient")
    stays = patient.groupby("patienthealthsystemstayid")
    assert stays["hospitaldischargestatus"].nunique(dropna=False).max() == 1
    assert (stays["unitvisitnumber"].min() == 1).all()
    assert (stays.size() == stays["unitvisitnumber"].max()).all()
    assert (stays.size() == 1).mean() == pytest.approx(0.87, abs=0.04)
    end = patient["patienthealthsystemstayid"].map(stays["patientunitstayid"].max())
    assert (patient.loc[patient["unitdischargestatus"] == "Expired", "patientunitstayid"] == end[
        patient["unitdischargestatus"] == "Expired"]).all()


def test_nobody_is_admitted_after_death(written):
    patient = read(written, "patient")
    admissions = patient.drop_duplicates("patienthealthsystemstayid")
    died = (admissions["hospitaldischargestatus"] == "Expired").astype(int)
    before = died.groupby(admissions["uniquepid"]).cumsum() - died
    assert before.max() == 0


def test_times_are_consistent(written):
    patient = read(written, "patient")
    assert (patient["hospitaladmitoffset"] <= 0).all()
    assert (patient["unitdischargeoffset"] > 0).all()
    assert (patient["hospitaldischargeoffset"] >= patient["unitdischargeoffset"]).all()
    minutes = pd.to_timedelta(patient["unitadmittime24"]) - pd.to_timedelta(patient["hospitaladmittime24"])
    assert ((minutes.dt.total_seconds() / 60 + patient["hospitaladmitoffset"]) % 1440 == 0).all()


def test_missing_values_are_coded_as_eicu_codes_them(written):
    aps, pred, patient = (read(written, name) for name in ("apacheApsVar", "apachePredVar", "patient"))
    assert not aps.isna().any().any()
    assert (aps["albumin"] == -1).mean() == pytest.approx(0.61, abs=0.08)
    assert ((aps["ph"] == -1) == (aps["fio2"] == -1)).all()
    assert (aps.loc[aps["meds"] == 1, ["eyes", "motor", "verbal"]] == -1).all().all()
    assert pred["electivesurgery"].isna().mean() > 0.7 and set(pred["electivesurgery"].dropna()) <= {0, 1}
    assert "> 89" in set(patient["age"])
    assert patient["hospitaldischargestatus"].isna().mean() < 0.03


def test_mortality_and_rows_without_aps(written):
    patient, aps = read(written, "patient"), read(written, "apacheApsVar")
    expired = patient["hospitaldischargestatus"] == "Expired"
    assert expired.mean() == pytest.approx(profile.MORTALITY, abs=0.03)
    assert len(aps) / len(patient) == pytest.approx(0.88, abs=0.05)


def test_results_hold_both_versions_and_unscored_stays(written):
    result = read(written, "apachePatientResult")
    scored = result["predictedhospitalmortality"] != -1
    assert (result.groupby("patientunitstayid")["apacheversion"].agg(list).map(tuple) == ("IV", "IVa")).all()
    assert scored.mean() == pytest.approx(0.92, abs=0.03)
    assert result.loc[scored, "predictedhospitalmortality"].between(0, 1).all()


def test_each_diagnosis_belongs_to_its_group():
    for group, (name, _) in profile.DIAGNOSIS_NAMES.items():
        found = [key for key, words in KEYWORDS.items() if any(word in name.lower() for word in words)]
        assert (found[0] if found else "unknown" if name == "" else "other") == group


def test_grid_has_its_layout_and_follows_length_of_stay(written):
    patient = read(written, "patient").set_index("patientunitstayid")
    grid = pq.read_table(written[0] / "los_dyn.parquet")
    static = pq.read_table(written[0] / "los_sta.parquet")
    frame = grid.select(["stay_id", "time", "hr", "crea"]).to_pandas()
    hours = frame.groupby("stay_id")["time"].max().dt.total_seconds() / 3600
    expected = (patient.loc[hours.index, "unitdischargeoffset"] // 60).clip(upper=168)
    assert grid.schema.names == ["stay_id", "time", *synth_hours.VARIABLES]
    assert [str(grid.schema.field(name).type) for name in ("stay_id", "time")] == ["int32", "duration[s]"]
    assert static.column_names == ["stay_id", "age", "sex", "height", "weight"]
    assert (hours == expected).all() and hours.min() >= 6
    assert frame["hr"].notna().mean() == pytest.approx(0.94, abs=0.01)
    assert frame["crea"].notna().mean() == pytest.approx(0.06, abs=0.02)


def test_lab_and_vital_rows_add_up_to_the_grid(written):
    grid = pq.read_table(written[0] / "los_dyn.parquet").to_pandas()
    grid["hour"] = (grid["time"].dt.total_seconds() // 3600).astype(int)
    grid = grid.set_index(["stay_id", "hour"])
    vital, lab = read(written, "vitalPeriodic"), read(written, "lab")
    mean = vital["heartrate"].groupby([vital["patientunitstayid"], vital["observationoffset"] // 60]).mean()
    creatinine = lab[lab["labname"] == "creatinine"]
    hour = creatinine["labresultoffset"] // 60
    crea = creatinine.set_index([creatinine["patientunitstayid"], hour])["labresult"].sort_index()
    assert len(vital) == 12 * len(grid)
    np.testing.assert_allclose(mean.to_numpy(), grid["hr"].to_numpy(), atol=0.6)
    np.testing.assert_allclose(crea.to_numpy(), grid["crea"].dropna().sort_index().to_numpy())


def test_equal_arguments_give_equal_bytes_and_knobs_change_them(tmp_path):
    for name, knobs in (("a", {}), ("b", {}), ("c", {"no_labs": 2})):
        synth_tables.write(tmp_path / name, scale=0.01, num_hospitals=6, **knobs)
    hashes = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest()
               for path in (tmp_path / name).iterdir()} for name in "abc"]
    assert hashes[0] == hashes[1]
    assert hashes[0]["apacheApsVar.csv.gz"] != hashes[2]["apacheApsVar.csv.gz"]


def test_a_table_is_never_overwritten(tmp_path):
    synth_tables.write(tmp_path, scale=0.01, num_hospitals=2, hourly=False, compress=False)
    before = (tmp_path / "patient.csv").read_bytes()
    with pytest.raises(DataError, match=r"patient\.csv"):
        synth_tables.write(tmp_path, scale=0.01, num_hospitals=2, hourly=False, compress=False)
    assert (tmp_path / "patient.csv").read_bytes() == before


def test_an_unknown_knob_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="intercept_dd"):
        synth_tables.write(tmp_path / "out", scale=0.01, intercept_dd=1.0)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_table(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synth_hours, "static_table", fail)
    with pytest.raises(OSError, match="disk full"):
        synth_tables.write(tmp_path, scale=0.01, num_hospitals=2)
    assert list(tmp_path.iterdir()) == []


def test_gzip_holds_no_time(written):
    with (written[0] / "hospital.csv.gz").open("rb") as file:
        assert file.read(8)[4:8] == b"\0\0\0\0"
    with gzip.open(written[0] / "hospital.csv.gz", "rt") as file:
        assert file.readline() == "hospitalid,numbedscategory,teachingstatus,region\n"
