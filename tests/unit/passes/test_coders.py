"""Coders: read back to the bit, right on average, of a size that depends on shapes alone, row by row."""

import math

import pytest
import torch

from fedray import coded, tree
from fedray.coded import Decode, Encode
from fedray.passes import coders
from fedray.passes.coders import Levels, Picks, ScaledSigns, Signs, TopK
from fedray.passes.compression import Pick, Unpick
from fedray.passes.powersgd import Factors, Left, Product, Right, orthonormal
from fedray.rng import Key
from fedray.rows import Same
from fedray.testing import check_rows

N = 50
SCHEMA = tree.schema_of({"w": torch.zeros(7, 6), "b": torch.zeros(8)})  # 50 numbers in a stride of 64
CODERS = {
    "topk": TopK(0.1), "qsgd": Levels(5), "buckets": Levels(5, 16), "sign": Signs(), "scaled": ScaledSigns(),
}


def key(site, round=0):
    return Key(0, round, site, "test")


def update(number, dtype=torch.float32):
    numbers = torch.randn(1, N, generator=key("update", number).generator()).to(dtype)
    schema = tree.schema_of({"w": torch.zeros(7, 6, dtype=dtype), "b": torch.zeros(8, dtype=dtype)})
    return tree.Flat(coded.spread(numbers, schema), schema)


def numbers_of(flat):
    return coded.dense(flat.buffer, flat.schema)[0].double()


def there_and_back(coder, x, site="a", round=0):
    return Decode(coder)(Encode(coder)(x, key(site, round)))


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 11, 16])
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_packed_bits_are_read_back(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), generator=key("bits").generator(), dtype=torch.int32)
    packed = coders.pack_bits(codes, bits)
    assert torch.equal(coders.unpack_bits(packed, bits, count), codes)
    assert packed.shape == (3, math.ceil(bits * count / 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "expected"), [
    ("topk", lambda wide: 5 * wide + 4),  # 5 values, 5 places of 6 bits
    ("qsgd", lambda wide: wide + 25),  # a norm, 50 codes of 4 bits for 11 values
    ("buckets", lambda wide: 4 * wide + 25),  # a norm for each 16 numbers
    ("sign", lambda wide: 7),  # 50 bits
    ("scaled", lambda wide: wide + 7),
])
def test_bytes_of_an_update_are_those_that_its_form_needs(name, expected, dtype):
    sent = Encode(CODERS[name])(update(1, dtype), key("a"))
    assert tree.nbytes(sent) == expected(dtype.itemsize)


def test_topk_keeps_values_to_the_bit_and_the_first_of_equal_ones():
    x = tree.Flat(coded.spread(torch.zeros(1, N), SCHEMA), SCHEMA)
    x["w"].view(-1)[[3, 8, 11, 20, 30]] = torch.tensor([2.0, -2.0, 2.0, 2.0, -2.0])
    x["b"][1] = 9.0
    found = numbers_of(there_and_back(TopK(0.08), x))  # 4 of 50
    assert torch.nonzero(found).flatten().tolist() == [3, 8, 11, 43]
    assert found[[3, 8, 11, 43]].tolist() == [2.0, -2.0, 2.0, 9.0]


def test_topk_of_an_update_of_zeros_sends_as_many_bytes():
    blank = tree.zeros_like(update(0))
    sent = Encode(TopK(0.1))(blank)
    assert tree.nbytes(sent) == tree.nbytes(Encode(TopK(0.1))(update(0)))
    assert not numbers_of(Decode(None)(sent)).any()


@pytest.mark.parametrize("size", [30, 10, 100])
def test_a_fraction_of_a_tenth_is_not_rounded_up_for_its_last_bit(size):
    assert coders.share_of(0.1, size) == size // 10


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("fill", [0.0, 1e30, -3e-39])
def test_extreme_updates_stay_finite_and_padding_stays_zero(name, fill):
    x = tree.map(lambda leaf: leaf * 0 + fill, update(0))
    x = tree.Flat(coded.spread(coded.dense(x.buffer, SCHEMA), SCHEMA), SCHEMA)
    found = there_and_back(CODERS[name], x)
    assert torch.isfinite(found.buffer).all()
    assert torch.equal(coded.spread(coded.dense(found.buffer, SCHEMA), SCHEMA), found.buffer)


def test_a_norm_that_overflows_is_an_error_of_the_site():
    x = tree.map(lambda leaf: leaf * 0 + 3e38, update(0))
    with pytest.raises(ArithmeticError, match="norm of an update is too large"):
        Encode(Levels(5))(x, key("a"))


DRAWS = 2000


def mean_of(draw):
    return torch.stack([draw(round) for round in range(DRAWS)]).mean(0)


def allowed(v, coder):
    """Return how far the mean of DRAWS right roundings may lie from each number: Bernstein's inequality.

    4.5 standard errors and 7 steps / DRAWS: exceeded by one of 50 numbers for one seed in some thousands.
    """
    width = min(coder.bucket or N, N)
    norms = torch.cat([part.norm().expand(len(part)) for part in v.split(width)])
    step = norms / coder.levels
    share = (v.abs() / step) % 1.0
    return 4.5 * step * (share * (1 - share) / DRAWS).sqrt() + 7 * step / DRAWS


@pytest.mark.slow
@pytest.mark.parametrize("coder", [Levels(1), Levels(4), Levels(4, 16)], ids=str)
def test_qsgd_is_right_on_average(coder):
    x = update(3, torch.float64)
    mean, v = mean_of(lambda r: numbers_of(there_and_back(coder, x, "a", r))), numbers_of(x)
    assert ((mean - v).abs() <= allowed(v, coder)).all()


