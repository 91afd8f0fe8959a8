"""Algorithms say what is computed; each is a few lines over the nine verbs. Start at `fedavg.py`.

Names are bound here at once: a function has the name of its module (`fr.algorithms.fedavg` is the function).
"""

from fedray.algorithms.afl import afl
from fedray.algorithms.baselines import local_only, one_shot
from fedray.algorithms.cfl import cfl
from fedray.algorithms.cyclic import cyclic
from fedray.algorithms.ditto import ditto
from fedray.algorithms.drfa import drfa
from fedray.algorithms.evaluation import evaluation
from fedray.algorithms.fedavg import fedavg, fedsgd
from fedray.algorithms.feddyn import feddyn
from fedray.algorithms.fedexp import fedexp
from fedray.algorithms.fedlin import fedlin
from fedray.algorithms.fednova import fednova
from fedray.algorithms.fedprox import fedprox
from fedray.algorithms.ifca import ifca
from fedray.algorithms.mime import mime, mimelite
from fedray.algorithms.moments import moments
from fedray.algorithms.qfedavg import qfedavg
from fedray.algorithms.scaffold import scaffold
from fedray.algorithms.term import term

__all__ = [
    "afl",
    "cfl",
    "cyclic",
    "ditto",
    "drfa",
    "evaluation",
    "fedavg",
    "feddyn",
    "fedexp",
    "fedlin",
    "fednova",
    "fedprox",
    "fedsgd",
    "ifca",
    "local_only",
    "mime",
    "mimelite",
    "moments",
    "one_shot",
    "qfedavg",
    "scaffold",
    "term",
]
