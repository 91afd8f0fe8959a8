"""Ratios compare a system with fedray in the same pair, and the last line has what was promised."""

import pytest
import tables

RUNS = {
    "plain": [{"pair": 0, "cpu_per_round": 4.0, "wall_per_round": 2.0, "peak_mb": 10.0, "metric": 0.8},
              {"pair": 1, "cpu_per_round": 9.0, "wall_per_round": 2.0, "peak_mb": 10.0, "metric": 0.8}],
    "fedray_in_process": [
        {"pair": 1, "cpu_per_round": 3.0, "wall_per_round": 1.0, "peak_mb": 20.0, "metric": 0.8}],
}


def test_ratio_is_taken_within_a_pair() -> None:
    found = tables.ratios(RUNS, "cpu_per_round")
    assert found["plain"] == {"fedray_in_process": {"median": 3.0, "min": 3.0, "max": 3.0}}


def test_limit_ratio_is_seconds_over_operations_at_the_gemm_rate() -> None:
    assert tables.limit_ratio(cpu=0.3, flops=15e9, gemm=100e9) == pytest.approx(2.0)


def test_last_line_has_the_promised_fields() -> None:
    line = tables.last_line("w1", tables.summary(RUNS, flops=15e9, gemm=100e9))
    assert set(line) == {"workload", "cpu_per_round", "wall_per_round", "peak_mb", "ratio_cpu", "ratio_wall",
                         "limit_ratio"}
    assert line["cpu_per_round"] == {"plain": 6.5, "fedray_in_process": 3.0}
    assert line["ratio_wall"]["plain"] == {"fedray_in_process": 2.0}
    assert line["limit_ratio"] == {"fedray_in_process": 20.0}


def test_table_has_a_row_a_system() -> None:
    text = tables.table("w1", "auroc", tables.summary(RUNS, flops=15e9, gemm=100e9))
    assert "| plain | 6.5 (4-9) | 2 (2-2) | 10 | 0.8000 | 3 | - | 2 | - |" in text
