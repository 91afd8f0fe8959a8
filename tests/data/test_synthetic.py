"""The embedded synthetic ICU: calibrated, drawn per hospital, the same everywhere, shifted by its knobs."""

import pickle
import time

import numpy as np
import pytest
import torch

from fedray.data import synthetic_profile as profile
from fedray.data.site import SiteData
from fedray.data.synthetic import PREPARED, synthetic_icu
from fedray.data.synthetic_plan import MIN_ROWS, Shift, draw_habits, open_stream, plan_hospitals
from fedray.data.synthetic_stays import draw_stays
from fedray.errors import DataError


@pytest.fixture(scope="module")
def default() -> dict[str, SiteData]:
    data = synthetic_icu()
    return {name: data[name]() for name in data}


def column(sites: dict[str, SiteData], name: str) -> np.ndarray:
    return np.concatenate([site[name].numpy() for site in sites.values()])


def place(feature: str) -> int:
    return profile.FEATURES.index(feature)


def test_default_is_a_tenth_of_eicu_in_208_hospitals(default):
    assert len(default) == 208
    assert abs(sum(site.num_rows for site in default.values()) - 20_086) < 150
    assert min(site.num_rows for site in default.values()) >= MIN_ROWS


def test_default_mortality_is_the_published_one(default):
    assert abs(column(default, "y").mean() - profile.MORTALITY) < 0.003


def test_default_takes_less_than_three_seconds_of_cpu():
    start = time.process_time()
    data = synthetic_icu()
    for name in data:
        data[name]()
    assert time.process_time() - start < 3.0


def test_full_scale_plan_has_the_published_margins():
    hospitals = plan_hospitals(208, 1.0, 7, Shift())
    stays = {bed: sum(h.rows for h in hospitals if h.beds == bed) for bed in profile.BEDS}
    assert {bed: sum(h.beds == bed for h in hospitals) for bed in profile.BEDS} == {
        bed: count for bed, (count, _) in profile.BEDS.items()}
    assert stays == pytest.approx({bed: total for bed, (_, total) in profile.BEDS.items()}, rel=0.005)
    regions = {region: sum(h.region == region for h in hospitals) for region in profile.REGIONS}
    assert regions == profile.REGIONS
    assert sum(h.teaching for h in hospitals) == 19


def test_prepared_features_are_standardised_and_without_gaps(default):
    x = column(default, "x")
    values = x[:, : len(profile.FEATURES)]
    assert x.shape[1] == len(PREPARED) == 51
    assert x.dtype == np.float32 and np.isfinite(x).all()
    assert np.abs(values).max() <= profile.CLIP
    assert np.abs(values.mean(axis=0)).max() < 0.15
    assert values[:, place("heartrate")].std() == pytest.approx(1.0, abs=0.05)


def test_natural_features_are_in_their_units_with_gaps_at_the_profiled_rates():
    data = synthetic_icu(prepared=False)
    x = np.concatenate([data[name]()["x"].numpy() for name in data])
    missing = np.isnan(x).mean(axis=0)
    assert data.features == profile.FEATURES and x.shape[1] == 39
    for name in ("urine", "wbc", "albumin", "ph", "gcs", "temperature"):
        group = next(entry for entry in profile.ABSENCE.values() if name in entry.columns)
        assert missing[place(name)] == pytest.approx(group.rate, abs=0.06)
    assert (np.isnan(x[:, place("ph")]) == np.isnan(x[:, place("dev_ph")])).all()
    assert np.nanmedian(x[:, place("heartrate")]) == pytest.approx(104, abs=3)
    assert np.nanmedian(x[:, place("creatinine")]) == pytest.approx(1.0, abs=0.15)


def test_a_site_opens_to_the_same_bits_alone_and_after_a_pickle():
    data = synthetic_icu(num_sites=12, scale=0.02)
    opener = data["h007"]
    for _ in range(2):
        data["h003"]()
    first, second = opener(), pickle.loads(pickle.dumps(opener))()
    assert len(pickle.dumps(opener)) < 1_000
    assert all(torch.equal(first[name], second[name]) for name in ("x", "y"))
    assert all(torch.equal(first.splits[name], second.splits[name]) for name in first.splits)


def test_version_and_rows_change_with_the_seed():
    one, other = synthetic_icu(4, 0.02, seed=1), synthetic_icu(4, 0.02, seed=2)
    assert one.version == synthetic_icu(4, 0.02, seed=1).version != other.version
    assert one["h001"]()["x"].sum() != other["h001"]()["x"].sum()


