"""The four workloads W1-W4: their draws, initial weights, batch order and cohorts. All systems read one file.

`write(name, path)` draws a workload and saves it; `read(path)` opens it in any environment that has numpy.
Labels are drawn in float64 and everything is stored as float32 (labels of classes as int64). Draws come from
one generator in the order written; changing the order of two lines changes the workload.
Start reading at WORKLOADS. Models and metrics are in `learning.py`, which needs torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import log, prod, sqrt
from pathlib import Path

import numpy as np

BATCH_SIZE = 32
LEARNING_RATE = 0.05
BATCH_SEED_STRIDE = 100_003  # batch order of site i in round r: seed r * 100003 + i
COHORT_SEED = 1000  # cohort of round r: seed 1000 + r
FEATURES = 64

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear or convolutional layer: its name in the torch module, its weight's shape, its positions."""

    name: str
    shape: tuple[int, ...]
    positions: int = 1  # of a convolution: output pixels, each of which costs one product with the weight

    @property
    def fan_in(self) -> int:
        """Inputs of one output."""
        return prod(self.shape[1:])

    def flops(self, is_first: bool) -> int:
        """Operations per row and step: 2 per weight and position, forward, for the weight's gradient and,
        but in the first layer, for the input's gradient. Biases, activations, loss and step are left out.
        """
        return 2 * prod(self.shape) * self.positions * (2 if is_first else 3)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a workload is, apart from its arrays."""

    name: str
    num_sites: int
    cohort: int
    rounds: int
    metric: str  # auroc, accuracy or loss
    init_seed: int
    layers: tuple[Layer, ...]
    draw: Callable[[], Arrays]
    quick_rounds: int  # of a run without peers, which must end within a minute

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return sum(prod(layer.shape) + layer.shape[0] for layer in self.layers)

    @property
    def flops_per_row(self) -> int:
        """Operations of one training step over one row."""
        return sum(layer.flops(is_first=index == 0) for index, layer in enumerate(self.layers))


@dataclass(frozen=True)
class Data:
    """The arrays of a workload: rows site by site, test rows, initial weights."""

    workload: Workload
    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray  # site i holds the rows offsets[i]:offsets[i + 1]
    x_test: np.ndarray
    y_test: np.ndarray
    init: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def sizes(self) -> np.ndarray:
        """Training rows of each site."""
        return np.diff(self.offsets)

    def site(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a site as views."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.x[rows], self.y[rows]

    def flops_per_round(self, rounds: range) -> float:
        """Return the operations of a round's training, as the mean over these rounds' cohorts."""
        rows = [int(self.sizes[cohort(self.workload, round)].sum()) for round in rounds]
        return self.workload.flops_per_row * sum(rows) / len(rows)


def linear_layers(names: Iterator[int] | list[int], widths: list[int]) -> tuple[Layer, ...]:
    """Return the layers of a network that is fully connected."""
    pairs = zip(names, widths[:-1], widths[1:], strict=True)
    return tuple(Layer(name=f"{name}.", shape=(after, before)) for name, before, after in pairs)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + np.exp(-z))


def draw_w1() -> Arrays:
    """Draw 200 skewed sites of tabular rows with a shift each, and 10 % of all rows for the test."""
    rng, sites, rows = np.random.default_rng(1), 200, 200_859
    sizes = rng.lognormal(log(600), 1.01, sites)
    sizes = np.maximum(20, np.rint(sizes / sizes.sum() * rows).astype(np.int64))
    sizes[sizes.argmax()] += rows - sizes.sum()
    site = np.repeat(np.arange(sites), sizes)
    x = rng.standard_normal((rows, FEATURES))
    x += 0.3 * rng.standard_normal((sites, FEATURES))[site]
    w = rng.standard_normal(FEATURES) / 8
    a = rng.standard_normal((FEATURES, 16)) / 8
    v = rng.standard_normal(16) / 2
    z = 1.2 * (x @ w) + 1.5 * (np.tanh(x @ a) @ v) - 1.2 + 0.3 * rng.standard_normal(sites)[site]
    y = (rng.random(rows) < sigmoid(z)).astype(np.float32)
    is_test = rng.random(rows) < 0.10
    x = x.astype(np.float32)
    counts = np.bincount(site[~is_test], minlength=sites)
    return {"x": x[~is_test], "y": y[~is_test], "offsets": offsets_of(counts),
            "x_test": x[is_test], "y_test": y[is_test]}


def draw_w2() -> Arrays:
    """Draw 1000 sites of 100 rows with a linear outcome, and 10,000 rows for the test."""
    rng, sites, rows = np.random.default_rng(2), 1000, 100_000
    x = rng.standard_normal((rows + 10_000, FEATURES))
    w = rng.standard_normal(FEATURES) / 5
    y = (rng.random(len(x)) < sigmoid(x @ w)).astype(np.float32)
    x = x.astype(np.float32)
    return {"x": x[:rows], "y": y[:rows], "offsets": offsets_of(np.full(sites, rows // sites)),
            "x_test": x[rows:], "y_test": y[rows:]}


def draw_w3() -> Arrays:
    """Draw 100 sites of 600 images with skewed classes, and 2,000 images for the test."""
    rng, sites, rows = np.random.default_rng(3), 100, 600
    prototypes = rng.standard_normal((10, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    labels = [rng.choice(10, rows, p=rng.dirichlet(np.full(10, 0.5))) for _ in range(sites)]
    labels.append(rng.integers(0, 10, 2000))
    images = [(0.5 * prototypes[y] + rng.standard_normal((len(y), 28, 28))).astype(np.float32)
              for y in labels]  # piece by piece the stream of one large draw, in a fraction of its memory
    x, y = np.concatenate(images)[:, None], np.concatenate(labels).astype(np.int64)
    cut = sites * rows
    return {"x": x[:cut], "y": y[:cut], "offsets": offsets_of(np.full(sites, rows)),
            "x_test": x[cut:], "y_test": y[cut:]}


def draw_w4() -> Arrays:
    """Draw 8 sites of one batch each; the test rows are the training rows."""
    rng, sites, rows = np.random.default_rng(4), 8, 32
    x = rng.standard_normal((sites * rows, 1024)).astype(np.float32)
    y = rng.integers(0, 10, len(x)).astype(np.int64)
    return {"x": x, "y": y, "offsets": offsets_of(np.full(sites, rows)), "x_test": x, "y_test": y}


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Return where each site's rows begin, and where the last end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def initial_weights(workload: Workload) -> Arrays:
    """Draw U(-b, b) with b = 1 / sqrt(fan_in), weight then bias, layer by layer, by torch's names."""
    rng, weights = np.random.default_rng(workload.init_seed), {}
    for layer in workload.layers:
        bound = 1 / sqrt(layer.fan_in)
        weights[f"{layer.name}weight"] = rng.uniform(-bound, bound, layer.shape).astype(np.float32)
        weights[f"{layer.name}bias"] = rng.uniform(-bound, bound, layer.shape[0]).astype(np.float32)
    return weights


