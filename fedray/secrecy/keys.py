"""Keys of a secure sum: agreed on, derived, sealed, signed and committed to.

X25519 for agreement, HKDF-SHA-256 for every derivation with the context hash as salt, AES-256-GCM for shares,
Ed25519 for identities. A context is the hash of all that the parties must agree on: whoever was told
something else derives other keys, so masks do not cancel and shares do not open.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedray.errors import SecrecyError
from fedray.secrecy import wire
from fedray.secrecy.messages import Signed

SUITE = "fedray-secagg-v1"
KEY_BYTES = 32
NONCE_BYTES = 12
SEAL_BYTES = NONCE_BYTES + 16  # what sealing adds: nonce and tag
LOW_ORDER = frozenset(  # public keys whose agreement is zero with every key, the highest bit left out
    bytes.fromhex(key)
    for key in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # p - 1
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # p = 0
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # p + 1
    )
)

T = TypeVar("T")
Plain = str | int | None | Sequence["Plain"] | Mapping[str, "Plain"]


def sha256(*parts: bytes | memoryview) -> bytes:
    """Return the SHA-256 of parts one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def context_hash(fields: Mapping[str, Plain]) -> bytes:
    """Return the SHA-256 of canonical JSON: sorted keys, no spaces, ASCII; floats are given as hex text."""
    return sha256(json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA-256 (RFC 5869): one block, so one extraction and one expansion."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def u32(number: int) -> bytes:
    """Return 4 bytes, little-endian."""
    return number.to_bytes(4, "little")


def private_key(private: bytes) -> X25519PrivateKey:
    """Load 32 private bytes: as dear as an agreement, so a key that agrees with many is loaded once."""
    return X25519PrivateKey.from_private_bytes(private)


def public_key(private: X25519PrivateKey) -> bytes:
    """Return the 32 public bytes of a private key."""
    return private.public_key().public_bytes_raw()


def check_public(key: bytes) -> None:
    """Raise SecrecyError E_KEY on bytes that are no X25519 key, or one of low order."""
    if len(key) != KEY_BYTES or key[:-1] + bytes([key[-1] & 0x7F]) in LOW_ORDER:
        raise SecrecyError("E_KEY", "a public key is not one, or of low order")


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the X25519 shared secret. Raises SecrecyError E_KEY on a key of low order or wrong length."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecrecyError("E_KEY", "a public key is not one, or of low order") from error


def pair_seed(shared: bytes, context: bytes, one: int, other: int) -> bytes:
    """Return the seed of the mask of two sites, equal for both."""
    low, high = sorted((one, other))
    return hkdf(shared, context, b"fedray/secagg/v1/mask" + u32(low) + u32(high))


def self_seed(secret: bytes, context: bytes, site: int) -> bytes:
    """Return the seed of a site's own mask."""
    return hkdf(secret, context, b"fedray/secagg/v1/self" + u32(site))


def mask_private_key(secret: bytes, context: bytes) -> X25519PrivateKey:
    """Return the private key that follows from the secret whose shares are dealt."""
    return private_key(hkdf(secret, context, b"x25519"))


def commitment(label: str, context: bytes, secret: bytes) -> bytes:
    """Return a hash that binds to a secret of 32 random bytes and tells nothing of it."""
    return sha256(label.encode(), context, secret)


class Sealer:
    """The AEAD between a site and one other, for packages in both directions: the AAD tells them apart."""

    def __init__(self, private: X25519PrivateKey, public: bytes, context: bytes) -> None:
        self._aead = AESGCM(hkdf(agree(private, public), context, b"enc"))
        self._context = context

    def seal(self, plain: bytes, dealer: int, holder: int) -> bytes:
        """Encrypt under a random nonce of 96 bits: two messages a key."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, self._aad(dealer, holder))

    def open(self, sealed: bytes, dealer: int, holder: int) -> bytes:
        """Decrypt. Raises SecrecyError E_SHARE on anything that this dealer did not seal for this holder."""
        try:
            nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
            return self._aead.decrypt(nonce, body, self._aad(dealer, holder))
        except (InvalidTag, ValueError) as error:
            raise SecrecyError(
                "E_SHARE", f"the package of site {dealer} for {holder} does not open"
            ) from error

    def _aad(self, dealer: int, holder: int) -> bytes:
        return self._context + u32(dealer) + u32(holder)


class Identities:
    """Who signs as which site: one private key of one's own, and the pinned public keys of all.

    With a curious server nobody signs and `roster` is None: the transport vouches for senders.
    """

    def __init__(self, roster: Sequence[bytes] | None, own: Ed25519PrivateKey | None = None) -> None:
        self._own = own
        self._roster = None if roster is None else [Ed25519PublicKey.from_public_bytes(key) for key in roster]

    def pin(self, roster: Sequence[bytes]) -> None:
        """Check signatures against these public keys from now on, where they were not known at the start."""
        self._roster = [Ed25519PublicKey.from_public_bytes(key) for key in roster]

    @property
    def is_signing(self) -> bool:
        """Whether messages are signed."""
        return self._roster is not None

    def sign(self, sender: int, context: bytes, message: object) -> Signed:
        """Return a message of one's own as signed bytes."""
        body = wire.to_bytes(message)
        return Signed(
            sender,
            body,
            self._own.sign(_signed(type(message), sender, context, body))
            if self._own and self.is_signing
            else b"",
        )

    def open(self, kind: type[T], context: bytes, signed: Signed) -> T:
        """Return the record in signed bytes. Raises SecrecyError E_SIG if its sender did not sign it so."""
        if self._roster is not None:
            self.verify(kind, context, signed)
        return wire.from_bytes(kind, signed.body)

    def verify(self, kind: type, context: bytes, signed: Signed) -> None:
        """Raise SecrecyError E_SIG unless the roster's key of the sender signed this, as this, here."""
        assert self._roster is not None
        try:
            key = self._roster[signed.sender]
            key.verify(signed.signature, _signed(kind, signed.sender, context, signed.body))
        except (InvalidSignature, IndexError) as error:
            raise SecrecyError(
                "E_SIG", f"a {kind.__name__} of site {signed.sender} is not signed by it"
            ) from error


def _signed(kind: type, sender: int, context: bytes, body: bytes) -> bytes:
    return SUITE.encode() + kind.__name__.encode() + context + u32(sender) + body
