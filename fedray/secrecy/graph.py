"""Who masks with whom, and how many shares rebuild a secret.

Up to 64 sites every pair shares a mask. Beyond, each site has k neighbours on a ring in random order (a
Harary graph), and k and the threshold t follow from what may go wrong: `topology` looks for the smallest k
for which

- no honest site has so many corrupt neighbours that they and the server could rebuild its secrets (2^-40),
- corrupt and lost sites do not cut the ring of honest ones in two (2^-40), and
- every site keeps t living neighbours, or the round is given up (2^-30),

each over all sites, by exact tails of the hypergeometric distribution.
Source: Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedray.secrecy.keystream import OneTimeKey, keystream

MIN_SITES = 3  # with two, the sum and one's own vector are the other's
MAX_FULL = 64
SECURITY_BITS, ABORT_BITS = 40, 30

Server = Literal["curious", "active"]


@dataclass(frozen=True, slots=True)
class Topology:
    """`degree` neighbours of a site, None for all others, and the number of shares that rebuild a secret."""

    degree: int | None
    threshold: int


def topology(num_sites: int, server: Server, corrupt: float = 0.1, lost: float = 0.1) -> Topology:
    """Return the graph and threshold for a cohort of which a share may be corrupt and a share be lost.

    A curious server follows the protocol, an active one may tell two halves of the sites different things.
    Raises: ValueError under 3 sites.
    """
    if num_sites < MIN_SITES:
        raise ValueError(f"a secure sum needs {MIN_SITES} sites, not {num_sites}")
    if num_sites > MAX_FULL:
        for degree in range(2, num_sites - 1, 2):
            threshold = smallest_threshold(num_sites, degree, server, corrupt, lost)
            if threshold:
                return Topology(degree, threshold)
    return Topology(None, num_sites // 2 + 1 if server == "curious" else 2 * num_sites // 3 + 1)


def smallest_threshold(
    num_sites: int, degree: int, server: Server, corrupt: float, lost: float
) -> int | None:
    """Return the smallest safe threshold that still lets a round end, None where this degree has none."""
    num_corrupt, num_lost = (math.ceil(share * num_sites - 1e-9) for share in (corrupt, lost))
    if log2_cut(num_sites, num_corrupt + num_lost, degree) > -SECURITY_BITS:
        return None
    others = num_sites - 1
    bad = _log2_pmf(others, num_corrupt, degree)  # by the number of corrupt neighbours
    living = _log2_pmf(others, others - num_lost, degree)
    for threshold in range(1, degree + 1):
        # an active server may collect both kinds of shares, one from each half of the honest neighbours
        harmful = 2 * threshold - degree if server == "active" else threshold
        if harmful > 0 and math.log2(num_sites) + _log2_sum(bad[harmful:]) <= -SECURITY_BITS:
            fails = math.log2(num_sites) + _log2_sum(living[:threshold])
            return threshold if fails <= -ABORT_BITS else None
    return None


def log2_cut(num_sites: int, num_gone: int, degree: int) -> float:
    """Return the log of a bound on the chance that taking sites away cuts the ring.

    A cut needs two gaps of degree / 2 neighbouring sites; the union over where one begins is counted.
    """
    half = degree // 2
    return (
        math.log2(num_sites)
        + _log2_choose(num_sites - half, num_gone - half)
        - _log2_choose(num_sites, num_gone)
    )


def log2_choices(num_sites: int, num_withheld: int) -> float:
    """Return the bits by which a server can steer the graph by withholding up to so many revealed numbers."""
    return math.log2(sum(math.comb(num_sites, withheld) for withheld in range(num_withheld + 1)))


def _log2_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _log2_pmf(population: int, marked: int, drawn: int) -> list[float]:
    """Return the log of the chance of 0, 1, ..., drawn marked ones among the drawn."""
    total = _log2_choose(population, drawn)
    return [
        _log2_choose(marked, x) + _log2_choose(population - marked, drawn - x) - total
        for x in range(drawn + 1)
    ]


def _log2_sum(logs: Sequence[float]) -> float:
    most = max(logs, default=-math.inf)
    return most if most == -math.inf else most + math.log2(sum(2 ** (log - most) for log in logs))


def holders(members: Sequence[int], degree: int | None, seed: bytes = b"") -> dict[int, tuple[int, ...]]:
    """Return who holds the shares of each member, in the order of the places of the shares.

    Full graph (degree None, or no more members than that): all members, the dealer too. Ring: its neighbours
    by distance along the ring, which `seed` of 32 bytes puts in order. All who know the seed know the graph.
    """
    members = sorted(members)
    if degree is None or len(members) <= degree + 1:
        return {member: tuple(members) for member in members}
    ring = shuffled(members, seed)
    offsets = [step * sign for step in range(1, degree // 2 + 1) for sign in (1, -1)]
    return {
        member: tuple(ring[(place + offset) % len(ring)] for offset in offsets)
        for place, member in enumerate(ring)
    }


def shuffled(members: Sequence[int], seed: bytes) -> list[int]:
    """Return the members in the order of 64-bit words of the seed's keystream: uniform up to n^2 / 2^64."""
    order = np.argsort(keystream(OneTimeKey(seed), len(members), "<u8"), kind="stable")
    return [members[place] for place in order.tolist()]
