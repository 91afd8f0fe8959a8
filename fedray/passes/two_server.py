"""Two aggregators: a site's words are split into two random shares, and each aggregator sees one of them.

Sites agree on no keys, a round keeps its stages, and a lost site costs nothing. The server adds the hidden
words up; the second aggregator opens the seeds that hide them, which are sealed for it, and tells the sum of
what they stand for. Here both run at the server's placement, so the split is exercised, and protects nobody
until the second aggregator is a process of another owner.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fedray import rows, tree
from fedray.core.graph import MADE_UP, Asked, Claim, Graph, Label, Node, Op, Placement
from fedray.core.rewrite import Pass
from fedray.passes.secure_graph import SEALED, Fused, call, gathered, masked_total
from fedray.passes.secure_hub import Messages, ending
from fedray.passes.secure_rewriting import Hiding, hidden
from fedray.passes.secure_setup import digest_of
from fedray.passes.secure_steps import Lane, Opened, opened
from fedray.passes.secure_sum import BUT, MIN_COHORT, Settings, as_policy
from fedray.passes.secure_words import Agreed, read
from fedray.rows import Group, Ragged, Rows, Same, Tagged
from fedray.secrecy import keys
from fedray.secrecy.two_server import Aggregator, open_seed, seal_seed, split

SERVER, SITES = Placement.SERVER, Placement.SITES
IDEAL = "simulated, no protection: both aggregators are in the server's process"


@dataclass
class Second:
    """The second aggregator in one round: its private key, and whom it expects."""

    private: bytes
    context: bytes
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class SecondKey:
    """What sites are told of it."""

    public: torch.Tensor
    context: bytes
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Begin:
    """Make the second aggregator's key of a round."""

    one_shot: ClassVar[bool] = True

    def __call__(self, asked: Asked, agreed: Agreed) -> Second:
        """Return the second aggregator."""
        told = f"{asked.run}/{asked.round}/{asked.attempt}/{digest_of(agreed)}"
        return Second(os.urandom(32), keys.context_hash({"two_server": told}), tuple(asked.cohort))


@dataclass(frozen=True)
class ShowKey:
    """Tell the sites the key to seal with."""

    grants: ClassVar[Label] = Label.PUBLIC

    def __call__(self, second: Second) -> SecondKey:
        """Return the public key."""
        public = keys.public_key(keys.private_key(second.private))
        told = torch.frombuffer(bytearray(public), dtype=torch.uint8)
        return SecondKey(told, second.context, second.cohort)


@dataclass(frozen=True)
class Split:
    """Hide a site's words under a fresh seed, and seal the seed for the second aggregator."""

    guard: ClassVar[str] = "split between two aggregators, simulated"
    grants: ClassVar[Label] = Label.MASKED
    one_shot: ClassVar[bool] = True

    def __call__(self, words: Any, told: SecondKey, site: str) -> dict[str, Any]:
        """Split the words of one site."""
        found = self.rows(Group([site]), rows.stack([words]), Same(told), Rows(Ragged([site])))
        return {name: rows.row(Rows(value), 0) for name, value in found.items()}

    def rows(self, group: Group, words: Tagged, told: Tagged, site: Tagged) -> dict[str, Any]:
        """Split the words of a group, in memory of their own."""
        flat, key = rows.expand(words, group.k), rows.row(told, 0)
        hidden_words = np.zeros(tuple(flat.buffer.shape), np.uint32)
        seeds: list[torch.Tensor | None] = [None] * group.k
        for row in group.alive:
            hidden_words[row] = flat.buffer[row].numpy()
            seed = split(hidden_words[row])
            place = key.cohort.index(group.ids[row])
            sealed = seal_seed(seed, key.public.numpy().tobytes(), key.context, place)
            seeds[row] = torch.frombuffer(bytearray(sealed), dtype=torch.uint8)
        return {"words": tree.Flat(torch.from_numpy(hidden_words), flat.schema), "seed": Ragged(seeds)}


