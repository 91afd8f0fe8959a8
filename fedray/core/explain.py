"""Explanation: the graph of a plan in words and as a picture, and the page that lists what leaves a site.

`egress` is what a data-protection officer signs: every value that can leave, under which name, whether the
value of one site is visible, and how many bytes. `explain` shows the whole round; given the calls that a
transport submitted, it also draws the bound task DAG: which actor ran what, and which object flowed where.
"""

from collections.abc import Sequence
from typing import Any

from fedray.core.graph import Node, Op, Placement

SITES = Placement.SITES
ENVELOPE = (
    "with each answer: the ids of the sites that delivered, or the class and file:line of a site's error;",
    "of each sum its weight and the binary exponent of its largest value; the process id.",
    "Where a value lies outside the range of the last round's, that round's sums are sent once more.",
    "nothing else leaves a site",
)
FAST = "fold=fast: models are added in float32, and runs in other layouts do not have equal bits"
VISIBLE = {"gather": "yes", "sum": "no", "count": "no"}


def explain(plan: Any, cohort: Sequence[Any] | None = None, *, mermaid: bool = False) -> str:
    """Return the plan by stage, as text or as a Mermaid flow chart.

    `cohort` is a list of call records (`federation.calls()`): then the bound task DAG of these calls is
    drawn.
    """
    if cohort is not None:
        return _bound_mermaid(cohort) if mermaid else _bound_text(plan, cohort)
    return _mermaid(plan) if mermaid else _text(plan)


def _title(node: Node) -> str:
    if node.op is Op.CALL:
        lift = node.params["lift"]
        if lift in ("leafwise", "record", "check"):
            return {
                "leafwise": getattr(node.fn, "__name__", "arithmetic"),
                "record": "record",
                "check": "check finite",
            }[lift]
        return f"{'map' if node.placement is SITES else 'apply'} {function_name(node.fn)}"
    if node.op is Op.GET:
        return f".{node.params['key']}"
    if node.op is Op.INPUT:
        return f"{'site' if node.placement is SITES else 'server'}.{node.params['slot']}"
    if node.op is Op.REDUCE:
        return f"{node.params['kind']} {node.name!r}"
    if node.op is Op.CONST:
        return f"constant {node.params['value']!r}"[:60]
    return f"{node.op} {node.name}".strip()


def _form(node: Node) -> str:
    """Say how a mapped function runs over the sites of a group: what it says of itself, or whether it has a
    twin.
    """
    if node.op is not Op.CALL or node.placement is not SITES or node.params["lift"] != "site":
        return ""
    told = getattr(node.fn, "how", None)
    return f"   [{told or ('stacked' if getattr(node.fn, 'rows', None) else 'site by site')}]"


def function_name(fn: Any) -> str:
    """Return a short name for a function or a callable record."""
    name = getattr(fn, "__qualname__", type(fn).__name__)
    return str(name).replace(".<locals>", "").split(".")[-1]


def _text(plan: Any) -> str:
    lines = [f"{plan.name}   plan {plan.digest[:8]}"]
    for stage in range(plan.last_stage + 1):
        where = "sites" if stage % 2 else "server"
        lines.append(f"stage {stage} at the {where}")
        for index, node in enumerate(plan.nodes):
            if plan.stage[index] != stage or node.op is Op.CONST:
                continue
            args = ", ".join(_argument(plan, arg) for arg in plan.args[index])
            lines.append(f"  %{index:<3} {_title(node)}({args})   {node.where}{_form(node)}".rstrip())
    outputs = ", ".join(f"{placement} {slot} = %{index}" for (placement, slot), index in plan.outputs.items())
    lines.append(f"outputs: {outputs}")
    if plan.fold == "fast":
        lines.append(FAST)
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
    where.
    """
    before = [] if plan.before is None else egress_rows(plan.before)
    rows = [{**row, "stage": "before"} for row in before]
    for index, node in enumerate(plan.nodes):
        if node.op is not Op.REDUCE or node.params["kind"] == "count":
            continue
        stage, kind = plan.stage[index], node.params["kind"]
        for name in [lane[0] for lane in node.params.get("lanes", ((node.name,),))]:
            size = plan.sizes.get(name)
            visible = "yes, to neighbours" if node.params.get("to") == "neighbours" else VISIBLE[kind]
            rows.append(
                {
                    "stage": f"{stage - 1}→{stage}",
                    "name": name,
                    "kind": kind,
                    "visible": visible,
                    "site_bytes": size.row_bytes if size else None,
                    "sum_bytes": size.sum_bytes if size and kind == "sum" else None,
                    "where": node.where,
                }
            )
    return rows


def egress(plan: Any) -> str:
    """Return the list of everything that leaves a site, as a table.

    "per site" is what a site alone in its process sends; "per pack" is the partial sum of a process with
    several.
    """
    lines = [
        f"{plan.name}   plan {plan.digest[:8]}",
        f"{'stage':<7}{'leaves as':<28}{'kind':<8}{'one site visible?':<20}{'per site':>12}{'per pack':>12}",
    ]
    for row in egress_rows(plan):
        lines.append(
            f"{row['stage']:<7}{row['name']:<28}{row['kind']:<8}{row['visible']:<20}"
            f"{_size(row['site_bytes']):>12}{_size(row['sum_bytes']):>12}"
        )
    lines += plan.discloses
    lines += ENVELOPE if plan.fold == "exact" else (FAST, *ENVELOPE)
    return "\n".join(lines)


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
