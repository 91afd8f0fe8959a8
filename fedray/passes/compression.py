"""Compression: passes that make what an algorithm sends smaller, without a line of the algorithm.

    passes=[fr.passes.topk(0.01)]             a site sends 1% of an update, and remembers the rest

What the server sends is made smaller in downlink.py.

What travels. `topk`, `qsgd`, `sign`, `scaled_sign` and `ef21` give a site's update a coded form
(`coders.py`). A site that is alone in its process, as a hospital is, sends these very bytes, and its parent
decodes them: the column "per site" of `egress` counts them. A process that holds several sites, as in a
simulation, adds the decoded rows to one exact sum and sends that ("per pack"): there the coding is computed
and its effect on training is exact, but the bytes of the single sites never exist; `site_bytes` in the
record of a round says what they would be. `randk` and `powersgd` (powersgd.py) are linear: the sum itself is
smaller, everywhere. With `fold="fast"` a site that is alone sends its update uncoded.

What a pass remembers at a site is a slot: it becomes current only where the site was counted. Draws come
from a stream of the pass's own name, so an algorithm draws what it drew without the pass. Numbers and whole
numbers inside an update are sent as they are.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from fedray import coded, tree
from fedray.coded import Decode, Encode
from fedray.core import trace as fr
from fedray.core.rewrite import Pass, on_reduce
from fedray.core.trace import Site
from fedray.core.value import Value, lift
from fedray.errors import PassError
from fedray.passes.coders import Levels, Picks, ScaledSigns, Signs, TopK, check_fraction
from fedray.rng import SERVER, Key
from fedray.rows import Column, Group, Tagged, column, row, rows_of

Names = Collection[str]


def topk(fraction: float = 0.01, only: Names = ("delta",)) -> Pass:
    """Send the numbers of largest magnitude of each update, and add what was left out to the next one.

    p = update + memory; sent = top(p); memory = p - sent. Of equal magnitudes the first is sent; `fraction`
    of each tensor or flat model is rounded up. With weights the mean is that of the sent rows, and the
    memory is in units of the update, so a site whose weight changes repays at its new weight. A site sends k
    values in their own dtype and k places of ceil(log2 n) bits. Refused by a pass that masks sums: supports
    differ from site to site. Source: Stich, Cordonnier, Jaggi, Sparsified SGD with memory, NeurIPS 2018,
    Algorithm 1, on updates of several local steps in place of gradients.
    """
    check_fraction("topk", fraction)
    return _with_memory(TopK(fraction), "topk", only)


def scaled_sign(only: Names = ("delta",)) -> Pass:
    """Send signs and the mean magnitude of each update, and add the error to the next one.

    p = update + memory; sent = mean |p| * sign(p); memory = p - sent. A zero counts as positive, since a sign
    is one bit. Works on the whole update, not layer by layer.
    Source: Karimireddy, Rebjock, Stich, Jaggi, Error feedback fixes SignSGD, ICML 2019, Algorithm 1.
    """
    return _with_memory(ScaledSigns(), "scaled_sign", only)


def _with_memory(coder: Any, label: str, only: Names) -> Pass:
    def compressed(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        owed = x + site.slot(f"{label}.{name}", like=x)
        sent = _coded(coder, owed)
        site.store(f"{label}.{name}", owed - sent)
        return fr.mean(sent, weight=weight, name=name)

    return on_reduce("mean", only, coder.title)(compressed)


def _coded(coder: Any, x: Value, *key: Value) -> Value:
    return fr.map(Decode(coder), fr.map(Encode(coder), x, *key))


def qsgd(levels: int = 127, bucket: int | None = None, only: Names = ("delta",)) -> Pass:
    """Round each number at random to a multiple of norm / levels, so that it is right on average.

    `levels` is the paper's s; a number takes ceil(log2(2 s + 1)) bits: 8 for 127, 2 for 1. The norm is that
    of the whole update, or of each `bucket` numbers in a row, which needs one number more for each and errs
    less. No memory: the rounding is unbiased. Deviation: codes of fixed width in place of Elias codes, so
    that the number of bytes does not depend on the data. Source: Alistarh et al., QSGD, NeurIPS 2017,
    section 3.1, and section 4 for buckets; on updates of several local steps as Reisizadeh et al., FedPAQ,
    AISTATS 2020.
    """
    coder = levels_of("qsgd", levels, bucket)

    def quantised(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        return fr.mean(_coded(coder, x, site.stream(f"qsgd.{name}")), weight=weight, name=name)

    return on_reduce("mean", only, coder.title)(quantised)


def levels_of(who: str, levels: int, bucket: int | None) -> Levels:
    """Return the coder of random rounding. Raises ValueError on numbers that cannot be."""
    if not 1 <= levels < 2**15:
        raise ValueError(f"{who}: levels={levels} is not in [1, 32767], say 127 (8 bits a number)")
    if bucket is not None and bucket < 1:
        raise ValueError(f"{who}: bucket={bucket} is not a number of values, say 512")
    return Levels(levels, bucket)


@dataclass(frozen=True)
class Pick:
    """Keep the numbers at coordinates that depend on (run seed, round, label) and not on the site."""

    fraction: float
    is_unbiased: bool
    label: str

    @property
    def guard(self) -> str:
        """As `egress` shows it."""
        return f"randk {self.fraction:g} (common seed)"

    def __call__(self, x: Any, key: Key) -> Any:
        """Pick from the value of one site."""
        return coded.alone(self.rows, x, key)

    def rows(self, group: Group, x: Tagged, key: Tagged) -> Any:
        """Pick from the values of a group."""
        own = key.value.items[0]
        stream = Key(own.seed, own.round, SERVER, self.label)
        return Encode(Picks(self.fraction, self.is_unbiased, stream)).rows(group, x)


@dataclass(frozen=True)
class Unpick:
    """Put picked numbers, or a mean of them, back in their places."""

    def __call__(self, picked: Any) -> Any:
        """Put the numbers of one site, or of the server, back."""
        return coded.alone(self.rows, picked)

    def rows(self, group: Group, picked: Tagged) -> Any:
        """Put the numbers of a group back."""
        return Decode(None).rows(group, picked)


def randk(fraction: float = 0.01, error_feedback: bool = True, only: Names = ("delta",)) -> Pass:
    """Send numbers at random coordinates, the same at every site, new in each round.

    With error feedback p = update + memory; sent = p at the coordinates; memory = p elsewhere. Without, the
    numbers are sent times n / k, which is right on average and needs no memory.
    Coordinates are drawn from (run seed, round), so they do not travel, rows add up, and the sum itself is
    small: what `egress` lists are k numbers in all cases, and sums may be masked.
    Source: Stich, Cordonnier, Jaggi, NeurIPS 2018 (rand_k with memory, Algorithm 1); the scaled form is
    Konecny and Richtarik, Randomized distributed mean estimation, 2018. Deviation: common coordinates.
    """
    check_fraction("randk", fraction)

    def picked(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        pick = Pick(fraction, not error_feedback, f"randk.{name}")
        owed = x + site.slot(f"randk.{name}", like=x) if error_feedback else x
        sent = fr.map(pick, owed, site.stream(f"randk.{name}"))
        if error_feedback:
            site.store(f"randk.{name}", owed - fr.map(Unpick(), sent))
        return fr.apply(Unpick(), fr.mean(sent, weight=weight, name=name))

    return on_reduce("mean", only, f"randk({fraction:g})")(picked)


@dataclass(frozen=True)
class Vote:
    """Turn the mean of the sites' signs into a step of fixed length for each number."""

    lr: float

    def __call__(self, mean: Any) -> Any:
        """Return lr * sign; zero where as many sites vote for as against."""
        return tree.map(lambda leaf: _sign(leaf) * self.lr, mean)


