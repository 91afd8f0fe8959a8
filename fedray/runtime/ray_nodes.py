"""Ask every node of a cluster that this process has joined: is its fedray ours, are its sites' data there?

Each node answers in a task of its own that takes no processor, within one limit for all: a node that does not
answer is named, and never waited for.
"""

import contextlib
import itertools
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.errors import ClusterError
from fedray.runtime import node_probe
from fedray.runtime.findings import FAIL, NOTE, PASS, Finding, problems
from fedray.runtime.ray_door import Door, SiteAt
from fedray.runtime.ray_gcs import Node
from fedray.runtime.versions import LET, MATCH_LEVEL, is_let

CLOCKS_S = 2.0  # for the clocks of all nodes
MOST_TOLD = 5  # sites
EXCHANGES = 4  # the first takes longer: the node fetches the function
START_S = 20.0  # for a run, which starts once: a node that is slow to answer has its say
LIMIT_S = 8.0  # a worker starts in 0.4 s on an idle node and in a few on a busy one

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Silent:
    """A node that did not answer, and what is known of why."""

    why: str


class Sent:
    """A function of node_probe.py, to be run on nodes. Sent as source: by name, a node would take its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._remote: Any = ray.remote(function)

    def on(
        self, nodes: Sequence[Node], arguments: Callable[[Node], tuple[Any, ...]], limit_s: float = LIMIT_S
    ) -> dict[str, Any]:
        """Run it on nodes at once and return the answers by node id; `Silent` where none came in time."""
        with _by_value(node_probe):
            asked = {self._start(node).remote(*arguments(node)): node for node in nodes}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s) if asked else ([], [])
        answers: dict[str, Any] = {asked[ref].id: _answer(ref) for ref in ready}
        for ref in late:
            ray.cancel(ref, force=True)
            answers[asked[ref].id] = Silent(_why(asked[ref], limit_s))
        return answers

    def _start(self, node: Node) -> Any:
        there = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        return self._remote.options(num_cpus=0, max_retries=0, scheduling_strategy=there)


@contextlib.contextmanager
def _by_value(module: Any) -> Iterator[None]:
    cloudpickle: Any = ray.cloudpickle  # untyped in Ray
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=1.0)
    except (ray_errors.RayError, TimeoutError) as error:
        cause = getattr(error, "cause", None)
        return Silent(f"a task there failed ({type(cause or error).__name__})")


def _why(node: Node, limit_s: float) -> str:
    if reason := node_probe.reach(node.address, node.port, 2.0):
        return reason
    return (
        f"it answers on port {node.port}, and a task there did not in {limit_s:.0f} s: its worker ports, or "
        "the way back to this machine's, may be shut"
    )


def looks(
    door: Door, sites: Mapping[str, SiteAt], nodes: Sequence[Node], limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """Return what nodes are like, by node id."""

    def arguments(node: Node) -> tuple[Any, ...]:
        folders = {name: site.data for name, site in sites.items() if site.place.selects(node.labels)}
        return door.address, node.address, folders

    return Sent(node_probe.look).on(nodes, arguments, limit_s)


def silent(door: Door, looked: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a failure for each node that did not answer."""
    fix = "open the ports of docs/cluster-security.md both ways, or end that node's own raylet"
    for node in door.nodes:
        if isinstance(answer := looked.get(node.id), Silent):
            yield Finding("node", FAIL, f"{node.name}: {answer.why}", fix)


