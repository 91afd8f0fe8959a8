"""Schemas of the group `secure`: who may see one site's values. Start at `config_schema.py`."""

from dataclasses import dataclass


@dataclass
class SecureSum:
    """The server sees sums of the sites' values, and of no site its own."""

    _target_: str = "fedray.passes.secure_sum"
    mode: str = "ideal"
    """`real` adds masks; `ideal` computes the same bits without them: for simulation, no protection."""
    threshold: float | None = None
    """Share or number of sites that must live to the end; null takes 2/3 (active server) or 1/2 (curious)."""
    server: str = "active"
    """`active`: the server may lie, and sites sign what they see; `curious`: it follows the protocol."""
    cohort: int | None = None
    """Sites in a round; above 64 they mask with some neighbours only. Null takes the schedule's."""
    min_cohort: int = 5
    """Fewest sites in a sum that is ever opened."""
    clip: float | None = None
    """Public bound of a number; null takes that of a clip, else it follows the last sum with room of 64."""
    weight_cap: float | None = None
    """Public bound of a weight; null takes the rows of the largest site, else it follows the last sum."""
    second_set: bool = False
    """Sum a model over one other set, 3 sites less, from the third try on: a lost site may never return."""


@dataclass
class GroupSecureSum:
    """The server sees the sum of each of several random groups, which a robust rule compares."""

    _target_: str = "fedray.passes.group_secure_sum"
    groups: int = 5
    """Groups that are drawn anew in each round; a rule tolerates bad groups in place of bad sites."""
    mode: str = "ideal"
    """`real` adds masks; `ideal` computes the same bits without them: for simulation, no protection."""
    threshold: float | None = None
    """Share or number in a group that must live to the end; null takes 2/3 (active server) or 1/2."""
    server: str = "active"
    """`active`: the server may lie, and sites sign what they see; `curious`: it follows the protocol."""
    min_cohort: int = 5
    """Fewest sites in a group whose sum is ever opened."""
    clip: float | None = None
    """Public bound of a number; null takes that of a clip, else it follows the last sum with room of 64."""
    weight_cap: float | None = None
    """Public bound of a weight; null takes the rows of the largest site, else it follows the last sum."""
    second_set: bool = False
    """Sum a model over one other set, 3 sites less, from the third try on: a lost site may never return."""


@dataclass
class TwoServer:
    """Each update is split into two random shares for two aggregators that do not collude."""

    _target_: str = "fedray.passes.two_server"
    min_cohort: int = 5
    """Fewest sites in a sum that is ever opened."""
    clip: float | None = None
    """Public bound of a number; null takes that of a clip, else it follows the last sum with room of 64."""
    weight_cap: float | None = None
    """Public bound of a weight; null takes the rows of the largest site, else it follows the last sum."""
