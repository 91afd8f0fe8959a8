"""The settings of a tuned sweep, between our words and Optuna's points; it needs no extra."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray.config import Composed
from fedray.errors import ConfigError
from fedray.sweep.space import SEED, Axis, read, shown
from fedray.sweep.trials import Trial

NEEDED = ("optuna", "ray.tune", "tensorboardX")  # the last is what ray[tune] adds, and how it is told


@dataclass(frozen=True)
class Space:
    """The words of a tuned sweep: parts in their order, axes by the names that Optuna knows them under."""

    parts: Sequence[Axis | str]

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes; their names hold no character that Tune would split."""
        return {f"axis{place}": part for place, part in enumerate(self.parts) if isinstance(part, Axis)}

    def trial(self, point: Mapping[str, Any]) -> Trial:
        """Return the trial at a point that Optuna proposed."""
        words = {name: axis.word(point[name] if not isinstance(point[name], float) else shown(point[name]))
                 for name, axis in self.axes.items()}
        overrides = tuple(part if isinstance(part, str) else words[f"axis{place}"]
                          for place, part in enumerate(self.parts))
        return Trial(overrides, tuple(words.values()))

    def point(self, trial: Trial) -> dict[str, Any]:
        """Return where a trial lies."""
        found: dict[str, Any] = {}
        for name, axis in self.axes.items():
            word = next(word for word in trial.overrides if word.startswith(f"{axis.key}="))
            value = word.partition("=")[2]
            number = float(value) if axis.is_interval else value
            found[name] = int(float(value)) if axis.is_whole else number
        return found

    def distributions(self) -> dict[str, Any]:
        """Return Optuna's form of the axes."""
        from optuna import distributions
        found: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if not axis.is_interval:
                found[name] = distributions.CategoricalDistribution(axis.values)
            elif axis.is_whole:
                found[name] = distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.is_log)
            else:
                found[name] = distributions.FloatDistribution(axis.low, axis.high, log=axis.is_log)
        return found


def corners(words: Sequence[str]) -> list[Trial]:
    """Return trials that try each bound and each value once, to be checked before anything runs.

    Raises ConfigError where the extra is missing or nothing is to be tuned.
    """
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        raise ConfigError(f"--tune needs {' and '.join(missing)}, which are not installed. "
                          "Fix: pip install 'fedray[tune]'")
    space = Space(read(words))
    if any(axis.key == SEED for axis in space.axes.values()):
        raise ConfigError("a tuned sweep has one seed: a seed is no setting to choose by its result. Fix: "
                          "fix seed=0 here, then run the best configuration with 'seed=range(5)'")
    if not space.axes:
        raise ConfigError("--tune needs a setting to tune. Fix: 'local.lr=tag(log, interval(0.001,1))'")
    values = {name: _edges(axis) for name, axis in space.axes.items()}
    longest = max(map(len, values.values()))
    points = [{name: each[place % len(each)] for name, each in values.items()} for place in range(longest)]
    return [space.trial(point) for point in points]


def _edges(axis: Axis) -> list[Any]:
    kind = int if axis.is_whole else float
    return [kind(axis.low), kind(axis.high)] if axis.is_interval else list(axis.values)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def refuse(composed: Sequence[Composed], metric: str) -> None:
    """Raise ConfigError where no trial would ever report the metric."""
    if not all(each.config.evaluate.get("valid") for each in composed):
        raise ConfigError(f"--tune chooses by {metric} on validation rows, which are not evaluated here. "
                          "Fix: evaluate=default evaluate.valid=true, on data with a validation split")
