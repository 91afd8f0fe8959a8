"""Turn a checked configuration into the objects that `fr.fit` takes.

The order is that of what is known: the data set first (sites, features, outcome), then the model for its
width, the local training for the model, the algorithm for both. Passes are collected in the one legal order:
the policy's airlock, compression, privacy, robustness, secure, policy.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import fedray as fr
from fedray.accounting import PrivacyLedger
from fedray.cluster.site_map import SiteMap
from fedray.config_check import cohort_problem
from fedray.config_schema import SCHEMAS
from fedray.config_targets import call, realise
from fedray.data.site import Dataset
from fedray.errors import ConfigError
from fedray.runtime.loop import EarlyStop

NOT_OPTIONS = ("kind", "address", "site_map")  # settings of a runtime that its function takes otherwise
PRIVATE_HEADS = "fedray.algorithms.private_heads"
OF_THE_RUN = ("allow_empty", "standardise", "labelled")  # settings of data that their factory does not read
OF_THE_DATA = ("pooled", "unlabelled")  # settings of an algorithm that say which rows it sees
PASS_GROUPS = ("compression", "privacy", "robustness", "secure", "policy")


class Keep(Protocol):
    """What a sweep holds between its trials."""

    def __call__(self, tree: Mapping[str, Any], make: Callable[[], Dataset]) -> Dataset:
        """Return the data of a configuration, made only where they are not open."""
        ...

    def shared(self, transform: Any) -> Any:
        """Return a transform of sites' data that is computed once for all trials that ask for it."""
        ...

    def once(self, question: Any, ask: Callable[[], Any]) -> Any:
        """Return what the open data answer to a question, asked the first time only."""
        ...

    @property
    def learnt(self) -> Any:
        """What was found out of plans: a `runtime.learnt.Learnt`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, for one width of the input."""

    model: Any
    local: Any
    algorithm: Any
    evaluate: Mapping[str, Any]
    init: Any


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run needs, as plain objects; `tree` is the plain config it came from."""

    tree: Mapping[str, Any]
    data: Dataset
    training: Training
    schedule: Any
    passes: tuple[Any, ...]
    early_stop: EarlyStop | None
    keep: Keep | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.tree["name"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.tree["seed"])

    @property
    def rounds(self) -> int:
        """Rounds to train."""
        return int(self.tree["rounds"])

    @property
    def every(self) -> int:
        """Rounds between two evaluations."""
        return int(self.tree["evaluate"].get("every", self.rounds))

    @property
    def standardises(self) -> bool:
        """Whether columns are brought to one scale over all sites before training."""
        return bool(self.tree["data"].get("standardise", False))

    @property
    def fold(self) -> str:
        """How sums are added."""
        return str(self.tree.get("fold", "exact"))  # a run of an older version has none

    def ledger(self) -> Any:
        """Open the privacy ledger that the run charges; None where each run counts for itself."""
        settings = self.tree.get("ledger") or {}  # a run of an older version has none
        return PrivacyLedger(**settings) if settings.get("path") is not None else None

    def federate(self, here: bool = False, run: str = "") -> Any:
        """Open the federation: start processes, or join the cluster. The caller closes it.

        On Ray the aggregator has a process of its own, or is in this one where `here` says so; on a cluster
        it outlives this one, under the name of the run.
        """
        options = _runtime_options(self.tree, self.data)
        if self.tree["runtime"]["kind"] == "cluster":
            return _connected(self.tree["runtime"], self.tree["topology"], self.data, options | {"run": run})
        if getattr(self.schedule, "latency", None) is not None:
            options.setdefault("latency", self.schedule.latency)
        if here:
            from fedray.runtime import ray_transport
            return ray_transport.federate_here(self.data, self.tree["runtime"].get("address", "local"),
                                               **options)
        kind = "ray" if self.tree["runtime"]["kind"] == "ray" else "in_process"
        return fr.simulate(self.data, runtime=kind, **options)

    def for_features(self, features: tuple[str, ...]) -> "Experiment":
        """Return the same experiment for prepared data, whose columns may be others (missing indicators)."""
        if features == self.data.features:
            return self
        data = replace(self.data, features=features)
        training = _training(self.tree, data)
        return replace(self, data=data, training=training, schedule=_schedule(self.tree, training))


def build_experiment(tree: Mapping[str, Any], keep: Keep | None = None) -> Experiment:
    """Build every part; `keep` may answer with a data set that is open already.

    Raises ConfigError or DataError where a part cannot be made.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # own code of `--allow` may lie in the working directory
    allow = tuple(tree["allow"])
    data = keep(tree, lambda: _data(tree)) if keep is not None else _data(tree)
    wrong = cohort_problem(tree, len(data))
    if wrong:
        raise ConfigError(wrong)
    training = _training(tree, data)
    schedule = _schedule(tree, training)
    known = {
        "num_sites": len(data), "cohort": schedule.expected_cohort(len(data)), "population": len(data),
        "rounds": tree["rounds"], "sampling": _sampling(schedule), "num_params": num_params(training.init),
        "weight_cap": float(max(data.sizes.values())) if data.sizes else None,
    }
    passes = _passes(tree, allow, known)
    return Experiment(tree=tree, data=data, training=training, schedule=schedule, passes=passes,
                      early_stop=_early_stop(tree["evaluate"]), keep=keep)


