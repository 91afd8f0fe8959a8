"""Federated evaluation as a graph of its own: sums leave as sums, and per-site records are named and listed.

`measure(params, rows)` returns numbers and tensors that add up over sites; `summarise` turns the totals into metrics.
`record(params, rows)` returns one site's own numbers; a real federation may refuse this gather by policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fedray as fr


@dataclass(frozen=True)
class OnSplit:
    """Apply a function of (params, rows) to one split of a site's data."""

    fn: Callable[[Any, Any], Any]
    split: str

    def __call__(self, params: Any, data: Any) -> Any:
        """Return fn(params, the rows of the split)."""
        return self.fn(params, data.view(self.split) if hasattr(data, "view") else data)


def as_list(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one mapping per site, sorted by id, with the id under `site`."""
    return [{"site": site, **found[site]} for site in sorted(found)]


def evaluation(measure: Callable[[Any, Any], Any], summarise: Callable[[Any], Mapping[str, float]], *,
               split: str = "valid", record: Callable[[Any, Any], Mapping[str, float]] | None = None,
               personal: bool = False) -> fr.Algorithm:
    """Evaluate the global parameters (or each site's own, with `personal`) on one split of all sites.

    The server's input is the parameters. Metrics: {"pooled": ..., "sites": [...]}, sites empty without `record`.
    """
    def round(server: Any, site: Any) -> fr.Outputs:
        params = site.state if personal else fr.broadcast(server)
        total = fr.sum(fr.map(OnSplit(measure, split), params, site.data), name="evaluation")
        sites: Any = []
        if record is not None:
            sites = fr.apply(as_list, fr.gather(fr.map(OnSplit(record, split), params, site.data), name="site_metrics"))
        return fr.Outputs(server=server, metrics={"pooled": fr.apply(summarise, total), "sites": sites})
    return fr.Algorithm(lambda params: params, round, init_site=(lambda params: params) if personal else None,
                        name=f"evaluation on {split}")
