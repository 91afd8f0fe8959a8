"""The eICU build: cohorts and counts of the demo, each leakage trap, raw tables against pandas, bad input."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedray.data import eicu, eicu_grid, synth_tables
from fedray.data import eicu_columns as names
from fedray.data.folder import read_contract, read_index
from fedray.errors import DataError
from tests.data.eicu_tables import expected_hours, make_raw, make_tables, write_tables


def built(folder: Path) -> pd.DataFrame:
    """Return all sites' rows of a built folder."""
    sites = {entry["id"]: pd.read_parquet(folder / entry["file"]) for entry in read_index(folder)["sites"]}
    return pd.concat(sites, names=["site"]).reset_index(level=0)


def build_small(folder: Path, tables: dict[str, pd.DataFrame], **options: object) -> pd.DataFrame:
    source = write_tables(folder / "src", tables)
    return built(eicu.build(source, folder / "out", seeds=[0], **options))


@pytest.fixture(scope="module")
def demo(fedray_data, tmp_path_factory):
    """Build the demo's three data sets once: ten seconds, so who uses them is slow."""
    folder = tmp_path_factory.mktemp("eicu")
    return {name: eicu.build(fedray_data / "eicu-demo", folder / name, task=task, cohort=cohort)
            for name, (task, cohort) in eicu.PRESETS.items()}


@pytest.fixture(scope="module")
def main_rows(demo):
    """Return the rows of the demo's largest data set."""
    return built(demo["cohort_main"])


# --- counts of the demo ---------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("name", "stays", "deaths", "hospitals"), [
    ("cohort_main", 2000, 171, 186), ("cohort_grid24", 1868, 152, 185), ("landmark24", 1354, 119, 186)])
def test_demo_cohort_has_the_known_size(demo, name, stays, deaths, hospitals):
    sites = read_index(demo[name])["sites"]
    assert (sum(site["rows"] for site in sites), sum(site["events"] for site in sites), len(sites)) == (
        stays, deaths, hospitals)


@pytest.mark.slow
@pytest.mark.parametrize(("features", "count"), [("aps16", 28), ("apsx", 39), ("ctx", 101), ("full", 211)])
def test_feature_set_has_the_known_number_of_columns(demo, features, count):
    data = eicu.eicu_mortality(demo["cohort_grid24"], features=features)
    assert data[next(iter(data))]()["x"].shape[1] == len(data.features) == count


@pytest.mark.slow
def test_demo_reference_scores_the_known_stays(main_rows):
    scored = main_rows[names.REFERENCE].notna()
    assert (scored.sum(), main_rows[names.OUTCOME][scored].sum()) == (1627, 133)
    assert main_rows[names.REFERENCE][scored].between(0, 1).all()


@pytest.mark.slow
def test_every_diagnosis_group_but_none_else_occurs_in_the_demo(main_rows):
    assert (main_rows[list(names.DIAGNOSIS_COLUMNS)].sum() > 0).all()
    assert (main_rows[list(names.DIAGNOSIS_COLUMNS)].sum(axis=1) == 1).all()


@pytest.mark.slow
def test_demo_split_has_the_published_sizes(demo):
    rows = built(demo["cohort_grid24"])
    tests = [rows[f"split_{seed}"] == 2 for seed in range(20)]
    assert round(np.mean([is_test.sum() for is_test in tests])) == 559
    assert round(np.mean([rows[names.OUTCOME][is_test].sum() for is_test in tests])) == 46


# --- leakage traps --------------------------------------------------------------------------------------
def test_outcome_columns_change_nothing(tmp_path):
    tables = make_tables()
    before = build_small(tmp_path / "a", tables)
    tables["apachePredVar"] = tables["apachePredVar"].drop(columns=["diedinhospital", "dischargelocation"])
    tables["apachePatientResult"]["actualhospitalmortality"] = "ALIVE"
    pd.testing.assert_frame_equal(build_small(tmp_path / "b", tables), before)


def test_reference_is_no_feature(tmp_path):
    build_small(tmp_path, make_tables())
    contract = read_contract(tmp_path / "out")
    assert contract.role("reference") == names.REFERENCE
    assert names.REFERENCE not in contract.features
    with pytest.raises(DataError, match="never an"):
        eicu.read_dataset(tmp_path / "out", features=[names.REFERENCE])


