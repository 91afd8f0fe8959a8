"""The timeline of the page: what it says, how much it draws, and that it is drawn of killed runs too."""

import pytest

from fedray.observe import trace
from fedray.report import page
from fedray.runtime.observed import Observed
from tests.unit.observe.test_trace import seen, written

pytestmark = pytest.mark.skipif(not page.is_available(), reason="needs the extra report")


def context(folder):
    from fedray.report import timeline

    return timeline.context(folder)


def test_page_draws_each_host_and_says_that_stacked_sites_share_a_span(tmp_path):
    written(tmp_path, 5)
    found = context(tmp_path)
    assert (found["hosts"], found["drawn"], found["rounds"]) == (3, 3, 5)
    assert "pack0 (4 sites)" in found["shares"] and "pack2 (4 sites)" in found["around"]
    assert "share its compute span" in found["shared"]
    for word in ("compute", "downlink", "uplink", "waiting"):
        assert word in found["shares"] and word in found["around"]


def test_hosts_of_one_site_have_its_name_and_share_nothing(tmp_path):
    written(tmp_path, 3, groups=[("north",), ("south",), ("west",)])
    found = context(tmp_path)
    assert "north" in found["shares"] and "pack0" not in found["shares"] and found["shared"] == ""


def test_slowest_round_is_drawn_with_the_ones_beside_it(tmp_path):
    file = trace.TimelineFile(tmp_path)
    file.start(0)
    for number in range(6):
        one = seen(number)
        file.round(number, Observed(began=one.began, ended=one.began + (1.4 if number == 3 else 1.0),
                                    spans=one.spans))  # fmt: skip
    file.close()
    found = context(tmp_path)
    assert "Around round 4, the slowest after the first" in found["around"]
    assert all((f"round {number}<" in found["around"]) == (number in (3, 4, 5)) for number in range(1, 7))


def test_hosts_that_worked_most_are_drawn_where_there_are_many(tmp_path):
    written(tmp_path, 2, hosts=200)
    found = context(tmp_path)
    assert (found["hosts"], found["drawn"]) == (200, 24)
    assert len(found["shares"]) + len(found["around"]) < 300_000


def test_clocks_are_told_where_they_differ(tmp_path):
    written(tmp_path, 2)
    assert context(tmp_path)["clocks"] == {
        "pack0": "+2.00 ms ahead of the aggregator's, to within 1.00 ms"}  # fmt: skip


def test_timeline_of_a_killed_run_is_drawn(tmp_path):
    written(tmp_path, 3, close=False)
    assert context(tmp_path)["rounds"] == 3


def test_run_without_a_timeline_has_no_section(tmp_path):
    assert context(tmp_path) is None
