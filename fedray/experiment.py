"""Run a configuration from the first check to the last file: what `fedray run` and `fedray resume` do.

    asked = asked_for(composed)        plain values; loads neither torch nor Ray
    run(asked, build(asked), show)     in this process, or in one of its own: see session.py

Nothing is written before every part is built and every site has answered: bad input leaves nothing behind.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedray as fr
from fedray import phases, stored, track
from fedray.errors import ConfigError, DataError, StorageError
from fedray.observe import chrome, status
from fedray.observe.observer import Observer
from fedray.rundir import RunDirectory

if TYPE_CHECKING:
    import torch

    from fedray.config import Composed
    from fedray.config_build import Experiment
    from fedray.data.prepare import Preparation

log = logging.getLogger(__name__)
Show = Callable[..., Any]  # (title, rounds, directory=...) -> a view as in live.py


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to: its directory, its `Result`, and what result.json holds."""

    run: RunDirectory
    result: Any
    summary: dict[str, Any]

    @property
    def stopped(self) -> str:
        """`done`, `early` or `interrupted`."""
        return str(self.result.stopped)

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures, those of the test rows first."""
        record = self.result.test
        return {name: float(value) for name, value in (record.metrics if record else {}).items()
                if isinstance(value, (int, float))}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A checked configuration as plain values, which another process reads without Hydra."""

    tree: Mapping[str, Any]
    yaml: str
    digest: str
    overrides: tuple[str, ...]
    run_dir: Path
    is_resumed: bool = False

    @property
    def is_on_ray(self) -> bool:
        """Whether the sites are in processes of Ray."""
        return bool(self.tree["runtime"]["kind"] != "in_process")


def asked_for(composed: "Composed") -> Asked:
    """Return what a checked configuration asks for: a run in a new directory."""
    from fedray import config
    return _asked(config.to_plain(composed.config), composed.overrides, composed.run_dir)


def _asked(tree: Mapping[str, Any], overrides: Sequence[str], run_dir: Path,
           is_resumed: bool = False) -> Asked:
    from fedray import config
    return Asked(tree=tree, yaml=config.plain_yaml(tree), digest=config.plain_hash(tree),
                 overrides=tuple(overrides), run_dir=run_dir, is_resumed=is_resumed)


