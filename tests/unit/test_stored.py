"""Runs that are kept in a store too: what lies there, and going on from it without the run directory."""

import json
import shutil

import pytest

from fedray import experiment
from fedray.config import compose_run
from fedray.errors import ConfigError, LedgerError
from fedray.runtime.checkpoint import Checkpoints

TOY = ("experiment=debug", "report=none", "evaluate.bins=50", "algorithm=scaffold", "data.scale=0.02")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDRAY_DATA", raising=False)


def train(*overrides):
    return experiment.start(compose_run([*TOY, "checkpoint.every_s=0", *overrides]), live=False)


def resume(place, *overrides):
    return experiment.resume(place, overrides, live=False)


def bits(outcome):
    return outcome.summary["params_sha256"]


@pytest.fixture
def stored(tmp_path):
    """A run of two rounds whose own folder is gone; return where it is kept."""
    outcome = train(f"checkpoint.storage={tmp_path}/share")
    place = tmp_path / "share" / outcome.run.path.name
    shutil.rmtree("runs")
    return place


def test_store_holds_the_records_and_the_checkpoints_and_the_run_directory_no_checkpoint(tmp_path):
    outcome = train(f"checkpoint.storage={tmp_path}/share")
    place = tmp_path / "share" / outcome.run.path.name
    assert {"stored.json", "config.yaml", "overrides.txt", "env.json", "STATUS", "rounds.jsonl", "plan.json",
            "evaluations.jsonl", "sites.jsonl", "result.json", "log.txt"} <= {p.name for p in place.iterdir()}
    assert (place / "STATUS").read_text() == "done\n"
    assert Checkpoints(place / "checkpoints").rounds() == [0, 1]
    assert list(outcome.run.checkpoints.iterdir()) == []


def test_run_goes_on_from_the_store_alone_with_equal_bits(stored):
    whole = train("rounds=5", "name=whole")
    resumed = resume(stored, "rounds=5")
    assert resumed.run.path.name == stored.name and bits(resumed) == bits(whole)
    rows = (resumed.run.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == list(range(5))
    assert Checkpoints(stored / "checkpoints").rounds()[-2:] == [3, 4]
    assert bits(resume(resumed.run.path, "rounds=6")) == bits(train("rounds=6", "name=again"))


def test_run_that_was_moved_to_another_store_goes_on_there(stored, tmp_path):
    moved = tmp_path / "other" / stored.name
    moved.parent.mkdir()
    stored.rename(moved)
    resume(moved, "rounds=3")
    assert Checkpoints(moved / "checkpoints").rounds()[-2:] == [1, 2] and not stored.exists()


def test_run_that_ended_between_its_last_round_and_its_result_gets_its_result(stored):
    (stored / "result.json").unlink()
    (stored / "STATUS").write_text("running\n")
    outcome = resume(stored)
    assert outcome.summary["rounds"] == 2 and outcome.run.status == ("done", "")
    with pytest.raises(ConfigError, match="is done, 2 rounds"):
        resume(outcome.run.path)


@pytest.mark.parametrize("place", ["share", "share/none"])
def test_place_without_a_run_is_said(stored, place):
    with pytest.raises(ConfigError, match="is not the directory of a run"):
        resume(place)


@pytest.mark.parametrize(("place", "said"), [("ftp://host/x", "s3://BUCKET/PREFIX"),
                                             ("s3://key:secret@bucket", "environment")])  # fmt: skip
def test_store_that_cannot_be_is_refused_with_the_configuration(place, said):
    from fedray.config import check, compose

    with pytest.raises(ConfigError, match=said) as caught:
        check(compose(*TOY, f"checkpoint.storage='{place}'"))
    assert "secret" not in str(caught.value)


PRIVATE = ("algorithm=fedavg", "algorithm.weighted=false", "privacy=site_dp", "privacy.noise_multiplier=1.0",
           "data.num_sites=20")  # fmt: skip


def test_ledger_of_a_run_lies_in_the_store_and_counts_on(tmp_path):
    outcome = train(*PRIVATE, f"checkpoint.storage={tmp_path}/share")
    place = tmp_path / "share" / outcome.run.path.name
    shutil.rmtree("runs")
    resumed = resume(place, "rounds=3")
    assert resumed.summary["privacy"]["epsilon"] > outcome.summary["privacy"]["epsilon"]
    charges = [line for line in (place / "checkpoints" / "ledger.jsonl").read_text().splitlines()
               if '"ev":"charge"' in line]  # fmt: skip
    assert len(charges) == 3


def test_copy_of_a_given_ledger_lies_in_the_store_and_is_named_where_the_ledger_is_gone(tmp_path):
    given = ("ledger.path=ledger.jsonl", "ledger.dataset='toy 1'")
    outcome = train(*PRIVATE, *given, f"checkpoint.storage={tmp_path}/share")
    seen = tmp_path / "share" / outcome.run.path.name / "checkpoints" / "seen"
    assert (seen / "ledger.jsonl").read_text() == (tmp_path / "ledger.jsonl").read_text()
    for name in ("ledger.jsonl", "ledger.jsonl.head"):
        (tmp_path / name).unlink()
    with pytest.raises(LedgerError, match=f"a copy as this run last saw it lies in {seen}"):
        resume(seen.parent.parent, "rounds=3")
    shutil.copytree(seen, tmp_path, dirs_exist_ok=True)
    assert resume(seen.parent.parent, "rounds=3").result.rounds == 3
