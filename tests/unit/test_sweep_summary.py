"""What a sweep came to: mean and standard deviation over seeds, the best chosen by validation rows."""

import csv
import json
import math

import pytest

from fedray.sweep import summary
from fedray.sweep.trials import Trial, line_of


def line(rate, seed, auroc, valid=0.5, status="done"):
    words = ("rounds=2", f"local.lr={rate}", f"seed={seed}")
    done = {"metrics": {"auroc": auroc}, "valid": {"auroc": valid}}
    figures = done if status == "done" else {"error": "gone"}
    return line_of(Trial(words, words[1:]), 1.0, {"status": status, **figures})


LINES = [line(0.1, 0, 0.7, 0.61), line(0.1, 1, 0.8, 0.63), line(0.1, 2, 0.0, status="failed"),
         line(0.3, 0, 0.9, 0.60)]


def test_seeds_of_a_configuration_are_one_row():
    first, second = summary.rows(LINES)
    assert first.overrides == ("local.lr=0.1",) and first.seeds == ("0", "1", "2")
    assert (first.done, first.failed, second.done, second.failed) == (2, 1, 1, 0)
    spread = first.metrics["auroc"]
    assert (spread.mean, spread.sd, spread.n) == (pytest.approx(0.75), pytest.approx(math.sqrt(0.005)), 2)


def test_single_seed_has_no_standard_deviation():
    assert summary.rows(LINES)[1].metrics["auroc"].sd is None


def test_figure_that_is_not_a_number_is_left_out_of_the_mean():
    (row,) = summary.rows([line(0.1, 0, math.nan), line(0.1, 1, 0.8)])
    assert (row.metrics["auroc"].mean, row.metrics["auroc"].n) == (0.8, 1)


def test_best_is_chosen_by_validation_rows_and_never_by_test_rows():
    rows = summary.rows(LINES)
    assert summary.best(rows, "auroc", "max") is rows[0]  # 0.3 is better on test rows
    assert summary.best(rows, "auroc", "min") is rows[1]
    assert summary.best(rows, "accuracy", "max") is None


def test_small_is_good_for_losses():
    assert [summary.default_mode(name) for name in ("loss", "brier", "auroc")] == ["min", "min", "max"]


def test_files_hold_every_figure(tmp_path):
    summary.write(tmp_path, summary.rows(LINES), "auroc", "max")
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["best"] == ["local.lr=0.1"] and told["chosen_on"] == "valid"
    assert told["configurations"][0]["metrics"]["auroc"]["n"] == 2
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["local.lr"] for row in rows] == ["0.1", "0.3"]
    assert float(rows[0]["test_auroc_sd"]) == pytest.approx(math.sqrt(0.005))
    assert rows[1]["test_auroc_sd"] == ""
    assert float(rows[0]["valid_auroc_mean"]) == pytest.approx(0.62) and rows[0]["failed"] == "1"


def test_table_shows_mean_and_deviation_and_names_the_best():
    first, second, last = summary.table(summary.rows(LINES), "auroc", "max")
    assert "auroc 0.7500 ± 0.0707" in first and "(2 done, 1 failed)" in first
    assert "auroc 0.9000  (1 done)" in second
    assert last == "best on validation rows: local.lr=0.1 (auroc 0.6200 ± 0.0141)"