def asked_again(path: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> Asked:
    """Return what going on with a run asks for; `path` is its directory, or its address in a store.

    Raises ConfigError where too much is changed.

    Code of own packages must be allowed again: a run directory is data, also one that came from elsewhere.
    """
    from fedray import config
    path, storage = stored.opened(path)
    folder = RunDirectory.open(path)
    changed = config.recompose(folder.config_yaml, overrides, allow)
    config.check(changed)
    tree = config.to_plain(changed)
    if storage is not None:  # where it was found, which may be a copy
        tree = {**tree, "checkpoint": {**tree["checkpoint"], "storage": storage}}
    return _asked(tree, overrides, path, is_resumed=True)


def start(composed: "Composed", live: bool = True, *, keep: Any = None, tracker: Any = None) -> Outcome:
    """Run a checked configuration in a new directory.

    A sweep hands over `keep`, which answers with data that is open already, and a tracker of its own.
    Raises ConfigError or DataError before the directory is made where a part or a site cannot be used.
    """
    asked = asked_for(composed)
    return run(asked, build(asked, keep), _screen(live), also_tell=tracker)


def resume(path: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = (),
           live: bool = True) -> Outcome:
    """Go on with a run in its own directory; `rounds`, `runtime`, `tracker` and `report` may change."""
    asked = asked_again(path, overrides, allow)
    with status.resuming(asked.run_dir):
        return run(asked, build(asked), _screen(live))


def _screen(live: bool) -> Show | None:
    from fedray.live import view
    return view if live else None


def build(asked: Asked, keep: Any = None) -> "Experiment":
    """Build every part, which loads torch. Raises ConfigError or DataError where one cannot be made."""
    from fedray.config_build import build_experiment
    phases.ended("torch imported")
    experiment = build_experiment(asked.tree, keep)
    phases.ended("data set and model made")
    if asked.is_resumed:
        _refuse_what_is_done(RunDirectory.open(asked.run_dir), asked, experiment.rounds)
    return experiment


def _refuse_what_is_done(folder: RunDirectory, asked: Asked, rounds: int) -> None:
    path = asked.run_dir
    if folder.status[0] == "done" and not asked.overrides:
        raise ConfigError(f"{path} is done, {rounds} rounds. Fix: fedray resume {path} rounds={2 * rounds}")
    done = max(stored.checkpoints_of(asked.tree, folder).rounds(), default=-1) + 1
    is_written = (path / "result.json").exists()  # else the run ended before it, after its last round
    if rounds < done or (rounds == done and is_written):
        raise ConfigError(f"{path} has done {done} rounds and rounds={rounds} asks for no more. "
                          f"Fix: fedray resume {path} rounds={2 * done}")


def run(asked: Asked, experiment: "Experiment", show: Show | None, *, here: bool = False,
        also_tell: Any = None) -> Outcome:
    """Train; `here` keeps the aggregator of a run on Ray in this process; `also_tell` is a tracker more."""
    with experiment.federate(here, asked.run_dir.resolve().name) as federation:
        if experiment.keep:
            federation.learnt = experiment.keep.learnt
        phases.ended("processes asked for")
        ready = prepare(experiment, federation)
        phases.ended("sites answered, columns prepared")
        folder = _again(asked) if asked.is_resumed else _made(asked)
        if federation.layout:
            folder.write("placement.txt", federation.layout)
        phases.ended("run directory made")
        return _train(ready, federation, folder, show=show, resume=asked.is_resumed,
                      also_tell=also_tell)


def _made(asked: Asked) -> RunDirectory:
    tree = asked.tree
    return RunDirectory.create(tree["runs_dir"], tree["name"], asked.yaml, asked.overrides, tree["seed"],
                               path=asked.run_dir, config_hash=asked.digest)


def _again(asked: Asked) -> RunDirectory:
    folder = RunDirectory.open(asked.run_dir)
    folder.add_overrides(asked.overrides)
    folder.write("config.yaml", asked.yaml)
    folder.set_status("running")
    return folder


@dataclass(frozen=True, kw_only=True)
class Ready:
    """An experiment whose sites have answered, and the programs that read them before the first round."""

    experiment: "Experiment"
    preparation: "Preparation | None"
    programs: "tuple[fr.Algorithm, ...]"


def prepare(experiment: "Experiment", federation: Any) -> Ready:
    """Open every site, and bring columns to one scale over all sites where that is asked for.

    Two federated sums over training rows fit the preparation; no row moves. The prepared columns may be more:
    indicators of what is missing. Raises DataError where the sites' data cannot be trained on.
    """
    from fedray.core.rewrite import policies
    from fedray.data.scaling import standardising
    from fedray.runtime.spending import check_ledger
    training = experiment.training
    # refuses early
    check_ledger(experiment.ledger(), fr.compile(training.algorithm, experiment.passes, experiment.schedule))
    for evaluation in experiment.training.evaluate.values():
        fr.compile(evaluation, policies(experiment.passes))
    if getattr(experiment.schedule, "wait_for", 0):
        federation.call("wait_for", experiment.schedule.wait_for, experiment.schedule.wait_s)
    federation.hello()
    _refuse_without_units(experiment, federation)
    programs = (*_linked(experiment, federation), *_refuse_one_class(experiment, federation))
    if not experiment.standardises:
        return Ready(experiment=experiment, preparation=None, programs=programs)
    program = standardising(experiment.data)
    rules = policies(experiment.passes)
    preparation: Preparation = fr.compute(program, federation, passes=rules, seed=experiment.seed)
    federation.prepare(experiment.keep.shared(preparation) if experiment.keep else preparation)
    return Ready(experiment=experiment.for_features(preparation.features), preparation=preparation,
                 programs=(*programs, program))


def _refuse_without_units(experiment: "Experiment", federation: Any) -> None:
    """Raise ConfigError where patients are to be told apart by a column that the sites have not."""
    unit = getattr(getattr(experiment.training.local, "privacy", None), "unit", None)
    columns = federation.call("blank") if unit is not None else None
    if columns is not None and unit not in columns:
        raise ConfigError(f"local=private_sgd takes a patient's rows together by the column {unit!r}, and "
                          f"{experiment.data.name} has none. Fix: local.unit=null (a guarantee per row, a "
                          "stay), or data whose contract has a group column")


def _linked(experiment: "Experiment", federation: Any) -> "tuple[fr.Algorithm, ...]":
    """Bring rows into one order of common records where sites hold parts of them; return what compared them.

    Raises ConfigError where the algorithm and the data are not made for each other, DataError where the
    records cannot be linked.
    """
    from fedray.core.rewrite import policies
    linkage, needs_all = experiment.data.linkage, experiment.training.algorithm.needs_all
    name, title = experiment.data.name, experiment.training.algorithm.title
    if needs_all and linkage is None:
        raise ConfigError(f"algorithm={title} needs sites that hold other columns of the same records, and "
                          f"those of {name} hold records of their own. Fix: data=parties")
    if linkage is None:
        return ()
    if not needs_all:
        raise ConfigError(f"algorithm={title} needs sites that hold records of their own, and the sites of "
                          f"{name} hold columns of the same records. Fix: algorithm=vertical_logistic")
    linked = linkage.link(federation, policies(experiment.passes))
    log.info("record linkage: %d records at all %d sites, the outcome at %s", linked.shared, len(linked.rows),
             linked.holder)
    return (linkage.program,)


def _refuse_one_class(experiment: "Experiment", federation: Any) -> "tuple[fr.Algorithm, ...]":
    """Raise DataError where all training rows together hold one class only; return what counted them."""
    from fedray.core.rewrite import policies
    from fedray.data.prepare import contract_of
    data = experiment.data
    if data.outcome in ("number", "tasks"):
        return ()
    program = label_counts(data.num_classes)
    rules = policies(experiment.passes)
    ask = partial(fr.compute, program, federation, passes=rules, seed=experiment.seed)
    keep = experiment.keep
    counts = (keep.once(("label counts", fr.compile(program, rules).digest), ask) if keep else ask())["rows"]
    if int((counts > 0).sum()) < 2:
        contract = contract_of(data)
        name = contract.outcome if contract is not None else "y"
        raise DataError(f"the outcome {name} has one class only in the training rows of all {len(data)} "
                        "sites. Fix: name another outcome in the contract, or bring sites with both classes")
    return (program,)


def label_counts(num_classes: int) -> "fr.Algorithm":
    """Count the training rows of each class over all sites; one sum leaves a site."""
    def round(server: Any, site: Any) -> fr.Outputs:
        counts = fr.sum(fr.map(_Count(num_classes), site.data), name="label_counts")
        return fr.Outputs(server=server, metrics=counts)
    return fr.Algorithm(lambda state: state, round, name="label counts")


@dataclass(frozen=True)
class _Count:
    num_classes: int

    def __call__(self, data: Any) -> dict[str, "torch.Tensor"]:
        import torch
        rows = data.train
        labels = rows["y"].to(torch.int64).reshape(-1) if "y" in rows else torch.zeros(0, dtype=torch.int64)
        labels = labels[labels >= 0]  # -1 is no label
        return {"rows": torch.bincount(labels, minlength=self.num_classes).to(torch.float64)}


def _train(ready: Ready, federation: Any, run: RunDirectory, *, show: Show | None, resume: bool,
           also_tell: Any) -> Outcome:
    from fedray.core.rewrite import policies
    experiment = ready.experiment
    training, tree = experiment.training, experiment.tree
    rules = policies(experiment.passes)
    also = [fr.compile(program, rules) for program in (*ready.programs, *training.evaluate.values())]
    view = show(_title(experiment), experiment.rounds, directory=str(run.path)) if show else None
    metrics = _metrics(experiment, run)
    observer = _observer(experiment, federation, run, metrics, is_alone=also_tell is None)
    tracker = track.combine(run.plan_tracker(also), _tracker(experiment, run), observer, metrics, view,
                            also_tell)
    checkpoints = stored.checkpoints_of(tree, run)
    if isinstance(checkpoints.also, stored.Copies):
        log.info("kept in %s too; `fedray resume` goes on from there", checkpoints.also.address)
    with _noted(run), observer, run.log():  # what the observer had no room for is said on the terminal
        result = fr.fit(training.algorithm, federation, init=training.init, rounds=experiment.rounds,
                        passes=experiment.passes, schedule=experiment.schedule, tracker=tracker,
                        every=experiment.every, evaluate=training.evaluate, early_stop=experiment.early_stop,
                        checkpoint=checkpoints, resume=resume,
                        ledger=experiment.ledger(), seed=experiment.seed, fold=experiment.fold)
        summary = run.write_result(result, _facts(experiment, ready.preparation))
    chrome.write(run.path)
    opening = _report(experiment, run)
    if result.stopped == "interrupted":
        opening = f"go on with: fedray resume {run.path}"
    if isinstance(checkpoints.also, stored.Copies):
        checkpoints.also.last()
    if view is not None:
        view.close(summary, opening)
    return Outcome(run=run, result=result, summary=summary)


@contextmanager
def _noted(run: RunDirectory) -> Iterator[None]:
    """Write into STATUS why a run ended early."""
    try:
        yield
    except KeyboardInterrupt:
        _set_status(run, "interrupted", "stopped at once; go on with `fedray resume`")
        raise
    except BaseException as error:
        said = str(error).splitlines()
        _set_status(run, "failed", f"{type(error).__name__}: {said[0] if said else ''}")
        log.error("the run failed: %s", type(error).__name__)
        raise


def _set_status(run: RunDirectory, state: str, reason: str) -> None:
    """Write STATUS; where a full disk does not take it, what went wrong is more than that."""
    try:
        run.set_status(state, reason)
    except StorageError as error:
        log.warning("%s", error)


def _report(experiment: "Experiment", run: RunDirectory) -> str:
    """Write the page where it is asked for; return the line that says what to open."""
    if not experiment.tree["report"].get("html"):
        return f"in {run.path}"
    from fedray.report import page
    if not page.is_available():
        return f"in {run.path}; a page to read: pip install 'fedray[report]', then fedray report {run.path}"
    return f"open {page.write(run.path)}"


def _title(experiment: "Experiment") -> str:
    model = experiment.tree["model"]["_target_"].rsplit(".")[-1]
    return f"{experiment.name} · {experiment.training.algorithm.name} · {model}"


def _tracker(experiment: "Experiment", run: RunDirectory) -> Any:
    settings = experiment.tree["tracker"]
    return track.jsonl(run.path, suppress=False) if settings else None


def _observer(experiment: "Experiment", federation: Any, run: RunDirectory, metrics: Any,
              is_alone: bool) -> Observer:
    """Return who writes the run's status, log and timeline; trials of a sweep have no heartbeat."""
    federation.run_name = run.path.resolve().name
    aggregator = federation.aggregator
    progress = aggregator.progress if inspect.getattr_static(aggregator, "progress", None) else None
    return Observer(run.path, experiment.rounds, progress, on_beat=metrics.beat if metrics else None,
                    beats=is_alone)


def _metrics(experiment: "Experiment", run: RunDirectory) -> Any:
    """Return what shows the run to Prometheus; None where that is not asked for, or there is no Ray."""
    asked, kind = experiment.tree.get("metrics") or {}, experiment.tree["runtime"]["kind"]
    is_wanted = asked.get("enabled")
    if is_wanted is None:
        is_wanted = kind == "cluster" or bool(asked.get("sites"))
    if not is_wanted or kind == "in_process":
        return None
    from fedray.runtime.ray_metrics import RayMetrics
    return RayMetrics(run.path.resolve().name, experiment.rounds, bool(asked.get("sites")))


def _facts(experiment: "Experiment", preparation: "Preparation | None") -> dict[str, Any]:
    """Return what result.json and model.json say beyond the result itself."""
    tree, data = experiment.tree, experiment.data
    model = {"kind": tree["model"]["_target_"].rsplit(".", 1)[-1], "settings": dict(tree["model"])}
    return {"model": model, "features": data.features, "outcome": data.outcome, "preparation": preparation,
            "data": {"name": data.name, "version": data.version}, "where": "simulation"}
