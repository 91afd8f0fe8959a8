"""The flow of labels: what each value may reveal, and which protections cannot both hold.

Rule F (security.md section 1): what crosses from a site to the server may be anything but PRIVATE, and a
reduction is the only way across. A function that a pass places lowers or hides a label by saying so
(`grants`), or says what it cannot work without (`needs`); attributes that this file reads are

    grants      Label of the result; MASKED and SEALED hide what it was computed from, or `hides`
    needs       VISIBLE at the server: each site's own value; MASKED at a site: its result leaves masked
    gives_groups  of a function whose result has the mean of each group of sites in place of each site's value
    bound       of a function that clips at a site: the largest norm of its result
    mechanism   of a function that adds noise: `noise_by` is "server" or "sites", `trusted` may be "server"
    tells       of a function that loses a site by what it finds there: what that is, in words

What a pass demands of the whole graph is in its `Claim`. `check_flow` runs after all passes and on every host
that receives a plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedray.core.graph import (
    CARRIERS,
    LABEL_ORDER,
    Claim,
    Graph,
    Label,
    Node,
    Op,
    Placement,
    function_name,
    is_one_site,
)
from fedray.errors import SecurityConflict, VerifyError

SERVER, SITES = Placement.SERVER, Placement.SITES
_SITE_LABEL = {"id": Label.PUBLIC, "rng": Label.PUBLIC}
_HARMLESS = (Label.PUBLIC, Label.DP, *CARRIERS)


@dataclass(frozen=True, slots=True)
class Mark:
    """The label of a value; of a carrier also the label of what it hides."""

    label: Label
    inner: Label = Label.PUBLIC

    @property
    def hides(self) -> Label:
        """What is revealed once the carrier is opened; of a plain value its own label."""
        return self.inner if self.label in CARRIERS else self.label

    def __str__(self) -> str:
        return f"{self.label}({self.inner})" if self.label in CARRIERS else str(self.label)


def marks(graph: Graph) -> dict[Node, Mark]:
    """Return what each value may reveal. A value computed from several reveals the most of them."""
    found: dict[Node, Mark] = {}
    for node in graph.nodes:
        joined = _joined(found[arg] for arg in node.args)
        grants = getattr(node.fn, "grants", None) if node.op is Op.CALL else None
        if node.op is Op.INPUT:
            slot = node.params["slot"].split(":")[0]
            label = _SITE_LABEL.get(slot, Label.PRIVATE) if node.placement is SITES else Label.AGG
            joined = Mark(label)
        elif node.op is Op.REDUCE:
            joined = _reduced(node, joined)
        elif grants in CARRIERS:
            joined = Mark(grants, getattr(node.fn, "hides", joined.hides))
        elif grants is not None:
            joined = Mark(grants)
        found[node] = joined
    return found


def _joined(args: Iterable[Mark]) -> Mark:
    """Return what several values together reveal; a carrier beside one site's plain value hides nothing."""
    all_marks = list(args)
    plain = max((m.label for m in all_marks if m.label not in CARRIERS), key=LABEL_ORDER.index,
                default=Label.PUBLIC)  # fmt: skip
    carriers = [m.label for m in all_marks if m.label in CARRIERS]
    if not carriers or LABEL_ORDER.index(plain) >= LABEL_ORDER.index(Label.VISIBLE):
        return Mark(plain)
    inner = max((m.hides for m in all_marks), key=LABEL_ORDER.index)
    return Mark(Label.MASKED if Label.MASKED in carriers else Label.SEALED, inner)


def _reduced(node: Node, given: Mark) -> Mark:
    """Return what a reduction gives the server."""
    if not node.args:
        return Mark(Label.AGG)  # a count
    shown = Label.VISIBLE if is_one_site(node) else Label.AGG
    inner = given.hides if given.hides in (Label.PUBLIC, Label.DP) else shown
    return replace(given, inner=inner) if given.label in CARRIERS else Mark(inner)


def crossing(node: Node, known: Mapping[Node, Mark]) -> Mark:
    """Return what a reduction shows on its way: of a plain sum the value of one site, who is alone in its
    process.
    """
    given = _joined(known[arg] for arg in node.args if arg.placement is not SERVER)
    return given if given.label in _HARMLESS else Mark(Label.VISIBLE)