def _sampling(schedule: Any) -> str | None:
    """Return the kind of sampling that amplifies privacy, where the schedule samples so."""
    return "poisson" if getattr(schedule, "sampling", None) == "poisson" else None


def num_params(init: Any) -> int:
    """Return how many numbers a model has."""
    return sum(leaf.schema.num_elements for _, leaf in fr.tree.leaves(init) if isinstance(leaf, fr.tree.Flat))


def _passes(tree: Mapping[str, Any], allow: Sequence[str], known: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the passes in the one legal order. The airlock of the policy sees updates as they are made."""
    policy = {key: value for key, value in tree["policy"].items() if key != "airlock"}
    groups = {**{group: tree[group] for group in PASS_GROUPS}, "policy": policy}
    airlock = tree["policy"].get("airlock")
    first = (call("policy.airlock", airlock, allow),) if airlock else ()
    chosen = {group: settings for group, settings in groups.items() if "_target_" in settings}
    return (*first, *(call(group, settings, allow, **known) for group, settings in chosen.items()))


def _schedule(tree: Mapping[str, Any], training: Training) -> Any:
    """Return the schedule, which may ask sites how the local training's loss is."""
    return call("schedule", tree["schedule"], tuple(tree["allow"]), local=training.local)


def _data(tree: Mapping[str, Any]) -> Dataset:
    settings = {key: value for key, value in tree["data"].items() if key not in OF_THE_RUN}
    known = {"sites": tuple(SiteMap.read(path).sites)} if (path := tree["runtime"].get("site_map")) else {}
    data: Dataset = call("data", settings, tuple(tree["allow"]), spare=_spare("data"), **known)
    if (share := tree["data"].get("labelled")) is not None:
        data = fr.data.few_labels(data, share, tree["seed"], bool(tree["algorithm"].get("unlabelled")))
    return fr.data.pooled(data) if tree["algorithm"].get("pooled") else data


def _training(tree: Mapping[str, Any], data: Dataset) -> Training:
    allow = tuple(tree["allow"])
    task = "binary" if data.outcome == "tasks" else data.outcome  # each of several tasks is binary
    known = {"num_features": len(data.features) or None, "num_classes": data.num_classes, "task": task,
             "num_sites": len(data), "sites": tuple(data), "seed": tree["seed"]}
    model = _as_model(call("model", tree["model"], allow, spare=_spare("model"), **known), data)
    known["make_head"] = _head_maker(tree, data, model)
    local = call("local", tree["local"], allow, spare=_spare("local"), model=model, **known)
    settings = {key: value for key, value in tree["algorithm"].items() if key not in OF_THE_DATA}
    algorithm = call("algorithm", settings, allow, spare=_spare("algorithm"), model=model, local=local,
                     **known)
    evaluate = {}
    if tree["evaluate"]:
        splits = ("valid", "test") if tree["evaluate"]["valid"] else ("test",)
        evaluate = {split: _evaluation(tree, model, split, algorithm) for split in splits}
    if algorithm.num_sites not in (None, len(data)):
        raise ConfigError(f"algorithm.num_sites={algorithm.num_sites}, and there are {len(data)} sites: it "
                          "is the number of ALL sites. Fix: ~algorithm.num_sites")
    init = model.init(tree["seed"])
    try:
        algorithm.init(init)  # refuses a part of the model that there is not, before a run is begun
    except ValueError as error:
        raise ConfigError(f"algorithm: {error}. Fix: see `fedray run --explain algorithm`") from error
    return Training(model=model, local=local, algorithm=algorithm, evaluate=evaluate, init=init)


def algorithm_for(experiment: Experiment, sites: Sequence[str]) -> Any:
    """Return the algorithm as if these sites were all: some know their number or names."""
    if len(sites) == len(experiment.data):
        return experiment.training.algorithm
    return _training(experiment.tree, experiment.data.select(tuple(sites))).algorithm


def _head_maker(tree: Mapping[str, Any], data: Dataset, model: Any) -> Any:
    """Return what makes a site's head. Raises ConfigError where data and algorithm do not go together."""
    is_many, has_heads = data.outcome == "tasks", tree["algorithm"]["_target_"] == PRIVATE_HEADS
    if is_many and not has_heads and tree["algorithm"]["_target_"].startswith("fedray."):
        raise ConfigError(f"{data.name} gives every site tasks of its own. Fix: algorithm=private_heads")
    if has_heads and not is_many:
        raise ConfigError("algorithm=private_heads needs sites with tasks of their own. Fix: data=assays")
    return model.make_head if is_many else None


def _evaluation(tree: Mapping[str, Any], model: Any, split: str, algorithm: Any) -> Any:
    settings = tree["evaluate"]
    if getattr(algorithm, "evaluate", None) is not None:
        return algorithm.evaluate(split, per_site=settings["per_site"], bins=settings["bins"])
    personal = settings["personal"]
    if personal is None or personal:
        personal = getattr(algorithm, "personal", None) or bool(personal)
    return fr.algorithms.evaluation(model, split=split, per_site=settings["per_site"], personal=personal,
                                    bins=settings["bins"])


def _as_model(made: Any, data: Dataset) -> Any:
    """Accept a torch module from own code as a model of the data's outcome; of several tasks, as a trunk."""
    is_many = data.outcome == "tasks"
    if isinstance(made, torch.nn.Module):
        made = fr.learn.from_module(made, task="binary" if is_many else data.outcome)
    try:
        return fr.learn.ManyTasks(made) if is_many else made
    except ValueError as error:
        raise ConfigError(f"data of several tasks: {error}. Fix: model=mlp") from error


def _early_stop(evaluate: Mapping[str, Any]) -> EarlyStop | None:
    if not evaluate.get("patience"):
        return None
    mode = "min" if evaluate["metric"] in ("loss", "brier") else "max"
    return EarlyStop(metric=evaluate["metric"], patience=evaluate["patience"], mode=mode)


def _spare(group: str) -> frozenset[str]:
    """Return the settings that shipped options of a group know; own code need not take them."""
    return frozenset(item.name for schema in SCHEMAS[group].values() for item in fields(schema))


def _runtime_options(tree: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """Return the keyword arguments of `fr.simulate` and `fr.connect`."""
    settings = {key: value for key, value in tree["runtime"].items() if key not in NOT_OPTIONS}
    options = {key: realise(f"runtime.{key}", value, tuple(tree["allow"])) for key, value in settings.items()
               if value is not None}
    if tree["topology"].get("regions"):
        options["regions"] = by_region(data)
    few = tree["data"].get("labelled") is not None  # some sites may then have no row to train on
    return {**options, "allow_empty": few or bool(tree["data"].get("allow_empty", False))}


def _connected(runtime: Mapping[str, Any], topology: Mapping[str, Any], data: Dataset,
               options: Mapping[str, Any]) -> Any:
    """Join a cluster, placed by a site map where there is one."""
    if runtime.get("site_map") is None:
        return fr.connect(runtime["address"], data, **options)
    return fr.connect(runtime["site_map"], data, address=runtime["address"], regional=topology["regional"],
                      absent=topology["absent"], **options)


def by_region(data: Dataset) -> dict[str, list[str]]:
    """Return the sites of each declared region. Raises ConfigError where none is declared."""
    if not data.regions:
        raise ConfigError(f"topology=regions: {data.name} declares no regions. Fix: topology=flat")
    layout: dict[str, list[str]] = {}
    for site in data:
        layout.setdefault(data.regions.get(site, "unknown"), []).append(site)
    return layout
