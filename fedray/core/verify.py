"""Legality of a graph: placements, names, and the flow of labels, which is in `flow.py`.

`verify` runs after all passes, and again on every host that receives a plan. It guards against mistakes,
hand-built graphs among them; it is no proof against a malicious author of mapped functions.
"""

from fedray.core.flow import check_flow
from fedray.core.graph import IN_REGION, Graph, Node, Op, Placement
from fedray.errors import VerifyError

SERVER, SITES, ANY = Placement.SERVER, Placement.SITES, Placement.ANY
KINDS = ("sum", "mean", "gather", "count", "mix")


def verify(graph: Graph) -> None:
    """Raise VerifyError at the first rule that the graph breaks, SecurityConflict where protections clash."""
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        _check_placement(graph, node)
        if node.op is Op.REDUCE and node.params["kind"] != "count":
            if not node.name:
                raise VerifyError(
                    f"{graph.name}, {node.where}: a reduction without a name: nothing leaves unnamed"
                )
            if IN_REGION in node.name:
                raise VerifyError(
                    f"{graph.name}, {node.where}: {node.name!r} holds {IN_REGION!r}, which stands before the "
                    "region of a sum by region: give it another name="
                )
            if node.name in seen:
                raise VerifyError(
                    f"{graph.name}: two reductions are named {node.name!r} ({seen[node.name].where} and "
                    f"{node.where}): give one another name="
                )
            seen[node.name] = node
    check_flow(graph)
    for (placement, slot), node in graph.outputs.items():
        if node.placement not in (placement, ANY):
            raise VerifyError(
                f"{graph.name}: output {slot!r} belongs to the {placement}, its value is at the "
                f"{node.placement}"
            )
        if placement is SITES and (placement, slot) not in graph.inits:
            raise VerifyError(f"{graph.name}: the sites keep {slot!r}, so Algorithm needs init_site=")


def _check_placement(graph: Graph, node: Node) -> None:
    if node.op is Op.REDUCE:
        if node.params["kind"] not in KINDS:
            raise VerifyError(f"{graph.name}, {node.where}: unknown reduction {node.params['kind']!r}")
        wanted = SITES
    elif node.op in (Op.BROADCAST, Op.SCATTER):
        wanted = SERVER
    else:
        wanted = node.placement
    is_mixed = node.op is Op.REDUCE and node.params["kind"] == "mix"
    for place, arg in enumerate(node.args):
        if is_mixed and place == 1 and arg.placement is SERVER:
            continue  # the matrix of the round
        if arg.placement not in (wanted, ANY) and wanted is not ANY:
            raise VerifyError(
                f"{graph.name}, {node.where}: {node.op} takes a value at the {wanted}, got one at the "
                f"{arg.placement} ({arg.where})"
            )
