"""Explanation: the graph of a plan in words and as a picture, and the page that lists what leaves a site.

`egress` is what a data-protection officer signs: every value that can leave, under which name, whether the
value of one site is visible, and how many bytes. `explain` shows the whole round; given the calls that a
transport submitted, it also draws the bound task DAG: which actor ran what, and which object flowed where.
"""

from collections.abc import Sequence
from typing import Any

from fedray.core.flow import marks
from fedray.core.graph import Label, Node, Op, Placement, function_name, is_one_site
from fedray.core.trust import claimed, guards_of

SITES = Placement.SITES
ENVELOPE = (
    "with each answer: the ids of the sites that delivered, or the class and file:line of a site's error;",
    "of each sum its weight and the binary exponent of its largest value; the process id.",
    "Where a value lies outside the range of the last round's, that round's sums are sent once more.",
    "nothing else leaves a site",
)
FOLDS = {
    "fast": "fold=fast: models are added in float32, and runs in other layouts do not have equal bits",
    "regional": "fold=regional: a region sends its mean, rounded once; equal bits need equal regions",
}
MIXED = "mix: neighbours are shown the value, and so is the server, through which it travels"
BY_REGION = (
    "by region: a sum for each declared region (per pack: for each of its own); of a region with one site it "
    "is that site's own value"
)
ALONE = "the schedule takes sites one by one: each sum is the value of a single site"


def explain(plan: Any, cohort: Sequence[Any] | None = None, *, mermaid: bool = False) -> str:
    """Return the plan by stage, as text or as a Mermaid flow chart.

    `cohort` is a list of call records (`federation.calls()`): then the bound task DAG of these calls is
    drawn.
    """
    if cohort is not None:
        return _bound_mermaid(cohort) if mermaid else _bound_text(plan, cohort)
    if mermaid:
        told = (f"  %% {_when(k)} explain(plan.every[{k}], mermaid=True)" for k in plan.every)
        return "\n".join([_mermaid(plan), *told])  # a chart for each kind of round
    return "\n".join([_text(plan), *(f"{_when(k)}\n{_text(p)}" for k, p in plan.every.items())])


def _when(period: int) -> str:
    return f"in rounds {period}, {2 * period}, {3 * period}, ... in its place:"


def _title(node: Node) -> str:
    if node.op is Op.CALL:
        lift = node.params["lift"]
        if lift in ("leafwise", "record", "check"):
            checked = "check finite, without what is frozen" if node.params.get("is_cut") else "check finite"
            titles = {"leafwise": getattr(node.fn, "__name__", "arithmetic"), "check": checked}
            return str(titles.get(lift, lift))
        return f"{'map' if node.placement is SITES else 'apply'} {function_name(node.fn)}"
    if node.op is Op.GET:
        return f".{node.params['key']}"
    if node.op is Op.INPUT:
        return f"{'site' if node.placement is SITES else 'server'}.{node.params['slot']}"
    by = f" by {node.params['by']}" if node.params.get("by") else ""
    if node.op is Op.REDUCE:
        return f"{_kind(node)} {node.name!r}{by}"
    if node.op is Op.CONST:
        return f"constant {node.params['value']!r}"[:60]
    return f"{node.op} {node.name}".strip() + by


def _kind(node: Node) -> str:
    """Return the verb whose values leave; what neighbours are shown is a `gather` once it is lowered."""
    return "mix" if node.params.get("to") == "neighbours" else str(node.params["kind"])


def _form(node: Node) -> str:
    """Say how a mapped function runs over the sites of a group: what it says of itself, or whether it has a
    twin.
    """
    if node.op is not Op.CALL or node.placement is not SITES or node.params["lift"] != "site":
        return ""
    told = getattr(node.fn, "how", None)
    return f"   [{told or ('stacked' if getattr(node.fn, 'rows', None) else 'site by site')}]"


def _text(plan: Any) -> str:
    lines = [f"{plan.name}   plan {plan.digest[:8]}"]
    for stage in range(plan.last_stage + 1):
        where = "sites" if stage % 2 else "server"
        lines.append(f"stage {stage} at the {where}")
        for index, node in enumerate(plan.nodes):
            if plan.stage[index] != stage or node.op is Op.CONST:
                continue
            args = ", ".join(_argument(plan, arg) for arg in plan.args[index])
            told = f"   [{size:,} B of it once a host]" if (size := plan.once.get(index)) else _form(node)
            lines.append(f"  %{index:<3} {_title(node)}({args})   {node.where}{told}".rstrip())
    outputs = ", ".join(f"{placement} {slot} = %{index}" for (placement, slot), index in plan.outputs.items())
    lines.append(f"outputs: {outputs}")
    lines += [plan.graph.note] if plan.graph.note else []
    lines += [f"{by}: {text}" for by, text in claimed(plan.graph)]
    lines += [FOLDS[plan.fold]] if plan.fold in FOLDS else []
    return "\n".join(lines)


def _argument(plan: Any, index: int) -> str:
    node = plan.nodes[index]
    return repr(node.params["value"])[:30] if node.op is Op.CONST else f"%{index}"


