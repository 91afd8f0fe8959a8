"""Coalitions as one program: each is trained in a thread, by a federation of its own over the same open data.

Their local trainings meet (`fedray.learn.together`): the lanes of a site are the coalitions that it is in. A
figure then differs from that of the coalition alone by float rounding, so who wants equal bits trains apart.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fedray as fr
from fedray.contribution.games import Coalition
from fedray.contribution.replays import Replay, Replays
from fedray.errors import ConfigError
from fedray.learn.together import Meeting
from fedray.runtime.federation import device_of
from fedray.sweep.together import STOP_S, one_thread_each

MOST = 32  # coalitions of one program, as trials of a sweep


@dataclass(frozen=True)
class _Open:
    """A site's data as a pack of this process holds them."""

    pack: Any
    site: str

    def __call__(self) -> Any:
        """Return the data, prepared where they were prepared."""
        return self.pack._open(self.site)


def beside(federation: Any) -> Any:
    """Return another federation in this process over the data that this one has open.

    Raises ConfigError where the data are in other processes.
    """
    if federation.where != "in_process":
        raise ConfigError(
            "coalitions train together where their sites are in this process only. "
            "Fix: runtime=in_process, or train apart"
        )
    packs = list(_packs(federation.aggregator.root))
    data = {site: _Open(pack, site) for pack in packs for site in pack.sites}
    layout: dict[str, list[str]] = {}
    for site in federation.sites:
        layout.setdefault(federation.regions.get(site, ""), []).append(site)
    made = fr.simulate(
        data, regions=layout if federation.regions else None, group_size=packs[0].group_size,
        allow_empty=packs[0].allow_empty, device=device_of(federation.specs),
    )  # fmt: skip
    made.learnt = federation.learnt  # of plans: half of the time of a short training
    return made


def _packs(region: Any) -> Any:
    """Yield the packs below a region of this process."""
    transport = region.transport
    assert transport.placement == "aggregator"
    for host in transport.hosts.values():
        yield from [host] if hasattr(host, "sites") and not hasattr(host, "children") else _packs(host)


class Crew:
    """Federations for coalitions that train side by side, made when they are first needed and kept."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._federations: list[Any] = []

    def train(self, replays: Replays, coalitions: Sequence[Coalition]) -> list[Replay]:
        """Return a replay of each coalition; raises what the first of them raised."""
        replays.federation.hello()
        found: list[Replay] = []
        for at in range(0, len(coalitions), self.most):
            found += self._batch(replays, coalitions[at : at + self.most])
        return found

    def _batch(self, replays: Replays, coalitions: Sequence[Coalition]) -> list[Replay]:
        while len(self._federations) < len(coalitions):
            self._federations.append(beside(replays.federation))
        meeting = Meeting(len(coalitions))
        ended: list[Any] = [None] * len(coalitions)
        seated = zip(coalitions, self._federations, strict=False)
        jobs = [
            partial(replace(replays, federation=federation, tell=None).replay, coalition)
            for coalition, federation in seated
        ]
        threads = [
            threading.Thread(target=_one, args=(job, meeting, place, ended), daemon=True)
            for place, job in enumerate(jobs)
        ]
        with one_thread_each():
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                meeting.stop()  # of those that have ended nothing is left to stop
                for thread in threads:
                    thread.join(STOP_S)
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return ended


def _one(job: Any, meeting: Meeting, place: int, ended: list[Any]) -> None:
    """Run one replay in its place; an error of any kind is handed to the thread that waits."""
    ended[place] = KeyboardInterrupt()
    try:
        with meeting.joined(place):
            ended[place] = job()
    except BaseException as error:  # noqa: BLE001 (raised again by the thread that waits)
        ended[place] = error
