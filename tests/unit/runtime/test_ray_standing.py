"""`fedray cluster runs` and `stop`: what is told of an aggregator, which may be ended. Ray is a stand-in."""

import argparse

import pytest
from ray import exceptions as ray_errors

from fedray.cluster import commands
from fedray.errors import ConfigError
from fedray.runtime import ray_standing, ray_start
from fedray.runtime.lease import Taken

DRIVEN = {"driver": "process 7 on one", "silent_s": 1.0, "is_driven": True, "pid": 1}


def call(*words, address="10.0.0.1:6379"):
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(dest="command"))
    return commands.run(parser.parse_args(["cluster", *words, "--address", address]))


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that sets what the one aggregator answers, and the list of those that were ended."""
    killed = []

    class Method:
        def remote(self):
            return self

    class Actor:
        facts = Method()

    def answers(facts):
        def get(ref, timeout):
            if isinstance(facts, Exception):
                raise facts
            return facts

        monkeypatch.setattr(ray_standing.ray, "get", get)
        return killed

    named = [{"name": "fedray-icu", "namespace": "fedray"}]
    monkeypatch.setattr(ray_standing.ray, "get_actor", lambda name, namespace: Actor())
    monkeypatch.setattr(ray_standing.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(ray_standing.ray.util, "list_named_actors", lambda all_namespaces: named)
    monkeypatch.setattr(ray_start, "start_ray", lambda address: None)
    return answers


def test_aggregator_that_does_not_answer_is_not_told_as_driven_by_nobody(stand_in, capsys):
    stand_in(ray_errors.GetTimeoutError())
    assert call("runs") == 0
    assert capsys.readouterr().out == "icu: does not answer (GetTimeoutError)\n"


def test_run_and_its_driver_are_told(stand_in, capsys):
    stand_in(DRIVEN)
    call("runs")
    assert capsys.readouterr().out == "icu: driven by process 7 on one, silent for 1 s\n"


def test_run_whose_driver_was_heard_a_moment_ago_is_ended_by_force_alone(stand_in):
    killed = stand_in(DRIVEN)
    with pytest.raises(Taken, match=r"by process 7 on one, which gave a sign of life 1.0 s ago.*--force"):
        call("stop", "icu")
    assert killed == []
    call("stop", "icu", "--force")
    assert len(killed) == 1


@pytest.mark.parametrize("facts", [{**DRIVEN, "is_driven": False}, ray_errors.GetTimeoutError()])
def test_run_whose_driver_is_silent_or_that_does_not_answer_is_ended(stand_in, facts):
    killed = stand_in(facts)
    call("stop", "icu")
    assert len(killed) == 1


@pytest.mark.parametrize("words", [["runs"], ["stop", "icu"]])
def test_no_ray_of_our_own_is_started_to_look_for_runs(monkeypatch, words):
    monkeypatch.setattr(ray_start, "start_ray", lambda address: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match="'local' is no address of a Ray cluster. Fix: HOST:PORT"):
        call(*words, address="local")
