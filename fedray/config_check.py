"""Find everything in a configuration that cannot run, without loading torch, ray or any data.

`problems` returns one line per finding: the setting, what is wrong, and after "Fix:" the override that mends
it. What only the data can tell (number of sites, columns) is checked by `cohort_problem` and by the data.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray import config_targets
from fedray.cluster.site_map import SiteMap
from fedray.config_schema import Config
from fedray.errors import ConfigError
from fedray.runtime.storage import check_address

Tree = Mapping[str, Any]
IN_TURN = ("fedray.algorithms.cyclic", "fedray.algorithms.split")
VERTICAL = "fedray.algorithms.vertical_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DEVICES = re.compile(r"cpu|cuda(:\d+)?")


def problems(tree: Tree) -> list[str]:
    """Return what is wrong in a plain config, each line with its fix; empty where it can run."""
    found: list[str] = []
    for finder in FINDERS:
        found.extend(finder(tree))
    return found


def cohort_problem(tree: Tree, num_sites: int) -> list[str]:
    """Return what is wrong between the schedule and the number of sites."""
    schedule = tree.get("schedule") or {}
    found = []
    cohort = schedule.get("cohort")
    if isinstance(cohort, int) and not isinstance(cohort, bool) and cohort > num_sites:
        found.append(f"schedule.cohort={cohort} asks for more sites than the {num_sites} of the data. "
                     f"Fix: schedule.cohort={num_sites} or schedule.cohort=1.0 (all)")
    if isinstance(schedule.get("size"), int) and schedule["size"] > num_sites:
        found.append(f"schedule.size={schedule['size']} is more than the {num_sites} sites of the data, each "
                     f"of which is in a buffer once. Fix: schedule.size={num_sites}")
    if isinstance(schedule.get("wait_for"), int) and schedule["wait_for"] > num_sites:
        found.append(f"schedule.wait_for={schedule['wait_for']} waits for more sites than the {num_sites} of "
                     f"the data. Fix: schedule.wait_for={num_sites}")
    return found


def _unset(tree: Tree) -> Iterator[str]:
    for key, value in _walk(tree):
        if value == "???":
            yield f"{key} is not set. Fix: {key}=..."


def _walk(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        place = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping):
            yield from _walk(value, place)
        else:
            yield place, value


def _strangers(tree: Tree) -> Iterator[str]:
    known = Config.__dataclass_fields__
    for key in tree:
        if key not in known:
            yield f"{key}: nothing reads this section. Fix: ~{key} or leave +{key}... out"


def _targets(tree: Tree) -> Iterator[str]:
    allow = tuple(tree.get("allow") or ())
    yield from filter(None, map(config_targets.check_prefix, allow))
    for at, target in config_targets.find_targets(tree):
        if target == "???":
            continue
        wrong = config_targets.check_name(at, target, allow)
        if wrong:
            yield wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# key -> (test, what it must be, a value that passes); null is accepted where the schema has it as its default
_RANGES: dict[str, tuple[Callable[[Any], bool], str, Any]] = {
    "rounds": (lambda v: v >= 1, "at least 1", 256),
    "seed": (lambda v: v >= 0, "0 or more", 0),
    "checkpoint.every_s": (lambda v: v >= 0, "0 or more", 30),
    "checkpoint.keep": (lambda v: v >= 1, "at least 1", 2),
    "data.scale": (lambda v: 0 < v <= 10, "above 0 and at most 10", 0.1),
    "data.num_sites": (lambda v: v >= 1, "at least 1", 208),
    "data.valid_fraction": (lambda v: 0 <= v < 1, "in [0, 1)", 0.1),
    "data.test_fraction": (lambda v: 0 <= v < 1, "in [0, 1)", 0.2),
    "data.missing": (lambda v: 0 <= v < 1, "in [0, 1)", 0.1),
    "data.min_shared": (lambda v: v >= 1, "at least 1", 50),
    "data.labelled": (lambda v: 0 < v <= 1, "above 0 and at most 1", 0.05),
    "data.alpha": (lambda v: v > 0, "above 0", 0.5),
    "local.epochs": (lambda v: v >= 1, "at least 1", 1),
    "local.steps": (lambda v: v >= 1, "at least 1", 10),
    "local.batch_size": (lambda v: v >= 1, "at least 1, or null for all rows", 32),
    "local.momentum": (lambda v: 0 <= v < 1, "in [0, 1)", 0.9),
    "local.weight_decay": (lambda v: v >= 0, "0 or more", 0.0),
    "local.l2": (lambda v: v >= 0, "0 or more", 0.0),
    "local.prox": (lambda v: v >= 0, "0 or more", 0.0),
    "local.clip_norm": (lambda v: v > 0, "above 0, or null", "null"),
    "local.pos_weight": (lambda v: v > 0, "above 0, or null", "null"),
    "local.patience": (lambda v: v >= 1, "at least 1, or null", "null"),
    "algorithm.mu": (lambda v: v >= 0, "0 or more", 0.01),
    "algorithm.alpha": (lambda v: v >= 0, "0 or more", 0.1),
    "algorithm.eps": (lambda v: v > 0, "above 0", 0.001),
    "algorithm.momentum": (lambda v: 0 <= v < 1, "in [0, 1)", 0.9),
    "algorithm.cut": (lambda v: v >= 1, "at least 1", 1),
    "algorithm.steps": (lambda v: v >= 1, "at least 1", 1),
    "algorithm.batch_size": (lambda v: v >= 1, "at least 1, or null for all rows", 32),
    "algorithm.l2": (lambda v: v >= 0, "0 or more", 0.0),
    "algorithm.width": (lambda v: v >= 1, "at least 1", 8),
    "algorithm.q": (lambda v: v >= 0, "0 or more", 1.0),
    "algorithm.rate": (lambda v: v >= 0, "0 or more", 0.01),
    "algorithm.num_clusters": (lambda v: v >= 1, "at least 1", 2),
    "algorithm.threshold": (lambda v: 0 <= v <= 1, "in [0, 1]", 0.75),
    "algorithm.temperature": (lambda v: v > 0, "above 0", 1.0),
    "algorithm.share": (lambda v: 0 < v < 1, "in (0, 1)", 0.3),
    "algorithm.prox": (lambda v: v >= 0, "0 or more", 0.1),
    "algorithm.server_lr": (lambda v: v > 0, "above 0", 1.0),
    "algorithm.optimizer.tau": (lambda v: v > 0, "above 0", 0.001),
    "algorithm.optimizer.beta": (lambda v: 0 <= v < 1, "in [0, 1)", 0.9),
    "algorithm.optimizer.beta1": (lambda v: 0 <= v < 1, "in [0, 1)", 0.9),
    "algorithm.optimizer.beta2": (lambda v: 0 <= v < 1, "in [0, 1)", 0.99),
    "compression.fraction": (lambda v: 0 < v <= 1, "in (0, 1]", 0.01),
    "compression.up.fraction": (lambda v: 0 < v <= 1, "in (0, 1]", 0.01),
    "compression.levels": (lambda v: 1 <= v < 2**15, "in [1, 32767]", 127),
    "compression.down.levels": (lambda v: 1 <= v < 2**15, "in [1, 32767]", 127),
    "compression.bucket": (lambda v: v >= 1, "at least 1, or null", "null"),
    "compression.down.bucket": (lambda v: v >= 1, "at least 1, or null", "null"),
    "compression.lr": (lambda v: v > 0, "above 0", 0.001),
    "compression.rank": (lambda v: v >= 1, "at least 1", 2),
    "privacy.clip": (lambda v: v > 0, "above 0", 1.0),
    "privacy.noise_multiplier": (lambda v: v > 0, "above 0, or null", "null"),
    "privacy.epsilon": (lambda v: v > 0, "above 0, or null", 8),
    "privacy.delta": (lambda v: 0 < v < 1, "in (0, 1)", 1e-5),
    "privacy.target": (lambda v: 0 < v < 1, "in (0, 1)", 0.5),
    "privacy.lr": (lambda v: v > 0, "above 0", 0.2),
    "privacy.mark_std": (lambda v: v > 0, "above 0, or null", "null"),
    "privacy.bands": (lambda v: v >= 1, "at least 1, or null", "null"),
    "privacy.honest": (lambda v: 0 < v <= 1, "in (0, 1]", 0.66),
    "robustness.attackers": (lambda v: v >= 0 if isinstance(v, int) else 0 <= v < 0.5,
                             "a number of sites, or a share below 0.5", 0.2),
    "robustness.keep": (lambda v: v >= 1, "at least 1, or null", "null"),
    "robustness.iterations": (lambda v: v >= 1, "at least 1", 8),
    "robustness.size": (lambda v: v >= 1, "at least 1", 2),
    "robustness.max_norm": (lambda v: v > 0, "above 0, or null", "null"),
    "robustness.radius": (lambda v: v > 0, "above 0, or null", "null"),
    "robustness.sigmas": (lambda v: v > 0, "above 0", 3.0),
    "robustness.limit": (lambda v: v > 1, "above 1", 5.0),
    "robustness.strikes": (lambda v: v >= 1, "at least 1", 3),
    "robustness.rounds": (lambda v: v >= 1, "at least 1", 10),
    "robustness.most": (lambda v: 0 < v < 0.5, "above 0 and below 0.5", 0.3),
    "schedule.quorum": (lambda v: 0 < v <= 1, "in (0, 1]", 0.8),
    "schedule.deadline_s": (lambda v: v > 0, "above 0, or null", "null"),
    "schedule.candidates": (lambda v: v >= 1, "at least 1, or null", "null"),
    "schedule.size": (lambda v: v >= 1, "at least 1", 10),
    "schedule.concurrency": (lambda v: v >= 1, "at least 1", 100),
    "schedule.alpha": (lambda v: v >= 0, "0 or more", 2.0),
    "schedule.pacer_step_s": (lambda v: v > 0, "above 0", 60.0),
    "schedule.pacer_window": (lambda v: v >= 1, "at least 1", 20),
    "schedule.most_times": (lambda v: v >= 1, "at least 1", 10),
    "schedule.retries": (lambda v: v >= 0, "0 or more", 2),
    "schedule.wait_for": (lambda v: v >= 0, "0 or more", 0),
    "schedule.wait_s": (lambda v: v > 0, "above 0", 60),
    "runtime.packs": (lambda v: v >= 1, "at least 1, or null", "null"),
    "runtime.sites_per_actor": (lambda v: v >= 1, "at least 1, or null", "null"),
    "runtime.group_size": (lambda v: v >= 1, "at least 1", 256),
    "runtime.patience_s": (lambda v: v > 0, "above 0", 90),
    "evaluate.every": (lambda v: v >= 1, "at least 1", 10),
    "evaluate.bins": (lambda v: v >= 10, "at least 10", 1000),
    "evaluate.patience": (lambda v: v >= 1, "at least 1, or null", "null"),
}


def _numbers(tree: Tree) -> Iterator[str]:
    values = dict(_walk(tree))
    for key, (passes, must, example) in _RANGES.items():
        value = values.get(key)
        if value is None or isinstance(value, str):  # a text is another option's setting of that name
            continue
        if not _is_number(value) or not passes(value):
            yield f"{key}={value} is not {must}. Fix: {key}={example}"


def _schedule(tree: Tree) -> Iterator[str]:
    cohort = (tree.get("schedule") or {}).get("cohort")
    if cohort is None:
        yield from cohort_problem(tree, int((tree.get("data") or {}).get("num_sites") or 10**9))
        return
    fits = _is_number(cohort) and (cohort >= 1 if isinstance(cohort, int) else 0 < cohort <= 1)
    if not fits:
        yield (f"schedule.cohort={cohort} is neither a fraction in (0, 1] nor a number of sites. "
               "Fix: schedule.cohort=0.3 (a share) or schedule.cohort=60 (sites)")
    yield from cohort_problem(tree, int((tree.get("data") or {}).get("num_sites") or 10**9))


def _rates(tree: Tree) -> Iterator[str]:
    values = {"local.lr": (tree.get("local") or {}).get("lr")}
    algorithm = tree.get("algorithm") or {}
    values["algorithm.lr"] = algorithm.get("lr")
    values["algorithm.optimizer.lr"] = (algorithm.get("optimizer") or {}).get("lr")
    for key, value in values.items():
        if value is None or (isinstance(value, Mapping) and "_target_" in value):
            continue
        if not _is_number(value) or value <= 0:
            yield f"{key}={value} is not a number above 0 or a schedule with a `_target_`. Fix: {key}=0.1"


def _data(tree: Tree) -> Iterator[str]:
    data = tree.get("data") or {}
    for key in ("path", "contract"):
        value = data.get(key)
        if isinstance(value, str) and value != "???" and not Path(value).exists():
            yield f"data.{key}={value}: there is no such file or folder. Fix: data.{key}=PATH"
    if "contract" in data and data["contract"] is None and data.get("target") is None:
        yield "data=csv needs to know its outcome. Fix: data.contract=FILE.yaml, or data.target=COLUMN"


def _name(tree: Tree) -> Iterator[str]:
    """Refuse names that would make other folders than one in runs_dir."""
    name = str(tree.get("name"))
    if name != "???" and not NAME.fullmatch(name):
        mended = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "run"
        yield (f"name={name}: it names a folder in runs_dir, so it has letters, digits, points, dashes and "
               f"underscores, a letter or a digit first. Fix: name={mended}")


def _runs_dir(tree: Tree) -> Iterator[str]:
    folder = Path(tree.get("runs_dir") or "runs").absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    given = tree.get("runs_dir")
    if not folder.is_dir():
        yield f"runs_dir={given}: {folder} is a file, so no folder can be made in it. Fix: runs_dir=runs"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"runs_dir={given}: {folder} cannot be written to. Fix: runs_dir=FOLDER that you may write to"


def _storage(tree: Tree) -> Iterator[str]:
    place = (tree.get("checkpoint") or {}).get("storage")
    try:
        check_address(place or "")
    except ConfigError as error:
        yield f"checkpoint.storage={error}"


def _extras(tree: Tree) -> Iterator[str]:
    needs = (tree.get("data") or {}).get("_target_") == "fedray.data.digits"
    if needs and importlib.util.find_spec("sklearn") is None:
        yield "data=digits needs scikit-learn, which is not installed. Fix: pip install 'fedray[report]'"


def _ledger(tree: Tree) -> Iterator[str]:
    settings = tree.get("ledger") or {}
    epsilon, delta = settings.get("epsilon"), settings.get("delta", 1e-5)
    if epsilon is not None and not (_is_number(epsilon) and epsilon > 0):
        yield f"ledger.epsilon={epsilon} is not above 0, or null. Fix: ledger.epsilon=8"
    if not _is_number(delta) or not 0 < delta < 1:
        yield f"ledger.delta={delta} is not between 0 and 1. Fix: ledger.delta=1e-5"
    if epsilon is not None and settings.get("path") is None:
        yield (f"ledger.epsilon={epsilon} limits what all studies spend together, which a file has to tell. "
               "Fix: ledger.path=ledger.jsonl, outside the runs")
    if settings.get("path") is not None and not settings.get("dataset"):
        yield ("ledger.path is given, and a ledger counts by version of the data. "
               "Fix: ledger.dataset='NAME VERSION', as the holder of the data calls it")


# key -> (the two words it may be, the one to choose)
_WORDS: dict[str, tuple[str, str, str]] = {
    "option": ("I", "II", "II"),
    "control": ("batch", "rows", "batch"),
    "where": ("server", "sites", "sites"),
    "labels": ("step", "round", "step"),
}


def _words(tree: Tree) -> Iterator[str]:
    for key, (one, other, choice) in _WORDS.items():
        value = (tree.get("algorithm") or {}).get(key, choice)
        if value not in (one, other):
            yield f"algorithm.{key}={value} is neither {one} nor {other}. Fix: algorithm.{key}={choice}"


def _pairs(tree: Tree) -> Iterator[str]:
    runtime = tree.get("runtime") or {}
    algorithm = tree.get("algorithm") or {}
    cohort = (tree.get("schedule") or {}).get("cohort", 1)
    target = str(algorithm.get("_target_"))
    if target in IN_TURN and not (isinstance(cohort, int) and cohort == 1):
        name = target.rpartition(".")[2]
        yield f"algorithm={name} takes the model to one site a round. Fix: schedule=cyclic"
    if target.startswith(VERTICAL) and cohort != 1.0:
        yield (f"schedule.cohort={cohort}: each site of a vertical algorithm holds a part of every record. "
               "Fix: schedule.cohort=1.0")
    by_trace = (tree.get("schedule") or {}).get("trace") is not None
    if by_trace and str(runtime.get("kind")).rpartition(".")[2] != "in_process":
        yield "schedule.trace is replayed on the simulated clock. Fix: runtime=in_process"
    if runtime.get("kind") == "cluster" and algorithm.get("pooled"):
        yield ("algorithm=pooled brings all rows to one place and is refused on a real federation. "
               "Fix: runtime=ray_local, or algorithm=fedavg")
    compression = tree.get("compression") or {}
    is_vote = compression.get("_target_") == "fedray.passes.sign" and compression.get("weights") is None
    if is_vote and algorithm.get("weighted"):
        yield ("compression=sign gives each site one vote and algorithm.weighted=true weighs sites by rows. "
               "Fix: algorithm.weighted=false, or compression.weights=uniform")
    evaluate = tree.get("evaluate") or {}
    if evaluate.get("patience") and not evaluate.get("valid"):
        yield "evaluate.patience watches validation rows, which are not measured. Fix: evaluate.valid=true"
    device = runtime.get("device")
    if isinstance(device, str) and not DEVICES.fullmatch(device):
        yield f"runtime.device={device} is none of cpu, cuda, cuda:0. Fix: runtime.device=cpu"
    elif isinstance(device, str) and ":" in device and runtime.get("kind") != "in_process":
        yield f"runtime.device={device}: Ray deals the GPUs out. Fix: runtime.device=cuda"
    if runtime.get("packs") is not None and runtime.get("sites_per_actor") is not None:
        yield "runtime.packs and runtime.sites_per_actor say the same thing twice. Fix: runtime.packs=null"


def _site_map(tree: Tree) -> Iterator[str]:
    runtime, topology = tree.get("runtime") or {}, tree.get("topology") or {}
    path, is_from_cluster = runtime.get("site_map"), "absent" in topology
    if is_from_cluster and path is None:
        yield ("topology=from_cluster takes sites and regions from a site map, and none is named. Fix: "
               "runtime=ray_cluster runtime.site_map=cluster/site-map.yaml")
    elif path is not None and not is_from_cluster:
        yield (f"runtime.site_map={path} says where sites are, and the topology is another. Fix: "
               "topology=from_cluster")
    elif path is not None:
        try:
            SiteMap.read(path)
        except ConfigError as error:
            yield from error.problems


def _metrics(tree: Tree) -> Iterator[str]:
    asked, kind = tree.get("metrics") or {}, (tree.get("runtime") or {}).get("kind")
    for name in ("enabled", "sites"):
        if asked.get(name) and str(kind).rpartition(".")[2] == "in_process":
            yield (f"metrics.{name}=true: figures go to Prometheus through Ray, and runtime=in_process has "
                   "none. Fix: runtime=ray_local")
    if asked.get("sites") and asked.get("enabled") is False:
        yield ("metrics.sites=true names sites in figures that metrics.enabled=false switches off. "
               "Fix: metrics.enabled=true")


def _privacy(tree: Tree) -> Iterator[str]:
    privacy, algorithm = tree.get("privacy") or {}, tree.get("algorithm") or {}
    if not str(privacy.get("_target_")).startswith("fedray.passes.site_dp"):
        return
    name = str(privacy["_target_"]).rpartition(".")[2]
    if (privacy.get("epsilon") is None) == (privacy.get("noise_multiplier") is None):
        yield f"privacy={name} takes an epsilon or a noise_multiplier, one of the two. Fix: privacy.epsilon=8"
    if algorithm.get("weighted") and privacy.get("weights") is None:
        yield (f"privacy={name} hides a site among others that count as much, and algorithm.weighted=true "
               "weighs sites by rows. Fix: algorithm.weighted=false, or privacy.weights=uniform")
    is_fedbn = str(algorithm.get("_target_")).endswith("fedbn")
    if (tree.get("model") or {}).get("norm") == "batch" and not is_fedbn:
        yield (f"privacy={name}: with model.norm=batch running variances are part of an update, and noise "
               "makes them negative. Fix: model.norm=layer, or algorithm=fedbn")


def _kinds_of_rounds(tree: Tree) -> Iterator[str]:
    """Find algorithms of two kinds of rounds that would never come to the kind that makes the model."""
    algorithm, rounds = tree.get("algorithm") or {}, tree.get("rounds")
    name = str(algorithm.get("_target_")).rpartition(".")[2]
    first = algorithm.get({"pretrain": "rounds", "hierfavg": "period"}.get(name, ""))
    if not (_is_number(first) and _is_number(rounds) and rounds >= 1):
        return
    if name == "pretrain" and first >= rounds:
        yield (f"algorithm.rounds={first} of rounds={rounds} are pre-training, and none is left for labels. "
               f"Fix: algorithm.rounds={rounds // 2} or rounds={2 * first}")
    if name == "hierfavg" and first > rounds:
        yield (f"algorithm.period={first} is more than rounds={rounds}: no round is over all sites, and the "
               f"model would stay as it starts. Fix: algorithm.period={rounds} or rounds={first}")


FINDERS = (_unset, _strangers, _targets, _numbers, _schedule, _rates, _data, _runs_dir, _storage, _extras,
           _name, _words, _pairs, _kinds_of_rounds, _site_map, _privacy, _ledger, _metrics)
