"""The AES-256 keystream that hides vectors, as fast as the processor makes it, and its addition to them.

Counter mode with block 2 first: the bytes that AES-GCM encrypts zeros to under a nonce of 12 zero bytes.
OpenSSL's GCM code is more than twice as fast as its CTR code on processors with VAES, slower on others, so a
process times both once and takes the faster one; the bytes are equal (tests hold a known answer), so parties
may differ. A nonce that never changes is sound because a key is used once: a `OneTimeKey` can be taken once.
The GCM tag is never made. Start reading at `mask_inplace`.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import NDArray

from fedray.errors import SecrecyError

KEY_BYTES = 32
MAX_BYTES = 2**36 - 32  # counters are 32 bits wide: 2^32 - 2 blocks of 16 bytes
CHUNK_BYTES = 192 * 1024  # three such fit 1 MiB of cache; 128 to 384 KiB within 5 %
LINE_BYTES = 64  # of the cache
MAX_OPEN = 256  # encryptors at a time; each holds its key schedule
CALIBRATION_BYTES = 8 * CHUNK_BYTES  # under a millisecond with AES instructions

Words = NDArray[np.unsignedinteger[Any]]
Kind = Literal["gcm", "ctr"]


def wipe(buffer: bytearray | Words) -> None:
    """Overwrite a secret. Best effort: Python and OpenSSL may hold copies that nobody can reach."""
    np.frombuffer(buffer, np.uint8)[:] = 0


class OneTimeKey:
    """A key of 32 bytes that can be taken once; taking it wipes it."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._key: bytearray | None = bytearray(key)

    def __repr__(self) -> str:
        return "OneTimeKey(used)" if self._key is None else "OneTimeKey(unused)"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a key does not leave its process")

    def take(self) -> bytes:
        """Return the key, once. Raises SecrecyError E_KEY_REUSE after that: a second vector leaks both."""
        if self._key is None:
            raise SecrecyError("E_KEY_REUSE", "a key masks one vector; make fresh keys for another round")
        key = bytes(self._key)
        wipe(self._key)
        self._key = None
        return key


def encryptor(key: bytes, kind: Kind) -> CipherContext:
    """Open the keystream of a key: what it makes of zeros."""
    if kind == "gcm":
        return Cipher(AES256(key), GCM(bytes(12))).encryptor()
    return Cipher(AES256(key), CTR(bytes(15) + b"\x02")).encryptor()


@cache
def fastest() -> Kind:
    """Return the faster of the two implementations in this process, timed once over some milliseconds."""
    return min(("gcm", "ctr"), key=lambda kind: min(_seconds(kind) for _ in range(3)))


def _seconds(kind: Kind) -> float:
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    stream = encryptor(bytes(KEY_BYTES), kind)
    began = time.perf_counter()
    for _ in range(CALIBRATION_BYTES // CHUNK_BYTES):
        stream.update_into(zeros, out)
    return time.perf_counter() - began


def keystream(key: OneTimeKey, num_words: int, dtype: Any = "<u4", kind: Kind | None = None) -> Words:
    """Return the first words of a key's stream, little-endian."""
    words = np.zeros(num_words, dtype)
    mask_inplace(words, [key], kind=kind)
    return words


def mask_inplace(
    words: Words, add: Sequence[OneTimeKey], subtract: Sequence[OneTimeKey] = (), *, kind: Kind | None = None
) -> None:
    """Add the keystreams of some keys to a vector and subtract those of others, modulo its word.

    Works chunk by chunk, all keys on a chunk while it lies in the cache, in groups of 256 keys.
    Raises: SecrecyError E_KEY_REUSE for a key that was taken before; ValueError beyond 64 GiB.
    """
    if words.nbytes > MAX_BYTES:
        raise ValueError(f"one key masks {MAX_BYTES} bytes, not {words.nbytes}")
    if words.ndim != 1 or not words.flags.c_contiguous:
        raise ValueError("masks are added to one contiguous vector")
    signed = [(np.add, key) for key in add] + [(np.subtract, key) for key in subtract]
    zeros, buffer = bytes(CHUNK_BYTES), _aligned(CHUNK_BYTES).view(words.dtype)
    for start in range(0, len(signed), MAX_OPEN):
        streams = [
            (apply, encryptor(key.take(), kind or fastest()))
            for apply, key in signed[start : start + MAX_OPEN]
        ]
        _add_streams(words, streams, memoryview(zeros), buffer)
    wipe(buffer)


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Return memory that begins on a line of the cache; numpy's begins 16 bytes after one."""
    memory = np.empty(num_bytes + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + num_bytes]


def _add_streams(
    words: Words,
    streams: Sequence[tuple[Callable[..., Any], CipherContext]],
    zeros: memoryview,
    buffer: Words,
) -> None:
    # chunks begin on lines of the cache, like the buffer: additions across two lines take half as long again
    before = words.ctypes.data % LINE_BYTES // words.itemsize
    for start in range(-before, len(words), len(buffer)):
        chunk = words[max(start, 0) : start + len(buffer)]
        stream_chunk = buffer[: len(chunk)]
        into, zero = stream_chunk.data.cast("B"), zeros[: chunk.nbytes]
        for apply, stream in streams:
            stream.update_into(zero, into)
            apply(chunk, stream_chunk, chunk)


def add_rows(total: Words, rows: Sequence[Words]) -> None:
    """Add vectors to a total, chunk by chunk, so that the total is read and written once."""
    step = CHUNK_BYTES // total.itemsize
    for start in range(0, len(total), step):
        chunk = total[start : start + step]
        for row in rows:
            np.add(chunk, row[start : start + step], out=chunk)
