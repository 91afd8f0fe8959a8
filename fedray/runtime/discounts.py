"""Discounts: by how much a contribution counts that is some server rounds old, and what may be counted so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedray.core.graph import Op, Placement
from fedray.errors import ScheduleError

Discount = Callable[[int], float]  # age in server rounds -> factor of a contribution
TRIED_AGES = 4  # at which a discount is tried before a run


@dataclass(frozen=True)
class Constant:
    """Count every contribution in full."""

    def __call__(self, age: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """(1 + age)^-a: Xie et al. 2019, section 5; with a = 1/2 that of Nguyen et al. 2022."""

    a: float = 0.5

    def __call__(self, age: int) -> float:
        """Return the factor at an age."""
        return float((1.0 + age) ** -self.a)


@dataclass(frozen=True)
class Hinge:
    """1 up to the age b, then 1 / (a (age - b) + 1): Xie et al. 2019, section 5."""

    a: float = 10.0
    b: float = 4.0

    def __call__(self, age: int) -> float:
        """Return the factor at an age."""
        return 1.0 if age <= self.b else 1.0 / (self.a * (age - self.b) + 1.0)


FEDBUFF = Polynomial()

NAMED: dict[str, Callable[..., Discount]] = {
    "constant": Constant, "polynomial": Polynomial, "hinge": Hinge,
}  # fmt: skip


def discount_of(given: str | Discount, option: str = "buffered(): discount") -> Discount:
    """Return a discount by its name and numbers ("polynomial 0.5", "hinge 10 4"); a function as it is.

    Raises ScheduleError, which names the option, where there is no such one, or it gives no number in [0, 1]
    at small ages.
    """
    if not isinstance(given, str) and not callable(given):
        raise ScheduleError(f"{option}={given!r}: give a name or a function of the age")
    found = _named(given, option) if isinstance(given, str) else given
    factors = [found(age) for age in range(TRIED_AGES)]
    if not all(isinstance(each, (int, float)) and 0.0 <= each <= 1.0 for each in factors):
        raise ScheduleError(
            f"{option}={given!r} gives {factors} at ages 0 to {TRIED_AGES - 1}: a discount is a "
            "number in [0, 1]"
        )
    return found


def _named(text: str, option: str) -> Discount:
    try:
        name, *numbers = text.split()
        return NAMED[name](*map(float, numbers))
    except (KeyError, ValueError, TypeError) as error:
        raise ScheduleError(
            f"{option}={text!r}: choose 'constant', 'polynomial A' or 'hinge A B', or give a function of the "
            "age"
        ) from error


def check_ages(plan: Any, discount: Discount, who: str, instead: str) -> None:
    """Raise ScheduleError where a plan cannot be run with answers of several ages, as `who` wants to."""
    for node in plan.nodes:
        if node.op is Op.REDUCE and node.params.get("masked"):
            raise ScheduleError(
                f"{who} scales each contribution by its age and asks sites at different times, and "
                f"{node.name!r} ({node.where}) of {plan.name} is masked among sites that agreed on keys "
                f"before they trained: drop the secure sum, or use {instead}"
            )
    _check_stages(plan, who, instead)
    if plan.needs_all:
        raise ScheduleError(
            f"{who} does not wait for all sites, and {plan.name} needs them all: use {instead}"
        )
    if plan.every or plan.is_by_region:
        raise ScheduleError(
            f"{who} takes sites as they come, and {plan.name} goes by regions or has rounds of several "
            f"kinds: use {instead}"
        )
    if any(getattr(node.fn, "is_followed", False) for node in plan.nodes):
        raise ScheduleError(
            f"{who} has sites on several versions of the model, and {plan.name} sends changes from one "
            f"version to the next: use quantised_broadcast, or {instead}"
        )
    if plan.fold != "exact":
        raise ScheduleError(f"{who} adds up exactly, and {plan.name} has fold='fast': leave it out")
    _check_shown(plan, discount, who, instead)


def _check_stages(plan: Any, who: str, instead: str) -> None:
    if plan.site_stages == [1]:
        return
    later = [node for node, at in zip(plan.nodes, plan.stage, strict=True)
             if at > 1 and at % 2 and node.placement is Placement.SITES]  # fmt: skip
    where = f" (its second begins at {later[0].where})" if later else ""
    raise ScheduleError(
        f"{who} needs a round with one site stage; {plan.name} has {plan.site_stages}{where}: use an "
        f"algorithm and passes of one exchange, or {instead}"
    )


def _check_shown(plan: Any, discount: Discount, who: str, instead: str) -> None:
    """Refuse what is not scaled by age, and passes whose server counts what sites have sent, where it is."""
    for node in plan.nodes:
        is_gather = node.op is Op.REDUCE and node.params["kind"] == "gather"
        if is_gather and not isinstance(discount, Constant):
            raise ScheduleError(
                f"{who} scales sums by their age, and {node.name!r} ({node.where}) of {plan.name} is "
                f"gathered: use sum() or mean(), the discount 'constant', or {instead}"
            )
    for (placement, slot), index in plan.outputs.items():
        if placement is not Placement.SERVER or slot in ("state", "metrics"):
            continue
        if not isinstance(discount, Constant) or _is_sent(plan, slot):
            raise ScheduleError(
                f"{who}: the pass that keeps {slot!r} at the server ({plan.nodes[index].where}) reckons with "
                f"contributions in full and of this round; in {plan.name} they are older and scaled: drop "
                f"it, or use {instead}"
            )


def _is_sent(plan: Any, slot: str) -> bool:
    """Tell whether the sites get what a pass keeps at the server: theirs is older than the server's."""
    reached: set[int] = set()
    for index, node in enumerate(plan.nodes):
        is_it = node.op is Op.INPUT and node.placement is Placement.SERVER and node.params["slot"] == slot
        if is_it or reached.intersection(plan.args[index]):
            if node.op in (Op.BROADCAST, Op.SCATTER):
                return True
            reached.add(index)
    return False