def test_minus_one_is_missing(tmp_path):
    tables = make_tables()
    tables["apacheApsVar"].loc[:, ["creatinine", "eyes", "fio2"]] = -1
    tables["apachePatientResult"]["predictedhospitalmortality"] = -1
    rows = build_small(tmp_path, tables)
    assert rows[["creatinine", "eyes", "gcs", "fio2", "pf", names.REFERENCE]].isna().all(axis=None)


def test_coma_scale_is_missing_under_sedation_and_flagged(tmp_path):
    tables = make_tables()
    tables["apacheApsVar"]["meds"] = 1
    rows = build_small(tmp_path, tables)
    assert rows[["eyes", "motor", "verbal", "gcs"]].isna().all(axis=None)
    assert (rows["gcs_not_assessable"] == 1).all()


def test_age_above_89_is_90_and_a_blank_age_leaves_the_cohort(tmp_path):
    tables = make_tables()
    tables["patient"]["age"] = ["> 89", None] + ["50"] * 58
    rows = build_small(tmp_path, tables)
    assert sorted(rows["age"].unique()) == [50, 90] and len(rows) == 59


def test_cohort_takes_the_first_unit_stay_with_known_outcome_and_aps_row(tmp_path):
    tables = make_tables()
    patient = tables["patient"]
    patient.loc[0, "unitvisitnumber"] = 2
    patient.loc[1, "hospitaldischargestatus"] = None
    patient.loc[2, "age"] = "15"
    patient.loc[4, "patienthealthsystemstayid"] = patient.loc[3, "patienthealthsystemstayid"]
    tables["apacheApsVar"] = tables["apacheApsVar"].drop(index=5)
    rows = build_small(tmp_path, tables)
    assert not set(patient["uniquepid"][[0, 1, 2, 4, 5]]) & set(rows["uniquepid"])
    assert len(rows) == 55


def test_landmark_leaves_out_stays_below_24_hours(tmp_path):
    tables = make_tables()
    tables["patient"]["unitdischargeoffset"] = [1439, 1440] * 30
    stays = tables["patient"]["patientunitstayid"].to_numpy()
    rows = build_small(tmp_path, {**tables, **make_raw(stays)}, task="landmark24")
    assert set(rows["uniquepid"]) == set(tables["patient"]["uniquepid"][1::2])


def test_main_cohort_has_no_hours_to_tell_a_short_stay(tmp_path):
    tables = make_tables()
    stays = tables["patient"]["patientunitstayid"].to_numpy()
    build_small(tmp_path, {**tables, **make_raw(stays)})
    assert not [name for name in read_contract(tmp_path / "out").features if name.startswith("d24_")]
    with pytest.raises(DataError, match="give away a short stay"):
        eicu.eicu_mortality(tmp_path / "out", features="full")


def test_grid_cohort_holds_the_stays_with_a_row_in_the_first_day(tmp_path):
    tables = make_tables()
    stays = tables["patient"]["patientunitstayid"].to_numpy()
    raw = make_raw(stays)
    late = {name: table[(table["patientunitstayid"] != stays[8])
                        | (table.iloc[:, 2] >= 1440)] for name, table in raw.items()}
    rows = build_small(tmp_path, {**tables, **late}, cohort="grid24")
    assert tables["patient"]["uniquepid"][8] not in set(rows["uniquepid"])
    assert len(rows) == 59


def test_hours_after_the_first_day_change_nothing(tmp_path):
    tables = make_tables()
    raw = make_raw(tables["patient"]["patientunitstayid"].to_numpy())
    cut = {name: table[table.iloc[:, 2] < 1440] for name, table in raw.items()}
    whole = build_small(tmp_path / "a", {**tables, **raw}, cohort="grid24")
    pd.testing.assert_frame_equal(build_small(tmp_path / "b", {**tables, **cut}, cohort="grid24"), whole)


def test_number_of_measurements_is_no_feature(tmp_path):
    tables = make_tables()
    raw = make_raw(tables["patient"]["patientunitstayid"].to_numpy())
    twice = {name: pd.concat([table, table]) for name, table in raw.items()}
    once = build_small(tmp_path / "a", {**tables, **raw}, cohort="grid24")
    pd.testing.assert_frame_equal(build_small(tmp_path / "b", {**tables, **twice}, cohort="grid24"), once)


