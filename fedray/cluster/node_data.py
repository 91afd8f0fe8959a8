"""A site's own folder: openers that read the site's data where its node keeps them.

The path is that of the site map or, where it names none, of the node's environment variable FEDRAY_SITE_DATA:
the folder of the node's data, with a folder of the site's name in it where the node holds several sites. An
opener that can read another folder says so by a method `at(path)`, which returns the opener that does.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.cluster.site_map import Site
from fedray.errors import ConfigError

VARIABLE = "FEDRAY_SITE_DATA"


@dataclass(frozen=True, slots=True)
class AtNode:
    """Opens a site from the path of the map, of the node, or of the data set, whichever is given first."""

    site: str
    opener: Any
    path: str | None = None

    @property
    def is_mapped(self) -> bool:
        """Tell whether the rows are in files and need not be kept."""
        return bool(getattr(self.opener, "is_mapped", False))

    def __call__(self) -> Any:
        """Open the site."""
        path = self.path or own_path(self.site)
        return (self.opener.at(path) if path else self.opener)()


def own_path(site: str) -> str | None:
    """Return where this node keeps a site's data, or None where its environment does not say."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    below = Path(folder) / site
    return str(below) if below.is_dir() else folder


def read_there(openers: Mapping[str, Callable[[], Any]], sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites whose data are read from a path on their node, which must be there before a run."""
    return {site: sites[site] for site, opener in openers.items()
            if site in sites and hasattr(opener, "at")}


def at_node(openers: Mapping[str, Callable[[], Any]], sites: Mapping[str, Site]
            ) -> Mapping[str, Callable[[], Any]]:
    """Let every site be opened from its own path, where the data are read from one. Raises ConfigError where
    they are not, and the map has a path.
    """
    first = next(iter(openers))
    if hasattr(openers[first], "at"):
        return {site: AtNode(site, opener, sites[site].data) for site, opener in openers.items()}
    if with_path := [site for site in openers if sites[site].data]:
        raise ConfigError(f"the site map gives sites.{with_path[0]}.data, and the sites of this data set are "
                          "not read from a path. Fix: leave data out of the map, or take data that are, such "
                          "as fr.data.at_sites(contract)")
    return openers
