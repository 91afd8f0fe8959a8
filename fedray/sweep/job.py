"""One trial from its configuration to its outcome; every way to run a sweep uses this.

The driver alone names run directories (`Jobs.order`), so that no two processes take the same; an `Order` is
what travels to the process that trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray import config
from fedray.config import Composed
from fedray.rundir import RunDirectory
from fedray.sweep.trials import DONE, INTERRUPTED, Trial

if TYPE_CHECKING:
    from fedray.config_build import Keep

IN_PROCESS = "runtime=in_process"  # of trials side by side: they are spread over processors before sites are


@dataclass(frozen=True, slots=True)
class Order:
    """What a process needs to run one trial."""

    trial: Trial
    composed: Composed

    def run(self, keep: "Keep", tracker: Any = None) -> dict[str, Any]:
        """Train and say what it came to."""
        from fedray.experiment import start
        outcome = start(self.composed, live=False, keep=keep, tracker=tracker)
        status = INTERRUPTED if outcome.stopped == "interrupted" else DONE
        return {"status": status, "metrics": outcome.metrics, "run": outcome.run.path.name,
                "valid": last_valid(outcome.result.evaluations)}


def last_valid(evaluations: Sequence[Any]) -> dict[str, float]:
    """Return the figures of the last evaluation of validation rows, none where there was none."""
    record = next((record for record in reversed(evaluations) if record.split == "valid"), None)
    return numbers(record.metrics) if record is not None else {}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are single numbers."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


class Jobs:
    """The trials of a sweep with their configurations, and the run directories that they get."""

    def __init__(self, folder: Path, composed: Mapping[str, Composed]) -> None:
        from fedray.sweep.kept import data_key
        self.folder, self._composed = folder.resolve(), composed
        self._data = {name: data_key(config.to_plain(each.config)) for name, each in composed.items()}
        self._named: set[str] = set()

    def order(self, trial: Trial) -> Order:
        """Return a trial with the name of a directory; a further attempt gets one of its own."""
        taken = self._named | {path.name for path in self.folder.iterdir()}
        names = (trial.name, *(f"{trial.name}~{number}" for number in range(2, len(taken) + 3)))
        name = next(name for name in names if name not in taken)
        self._named.add(name)
        return Order(trial, replace(self._composed[trial.id], run_dir=self.folder / name))

    def data_key(self, trial: Trial) -> str:
        """Return what the trial's data depends on."""
        return self._data[trial.id]

    def settings(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Return the resolved settings of trials, as plain values."""
        return [config.to_plain(self._composed[trial.id].config) for trial in trials]

    def are_in_process(self, trials: Sequence[Trial]) -> bool:
        """Tell whether all of these trials hold their sites in this process."""
        return all(each["runtime"]["kind"] == "in_process" for each in self.settings(trials))

    def in_order_of_data(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials so that those on equal data follow each other."""
        place = {key: number for number, key in enumerate(dict.fromkeys(map(self.data_key, trials)))}
        return sorted(trials, key=lambda trial: place[self.data_key(trial)])


def close_run(path: Path, status: str, reason: str) -> None:
    """Write into a run directory why its process did not come to write it."""
    if (path / "config.yaml").is_file() and RunDirectory.open(path).status[0] in ("running", "failed"):
        RunDirectory.open(path).set_status(status, reason)
