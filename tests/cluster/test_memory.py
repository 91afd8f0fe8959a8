"""A pack that takes more memory than it may dies; its sites are named and asked again in smaller groups."""

import mmap
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fedray as fr
from fedray.runtime.ray_transport import federate_here
from tests.equivalence import study

EACH_BYTES = 64 * 2**20  # of a site, while it is trained
LIMIT_BYTES = 14 * EACH_BYTES  # above what the process has when the round starts: a group of 24 is too much
ROUND, ROUNDS = 1, 3


@dataclass(frozen=True)
class Greedy:
    """A local update that needs memory for each site of a group, in a process that may take so much.

    The limit is the kernel's own. Where a kernel that is out of memory ends a process without a word, one
    that runs into its own limit is told, so it does that to itself.
    """

    inner: Any
    folder: str

    @property
    def lr(self) -> Any:
        return self.inner.lr

    def __call__(self, *args: Any, **extra: Any) -> Any:
        return self.inner(*args, **extra)

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        if rng.value.items[0].round == ROUND and rng.value.items[0].label == "":
            self._take(group.k)
        return self.inner.rows(group, params, data, rng, **extra)

    def _take(self, k: int) -> None:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, limits[1]))
        try:
            taken = mmap.mmap(-1, k * EACH_BYTES)
        except OSError:
            (Path(self.folder) / f"{os.getpid()}-{k}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            taken.close()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def trained(algorithm: Any, federation: Any) -> Any:
    return fr.fit(algorithm, federation, init=study.model().init(0), rounds=ROUNDS, seed=5)


@pytest.mark.parametrize("name", [pytest.param("fedavg", marks=pytest.mark.slow), "scaffold"])
def test_pack_killed_for_memory_is_asked_again_in_smaller_groups_with_equal_bits(
    ray_session, tmp_path, caplog, name
):
    greedy = study.algorithm(name, Greedy(study.local(), str(tmp_path)))
    with federate_here(study.hospitals(), "local", packs=1) as federation:
        result = trained(greedy, federation)
    with fr.simulate(study.hospitals()) as federation:
        whole = trained(study.algorithm(name), federation)
    deaths = sorted(path.name.split("-")[1] for path in tmp_path.iterdir())
    assert deaths == ["24", "24"]  # as large again the first time, for it may have been anything else
    assert result.params_sha256 == whole.params_sha256
    assert all(record.counted == study.NUM_SITES and not record.failures for record in result.metrics)
    for text in (f"round {ROUND}, stage 1: host pack0 was lost twice in one call", "24 sites (", "1/2 of a"):
        assert text in caplog.text
