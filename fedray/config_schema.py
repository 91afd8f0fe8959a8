"""What can be configured: one dataclass per option, its fields typed, each with its meaning below it.

A YAML file `conf/<group>/<option>.yaml` starts from the schema of the same name here, so a misspelt key or a
wrong type fails before anything runs. `fedray run --explain KEY` prints the text below a field. Fields that
are null are filled by `fedray.config_build` from what is known at run time (features, sites, cohort).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fedray import config_schema_data as data
from fedray import config_schema_drift as drift
from fedray import config_schema_fair as fair
from fedray import config_schema_graphs as graphs
from fedray import config_schema_labels as labels
from fedray import config_schema_learn as learn
from fedray import config_schema_passes as passes
from fedray import config_schema_personal as personal
from fedray import config_schema_policy as policy
from fedray import config_schema_privacy as privacy
from fedray import config_schema_robust as robust
from fedray import config_schema_runtime as runtime
from fedray import config_schema_secure as secure
from fedray import config_schema_vertical as vertical
from fedray.config_schema_data import MISSING
from fedray.config_schema_ledger import Ledger
from fedray.config_schema_output import Jsonl, Metrics, Page


@dataclass
class Checkpoint:
    """When the state of server and sites is written."""

    every_s: float = 30.0
    """Seconds between two checkpoints; 0 writes one after every round."""
    keep: int = 2
    """How many of the last checkpoints are kept, beside the best."""
    storage: str | None = None
    """Place that every machine reaches, for checkpoints and copies of the run's records, so that a lost disk
    loses nothing: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; null keeps all in the run directory."""


@dataclass
class Config:
    """Everything of one run."""

    name: str = "run"
    """Part of the name of the run directory."""
    seed: int = 0
    """The one seed of a run: sampling, batches, splits and initial weights derive from it."""
    rounds: int = 50
    """How many rounds to train; `fedray resume RUN rounds=N` may raise it."""
    runs_dir: str = "runs"
    """Folder in which a run directory is made."""
    data_dir: str = "data"
    """Folder for data sets that are built on first use."""
    allow: list[str] = field(default_factory=list)
    """Packages, beside fedray, whose code a `_target_` may name (the same as `--allow`)."""
    fold: str = "exact"
    """How sums are added: exact, regional (a region sends one rounded row), fast (float32, large models)."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """When the state of server and sites is written."""
    ledger: Ledger = field(default_factory=Ledger)
    """Where privacy that runs spend is counted over all studies, and the budget."""
    metrics: Metrics = field(default_factory=Metrics)
    """What the nodes of Ray show to Prometheus."""
    data: Any = MISSING
    """Which sites there are and what they hold."""
    model: Any = MISSING
    """What is trained."""
    local: Any = MISSING
    """How a site trains."""
    algorithm: Any = MISSING
    """The round."""
    compression: Any = MISSING
    """How updates are made smaller (a pass)."""
    privacy: Any = MISSING
    """How updates are clipped and noised (a pass)."""
    robustness: Any = MISSING
    """How outliers among sites are bounded (a pass)."""
    secure: Any = MISSING
    """How sums are hidden from the server (a pass)."""
    policy: Any = MISSING
    """What a plan may release at most."""
    topology: Any = MISSING
    """How sites are grouped into regions that fold first."""
    schedule: Any = MISSING
    """Who is asked in a round, and when the round counts."""
    runtime: Any = MISSING
    """Where it runs."""
    evaluate: Any = MISSING
    """When and on what the model is measured."""
    tracker: Any = MISSING
    """Where the figures of each round go."""
    report: Any = MISSING
    """The page written at the end."""


@dataclass
class Nothing:
    """An option that is switched off."""


class Sampling(Enum):
    """How a cohort is drawn, a function of seed and round only."""

    uniform = "uniform"
    poisson = "poisson"
    weighted = "weighted"
    cyclic = "cyclic"
    shuffled = "shuffled"


class Pace(Enum):
    """How the next site is drawn."""

    uniform = "uniform"
    weighted = "weighted"


OnFailure = Enum("OnFailure", ["retry", "skip", "raise"])  # written this way since `raise` is a keyword


@dataclass
class Awaited:
    """How many a round asks, and when it is over."""

    _target_: str = "fedray.synchronous"
    cohort: Any = 1.0
    """Sites asked per round: a fraction in (0, 1] with a decimal point, or a number of sites without one."""
    quorum: float = 0.8
    """Share of the asked sites that must be counted, in (0, 1]."""
    deadline_s: float | None = None
    """Seconds after which a site counts as late; null waits."""
    on_failure: OnFailure = OnFailure.retry
    """What a round below quorum leads to: retry, skip or raise."""
    retries: int = 2
    """How often a round is tried again."""


@dataclass
class Asked(Awaited):
    """Whom a round draws."""

    sampling: Sampling = Sampling.uniform
    """How the cohort is drawn: uniform, poisson, weighted, cyclic or shuffled."""


@dataclass
class Awaiting(Asked):
    """What all synchronous schedules have."""

    wait_for: int = 0
    """Sites that must have answered before the first round."""
    wait_s: float = 60.0
    """How long to wait for them."""


@dataclass
class Synchronous(Awaiting):
    """Ask a cohort, wait for it, count."""

    late: Any = "drop"
    """Work that misses the deadline: drop, carry (count it in the next round), or a discount by its age."""


@dataclass
class PowerOfChoice(Awaiting):
    """Ask those of some candidates that the global model fits worst; the server sees their losses."""

    _target_: str = "fedray.runtime.selection.power_of_choice"
    candidates: int | None = None
    """Sites that tell their loss before the round; null is twice the cohort."""
    cohort: Any = 0.1
    """Sites asked per round: a fraction in (0, 1] with a decimal point, or a number of sites without one."""
    sampling: Sampling = Sampling.weighted
    """How the candidates are drawn: weighted (by rows), uniform, poisson, cyclic or shuffled."""


@dataclass
class Buffered:
    """Sites at their own pace; the server steps whenever a buffer of contributions is full."""

    _target_: str = "fedray.buffered"
    size: int = 10
    """Contributions of a server step; 1 takes every one by itself."""
    concurrency: int = 100
    """Sites that are kept busy; all where there are fewer."""
    discount: Any = "polynomial 0.5"
    """Factor of a contribution by its age in steps: constant, polynomial A, hinge A B, or a function."""
    sampling: Pace = Pace.uniform
    """How the next site is drawn among the idle ones: uniform or weighted (by rows)."""
    quorum: float = 0.5
    """1 less the share of `concurrency` that may fail between two steps, in (0, 1]."""
    deadline_s: float | None = None
    """Seconds after which a site is given up; null waits."""
    trace: str | None = None
    """File of a trace of who is there and how fast, on the simulated clock; needs in_process."""
    wait_for: int = 0
    """Sites that must have answered before the first round."""
    wait_s: float = 60.0
    """How long to wait for them."""


@dataclass
class OfTrace(Asked):
    """Ask who is there by a trace of availability and speed, on the simulated clock; needs in_process.

    A fraction as cohort is one of all sites; sampling is uniform or weighted.
    """

    _target_: str = "fedray.runtime.traces.by_trace"
    trace: str = MISSING
    """File of the trace."""
    exchanges: int = 1
    """Site stages in a round of the algorithm, each of which takes a site's time."""


