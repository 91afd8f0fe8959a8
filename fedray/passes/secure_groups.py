"""Groups: a secure sum inside each of several random groups of sites, which a robust rule can then compare.

The server adds the masked rows of each group up, opens each group's sum, and gives a rule that asks for each
site's value the mean of each group in its place. What a site hides in shrinks from the cohort to its group,
and a rule tolerates bad groups in place of bad sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from fedray import tree
from fedray.core.graph import MADE_UP, Graph, Label, Node, Op
from fedray.core.rewrite import rewrite
from fedray.errors import PassError, SecurityConflict
from fedray.passes.secure_hub import Desks, Messages, unmasked
from fedray.passes.secure_setup import Setup
from fedray.passes.secure_steps import Lane, Opened, check_cohort, opened
from fedray.passes.secure_words import OpenedSum, Read, read


def means_for_rules(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """Return the graph in which what a rule gathers is summed, and the names of these sums.

    Raises PassError where nothing asks for each site's value, SecurityConflict where it must know them again.
    """
    for node in graph.nodes:
        if node.fn is not None and getattr(node.fn, "remembers_sites", False):
            raise SecurityConflict(
                f"{graph.name}: the rule at {node.where} remembers sites from round to round, and "
                "group_secure_sum draws groups anew. Fix: another rule, such as median, or drop one"
            )
    needy = {
        arg
        for node in graph.nodes
        if getattr(node.fn, "needs", None) is Label.VISIBLE
        for arg in node.args
        if arg.op is Op.REDUCE and arg.params["kind"] == "gather"
    }
    names = tuple(node.name for node in needy)

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.params["kind"] != "gather" or node.name not in names:
            return None
        return replace(node, params={"kind": "sum", "exact": True})

    if not names:
        raise PassError(
            f"group_secure_sum found no rule in {graph.name} that compares sites: put one before it, such as "
            "median, or take secure_sum"
        )
    return rewrite(graph, rule), names


@dataclass(frozen=True)
class SumGroups:
    """Add the masked rows of each group up, modulo 2^32."""

    grants: ClassVar[Label] = Label.MASKED
    hides: ClassVar[Label] = Label.AGG

    def __call__(self, setup: Setup, rows: Messages) -> tuple[tree.Flat, ...]:
        """Return the sum of each group over the sites that delivered."""
        if setup.is_tried:
            return (_added(list(rows.values())),)
        return tuple(_added([rows[site] for site in group if site in rows]) for group in setup.groups)


def _added(rows: Sequence[Any]) -> tree.Flat:
    total = rows[0].buffer.clone()
    words = total.numpy()
    for row in rows[1:]:
        np.add(words, row.buffer.numpy(), out=words)
    return tree.Flat(total, rows[0].schema)


@dataclass(frozen=True)
class OpenGroups:
    """Open the sum of each group: what a rule asked for is a mean of each, all else adds up over them."""

    lanes: tuple[Lane, ...]
    grouped: tuple[str, ...]
    min_cohort: int
    grants: ClassVar[Label] = Label.AGG
    gives_groups: ClassVar[bool] = True

    def __call__(
        self,
        setup: Setup,
        totals: Sequence[tree.Flat],
        delivered: Messages,
        desks: Desks | None = None,
        survivors: Any = None,
        shares: Messages | None = None,
    ) -> Opened:
        """Return the sums. Raises QuorumError where a group has too few sites."""
        reads = []
        for number, total in enumerate(totals):
            group = [site for site in delivered if setup.is_tried or site in setup.groups[number]]
            check_cohort(dict.fromkeys(group), self.min_cohort)
            words = total.buffer.numpy()[0].copy()
            if desks is not None and desks.desks:
                words = unmasked(desks.desks[number], words, shares or {})
            reads.append(read(words, total.schema, len(group)))  # type: ignore[arg-type]
        found = opened(combined(reads), self.lanes)
        names = MADE_UP if setup.is_tried else [f"group{n}" for n in range(len(reads))]
        means = {
            name: {names[n]: one.sums[name].divided_by(one.num_sites) for n, one in enumerate(reads)}
            for name in self.grouped
        }
        return replace(found, sums={**found.sums, **means})


def combined(reads: Sequence[Read]) -> Read:
    """Return what several groups' sums come to."""
    first = reads[0]
    sums = {}
    for name, one in first.sums.items():
        leaves = [
            reduce(np.add, [each.sums[name].leaves[i] for each in reads]) for i in range(len(one.leaves))
        ]
        weights = [each.sums[name].own_weight for each in reads]
        weight = None if weights[0] is None else float(sum(w for w in weights if w is not None))
        sums[name] = OpenedSum(one.values, one.sections, leaves, weight)
    cut = {name: sum(each.num_cut[name] for each in reads) for name in first.num_cut}
    return Read(sums, sum(each.num_sites for each in reads), cut)
