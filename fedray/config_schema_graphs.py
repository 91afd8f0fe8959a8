"""Schemas of hierarchical and decentralised algorithms in the group `algorithm`. See `config_schema.py`."""

from dataclasses import dataclass


@dataclass
class Dpsgd:
    """Sites mix their models with those of their neighbours; no server holds one."""

    _target_: str = "fedray.algorithms.dpsgd"
    graph: str = "ring"
    """Who mixes with whom: ring, torus, complete, star or erdos_renyi."""
    variant: str = "paper"
    """`paper` moves the mixed model along the gradient at the own one, adapt_then_combine mixes after it."""
    average: bool = True
    """Keep the average of all models at the server and evaluate it; without, each site's own is evaluated."""
    edge_probability: float = 0.3
    """Probability of each edge of erdos_renyi."""
    graph_seed: int = 0
    """Seed of the edges of erdos_renyi."""


@dataclass
class Hierfavg:
    """Sites are averaged in their region, and regions from time to time; needs data with regions."""

    _target_: str = "fedray.algorithms.hierfavg"
    period: int = 5
    """Every so many rounds the average is over all sites; 1 is federated averaging."""


@dataclass
class PushSum:
    """Gossip over a directed graph, which need not be balanced."""

    _target_: str = "fedray.algorithms.push_sum"
    graph: str = "exponential"
    """Who sends to whom: directed_ring, exponential, or one_peer (another peer every round)."""
    average: bool = True
    """Keep the average of all models at the server and evaluate it; without, each site's own is evaluated."""


@dataclass
class Swarm:
    """Federated averaging whose aggregator is another site in each round."""

    _target_: str = "fedray.algorithms.swarm"
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""
    order: str = "in_turn"
    """Whose turn it is: in_turn (by ids) or drawn (with the run's seed)."""
