"""Two aggregators: the exact sum over whom both have heard of, and uniform words for each alone."""

import os

import numpy as np
import pytest

from fedray.errors import SecrecyError
from fedray.secrecy import keys, two_server
from fedray.secrecy.two_server import Aggregator
from tests.unit.secrecy.parties import oracle, terms_of, vectors_of


def chi2(words):
    counts = np.bincount(np.frombuffer(words, np.uint8), minlength=256)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def shared(terms, without_seed=(), without_words=()):
    """Return the vectors and two aggregators that hold their shares."""
    vectors = vectors_of(terms)
    one, other = (Aggregator(terms.num_words, terms.encoding.dtype, 3) for _ in range(2))
    for site, vector in vectors.items():
        words = vector.copy()
        seed = two_server.split(words)
        if site not in without_seed:
            one.accept(site, seed)
        if site not in without_words:
            other.accept(site, words)
    return vectors, one, other


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("num_words", [1, 5, 65_537])
def test_difference_of_the_totals_is_the_exact_sum(bits, num_words):
    terms = terms_of(7, num_words, bits=bits)
    vectors, one, other = shared(terms)
    total = other.total(other.sites) - one.total(one.sites)
    assert total.tolist() == oracle(vectors, range(7), terms)


def test_site_that_is_lost_towards_either_costs_nothing():
    terms = terms_of(7)
    vectors, one, other = shared(terms, without_seed=[2], without_words=[5, 6])
    both = one.sites & other.sites
    assert both == {0, 1, 3, 4}
    assert (other.total(both) - one.total(both)).tolist() == oracle(vectors, sorted(both), terms)


def test_either_view_is_uniform_and_independent_of_the_vector():
    plain = np.arange(262_144, dtype=np.uint32)
    words = plain.copy()
    two_server.split(words)
    # 255 degrees of freedom: p = 2e-6 at 372
    assert chi2(words) < 372
    assert abs(np.corrcoef(plain, words)[0, 1]) < 5 / np.sqrt(plain.size)
    seeds = b"".join(two_server.split(np.zeros(1, np.uint32)) for _ in range(2000))
    assert chi2(seeds) < 372


def test_no_second_set_is_summed():
    _, one, _ = shared(terms_of(7))
    first = one.total(range(7))
    assert (one.total(range(7)) == first).all()
    with pytest.raises(SecrecyError, match="E_UNMASK_TWICE"):
        one.total(range(6))


@pytest.mark.parametrize(("sites", "code"), [((0, 1), "E_COHORT"), ((0, 1, 9), "E_LATE")])
def test_set_that_is_too_small_or_unknown_is_refused(sites, code):
    _, one, _ = shared(terms_of(7))
    with pytest.raises(SecrecyError, match=code):
        one.total(sites)


@pytest.mark.parametrize(
    ("share", "code"),
    [
        (b"short", "E_LENGTH"),
        (np.zeros(4, np.uint32), "E_LENGTH"),
        (np.zeros(5, np.uint64), "E_LENGTH"),
    ],
)
def test_share_of_another_shape_is_refused(share, code):
    with pytest.raises(SecrecyError, match=code):
        Aggregator(5).accept(0, share)


def test_second_share_of_a_site_is_refused():
    one = Aggregator(5)
    one.accept(0, bytes(32))
    with pytest.raises(SecrecyError, match="E_REPLAY"):
        one.accept(0, bytes(32))


def test_sealed_seed_opens_for_its_aggregator_site_and_context_only():
    private, context = os.urandom(32), keys.sha256(b"round 3")
    sealed = two_server.seal_seed(b"s" * 32, keys.public_key(keys.private_key(private)), context, 4)
    assert two_server.open_seed(sealed, private, context, 4) == b"s" * 32
    for wrong in ((os.urandom(32), context, 4), (private, keys.sha256(b""), 4), (private, context, 5)):
        with pytest.raises(SecrecyError, match="E_SHARE"):
            two_server.open_seed(sealed, *wrong)
