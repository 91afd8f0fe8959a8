"""Hashes of aggregates and states: equal for equal bits on every machine, different for anything else."""

import hashlib

import numpy as np
import pytest
import torch

from fedray import tree
from fedray.runtime import hashes
from fedray.runtime.hashes import BLOCK_WORDS, HASHED_BYTES, block_digests, sha256_of


@pytest.fixture(scope="module")
def large():
    """More than 8 MB, with a last block that is not full and a tail of three bytes."""
    size = HASHED_BYTES + 4 * BLOCK_WORDS + 4 * 1000 + 3
    return np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)


def same(changed, large):
    return sha256_of(torch.from_numpy(changed)) == sha256_of(torch.from_numpy(large))


def test_a_small_value_has_the_sha256_of_its_paths_dtypes_and_bits():
    value = {"a": torch.arange(5.0), "n": 0.5, "k": 3}
    text = b"a" + b"torch.float32" + np.arange(5, dtype="<f4").tobytes() + b"n" + (0.5).hex().encode() + b"k3"
    assert sha256_of(value) == hashlib.sha256(text).hexdigest()


def test_bfloat16_and_single_numbers_are_hashed():
    a = sha256_of({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(2.0)})
    assert a != sha256_of({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(2.5)})


def test_no_rows_have_one_hash_wherever_they_come_from():
    told = {"y": torch.from_numpy(np.zeros(0))}
    assert told["y"].stride() == (0,)
    assert sha256_of(told) == sha256_of({"y": torch.zeros(0, dtype=torch.float64)})


def test_digests_are_the_same_on_every_machine(large):
    words = [int(word) for word in large[: 4 * BLOCK_WORDS].view("<u4")]
    mask, total = 2**64 - 1, 0
    for number, word in enumerate(words, 1):
        z = number * 0x9E3779B97F4A7C15 & mask
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ (z >> shift)) * factor & mask
        total = (total + word * (z | 1)) & mask
    assert int(block_digests([large])[0]) == total
    assert sha256_of(torch.from_numpy(large)) == sha256_of(torch.from_numpy(large.copy()))


@pytest.mark.parametrize("place", [0, 3, 65_537, 4_000_000, -5, -2, -1])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_changes_the_hash_of_a_large_leaf(large, place, bit):
    changed = large.copy()
    changed[place] ^= 1 << bit
    assert not same(changed, large)


def test_two_flipped_signs_swapped_blocks_and_swapped_words_change_the_hash(large):
    block = 4 * BLOCK_WORDS
    signs, blocks, words = large.copy(), large.copy(), large.copy()
    signs[[3, 11]] ^= 128
    blocks[:block], blocks[block : 2 * block] = large[block : 2 * block], large[:block]
    words[0:4], words[8:12] = large[8:12], large[0:4]
    assert not any(same(changed, large) for changed in (signs, blocks, words))


def test_zeros_at_the_end_and_another_dtype_change_the_hash(large):
    longer = np.concatenate([large, np.zeros(4, dtype=np.uint8)])
    assert not same(longer, large)
    words = torch.from_numpy(large[: len(large) // 4 * 4].view(np.int32))
    assert sha256_of(words) != sha256_of(words.view(torch.float32))


def test_a_large_flat_is_hashed_by_blocks(monkeypatch):
    flat = tree.flatten({"w": torch.ones(100)})
    whole = sha256_of(flat)
    monkeypatch.setattr(hashes, "HASHED_BYTES", 64)
    assert sha256_of(flat) != whole and sha256_of(flat) == sha256_of(flat.clone())
