"""The page of a run, its intervals, and the commands `report` and `clean`."""

import argparse
import importlib.util
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.errors import ConfigError
from fedray.learn.intervals import auroc, delong_se
from fedray.report import commands, page, statistics
from fedray.rundir import RunDirectory
from fedray.suppress import small_cells
from fedray.track import combine, jsonl
from tests.unit import sample_run

needs_extra = pytest.mark.skipif(not page.is_available(), reason="needs the extra report")


def finished(folder, found=None, **extras):
    run = RunDirectory.create(
        folder, "icu", sample_run.CONFIG, ["rounds=12", "data_dir=/srv/ada/data/eicu"], 0
    )
    found = found or sample_run.result()
    sample_run.replay(combine(jsonl(run.path), run.plan_tracker()), found)
    run.write_result(found, extras)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    local = {"value": 0.7, "low": 0.68, "high": 0.72, "method": "DeLong"}
    return finished(tmp_path_factory.mktemp("runs"), comparison={"local only": local})


@pytest.fixture(scope="module")
def text(run):
    if not page.is_available():
        pytest.skip("needs the extra report")
    return page.write(run.path).read_text()


class Tags(HTMLParser):
    """Notes every tag and what it points to, and that all are closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_one_file_without_script_or_address(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "script" not in tags.tags
    assert all(link.startswith("#") for link in tags.links)
    assert len(text.encode()) < 1.5e6


def test_figures_share_no_identifier(text):
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    kept = [
        name
        for name in identifiers
        if not re.match(
            r"(figure|axes|patch|matplotlib|line2d|text|xtick|ytick|legend|"
            r"PathCollection|LineCollection|FillBetween|PolyCollection)",
            name,
        )
    ]
    assert len(kept) == len(set(kept))


def test_headline_names_the_method_of_the_interval(text):
    assert "95 % interval" in text and "DeLong" in text and "AUROC in a new hospital" in text


def test_page_says_how_many_hospitals_have_no_auroc(run, text):
    told = json.loads((run.path / "result.json").read_text())["test"]
    assert told["sites_without_auroc"] > 0
    assert re.search(
        rf"{told['sites_without_auroc']} of 40 hospitals have test patients of one\s+outcome only", text
    )


def test_page_claims_no_privacy_that_was_not_there(text):
    assert "No differential privacy" in text and "No secure summation" in text and "A simulation" in text


@needs_extra
def test_page_tells_the_epsilon_by_round_and_what_left_without_noise(tmp_path):
    records = [sample_run.round_record(i, epsilon=(i + 1) / 4) for i in range(12)]
    privacy = {"epsilon": 3.0, "epsilon_over_all_studies": 5.0, "delta": 1e-5, "units": ["patient"],
               "noise": [{"noise_by": "sites", "trusted": "nobody"}],
               "exact": {"fedavg": ["metrics"]}}  # fmt: skip
    run = finished(tmp_path, sample_run.result(metrics=records, privacy=privacy))
    text = page.write(run.path).read_text()
    assert "epsilon 3 at delta 1e-05, unit: patient" in text and "5 with all studies" in text
    assert "Epsilon was 0.75 after round 3, 1.5 after round 6, 2.25 after round 9, 3 after round 12" in text
    assert "Released without noise, outside of this epsilon: metrics." in text
    assert "No differential privacy" not in text


@pytest.mark.parametrize(
    ("secure", "says"),
    [
        ([], "No secure summation"),
        ([fr.passes.secure_sum()], "Secure sums were simulated"),
        ([fr.passes.secure_sum("real")], "uses sums over hospitals only"),
    ],
)
def test_page_says_of_secure_sums_what_was_done(secure, says):
    plan = fr.compile(fr.algorithms.fedavg(fr.learn.sgd(fr.learn.logistic(3), lr=0.1)), secure)
    config = {"secure": {"_target_": "fedray.passes.secure_sum"} if secure else {}}
    told = [item["text"] for item in page._privacy({"egress": egress_rows(plan)}, {}, config, [])]
    assert any(says in text for text in told) and not any("single hospitals: " in text for text in told)


def test_page_shows_no_folder_of_this_machine(text, run):
    assert "/srv/ada" not in text and "…/eicu" in text
    assert str(run.path.parent) not in text


def test_same_run_gives_the_same_page(run, text):
    assert page.write(run.path).read_text() == text


@pytest.mark.slow
@needs_extra
def test_page_of_a_thousand_hospitals_stays_small(tmp_path):
    records = [sample_run.evaluation_record(3, "test", sites=300, seed=seed) for seed in range(4)]
    sites = [
        {**site, "site": f"{i}-{site['site']}"} for i, record in enumerate(records) for site in record.sites
    ]
    found = sample_run.result(rounds=4, evaluations=[replace(records[0], sites=sites)])
    target = page.write(finished(tmp_path, found).path)
    assert target.stat().st_size < 1.5e6
    assert "more are in sites.jsonl" in target.read_text()


@needs_extra
def test_page_lists_the_sites_in_quarantine_with_the_evidence(tmp_path):
    found = sample_run.result()
    facts = {"times": 1.0, "ratio": 7.25, "broken": 0.0, "left_out_until": 9.0}
    evidence = {f"quarantine.sites.h017.{fact}": value for fact, value in facts.items()}
    evidence |= {"quarantine.sites.h003.times": 0.0, "quarantine.sites.h003.ratio": 3.5}
    records = [replace(found.metrics[0], metrics={"loss": 0.7, **evidence}), *found.metrics[1:]]
    found.metrics[:] = records
    text = page.write(finished(tmp_path, found).path).read_text()
    listed = text[text.index("in quarantine") :].split("</details>")[0]
    assert "h017" in listed and "7.25" in listed and "h003" not in listed


@needs_extra
def test_page_of_an_interrupted_run_without_a_result_can_be_written(tmp_path):
    run = RunDirectory.create(tmp_path, "icu", sample_run.CONFIG, [], 0)
    tracker = jsonl(run.path)
    tracker.start(sample_run.plan(), {})
    tracker.round(sample_run.round_record(0))
    run.set_status("interrupted", "Ctrl-C")
    assert "interrupted" in page.write(run.path).read_text()


@needs_extra
def test_page_of_a_run_without_a_round_can_be_written(tmp_path):
    run = RunDirectory.create(tmp_path, "icu", sample_run.CONFIG, [], 0)
    assert "No round is recorded" in page.write(run.path).read_text()


@needs_extra
def test_page_of_several_classes_leads_with_accuracy(tmp_path):
    record = sample_run.evaluation_record(3, "test", sites=3)
    sites = [{"site": site["site"], "n": site["n"], "accuracy": 0.9, "loss": 0.3} for site in record.sites]
    found = sample_run.result(
        rounds=4,
        evaluations=[
            replace(record, metrics={"n": 300.0, "loss": 0.3, "accuracy": 0.9, "brier": 0.1}, sites=sites)
        ],
    )
    text = page.write(finished(tmp_path, found).path).read_text()
    assert "Accuracy" in text and "Wilson" in text and "No hospital has an AUROC of its own" in text


@needs_extra
def test_suppressed_hospitals_are_counted_and_shown_as_small(tmp_path):
    text = page.write(finished(tmp_path, suppress=True, where="federation").path).read_text()
    assert "with small cells are left out" in text and "&lt;11" in text
    assert "Small cells are left out" in text and "A simulation" not in text


def test_missing_extra_is_one_line_that_tells_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert page.closing(run.path).count("\n") == 0
    assert "pip install 'fedray[report]'" in page.closing(run.path)
    with pytest.raises(ConfigError, match=r"fedray\[report\]"):
        page.write(run.path)


# statistics


def test_wilson_interval_equals_the_published_example():
    found = statistics.wilson(81, 263)  # Newcombe, Statistics in Medicine 1998, table I
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.2553, 0.3662)


def test_auroc_without_a_standard_error_gets_no_interval():
    assert statistics.auroc_interval({"auroc": 0.8}) is None
    assert statistics.auroc_interval({"auroc": 0.99, "auroc_se": 0.01})["high"] == 1.0


def test_calibration_curve_keeps_every_patient():
    record = sample_run.evaluation_record(0)
    curve = statistics.calibration_curve(record.metrics["hist_pos"], record.metrics["hist_neg"])
    assert sum(group["n"] for group in curve) == record.metrics["n"]
    assert [group["predicted"] for group in curve] == sorted(group["predicted"] for group in curve)


def test_new_hospital_interval_is_wider_where_hospitals_differ():
    random = np.random.default_rng(0)
    alike = [
        {"auroc": 0.8 + 0.01 * x, "auroc_se": 0.02, "n": 500, "events": 50}
        for x in random.standard_normal(30)
    ]
    unlike = [{**site, "auroc": 0.8 + 10 * (site["auroc"] - 0.8)} for site in alike]
    unlike = [{**site, "auroc": min(0.97, max(0.55, site["auroc"]))} for site in unlike]
    narrow, wide = statistics.new_hospital(alike), statistics.new_hospital(unlike)
    assert narrow["i2"] == 0 and wide["i2"] > 0.5
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_new_hospital_needs_five_hospitals_with_enough_patients():
    sites = [{"auroc": 0.8, "auroc_se": 0.02, "n": 500, "events": 4}] * 9
    assert statistics.new_hospital(sites) is None


def test_sample_has_figures_that_fit_together():
    record = sample_run.evaluation_record(0, sites=3)
    assert record.metrics["n"] == sum(site["n"] for site in record.sites)
    assert delong_se([0, 1, 0, 1], [0.1, 0.9, 0.4, 0.3]) > 0 and auroc([0, 1], [0, 1]) == 1


# small cells


def site(name, n, events):
    return {"site": name, "n": n, "events": events, "auroc": 0.8}


def test_site_with_few_events_keeps_its_count_of_patients_alone():
    hidden, other, _ = small_cells([site("a", 100, 3), site("b", 50, 4), site("c", 900, 90)])
    assert (hidden["n"], hidden["events"], hidden["auroc"], hidden["suppressed"]) == (100, None, None, True)
    assert other["suppressed"]


def test_single_small_site_gets_company_so_that_the_total_does_not_tell_it():
    rows = small_cells([site("a", 8, 4), site("b", 300, 40), site("c", 900, 90)])
    assert [row["n"] for row in rows] == [None, None, 900]


def test_large_sites_are_left_as_they_are():
    assert small_cells([site("a", 100, 30)]) == [{**site("a", 100, 30), "suppressed": False}]


# commands


def call(*words):
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(dest="command", required=True))
    return commands.run(parser.parse_args(words))


@needs_extra
def test_report_writes_the_page_again(run, capsys):
    (run.path / "report.html").unlink(missing_ok=True)
    assert call("report", str(run.path)) == 0
    assert capsys.readouterr().out == f"open {run.path / 'report.html'}\n"
    assert (run.path / "report.html").exists()


def test_report_of_an_unknown_run_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = RunDirectory.create("runs", "icu", "", [], 0).path.name
    with pytest.raises(ConfigError, match=f"Fix: runs/{name}"):
        call("report", name[:-1] + "x")


@pytest.fixture
def many(tmp_path):
    for second in range(5):
        run = RunDirectory.create(
            tmp_path, "a", "", [], 0, path=tmp_path / f"20260101-00000{second}-a-abcdef"
        )
        run.set_status("done")
    (tmp_path / "notes").mkdir()
    return tmp_path


def left(folder):
    return sorted(path.name[:15] for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def test_clean_removes_the_oldest_and_nothing_that_is_not_a_run(many):
    assert call("clean", "--keep", "2", "--runs", str(many), "--yes") == 0
    assert left(many) == ["20260101-000003", "20260101-000004", "notes"]


def test_clean_asks_and_takes_no_terminal_for_a_no(many, capsys):
    assert call("clean", "--keep", "2", "--runs", str(many)) == 0
    assert len(left(many)) == 6 and "nothing removed" in capsys.readouterr().out


def test_clean_leaves_a_running_run_until_it_is_silent_for_a_day(many):
    old = many / "20260101-000000-a-abcdef"
    RunDirectory(old).set_status("running")
    call("clean", "--keep", "0", "--runs", str(many), "--yes")
    assert left(many) == ["20260101-000000", "notes"]
    for path in [*old.iterdir(), old]:
        os.utime(path, (0, 0))
    call("clean", "--keep", "0", "--runs", str(many), "--yes")
    assert left(many) == ["notes"] and not (many / "latest").is_symlink()


def test_clean_refuses_a_negative_number(many):
    with pytest.raises(ConfigError, match="--keep -1"):
        call("clean", "--keep", "-1", "--runs", str(many))


def test_template_and_style_lie_beside_the_module():
    names = {path.name for path in Path(page.__file__).parent.iterdir()}
    assert {"page.html.j2", "page.css"} <= names
