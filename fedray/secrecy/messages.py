"""What the parties of a secure sum send each other, step by step (docs/secure-sums.md has the table).

Sites are numbers: their places in the sorted cohort of the terms. What a site sends is `Signed` bytes of a
record; what the server sends is a plain record, of which sites believe only what others have signed.
"""

from dataclasses import dataclass

MASK, SELF = 0, 1  # which secret a share is of; a package holds a round's two in this order


@dataclass(frozen=True, slots=True)
class Signed:
    """A record's bytes with a signature of who sends it; the signature is empty with a curious server."""

    sender: int
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Advert:
    """A1, site to server: public keys and commitments to what is shown later; of lists, one entry a round."""

    seal_key: bytes  # X25519, opens shares
    mask_keys: tuple[bytes, ...]  # X25519, agrees on masks
    self_commitments: tuple[bytes, ...]
    graph_commitment: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """A2, server to sites: every advert that came."""

    adverts: dict[int, Signed]


@dataclass(frozen=True, slots=True)
class Reveal:
    """A2r, site to server, where the graph is a ring: the number that was committed to."""

    number: bytes


@dataclass(frozen=True, slots=True)
class Reveals:
    """A2r, server to sites: every number that came; they order the ring."""

    numbers: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Deal:
    """A3, site to server: packages of one length, in the order of the holders of its shares.

    A package is sealed shares for its holder (of every round the masking key's, then the self mask's), then
    the hashes of these shares, which the dealer answers for.
    """

    packages: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """A3, server to one site: its packages by dealer."""

    packages: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Opened:
    """A3c, site to server: the dealers whose packages did not open or do not fit their hashes."""

    complaints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """End of the setup, server to sites: who masks with whom (U1)."""

    sites: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Masked:
    """A4, site to server, beside the masked words: their SHA-256."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Survivors:
    """A5, server to sites: whose words are in the sum (U2), who of the members is not, and the hashes."""

    sites: tuple[int, ...]
    dropped: tuple[int, ...]
    digests: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Confirm:
    """A6, site to server: the hash of the survivors that it was shown."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Confirmations:
    """A6, server to sites: what the others have signed."""

    confirms: dict[int, Signed]


@dataclass(frozen=True, slots=True)
class Unmask:
    """A7, site to server: one share of each dealer among the members, in ascending order of dealers.

    It is of the self mask where the dealer survived, else of the masking key: there is no room for both.
    """

    shares: bytes
