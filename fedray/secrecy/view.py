"""What the setup of a secure sum comes to, derived alike by server and sites: keys, holders, contexts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedray.errors import SecrecyError
from fedray.secrecy import keys, wire
from fedray.secrecy.graph import holders
from fedray.secrecy.keys import SUITE, context_hash, sha256, u32
from fedray.secrecy.messages import Advert, Directory, Reveals
from fedray.secrecy.shamir import SECRET_BYTES
from fedray.secrecy.terms import Terms

HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class View:
    """What the setup came to: who is in it with which keys, and who holds whose shares."""

    digest: bytes
    adverts: Mapping[int, Advert]
    holders: Mapping[int, tuple[int, ...]]


def view_of(terms: Terms, adverts: Mapping[int, Advert], directory: Directory, reveals: Reveals) -> View:
    """Return what both sides derive from the directory and the revealed numbers.

    Raises: SecrecyError E_KEY if a number is not the one committed to.
    """
    digest = sha256(terms.context, wire.to_bytes(directory), wire.to_bytes(reveals))
    if terms.topology.degree is None:
        return View(digest, adverts, holders(list(adverts), None))
    for site, number in reveals.numbers.items():
        if site not in adverts or graph_commitment(terms, number) != adverts[site].graph_commitment:
            raise SecrecyError("E_KEY", f"site {site} reveals another number than it committed to")
    # the hub has seen all commitments before any number, and each site's own is in it: nobody chose this seed
    seed = sha256(terms.context, *(reveals.numbers[site] for site in sorted(reveals.numbers)))
    return View(digest, adverts, holders(list(reveals.numbers), terms.topology.degree, seed))


def graph_commitment(terms: Terms, number: bytes) -> bytes:
    """Return the commitment to a site's part in the order of the ring."""
    return keys.commitment("graph", terms.context, number)


def round_context(view: bytes, members: Collection[int], round: int, model_hash: bytes) -> bytes:
    """Return the salt of a round's masks: the view of the setup, who is in it, the round and its model."""
    return context_hash(
        {
            "suite": SUITE,
            "view": view.hex(),
            "members": sorted(members),
            "round": round,
            "model": model_hash.hex(),
        }
    )


def share_hash(view: bytes, at: int, dealer: int, holder: int, share: bytes) -> bytes:
    """Return the hash by which a dealer answers for one share, the `at`-th of a package."""
    return sha256(view, u32(at), u32(dealer), u32(holder), share)


def sealed_size(num_rounds: int) -> int:
    """Return the bytes of a package before its hashes."""
    return keys.SEAL_BYTES + 2 * SECRET_BYTES * num_rounds


def package_size(num_rounds: int) -> int:
    """Return the bytes of a package: two shares a round, sealed, and their hashes."""
    return sealed_size(num_rounds) + 2 * HASH_BYTES * num_rounds
