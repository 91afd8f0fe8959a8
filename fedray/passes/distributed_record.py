"""Privacy for patients across sites in lock step: `distributed_record`, DP-SGD without a trusted hospital.

    passes=[fr.passes.distributed_record(clip=1.0, sampling_rate=0.1, epsilon=3, rounds=100,
                                         num_patients=1300, num_params=212, cohort=185, unit="patient"),
            fr.passes.secure_sum()]

It rewrites any algorithm whose round is one gradient step at each site and a mean at the server (FedAvg and
its server optimizers, with local=sgd and steps=1). Every site draws each of its patients with the same
probability, clips the gradient of each, sends the SUM, rounded to integers and with a share of integer noise,
into a secure sum; the server divides by the expected number of patients and steps. That is DP-SGD on the
pooled patients, so its noise is that of one hospital with all of them.

Unit: a patient (all records of one at one site), or a row without `unit`; a patient with records at two
sites is two units. Adjacency: add/remove of one. Noise by the sites, in shares; trusted: nobody, if the
fraction `honest` of the sites is honest and delivers. Public: how many patients there are.
"""

import math
from dataclasses import dataclass, replace

from fedray.accounting import Mechanism, accountant, calibrate
from fedray.core import trace as fr
from fedray.core.graph import Claim, Graph, Node, Op
from fedray.core.rewrite import Pass, Replacement, on_reduce, rewrite
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError
from fedray.noise import Source
from fedray.passes.clipping import check_bound
from fedray.passes.distributed import HALF_RING, LEAST_STD, RESERVE, STEP, FromRing, Ring, Share
from fedray.passes.site_level import Cohort
from fedray.settings import check_numbers, check_whole

UPDATE, METRICS = "delta", "metrics"
ROOM = 6.0  # standard deviations of a batch above its expected size that a site's sum may be long for


