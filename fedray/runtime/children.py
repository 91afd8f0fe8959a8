"""What a region knows of the hosts below it, and of calls that are under way to them."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.errors import HostError, SiteError
from fedray.runtime.host import Commit, Contribution, StageCall

HOST_LOST = "host lost"  # the kind of failure of the sites of a host that is gone
Asked = tuple[str, tuple[Any, ...]]  # a method and its arguments


class HostLost(HostError):
    """A host is gone in the middle of a call."""


@dataclass(slots=True)
class Child:
    """A host: what it is owed, and what it is told again after it was lost."""

    sites: tuple[str, ...]
    owed: list[Commit] = field(default_factory=list)  # commits that ride on the next call
    journal: list[Asked] = field(default_factory=list)  # calls since the last checkpoint
    stages: list[Asked] = field(default_factory=list)  # of the attempt under way, where that has several
    starts: int = 0  # how often it was started again
    is_up: bool = True  # or it was lost and has not come back yet
    keeps: bool = False  # its sites may have state, which is on their node alone
    is_there: bool = True  # its new process has given a sign of life
    to_tell: deque[Asked] = field(default_factory=deque)  # before it is up again
    telling: Any = None  # the call of the first of them, once it is under way


def _attempt(part: StageCall) -> tuple[str, int, int]:
    return part.plan, part.round, part.attempt


@dataclass(frozen=True, slots=True)
class Away:
    """A call that nobody waits for yet."""

    host: str
    call: StageCall
    downlink: Any
    starts: int  # of the host when it was submitted


@dataclass(frozen=True, slots=True)
class Dealt:
    """A downlink that is not the same for all hosts: what each of them is sent, by name."""

    boxes: Mapping[str, Any]


def sent_to(downlink: Any, name: str) -> Any:
    """Return what a host is sent of a downlink."""
    return downlink.boxes[name] if isinstance(downlink, Dealt) else downlink


def entries(value: Mapping[str, Any], sites: Iterable[str]) -> dict[str, Any]:
    """Return the entries of some sites; one without an entry fails where it reads it."""
    found = {}
    for site in sites:
        with suppress(KeyError):
            found[site] = value[site]
    return found


def lost(part: StageCall, kind: str, sites: Sequence[str] | None = None) -> Contribution:
    """Return what stands for the answer of sites that gave none; all of the call where none are named."""
    named = part.cohort if sites is None else sites
    failures = tuple(SiteError(site, part.round, part.stage, kind) for site in named)
    return Contribution(delivered=(), failures=failures)


@dataclass(slots=True)
class Losses:
    """Who was lost in the stages of the last attempt; and, in a round that is run again to get back to a
    state, who was lost before and is therefore not asked.
    """

    attempt: tuple[str, int, int] = ("", 0, 0)
    by_stage: dict[int, dict[str, str]] = field(default_factory=dict)  # stage -> site -> kind
    again: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    of_attempt: tuple[str, int, int] | None = None  # that is run again

    def split(self, call: StageCall) -> tuple[StageCall, list[Contribution]]:
        """Return the call for those that are asked, and what stands for the others."""
        if self.of_attempt != _attempt(call):
            return call, []
        call = replace(call, deadline=None)  # who missed it is known
        absent = self.again.get(call.stage, {})
        kinds = sorted({absent[site] for site in call.cohort if site in absent})
        parts = [lost(call, kind, [site for site in call.cohort if absent.get(site) == kind])
                 for kind in kinds]  # fmt: skip
        return call.of([site for site in call.cohort if site not in absent], call.commits), parts

    def note(self, call: StageCall, answer: Contribution) -> None:
        """Take what a stage came to."""
        if self.attempt != _attempt(call):
            self.attempt, self.by_stage = _attempt(call), {}
        if answer.failures:
            self.by_stage[call.stage] = {failure.site: failure.kind for failure in answer.failures}