def _check_opening(graph: Graph, node: Node, known: Mapping[Node, Mark]) -> None:
    """Refuse to open at the server what hides more than the opener says that it shows."""
    grants, given = getattr(node.fn, "grants", None), _joined(known[arg] for arg in node.args)
    if grants is None or grants in CARRIERS or given.label not in CARRIERS or node.placement is not SERVER:
        return
    if LABEL_ORDER.index(given.hides) > LABEL_ORDER.index(grants):
        raise VerifyError(
            f"{graph.name}, {node.where}: {title(node)} opens a value that is {given} and says that the "
            f"result is {grants}: only sums of several sites are opened at the server"
        )


def title(node: Node) -> str:
    """Return a function's name as messages say it."""
    return str(getattr(node.fn, "title", None) or function_name(node.fn))


def check_flow(graph: Graph) -> None:
    """Raise VerifyError where a site's own value reaches the server without a named reduction, and
    SecurityConflict where two protections, or a protection and an algorithm, cannot both hold.
    """
    known = marks(graph)
    for node, mark in known.items():
        if node.placement is SERVER and mark.label is Label.PRIVATE:
            raise VerifyError(
                f"{graph.name}, {node.where}: a site's own value reaches the server without a named "
                "reduction: use sum(), mean() or gather()"
            )
    hidden = next((claim for claim in graph.claims if claim.is_hidden), None)
    for node in graph.nodes:
        if node.op is Op.REDUCE and node.args and hidden is not None:
            _check_hidden(graph, node, known, hidden)
        elif node.op is Op.CALL and node.fn is not None:
            _check_opening(graph, node, known)
            _check_needs(graph, node, known, hidden)
            _check_noise(graph, node, known)
            _check_telling(graph, node)


def _check_hidden(graph: Graph, node: Node, known: Mapping[Node, Mark], claim: Claim) -> None:
    """Refuse a reduction that shows a site's value where a pass has promised that none does."""
    if crossing(node, known).label in _HARMLESS:
        return
    told = f"{node.name} ({node.params['kind']}, {node.where})"
    users = _downstream(graph, node)
    needy = next((user for user in users if getattr(user.fn, "needs", None) is Label.VISIBLE), None)
    if needy is not None:
        raise SecurityConflict(_needs_plaintext(graph, needy, claim))
    if node.params["kind"] == "mix" or node.params.get("to") == "neighbours":
        why, fix = "shows it to neighbours and to the server", "average at the server"
    elif node.params.get("by"):
        why = "is a sum for each region, and a region of one site is that site's own value"
        fix = "average over all sites"
    elif node.params.get("alone"):
        why, fix = "is the value of one site, which the schedule takes alone", "use a schedule with cohorts"
    elif node.params["kind"] in ("sum", "mean"):
        why = "leaves in plain: whoever adds up sees the value of a site that is alone in its process"
        fix = "mask it: secure=secure_sum secure.mode=real"
    elif any(user.op is Op.SCATTER for user in users):
        why = "gives the server each site's own value, from which it makes something for each site"
        fix = "take an algorithm whose personal part stays at the site (fedper, fedbn, ditto)"
    elif not any(user is output for user in users for (_, slot), output in graph.outputs.items()
                 if slot != "metrics"):  # fmt: skip
        why = "gives the server the figures of each site"
        fix = "sum them: evaluate.per_site=false, or sums of histograms; schedule=synchronous asks no losses"
    else:
        why, fix = "gives the server each site's own value", "use mean() or sum() in its place"
    raise SecurityConflict(
        f"{graph.name}: {told} {why}; {claim.by} shows the server sums alone. Fix: {fix}, or drop {claim.by}"
    )


def _needs_plaintext(graph: Graph, node: Node, claim: Claim | None) -> str:
    needs = f"{graph.name}: {title(node)} ({node.where}) needs per-site updates at the server"
    if claim is None:
        return f"{needs}, and gets sums. Fix: gather() them"
    return (
        f"{needs}; {claim.by} exposes only their sum. Fix: group_secure_sum(groups=...) with a median over "
        f"the group means, or drop {title(node)} or {claim.by}"
    )