def test_draws_of_a_hospital_are_pinned():
    """A change here changes every published figure: raise GENERATOR_VERSION with it."""
    hospital = plan_hospitals(208, 0.1, 7, Shift())[0]
    stays = draw_stays(hospital, draw_habits(hospital, 7, Shift()), 6, open_stream(7, "h001", "stays"))
    assert (hospital.beds, hospital.region, hospital.rows) == (">= 500", "West", 199)
    assert stays["heartrate"].tolist() == [55, 108, 94, 89, 81, 84]


def test_splits_cover_the_rows_and_keep_patients_together():
    data = synthetic_icu(num_sites=6, scale=0.3, test_fraction=0.3, valid_fraction=0.2)
    site = max((data[name]() for name in data), key=lambda site: site.num_rows)
    rows = torch.cat([site.splits[name] for name in ("train", "valid", "test")])
    where = np.zeros(site.num_rows, int)
    where[site.splits["test"].numpy()] = 1
    age, female = (site["x"][:, place(name)].numpy() for name in ("age", "female"))
    neighbours = (np.diff(age) == 0) & (np.diff(female) == 0)  # stays of a patient, and few chance pairs
    assert torch.equal(rows.sort().values, torch.arange(site.num_rows))
    assert len(site.splits["test"]) == pytest.approx(0.3 * site.num_rows, rel=0.06)
    assert len(site.splits["valid"]) == pytest.approx(0.2 * site.num_rows, rel=0.08)
    assert site["y"][site.splits["test"]].mean() == pytest.approx(float(site["y"].mean()), abs=0.02)
    assert (np.diff(where)[neighbours] == 0).mean() > 0.85 > (np.diff(where) == 0).mean()


def test_reference_is_unscored_for_a_fifth_and_predicts_too_much(default):
    reference, died = column(default, "reference"), column(default, "y")
    scored = ~np.isnan(reference)
    assert scored.mean() == pytest.approx(1 - profile.UNSCORED, abs=0.02)
    assert reference[scored].mean() > died[scored].mean() + 0.005


def test_intercepts_and_regions_spread_mortality():
    alike = synthetic_icu(seed=3, scale=0.3, intercept_sd=0, slope_sd=0, value_sd=0)
    apart = synthetic_icu(seed=3, scale=0.3, intercept_sd=1.0, region_sd=0.5)
    rates = [[float(data[name]()["y"].mean()) for name in data if data.sizes[name] > 200]
             for data in (alike, apart)]
    assert np.std(rates[1]) > 2 * np.std(rates[0])


def test_missing_sd_zero_gives_every_hospital_the_same_missing_rate():
    spread = []
    for missing_sd in (0.0, 1.0):
        data = synthetic_icu(seed=3, scale=0.3, missing_sd=missing_sd, prepared=False)
        large = [data[name]()["x"] for name in data if data.sizes[name] > 200]
        spread.append(np.std([float(x[:, place("urine")].isnan().float().mean()) for x in large]))
    assert spread[0] < 0.05 < 0.2 < spread[1]


def test_faulty_hospitals_show_their_fault():
    shift = Shift(unit_faults=1, no_labs=1, flipped_labels=1)
    faults = {h.fault: h.name for h in plan_hospitals(20, 0.3, 5, shift)}
    data = synthetic_icu(20, 0.3, 5, prepared=False, unit_faults=1, no_labs=1, flipped_labels=1)
    units, labless, flipped = (data[faults[name]]() for name in ("units", "no_labs", "flipped"))
    assert float(units["x"][:, place("creatinine")].nanmedian()) > 40
    assert float(units["x"][:, place("glucose")].nanmedian()) < 20
    assert bool(labless["x"][:, place("sodium")].isnan().all())
    assert not bool(labless["x"][:, place("heartrate")].isnan().all())
    assert float(flipped["y"].mean()) > 0.7


def test_size_sd_zero_makes_a_bed_class_equal():
    hospitals = plan_hospitals(208, 1.0, 7, Shift(size_sd=0))
    assert len({hospital.rows for hospital in hospitals if hospital.beds == "<100"}) == 1


@pytest.mark.parametrize(("wrong", "named"), [
    ({"num_sites": 0}, "num_sites=0"), ({"scale": 0.0}, "scale=0.0"), ({"test_fraction": 0.9}, "below 1"),
    ({"slope_sd": -1.0}, "slope_sd=-1.0"), ({"num_sites": 2, "no_labs": 3}, "faulty"),
    ({"scale": float("nan")}, "scale=nan")])
def test_impossible_arguments_are_named(wrong, named):
    with pytest.raises(DataError, match=named):
        synthetic_icu(**wrong)
