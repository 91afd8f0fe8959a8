"""Places: which node of a cluster a host belongs to, and what it takes there.

A place is a label selector, as Ray's actors take it, and resources. Ray lets an actor whose selector no node
has wait for ever, so `Place.fits` says beforehand which nodes it would take. Loads nothing.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Labels = tuple[tuple[str, str], ...]
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_VALUE = re.compile(rf"(?P<is_not>!?)(?:in\((?P<many>{_NAME}(?:, ?{_NAME})*)\)|(?P<one>{_NAME}))")
HEAD = "node:__internal_head__"  # what Ray calls the resource that the head alone has
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: its id, address, labels and what it has in all."""

    id: str
    address: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]

    @property
    def is_head(self) -> bool:
        """Tell whether it is the head."""
        return HEAD in self.resources

    @property
    def told(self) -> str:
        """The node in words: its address and the labels that somebody has given it."""
        given = ", ".join(f"{key}={value}" for key, value in own_labels(self.labels).items())
        return f"{self.address} ({given or 'no labels'})"


def living(nodes: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Return the living ones of what `ray.nodes()` gives."""
    return [
        Node(
            str(node["NodeID"]),
            str(node.get("NodeManagerAddress", "")),
            dict(node.get("Labels") or {}),
            dict(node.get("Resources") or {}),
        )
        for node in nodes
        if node.get("Alive")
    ]


def own_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels without those that Ray gives every node."""
    return {key: value for key, value in sorted(labels.items()) if not key.startswith("ray.io/")}


def label_problem(key: str, value: str) -> str | None:
    """Return what is wrong with one line of a selector, or None."""
    if not _KEY.fullmatch(key):
        return f"{key!r} is no key of a label: letters, digits, '-', '_' and '.', at most 63"
    if not _VALUE.fullmatch(value):
        return f"{value!r} is no value of a label, nor one of !VALUE, in(A, B), !in(A, B)"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A selector, or the head, and resources; a CPU of 0 is not reserved, memory is in bytes."""

    labels: Labels = ()
    is_head: bool = False
    num_cpus: float = 0.0
    memory: int = 0
    num_gpus: float = 0.0

    @property
    def selector(self) -> str:
        """The selector in words."""
        return ", ".join(f"{key}={value}" for key, value in self.labels) or "the head"

    @property
    def matching_labels(self) -> str:
        """Labels of a node that would be meant, as `ray start --labels` takes them."""
        found = ((key, _VALUE.fullmatch(pattern)) for key, pattern in self.labels)
        wanted = [(key, value) for key, value in found if value and not value["is_not"]]
        return ",".join(f"{key}={value['one'] or value['many'].partition(',')[0]}" for key, value in wanted)

    @property
    def needs(self) -> dict[str, float]:
        """The resources under Ray's names."""
        found = {"CPU": self.num_cpus, "memory": float(self.memory), "GPU": self.num_gpus}
        return {name: value for name, value in found.items() if value}

    @property
    def told(self) -> str:
        """The resources in words."""
        parts = {
            "CPU": f"{self.num_cpus:g} CPU",
            "memory": f"{self.memory / GIB:.3g} GiB",
            "GPU": f"{self.num_gpus:g} GPU",
        }
        return ", ".join(parts[name] for name in self.needs)

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a node with these labels is meant."""
        return all(_is_meant(pattern, labels.get(key)) for key, pattern in self.labels)

    def fits(self, node: Node) -> bool:
        """Tell whether a node is meant and has, in all, what is needed."""
        if not self.selects(node.labels) or (self.is_head and not node.is_head):
            return False
        return all(node.resources.get(name, 0) >= need for name, need in self.needs.items())

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told when it starts an actor here."""
        needs = {"num_cpus": self.num_cpus, "memory": self.memory, "num_gpus": self.num_gpus}
        found: dict[str, Any] = {name: value for name, value in needs.items() if value}
        if self.labels:
            found["label_selector"] = dict(self.labels)
        if self.is_head:  # not by its id, which is another after it was started again
            found["resources"] = {HEAD: 0.001}
        return found


def _is_meant(pattern: str, value: str | None) -> bool:
    found = _VALUE.fullmatch(pattern)
    if found is None:
        return False
    chosen = re.split(r", ?", found["many"]) if found["many"] else [found["one"]]
    return (value in chosen) != bool(found["is_not"])