@dataclass(frozen=True)
class Seed:
    """The share of the second aggregator: sealed, so that the server that carries it cannot read it."""

    grants: ClassVar[Label] = Label.SEALED

    def __call__(self, seed: torch.Tensor, words: Any) -> torch.Tensor:
        """Return the sealed seed of one site."""
        return seed

    def rows(self, group: Group, seed: Tagged, words: Tagged) -> Any:
        """Return the sealed seeds of a group."""
        return rows.expand(seed, group.k)


@dataclass(frozen=True)
class Masks:
    """What the second aggregator tells: the sum of what hides the words, and of how many sites."""

    words: np.ndarray
    num_sites: int


@dataclass(frozen=True)
class SumSeeds:
    """Open the seeds of the sites that delivered, and add up what they stand for."""

    min_cohort: int
    grants: ClassVar[Label] = Label.MASKED
    hides: ClassVar[Label] = Label.AGG  # a sum over sites

    def __call__(self, second: Second, seeds: Messages, total: Any) -> Masks:
        """Return the sum of the masks. Raises QuorumError below the least cohort."""
        least = 1 if set(seeds) <= set(MADE_UP) else self.min_cohort
        with ending():
            aggregator = Aggregator(total.parts.schema.stride, min_cohort=least)
            for site, sealed in seeds.items():
                place = second.cohort.index(site)
                seed = open_seed(sealed.numpy().tobytes(), second.private, second.context, place)
                aggregator.accept(place, seed)
            return Masks(aggregator.total(aggregator.sites), len(seeds))


@dataclass(frozen=True)
class TakeOff:
    """Take the masks off the sum, and read it."""

    lanes: tuple[Lane, ...]
    grants: ClassVar[Label] = Label.AGG

    def __call__(self, total: Any, masks: Masks) -> Opened:
        """Return the sums."""
        flat = total.parts
        words = np.subtract(flat.buffer.numpy()[0], masks.words)
        return opened(read(words, flat.schema, masks.num_sites), self.lanes)


def two_server(
    min_cohort: int = MIN_COHORT,
    clip: float | Mapping[str, float] | None = None,
    weight_cap: float | None = None,
) -> Pass:
    """Split each site's sums between two aggregators that do not collude: either sees uniform words.

    `clip`, `weight_cap` and the bits of the result are those of `secure_sum`.
    Privacy: hides one site's value from each aggregator alone; here both are in one process, which is said in
    `egress` and the trust statement. Raises SecurityConflict where the round shows more than sums.
    """
    settings = Settings(by="two_server", min_cohort=min_cohort, clip=clip, weight_cap=weight_cap)
    trusts = "whoever runs both aggregators, here one process, with each site's own value"
    claim = Claim(
        by="two_server", text=IDEAL, trusts=trusts, but=BUT, is_hidden=True, is_simulated=True
    )

    def hide(sum_: Fused) -> Node:
        asked = Node(Op.INPUT, SERVER, params={"slot": "asked"}, where=sum_.where)
        second = call(Begin(), SERVER, (asked, sum_.agreed), sum_.where)
        key = call(ShowKey(), SERVER, (second,), sum_.where)
        told = Node(Op.BROADCAST, SITES, (key,), name=sum_.prefix, where=sum_.where)
        shares = call(Split(), SITES, (sum_.words, told, sum_.site_id), sum_.where)
        words, seed = (
            Node(Op.GET, SITES, (shares,), params={"key": name, "attribute": False}, where=sum_.where)
            for name in ("words", "seed")
        )
        sealed = call(Seed(), SITES, (seed, words), sum_.where)
        seeds = gathered(sealed, f"{sum_.prefix}.seeds", SEALED.split(",")[0], sum_.where)
        total = masked_total(sum_, words)
        masks = call(SumSeeds(min_cohort), SERVER, (second, seeds, total), sum_.where)
        return call(TakeOff(sum_.lanes), SERVER, (total, masks), sum_.where)

    def run(graph: Graph) -> Graph:
        hiding = Hiding("two_server()", settings.bound_of, settings.weight_cap, hide)
        return hidden(graph, hiding, claim)

    return as_policy(run, settings)