def versions(
    door: Door, looked: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Yield each node whose Ray, Python or fedray is not the one here, or one line where all are.

    Another patch level of Python is only noted where the environment here says so, as Ray itself takes it.
    """
    ours = {"Ray": node_probe.ray_version(), "Python": platform.python_version()}
    code = node_probe.fedray_code()
    is_same = True
    for node, look in _answered(door, looked):
        differs = {
            name: f"{name} {look[name.lower()]}, {version} here"
            for name, version in ours.items()
            if look[name.lower()] != version
        }
        if is_let(look["python"], ours["Python"], environment):
            yield Finding("versions", NOTE, f"{node.name}: {differs.pop('Python')}: {LET}")
        other = [*differs.values(), *_other_code(tuple(look["fedray"]), code)]
        if unread := look["unread"].get("fedray"):
            other = [*differs.values(), f"the files of fedray cannot be read ({unread})"]
        if other:
            is_same = False
            fix = f"install there what is here: fedray {code[0]}, Ray {ours['Ray']}, Python {ours['Python']}"
            if set(differs) == {"Python"}:
                fix += f" (another patch level: export {MATCH_LEVEL}=minor on every node and here)"
            yield Finding("versions", FAIL, f"{node.name}: {'; '.join(other)}", fix)
    if is_same:
        yield Finding("versions", PASS, f"fedray {code[0]} ({code[1]}) on every node that answered")


def _other_code(there: tuple[str, ...], here: tuple[str, str]) -> list[str]:
    if there == here:
        return []
    if not there[0]:
        return ["no fedray"]
    if there[0] != here[0]:
        return [f"fedray {there[0]}, {here[0]} here"]
    return [f"fedray {there[0]} with other files ({there[1]}, {here[1]} here)"]


def data(door: Door, looked: Mapping[str, Any], sites: Mapping[str, SiteAt]) -> Iterator[Finding]:
    """Yield each site whose data are not on its node; the number of entries is all that left the node."""
    answered = list(_answered(door, looked))
    found = {(site, node.name): told for node, look in answered for site, told in look["folders"].items()}
    users = {node.name: look["user"] for node, look in answered}
    for (site, node), told in found.items():
        if wrong := _wrong_data(site, told, users[node]):
            what, fix = wrong
            yield Finding("data", FAIL, f"site {site} on {node}: {what}", fix)
    unsaid = sorted({site for (site, _), told in found.items() if told == "unsaid"})
    if unsaid:
        names = ", ".join(unsaid[:MOST_TOLD]) + (", ..." if len(unsaid) > MOST_TOLD else "")
        yield Finding(
            "data",
            NOTE,
            f"nobody says where the data of {names} lie ({len(unsaid)} of {len(sites)})",
            "sites.NAME.data in the site map, or FEDRAY_SITE_DATA=FOLDER before ray start on the node",
        )
    there = {site for (site, _), told in found.items() if isinstance(told, int) and told}
    if there:
        yield Finding("data", PASS, f"{len(there)} of {len(sites)} sites have data on their node")


def _wrong_data(site: str, told: int | str, user: str) -> tuple[str, str] | None:
    """Return what is wrong with a site's data on its node and the fix, or None."""
    mend = f"put the data of {site} on that node, or mend sites.{site}.data in the site map"
    wrong: dict[int | str, tuple[str, str]] = {
        "missing": ("its data folder is not there", mend),
        0: ("its data folder is empty", mend),
        "unreadable": (
            f"the user {user} there may not read its data",
            "let that user read them (chown or chmod on the node, and the folders above them), or start Ray "
            "there as a user who may",
        ),
        "failing": ("the file system there fails to read its data", "look at the node's disk or its mounts"),
    }
    return wrong.get(told)


def _answered(door: Door, looked: Mapping[str, Any]) -> Iterator[tuple[Node, Mapping[str, Any]]]:
    return (
        (node, looked[node.id])
        for node in door.nodes
        if node.id in looked and not isinstance(looked[node.id], Silent)
    )


def require(door: Door, sites: Mapping[str, SiteAt], limit_s: float = START_S) -> None:
    """Check the code of every node and the data of every site before a run starts.

    Raises ClusterError with all that is wrong. A node that does not answer is only warned of: sites elsewhere
    may do without it.
    """
    began = time.monotonic()
    looked = looks(door, sites, door.nodes, limit_s)
    for finding in silent(door, looked):
        logger.warning("%s. Fix: %s", finding.message, finding.fix)
    if wrong := problems((*versions(door, looked), *data(door, looked, sites))):
        raise ClusterError(wrong)
    logger.debug("%d nodes looked at in %.1f s", len(looked), time.monotonic() - began)


def skews(nodes: Sequence[Node], limit_s: float = CLOCKS_S) -> dict[str, tuple[float, float]]:
    """Return by node id how far its clock is ahead of ours, and how sure that is, in seconds.

    One node after another, as often as the limit allows: of several exchanges the quickest counts, and half
    of what it took is the doubt.
    """
    best: dict[str, tuple[float, float]] = {}
    clock, ends = Sent(node_probe.clock), time.monotonic() + limit_s
    for node in itertools.islice(itertools.cycle(nodes), EXCHANGES * len(nodes)):
        began = time.time()
        answer = clock.on([node], lambda _: (), max(0.1, ends - time.monotonic()))[node.id]
        ended = time.time()
        if not isinstance(answer, Silent):
            found = offset(began, answer, ended)
            best[node.id] = min(found, best.get(node.id, found), key=lambda each: each[1])
        if time.monotonic() > ends:
            break
    return best


def offset(began: float, theirs: float, ended: float) -> tuple[float, float]:
    """Return how far a clock is ahead that was read between two readings of ours, and the doubt."""
    return theirs - (began + ended) / 2, (ended - began) / 2
