"""Trackers: where the figures of each round go. The driver alone writes, so there is no service and no lock.

`jsonl(directory)` is the source of truth: `rounds.jsonl` (one line a round, its failed sites in it),
`evaluations.jsonl` (one line per evaluation) and `sites.jsonl` (one line per evaluation and site). When the
run ends, each is written as `.parquet` beside it. `read` and `frame` take either. Everything else (page,
diff, TensorBoard) is a view of these.
"""

import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedray.errors import ConfigError
from fedray.runtime.storage import failed
from fedray.suppress import small_cells

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
KINDS = ("rounds", "evaluations", "sites")
AGES = ("late", "staleness_mean", "staleness_max", "versions")  # of a buffered round, or of late work
SOMETIMES = (*AGES, "epsilon")  # what rows of some runs have


class Tracker(Protocol):
    """What `fit` tells while it runs; called in the driver only.

    A tracker may also have `saved(round)`, a checkpoint was written, and `observed(seen)`, what hosts were
    seen to do after the last round (`runtime.observed.Observed`); a round's is its record's `observed`.
    """

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Take the plan, and facts such as the number of sites, before the first round."""

    def round(self, record: Any) -> None:
        """Take a `RoundRecord`."""

    def evaluation(self, record: Any) -> None:
        """Take an `EvaluationRecord`."""

    def finish(self, result: Any) -> None:
        """Take the `Result`, after the last evaluation."""


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tensors and arrays as lists, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def round_row(record: Any) -> dict[str, Any]:
    """Return a round as one row."""
    failures = [
        {"site": failure.site, "stage": failure.stage, "kind": failure.kind, "where": failure.where}
        for failure in record.failures
    ]
    row: dict[str, Any] = plain(
        {
            "round": record.round,
            "attempt": record.attempt,
            "status": getattr(record, "status", "counted"),
            "asked": record.asked,
            "counted": record.counted,
            "seconds": record.seconds,
            "work_s": getattr(record, "work_s", 0.0),
            "waited_s": getattr(record, "waited_s", 0.0),
            "placement": getattr(record, "placement", "aggregator"),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "site_bytes": getattr(record, "site_bytes", None),
            "metrics": record.metrics,
            "hashes": record.hashes,
            "grids": record.grids,
            "failures": failures,
        }
    )
    others = {name: getattr(record, name, None) for name in SOMETIMES}
    return {**row, **{name: value for name, value in others.items() if value is not None}}


def evaluation_row(record: Any) -> dict[str, Any]:
    """Return an evaluation's pooled metrics as one row."""
    row: dict[str, Any] = plain(
        {
            "round": record.round,
            "split": record.split,
            "seconds": record.seconds,
            "sites": len(record.sites),
            "metrics": record.metrics,
        }
    )
    return row


def site_row(site: Mapping[str, Any]) -> dict[str, Any]:
    """Return a site's record as plain values, without an AUROC where its rows hold one outcome only."""
    row: dict[str, Any] = plain(site)
    n, events = row.get("n"), row.get("events")
    is_one_sided = n is not None and events is not None and not 0 < events < n
    for name in ("auroc", "auroc_se"):
        if name in row and (
            is_one_sided or (row[name] or 0.0) < 0
        ):  # a site sends -1 for what is not defined
            row[name] = None
    return row


def site_rows(record: Any, suppress: bool = False) -> list[dict[str, Any]]:
    """Return an evaluation's sites, one row each; `suppress` leaves small cells out."""
    rows = [{"round": record.round, "split": record.split, **site_row(site)} for site in record.sites]
    return small_cells(rows) if suppress else rows


