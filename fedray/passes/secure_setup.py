"""What the parties of one secure sum agree on before it begins: who masks with whom, and by which rules."""

import hashlib
import math
from dataclasses import dataclass

from fedray.core.graph import MADE_UP
from fedray.errors import SecrecyError
from fedray.passes.secure_words import Agreed
from fedray.secrecy.encoding import Encoding
from fedray.secrecy.graph import MAX_FULL, Server, Topology, topology
from fedray.secrecy.terms import Terms


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What both sides of the protocol are told by the pass."""

    server: Server
    threshold: float | int | None
    min_cohort: int
    num_groups: int
    is_ring: bool  # the round has the step in which a ring of more than 64 sites is ordered
    has_dp: bool
    is_kept: bool  # sites keep values from round to round
    label: str  # of this sum among those of a round, and of the round among programs
    second_set: bool = False  # a model may be summed over one other set: see Policy


@dataclass(frozen=True)
class Setup:
    """The facts of one sum that the server announces: public, and part of the context of every key.

    `groups` are the sites, in ascending order, that mask with one another.
    """

    run: str
    round: int
    groups: tuple[tuple[str, ...], ...]
    agreed: str

    @property
    def is_tried(self) -> bool:
        """Tell whether sites are made up to try the plan: there are too few, and nothing to hide."""
        return all(site in MADE_UP for group in self.groups for site in group)

    def group_of(self, site: str) -> int:
        """Return the number of a site's group. Raises SecrecyError E_COHORT where it is in none."""
        for number, group in enumerate(self.groups):
            if site in group:
                return number
        raise SecrecyError("E_COHORT", f"the server announces a sum without {site}, which it asks")

    def terms(self, rules: Rules, number: int) -> Terms:
        """Return what all sites of a group agree on, derived alike at every party."""
        cohort = self.groups[number]
        return Terms(
            run_id=f"{self.run}/{rules.label}/{number}",
            cohort=cohort,
            encoding=Encoding(num_sites=len(cohort), bound=1.0),  # rows come encoded: see secure_words.py
            num_words=None,
            topology=_topology(rules, len(cohort)),
            server=rules.server,
            min_cohort=rules.min_cohort,
            first_round=self.round,
            agreed=(("bounds", self.agreed),),
        )


def _topology(rules: Rules, num_sites: int) -> Topology:
    """Return who masks with whom, and how many shares rebuild a secret.

    Raises SecrecyError E_THRESHOLD where so few would that two halves of the sites could be told different
    things (active), or that half of the sites could rebuild all secrets.
    """
    if rules.is_ring and num_sites > MAX_FULL:
        return topology(num_sites, rules.server)
    least = (num_sites // 2 if rules.server == "curious" else 2 * num_sites // 3) + 1
    if rules.threshold is None:
        return Topology(None, least)
    is_share = rules.threshold < 1  # else a number of sites, which a configuration gives as a float
    asked = math.floor(rules.threshold * num_sites) + 1 if is_share else int(rules.threshold)
    if not least <= asked <= num_sites:
        raise SecrecyError(
            "E_THRESHOLD",
            f"threshold={rules.threshold} is {asked} of {num_sites} sites: give {least} at least",
        )
    return Topology(None, asked)


def digest_of(agreed: Agreed) -> str:
    """Return the hash of the bounds by which sites encode."""
    told = (agreed.num_sites, sorted(agreed.bounds.items()), sorted(agreed.weights.items()))
    return hashlib.sha256(repr(told).encode()).hexdigest()