def test_the_test_of_averages_finds_a_rounding_that_is_not_random():
    v = numbers_of(update(3, torch.float64))
    step = v.norm() / 4
    for biased in ((v.abs() / step).floor(), (v.abs() / step).round()):
        assert ((biased * step * v.sign() - v).abs() > allowed(v, Levels(4))).sum() > 40


@pytest.mark.parametrize("levels", [1, 4])
def test_qsgd_errs_no_more_than_its_lemma_says(levels):
    v = numbers_of(update(3, torch.float64))
    worst = min(N / levels**2, math.sqrt(N) / levels) * v.square().sum()  # Lemma 3.1 (ii)
    draws = [numbers_of(there_and_back(Levels(levels), update(3, torch.float64), "a", r)) for r in range(300)]
    squares = torch.stack([(draw - v).square().sum() for draw in draws])
    assert 0 < squares.mean() + 4 * squares.std() / math.sqrt(len(draws)) <= worst


def test_randk_without_memory_is_right_on_average():
    x = update(3, torch.float64)
    pick = Pick(0.2, True, "randk")
    mean, v = mean_of(lambda r: numbers_of(Unpick()(pick(x, key("a", r))))), numbers_of(x)
    # 5 v with probability 1/5: standard deviation 2 |v|, and 4.5 standard errors for 50 numbers
    assert ((mean - v).abs() <= 4.5 * 2 * v.abs() / math.sqrt(DRAWS)).all()
    assert ((mean - v).abs() > 0).sum() > 40  # it did draw


def test_randk_takes_the_same_coordinates_at_every_site_and_others_in_the_next_round():
    pick = Pick(0.2, False, "randk")

    def places(site, round):
        return torch.nonzero(numbers_of(Unpick()(pick(update(1), key(site, round))))).flatten().tolist()

    assert places("a", 0) == places("b", 0) != places("a", 1)
    assert len(places("a", 0)) == 10


@pytest.mark.parametrize("name", CODERS)
def test_rows_have_the_bits_that_they_have_alone(name):
    coder = CODERS[name]
    sites = [(update(i), key(f"s{i}")) for i in range(30)]
    check_rows(Encode(coder), sites, tolerance=0.0)
    check_rows(Decode(coder), [(Encode(coder)(*site),) for site in sites], tolerance=0.0)


def test_rows_of_picks_and_of_factors_have_the_bits_that_they_have_alone():
    sites = [(update(i), key(f"s{i}")) for i in range(30)]
    pick, factors = Pick(0.2, False, "randk"), Factors(2)
    check_rows(pick, sites, tolerance=0.0)
    left = Left(factors, "powersgd")
    check_rows(_Started(left), sites, tolerance=0.0)
    basis = orthonormal(left(sites[0][0], None, sites[0][1]))
    right = Right(factors)
    check_rows(_Turned(right, basis), [(x,) for x, _ in sites], tolerance=0.0)
    check_rows(_Turned(Product(factors), basis), [(right(x, basis),) for x, _ in sites], tolerance=0.0)


class _Started:
    """A left factor in the first round."""

    def __init__(self, left):
        self.left = left

    def __call__(self, x, key):
        return self.left(x, None, key)["0"]

    def rows(self, group, x, key):
        return self.left.rows(group, x, Same(None), key)["0"]


class _Turned:
    """A function whose second argument is the same for all sites."""

    def __init__(self, fn, basis):
        self.fn, self.basis = fn, basis

    def __call__(self, x):
        return self.fn(x, self.basis)

    def rows(self, group, x):
        return self.fn.rows(group, x, Same(self.basis))


def test_powersgd_is_exact_for_a_matrix_of_its_rank():
    draws = key("rank").generator()
    matrix = torch.randn(9, 2, generator=draws).double() @ torch.randn(2, 8, generator=draws).double()
    x, factors = tree.flatten({"w": matrix}), Factors(2)
    basis = orthonormal(Left(factors, "p")(x, None, key("a")))
    found = Product(factors)(Right(factors)(x, basis), basis)
    assert (found["w"] - matrix).abs().max() < 1e-12


def test_a_matrix_of_zeros_does_not_hold_the_factors_at_zero():
    factors, blank = Factors(1), tree.flatten({"w": torch.zeros(6, 5).double()})
    left = Left(factors, "p")
    kept = {"0": tree.flatten({"w": torch.zeros(5, 1).double()})}
    full = tree.flatten({"w": torch.ones(6, 5).double()})
    assert not left(blank, None, key("a"))["0"].buffer.any()
    assert left(full, kept, key("a"))["0"].buffer.any()


def test_an_update_without_a_matrix_has_nothing_for_powersgd():
    with pytest.raises(ValueError, match="no matrix that two thin factors make smaller"):
        Left(Factors(2), "p")(tree.flatten({"w": torch.zeros(8)}), None, key("a"))


def test_numbers_and_whole_numbers_go_as_they_are():
    value = {"w": torch.arange(8.0), "steps": 3, "share": 0.5, "counts": torch.arange(4)}
    sent = Encode(TopK(0.25))(value)
    found = Decode(None)(sent)
    assert found["w"].tolist() == [0, 0, 0, 0, 0, 0, 6, 7]
    assert (found["steps"], found["share"], found["counts"].tolist()) == (3, 0.5, [0, 1, 2, 3])
    assert Picks(0.5, False, key("")).title == "randk(0.5)"


def test_the_servers_codes_do_not_depend_on_its_number_of_threads():
    x = {"w": torch.randn(400_000, generator=key("large").generator())}
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(Encode(Levels(7))(x, key("server"))["w"].buffer)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
