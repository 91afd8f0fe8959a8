"""Keys that two sites derive alike, packages that only their holder opens, names that nobody else signs."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedray.errors import SecrecyError
from fedray.secrecy import keys
from fedray.secrecy.keys import Identities, Sealer
from fedray.secrecy.keystream import OneTimeKey, keystream
from fedray.secrecy.messages import Masked, Reveal, Signed

ONE, TWO = keys.private_key(b"\x01" * 32), keys.private_key(b"\x02" * 32)
CONTEXT = keys.sha256(b"fedray-kat")


def test_known_answer_k2():
    shared = keys.agree(ONE, keys.public_key(TWO))
    seed = keys.pair_seed(shared, CONTEXT, 3, 7)
    assert CONTEXT.hex() == "f1aa5f6f240b58fb33a5e2f7ecac8b6eb1b37eb6dfe8dceadab870355ced0c19"
    assert shared.hex() == "2ed76ab549b1e73c031eb49c9448f0798aea81b698279a0c3dc3e49fbfc4b953"
    assert seed.hex() == "360b16ae410aa3eab6cbea076d28aef9a0ca9e9b38b2321922861ee64a0c8c07"
    assert keystream(OneTimeKey(seed), 4).tolist() == [0xD05D4024, 0x869C36FF, 0x464CE9E7, 0xB11C02B7]


def test_both_sites_derive_one_seed():
    mine = keys.pair_seed(keys.agree(ONE, keys.public_key(TWO)), CONTEXT, 7, 3)
    theirs = keys.pair_seed(keys.agree(TWO, keys.public_key(ONE)), CONTEXT, 3, 7)
    assert mine == theirs


def test_derivation_is_hkdf():
    for secret in (b"", b"secret", bytes(200)):
        oracle = HKDF(SHA256(), 32, CONTEXT, b"info").derive(secret)
        assert keys.hkdf(secret, CONTEXT, b"info") == oracle


@pytest.mark.parametrize("high_bit", [0, 0x80])
@pytest.mark.parametrize("key", sorted(keys.LOW_ORDER), ids=lambda key: key.hex()[:4])
def test_abuse_18_key_of_low_order_is_refused(key, high_bit):
    twisted = key[:-1] + bytes([key[-1] | high_bit])
    with pytest.raises(SecrecyError, match="E_KEY"):
        keys.agree(ONE, twisted)
    with pytest.raises(SecrecyError, match="E_KEY"):
        keys.check_public(twisted)


def test_abuse_18_bytes_that_are_no_key_are_refused():
    for check in (keys.check_public, lambda key: keys.agree(ONE, key)):
        with pytest.raises(SecrecyError, match="E_KEY"):
            check(b"short")
    keys.check_public(keys.public_key(ONE))


def test_context_depends_on_every_fact_and_not_on_their_order():
    facts = {"round": 3, "cohort": ("a", "b"), "bound": (0.1).hex()}
    assert keys.context_hash(facts) == keys.context_hash(dict(reversed(facts.items())))
    assert (
        len(
            {
                keys.context_hash({**facts, **change})
                for change in ({}, {"round": 4}, {"cohort": ("a",)}, {"bound": (0.2).hex()}, {"more": None})
            }
        )
        == 5
    )


def test_package_opens_for_its_holder_only():
    mine, theirs = (Sealer(ONE, keys.public_key(TWO), CONTEXT), Sealer(TWO, keys.public_key(ONE), CONTEXT))
    sealed = mine.seal(b"shares", 0, 1)
    assert theirs.open(sealed, 0, 1) == b"shares"
    elsewhere = Sealer(TWO, keys.public_key(ONE), keys.sha256(b"another context"))
    flipped = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for sealer, package, dealer, holder in (
        (theirs, sealed, 1, 0),
        (theirs, sealed, 0, 2),
        (elsewhere, sealed, 0, 1),
        (theirs, flipped, 0, 1),
        (theirs, b"", 0, 1),
    ):
        with pytest.raises(SecrecyError, match="E_SHARE"):
            sealer.open(package, dealer, holder)


def test_same_package_is_never_sealed_alike():
    sealer = Sealer(ONE, keys.public_key(TWO), CONTEXT)
    assert sealer.seal(b"shares", 0, 1) != sealer.seal(b"shares", 0, 1)


@pytest.fixture
def names():
    own = [Ed25519PrivateKey.generate() for _ in range(2)]
    roster = [key.public_key().public_bytes_raw() for key in own]
    return [Identities(roster, key) for key in own]


def test_signed_message_is_read_by_others(names):
    assert names[1].open(Reveal, CONTEXT, names[0].sign(0, CONTEXT, Reveal(b"r"))) == Reveal(b"r")


def test_abuse_8_message_that_its_sender_did_not_sign_so_is_refused(names):
    good = names[0].sign(0, CONTEXT, Reveal(b"r" * 32))
    other_kind, other_context = (Masked, CONTEXT), (Reveal, keys.sha256(b""))
    bad = [
        (Reveal, CONTEXT, Signed(0, good.body[:-1] + b"s", good.signature)),
        (Reveal, CONTEXT, Signed(0, good.body, good.signature[:-1] + bytes([good.signature[-1] ^ 1]))),
        (Reveal, CONTEXT, Signed(0, good.body, b"")),
        (Reveal, CONTEXT, Signed(1, good.body, good.signature)),
        (Reveal, CONTEXT, Signed(2, good.body, good.signature)),
        (*other_kind, good),
        (*other_context, good),
    ]
    for kind, context, signed in bad:
        with pytest.raises(SecrecyError, match="E_SIG"):
            names[1].open(kind, context, signed)
