"""Words: how the sums of one stage become one row of the ring of integers mod 2^32, and how a total is read.

What is in the ring already (uint32: shares of noise on integers) is a word a number and goes as it is. A
leaf of floats of at most 32 bits is fixed point below a public bound, one word a number, with its own lanes
for weight, count and numbers cut at the bound (`fedray.secrecy.encoding`). Numbers, counts, weights and
float64 take four words each: digits of a wide fixed point from 2^50 down to 2^(50 - 4b), b = 31 - log2(sites)
bits a digit, so that counts are exact and sums of squares keep what a float64 holds. Nothing wraps while at
most the agreed number of sites is in the sum.

Start reading at `Words`, the row's layout, which travels with it as the schema of a `Flat` of uint32.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedray import coded, tree
from fedray.errors import QuorumError, SecrecyError
from fedray.rows import Column, Group, Ragged
from fedray.secrecy.encoding import NUM_LANES, Encoding, decode, encode

logger = logging.getLogger(__name__)
NARROW = (torch.float32, torch.bfloat16, torch.float16)
DIGITS = 4  # words of a wide number
TOP_BITS = 50  # a wide number lies below 2^50: sums of squares of a million rows of laboratory values do
CUT_WEIGHT = 1e-3  # weights that differ by more than rounding does were cut
START_BOUND = 16.0  # of a leaf of which nothing is known yet: the range that plain sums start with
START_WEIGHT = 2.0**14  # rows of the largest site, where nothing is known yet


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the server says before a round, and all sites encode by: public, and part of the context of keys.

    `bounds` has the largest |number| of each leaf of a sum, or one for all of them; `weights` the largest
    weight of a site.
    """

    num_sites: int
    bounds: Mapping[str, float | tuple[float, ...]]
    weights: Mapping[str, float]

    def bound(self, name: str, leaf: int) -> float:
        """Return the bound of a leaf."""
        known = self.bounds.get(name, START_BOUND)
        if isinstance(known, tuple):
            return known[leaf] if leaf < len(known) else START_BOUND
        return known

    def encoding(self, name: str, leaf: int, is_weighted: bool) -> Encoding:
        """Return how a leaf of narrow floats is encoded."""
        cap = self.weights.get(name, START_WEIGHT) if is_weighted else 1.0
        return Encoding(num_sites=self.num_sites, bound=self.bound(name, leaf), max_weight=cap)

    @property
    def digit_bits(self) -> int:
        """Bits of a digit: the digits of all sites add up to less than 2^31."""
        return 31 - max(0, math.ceil(math.log2(max(self.num_sites, 1))))


@dataclass(frozen=True, slots=True)
class Section:
    """One leaf of one named sum in a row. `schema` is the leaf's as numbers without padding; `dtype` is None
    for a plain number, `encoding` for what takes digits and for what is in the ring already.
    """

    name: str
    schema: tree.Schema
    is_bare: bool
    dtype: torch.dtype | None
    start: int
    encoding: Encoding | None

    @property
    def size(self) -> int:
        """Numbers."""
        return self.schema.num_elements

    @property
    def is_ring(self) -> bool:
        """Tell whether the leaf's numbers are words already."""
        return self.dtype == torch.uint32

    @property
    def stop(self) -> int:
        """The word after the last."""
        if self.is_ring:
            return self.start + self.size
        return self.start + (self.size + NUM_LANES if self.encoding else self.size * DIGITS)


@dataclass(frozen=True, slots=True)
class Words(tree.Schema):
    """The layout of a row of words. `values` is the structure of each named sum, with the number of its
    section at each leaf; the last word of a row counts its site.
    """

    values: Mapping[str, Any]
    sections: tuple[Section, ...]
    digit_bits: int


