"""What all parties of a secure sum agree on before it begins, and a site's own rules beside it."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedray.errors import SecrecyError
from fedray.secrecy.encoding import Encoding
from fedray.secrecy.graph import MIN_SITES, Server, Topology
from fedray.secrecy.keys import SUITE, context_hash

MAX_BATCH = 16  # rounds of one setup; 128 bytes each a neighbour, two shares and their hashes


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The public facts of a batch of rounds. Whoever holds other terms derives other keys.

    `cohort` are site ids in ascending order; a site's number is its place in it. `num_words` is the length of
    the vectors that are summed, lanes included, None where it is not known when the terms are made. `agreed`
    holds further facts by name, as hex or text: hashes of roster, plan, manifest and code.
    """

    run_id: str
    cohort: tuple[str, ...]
    encoding: Encoding
    num_words: int | None
    topology: Topology
    server: Server = "active"
    min_cohort: int = 5
    first_round: int = 0
    num_rounds: int = 1
    agreed: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if list(self.cohort) != sorted(set(self.cohort)):
            raise ValueError("the cohort is in ascending order, without repeats")
        if len(self.cohort) > self.encoding.num_sites:
            raise ValueError(
                f"{len(self.cohort)} sites, but the encoding has room for {self.encoding.num_sites}"
            )
        if not 1 <= self.num_rounds <= MAX_BATCH:
            raise ValueError(f"a setup serves 1 to {MAX_BATCH} rounds, not {self.num_rounds}")
        if self.min_cohort < MIN_SITES:
            raise ValueError(
                f"min_cohort is {MIN_SITES} or more: with two sites each learns the other's vector"
            )

    @cached_property
    def context(self) -> bytes:
        """The hash of all terms: the salt of the keys of the setup."""
        encoding = self.encoding
        return context_hash(
            {
                "suite": SUITE,
                "run_id": self.run_id,
                "cohort": self.cohort,
                "num_words": self.num_words,
                "n_max": encoding.num_sites,
                "bound": encoding.bound.hex(),
                "max_weight": encoding.max_weight.hex(),
                "bits": encoding.bits,
                "rounding": encoding.rounding,
                "noise_std": encoding.noise_std.hex(),
                "degree": self.topology.degree,
                "threshold": self.topology.threshold,
                "server": self.server,
                "min_cohort": self.min_cohort,
                "first_round": self.first_round,
                "num_rounds": self.num_rounds,
                "agreed": dict(self.agreed),
            }
        )

    def place_of(self, round: int) -> int:
        """Return a round's place in the batch. Raises SecrecyError E_STALE or E_FUTURE outside it."""
        place = round - self.first_round
        if not 0 <= place < self.num_rounds:
            code = "E_STALE" if place < 0 else "E_FUTURE"
            raise SecrecyError(
                code, f"round {round} is not of the batch of {self.num_rounds} from {self.first_round}"
            )
        return place

    def check(self, sites: Collection[int]) -> None:
        """Raise SecrecyError E_COHORT or E_THRESHOLD if these sites are too few to go on."""
        if len(sites) < self.min_cohort:
            raise SecrecyError("E_COHORT", f"{len(sites)} sites are left, {self.min_cohort} must be")
        if self.topology.degree is None and len(sites) < self.topology.threshold:
            raise SecrecyError(
                "E_THRESHOLD", f"{len(sites)} sites are left, {self.topology.threshold} rebuild a secret"
            )

    def check_holders(self, holders: Collection[int], living: Collection[int]) -> None:
        """Raise SecrecyError E_THRESHOLD if too few holders of some shares live."""
        if len(set(holders) & set(living)) < self.topology.threshold:
            raise SecrecyError("E_THRESHOLD", "a site has too few living neighbours to rebuild its secrets")


MIN_DELTA = 3  # sites whose sum the difference of two sums may show


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A site's own rules, which no server's terms can loosen.

    Without differential privacy a model is answered for one set of sites: the same set again, or one that
    differs by `min_delta` sites or more if other code trains; anything between tells single sites apart.
    With `second_set` the same code may have one other set, which differs by so many, so that a model whose
    sum was opened in vain, and of whose sites one never returns, is not lost. Never a third: of several sums
    that differ by three sites each, single sites can be worked out.
    """

    min_cohort: int = 5
    min_delta: int = MIN_DELTA
    has_dp: bool = False
    second_set: bool = False

    def check_cohort(self, num_sites: int) -> None:
        """Raise SecrecyError E_COHORT below the site's own minimum."""
        if num_sites < self.min_cohort:
            raise SecrecyError("E_COHORT", f"{num_sites} sites, this site asks for {self.min_cohort}")

    def check_differencing(
        self,
        sites: Collection[str],
        model: str,
        trainer: str,
        before: Collection[tuple[str, str, frozenset[str]]],
    ) -> None:
        """Raise SecrecyError E_DIFFERENCING if a sum of these sites beside earlier ones isolates a few.

        `before` holds (model, trainer, sites) of every sum of the site's that was opened.
        """
        same = {release for release in before if release[0] == model}
        if self.has_dp or (model, trainer, frozenset(sites)) in same:
            return  # what was opened for these sites may be opened for them again
        num_sets = sum(release[1] == trainer for release in same)
        for _, trainer_before, sites_before in same:
            delta = len(sites_before ^ frozenset(sites))
            is_second = self.second_set and num_sets == 1
            if delta and (delta < self.min_delta or (trainer_before == trainer and not is_second)):
                raise SecrecyError(
                    "E_DIFFERENCING",
                    f"a sum of this model with {delta} other sites was opened "
                    "before: their difference shows them",
                )
