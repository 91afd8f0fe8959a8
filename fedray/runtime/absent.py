"""Absent: the sites whose node is not in the cluster. They are asked like others, and fail at once."""

import logging
from collections.abc import Mapping, Sequence

from fedray.errors import AWAY, SiteError

logger = logging.getLogger(__name__)
MOST_NAMED = 5

class Absent:
    """Who is away as far as is known, and who was never there."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.sites: set[str] = set()
        self._met: set[str] = set(names)

    def met(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Take who has told the number of its rows; return it."""
        self._met = set(sizes)
        self.sites = set(self.names - sizes.keys())
        return dict(sizes)

    def guessed(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Return the rows of each site, as many as is usual for those that were never met: else nobody that
        is drawn by its rows would ever be asked.
        """
        if not sizes or self._met.issuperset(self.names):
            return sizes
        usual = max(1, sum(sizes.values()) // len(sizes))
        return {**dict.fromkeys(self.names - self._met, usual), **sizes}

    def note(self, failures: Sequence[SiteError], delivered: Sequence[str]) -> bool:
        """Take what became of sites that were asked; tell whether one takes part that was never met."""
        self.sites |= {failure.site for failure in failures if failure.kind == AWAY}
        self.sites.difference_update(delivered)
        return not self._met.issuperset(delivered)


def absences(sites: Sequence[str], round: int) -> list[SiteError]:
    """Return what stands for sites that are not asked, since they are away."""
    return [SiteError(site, round, 1, AWAY) for site in sites]


def tell_away(round: int, before: set[str], now: set[str]) -> set[str]:
    """Say whose node went and whose came; return whose is away now."""
    for told, sites in (("away, and count as failed until their node is back", now - before),
                        ("there and take part from now on", before - now)):  # fmt: skip
        if sites:
            named = ", ".join(sorted(sites)[:MOST_NAMED]) + ", ..." * (len(sites) > MOST_NAMED)
            logger.warning("round %d: %d sites are %s (%s)", round, len(sites), told, named)
    return now
