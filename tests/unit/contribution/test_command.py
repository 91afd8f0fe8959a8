"""`fedray contribution RUN`: what it leaves beside a run, what it takes up again, what it refuses."""

import json

import pyarrow.parquet
import pytest

import fedray as fr
from fedray import cli, config
from fedray.contribution.commands import _averaging
from fedray.contribution.gtg import revealing_fedavg
from fedray.contribution.store import Store
from fedray.report.page import write

RUN = ("run", "experiment=debug", "data.num_sites=3", "data.scale=0.02", "evaluate.bins=50", "report=none")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a run without a page."""
    folder = tmp_path_factory.mktemp("contribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*RUN, "--json"]) == 0
    return next(folder.glob("runs/2*"))


def asked(run, capsys, *words):
    """Return what the command found, methods by name."""
    capsys.readouterr()
    assert cli.main(["contribution", str(run), "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    return {**told, "methods": {each["method"]: each for each in told["methods"]}}


@pytest.mark.slow
def test_run_is_replayed_valued_drawn_and_shown_on_its_page(run, capsys):
    told = asked(run, capsys)
    exact = told["methods"]["shapley"]
    assert exact["trainings"] == 7 and told["is_replay"] is True
    assert sum(exact["values"].values()) == pytest.approx(exact["whole"] - exact["empty"], abs=1e-12)
    result = json.loads((run / "result.json").read_text())
    assert exact["whole"] == result["test"]["metrics"]["auroc"]["value"]
    assert set(told["taking_part"]["gains"]) == set(exact["values"])
    assert (run / "contribution" / "contribution.png").read_bytes().startswith(b"\x89PNG")
    rows = pyarrow.parquet.read_table(run / "contribution" / "contribution.parquet").to_pylist()
    assert {row["site"]: row["value"] for row in rows} == exact["values"]
    page = write(run).read_text()
    assert "Who contributed" in page and "Shapley, exact" in page and "The value of taking part" in page
    assert cli.main(["contribution", str(run), "--method", "leave_one_out"]) == 0
    shown = capsys.readouterr().out
    assert "leave_one_out" in shown and "added to auroc on the test rows of all sites" in shown
    assert f"open {run / 'report.html'}" in shown and "leave one out" in (run / "report.html").read_text()
    (run / "report.html").unlink()


def test_what_was_trained_is_taken_up_again_by_other_methods_metrics_and_after_a_kill(run, capsys):
    asked(run, capsys)
    book = run / "contribution" / "replays.jsonl"
    lines = book.read_text()
    told = asked(run, capsys, "--metric", "loss", "--method", "tmc", "--permutations", "9")
    assert told["methods"]["tmc_shapley"]["trainings"] == 0 and list(told["methods"]) == ["tmc_shapley"]
    assert book.read_text() == lines
    book.write_text(lines[:-40])
    assert asked(run, capsys)["methods"]["shapley"]["trainings"] == 1
    assert sorted(map(whole, book.read_text().splitlines())) == sorted(map(whole, lines.splitlines()))


def whole(line):
    row = json.loads(line)
    return row["sites"], row["value"], row["params_sha256"]


@pytest.mark.slow
def test_methods_of_one_metric_stand_beside_each_other_and_train_together(run, capsys):
    exact = asked(run, capsys, "--metric", "brier")["methods"]["shapley"]
    words = ["--metric", "brier", "--method", "gtg", "--tolerance", "0", "--permutations", "40"]
    told = asked(run, capsys, *words)
    assert told["metric"] == "-brier" and list(told["methods"]) == ["shapley", "gtg_shapley"]
    drawn = told["methods"]["gtg_shapley"]
    assert drawn["trainings"] == 1 and set(drawn["errors"]) == set(drawn["values"])
    joined = asked(run, capsys, "--metric", "brier", "--together")["methods"]["shapley"]
    assert joined["trainings"] == 7 and joined["values"] == pytest.approx(exact["values"], abs=1e-5)


@pytest.mark.parametrize(("words", "said"), [
    (["--metric", "hazard"], "metric=hazard: the utility measures"),
    (["--permutations", "1"], "--permutations is 2 or more"),
    (["nowhere"], "there is no run of this name"),
])
def test_what_cannot_be_is_refused_with_its_fix(run, capsys, words, said):
    first = [] if words[0] == "nowhere" else [str(run)]
    assert cli.main(["contribution", *first, *words]) == 2
    told = capsys.readouterr().err
    assert said in told and "fix:" in told


@pytest.mark.parametrize(("algorithm", "words", "said"), [
    ("local_only", [], "has no common model"),
    ("pooled", [], "has one site"),
    ("scaffold", ["--method", "gtg"], "the run's algorithm is scaffold"),
])
def test_runs_whose_sites_cannot_be_left_out_are_refused(algorithm, words, said, tmp_path, capsys):
    tree = config.to_plain(config.compose(*RUN[1:], f"algorithm={algorithm}"))
    (tmp_path / "config.yaml").write_text(config.plain_yaml(tree))
    assert cli.main(["contribution", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [("fedprox", "algorithm.mu=0.5"), ("fedyogi", "algorithm.weighted=false")])
def test_training_that_gtg_values_is_that_of_the_runs_own_algorithm(words):
    made = config.build(config.compose(*RUN[1:], f"algorithm={words[0]}", words[1]))
    given = _averaging(made)
    with made.federate() as federation:
        own, shown = (
            fr.fit(algorithm, federation, init=made.training.init, rounds=2, seed=made.seed).params_sha256
            for algorithm in (made.training.algorithm, revealing_fedavg(**given))
        )
    assert own == shown


def test_line_that_a_kill_cut_off_is_none(tmp_path):
    store = Store(tmp_path / "contribution", {"split": "test"})
    assert store.replays() == []
    (tmp_path / "contribution").mkdir()
    (tmp_path / "contribution" / "replays.jsonl").write_text('{"sites": ["a"]')
    assert store.replays() == []