@dataclass(frozen=True, kw_only=True)
class RecordRing(Ring):
    """A ring for sums over patients: `bound` is the largest norm of a site's sum, `clip` that of a patient.

    One patient more changes a site's sum before it is rounded, and then each number may be rounded the other
    way: by up to one step, so a row by sqrt(size).
    """

    clip: float

    @property
    def largest(self) -> int:
        """Steps of a number at the bound: all sites at it, and the noise of all, stay below half the ring."""
        most = RESERVE * self.noise_multiplier / math.sqrt(self.honest)
        of_bound = self.num_sites + most * self.clip / self.bound
        return math.floor((HALF_RING - most * math.sqrt(self.size)) / of_bound)

    @property
    def l2(self) -> float:
        """How far one patient moves the sum, in steps."""
        return self.clip * self.scale + math.sqrt(self.size)

    @property
    def l1(self) -> float:
        """The same in the sum of magnitudes: of whole numbers never above the square."""
        return min(math.sqrt(self.size) * self.l2, self.l2**2)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `distributed_record`, checked together."""

    clip: float
    sampling_rate: float
    num_patients: float
    cohort: float
    num_params: int
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    rounds: int | None
    unit: str | None
    honest: float
    max_site_norm: float | None
    max_noise: float

    def __post_init__(self) -> None:
        check_bound("distributed_record", self.clip)
        check_numbers("distributed_record", above=0, or_none=True, max_site_norm=self.max_site_norm)
        check_numbers("distributed_record", least=1, num_patients=self.num_patients, cohort=self.cohort)
        check_whole("distributed_record", num_params=self.num_params)
        problems = {
            f"sampling_rate={self.sampling_rate} must lie in (0, 1]": 0 < self.sampling_rate <= 1,
            f"honest={self.honest} must lie in (0, 1]": 0 < self.honest <= 1,
            "give noise_multiplier or epsilon, one of the two": (self.noise_multiplier is None)
            != (self.epsilon is None),
            "epsilon needs the rounds of the run": self.epsilon is None or self.rounds is not None,
        }
        if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
            raise ValueError("distributed_record: " + "; ".join(wrong))

    @property
    def batch(self) -> float:
        """The expected patients of a step, by which the sum is divided whoever was drawn."""
        return self.sampling_rate * self.num_patients

    def ring(self, noise_multiplier: float) -> RecordRing:
        """Return the ring. Raises ValueError where the shares of the noise would be too coarse."""
        longest = self.max_site_norm or self.clip * (self.batch + ROOM * math.sqrt(self.batch))
        ring = RecordRing(bound=longest, size=self.num_params, num_sites=math.ceil(self.cohort),
                          noise_multiplier=noise_multiplier, honest=self.honest, clip=self.clip)  # fmt: skip
        if ring.largest < 1 or math.sqrt(ring.share_variance) < LEAST_STD:
            raise ValueError(
                f"distributed_record: {ring.num_sites} sites whose sums may be {longest:g} long leave "
                f"a clip bound {max(ring.clip * ring.scale, 0):.3g} steps of the ring, and a share of the "
                f"noise needs {LEAST_STD:g}. Fix: a smaller max_site_norm (longer sums are cut)"
            )
        return ring

    def mechanism(self, ring: RecordRing) -> Mechanism:
        """Return what a round spends."""
        return Mechanism(
            kind="skellam", noise_multiplier=ring.noise_multiplier, sampling_rate=self.sampling_rate,
            unit="record" if self.unit is None else "patient", noise_by="sites", trusted="nobody",
            epsilon=self.epsilon, delta=self.delta, divisor=self.batch, max_noise=self.max_noise,
            variance=ring.variance, l2=ring.l2, l1=ring.l1, rounds=self.rounds or 1,
        )  # fmt: skip

    def calibrated(self) -> tuple[RecordRing, Mechanism]:
        """Return the ring and the release. An epsilon is met with a Gaussian's noise and somewhat more.

        More, because integer noise under sampling is accounted by Rényi divergences, whose bound is looser.
        """
        if self.noise_multiplier is not None:
            ring = self.ring(self.noise_multiplier)
            return ring, self.mechanism(ring)
        assert self.epsilon is not None and self.rounds is not None
        noise = calibrate.noise_multiplier(
            self.epsilon, self.delta, self.rounds, sampling_rate=self.sampling_rate
        )
        while True:
            ring = self.ring(noise)
            made = self.mechanism(ring)
            if accountant.epsilon({made: self.rounds}, self.delta) <= self.epsilon:
                return ring, made
            noise *= STEP


def distributed_record(
    clip: float, sampling_rate: float, num_patients: float, *, num_params: int, cohort: float,
    noise_multiplier: float | None = None, epsilon: float | None = None, delta: float = 1e-5,
    rounds: int | None = None, unit: str | None = None, max_records_per_unit: int | None = None,
    is_secret: bool = False, honest: float = 2 / 3, max_site_norm: float | None = None,
    max_noise: float = 10.0, source: Source | None = None,
) -> Pass:  # fmt: skip
    """Take one private gradient step a round on all patients together; needs a secure sum.

    `num_patients` of all sites together, `cohort` sites, all of which are asked in every round. The noise on
    the sum of honest sites is `noise_multiplier` x `clip`, or what `epsilon` at `delta` over `rounds` needs.
    A site's sum is cut at the norm `max_site_norm`, by default above what all drawn patients together reach.
    The other settings are those of `learn.private_sgd`.
    Raises: SecurityConflict where sums are not masked; PassError on a round that is no single step and mean;
    ValueError on settings that cannot be, a model that cannot be clipped or a ring that is too small.
    Source: Agarwal, Kairouz, Liu, The Skellam mechanism for differentially private federated learning,
    NeurIPS 2021, for the noise. Deviation: rounding to the nearest integer with its worst case, no rotation.
    """
    settings = Settings(
        clip=clip, sampling_rate=sampling_rate, num_patients=num_patients, num_params=num_params,
        cohort=cohort, noise_multiplier=noise_multiplier, epsilon=epsilon, delta=delta, rounds=rounds,
        unit=unit, honest=honest, max_site_norm=max_site_norm, max_noise=max_noise,
    )  # fmt: skip
    ring, mechanism = settings.calibrated()
    title = f"distributed_record(clip={clip:g}, noise_multiplier={ring.noise_multiplier:.4g})"
    share = Share(ring=ring, mechanism=mechanism, source=source,
                  cohort=Cohort(title="distributed_record", size=cohort))  # fmt: skip

    def run(graph: Graph) -> Graph:
        local = _only_local(graph)
        step = local.fn.lock_step(  # type: ignore[union-attr]
            mechanism=mechanism, clip=clip, unit=unit, max_records=max_records_per_unit, is_secret=is_secret
        )
        noisy = _noisy(share, settings.batch / step.lr)
        result = rewrite(graph, lambda node: replace(node, fn=step) if node.fn is local.fn else None)
        result = on_reduce("mean", (UPDATE,), title)(noisy)(result)
        return replace(result, name=f"{graph.name} + {title}", claims=(*graph.claims, _claim(settings, ring)))

    run.__name__ = title
    return run


def _noisy(share: Share, divisor: float) -> Replacement:
    def noisy(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        total: Value = fr.apply(FromRing(share.ring), fr.sum(fr.map(share, x), name=name))
        return total / divisor

    return noisy


def _claim(settings: Settings, ring: RecordRing) -> Claim:
    whose = "row (a stay), not patient" if settings.unit is None else settings.unit
    return Claim(
        by="distributed_record",
        text=f"{UPDATE}: each {whose} is drawn with probability {settings.sampling_rate:g}, adds at most "
        f"{settings.clip:g} (L2), and {settings.honest:.3g} of the sites' shares of Skellam noise make a "
        f"release with multiplier {ring.noise_multiplier:.4g}",
        trusts=f"nobody, if {settings.honest:.3g} of the sites are honest and deliver",
        but="numbers of patients are public; who was drawn follows from the run's seed, unless is_secret",
    )


def _only_local(graph: Graph) -> Node:
    """Return the one local training of a round that is a single step and a mean. Raises PassError else."""
    others = sorted({node.name for node in graph.reductions} - {UPDATE, METRICS})
    if others:
        raise PassError(
            f"distributed_record: {graph.name} also sends {', '.join(others)}, which would leave without "
            "noise. Fix: an algorithm that sends updates alone, as fedavg or fedadam"
        )
    found = [node for node in graph.nodes if hasattr(node.fn, "lock_step")]
    if len(found) != 1:
        raise PassError(
            f"distributed_record: {graph.name} has {len(found)} local trainings that can take one step in "
            "lock step, and needs one. Fix: fedavg or fedadam with local=sgd"
        )
    for node in graph.reductions:
        if any(_source_of(arg) is not found[0] for arg in node.args):
            raise PassError(
                f"distributed_record: {node.name} ({node.where}) is computed from more than the local "
                "training, which would be a second look at the patients. Fix: fedavg or fedadam"
            )
    if found[0].params.get("kwargs"):
        raise PassError(
            f"distributed_record: {graph.name} gives the local training {list(found[0].params['kwargs'])}, "
            "which acts on every site's gradient. Fix: fedavg or fedadam"
        )
    return found[0]


def _source_of(node: Node) -> Node:
    """Follow a value back through what only picks or checks it."""
    while node.op is Op.GET or (node.op is Op.CALL and node.params.get("lift") == "check"):
        node = node.args[0]
    return node
