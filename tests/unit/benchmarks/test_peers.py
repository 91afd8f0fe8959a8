"""The command line of the comparison: what runs, how often, and what is refused."""

import peers
import pytest


def names(words: list[str]) -> list[str]:
    return [system.name for system in peers.selected(peers.arguments(words))]


def test_without_peers_fedray_and_the_plain_loop_run_once() -> None:
    words = ["--workload", "w1", "--peers", "none"]
    assert names(words) == ["plain", "lean", "fedray_in_process", "fedray_ray", "fedray_bare"]
    assert peers.arguments(words).pairs == 1


def test_slow_workloads_without_peers_run_what_the_targets_name() -> None:
    assert names(["--workload", "w3", "--peers", "none"]) == ["plain", "fedray_in_process", "fedray_ray"]


def test_peers_run_in_five_pairs_over_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "python_of", lambda name: f"{name}/bin/python")
    words = ["--workload", "w2", "--peers", "flwr,pfl,fluke"]
    given = peers.arguments(words)
    assert (given.pairs, given.rounds) == (5, 50)
    assert names(words)[-3:] == ["flwr", "pfl", "fluke"]
    assert peers.selected(given)[-1].python == "fluke/bin/python"


@pytest.mark.parametrize("words", [["--peers", "nobody"], ["--systems", "nothing"], ["--rounds", "1"]])
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.arguments(["--workload", "w1", *words])
    assert "error:" in capsys.readouterr().err
