"""What is refused before a run: settings, sites and regions that do not fit the plan."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from fedray import tree
from fedray.core.trace import Algorithm
from fedray.errors import ConfigError, ScheduleError
from fedray.runtime.buffered import Buffered
from fedray.runtime.federation import Federation
from fedray.runtime.plan import Plan
from fedray.runtime.result import EarlyStop
from fedray.runtime.schedule import Synchronous
from fedray.settings import is_whole, nearest


def check_settings(
    rounds: int,
    every: int,
    select: str,
    early_stop: EarlyStop | None,
    evaluate: Mapping[str, Algorithm] | None,
) -> None:
    """Raise ConfigError, with all problems, on settings of `fit` that cannot be."""
    problems = []
    if not is_whole(rounds, 1):
        problems.append(f"rounds={rounds!r}: train for at least 1 round, a whole number")
    if not is_whole(every, 1):
        problems.append(f"every={every!r}: evaluate every 1 or more rounds")
    if select not in ("last", "best_valid"):
        problems.append(f"select={select!r}: choose 'last' or 'best_valid'")
    if (early_stop is not None or select == "best_valid") and "valid" not in (evaluate or {}):
        problems.append("early_stop and select='best_valid' need evaluate={'valid': ...}")
    if problems:
        raise ConfigError(problems)


def check_first(init: Any) -> None:
    """Raise ConfigError where the first parameters hold a number that is not finite."""
    for path, leaf in tree.leaves(init):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        if isinstance(numbers, torch.Tensor) and numbers.is_floating_point():
            bad = int((~torch.isfinite(numbers)).sum())
            if bad:
                where = f" of {path}" if path else ""
                raise ConfigError(
                    f"init: {bad} of {numbers.numel()} first parameters{where} are not finite, and no site "
                    "could learn from them. Fix: model.init(seed), or the parameters of a run that converged"
                )


def check_regions(plans: Sequence[Plan], federation: Federation) -> None:
    """Raise ConfigError where a plan goes by regions and a site has none."""
    lost = [site for site in federation.sites if site not in federation.regions]
    for plan in plans:
        if lost and any(kind.is_by_region for kind in plan.kinds):
            raise ConfigError(
                f"{plan.name} goes by regions, and {len(lost)} sites declare none ({', '.join(lost[:3])}): "
                "give simulate(regions={region: [site, ...]}), or a data set with regions"
            )


def check_sites(plan: Plan, schedule: Synchronous | Buffered, federation: Federation) -> None:
    """Raise where the schedule leaves out a site that is needed, or the algorithm was made for others."""
    num_sites = federation.num_sites
    for kind in plan.kinds:
        schedule.check(kind, num_sites)
    if plan.needs_all and schedule.expected_cohort(num_sites) < num_sites:
        raise ScheduleError(
            f"{plan.name} needs all {num_sites} sites in every round, for each holds a part of every record, "
            f"and the schedule asks {schedule.expected_cohort(num_sites)}: use schedule.cohort=1.0"
        )
    check_named(plan, federation.sites)
    there = set(federation.sites)
    if plan.sites and set(plan.sites) not in (there, getattr(schedule, "among", None)):  # or of a coalition
        strange, missing = sorted(set(plan.sites) - there), sorted(there - set(plan.sites))
        told = [f"{_some(found)} {what}" for found, what in
                ((strange, "not in the federation"), (missing, "not named")) if found]  # fmt: skip
        raise ConfigError(f"{plan.name} was made for other sites than there are ({'; '.join(told)}): "
                          "give it sites=tuple(federation.sites)")  # fmt: skip


def check_named(plan: Plan, sites: Collection[str]) -> None:
    """Raise ConfigError where a setting names a site that there is not: it would be left out in silence."""
    for setting, names in _named_sites(plan):
        if unknown := [name for name in names if name not in sites]:
            fix = nearest(str(unknown[0]), sorted(sites)) or "federation.sites lists the names"
            raise ConfigError(f"{setting} names {_some(unknown)}, and no site is called that. Fix: {fix}")


def _named_sites(plan: Plan) -> Iterator[tuple[str, Collection[str]]]:
    """Yield (setting, sites that it names) of all functions of a plan, also of those inside of others."""
    pending: list[Any] = [node.fn for kind in plan.kinds for node in kind.nodes]
    seen: set[int] = set()
    while pending:
        fn = pending.pop()
        if fn is None or id(fn) in seen:
            continue
        seen.add(id(fn))
        yield from getattr(fn, "named_sites", {}).items()
        pending.append(getattr(fn, "__self__", None))  # of a bound method
        if is_dataclass(fn) and not isinstance(fn, type):
            pending.extend(getattr(fn, each.name) for each in fields(fn))


def check_rows(plan: Plan, rows: Mapping[str, int]) -> None:
    """Raise ConfigError where a site has no training rows and would count as much as any other."""
    empty = sorted(site for site, count in rows.items() if not count)
    if plan.needs_rows and empty:
        raise ConfigError(
            f"{plan.name} counts every site's model the same, and {len(empty)} have no training rows to make "
            f"one of ({_some(empty)}). Fix: leave them out"
        )


def _some(names: Sequence[Any]) -> str:
    return f"{', '.join(map(str, names[:3]))}{', ...' * (len(names) > 3)}"


def check_fit(
    algorithm: Algorithm, schedule: Synchronous | Buffered, federation: Federation, plans: Sequence[Plan]
) -> None:
    """Raise ConfigError where a plan needs regions, or the algorithm another number of sites."""
    check_regions(plans, federation)
    among = getattr(schedule, "among", None)  # a coalition
    if algorithm.num_sites not in (None, federation.num_sites, len(among or ())):
        raise ConfigError(
            f"{algorithm.title} was made with num_sites={algorithm.num_sites}, and there are "
            f"{federation.num_sites}: give it num_sites={federation.num_sites}, the number of ALL sites"
        )
