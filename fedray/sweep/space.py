"""What the words of a sweep mean: axes in Hydra's grammar, and the trials of a grid, a list or a random draw.

Values one by one are `a=1,2`, `a=choice(1,2)` and `a=range(5)`. Random and tuned sweeps also take numbers
between two bounds, `interval(0.01,1)` or whole ones, `int(interval(1,64))`, and with `tag(log, ...)` around
them evenly over the orders of magnitude.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from fedray.config_help import unreadable
from fedray.errors import ConfigError
from fedray.sweep.trials import Trial

SEED = "seed"  # an axis of its own: each configuration is run under every seed, and summed up over them
MAX_DRAWS = 100  # per trial that is asked for, until a small space is taken to be drawn empty
DIGITS = 6  # of a number that is drawn: more cannot matter and makes long names


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting of a sweep: its values one by one, or the bounds of an interval."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    @property
    def is_interval(self) -> bool:
        """Whether it has bounds instead of values."""
        return not self.values

    def word(self, value: object) -> str:
        """Return the override that sets a value."""
        return f"{self.key}={value}"

    def draw(self, rng: random.Random) -> str:
        """Return one override, drawn."""
        if not self.is_interval:
            return self.word(rng.choice(self.values))
        if self.is_log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = rng.uniform(self.low, self.high)
        if self.is_whole:
            return self.word(rng.randint(int(self.low), int(self.high)) if not self.is_log
                             else min(max(round(drawn), int(self.low)), int(self.high)))
        return self.word(shown(min(max(drawn, self.low), self.high)))


def shown(number: float) -> str:
    """Return a drawn number as it is written into an override."""
    return f"{number:.{DIGITS}g}"


def read(words: Sequence[str], is_grid: bool = False) -> list[Axis | str]:
    """Return each word as it is, or as the axis that it spans; in a grid that has values one by one.

    Raises ConfigError with every word that cannot be read.
    """
    parser = OverridesParser.create()
    found: list[Axis | str] = []
    problems = []
    for word in words:
        try:
            override = parser.parse_override(word)
            part = _axis(override) if override.is_sweep_override() else word
            if is_grid and isinstance(part, Axis) and part.is_interval:
                raise ConfigError("a grid needs values one by one; an interval is for a draw. "
                                  f"Fix: {part.key}=0.1,0.2,0.5, or --random 20")
            found.append(part)
        except HydraException as error:
            problems.append(unreadable(word, str(error)))
        except ConfigError as error:
            problems += [f"{word}: {text}" for text in error.problems]
    axes = [part.key for part in found if isinstance(part, Axis)]
    problems += [f"{key} is swept twice. Fix: give all of its values in one word"
                 for key in sorted({key for key in axes if axes.count(key) > 1})]
    if problems:
        raise ConfigError(problems)
    return found


def _axis(override: Override) -> Axis:
    key, value = override.get_key_element(), override.value()
    if override.is_discrete_sweep():
        return Axis(key, values=tuple(dict.fromkeys(override.sweep_string_iterator())))
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None:
        raise ConfigError(f"a sweep cannot read it. Fix: {key}=0.1,0.2,0.5")
    low, high, is_log = value.start, value.end, "log" in value.tags
    if not low < high or (is_log and low <= 0):
        raise ConfigError("an interval goes from a smaller to a larger number, with tag(log, ...) both "
                          f"above 0. Fix: {key}=interval(0.1,0.5)")
    return Axis(key, low=low, high=high, is_log=is_log, is_whole=isinstance(low, int))


def grid(words: Sequence[str]) -> list[Trial]:
    """Return the trials of a grid: every combination of `a=1,2` and `b=range(3)`, the last varying fastest.

    Raises ConfigError with every word that cannot be read.
    """
    parts = read(words, is_grid=True)
    return _product(parts, parts)


def _product(choice: Sequence[Axis | str], parts: Sequence[Axis | str]) -> list[Trial]:
    """Return every combination of the axes left in `choice`; the axes of `parts` are what varies."""
    options = [[part] if isinstance(part, str) else [part.word(value) for value in part.values]
               for part in choice]
    swept = [not isinstance(part, str) for part in parts]
    return [Trial(words, tuple(itertools.compress(words, swept))) for words in itertools.product(*options)]


def drawn(words: Sequence[str], count: int, seed: int) -> list[Trial]:
    """Return `count` random configurations, each under every value of an axis `seed`; equal ones only once.

    Configuration number i depends on the words, the seed and i alone: a longer draw starts with a shorter
    one. A space with fewer configurations gives all that were found. Raises ConfigError as `read` does.
    """
    parts = read(words)
    axes = [part for part in parts if isinstance(part, Axis)]
    if not [axis for axis in axes if axis.key != SEED]:
        raise ConfigError("--random needs a setting to draw. "
                          "Fix: fedray sweep --random 20 'local.lr=interval(0.01,1)'")
    seeds = next((axis for axis in axes if axis.key == SEED), None)
    if seeds is not None and seeds.is_interval:
        raise ConfigError("seed is an axis of its own and needs values one by one. Fix: 'seed=range(5)'")
    found: dict[tuple[Axis | str, ...], None] = {}
    for number in range(MAX_DRAWS * count):
        rng = random.Random(f"{seed}/{number}")  # text as seed: the same draw on every machine and version
        choice = tuple(part if isinstance(part, str) or part is seeds else part.draw(rng) for part in parts)
        found[choice] = None
        if len(found) == count:
            break
    return [trial for choice in found for trial in _product(choice, parts)]


def listed(lines: Iterable[str]) -> list[Trial]:
    """Return the trials of a list: one line of overrides each; empty lines and `#` lines are left out."""
    kept = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [trial for words in kept for trial in grid(words)]
