"""Which trials could run as one program: those that differ only in numbers that a row may have its own of.

Pure: settings in, batches out. Two trials belong together if their resolved settings are equal once numbers
that can be stacked are left out. Everything else that differs (data, model, rounds, batch size, a number
against null, one learning rate against a schedule) makes another program.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

STACKABLE = ("seed", "local.lr", "local.prox", "algorithm.*")  # a star stands for any path below
STEPS = ("lr", "server_lr", "mu", "prox")  # numbers also where they are written whole: lr=1
PARTS = (("local",), ("algorithm",), ("algorithm", "optimizer"))  # what numbers that are stacked belong to
Number = int | float
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Trials that could run as one program, by their place in what was given, and the numbers that vary.

    `varying` maps a setting such as `local.lr` to one value per trial, in the order of `trials`; it is empty
    for a single trial and for trials with equal settings.
    """

    trials: tuple[int, ...]
    varying: Mapping[str, tuple[Number, ...]]

    def __len__(self) -> int:
        return len(self.trials)


def batches(configs: Sequence[Mapping[str, Any]], largest: int | None = None,
            stackable: Sequence[str] = STACKABLE) -> list[Batch]:
    """Return the batches of resolved, plain configurations, in the order of their first trials.

    `largest` bounds the trials of one batch. Raises ValueError where it is below 1.
    """
    if largest is not None and largest < 1:
        raise ValueError(f"largest={largest}: a batch holds at least one trial")
    groups: dict[str, list[int]] = {}
    numbers = []
    for place, config in enumerate(configs):
        rest, stacked = _split(config, stackable)
        groups.setdefault(repr(rest), []).append(place)
        numbers.append(stacked)
    parts = [group[first:first + (largest or len(group))] for group in groups.values()
             for first in range(0, len(group), largest or len(group))]
    return [_batch(part, numbers) for part in sorted(parts)]


def _batch(places: Sequence[int], numbers: Sequence[Mapping[str, Number]]) -> Batch:
    first = numbers[places[0]]
    columns = {key: tuple(numbers[place][key] for place in places) for key in first}
    return Batch(tuple(places), {key: values for key, values in columns.items() if len(set(values)) > 1})


def _split(config: Mapping[str, Any], stackable: Sequence[str]) -> tuple[list[Any], dict[str, Number]]:
    """Return what must be equal, ordered by name, and the numbers that may differ.

    A seed also draws the cohort: where trials of different seeds would ask different sites in one round, it
    must be equal.
    """
    rest: list[Any] = []
    stacked: dict[str, Number] = {}
    for path, value in sorted(_leaves(config, ()), key=lambda leaf: leaf[0]):
        key = ".".join(path)
        fits = _is_number(path, value) and _is_own(config, path)
        fits = fits and any(fnmatchcase(key, pattern) for pattern in stackable)
        if fits and (key != "seed" or _asks_the_same(config)):
            stacked[key] = value
        else:
            rest.append((path, type(value).__name__, value))
    rest.append(sorted(stacked))  # a number here and none there is a difference too
    return rest, stacked


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield every value that is no mapping, and every empty mapping; a list is one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _is_number(path: Path, value: Any) -> bool:
    """Whether a value is a number that a row may have its own of; a count, written whole, is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or path == ("seed",) or path[-1] in STEPS


def _is_own(config: Mapping[str, Any], path: Path) -> bool:
    """Whether a number belongs to a part of the round itself, not to a schedule or another object in it."""
    for length in range(1, len(path)):
        config = config[path[length - 1]]
        if "_target_" in config and path[:length] not in PARTS:
            return False
    return True


def _asks_the_same(config: Mapping[str, Any]) -> bool:
    """Whether a round asks the same sites under every seed: all of them (1.0, as a fraction), or in turns."""
    schedule = config.get("schedule", {})
    cohort, sampling = schedule.get("cohort", 1.0), schedule.get("sampling")
    asks_all = isinstance(cohort, float) and cohort == 1.0 and sampling != "poisson"
    asks_all = asks_all and "concurrency" not in schedule  # of the buffered one
    return asks_all or sampling == "cyclic"
