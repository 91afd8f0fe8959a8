"""Secure sums on Ray: the bits of a run in process, and hosts that are killed in the middle of a round."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import fedray as fr
from fedray import tree
from fedray.core.graph import Op
from fedray.core.rewrite import rewrite
from tests.unit.runtime.toy import INIT, ToyLocal, sites

REAL = [fr.passes.secure_sum("real", min_cohort=3)]


def is_masked(plan: Any) -> bool:
    return any(type(node.fn).__name__ == "Mask" for node in plan.nodes if node.op is Op.CALL)


def scaffold(local: Any) -> Any:
    return fr.algorithms.scaffold(local, num_sites=8)


def trained(algorithm: Any, passes: Any, rounds: int = 2, **layout: Any) -> Any:
    with fr.simulate(sites(8), **layout) as federation:
        schedule = fr.synchronous(quorum=0.3, retries=0)
        return fr.fit(algorithm, federation, init=INIT, rounds=rounds, passes=passes, schedule=schedule)


@pytest.mark.parametrize("layout", [{"packs": 2}, {"sites_per_actor": 1}])
def test_masked_sums_on_ray_have_the_bits_of_ideal_ones_in_process(ray_session: None, layout: Any) -> None:
    here = trained(scaffold(ToyLocal()), [fr.passes.secure_sum(min_cohort=3)])
    there = trained(scaffold(ToyLocal()), REAL, runtime="ray", placement="actors", **layout)
    assert is_masked(there.plan) and not is_masked(here.plan)
    assert tree.equal(here.state, there.state)
    assert [record.counted for record in there.metrics] == [8, 8]


def test_hosts_of_a_masked_round_stay_in_their_own_processes(ray_session: None) -> None:
    there = trained(scaffold(ToyLocal()), REAL, rounds=3, runtime="ray", packs=2, placement="auto")
    assert {record.placement for record in there.metrics} == {"actors"}


@dataclass(frozen=True)
class FallsAt:
    """A step of the protocol whose process kills itself at one site in one round, once."""

    taken: Any
    site: str
    folder: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.taken, name)

    def rows(self, group: Any, *args: Any) -> Any:
        """Take the step, then fall, where the site is among the group's."""
        flag = Path(self.folder) / "fell"
        found = self.taken.rows(group, *args)
        if self.site in group.ids and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def falling(step: str, site: str, folder: Path) -> Any:
    """Return a pass that lets one step of the protocol fall once."""
    def rule(node: Any) -> Any:
        is_it = node.op is Op.CALL and type(node.fn).__name__ == step
        return replace(node, fn=FallsAt(node.fn, site, str(folder))) if is_it else None

    return lambda graph: rewrite(graph, rule)


@pytest.mark.parametrize(("step", "is_counted"), [
    pytest.param("Advertise", False, marks=pytest.mark.slow), ("Mask", False), ("OpenShares", True),
])
def test_a_host_that_is_killed_loses_its_sites_for_the_round_and_comes_back(
    ray_session: None, tmp_path: Path, step: str, is_counted: bool
) -> None:
    passes = [*REAL, falling(step, "h03", tmp_path)]
    there = trained(scaffold(ToyLocal()), passes, runtime="ray", sites_per_actor=2, placement="actors")
    lost = {failure.site: failure.kind for failure in there.metrics[0].failures}
    assert [record.counted for record in there.metrics] == [8 if is_counted else 6, 8]
    assert len(lost) == 2 and "host lost" in lost["h03"]
    if is_counted:  # its state was written down with its masked words, and became current with the count
        assert tree.equal(there.state, trained(scaffold(ToyLocal()), REAL).state)
