"""The scaling plan covers the sizes that were promised, and a series ends before it runs out of time."""

import math

import pytest
import scaling


def test_full_plan_reaches_the_promised_sizes() -> None:
    points = [point for series in scaling.plan(is_full=True) for point in series]
    sites = {point.sites for point in points if point.series == "all sites"}
    assert sites == {10, 100, 1000, 10_000, 100_000}
    sizes = sorted(point.size for point in points if point.series == "parameters" and point.packs == 1)
    assert sizes == pytest.approx([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], rel=0.05)
    assert {point.packs for point in points} == {1, 2}


def test_default_plan_leaves_the_largest_sizes_out() -> None:
    points = [point for series in scaling.plan(is_full=False) for point in series]
    assert max(point.sites for point in points) == 10_000
    assert max(point.parameters for point in points) < 1.1e7


def test_next_size_is_expected_to_grow_beyond_start_up() -> None:
    assert scaling.expected([]) == 0.0
    assert scaling.expected([3.0]) == 3.0
    assert scaling.expected([3.0, 5.0]) == 3.0 + scaling.GROWTH * 2.0
    assert scaling.expected([3.0, math.inf]) == math.inf


def test_series_ends_where_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "measure", lambda point: pytest.fail("nothing fits into no time"))
    point = scaling.plan(is_full=False)[0][0]
    found, left_out = scaling.measure_all([[point]], seconds=-1.0)
    assert found == [] and left_out == [f"{point.name}: would not have ended in time"]