@pytest.mark.slow
def test_patient_with_stays_in_two_hospitals_is_on_one_side(main_rows):
    assert (main_rows.groupby("uniquepid")["site"].nunique() > 1).sum() > 10
    sides = main_rows.groupby("uniquepid")[[f"split_{seed}" for seed in range(20)]].nunique()
    assert (sides == 1).all(axis=None)


def test_hospital_and_patient_are_no_features(tmp_path):
    build_small(tmp_path, make_tables())
    contract = read_contract(tmp_path / "out")
    assert not {"hospitalid", "uniquepid", "patientunitstayid", "numbedscategory",
                "region"} & set(contract.features)
    assert contract.role("group") == "uniquepid"


# --- hours ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_rows", [500, 25_000])
def test_raw_tables_equal_plain_pandas(tmp_path, chunk_rows):
    stays = make_tables()["patient"]["patientunitstayid"].to_numpy()
    raw = make_raw(stays)
    source = eicu_grid.find_source(write_tables(tmp_path, raw), None)
    found, seen = eicu_grid.first_day_features(source, stays[::-1], chunk_rows)
    wanted = expected_hours(raw, stays[::-1])
    np.testing.assert_allclose(found[wanted.columns], wanted, rtol=1e-12)
    assert found.drop(columns=wanted.columns).isna().all(axis=None)
    assert seen.all()


def test_hourly_grid_and_raw_tables_give_the_same_features(tmp_path):
    synth_tables.write(tmp_path, scale=0.003, num_hospitals=3, periodic=True)
    stays = pd.read_parquet(tmp_path / "los_dyn.parquet", columns=["stay_id"])["stay_id"].unique()
    raw, _ = eicu_grid.first_day_features(eicu_grid.find_source(tmp_path, None), stays)
    grid, _ = eicu_grid.first_day_features(eicu_grid.Source(grid=tmp_path / "los_dyn.parquet"), stays)
    vitals = [f"d24_{name}_{stat}" for name in names.VITALS for stat in names.VITAL_STATS]
    labs = [f"d24_{name}_{stat}" for name in names.LABS for stat in names.LAB_STATS]
    np.testing.assert_allclose(raw[vitals], grid[vitals], atol=0.5)  # five-minute values are rounded
    np.testing.assert_allclose(raw[labs], grid[labs])


def test_urine_counts_outputs_and_not_occurrences(tmp_path):
    made = pd.DataFrame({"patientunitstayid": [1, 1, 1, 1, 2], "intakeoutputoffset": [5, 700, 900, 1500, 10],
                         "cellpath": ["flowsheet|Flowsheet Cell Labels|I&O|Output (ml)|x"] * 5,
                         "celllabel": ["Urine", "Foley", "Urine Count", "Urine", "Chest tube"],
                         "cellvaluenumeric": [100.0, 50.0, 1.0, 400.0, 30.0]})
    raw = make_raw(np.array([1, 2]))
    folder = write_tables(tmp_path, {**raw, "intakeOutput": made})
    found, _ = eicu_grid.first_day_features(eicu_grid.find_source(folder, None), np.array([1, 2]))
    np.testing.assert_array_equal(found["d24_urine_sum"], [150.0, np.nan])


def test_plain_and_compressed_tables_give_the_same_data(tmp_path):
    tables = make_tables()
    for ending in (".csv", ".csv.gz"):
        eicu.build(write_tables(tmp_path / f"src{ending}", tables, ending), tmp_path / ending, seeds=[0])
    assert read_index(tmp_path / ".csv")["version"] == read_index(tmp_path / ".csv.gz")["version"]


# --- use and bad input ----------------------------------------------------------------------------------
def test_first_use_builds_once_and_again_when_a_table_changes(tmp_path):
    tables = make_tables()
    source = write_tables(tmp_path / "src", tables)
    where = {"task": "severity", "cohort": "main"}
    assert eicu.build_if_changed(source, tmp_path / "out", **where)
    assert not eicu.build_if_changed(source, tmp_path / "out", **where)
    tables["patient"].loc[0, "age"] = "33"
    write_tables(source, tables)
    assert eicu.build_if_changed(source, tmp_path / "out", **where)