@dataclass
class Oort(Awaited):
    """Ask sites that promise most for their time, and some never asked; the server sees their losses."""

    _target_: str = "fedray.runtime.oort.oort"
    trace: str | None = None
    """File of a trace, for the sites' speeds on the simulated clock; null takes those of runtime.latency."""
    epsilon: float = 0.9
    """Share of the first cohort that is drawn among sites never asked."""
    epsilon_decay: float = 0.98
    """Factor on that share in every round."""
    epsilon_least: float = 0.2
    """Where that share stops to fall."""
    alpha: float = 2.0
    """Power of the penalty on sites slower than the preferred duration."""
    pacer_step_s: float = 60.0
    """Simulated seconds: the preferred duration at the start, and by how much it grows."""
    pacer_window: int = 20
    """Rounds whose sums of told losses are compared; the duration grows where they fell."""
    cutoff: float = 0.95
    """Sites are drawn among those above this share of the utility of the last one needed."""
    clip: float = 0.95
    """Quantile to which what sites tell is clipped."""
    most_times: int = 10
    """How often a site takes part before it is left out."""
    cohort: Any = 0.1
    """Sites asked per round: a fraction in (0, 1] with a decimal point, or a number of sites without one."""
    wait_for: int = 0
    """Sites that must have answered before the first round."""
    wait_s: float = 60.0
    """How long to wait for them."""


@dataclass
class Evaluate:
    """Evaluation on all sites."""

    every: int = 10
    """Rounds between two evaluations on the validation rows."""
    valid: bool = True
    """Measure validation rows while training; without, only the test rows at the end."""
    bins: int = 1000
    """Bins of the summed histograms behind AUROC and calibration."""
    per_site: bool = True
    """Gather each site's own figures beside the sums."""
    personal: bool | None = None
    """Measure each site's own model instead of the global one; null does so where the algorithm makes one."""
    patience: int | None = None
    """Stop when the metric did not improve over this many evaluations; null trains all rounds."""
    metric: str = "auroc"
    """Validation metric that `patience` watches."""


