"""Algorithms say what is computed; each is a few lines over the nine verbs. Start at `fedavg.py`.

Names are bound here at once: a function has the name of its module (`fr.algorithms.fedavg` is the function).
"""

from fedray.algorithms.baselines import local_only, one_shot
from fedray.algorithms.cyclic import cyclic
from fedray.algorithms.ditto import ditto
from fedray.algorithms.evaluation import evaluation
from fedray.algorithms.fedavg import fedavg, fedsgd
from fedray.algorithms.feddyn import feddyn
from fedray.algorithms.fedexp import fedexp
from fedray.algorithms.fedlin import fedlin
from fedray.algorithms.fednova import fednova
from fedray.algorithms.fedprox import fedprox
from fedray.algorithms.mime import mime, mimelite
from fedray.algorithms.moments import moments
from fedray.algorithms.scaffold import scaffold

__all__ = [
    "cyclic",
    "ditto",
    "evaluation",
    "fedavg",
    "feddyn",
    "fedexp",
    "fedlin",
    "fednova",
    "fedprox",
    "fedsgd",
    "local_only",
    "mime",
    "mimelite",
    "moments",
    "one_shot",
    "scaffold",
]
