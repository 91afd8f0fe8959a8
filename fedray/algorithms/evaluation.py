"""Federated evaluation as a graph of its own: sums leave as sums, and per-site records are named and listed.

What a site measures are numbers and tensors that add up over sites; the server turns the totals into
metrics. A site's own record (its AUROC, its rows) is gathered by name; a real federation may refuse that by
policy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.learn import metrics


@dataclass(frozen=True)
class OnSplit:
    """Apply a function of (params, rows) to one split of a site's data."""

    fn: Callable[[Any, Any], Any]
    split: str

    def __call__(self, params: Any, data: Any) -> Any:
        """Return fn(params, the rows of the split)."""
        return self.fn(params, data.view(self.split) if hasattr(data, "view") else data)


SPLITS = ("train", "valid", "test")
UNDEFINED = -1e300  # stands for "not defined" on the way up, so that every site sends the same bytes


@dataclass(frozen=True)
class Fixed:
    """Replace None by a number, which `as_list` turns into NaN at the server."""

    fn: Callable[[Any, Any], Mapping[str, float | None]]

    def __call__(self, params: Any, rows: Any) -> dict[str, float]:
        """Return the record of a site, every value a float."""
        return {
            name: UNDEFINED if value is None else float(value)
            for name, value in self.fn(params, rows).items()
        }


def as_list(found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return one mapping per site, sorted by id, with the id under `site` and NaN where a value is
    undefined.
    """
    return [
        {
            "site": site,
            **{name: math.nan if value == UNDEFINED else value for name, value in found[site].items()},
        }
        for site in sorted(found)
    ]


def _measured(personal: Any, params: Any, site: Any) -> Any:
    """Return the model that is measured at a site."""
    if callable(personal):
        return personal(params, site)
    return site.state if personal else params


def evaluation(
    model: Any,
    *,
    split: str = "valid",
    per_site: bool = True,
    personal: bool | Callable[[Any, Any], Any] = False,
    bins: int = 1000,
) -> fr.Algorithm:
    """Evaluate the global parameters (or each site's own, with `personal`) on one split of all sites.

    `personal=True` takes what a site keeps for its model; an algorithm's `personal` makes it from that and
    from the global parameters.

    The server's input is the parameters. Metrics: {"pooled": {...}, "sites": [...]}; the pooled ones come
    from sums over sites alone, so AUROC has the stated error of its `bins`. Without `per_site` nothing is
    gathered.
    """
    if split not in SPLITS:
        raise ValueError(f"evaluation: split={split!r} is none of {', '.join(SPLITS)}")
    measure, record = (
        OnSplit(metrics.evaluate(model, bins=bins), split),
        OnSplit(Fixed(metrics.site_record(model)), split),
    )

    def round(server: Any, site: Any) -> fr.Outputs:
        params = _measured(personal, fr.broadcast(server), site)
        total = fr.sum(fr.map(measure, params, site.data), name="evaluation")
        sites: Any = []
        if per_site:
            sites = fr.apply(as_list, fr.gather(fr.map(record, params, site.data), name="site_metrics"))
        return fr.Outputs(
            server=server, metrics={"pooled": fr.apply(metrics.summarise, total), "sites": sites}
        )

    return fr.Algorithm(
        lambda params: params,
        round,
        init_site=(lambda params: params) if personal else None,
        name=f"evaluation on {split}",
    )