def layout_of(values: Mapping[str, Any], weighted: Collection[str], agreed: Agreed) -> Words:
    """Return the layout of some named stacked values."""
    sections: list[Section] = []
    places: dict[str, Any] = {}
    for name, value in values.items():
        first = len(sections)
        for number, (_, leaf) in enumerate(tree.leaves(value)):
            schema, is_bare, dtype = _form(leaf)
            encoding = agreed.encoding(name, number, name in weighted) if dtype in NARROW else None
            start = sections[-1].stop if sections else 0
            sections.append(Section(name, schema, is_bare, dtype, start, encoding))
        places[name] = tree.replace_leaves(value, range(first, len(sections)))
    stride = (sections[-1].stop if sections else 0) + 1
    leaves = (tree.Leaf("words", (stride,), 0),)
    return Words(leaves, torch.uint32, stride, stride, stride, places, tuple(sections), agreed.digit_bits)


def _form(leaf: Any) -> tuple[tree.Schema, bool, torch.dtype | None]:
    if isinstance(leaf, Ragged):
        raise TypeError(
            "sites sent values of different shapes to one sum: each must return the same structure"
        )
    if isinstance(leaf, (tree.Flat, torch.Tensor)):
        origin = coded.plain(leaf)
        return origin.schema, origin.is_bare, origin.schema.dtype
    return tree.Schema((tree.Leaf("", (), 0),), torch.float64, 1, 1, 1), True, None


def written(
    group: Group, values: Mapping[str, Any], weights: Mapping[str, np.ndarray], agreed: Agreed
) -> tree.Flat:
    """Return a row of words for each site of a group, zeros for a lost one.

    Raises ValueError on a weight that is negative or not whole, and on a number that is too large.
    """
    schema = layout_of(values, weights, agreed)
    words = np.zeros((group.k, schema.stride), np.uint32)
    alive = np.asarray(group.alive, dtype=np.intp)
    leaves = [leaf for value in values.values() for _, leaf in tree.leaves(value)]
    for leaf, section in zip(leaves, schema.sections, strict=True):
        weight = weights[section.name][alive] if section.name in weights else np.ones(len(alive))
        _check_weight(section.name, weight)
        numbers = _numbers(leaf, group.k)[alive]
        if section.is_ring:
            block = numbers
        elif section.encoding is not None:
            block = encode(numbers, weight, section.encoding)
        else:
            block = digits_of(numbers.astype(np.float64) * weight[:, None], schema.digit_bits, section.name)
        words[alive, section.start : section.stop] = block
    words[alive, -1] = 1
    return tree.Flat(torch.from_numpy(words), schema)


def _check_weight(name: str, weight: np.ndarray) -> None:
    if not (np.isfinite(weight).all() and (weight >= 0).all() and (weight == np.rint(weight)).all()):
        raise ValueError(f"a weight of {name} is negative or not whole: give mean(..., weight_cap=)")


def _numbers(leaf: Any, k: int) -> np.ndarray:
    """Return a stacked leaf as a matrix (k, numbers)."""
    if isinstance(leaf, (tree.Flat, torch.Tensor)):
        found = coded.plain(leaf).numbers.detach().cpu()
        return (found.float() if found.dtype in NARROW else found).numpy()
    if isinstance(leaf, Column):
        return leaf.numbers.view(k, 1).numpy()
    return np.full((k, 1), float(leaf))


