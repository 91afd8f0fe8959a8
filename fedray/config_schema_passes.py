"""Schemas of the groups whose options are passes: `compression`. Start at `config_schema.py`."""

from dataclasses import dataclass, field
from typing import Any


def _delta() -> list[str]:
    return ["delta"]


@dataclass
class Topk:
    """Sites send the largest numbers of an update and remember the rest."""

    _target_: str = "fedray.passes.topk"
    fraction: float = 0.01
    """Share of the numbers that is sent, in (0, 1]."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class Randk:
    """Sites send numbers at random coordinates, the same at every site; sums may be masked."""

    _target_: str = "fedray.passes.randk"
    fraction: float = 0.01
    """Share of the numbers that is sent, in (0, 1]."""
    error_feedback: bool = True
    """Remember what was not sent; without, what is sent is scaled up, which is right on average."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class Qsgd:
    """Sites round an update at random to a few levels, right on average."""

    _target_: str = "fedray.passes.qsgd"
    levels: int = 127
    """Levels of each sign; a number takes ceil(log2(2 levels + 1)) bits, 8 for 127."""
    bucket: int | None = None
    """Numbers that share a norm; null takes one norm for the whole update."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class Sign:
    """Sites vote on the direction of each number, one bit each; the server follows the majority."""

    _target_: str = "fedray.passes.sign"
    lr: float = 0.001
    """How far each number moves in a round."""
    weights: str | None = None
    """`uniform` drops the weights of a weighted mean; null refuses it."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class ScaledSign:
    """Sites send signs and a mean magnitude, and remember the error."""

    _target_: str = "fedray.passes.scaled_sign"
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class Powersgd:
    """Matrices leave as two thin factors, and sites remember the error; sums may be masked."""

    _target_: str = "fedray.passes.powersgd"
    rank: int = 2
    """Columns of a factor."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class Ef21:
    """Sites send the largest changes of what the server believes of them."""

    _target_: str = "fedray.passes.ef21"
    fraction: float = 0.01
    """Share of the numbers that is sent, in (0, 1]."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are compressed, as `egress` lists them."""


@dataclass
class QuantisedBroadcast:
    """The server sends the model rounded at random."""

    _target_: str = "fedray.passes.quantised_broadcast"
    levels: int = 127
    """Levels of each sign; a number takes ceil(log2(2 levels + 1)) bits, 8 for 127."""
    bucket: int | None = 512
    """Numbers that share a norm; null takes one norm for the whole model."""
    only: list[str] = field(default_factory=lambda: ["params"])
    """Names of what is broadcast, as `fr.explain` shows them."""


@dataclass
class Ef21Broadcast:
    """The server sends the largest changes of what sites believe of the model."""

    _target_: str = "fedray.passes.ef21_broadcast"
    fraction: float = 0.01
    """Share of the numbers that is sent, in (0, 1]."""
    only: list[str] = field(default_factory=lambda: ["params"])
    """Names of what is broadcast, as `fr.explain` shows them."""


@dataclass
class Bidirectional:
    """Both ways: updates by one pass, the model by another."""

    _target_: str = "fedray.passes.bidirectional"
    up: Any = field(default_factory=Topk)
    """How updates are compressed: a `_target_` of `fedray.passes` and its settings."""
    down: Any = field(default_factory=QuantisedBroadcast)
    """How the model is compressed."""
