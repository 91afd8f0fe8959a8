"""MIME and MIMELite: every local step uses the server's momentum, which local steps do not change.

Source: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, Mime: Mimicking centralized stochastic
algorithms in federated learning, 2020 (NeurIPS 2021 as Breaking the centralized barrier for cross-device
federated learning), Algorithm 1, with SGD and momentum beta as base algorithm (U, V):
  y <- y - eta ((1 - beta) g + beta m);   afterwards, with c = mean grad f_i(x):  m <- (1 - beta) c + beta m
  Mime: g = g_i(y) - grad f_i(x) + c      MimeLite: g = g_i(y)      x <- mean y_i
m is frozen during local steps. Mime has two exchanges a round, MimeLite one; means are uniform, as in the
paper. The sites keep nothing.
In Mime the grad f_i(x) of a local step is on that step's batch, c on all rows. Variant `control="rows"`: all
rows there too, as in SCAFFOLD's option I; equal with batch_size=None, and local steps are vectorised, being
plain SGD at rate eta (1 - beta) with a correction. Not vectorised: steps with a gradient at x on each batch,
and the gradient at x over all rows, which is one call a site. Not here: Adam and other base algorithms.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import RateOf, check_plain, num_rows_of
from fedray.learn.optimizer import sgd
from fedray.settings import check_numbers, check_rates


@dataclass(frozen=True)
class MimeState:
    """Global parameters x, the momentum m, and the number of the next round."""

    params: Any
    momentum: Any
    round: int = 0


@dataclass(frozen=True)
class FromReference:
    """Local training whose steps take off the gradient that their batch has at the received parameters.

    It has no twin: the stacked engine computes one gradient a step.
    """

    local: Any

    def __call__(self, params: Any, data: Any, rng: Any, **extras: Any) -> Any:
        """Return the update of one site."""
        return self.local(params, data, rng, reference=params, **extras)


def mime(
    local: Any,
    momentum: float = 0.9,
    server_lr: float = 1.0,
    weighted: bool = False,
    control: str = "batch",
) -> fr.Algorithm:
    """Mimic SGD with momentum on the rows of all sites.

    `local` takes plain SGD steps and needs `gradient(params, data)`; `weighted` weighs all means by rows.
    Raises ValueError where it lacks it, momentum is outside [0, 1), or control is neither batch nor rows.
    """
    if control not in ("batch", "rows"):
        raise ValueError(f"mime: control={control!r}: choose 'batch', as in the paper, or 'rows'")
    return _mime("mime", local, momentum, server_lr, weighted, control)


def mimelite(
    local: Any, momentum: float = 0.9, server_lr: float = 1.0, weighted: bool = False
) -> fr.Algorithm:
    """Mimic SGD with momentum in one exchange a round, without the correction of drift. See `mime`."""
    return _mime("mimelite", local, momentum, server_lr, weighted, "")


def _mime(
    name: str, local: Any, momentum: float, server_lr: float, weighted: bool, control: str
) -> fr.Algorithm:
    check_plain(local, name, "gradient")
    check_numbers(name, least=0, below=1, momentum=momentum)
    check_rates(name, server_lr=server_lr)
    optimizer, rate = sgd(server_lr), RateOf(local, factor=1 - momentum)
    train = FromReference(local) if control == "batch" else local

    def init(params: Any) -> MimeState:
        return MimeState(params, tree.zeros_like(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        weight = fr.map(num_rows_of, site.data) if weighted else None
        own = fr.map(local.gradient, x, site.data)
        shared = fr.mean(own, weight=weight, name="gradient")
        correction = fr.broadcast(server.momentum * (momentum / (1 - momentum)))
        if control:
            correction = correction + fr.broadcast(shared)
        if control == "rows":
            correction = correction - own
        lr = rate.constant if rate.constant is not None else fr.map(rate, site.data, site.rng)
        update = fr.map(train, x, site.data, site.rng, correction=correction, lr=lr)
        delta = fr.mean(update.delta, weight=weight)
        step = fr.apply(optimizer.step, server.params, {}, delta, server.round)
        following = (1 - momentum) * shared + momentum * server.momentum
        return fr.Outputs(
            server=MimeState(step.params, following, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name=name)
