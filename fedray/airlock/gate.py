"""The gate: a pass that lets each site test its update, and withhold it.

    passes=[airlock(withhold=[RowsBehind(32)], report=[Membership(0.2)]), fr.passes.topk(0.01)]

The pass adds one function at the sites, beside the way of the update, which stays as it was. It reads the
model that the site was sent, what training came to, the site's data, and what the algorithm is about to send
under the name "delta" (where it sends something else made of the update: the update itself). A test that
fails under `withhold` loses the site for the round: nothing of that stage leaves, it is not counted, and what
it keeps does not move on. The server's record says "withheld" and no more. What was found is logged at the
site (DEBUG: where Ray starts a site's process, lines above travel to the driver) and kept in its slot
"airlock", which never leaves.

It is a pass and no wrapper of local training, for it sees which trainings leave: Ditto's own model, or the
step that adapts a model for evaluation, is nobody's business. It is put before all other passes: what
compression or noise would have hidden is not counted, while noise inside of training is.

The gate has no twin. A failure is one site's, and a twin that raises sets its whole group apart.

What it does not do: that a site withholds tells the server one bit about it, in each round, and no epsilon
covers that bit. So where noise is to protect from the server, tests of values may only report: `flow.py`
refuses the plan else.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedray.airlock.checks import Membership, Norm, Rebuilt, RowsBehind
from fedray.airlock.leaving import Finding, Leaving, Test
from fedray.core.graph import CROSSING, MADE_UP, Claim, Graph, Node, Op, Placement, toposort
from fedray.core.rewrite import Pass
from fedray.errors import PassError, Withheld
from fedray.frozen import UPDATE

SITES = Placement.SITES
SLOT = "airlock"
BIT = "that a site withholds is a bit about it in each round, which no epsilon covers"
UNKNOWN = -1e300  # stands for what could not be measured in what a site keeps: NaN equals nothing
NOTE = "Sites test their updates before they leave, and may withhold them: the server learns who did."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Test one site's update; raise Withheld where it must not leave."""

    training: Any
    withhold: tuple[Test, ...]
    report: tuple[Test, ...]

    @property
    def tells(self) -> tuple[str, ...]:
        """What is found in patients' rows, and told by who withholds; the number of rows is public."""
        return tuple(test.name for test in self.withhold if not isinstance(test, RowsBehind))

    def __call__(self, params: Any, update: Any, delta: Any, data: Any, rng: Any) -> dict[str, float]:
        """Return what each test measured, UNKNOWN where it could not."""
        update = replace(update, delta=delta)
        leaving = Leaving(training=self.training, params=params, update=update, data=data, rng=rng)
        strict = [test.check(leaving) for test in self.withhold]
        told = [test.check(leaving) for test in self.report]
        if rng.site not in MADE_UP:  # whose rows are made up, before the run
            _let_pass(strict, told, rng)
        return {
            found.name: UNKNOWN if math.isnan(found.value) else float(found.value)
            for found in (*strict, *told)
        }


def _let_pass(strict: Sequence[Finding], told: Sequence[Finding], rng: Any) -> None:
    """Log what was found, at the site; raise Withheld where a strict test failed."""
    for finding in (*strict, *told):
        verdict = "" if finding.is_ok else ": failed"
        _log.debug("%s, round %d: %s%s", rng.site, rng.round, finding, verdict)
    if failed := [str(finding) for finding in strict if not finding.is_ok]:
        raise Withheld(f"withheld: {'; '.join(failed)}")