SCHEMAS: dict[str, dict[str, type]] = {
    "data": {"synthetic_icu": data.SyntheticIcu, "eicu_mortality": data.EicuMortality,
             "heart_disease": data.HeartDisease, "csv": data.Csv, "at_sites": data.AtSites,
             "digits": data.Digits, "shards": data.Shards, "parties": vertical.Parties,
             "assays": data.Assays},
    "model": {"logistic": learn.Logistic, "linear": learn.Linear, "mlp": learn.Mlp, "cnn": learn.Cnn,
              "gru": learn.Gru, "bag_of_embeddings": learn.BagOfEmbeddings},
    "local": {"sgd": learn.Sgd, "adamw": learn.Adamw, "private_sgd": learn.PrivateSgd},
    "algorithm": {"fedsgd": learn.Fedsgd, "fedavg": learn.Fedavg, "fedavgm": learn.Fedavgm,
                  "fedadagrad": learn.Fedadagrad, "fedadam": learn.Fedadam, "fedyogi": learn.Fedyogi,
                  "fedprox": learn.Fedprox, "scaffold": learn.Scaffold, "ditto": learn.Ditto,
                  "fedasync": drift.Fedasync, "fedbuff": drift.Fedbuff,
                  "fedbabu": personal.Fedbabu, "fedbn": personal.Fedbn, "fedper": personal.Fedper,
                  "fedrep": personal.Fedrep, "fine_tuning": personal.FineTuning,
                  "lg_fedavg": personal.LgFedavg, "apfl": personal.Apfl, "fedamp": personal.Fedamp,
                  "moon": personal.Moon, "per_fedavg": personal.PerFedavg, "pfedme": personal.Pfedme,
                  "private_heads": personal.PrivateHeads,
                  "local_only": learn.LocalOnly, "pooled": learn.Pooled, "one_shot": learn.OneShot,
                  "cyclic": drift.Cyclic, "feddyn": drift.Feddyn, "fedexp": drift.Fedexp,
                  "fedlin": drift.Fedlin, "fedlora": drift.Fedlora, "fednova": drift.Fednova,
                  "mime": drift.Mime, "mimelite": drift.Mimelite,
                  "feddf": labels.Feddf, "fedgkt": labels.Fedgkt, "fedmatch": labels.Fedmatch,
                  "pretrain": labels.Pretrain, "pseudo_label": labels.PseudoLabel,
                  "afl": fair.Afl, "cfl": fair.Cfl, "drfa": fair.Drfa, "ifca": fair.Ifca,
                  "qfedavg": fair.Qfedavg, "term": fair.Term,
                  "dpsgd": graphs.Dpsgd, "hierfavg": graphs.Hierfavg, "push_sum": graphs.PushSum,
                  "swarm": graphs.Swarm,
                  "split": vertical.Split, "splitfed": vertical.Splitfed,
                  "vertical_logistic": vertical.VerticalLogistic, "vertical_towers": vertical.VerticalTowers},
    "compression": {"none": Nothing, "topk": passes.Topk, "randk": passes.Randk, "qsgd": passes.Qsgd,
                    "sign": passes.Sign, "scaled_sign": passes.ScaledSign, "powersgd": passes.Powersgd,
                    "ef21": passes.Ef21, "ef21_broadcast": passes.Ef21Broadcast,
                    "quantised_broadcast": passes.QuantisedBroadcast,
                    "bidirectional": passes.Bidirectional},
    "privacy": {"none": Nothing, **privacy.SCHEMAS}, "robustness": {"none": Nothing, **robust.SCHEMAS},
    "secure": {"none": Nothing, "secure_sum": secure.SecureSum, "group_secure_sum": secure.GroupSecureSum,
               "two_server": secure.TwoServer},
    "policy": {"open": policy.Open, "hospital": policy.Hospital},
    "topology": {"flat": Nothing, "regions": runtime.Regions, "from_cluster": runtime.FromCluster},
    "schedule": {"synchronous": Synchronous, "buffered": Buffered, "cyclic": Synchronous, "oort": Oort,
                 "power_of_choice": PowerOfChoice, "trace": OfTrace},
    "runtime": {"in_process": runtime.InProcess, "ray_local": runtime.RayLocal,
                "ray_cluster": runtime.Cluster},
    "evaluate": {"default": Evaluate, "none": Nothing},
    "tracker": {"jsonl": Jsonl, "none": Nothing},
    "report": {"default": Page, "none": Nothing},
}
