"""Schemas of fairness, clusters and selection in the group `algorithm`. Start at `config_schema.py`."""

from dataclasses import dataclass


@dataclass
class Afl:
    """The best model for the worst mixture of the sites."""

    _target_: str = "fedray.algorithms.afl"
    rate: float = 0.1
    """Rate at which the weights of the sites follow their losses."""
    average: bool = True
    """Report the average of all iterates, as in the paper; without, the last one."""


@dataclass
class Cfl:
    """One model that is divided where sites pull it to different sides; the server sees each update."""

    _target_: str = "fedray.algorithms.cfl"
    eps1: float = 0.01
    """Largest norm of the mean update of a cluster at rest."""
    eps2: float = 0.1
    """Norm of a site's update above which it is not at rest."""
    gamma: float = 0.0
    """Smallest distance between the halves, in [0, 1]."""


@dataclass
class Drfa:
    """AFL with local steps: sites are drawn by how badly they fare."""

    _target_: str = "fedray.algorithms.drfa"
    steps: int = 10
    """Local steps of the sites that are drawn."""
    size: int | None = None
    """Sites drawn in a round, with replacement, and sites that tell their loss; null is all."""
    rate: float = 0.01
    """Rate at which the weights of the sites follow their losses."""


@dataclass
class Ifca:
    """Several global models; every site trains the one that fits it best."""

    _target_: str = "fedray.algorithms.ifca"
    num_clusters: int = 2
    """Number of models."""
    option: str = "II"
    """II: the mean over the sites of a model; I: their sum over all sites asked (gradient averaging)."""
    weighted: bool = False
    """Weigh the mean of a cluster by training rows."""
    spread: float = 0.1
    """Normal distance of the first models from the common start."""


@dataclass
class Qfedavg:
    """Sites with higher losses count more, by a power of the loss."""

    _target_: str = "fedray.algorithms.qfedavg"
    q: float = 1.0
    """The power; 0 is federated averaging."""
    lipschitz: float | None = None
    """The paper's L; null is the inverse of the local learning rate."""
    weighted: bool = False
    """Weigh sites by training rows too, for cohorts that are not drawn by them."""


@dataclass
class Term:
    """Sites with higher losses count more, by an exponential of the loss."""

    _target_: str = "fedray.algorithms.term"
    t: float = 1.0
    """The tilt: above 0 towards the worst sites, below 0 towards the best; 0 is federated averaging."""
    weighted: bool = True
    """Weigh sites by training rows too."""