def _mermaid(plan: Any) -> str:
    lines = ["flowchart TD"]
    for stage in range(plan.last_stage + 1):
        lines.append(f'  subgraph s{stage}["stage {stage} at the {"sites" if stage % 2 else "server"}"]')
        lines += [
            f'    n{i}["{_title(node)}"]'
            for i, node in enumerate(plan.nodes)
            if plan.stage[i] == stage and node.op is not Op.CONST
        ]
        lines.append("  end")
    for index in range(len(plan.nodes)):
        for arg in plan.args[index]:
            if plan.nodes[arg].op is not Op.CONST:
                arrow = "==>" if plan.stage[arg] != plan.stage[index] else "-->"
                lines.append(f"  n{arg} {arrow} n{index}")
    return "\n".join(lines)


def egress_rows(plan: Any) -> list[dict[str, Any]]:
    """Return what leaves a site, one mapping per name: stage, name, kind, visible, site_bytes, sum_bytes,
    where; and `every`, the period of the rounds in which it does, 0 for those of no other kind.
    """
    before = [] if plan.before is None else _rows(plan.before)
    rows = [{**row, "stage": "before"} for row in before]
    others = [
        {**row, "stage": f"{row['stage']} every {period} rounds", "every": period}
        for period, other in plan.every.items()
        for row in _rows(other)
    ]
    return rows + _rows(plan) + others


def _rows(plan: Any) -> list[dict[str, Any]]:
    """Return what leaves in a round of one kind."""
    rows = []
    known, is_plain = marks(plan.graph), not plan.graph.claims
    for index, node in enumerate(plan.nodes):
        if node.op is not Op.REDUCE or node.params["kind"] == "count":
            continue
        stage, kind = plan.stage[index], _kind(node)
        is_unguarded = is_plain or node.params.get("is_protocol")
        for name in [lane[0] for lane in node.params.get("lanes", ((node.name,),))]:
            size = plan.sizes.get(name)
            visible = "yes, to neighbours" if kind == "mix" else "yes" if is_one_site(node) else "no"
            visible += f", by {node.params['by']}" if node.params.get("by") else ""
            if known[node].label is not Label.VISIBLE:
                visible = node.params.get("shows", visible)
            rows.append(
                {
                    "stage": f"{stage - 1}→{stage}",
                    "name": name,
                    "kind": kind,
                    "visible": visible,
                    "site_bytes": size.row_bytes if size else None,
                    "guards": "" if is_unguarded else ", ".join(guards_of(node)),
                    "sum_bytes": size.sum_bytes if size and kind == "sum" else None,
                    "where": node.where,
                    "every": 0,
                }
            )
    return rows


def egress(plan: Any) -> str:
    """Return the list of everything that leaves a site, as a table.

    "per site" is what a site alone in its process sends; "per pack" is the partial sum of a process with
    several.
    """
    rows = egress_rows(plan)
    wide = max(28, *(len(row["name"]) + 2 for row in rows)) if rows else 28
    seen = max(20, *(len(row["visible"]) + 2 for row in rows)) if rows else 20
    heads = f"{'kind':<8}{'one site visible?':<{seen}}{'per site':>12}{'per pack':>12}"
    lines = [f"{plan.name}   plan {plan.digest[:8]}", f"{'stage':<7}{'leaves as':<{wide}}{heads}"]
    lines += [_line(row, wide, seen) for row in rows if not row["every"]]
    for period, other in plan.every.items():
        lines += [_when(period), *(_line(row, wide, seen) for row in _rows(other))]
    lines += [MIXED] if any(row["kind"] == "mix" for row in rows) else []
    lines += [BY_REGION] if any("by region" in row["visible"] for row in rows) else []
    lines += [ALONE] if any(node.params.get("alone") for node in plan.nodes) else []
    lines += [plan.graph.note] if plan.graph.note else []
    lines += [f"{by}: {text}" for by, text in claimed(plan.graph)]
    lines += [FOLDS[plan.fold], *ENVELOPE] if plan.fold in FOLDS else ENVELOPE
    return "\n".join(lines)


def _line(row: dict[str, Any], wide: int, seen: int) -> str:
    guards = f"   {row['guards']}" if row["guards"] else ""
    return (
        f"{row['stage']:<7}{row['name']:<{wide}}{row['kind']:<8}{row['visible']:<{seen}}"
        f"{_size(row['site_bytes']):>12}{_size(row['sum_bytes']):>12}{guards}"
    )


def _size(number: int | None) -> str:
    return "-" if number is None else f"{number:,} B"


def _bound_text(plan: Any, calls: Sequence[Any]) -> str:
    lines = [f"{plan.name}   plan {plan.digest[:8]}   as submitted"]
    for call in calls:
        flow = f"  <- {call.downlink}" if call.downlink else ""
        what = (
            f"round {call.round} stage {call.stage} attempt {call.attempt}, {call.sites} sites"
            if call.stage >= 0
            else ""
        )
        lines.append(f"  {call.host:<24} {call.method:<8} {what}{flow}".rstrip())
    return "\n".join(lines)


def _bound_mermaid(calls: Sequence[Any]) -> str:
    lines = ["flowchart LR", "  aggregator([aggregator])"]
    for number, call in enumerate(calls):
        node = f'c{number}["{call.host}: {call.method}' + (
            f' {call.round}.{call.stage}, {call.sites} sites"]' if call.stage >= 0 else '"]'
        )
        label = f"|{call.downlink}|" if call.downlink else ""
        lines.append(f"  aggregator -->{label} {node}")
        if call.method == "run":
            lines.append(f"  c{number} -->|contribution {call.round}.{call.stage}| aggregator")
    return "\n".join(lines)
