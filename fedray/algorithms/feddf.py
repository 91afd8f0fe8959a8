"""FedDF: the server teaches the averaged model what the sites' models say together of public rows.

Source: Lin, Kong, Stich and Jaggi, Ensemble distillation for robust model fusion in federated learning,
NeurIPS 2020, Algorithm 1 and equation 1 (AVGLOGITS). Sites train as in federated averaging; the student
starts from the mean of their models, weighted by rows, and takes steps on batches d of unlabelled rows:
  x <- x - eta grad KL( softmax(1/|S| sum_k f(x_k, d)) || softmax(f(x, d)) ),        temperature 1.
The sites keep nothing. where="server" is the paper's: the server must SEE each site's model (a `gather`), so
that secure sums do not go with it. where="sites" gives the same numbers: the public rows lie at the sites,
each says its logits of them, and only their mean leaves. Deviations: one architecture; a set number of steps
by the rule of `student` at a constant rate, where the paper takes Adam with a cosine rate and stops on
validation rows; batch statistics are those of the mean and are not moved. The student is one model at the
server; local steps are stacked where `local` is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn.distilling import Distil
from fedray.learn.objectives import pursuing
from fedray.learn.supervision import Logits, logits_of
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole

NUM_NOISE_ROWS = 256


@dataclass(frozen=True)
class OnPublic:
    """The logits of a model on the public rows."""

    logits: Logits
    public: Mapping[str, Tensor]

    def __call__(self, params: Any) -> Tensor:
        """Return (rows,) or (rows, classes)."""
        device = next(iter(params.values())).device
        with torch.no_grad():
            return self.logits(params, {name: column.to(device) for name, column in self.public.items()})


@dataclass(frozen=True)
class MeanLogits:
    """The mean of the logits of several models."""

    of_one: OnPublic

    def __call__(self, models: Mapping[str, Any]) -> Tensor:
        """Return the uniform mean, the sites in the order of their names."""
        return torch.stack([self.of_one(models[site]) for site in sorted(models)]).mean(0)


@dataclass(frozen=True)
class Fuse:
    """The server's distillation."""

    student: Any
    public: Mapping[str, Tensor]
    steps: int
    lr: float | None
    seed: int

    def __call__(self, params: Any, teacher: Tensor, round: int) -> Any:
        """Return the student, from `params`."""
        key = Key(self.seed, round, SERVER, "feddf")
        update = self.student(params, {**self.public, "teacher": teacher}, key, steps=self.steps, lr=self.lr)
        return tree.add(params, update.delta)


def noise_rows(num_features: int | None, seed: int) -> dict[str, Tensor]:
    """Return rows of standard normal noise, for standardised columns. Raises ValueError without a width."""
    if num_features is None:
        raise ValueError("feddf: give public=, a mapping of columns of unlabelled rows")
    generator = Key(seed, 0, SERVER, "feddf public").generator()
    return {"x": torch.randn(NUM_NOISE_ROWS, num_features, generator=generator)}


def public_rows(public: Any) -> dict[str, Tensor]:
    """Return the columns of the public rows. Raises ValueError where they are none."""
    if not isinstance(public, Mapping):
        raise ValueError(
            f"feddf: public={public!r}: give a mapping of columns; on the command line "
            "{_target_: fedray.data.public_rows, path: FILE.npy}"
        )
    rows = dict(public)
    if not rows or not len(next(iter(rows.values()))):
        raise ValueError("feddf: there is no public row")
    if others := [name for name, column in rows.items() if not isinstance(column, Tensor)]:
        raise ValueError(f"feddf: public {', '.join(others)} must be tensors: use torch.as_tensor")
    return rows


def check_public(said: Logits, params: Any, public: Mapping[str, Tensor]) -> None:
    """Raise ValueError where the model cannot predict the public rows."""
    try:
        with torch.no_grad():
            said(params, {name: column[:1] for name, column in public.items()})
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in public.items())
        raise ValueError(
            f"feddf: the model cannot predict the public rows ({shapes}): give public= the columns that the "
            f"sites train on, as wide as theirs and in their order ({type(error).__name__}: {error})"
        ) from error


def feddf(
    local: Any, public: Mapping[str, Tensor] | None = None, where: str = "server", student: Any = None,
    steps: int = 100, lr: float | None = None, logits: Logits | None = None, weighted: bool = True,
    num_features: int | None = None, seed: int = 0,
) -> fr.Algorithm:  # fmt: skip
    """Federated averaging, then `steps` steps of distillation at the server.

    `public` are the columns of unlabelled rows that all parties may see; without, rows of noise are drawn.
    `student` (`local` unless one is given) is a local update that says how the server steps, `lr` its rate
    there. Raises ValueError on another `where`, or no public row.
    """
    if where not in ("server", "sites"):
        raise ValueError(f"feddf: where={where!r}: choose 'server' or 'sites'")
    check_whole("feddf", least=0, steps=steps)
    check_whole("feddf", or_none=True, num_features=num_features)
    check_numbers("feddf", above=0, or_none=True, lr=lr)
    rows = noise_rows(num_features, seed) if public is None else public_rows(public)
    said = logits_of(local, "feddf", logits)
    of_one = OnPublic(said, rows)
    fuse = Fuse(pursuing(student or local, Distil(said), "feddf"), rows, steps, lr, seed)

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(local, x, site.data, site.rng)
        mean = server.params + fr.mean(update.delta, weight=update.num_examples if weighted else None)
        mine = x + update.delta
        if where == "sites":
            teacher = fr.mean(fr.map(of_one, mine), name="logits")
        else:
            teacher = fr.apply(MeanLogits(of_one), fr.gather(mine, name="model"))
        return fr.Outputs(
            server=FedAvgState(fr.apply(fuse, mean, teacher, server.round), {}, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    def init(params: Any) -> FedAvgState:
        check_public(said, params, rows)
        return FedAvgState(tree.flatten(params), {})

    return fr.Algorithm(init, round, name="feddf", needs_rows=True)
