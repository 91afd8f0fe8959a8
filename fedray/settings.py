"""Settings of algorithms, schedules and local training: a number that cannot be meant is refused at the door.

A comparison alone lets NaN through where it is written one way, and says nothing of which setting it was
where a text is given. These say who was asked, which setting, what was given and what to give.
"""

import difflib
import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def nearest(word: str, among: Collection[str]) -> str | None:
    """Return the closest spelling that exists, or None; a beginning counts as close."""
    begun = sorted((name for name in among if len(word) > 1 and name.startswith(word)), key=len)
    if begun:
        return begun[0]
    close = difflib.get_close_matches(word, among, n=1, cutoff=0.55)
    return close[0] if close else None


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int = 0) -> bool:
    """Tell whether a value is a whole number of at least so much; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def check_numbers(
    who: str, *, least: float | None = None, above: float | None = None, most: float | None = None,
    below: float | None = None, or_none: bool = False, **settings: Any
) -> None:  # fmt: skip
    """Raise ValueError where one of the settings is no finite number, or outside the range."""
    for name, value in settings.items():
        fits = (value is None and or_none) or (
            is_number(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not fits:
            raise ValueError(f"{who}: {name}={value!r}: give a number{_range(least, above, most, below)}")


def check_whole(
    who: str, *, least: int = 1, most: int | None = None, or_none: bool = False, **settings: Any
) -> None:  # fmt: skip
    """Raise ValueError where one of the settings is no whole number in the range."""
    for name, value in settings.items():
        fits = is_whole(value, least) and (most is None or value <= most)
        if not fits and not (value is None and or_none):
            raise ValueError(f"{who}: {name}={value!r}: give a whole number{_range(least, None, most, None)}")


def check_rates(who: str, **settings: Any) -> None:
    """Raise ValueError where one of the settings is neither a number of 0 or more nor a schedule."""
    for name, value in settings.items():
        if not callable(value) and not (is_number(value) and value >= 0):
            raise ValueError(f"{who}: {name}={value!r}: give a number, 0 or more, or a schedule of the round")


def _range(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    parts = {"{} or more": least, "above {}": above, "at most {}": most, "below {}": below}
    told = " and ".join(text.format(f"{bound:g}") for text, bound in parts.items() if bound is not None)
    return f", {told}" if told else ""
