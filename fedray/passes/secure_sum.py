"""Secure sums: the server learns the sum of the sites' values, and of no site its own.

    passes=[fr.passes.secure_sum(mode="real")]

The pass asks for the lowered form of a round and puts, in place of the fused sums of each stage, a
sub-program: sites write their values as words of a ring (`secure_words.py`), masks are added, the masked rows
are summed, and the server takes the masks off the sum with what survivors reveal (`secure_masks.py`; the
protocol and its citations are in docs/secure-sums.md). `mode="ideal"` adds the same words without masks:
equal bits, no protection, for simulation.

Start reading at `secure_sum`, then `hidden` (secure_rewriting.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedray.core.digest import digest
from fedray.core.flow import has_noise_of_sites
from fedray.core.graph import Claim, Graph, Node, Op, Placement
from fedray.core.rewrite import Pass
from fedray.passes.secure_graph import Fused, Masking, announced, call, gathered, group_totals, masked_total
from fedray.passes.secure_groups import OpenGroups, means_for_rules
from fedray.passes.secure_rewriting import Hiding, hidden
from fedray.passes.secure_setup import Rules
from fedray.passes.secure_steps import IDEAL_GUARD, Named, ReadPlain
from fedray.secrecy.graph import MAX_FULL
from fedray.settings import is_number, is_whole

SERVER, SITES = Placement.SERVER, Placement.SITES
MODES = ("ideal", "real")
SERVERS = ("active", "curious")
MIN_COHORT = 5  # of three with one colluder, two are left, and their sum is the other's value
TRUSTS = {
    "active": "more than two thirds of the sites do not collude with the server; the server, for which key "
    "belongs to which site: keys are shown through it in each round (a site agent pins a roster)",
    "curious": "the server follows the protocol, and more than half of the sites do not collude with it",
}
BUT = (
    "sums: of few sites, with one large site among them, or over many rounds they tell much of each, and a "
    "server that publishes a trap model reads rows out of them; nobody sees whether a masked update is honest"
)
SECOND_SET = (
    "; after a round without a result two sums of one model may be opened, whose difference shows the sum of "
    "3 sites"
)
IDEAL = f"{IDEAL_GUARD}: the sites' words are added without masks (mode=ideal)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user says of secure sums; see `secure_sum`. `by` is the pass that was told."""

    by: str = "secure_sum"
    mode: str = "ideal"
    threshold: float | int | None = None
    server: str = "active"
    groups: int | None = None
    cohort: int | None = None
    min_cohort: int = MIN_COHORT
    clip: float | Mapping[str, float] | None = None
    weight_cap: float | None = None
    second_set: bool = False

    def __post_init__(self) -> None:
        bounds = self.clip.values() if isinstance(self.clip, Mapping) else (self.clip,)
        least = self.min_cohort * (self.groups or 1)
        problems = {
            f"mode={self.mode!r}: choose one of {', '.join(MODES)}": self.mode in MODES,
            f"server={self.server!r}: choose one of {', '.join(SERVERS)}": self.server in SERVERS,
            f"min_cohort={self.min_cohort}: a sum of fewer than 3 sites hides nobody": is_whole(
                self.min_cohort, 3
            ),
            f"threshold={self.threshold}: give a fraction in (0, 1), or a number of sites": self.threshold
            is None
            or (is_number(self.threshold) and 0 < self.threshold < 1)
            or (is_number(self.threshold) and self.threshold >= 2 and self.threshold == int(self.threshold)),
            f"cohort={self.cohort} is below min_cohort={self.min_cohort}: ask more sites": self.cohort is None
            or self.cohort >= least,
            f"clip={self.clip}: give the largest |number|, above 0": all(
                bound is None or (is_number(bound) and bound > 0) for bound in bounds
            ),
            f"weight_cap={self.weight_cap}: give the most rows of a site": self.weight_cap is None
            or (is_number(self.weight_cap) and self.weight_cap >= 1),
        }
        if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
            raise ValueError(f"{self.by}: " + "; ".join(wrong))

    @property
    def is_real(self) -> bool:
        """Tell whether masks are added."""
        return self.mode == "real"

    def bound_of(self, name: str, value: Node) -> float | None:
        """Return the public bound of a sum's numbers: as given, or that of a clip in the graph; None where
        neither is there, and it follows the last total.
        """
        given = self.clip.get(name) if isinstance(self.clip, Mapping) else self.clip
        return given if given is not None else clip_of(value)


def clip_of(value: Node) -> float | None:
    """Return the bound of the clip that a value comes from; reading a field keeps it."""
    node: Node | None = value
    while node is not None:
        bound = getattr(node.fn, "bound", None)
        if bound is not None:
            return float(bound)
        is_read = node.op is Op.GET or (node.op is Op.CALL and node.params["lift"] == "check")
        node = node.args[0] if is_read else None
    return None


def secure_sum(
    mode: str = "ideal",
    threshold: float | int | None = None,
    server: str = "active",
    cohort: int | None = None,
    min_cohort: int = MIN_COHORT,
    clip: float | Mapping[str, float] | None = None,
    weight_cap: float | None = None,
    second_set: bool = False,
) -> Pass:
    """Show the server sums of at least `min_cohort` sites, and of no site its own value.

    `mode="ideal"` computes the same words and adds them without masks: for simulation. `clip` is the public
    bound of a number, one for all or {name: bound}; without one it is that of a clip in the graph, else it
    follows the last total with room of 64 times, and a round that has cut numbers is told in the log.
    `weight_cap` is the public bound of a weight (rows of the largest site), else it follows the last total.
    `threshold` is how many sites must live to the end: a fraction f is floor(f n) + 1, None is 2/3 with
    `server="active"`, which may lie, and 1/2 with "curious", which follows the protocol.
    A round that ends without a result when shares are opened can be repeated over the same sites alone: with
    `second_set`, from the third try on, once over others, 3 of the sites left out.
    Privacy: hides one site's value from the server and from fewer colluding sites than the threshold leaves;
    the sum itself is shown, and of few sites it tells much (docs/secure-sums.md).
    Raises SecurityConflict where the round shows the server more than sums.
    """
    settings = Settings(mode=mode, threshold=threshold, server=server, cohort=cohort, min_cohort=min_cohort,
                        clip=clip, weight_cap=weight_cap, second_set=second_set)  # fmt: skip

    def run(graph: Graph) -> Graph:
        return secured(graph, (), settings)

    return as_policy(run, settings)


