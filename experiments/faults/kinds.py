"""Which faults there are, where in a round they hit, and how a schedule of both is drawn from a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.faults import study

ROUNDS = 6
EVALUATED = range(1, ROUNDS - 1, 2)  # rounds after which the sites evaluate
HOSTS = {"eu": ("eu1", "eu2"), "us": ("us1",)}
PACKS = ("eu.pack0", "us.pack0")
ALONE = "eu.pack1"  # a pack with one site: that site's own actor
KINDS = (
    "kill_site", "kill_pack", "kill_region", "kill_aggregator", "kill_driver", "kill_raylet", "kill_head",
    "cut_5s", "cut_60s", "cut_one_way", "delay", "duplicate_frames", "duplicate_calls", "disk_full",
)  # fmt: skip
POINTS = {  # of a round, in their order -> who is there
    "open": "a site, while its data is opened, before the first round",
    "ask": "the aggregator or a region, before it sends anything down",
    "received": "a pack that has been sent the model, before it trains",
    "train": "a site, while it trains",
    "answered": "a pack that has trained, before it answers",
    "gathered": "the aggregator or a region that has the answers below it, before it goes on",
    "evaluate": "a pack, while its sites evaluate",
    "between": "the driver, between two rounds",
    "write": "the aggregator, in the middle of a checkpoint",
}
LOSES_SITES = ("kill_raylet", "kill_head")  # their sites may count as failed until the node is back
DEADLINED = ("cut_5s", "cut_60s", "cut_one_way", "delay", "kill_pack", "kill_site", "kill_region")
NEVER_S, DEADLINE_S = 1e9, 4.0
MOST_FULL, FULL_S, PAUSE_S = 1, 1.5, 0.5


@dataclass(frozen=True)
class Schedule:
    """One fault at one point of one round of one run."""

    seed: int
    number: int
    kind: str
    algorithm: str
    every_s: float  # between two checkpoints
    point: str = ""  # where the run is held until the fault was seen
    round: int = -1
    who: str = ""  # is held there
    target: str = ""  # what the fault hits: a process by name, a host, or a region whose link it is
    way: str = "both"  # of a cut: also "out" or "in", seen from the aggregator
    seconds: float = 0.0  # that it lasts, where it lasts
    deadline_s: float | None = None  # of a site stage: who misses it is not counted
    pause_s: float = 0.0  # after each round

    @property
    def replay(self) -> str:
        """The line that runs this schedule again."""
        return f"python -m experiments.chaos --seed {self.seed} --only {self.number}"

    @property
    def told(self) -> str:
        """The schedule in words."""
        more = f" for {self.seconds:g} s" if self.seconds else ""
        more += f", {self.way} alone" if self.way != "both" else ""
        limit = f", deadline {self.deadline_s:g} s" if self.deadline_s else ""
        return (f"{self.number} {self.kind} of {self.target}{more} at {self.point} of {self.who} in round "
                f"{self.round}, {self.algorithm}{limit}")  # fmt: skip


def draw(seed: int, number: int, kinds: tuple[str, ...] = KINDS) -> Schedule:
    """Return a schedule: kinds take turns, all else is drawn."""
    draws = random.Random(f"{seed}/{number}")
    kind = kinds[number % len(kinds)]
    point = draws.choice([*POINTS])
    round = -1 if point == "open" else draws.randrange(ROUNDS - 1)
    if point == "evaluate":
        round = draws.choice([*EVALUATED])
    if kind == "disk_full" and round > MOST_FULL:  # there is room again before the last checkpoint
        round = MOST_FULL
    every_s = 0.0 if point == "write" or kind == "disk_full" else draws.choice([0.0, NEVER_S])
    way, seconds = _lasting(kind, draws)
    return Schedule(
        seed=seed,
        number=number,
        kind=kind,
        point=point,
        round=round,
        who=_who(point, round, draws),
        target=_target(kind, draws),
        way=way,
        seconds=seconds,
        algorithm=draws.choice(study.ALGORITHMS),
        every_s=every_s,
        pause_s=PAUSE_S if kind == "disk_full" else 0.0,
        deadline_s=DEADLINE_S if kind in DEADLINED and draws.random() < 0.4 else None,
    )


def _who(point: str, round: int, draws: random.Random) -> str:
    """Return who is held at a point; a site, or the pack of a site, that the round asks."""
    if point in ("ask", "gathered"):
        return draws.choice(["aggregator", *HOSTS])
    if point in ("between", "write"):
        return {"between": "driver", "write": "aggregator"}[point]
    if point == "open":
        return draws.choice(study.SITES)
    asked = study.cohort(round) if point != "evaluate" else study.SITES
    site = draws.choice(asked)
    return site if point == "train" else study.pack_of(site)


def _target(kind: str, draws: random.Random) -> str:
    if kind == "kill_site":
        return ALONE
    if kind == "kill_pack":
        return draws.choice(PACKS)
    if kind == "kill_raylet":
        return draws.choice([host for hosts in HOSTS.values() for host in hosts])
    if kind in ("kill_aggregator", "kill_driver", "kill_head"):
        return kind.removeprefix("kill_")
    if kind in ("disk_full", "duplicate_calls"):
        return {"disk_full": "checkpoints", "duplicate_calls": "calls"}[kind]
    return draws.choice([*HOSTS])


def _lasting(kind: str, draws: random.Random) -> tuple[str, float]:
    if kind == "cut_one_way":
        return draws.choice(["out", "in"]), draws.choice([5.0, 15.0])
    return "both", {"cut_5s": 5.0, "cut_60s": 60.0, "delay": 6.0, "duplicate_frames": 5.0,
                    "disk_full": FULL_S}.get(kind, 0.0)


def one_of_each(seed: int) -> Iterator[Schedule]:
    """Yield one schedule of each kind."""
    yield from (draw(seed, number) for number in range(len(KINDS)))
