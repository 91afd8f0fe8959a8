"""The keystream: known answer on both paths, chunk edges, keys that are used once, no weak generator."""

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fedray.errors import SecrecyError
from fedray.secrecy import keystream as ks
from fedray.secrecy.keystream import CHUNK_BYTES, OneTimeKey, keystream, mask_inplace

KEY = bytes(range(32))
CHUNK = CHUNK_BYTES // 4


@pytest.mark.parametrize("kind", ["gcm", "ctr", "xts"])
def test_known_answer_k1(kind):
    words = keystream(OneTimeKey(KEY), 1000, kind=kind)
    assert words[:4].tolist() == [0xDEB5BC0E, 0xBD832CB5, 0x35A9A808, 0x99912C18]
    assert int(words.sum(dtype=np.uint32)) == 0xCD8DBC10
    assert hashlib.sha256(words.tobytes()).hexdigest()[:32] == "1853c87c043852c947d6d2b8664b00ec"


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("num_words", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 65_537])
def test_all_paths_agree_across_chunks(num_words, dtype):
    gcm, ctr, xts = (keystream(OneTimeKey(KEY), num_words, dtype, kind) for kind in ("gcm", "ctr", "xts"))
    whole = ks.encryptor(KEY, "ctr").update(bytes(gcm.nbytes))
    assert gcm.tobytes() == ctr.tobytes() == xts.tobytes() == whole


@pytest.mark.parametrize("start", range(0, 64, 4))
def test_words_are_masked_alike_wherever_they_lie(start):
    words = np.zeros(4 * CHUNK + 64, np.uint8)[start:][: 4 * (CHUNK - 1)].view(np.uint32)
    mask_inplace(words, [OneTimeKey(KEY)])
    assert words.tobytes() == keystream(OneTimeKey(KEY), CHUNK - 1).tobytes()


def test_calibrated_path_is_one_of_the_three():
    assert ks.fastest() in {"gcm", "ctr", "xts"}


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_masks_of_many_neighbours_cancel(dtype):
    keys = [os.urandom(32) for _ in range(300)]  # more than are open at a time
    words = np.arange(1001, dtype=dtype)
    mask_inplace(words, [OneTimeKey(key) for key in keys[:200]], [OneTimeKey(key) for key in keys[200:]])
    assert (words != np.arange(1001, dtype=dtype)).any()
    mask_inplace(words, [OneTimeKey(key) for key in keys[200:]], [OneTimeKey(key) for key in keys[:200]])
    assert (words == np.arange(1001, dtype=dtype)).all()


def test_a_key_masks_once():
    key = OneTimeKey(KEY)
    mask_inplace(np.zeros(4, np.uint32), [key])
    with pytest.raises(SecrecyError, match="E_KEY_REUSE"):
        mask_inplace(np.zeros(4, np.uint32), [], [key])
    assert repr(key) == "OneTimeKey(used)"


def test_a_key_is_wiped_when_it_is_taken():
    key = OneTimeKey(KEY)
    held = key._key
    assert key.take() == KEY and held == bytearray(32)


def test_a_key_does_not_leave_its_process():
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(OneTimeKey(KEY))


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        OneTimeKey(b"short")


def test_scattered_words_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        mask_inplace(np.zeros(8, np.uint32)[::2], [OneTimeKey(KEY)])


def test_masked_words_are_uniform_and_tell_nothing_of_the_vector():
    plain = np.arange(262_144, dtype=np.uint32)
    masked = plain.copy()
    mask_inplace(masked, [OneTimeKey(KEY)])
    counts = np.bincount(np.frombuffer(masked, np.uint8), minlength=256)
    chi2 = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi2 < 372  # 255 degrees of freedom: p = 2e-6
    assert abs(np.corrcoef(plain, masked)[0, 1]) < 5 / np.sqrt(plain.size)


def test_no_weak_generator_is_reachable_from_mask_code():
    program = """
import sys
for name in ("random", "secrets", "numpy.random"):
    sys.modules[name] = None  # whoever imports it fails
import pkgutil, importlib, numpy as np, fedray.secrecy
for found in pkgutil.iter_modules(fedray.secrecy.__path__):
    importlib.import_module(f"fedray.secrecy.{found.name}")
from fedray.secrecy.encoding import Encoding, encode
from fedray.secrecy.keystream import OneTimeKey, mask_inplace
words = encode(np.ones((1, 5)), np.ones(1), Encoding(num_sites=3, bound=1.0, rounding="stochastic"))[0]
mask_inplace(words, [OneTimeKey(bytes(32))])
assert not any(name.startswith(("numpy.random.", "random.", "torch")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("start", [0, 4, 8, 20])
@pytest.mark.parametrize("num_words", [1, 3, 5, 8 * CHUNK + 3])
def test_counters_go_on_where_a_chunk_ended_wherever_the_words_lie(start, num_words):
    words = np.zeros(4 * num_words + 64, np.uint8)[start:][: 4 * num_words].view(np.uint32)
    mask_inplace(words, [OneTimeKey(KEY)], kind="xts")
    assert words.tobytes() == ks.encryptor(KEY, "ctr").update(bytes(words.nbytes))


def test_a_tweak_that_is_encrypted_to_zero_leaves_the_blocks_alone():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    ecb = Cipher(algorithms.AES256(ks.TWEAK_KEY), modes.ECB()).encryptor()
    assert ecb.update(ks._tweak()) == bytes(16)