def _sign(leaf: Any) -> Any:
    return leaf.sign() if isinstance(leaf, torch.Tensor) else float((leaf > 0) - (leaf < 0))


def sign(lr: float, weights: str | None = None, only: Names = ("delta",)) -> Pass:
    """Let the sites vote, one bit for each number; the server moves by `lr` in the direction of the majority.

    `lr` is the paper's step: the mean update becomes lr * sign(sum of signs). A tie moves nothing; a zero at
    a site counts as positive, since a vote is one bit. The server counts votes, so it learns their sums. One
    site has one vote: a weighted mean is refused unless `weights="uniform"` says to drop the weights.
    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar, signSGD, ICML 2018, Algorithm 3 (majority vote), on
    updates of several local steps in place of gradients.
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"sign: lr={lr} is no number above 0, say 0.001: each number moves by it in a round")
    if weights not in (None, "uniform"):
        raise ValueError(f"sign: weights={weights!r}: say 'uniform' to drop the weights of a mean")
    coder = Signs()

    def voted(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        if weight is not None and weights is None:
            raise PassError(
                f"sign: {name} is a weighted mean and a site has one vote: train with equal weights "
                "(algorithm.weighted=false), or say weights='uniform' to drop them"
            )
        return fr.apply(Vote(lr), fr.mean(_coded(coder, x), name=name))

    return on_reduce("mean", only, coder.title)(voted)


@dataclass(frozen=True)
class Tracked:
    """The server's side of EF21: the sum of weight * h over all sites seen, and the sum of their weights."""

    def __call__(self, memory: Any, change: Any, total: float, new: float) -> Any:
        """Take the weighted mean change of h over the cohort, its weight, and the weight of new sites."""
        before = tree.zeros_like(change) if memory is None else memory["sum"]
        weight = float(new) + (0.0 if memory is None else memory["weight"])
        return {"sum": tree.add(before, tree.scale(change, float(total))), "weight": weight}


