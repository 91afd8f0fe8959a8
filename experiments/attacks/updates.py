"""Attacks on what sites send, for experiments: what attackers send in place of their update.

`attacked(attack, attackers)` is a pass that stands behind a robust one. It rewrites what the server has
gathered, before the rule sees it, so an attack may know all honest updates of the round, as the strongest
ones do, and honest sites keep their bits. A mean is attacked through `mean()`, which gathers.

An attack is a function of a `Scene` that returns the attackers' rows. Sources: Blanchard et al., NeurIPS 2017
(Gaussian); Bagdasaryan et al., AISTATS 2020 (model replacement); Baruch et al., A little is enough, NeurIPS
2019; Xie et al., Fall of empires, UAI 2019 (inner product); Shejwalkar and Houmansadr, Manipulating the
Byzantine, NDSS 2021 (min-max, min-sum, without knowledge of the rule); Karimireddy et al., ICLR 2022 (mimic).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch

import fedray as fr
from fedray.core.graph import MADE_UP, Label
from fedray.core.rewrite import Pass, on_reduce
from fedray.passes.robust import Asked, Outcome, Robust, mean_of
from fedray.passes.stack import restored, stacked

Rows = np.ndarray
NOISE_TIMES = 10.0  # norm of a Gaussian row, in median honest norms
HALVINGS = 30  # of the factor of min-max and min-sum


@dataclass(frozen=True)
class Scene:
    """What an attack knows: honest rows, what attackers would have sent, a generator, and its memory."""

    honest: Rows
    own: Rows
    rng: np.random.Generator
    memory: Any = None

    @property
    def boost(self) -> float:
        """Return n / f, by which what f of n sites send is multiplied to become the whole mean."""
        return (len(self.honest) + len(self.own)) / len(self.own)

    def all_send(self, row: Rows) -> Rows:
        """Return the same row for every attacker."""
        return np.tile(row, (len(self.own), 1))


def sign_flip(scene: Scene) -> Rows:
    """Send -4 times the own update."""
    return -4.0 * scene.own


def scaled(scene: Scene) -> Rows:
    """Send the mirrored update n / f times: model replacement by the model mirrored at the global one."""
    return -scene.boost * scene.own


def boosted(scene: Scene) -> Rows:
    """Send the own update n / f times: model replacement by what was trained on poisoned rows."""
    return scene.boost * scene.own


def gaussian(scene: Scene) -> Rows:
    """Send noise."""
    noise = scene.rng.normal(size=scene.own.shape)
    length = NOISE_TIMES * np.median(np.linalg.norm(scene.honest, axis=1))
    return noise * (length / np.sqrt(noise.shape[1]))


def alie(scene: Scene) -> Rows:
    """Stay within the honest spread: mean - z sd, z = Phi^-1((n - f - s) / (n - f)), s = n // 2 + 1 - f."""
    n, f = len(scene.honest) + len(scene.own), len(scene.own)
    share = (n - f - (n // 2 + 1 - f)) / (n - f)
    z = NormalDist().inv_cdf(min(max(share, 1e-3), 1 - 1e-3))
    return scene.all_send(scene.honest.mean(0) - z * scene.honest.std(0))


def inner_product(epsilon: float) -> Callable[[Scene], Rows]:
    """Send -epsilon times the honest mean."""
    return lambda scene: scene.all_send(-epsilon * scene.honest.mean(0))


def _squares(a: Rows, b: Rows) -> Rows:
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


def _as_far_as(scene: Scene, limit: float, reach: Callable[[Rows], float]) -> Rows:
    """Go from the honest mean against the honest deviations as far as `reach` stays within the limit."""
    centre, direction = scene.honest.mean(0), -scene.honest.std(0)
    low, high = 0.0, 1.0
    while reach(centre + high * direction) <= limit and high < 1e6:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reach(centre + middle * direction) <= limit else (low, middle)
    return scene.all_send(centre + low * direction)


def min_max(scene: Scene) -> Rows:
    """Lie no farther from any honest row than two honest rows from each other."""
    limit = float(_squares(scene.honest, scene.honest).max())
    return _as_far_as(scene, limit, lambda row: float(((scene.honest - row) ** 2).sum(1).max()))


def min_sum(scene: Scene) -> Rows:
    """Lie no farther from all honest rows together than the farthest honest row does."""
    limit = float(_squares(scene.honest, scene.honest).sum(1).max())
    return _as_far_as(scene, limit, lambda row: float(((scene.honest - row) ** 2).sum()))


def mimic(scene: Scene) -> Rows:
    """Copy the first honest site: its rows count too much, and nothing looks wrong."""
    return scene.all_send(scene.honest[0])


def lazy(scene: Scene) -> Rows:
    """Send nothing."""
    return np.zeros_like(scene.own)


def stale(scene: Scene) -> Rows:
    """Replay the update of the first round."""
    return scene.own if scene.memory is None else scene.memory


def sybil(scene: Scene) -> Rows:
    """Send one mirrored update under many names."""
    return scene.all_send(-scene.own.mean(0))


ATTACKS: dict[str, Callable[[Scene], Rows]] = {
    "sign_flip": sign_flip, "scaled": scaled, "gaussian": gaussian, "alie": alie,
    "ipm_0.1": inner_product(0.1), "ipm_1.1": inner_product(1.1), "min_max": min_max, "min_sum": min_sum,
    "mimic": mimic, "lazy": lazy, "stale": stale, "sybil": sybil, "boosted": boosted,
}  # fmt: skip


@dataclass(frozen=True)
class Attacked:
    """What the server has gathered, with the attackers' values replaced; and the attack's memory."""

    attack: str
    attackers: tuple[str, ...]
    needs: ClassVar[Label] = Label.VISIBLE

    def __call__(self, values: Mapping[str, Any], memory: Any, key: Any) -> dict[str, Any]:
        """Replace them."""
        kept = {"values": values, "memory": memory}
        if set(values) <= set(MADE_UP):
            return kept
        stack, like, broken = stacked(values)
        x = np.array([torch.cat([leaf.double() for leaf in row]).numpy() for row in stack.rows])
        bad = np.array([name in self.attackers for name in stack.names])
        if not bad.any() or bad.all() or broken:
            return kept
        before = None if memory is None else memory["rows"].numpy()
        rng = np.random.default_rng(key.value)
        x[bad] = ATTACKS[self.attack](Scene(x[~bad], x[bad], rng, before))
        sizes = [len(leaf) for leaf in stack.rows[0]]
        made = {
            name: restored(like, [part.to(old) for part, old in
                                  zip(torch.from_numpy(row).split(sizes), stack.rows[i], strict=True)])
            for i, (name, row) in enumerate(zip(stack.names, x, strict=True))
        }  # fmt: skip
        found = {name: made[name] if name in self.attackers else values[name] for name in values}
        return {"values": found, "memory": {"rows": torch.from_numpy(x[bad].copy())}}


def attacked(attack: str, attackers: tuple[str, ...], name: str = "delta") -> Pass:
    """Let some sites attack what is gathered under a name. Put it behind a robust pass."""

    def replaced(x: Any, weight: Any, name: str, site: Any) -> Any:
        slot, gathered = f"attack.{name}", fr.gather(x, name=name)
        rewritten = Attacked(attack, attackers)
        found = fr.apply(rewritten, gathered, site.server.slot(slot), site.server.stream(slot))
        site.server.store(slot, found["memory"])
        return found["values"]

    return on_reduce("gather", {name}, f"attacked({attack})")(replaced)


@dataclass(frozen=True)
class Mean:
    """The mean of what is gathered: no defence, under the same attacks."""

    keeps: ClassVar[bool] = False
    title: ClassVar[str] = "mean"

    def __call__(self, asked: Asked) -> Outcome:
        """Average."""
        return Outcome(mean_of(asked.stack))


def mean() -> Robust:
    """Gather, and average with equal weights."""
    return Robust(Mean(), "no bad site")
