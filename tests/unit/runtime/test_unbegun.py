"""An aggregator whose driver is gone ends itself: soon where it has not begun to train, else after long."""

import time

import pytest
import ray

from fedray.runtime import ray_standing


@pytest.mark.parametrize(("has_begun", "ended"), [(False, ["actor"]), (True, [])])
def test_aggregator_without_a_driver_waits_long_only_where_there_is_something_to_resume(
    monkeypatch, has_begun, ended
):
    killed = []
    monkeypatch.setattr(ray_standing, "UNBEGUN_S", 0.2)
    monkeypatch.setattr(ray_standing, "MOST_LOOK_S", 0.1)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: "actor")
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    standing = ray_standing.StandingActor("a run", lapse_s=0.1, abandoned_s=10.0)
    standing._has_begun = has_begun
    limit = time.monotonic() + 1.5
    while not killed and time.monotonic() < limit:
        time.sleep(0.05)
    assert killed[:1] == ended
    standing._lease._heard = float("inf")  # its thread ends no actor of another test