def airlock(withhold: Sequence[Test] = (), report: Sequence[Test] = ()) -> Pass:
    """Let sites test their updates, and withhold those that fail a test of `withhold`.

    Raises PassError where no update of a known local training leaves, or where another pass has changed what
    leaves. Where `withhold` would tell an untrusted server what differential privacy hides, the plan is
    refused (SecurityConflict).
    """
    names = [test.name for test in (*withhold, *report)]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"airlock: tests {names}: give at least one, each once, under withhold or report")

    claim = Claim(by="airlock", text=f"before an update leaves, its site tests: {', '.join(names)}", but=BIT)

    def run(graph: Graph) -> Graph:
        added = {}
        for number, (call, leaves) in enumerate(_leaving(graph)):
            gate = Gate(training=training_of(call), withhold=tuple(withhold), report=tuple(report))
            params, data, rng = call.args[:3]
            settings = {"lift": "site", "kwargs": ()}
            slot = f"{SLOT}.{number}" if number else SLOT
            added[SITES, slot] = Node(
                Op.CALL, SITES, (params, call, leaves, data, rng), gate, settings, where=call.where
            )
        return replace(
            graph,
            outputs={**graph.outputs, **added},
            inits={**graph.inits, **dict.fromkeys(added, _nothing)},
            name=f"{graph.name} + airlock",
            note="\n".join(filter(None, [graph.note, NOTE])),
            claims=(*graph.claims, claim),
        )

    run.__name__ = "airlock"
    return run


def _nothing(server: Any) -> None:
    return None


def _leaving(graph: Graph) -> list[tuple[Node, Node]]:
    """Return each local training whose update leaves, and the value of it that is tested."""
    found: dict[Node, Node] = {}
    others: dict[Node, Node] = {}
    for node in graph.reductions:
        deltas = _deltas(node)
        if not deltas:
            continue
        if node.name == UPDATE and node.placement is Placement.SERVER:
            if node.args[0].params.get("lift") != "check":
                raise PassError(
                    f"airlock: another pass has changed {node.name} ({node.where}): put airlock first"
                )
            found[deltas[0].args[0]] = node.args[0]  # of several trainings in a row, the first starts
        others |= {delta.args[0]: delta for delta in deltas}
    if not others:
        raise PassError(
            f"airlock: no update of a local training leaves in {graph.name} (it must be mapped as "
            "local(params, data, rng)): leave the airlock out (policy.airlock=null)"
        )
    if found:
        inside = {node for leaves in found.values() for node in _at_sites([leaves])}
        others = {call: delta for call, delta in others.items() if call not in inside}
    return list({**found, **others}.items())


def _deltas(node: Node) -> list[Node]:
    """Return the updates of local trainings that a reduction is made of, in order."""
    return [
        step
        for step in _at_sites(node.args)
        if step.op is Op.GET and step.params["key"] == "delta" and training_of(step.args[0]) is not None
    ]


def training_of(call: Node) -> Any:
    """Return the local training that a node calls, also inside of a budget or of noise; None else."""
    fn: Any = call.fn
    while fn is not None and not hasattr(fn, "row_losses"):
        fn = getattr(fn, "inner", getattr(fn, "training", None))
    return fn


def _at_sites(nodes: Sequence[Node]) -> list[Node]:
    """Return what values are computed from at the sites without another message, arguments first."""
    order = toposort([node for node in nodes if node.placement is SITES])
    inside = set(nodes)
    for step in reversed(order):
        if step in inside and step.op not in CROSSING:
            inside.update(step.args)
    return [step for step in order if step in inside and step.op not in CROSSING]


def of_policy(
    min_rows: int | None = 32,
    max_rebuilt: int | None = None,
    membership: float | None = 0.2,
    max_update_l2: float | None = None,
    report: Sequence[str] = ("membership",),
) -> Pass:
    """Make the airlock of a site's policy; `report` names the settings whose tests only report.

    Raises ValueError on a name that is no setting.
    """
    tests: Mapping[str, Test | None] = {
        "min_rows": None if min_rows is None else RowsBehind(min_rows),
        "max_rebuilt": None if max_rebuilt is None else Rebuilt(max_rebuilt),
        "membership": None if membership is None else Membership(membership),
        "max_update_l2": None if max_update_l2 is None else Norm(max_update_l2),
    }
    if unknown := sorted(set(report) - set(tests)):
        raise ValueError(f"airlock: report={unknown} are none of {', '.join(tests)}")
    strict = [test for name, test in tests.items() if test is not None and name not in report]
    told = [test for name, test in tests.items() if test is not None and name in report]
    return airlock(withhold=strict, report=told)