def _check_needs(graph: Graph, node: Node, known: Mapping[Node, Mark], hidden: Claim | None) -> None:
    needs = getattr(node.fn, "needs", None)
    given = _joined(known[arg] for arg in node.args)
    is_each = _is_of_each_site if hidden is None else _is_by_group
    is_short = given.label is not Label.VISIBLE and not any(is_each(arg) for arg in node.args)
    if needs is Label.VISIBLE and node.placement is SERVER and is_short:
        raise SecurityConflict(_needs_plaintext(graph, node, hidden))
    if node.placement is not SITES or needs is not Label.MASKED:
        return
    for user in _downstream(graph, node, is_ending=True):
        if user.op is Op.REDUCE and crossing(user, known).label not in (Label.PUBLIC, *CARRIERS):
            raise SecurityConflict(
                f"{graph.name}: {title(node)} ({node.where}) adds one site's share of the noise, which "
                f"protects nobody alone, and {user.name} leaves in plain. Fix: secure=secure_sum, or a "
                "privacy pass whose noise is whole (site_dp at a trusted server, site_dp_local at the sites)"
            )


def _is_by_group(node: Node) -> bool:
    """Tell whether a value is the mean of each of several groups of sites."""
    return bool(getattr(_picked_from(node).fn, "gives_groups", False))


def _is_of_each_site(node: Node) -> bool:
    """Tell whether a value is that of each site, also with noise in it, or of each group."""
    return _is_by_group(node) or _picked_from(node).params.get("kind") == "gather"


def _picked_from(node: Node) -> Node:
    while node.op is Op.GET:
        node = node.args[0]
    return node


def _check_noise(graph: Graph, node: Node, known: Mapping[Node, Mark]) -> None:
    """Refuse noise of a server that may not be trusted, and a coder that undoes a clip."""
    curious = next((claim for claim in graph.claims if claim.hub != "trusted"), None)
    is_by_server = getattr(getattr(node.fn, "mechanism", None), "noise_by", "") == "server"
    if curious is not None and node.placement is SERVER and is_by_server:
        raise SecurityConflict(
            f"{graph.name}: {title(node)} ({node.where}) is noise that the server adds, and {curious.by} "
            "says that the server is curious: it sees the sum before. Fix: privacy=site_dp_distributed or "
            "distributed_record with secure=secure_sum, or trust the server (policy hub=trusted)"
        )
    if node.placement is SITES and hasattr(node.fn, "coder"):
        clips = [arg for arg in _upstream(node) if getattr(arg.fn, "bound", None) is not None]
        if clips and not hasattr(node.fn, "keeps_bound"):
            raise SecurityConflict(
                f"{graph.name}: {title(node)} ({node.where}) codes an update after {title(clips[0])} has "
                "clipped it: its rounding may exceed the bound. Fix: compression before privacy in passes="
            )


def _check_telling(graph: Graph, node: Node) -> None:
    """Refuse that a site is lost by what is private there, where the server may not learn it."""
    told = getattr(node.fn, "tells", ())
    if not told:
        return
    for other in graph.nodes:
        if getattr(getattr(other.fn, "mechanism", None), "trusted", "server") != "server":
            raise SecurityConflict(
                f"{graph.name}: {title(node)} ({node.where}) withholds by {', '.join(told)}, and that a site "
                f"withholds tells the server what the epsilon of {title(other)} does not cover. Fix: only "
                "report these (policy.airlock.report=[...])"
            )


def has_noise_of_sites(graph: Graph) -> bool:
    """Tell whether what leaves has noise before it is opened: that of a server comes after."""
    found = (getattr(node.fn, "mechanism", None) for node in graph.nodes if node.op is Op.CALL)
    return any(getattr(mechanism, "noise_by", "") == "sites" for mechanism in found)


def _upstream(node: Node) -> list[Node]:
    """Return what a value at a site is computed from at the site, itself left out."""
    found: list[Node] = []
    todo = list(node.args)
    while todo:
        arg = todo.pop()
        if arg.placement is SITES and arg.op not in (Op.BROADCAST, Op.SCATTER) and arg not in found:
            found.append(arg)
            todo.extend(arg.args)
    return found


def _downstream(graph: Graph, start: Node, is_ending: bool = False) -> list[Node]:
    """Return what is computed from a node, itself included; with `is_ending` up to the reductions."""
    reached: dict[Node, None] = {start: None}
    for node in graph.nodes:
        through: Any = (arg for arg in node.args if arg in reached)
        if any(not (is_ending and arg.op is Op.REDUCE) for arg in through):
            reached[node] = None
    return list(reached)
