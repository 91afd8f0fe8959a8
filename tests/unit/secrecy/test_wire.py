"""Messages as bytes: what goes in comes out, and nothing else is read."""

import pytest

from fedray.errors import SecrecyError
from fedray.secrecy import wire
from fedray.secrecy.messages import Advert, Confirmations, Forward, Opened, Signed, Survivors

MESSAGES = [
    Advert(b"k" * 32, (b"a" * 32, b"b" * 32), (b"c" * 32,), b""),
    Confirmations({0: Signed(0, b"body", b"sig"), 7: Signed(7, b"", b"")}),
    Forward({3: b"package", 1: b""}),
    Opened(()),
    Survivors((0, 2), (1,), {0: b"x", 2: b"y"}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_comes_back_from_its_bytes(message):
    assert wire.from_bytes(type(message), wire.to_bytes(message)) == message


def test_bytes_do_not_depend_on_the_order_of_a_mapping():
    assert wire.to_bytes(Forward({1: b"", 3: b""})) == wire.to_bytes(Forward({3: b"", 1: b""}))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_that_is_cut_or_longer_is_refused(message):
    data = wire.to_bytes(message)
    for bad in (*(data[:end] for end in range(len(data))), data + b"\0"):
        with pytest.raises(SecrecyError, match="E_LENGTH"):
            wire.from_bytes(type(message), bad)


def test_huge_length_is_refused_before_memory_is_taken():
    with pytest.raises(SecrecyError, match="E_LENGTH"):
        wire.from_bytes(Opened, (2**63).to_bytes(8, "little"))


@pytest.mark.parametrize("keys", [(3, 1), (2, 2)])
def test_second_form_of_a_mapping_is_refused(keys):
    data = wire.to_bytes(Confirmations({1: Signed(0, b"", b""), 2: Signed(0, b"", b"")}))
    entry = (len(data) - 8) // 2
    forged = data[:8] + b"".join(key.to_bytes(8, "little") + data[16 : 8 + entry] for key in keys)
    with pytest.raises(SecrecyError, match="E_SCHEMA"):
        wire.from_bytes(Confirmations, forged)