def test_first_use_adds_a_split_that_is_not_there(tmp_path):
    source = write_tables(tmp_path / "src", make_tables())
    data = eicu.eicu_first_use(source, tmp_path / "data", features="ctx", cohort="cohort_main", split_seed=77)
    sizes = [len(data[site]().splits["test"]) for site in data]
    assert 0 < sum(sizes) < 60


def test_first_use_without_anything_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    with pytest.raises(DataError, match=r"fedray data get eicu-demo.*data_dir="):
        eicu.eicu_first_use(None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_features_and_seeds_are_refused(tmp_path):
    build_small(tmp_path, make_tables())
    with pytest.raises(DataError, match="Fix: features="):
        eicu.eicu_mortality(tmp_path / "out", features="apsy")
    with pytest.raises(DataError, match="has the splits 0 and not 3"):
        eicu.eicu_mortality(tmp_path / "out", features="ctx", split_seed=3)


def refused(source: Path, **options: object) -> str:
    """Return the message of a build that must be refused and leave nothing."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        eicu.build(source, source.parent / "deep" / "out", **options)
    assert sorted(source.parent.rglob("*")) == before
    return str(caught.value)


def test_missing_table_is_refused(tmp_path):
    source = write_tables(tmp_path / "src", make_tables())
    (source / "apachePredVar.csv.gz").unlink()
    message = refused(source)
    assert "apachePredVar.csv" in message and str(source) in message and "Fix:" in message


def test_missing_column_is_refused(tmp_path):
    tables = make_tables()
    tables["patient"] = tables["patient"].drop(columns="uniquepid")
    message = refused(write_tables(tmp_path / "src", tables))
    assert "patient.csv.gz" in message and "uniquepid" in message and "Fix:" in message


def test_text_in_a_number_column_is_refused_without_quoting_it(tmp_path):
    tables = make_tables()
    tables["apacheApsVar"]["wbc"] = "J. Smith"
    message = refused(write_tables(tmp_path / "src", tables))
    assert "wbc" in message and "Smith" not in message


@pytest.mark.parametrize("table", ["patient", "vitalPeriodic"])
def test_cut_off_file_is_refused(tmp_path, table):
    tables = make_tables()
    raw = make_raw(tables["patient"]["patientunitstayid"].to_numpy())
    source = write_tables(tmp_path / "src", {**tables, **raw})
    path = source / f"{table}.csv.gz"
    path.write_bytes(path.read_bytes()[:-200])
    message = refused(source, cohort="grid24")
    assert f"{table}.csv.gz" in message and "cannot be read" in message and "Fix:" in message


def test_text_among_the_vitals_is_refused_without_quoting_it(tmp_path):
    tables = make_tables()
    raw = make_raw(tables["patient"]["patientunitstayid"].to_numpy())
    raw["vitalPeriodic"]["heartrate"] = raw["vitalPeriodic"]["heartrate"].astype(object)
    raw["vitalPeriodic"].loc[40, "heartrate"] = "J. Smith"
    message = refused(write_tables(tmp_path / "src", {**tables, **raw}), cohort="grid24")
    assert "vitalPeriodic.csv.gz" in message and "Smith" not in message


def test_hours_that_are_nowhere_are_refused(tmp_path):
    message = refused(write_tables(tmp_path / "src", make_tables()), cohort="grid24")
    assert "los_dyn.parquet" in message and "--hourly" in message


def test_broken_grid_is_refused(tmp_path):
    source = write_tables(tmp_path / "src", make_tables())
    (source / "los_dyn.parquet").write_bytes(b"not parquet")
    assert "cannot be read as Parquet" in refused(source, cohort="grid24")


def test_unknown_options_are_refused(tmp_path):
    source = write_tables(tmp_path / "src", make_tables())
    assert "severity, landmark24" in refused(source, task="mortality")
    assert "main, grid24" in refused(source, cohort="all")
    assert "seeds" in refused(source, seeds=[])
    assert "test_fraction" in refused(source, test_fraction=1.0)


def test_tables_of_two_extracts_are_refused(tmp_path):
    tables = make_tables()
    tables["apacheApsVar"]["patientunitstayid"] += 10**6
    assert "same extract" in refused(write_tables(tmp_path / "src", tables))


def test_empty_file_is_refused(tmp_path):
    source = write_tables(tmp_path / "src", make_tables())
    with gzip.open(source / "patient.csv.gz", "wb"):
        pass
    assert "cannot be read" in refused(source)
