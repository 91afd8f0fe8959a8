"""Algorithms say what is computed; each is a few lines over the nine verbs. Start at `fedavg.py`.

Names are bound here at once: a function has the name of its module (`fr.algorithms.fedavg` is the function).
"""

from fedray.algorithms.baselines import local_only, one_shot
from fedray.algorithms.ditto import ditto
from fedray.algorithms.evaluation import evaluation
from fedray.algorithms.fedavg import fedavg, fedsgd
from fedray.algorithms.fedbabu import fedbabu
from fedray.algorithms.fedbn import fedbn
from fedray.algorithms.fedper import fedper
from fedray.algorithms.fedprox import fedprox
from fedray.algorithms.fedrep import fedrep
from fedray.algorithms.fine_tuning import fine_tuning
from fedray.algorithms.lg_fedavg import lg_fedavg
from fedray.algorithms.moments import moments
from fedray.algorithms.scaffold import scaffold

__all__ = [
    "ditto",
    "evaluation",
    "fedavg",
    "fedbabu",
    "fedbn",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fine_tuning",
    "lg_fedavg",
    "local_only",
    "moments",
    "one_shot",
    "scaffold",
]
