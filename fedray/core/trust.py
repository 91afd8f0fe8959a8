"""The trust statement: one page of what a plan protects, against whom, who must be trusted, and what is not
protected.

Each claim is that of a pass (`Graph.claims`), or is read off the plan: the names whose reductions show one
site, and the noise that functions add (`fn.mechanism`). Nothing here is a promise of its own.
"""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from fedray.core.flow import crossing, marks
from fedray.core.graph import CARRIERS, Graph, Label, Node, Op

ONE_DOMAIN = (
    "All nodes of this Ray cluster can run code on each other and read each other's data. "
    "Security passes are exercised but protect nobody inside the cluster."
)
ALWAYS = (
    "each site's own operating system and administrators, and the libraries that it runs",
    "the code that sites train with: what it writes into an update leaves with the update",
)
SIMULATED = "would hold with masks, which are simulated here: "
NEVER = (
    "which sites take part in a round, which fail, and how many training rows each says it has",
    "the model itself: a server may publish another one than the rounds have made",
    "what the released sums and the final model tell of patients, where no noise is claimed above",
)


def trust_statement(plan: Any) -> str:
    """Return the trust statement of a plan, to be read beside `egress`."""
    claims = [line for kind in plan.kinds for line in _claims(kind)]
    trusts = [line for kind in plan.kinds for line in _trusted(kind.graph)]
    exceptions = dict.fromkeys(c.but for kind in plan.kinds for c in kind.graph.claims if c.but)
    lines = [
        f"Trust statement: {plan.name}   plan {plan.digest[:8]}",
        "",
        "Claimed, each by the pass that is named",
        *_listed(claims),
        "",
        "Trusted",
        *_listed((*trusts, *ALWAYS)),
        "",
        "Not protected",
        *_listed((*exceptions, *NEVER)),
        "",
        "One trust domain, where the sites are nodes of one Ray cluster",
        *_listed([ONE_DOMAIN]),
    ]
    return "\n".join(lines)


def _listed(sentences: Iterable[str]) -> list[str]:
    """Return sentences as a list, each once, no line longer than a page is wide."""
    return [
        textwrap.fill(each, 100, initial_indent="  - ", subsequent_indent="    ")
        for each in dict.fromkeys(sentences)
    ]


def _claims(plan: Any) -> Iterator[str]:
    """Yield what a plan of one kind of round claims, and what it does not."""
    known = marks(plan.graph)
    for by, text in claimed(plan.graph):
        yield f"{text} ({by})"
    for node in plan.graph.nodes:
        mechanism = getattr(node.fn, "mechanism", None) if node.op is Op.CALL else None
        if mechanism is not None:
            yield f"{_noise(mechanism)} ({node.where})"
    plain = [node for node in plan.graph.reductions if node.args and not node.params.get("is_protocol")]
    shown = [node.name for node in plain if known[node].label is Label.VISIBLE]
    summed = [
        name
        for node in plain
        if crossing(node, known).label not in (*CARRIERS, Label.DP) and known[node].label is not Label.VISIBLE
        for name in [lane[0] for lane in node.params.get("lanes", ((node.name,),))]
    ]
    if shown:
        yield f"none for {', '.join(shown)}: the server sees the value of each site (no pass)"
    if summed:
        yield (
            f"none for {', '.join(summed)}: the process that adds them up, and the server where a site is "
            "alone in its process, see the value of each site (no pass)"
        )


def claimed(graph: Graph) -> list[tuple[str, str]]:
    """Return what each pass claims, by its name: of what leaves, only a promise where masks are simulated."""
    would = SIMULATED if _is_simulated(graph) else ""
    return [(claim.by, (would if claim.hub != "trusted" else "") + claim.text) for claim in graph.claims]


def _trusted(graph: Graph) -> list[str]:
    """Return who must be trusted: where masks are simulated first of all whoever is sent values in plain."""
    would = SIMULATED if _is_simulated(graph) else ""
    plain = [claim.trusts for claim in graph.claims if claim.is_simulated]
    return plain + [would + claim.trusts for claim in graph.claims if claim.trusts and not claim.is_simulated]


def _is_simulated(graph: Graph) -> bool:
    return any(claim.is_simulated for claim in graph.claims)


def _noise(mechanism: Any) -> str:
    by = "the server adds" if mechanism.noise_by == "server" else "the sites add"
    size = mechanism.noise_multiplier
    told = "" if size is None else f", multiplier {size:g}"
    return (
        f"{by} {mechanism.kind} noise{told}: unit {mechanism.unit}, adjacency {mechanism.adjacency}; epsilon "
        "is what the ledger says"
    )


def guards_of(node: Node) -> list[str]:
    """Return what bounds or hides a value on its way out of a site, the nearest to its source first."""
    found: list[str] = []
    todo, seen = list(node.args), set(node.args)
    while todo:
        arg = todo.pop()
        bound, coder = getattr(arg.fn, "bound", None), getattr(arg.fn, "coder", None)
        if getattr(arg.fn, "guard", ""):
            found.append(arg.fn.guard)  # type: ignore[union-attr]
        elif bound is not None:
            found.append(f"clip {bound:g}")
        elif coder is not None and hasattr(coder, "title"):
            found.append(coder.title)
        fresh = [one for one in arg.args if one not in seen and one.op not in (Op.BROADCAST, Op.SCATTER)]
        seen.update(fresh)
        todo += fresh
    return list(dict.fromkeys(reversed(found)))
