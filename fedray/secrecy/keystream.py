"""The AES-256 keystream that hides vectors, as fast as the processor makes it, and its addition to them.

Counter mode with block 2 first: the bytes that AES-GCM encrypts zeros to under a nonce of 12 zero bytes, and
that AES-XTS makes of the counters under a tweak whose encryption is zero, since then XTS adds zero before and
after: the blocks are encrypted one by one. OpenSSL's code for GCM is more than twice as fast as that for CTR
on processors with VAES, that for XTS faster again, for it computes no tag; both are slower on others. So a
process times all once and takes the fastest; the bytes are equal (tests hold a known answer), so parties may
differ. A nonce that never changes is sound because a key is used once: a `OneTimeKey` can be taken once. The
GCM tag is never made. Start reading at `mask_inplace`.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES, AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB, GCM, XTS
from numpy.typing import NDArray

from fedray.errors import SecrecyError

KEY_BYTES = 32
MAX_BYTES = 2**36 - 32  # counters are 32 bits wide: 2^32 - 2 blocks of 16 bytes
CHUNK_BYTES = 192 * 1024  # three such fit 1 MiB of cache; 128 to 384 KiB within 5 %
LINE_BYTES = 64  # of the cache
MAX_OPEN = 256  # encryptors at a time; each holds its key schedule
CALIBRATION_BYTES = 8 * CHUNK_BYTES  # under a millisecond with AES instructions

Words = NDArray[np.unsignedinteger[Any]]
Kind = Literal["gcm", "ctr", "xts"]
BLOCK_BYTES, FIRST = 16, 2  # of AES; the counter of the first block
TWEAK_KEY = bytes(KEY_BYTES - 1) + b"\x01"  # of XTS: public, and of no consequence but that the tweak fits it


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
    if kind == "ctr":
        return Cipher(AES256(key), CTR(bytes(15) + b"\x02")).encryptor()
    return Cipher(AES(key + TWEAK_KEY), XTS(_tweak())).encryptor()


@cache
def _tweak() -> bytes:
    """Return what TWEAK_KEY encrypts to zero: XTS doubles that from block to block, and it stays zero."""
    return Cipher(AES256(TWEAK_KEY), ECB()).decryptor().update(bytes(BLOCK_BYTES))


class Source:
    """What a keystream is the encryption of: zeros, or for XTS, which counts nothing, the counters."""

    def __init__(self, kind: Kind, num_bytes: int = CHUNK_BYTES) -> None:
        num_blocks = -(-min(num_bytes, CHUNK_BYTES) // BLOCK_BYTES) if kind == "xts" else 0
        self._zeros = None if num_blocks else memoryview(bytes(CHUNK_BYTES))
        self._blocks = np.zeros((num_blocks, 4), ">u4")
        self._offsets = np.arange(FIRST, FIRST + num_blocks, dtype=np.uint32)
        self._bytes = self._blocks.view(np.uint8).reshape(-1).data

    def at(self, position: int, num_bytes: int) -> memoryview:
        """Return what stands at a position of the stream, a whole number of blocks; the bytes of a last block
        that is not asked for in full are there too.
        """
        if self._zeros is not None:
            return self._zeros[:num_bytes]
        num_blocks = -(-num_bytes // BLOCK_BYTES)
        self._blocks[:num_blocks, 3] = self._offsets[:num_blocks] + np.uint32(position // BLOCK_BYTES)
        return self._bytes[: num_blocks * BLOCK_BYTES]


@cache
def fastest() -> Kind:
    """Return the fastest of the implementations in this process, timed once over some milliseconds."""
    return min(("gcm", "ctr", "xts"), key=lambda kind: min(_seconds(kind) for _ in range(3)))


def _seconds(kind: Kind) -> float:
    plain, out = Source(kind).at(0, CHUNK_BYTES), bytearray(CHUNK_BYTES)
    stream = encryptor(bytes(KEY_BYTES), kind)
    began = time.perf_counter()
    for _ in range(CALIBRATION_BYTES // CHUNK_BYTES):
        stream.update_into(plain, out)
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
    kind = kind or fastest()
    source, buffer = Source(kind, words.nbytes), _aligned(CHUNK_BYTES).view(words.dtype)
    for start in range(0, len(signed), MAX_OPEN):
        streams = [(apply, encryptor(key.take(), kind)) for apply, key in signed[start : start + MAX_OPEN]]
        _add_streams(words, streams, source, buffer)
    wipe(buffer)


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Return memory that begins on a line of the cache; numpy's begins 16 bytes after one."""
    memory = np.empty(num_bytes + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + num_bytes]


def _add_streams(
    words: Words,
    streams: Sequence[tuple[Callable[..., Any], CipherContext]],
    source: Source,
    buffer: Words,
) -> None:
    # chunks begin on lines of the cache, like the buffer: additions across two lines take half as long again;
    # each begins with a block of the stream
    before = words.ctypes.data % LINE_BYTES // BLOCK_BYTES * BLOCK_BYTES // words.itemsize
    into = buffer.data.cast("B")
    for start in range(-before, len(words), len(buffer)):
        first = max(start, 0)
        chunk = words[first : start + len(buffer)]
        stream_chunk, plain = buffer[: len(chunk)], source.at(first * words.itemsize, chunk.nbytes)
        whole = into[: len(plain)]
        for apply, stream in streams:
            stream.update_into(plain, whole)
            apply(chunk, stream_chunk, chunk)


def add_rows(total: Words, rows: Sequence[Words]) -> None:
    """Add vectors to a total, chunk by chunk, so that the total is read and written once."""
    step = CHUNK_BYTES // total.itemsize
    for start in range(0, len(total), step):
        chunk = total[start : start + step]
        for row in rows:
            np.add(chunk, row[start : start + step], out=chunk)