def as_policy(run: Pass, settings: Settings, of_evaluations: Pass | None = None) -> Pass:
    """Return a pass that holds for evaluations too, which show the server no more than rounds do.

    What it was told of single names it was told of rounds: those of an evaluation are others.
    """

    def evaluated(graph: Graph) -> Graph:
        return run(graph)

    for step in (run, evaluated):
        step.__name__ = settings.by
        step.is_policy = True  # type: ignore[attr-defined]
    run.of_evaluations = of_evaluations or evaluated  # type: ignore[attr-defined]
    if isinstance(settings.clip, Mapping):
        run.named = {f"{settings.by}(clip=...)": tuple(settings.clip)}  # type: ignore[attr-defined]
    return run


def group_secure_sum(
    groups: int = 5,
    mode: str = "ideal",
    threshold: float | int | None = None,
    server: str = "active",
    min_cohort: int = MIN_COHORT,
    clip: float | Mapping[str, float] | None = None,
    weight_cap: float | None = None,
    second_set: bool = False,
) -> Pass:
    """Show the server the sum of each of `groups` random groups of sites, drawn anew in every round.

    A robust rule before it in the list (median, trimmed_mean, krum, ...) is given the groups' means in place
    of the sites' values, and tolerates bad groups in place of bad sites. All else is `secure_sum`'s; a site
    hides among its group, which has `min_cohort` sites at least. Evaluations are summed over all sites.
    Raises PassError where no rule compares sites.
    """
    if not is_whole(groups, 2):
        raise ValueError(f"group_secure_sum: groups={groups}: a rule compares several, say 5")
    settings = Settings(by="group_secure_sum", mode=mode, threshold=threshold, server=server, groups=groups,
                        min_cohort=min_cohort, clip=clip, weight_cap=weight_cap,
                        second_set=second_set)  # fmt: skip

    def run(graph: Graph) -> Graph:
        return secured(*means_for_rules(graph), settings)

    over_all = secure_sum(mode=mode, threshold=threshold, server=server, min_cohort=min_cohort)
    return as_policy(run, settings, over_all)


def secured(graph: Graph, grouped: tuple[str, ...], settings: Settings) -> Graph:
    """Return the graph with its sums hidden."""
    program = digest(graph)[:16]

    def hide(sum_: Fused) -> Node:
        rules = Rules(
            server=settings.server,  # type: ignore[arg-type]
            threshold=settings.threshold,
            min_cohort=settings.min_cohort,
            num_groups=settings.groups or 1,
            is_ring=settings.threshold is None and (settings.cohort or 0) > MAX_FULL,
            has_dp=has_noise_of_sites(graph),
            is_kept=any(placement is SITES for placement, _ in graph.outputs),
            label=f"{program}.{sum_.prefix}",
            second_set=settings.second_set,
        )
        return Masking(rules, sum_).result() if settings.is_real else plain(rules, sum_)

    options = [f"groups={settings.groups}"] if settings.groups else []
    title = f"{settings.by}({', '.join(options if settings.is_real else [*options, 'ideal'])})"
    guard = "" if settings.is_real else IDEAL_GUARD
    hiding = Hiding(title, settings.bound_of, settings.weight_cap, hide, guard, grouped)
    return hidden(graph, hiding, _claim(settings.by, settings))


def plain(rules: Rules, sum_: Fused) -> Node:
    """Add the words without masks: the same sums, and no protection."""
    named = call(Named(), SITES, (sum_.site_id, sum_.words), sum_.where)
    delivered = gathered(named, f"{sum_.prefix}.delivered", "site id", sum_.where)
    if rules.num_groups == 1:
        read = ReadPlain(sum_.lanes, rules.min_cohort)
        return call(read, SERVER, (masked_total(sum_, sum_.words), delivered), sum_.where)
    setup = announced(rules, sum_)
    opener = OpenGroups(sum_.lanes, sum_.grouped, rules.min_cohort)
    return call(opener, SERVER, (setup, group_totals(sum_, setup, sum_.words), delivered), sum_.where)


def _claim(name: str, settings: Settings) -> Claim:
    """Return what the pass says in the trust statement."""
    if not settings.is_real:
        but = "everything that secure_sum(mode='real') hides"
        trusts = "the server and whoever adds up, with each site's own value"
        return Claim(by=name, text=IDEAL, trusts=trusts, but=but, is_hidden=True, is_simulated=True)
    who = (
        "a server that lies of anything but whose key is whose"
        if settings.server == "active"
        else "the server"
    )
    what = "the sum of each group" if settings.groups else "their sum"
    text = f"{who} sees no site's own value, but {what}, of {settings.min_cohort} sites at least"
    return Claim(
        by=name,
        text=text,
        trusts=("in each group, " if settings.groups else "") + TRUSTS[settings.server],
        but=BUT + SECOND_SET * settings.second_set,
        is_hidden=True,
    )