class Jsonl:
    """Append every record to the run directory. What a full disk does not take is kept until it does."""

    def __init__(self, directory: Path, suppress: bool) -> None:
        self.directory, self.suppress = directory, suppress
        self._waiting: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self._is_said = False

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Drop what a resumed run will do again, and an unfinished last line. Raises StorageError."""
        first = int(facts.get("first_round", 0))
        for kind in KINDS:
            path = self.directory / f"{kind}.jsonl"
            path.with_suffix(".parquet").unlink(missing_ok=True)
            kept = [row for row in _read_lines(path) if row["round"] < first]
            temporary = path.with_suffix(".part")
            try:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
                os.replace(temporary, path)
            except OSError as error:
                raise failed(path, error, "written") from error

    def round(self, record: Any) -> None:
        """Append a round."""
        self._append("rounds", [round_row(record)])

    def evaluation(self, record: Any) -> None:
        """Append an evaluation and its sites."""
        self._append("evaluations", [evaluation_row(record)])
        self._append("sites", site_rows(record, self.suppress))

    def finish(self, result: Any) -> None:
        """Write the Parquet files; where the disk is full, say how many lines are lost."""
        for kind in KINDS:
            self._append(kind, [])
            target = self.directory / f"{kind}.parquet"
            try:
                write_parquet(target, _read_lines(self.directory / f"{kind}.jsonl"))
            except OSError as error:
                target.with_suffix(".part").unlink(missing_ok=True)
                logger.warning("%s", failed(target, error, "written"))
        if lost := sum(map(len, self._waiting.values())):
            logger.warning("%d records of the run are not on the disk and lost with this process", lost)

    def _append(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        waiting, path = self._waiting[kind], self.directory / f"{kind}.jsonl"
        waiting += [json.dumps(row) + "\n" for row in rows]
        if not waiting:
            return
        try:
            append_whole(path, "".join(waiting).encode())
            waiting.clear()
            self._is_said = False
        except OSError as error:
            if not self._is_said:
                told = failed(path, error, "added to")
                logger.warning("%s. Records are kept in memory until then, and the run goes on", told)
            self._is_said = True


def jsonl(directory: str | os.PathLike[str], suppress: bool = False) -> Tracker:
    """Write JSON lines into a run directory; `suppress` leaves small cells of real hospitals out."""
    return Jsonl(Path(directory), suppress)


class _Combined:
    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.start(plan, facts)

    def round(self, record: Any) -> None:
        for tracker in self.trackers:
            tracker.round(record)

    def evaluation(self, record: Any) -> None:
        for tracker in self.trackers:
            tracker.evaluation(record)

    def finish(self, result: Any) -> None:
        for tracker in self.trackers:
            tracker.finish(result)

    def saved(self, round: int) -> None:
        self._tell("saved", round)

    def observed(self, seen: Any) -> None:
        self._tell("observed", seen)

    def _tell(self, event: str, content: Any) -> None:
        for tracker in self.trackers:
            if hasattr(tracker, event):
                getattr(tracker, event)(content)


def combine(*trackers: Tracker | None) -> Tracker:
    """Tell several trackers, in the order given; None is left out."""
    return _Combined([tracker for tracker in trackers if tracker is not None])


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        self.writer.add_text("plan", f"{plan.name} {plan.digest[:8]}", 0)

    def round(self, record: Any) -> None:
        row = round_row(record)
        names = ("counted", "seconds", "bytes_up", "bytes_down", *SOMETIMES)
        counts = {name: row[name] for name in names if name in row}
        self._scalars("round", {**counts, **row["metrics"]}, record.round)

    def evaluation(self, record: Any) -> None:
        self._scalars(record.split, plain(record.metrics), record.round)

    def finish(self, result: Any) -> None:
        self.writer.close()

    def _scalars(self, prefix: str, values: Mapping[str, Any], round: int) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{prefix}/{name}", value, round)


def tensorboard(directory: str | os.PathLike[str]) -> Tracker:
    """Write scalars for TensorBoard into `tensorboard/` of a run directory.

    Raises ConfigError where neither tensorboardX nor tensorboard is installed.
    """
    folder = str(Path(directory) / "tensorboard")
    if importlib.util.find_spec("tensorboardX") is not None:
        from tensorboardX import SummaryWriter

        return _TensorBoard(SummaryWriter(folder))
    if importlib.util.find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter as TorchWriter

        return _TensorBoard(TorchWriter(folder))
    raise ConfigError("tracker=tensorboard needs the package tensorboard. Fix: pip install 'fedray[track]'")


def read(directory: str | os.PathLike[str], kind: str) -> list[dict[str, Any]]:
    """Return the rows of one of KINDS, from JSON lines or, where those are gone, from Parquet."""
    path = Path(directory) / f"{kind}.jsonl"
    if path.exists() or not path.with_suffix(".parquet").exists():
        return _read_lines(path)
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path.with_suffix(".parquet")).to_pylist()
    return rows


def frame(directory: str | os.PathLike[str], kind: str) -> "pd.DataFrame":
    """Return the rows as a table, nested values as columns such as `metrics.loss`."""
    import pandas as pd

    return pd.json_normalize(read(directory, kind))


def append_whole(path: Path, data: bytes) -> None:
    """Add bytes to a file, all or none. Raises OSError where the disk does not take them."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        except OSError:
            file.truncate(size)
            raise


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a Parquet file, by one rename."""
    import pyarrow as pa
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: [row.get(name) or None if isinstance(row.get(name), dict) else row.get(name) for row in rows]
        for name in names
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    temporary = path.with_suffix(".part")
    pyarrow.parquet.write_table(table, temporary)
    os.replace(temporary, path)