def digits_of(numbers: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Return wide numbers (k, n) as (k, DIGITS n) words: sign times digits of |x| 2^(4 bits - 50), each below
    2^bits, the highest first. What lies under the last digit is cut off, never rounded up.

    Raises ValueError where a number is 2^50 or more, or not finite.
    """
    if not (np.abs(numbers) < 2.0**TOP_BITS).all():
        raise ValueError(f"a number of {name} is 2^{TOP_BITS} or more, or not finite")
    rest, sign = np.ldexp(np.abs(numbers), bits - TOP_BITS), np.sign(numbers)
    words = np.empty((len(numbers), DIGITS, numbers.shape[1]), np.int32)
    for place in range(DIGITS):
        digit = np.floor(rest)
        words[:, place] = sign * digit
        rest = np.ldexp(rest - digit, bits)
    return words.reshape(len(numbers), -1).view(np.uint32)


def numbers_of(words: np.ndarray, bits: int) -> np.ndarray:
    """Return what a sum of rows of digits comes to, as float64."""
    signed = words.view(np.int32).reshape(DIGITS, -1).astype(np.float64)
    found = np.zeros(signed.shape[1])
    for place in range(DIGITS - 1, -1, -1):  # small digits first: one rounding for each
        found += np.ldexp(signed[place], TOP_BITS - bits * (place + 1))
    return found


@dataclass(frozen=True, slots=True)
class Read:
    """What a total of rows says: the value of each named sum, how many sites are in it, and how many numbers
    (and weights) were cut at their bounds, by name.
    """

    sums: Mapping[str, "OpenedSum"]
    num_sites: int
    num_cut: Mapping[str, int]


class OpenedSum:
    """One named sum in float64, not rounded to the leaves' dtypes yet: `divided_by` does that, once.

    `own_weight` is the sum of the weights as they entered, cut at the cap; None without weights.
    """

    __slots__ = ("leaves", "own_weight", "sections", "values")

    def __init__(
        self, values: Any, sections: Sequence[Section], leaves: Sequence[np.ndarray], own_weight: float | None
    ) -> None:
        self.values, self.sections, self.leaves, self.own_weight = values, sections, leaves, own_weight

    def divided_by(self, weight: float) -> Any:
        """Return sum / weight in the leaves' own dtypes. Raises QuorumError where weights add up to zero.

        Where a weight was cut at its cap, the weights that entered are the divisor.
        """
        if weight == 0:
            raise QuorumError(
                "the weights of the sites that delivered add up to 0: no site had a row to learn from"
            )
        if self.own_weight is not None and weight > self.own_weight * (1 + CUT_WEIGHT):
            logger.warning("secure_sum: a weight of %s was cut at its cap", self.sections[0].name)
            weight = self.own_weight
        found = [
            _shaped(leaf / weight, section) for leaf, section in zip(self.leaves, self.sections, strict=True)
        ]
        return tree.replace_leaves(self.values, found)

    @property
    def largest(self) -> list[float]:
        """The largest |x| of each leaf."""
        return [float(np.abs(leaf).max(initial=0.0)) for leaf in self.leaves]


def _shaped(numbers: np.ndarray, section: Section) -> Any:
    if section.dtype is None:
        return float(numbers[0])
    is_float = section.dtype.is_floating_point
    is_whole = not is_float and bool((numbers == np.rint(numbers)).all())
    kept = torch.int64 if section.dtype == torch.bool else section.dtype
    found = torch.from_numpy(numbers).to(kept if is_float or is_whole else torch.float64)
    if section.is_bare:
        return found.view(section.schema.leaves[0].shape)
    return tree.Flat(
        coded.spread(found.view(1, -1), section.schema), replace(section.schema, dtype=found.dtype)
    )


def read(total: np.ndarray, schema: Words, num_counted: int) -> Read:
    """Read the sum of `num_counted` rows.

    Raises SecrecyError E_COUNT where the count lane says another number: masks that do not cancel, another
    model or plan at some site, or a site that lies.
    """
    if int(total[-1]) != num_counted:
        raise SecrecyError(
            "E_COUNT", f"{num_counted} sites were to be in the sum and its count lane says another number: "
            "masks did not cancel, sites were shown different rounds, or one has lied"
        )  # fmt: skip
    leaves: list[np.ndarray] = []
    weights: dict[str, float] = {}
    cut: dict[str, int] = {}
    for section in schema.sections:
        words = total[section.start : section.stop]
        if section.encoding is None:
            leaves.append(words if section.is_ring else numbers_of(words, schema.digit_bits))
            continue
        found = decode(words, section.encoding, num_counted, warns=False)  # a cap that is learnt starts wide
        leaves.append(found.values * section.encoding.max_weight)
        weights[section.name] = found.weight * section.encoding.max_weight
        cut[section.name] = cut.get(section.name, 0) + found.num_cut
    sums = {}
    for name, value in schema.values.items():
        places = [place for _, place in tree.leaves(value)]
        own, parts = [schema.sections[place] for place in places], [leaves[place] for place in places]
        sums[name] = OpenedSum(value, own, parts, weights.get(name))
    return Read(sums, num_counted, cut)
