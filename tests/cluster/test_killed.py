"""Processes killed with SIGKILL: the run goes on, or is resumed, and ends with the bits of an undisturbed
one.

A pack is killed from inside a site stage (after training, before the answer), and after its answer, before
the commit: eleven seeded points for each algorithm. The driver is killed between two rounds.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from tests.cluster.trackers import Silent
from tests.equivalence import study
from tests.unit.algorithms.cases import own_models

ROUNDS = 12
INSIDE, BETWEEN = 6, 5  # kills in one run
STATEFUL = ("fedavg", "scaffold", "ditto", pytest.param("feddyn", marks=pytest.mark.slow))
COMPRESSED = ("topk", "ef21")  # FedAvg whose passes keep memories at the sites, and EF21's at the server
ALL = [*STATEFUL, *(pytest.param(name, marks=pytest.mark.slow) for name in COMPRESSED)]


@dataclass(frozen=True)
class KillsItself:
    """A local update that kills its own process, once at each point, after training at a site in a round."""

    inner: Any
    points: tuple[tuple[str, int], ...]
    folder: str

    @property
    def lr(self) -> Any:
        return self.inner.lr

    def __call__(self, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        update = self.inner(params, data, rng, **extra)
        self._fall(rng)
        return update

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        """Train the sites of a group, then fall at the first point among them."""
        update = self.inner.rows(group, params, data, rng, **extra)
        for key in rng.value.items:
            self._fall(key)
        return update

    def _fall(self, rng: Any) -> None:
        flag = Path(self.folder) / f"{rng.site}-{rng.round}"
        if (rng.site, rng.round) in self.points and rng.label == "" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class KillsItselfAlone(KillsItself):
    """The same where sites are trained one by one."""

    rows = None

    def with_objective(self, objective: Any) -> Any:
        return replace(self, inner=self.inner.with_objective(objective))


def asked(site: str, number: int) -> bool:
    schedule = fr.synchronous(cohort=0.75)
    return site in schedule.cohort_of(number, 5, tuple(sorted(study.hospitals())), {})


def points(seed: int) -> tuple[tuple[str, int], ...]:
    """Return (site, round) pairs, in rounds of their own, at which the site is asked."""
    draws = random.Random(seed)
    rounds = sorted(draws.sample(range(ROUNDS), INSIDE))
    return tuple(
        (draws.choice([site for site in sorted(study.hospitals()) if asked(site, number)]), number)
        for number in rounds
    )


@pytest.mark.parametrize("name", ALL)
def test_packs_killed_before_the_answer_and_before_the_commit_change_no_bit(ray_session, tmp_path, name):
    inside = points(100)
    between = sorted(random.Random(7).sample(range(ROUNDS - 1), BETWEEN))
    algorithm = study.algorithm(name, KillsItself(study.local(), inside, str(tmp_path)))
    with fr.simulate(study.hospitals(), runtime="ray", packs=2, placement="actors") as federation:
        tracker = KillsBetween(federation, between)
        result = fr.fit(
            algorithm,
            federation,
            init=study.model().init(0),
            rounds=ROUNDS,
            seed=5,
            passes=study.passes(name),
            schedule=fr.synchronous(cohort=0.75),
            tracker=tracker,
        )
    assert (len(list(tmp_path.iterdir())), tracker.killed) == (INSIDE, BETWEEN)
    assert result.params_sha256 == study.train(name, rounds=ROUNDS).params_sha256
    assert all(record.counted == 18 for record in result.metrics)


def test_packs_killed_under_apfl_lose_neither_model_nor_share_of_a_site(ray_session, tmp_path):
    """The parameters do not tell: what a site keeps goes into its own model alone."""
    schedule = fr.synchronous(cohort=0.75)
    settings = {"init": study.model().init(0), "rounds": 6, "seed": 5, "schedule": schedule}
    inside = tuple(point for point in points(100) if point[1] < 6)
    found = []
    for update, layout in (
        (KillsItselfAlone(study.local(), inside, str(tmp_path)), {"runtime": "ray", "placement": "actors"}),
        (study.local(), {}),
    ):
        algorithm = study.algorithm("apfl", update)
        with fr.simulate(study.hospitals(), packs=2, **layout) as federation:
            tracker = KillsBetween(federation, [1, 3] if layout else [])
            result = fr.fit(algorithm, federation, tracker=tracker, **settings)
            own = own_models(algorithm, federation, result.params)
        found.append({site: model.tobytes() for site, model in own.items()})
    assert inside and len(list(tmp_path.iterdir())) == len(inside)
    assert found[0] == found[1]


def test_pack_killed_after_a_round_with_a_deadline_loses_nothing_of_what_it_had_answered(
    ray_session, tmp_path
):
    """It is told the round again when the deadline is long over."""
    settings = {"init": study.model().init(0), "rounds": 4, "seed": 5}
    found = []
    for layout, deadline_s in (({"runtime": "ray", "placement": "actors"}, 1.5), ({}, None)):
        algorithm = study.algorithm("ditto", study.local())
        kept = Checkpoints(tmp_path / f"kept{len(found)}", every_s=0.0)
        schedule = fr.synchronous(cohort=0.75, deadline_s=deadline_s)
        with fr.simulate(study.hospitals(), packs=2, **layout) as federation:
            tracker = KillsBetween(federation, [1, 2] if layout else [])
            result = fr.fit(algorithm, federation, tracker=tracker, schedule=schedule, checkpoint=kept,
                            **settings)  # fmt: skip
            assert [record.counted for record in result.metrics] == [18] * 4
            own = own_models(algorithm, federation, result.params)
        found.append({site: model.tobytes() for site, model in own.items()})
    assert found[0] == found[1]


class KillsBetween(Silent):
    """A tracker that kills one pack after some rounds: it has answered, and its commit has not come yet."""

    def __init__(self, federation: Any, rounds: list[int]) -> None:
        self.federation, self.rounds, self.killed = federation, rounds, 0

    def round(self, record: Any) -> None:
        if record.round in self.rounds:
            pids = self.federation.call("pids")
            os.kill(pids[f"pack{self.killed % 2}"], signal.SIGKILL)
            self.killed += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STATEFUL, *COMPRESSED])
def test_a_driver_killed_between_rounds_is_resumed_with_equal_bits(tmp_path, name):
    stop = random.Random(name).randrange(1, ROUNDS - 1)
    script = [sys.executable, "-m", "tests.cluster.driver", name, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = subprocess.Popen([*script, str(stop)], env=environment)
    assert started.wait(timeout=300) == -signal.SIGKILL
    resumed = subprocess.run(
        [*script, "-1"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert resumed.stdout.strip() == study.train(name, rounds=ROUNDS).params_sha256, resumed.stderr[-2000:]


@pytest.mark.ray
def test_a_killed_driver_leaves_no_process_of_its_ray(tmp_path):
    script = [sys.executable, "-m", "tests.cluster.driver", "fedavg", str(tmp_path), "1", "ray"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pids = [int(word) for word in started.stdout.readline().split()]
    assert started.wait(timeout=300) == -signal.SIGKILL and len(pids) == 3
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