def estimate(memory: Any) -> Any:
    """Return the mean of h over all sites seen so far."""
    return tree.scale(memory["sum"], 1.0 / memory["weight"])


def first_weight(seen: float, weight: float) -> float:
    """Return the weight that a site brings in: its own the first time, nothing later.

    Raises ValueError where it is another one than before: the server's mean holds the site at the old one.
    """
    if seen and weight != seen:
        raise ValueError("ef21 needs weights that stay the same at a site: train with equal weights")
    return 0.0 if seen else float(weight)


@rows_of(first_weight)
def _first_weights(group: Group, seen: Tagged, weight: Tagged) -> Column:
    pairs = [(row(seen, index), row(weight, index)) for index in range(group.k)]
    return column([first_weight(float(before), float(now)) for before, now in pairs])


def ef21(fraction: float = 0.01, only: Names = ("delta",)) -> Pass:
    """Send the largest changes of what the server believes of each site, and average the beliefs.

    c = top(update - h); h += c at the site; the server keeps the mean of h over all sites that ever took part
    and gives that to the algorithm in place of the cohort's mean: sites that were not asked this round stay
    in it with their last h. With full participation and equal weights this is Algorithm 2 of the paper with
    g_i^0 = top(update); under partial participation it is EF21-PP, but a site enters the mean when it is
    first counted, while there all n sites are in it from the start. A weighted mean takes weights that stay
    the same at each site. A round of several site stages that loses a site after it has sent may leave the
    server's mean ahead of the site's h; rounds of one site stage cannot. Source: Richtarik, Sokolov,
    Fatkhullin, EF21, NeurIPS 2021, Algorithm 2; Fatkhullin et al., EF21 with bells and whistles, 2021
    (EF21-PP).
    """
    check_fraction("ef21", fraction)
    coder = TopK(fraction)

    def tracked(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        slot = f"ef21.{name}"
        belief = site.slot(slot, like=x)
        change = _coded(coder, x - belief)
        site.store(slot, belief + change)
        seen = site.slot(f"{slot}.weight", like=0.0)
        new = fr.map(first_weight, seen, 1.0 if weight is None else weight)
        site.store(f"{slot}.weight", seen + new)
        mean = fr.mean(change, weight=weight, name=name)
        total = fr.count(site) if weight is None else fr.sum(_with(change, weight), name=f"{name}.total")
        more = fr.sum(_with(change, new), name=f"{name}.new")
        memory = fr.apply(Tracked(), site.server.slot(slot), mean, total, more)
        site.server.store(slot, memory)
        return fr.apply(estimate, memory)

    return on_reduce("mean", only, f"ef21({fraction:g})")(tracked)


def _with(change: Value, number: Value) -> Value:
    """Return a number in the stage of the change, so that their sums see the same sites."""
    return Value(lift({"change": change, "number": number}))["number"]
