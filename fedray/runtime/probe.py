"""Probe: has a site the same bits alone and beside others? Tried on made-up sites before the first round.

Twins (`fedray/rows.py`) promise it, and equal bits in every layout rest on it. Each kind of processor keeps
the promise by itself, so the plan's own shapes are tried where the run starts, and the run says what was
found.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedray import tree
from fedray.core.graph import MADE_UP, Op, Placement
from fedray.rng import Key
from fedray.runtime import devices
from fedray.runtime.federation import HostSpec, in_process_transport
from fedray.runtime.memory import sites_together
from fedray.runtime.pack import Pack
from fedray.runtime.plan import Plan
from fedray.runtime.region import Region
from fedray.runtime.round import Aggregator
from fedray.runtime.schedule import Synchronous
from fedray.runtime.sizes import MISHAPS, Given
from fedray.runtime.training import Training

SIZES = (70, 33, 5)  # rows: with batches of 32 a site each that takes three steps, two and one


def row_invariant(plan: Plan, state: Any, blank: Any, device: str = devices.CPU) -> bool | None:
    """Tell whether the plan's twins give a site the same bits alone and among others.

    On a GPU it is what was found for these shapes and no promise.
    None where no function of the plan has a twin, models are so large that packs do not compute as many sites
    together, or made-up rows cannot go through.
    """
    largest = max((tree.nbytes(leaf) for _, leaf in tree.leaves(state)), default=0)
    is_large = sites_together(len(SIZES), largest) < len(SIZES)
    if not has_twin(plan) or is_large or not hasattr(blank, "blank"):
        return None
    plan = replace(plan, fold="exact")  # a fast fold depends on groups by itself
    sites = {MADE_UP[1 + i]: Given(made_up(blank, rows, i)) for i, rows in enumerate(SIZES)}
    try:
        alone = _outcome(plan, state, sites, 1, device)
        if tree.equal(alone, _outcome(plan, state, sites, len(sites), device)):
            return True
        is_repeatable = tree.equal(
            alone, _outcome(plan, state, sites, 1, device)
        )  # else the plan draws on its own
    except MISHAPS:
        return None
    return False if is_repeatable else None


def has_twin(plan: Plan) -> bool:
    """Tell whether sites are computed together by a function of the plan."""
    calls = (node for node in plan.nodes if node.placement is Placement.SITES and node.op is Op.CALL)
    return any(getattr(node.fn, "rows", None) is not None for node in calls)


def made_up(blank: Any, rows: int, number: int) -> Any:
    """Return a site of random rows with the columns of a blank one; labels and whole numbers are 0 or 1."""
    generator = Key(number, 0, "probe").generator()
    site = blank.blank(rows)
    columns = {}
    for name, column in site.items():
        if name != "y" and column.is_floating_point():
            columns[name] = torch.randn(column.shape, generator=generator).to(column.dtype)
        else:
            columns[name] = torch.randint(0, 2, column.shape, generator=generator).to(column.dtype)
    return site.with_columns(**columns)


def _outcome(
    plan: Plan, state: Any, sites: Mapping[str, Given], group_size: int, device: str
) -> dict[str, Any]:
    """Return what a round of these sites comes to: the server's state, its figures and the sites' states."""
    spec = HostSpec("probe", sites, group_size=group_size, device=device)
    transport = in_process_transport()([spec])
    aggregator = Aggregator(Region("probe", {spec.name: spec.all_sites}, transport))
    aggregator.hello()
    aggregator.start(Training(plan, Synchronous(quorum=1.0, on_failure="raise"), 0, "probe"), state)
    record = aggregator.run_round(0)
    aggregator.root.commit([])
    pack = transport.hosts[spec.name]
    assert isinstance(pack, Pack)
    kept = {slot: {site: pack.state_of(site, slot) for site in sites} for slot in plan.slots}
    return {"state": aggregator.state, "metrics": record.metrics, "sites": kept}
