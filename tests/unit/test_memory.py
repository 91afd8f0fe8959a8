"""The forecast before the start: numbers by hand, who is refused, and what the refusal says."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedray.errors import MemoryForecastError
from fedray.runtime import memory
from fedray.runtime.federation import HostSpec

MIB, GIB = 2**20, 2**30
SETTINGS = {
    "num_packs": 4,
    "is_ray": True,
    "cohort": 100,
    "group_size": 50,
    "model_bytes": 10 * MIB,
    "state_slots": 1,
    "num_sites": 200,
    "data_bytes": 3 * GIB,
    "available": 64 * GIB,
}


def test_a_forecast_counts_processes_data_model_copies_and_rows():
    found = memory.forecast(**SETTINGS)
    assert found.processes == 5 * memory.PROCESS_BYTES + memory.RAY_BYTES  # four packs and the aggregator
    assert found.data == 3 * GIB
    assert found.model == (4 + 5 * 4) * 10 * MIB + 200 * 10 * MIB  # one kept model for each of all sites
    assert found.rows == 4 * 1 * 10 * MIB * memory.ROW_COPIES + 100 * 10 * MIB  # operands kept: 1000 MiB
    assert found.total == found.processes + found.data + found.model + found.rows


def test_one_process_counts_no_process():
    assert memory.forecast(**{**SETTINGS, "is_ray": False}).processes == 0


def test_sites_without_state_keep_no_model():
    assert memory.forecast(**{**SETTINGS, "state_slots": 0}).model == 24 * 10 * MIB


@pytest.mark.parametrize(
    ("name", "value"), [("cohort", 10), ("num_packs", 1), ("model_bytes", MIB)]
)
def test_what_the_refusal_advises_makes_the_run_smaller(name, value):
    assert memory.forecast(**{**SETTINGS, name: value}).total < memory.forecast(**SETTINGS).total


def test_what_the_server_gathers_of_every_site_is_counted():
    plain, robust = (memory.forecast(**SETTINGS, num_gathered=number) for number in (0, 1))
    assert robust.model - plain.model == 100 * 10 * MIB


def test_a_small_model_has_many_sites_in_a_group_and_a_large_one_is_alone():
    assert [memory.sites_together(256, size) for size in (400, 66_688, 10 * MIB)] == [256, 51, 1]


def test_a_fast_fold_adds_up_in_one_copy_and_keeps_no_operand():
    fast = memory.forecast(**{**SETTINGS, "state_slots": 0}, is_fast=True)
    assert fast.model == (4 + 5) * 10 * MIB and fast.rows == 4 * 1 * 10 * MIB * memory.ROW_COPIES


def test_state_beyond_its_limit_lies_on_disk():
    many = memory.forecast(**{**SETTINGS, "num_sites": 10**6})
    assert many.model == 24 * 10 * MIB + 4 * memory.TABLE_BYTES


def test_kept_operands_have_a_bound_per_pack():
    large = memory.forecast(**{**SETTINGS, "cohort": 10**6, "num_sites": 10**6})
    assert large.rows == 4 * 1 * 10 * MIB * memory.ROW_COPIES + 4 * memory.KEPT_BYTES


def test_what_fits_passes_and_one_byte_less_is_refused_with_every_number():
    found = memory.forecast(**SETTINGS)
    memory.check(replace(found, available=found.total))
    with pytest.raises(MemoryForecastError) as caught:
        memory.check(replace(found, available=found.total - 1))
    said = str(caught.value)
    for number in ("7.64 GiB needed", "processes 1.32 GiB", "site data 3.00 GiB", "model copies 2.19 GiB"):
        assert number in said
    assert "fewer packs" in said and len(said.splitlines()) == 1


def test_a_machine_that_does_not_tell_refuses_nothing(monkeypatch):
    def unreadable(path, *_):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert memory.available_bytes() == 0
    memory.check(memory.forecast(**{**SETTINGS, "available": None}))


def test_the_machine_is_asked_where_no_number_is_given(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 7 * GIB)
    assert memory.forecast(**{**SETTINGS, "available": None}).available == 7 * GIB


def test_available_memory_is_read_in_bytes(monkeypatch):
    monkeypatch.setattr(
        Path, "read_text", lambda *_: "MemTotal: 9 kB\nMemAvailable:   2048 kB\nHugePages_Total: 0\n"
    )
    assert memory.available_bytes() == 2 * MIB


def test_the_largest_group_is_found_below_regions():
    packs = [HostSpec("p0", {}, group_size=7), HostSpec("p1", {}, group_size=25)]
    assert memory.group_size([HostSpec("eu", children=tuple(packs)), HostSpec("us", {}, group_size=3)]) == 25
    assert memory.group_size([]) == 1
