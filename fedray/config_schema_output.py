"""Schemas of what tells of a run: trackers, the page, figures for Prometheus."""

from dataclasses import dataclass


@dataclass
class Metrics:
    """Figures for Prometheus on the nodes of Ray."""

    enabled: bool | None = None
    """Export rounds, bytes, waits and drops as ray_fedray_*; null: on a cluster that runs already."""
    sites: bool = False
    """Name sites in them; the page of a node's metrics port can be read without a token."""


@dataclass
class Jsonl:
    """Lines of JSON in the run directory, and the live view."""

    live: bool = True
    """Show the live view in a terminal."""


@dataclass
class Page:
    """The report of a run, one HTML file."""

    html: bool = True
    """Write report.html (needs the extra `report`)."""