def cohort(workload: Workload, round: int) -> np.ndarray:
    """Return the sites of a round, sorted."""
    if workload.cohort == workload.num_sites:
        return np.arange(workload.num_sites)
    rng = np.random.default_rng(COHORT_SEED + round)
    return np.sort(rng.choice(workload.num_sites, workload.cohort, replace=False))


def write(name: str, path: Path) -> None:
    """Draw a workload and save it with its initial weights."""
    workload = WORKLOADS[name]
    weights = {f"init/{key}": value for key, value in initial_weights(workload).items()}
    np.savez(path, workload=np.array(name), **workload.draw(), **weights)


def read(path: str | Path) -> Data:
    """Load a workload into memory."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    init = {key.removeprefix("init/"): value for key, value in arrays.items() if key.startswith("init/")}
    kept = {key: arrays[key] for key in ("x", "y", "offsets", "x_test", "y_test")}
    return Data(WORKLOADS[str(arrays["workload"])], **kept, init=init)


W3_LAYERS = (Layer(name="0.", shape=(32, 1, 5, 5), positions=28 * 28),
             Layer(name="3.", shape=(64, 32, 5, 5), positions=14 * 14),
             Layer(name="7.", shape=(512, 3136)), Layer(name="9.", shape=(10, 512)))

WORKLOADS = {workload.name: workload for workload in (
    Workload(name="w1", num_sites=200, cohort=200, rounds=10, metric="auroc", init_seed=11, draw=draw_w1,
             layers=linear_layers([0, 2, 4], [FEATURES, 128, 64, 1]), quick_rounds=3),
    Workload(name="w2", num_sites=1000, cohort=100, rounds=50, metric="auroc", init_seed=12, draw=draw_w2,
             layers=(Layer(name="", shape=(1, FEATURES)),), quick_rounds=50),
    Workload(name="w3", num_sites=100, cohort=10, rounds=5, metric="accuracy", init_seed=13, draw=draw_w3,
             layers=W3_LAYERS, quick_rounds=2),
    Workload(name="w4", num_sites=8, cohort=8, rounds=5, metric="loss", init_seed=14, draw=draw_w4,
             layers=linear_layers([0, 2, 4], [1024, 4480, 4480, 10]), quick_rounds=3),
)}
