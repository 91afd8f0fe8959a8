"""The table of the attack bench on the page of a run: taken in, shown with the run's rule, or refused."""

import json
import re
from pathlib import Path

import pytest

from fedray.errors import ConfigError
from fedray.report import attacks, page
from tests.unit.test_report import call, finished, needs_extra

BENCH = Path(__file__).parents[2] / "experiments" / "attacks" / "results" / "attacks.json"


def section(text):
    return text[text.index("What attacks do to each rule") :].split("</section>")[0]


@pytest.mark.slow
@needs_extra
def test_report_shows_the_attack_table_and_marks_the_rule_of_the_run(tmp_path):
    run = finished(tmp_path)
    assert "What attacks do" not in page.write(run.path).read_text()
    with (run.path / "config.yaml").open("a") as file:
        file.write("robustness:\n  _target_: fedray.passes.nnm\n")
        file.write("  then: {_target_: fedray.passes.trimmed_mean}\n")
    call("report", str(run.path), "--attacks", str(BENCH))
    shown = section((run.path / "report.html").read_text())
    assert shown.count("<details") == len(json.loads(BENCH.read_text())["studies"]) == 6
    assert "Not of this run" in shown and "<b>nnm+trimmed_mean</b>" in shown
    assert re.search(r'class="own"><td>nnm\+trimmed_mean</td><td class="n">.947', shown)
    assert re.search(r'<td>foolsgold</td>.*?lost">! .266</td><td>scaled</td>', shown, re.DOTALL)
    assert section(page.write(run.path).read_text()) == shown  # the table stays with the run


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({}, None),
        ({"robustness": {}}, "mean"),
        ({"robustness": {"_target_": "fedray.passes.rfa"}}, "rfa"),
        ({"robustness": {"_target_": "fedray.passes.quarantine",
                         "then": {"_target_": "fedray.passes.krum"}}}, "krum"),
    ],
)  # fmt: skip
def test_the_rule_of_a_run_is_named_as_the_bench_names_it(config, rule):
    assert attacks.rule_of(config) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no table of attacks to read"),
        ('{"iid 0.2": {}}', "its format is not"),
        (BENCH.read_text().replace('"worst": ', '"wrost": ', 1), "study 1: a rule lacks"),
        (BENCH.read_text().replace('"seeds": 5', '"seeds": null', 1), "study 1: the share"),
    ],
)
def test_a_file_that_is_no_attack_table_is_refused_and_nothing_is_written(tmp_path, text, says):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ConfigError, match=f"{says}.*Fix: make one by python experiments"):
        attacks.add(tmp_path, tmp_path / "found.json")
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
