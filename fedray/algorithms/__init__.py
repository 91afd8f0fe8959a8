"""Algorithms say what is computed; each is a few lines over the nine verbs. Start at `fedavg.py`.

Names are bound here at once: a function has the name of its module (`fr.algorithms.fedavg` is the function).
"""

from fedray.algorithms.afl import afl
from fedray.algorithms.apfl import apfl
from fedray.algorithms.baselines import local_only, one_shot
from fedray.algorithms.cfl import cfl
from fedray.algorithms.cyclic import cyclic
from fedray.algorithms.ditto import ditto
from fedray.algorithms.dpsgd import dpsgd
from fedray.algorithms.drfa import drfa
from fedray.algorithms.evaluation import evaluation
from fedray.algorithms.fedamp import fedamp
from fedray.algorithms.fedasync import fedasync
from fedray.algorithms.fedavg import fedavg, fedsgd
from fedray.algorithms.fedbabu import fedbabu
from fedray.algorithms.fedbn import fedbn
from fedray.algorithms.fedbuff import fedbuff
from fedray.algorithms.feddf import feddf
from fedray.algorithms.feddyn import feddyn
from fedray.algorithms.fedexp import fedexp
from fedray.algorithms.fedgkt import fedgkt
from fedray.algorithms.fedlin import fedlin
from fedray.algorithms.fedlora import fedlora
from fedray.algorithms.fedmatch import fedmatch
from fedray.algorithms.fednova import fednova
from fedray.algorithms.fedper import fedper
from fedray.algorithms.fedprox import fedprox
from fedray.algorithms.fedrep import fedrep
from fedray.algorithms.fine_tuning import fine_tuning
from fedray.algorithms.hierfavg import hierfavg
from fedray.algorithms.ifca import ifca
from fedray.algorithms.lg_fedavg import lg_fedavg
from fedray.algorithms.mime import mime, mimelite
from fedray.algorithms.moments import moments
from fedray.algorithms.moon import moon
from fedray.algorithms.one_shot_ensemble import one_shot_ensemble
from fedray.algorithms.per_fedavg import per_fedavg
from fedray.algorithms.pfedme import pfedme
from fedray.algorithms.pretrain import pretrain
from fedray.algorithms.private_heads import private_heads
from fedray.algorithms.pseudo_label import pseudo_label
from fedray.algorithms.push_sum import push_sum
from fedray.algorithms.qfedavg import qfedavg
from fedray.algorithms.scaffold import scaffold
from fedray.algorithms.split import split
from fedray.algorithms.splitfed import splitfed
from fedray.algorithms.swarm import swarm
from fedray.algorithms.term import term
from fedray.algorithms.towers import vertical_towers
from fedray.algorithms.vertical_logistic import vertical_logistic

__all__ = [
    "afl",
    "apfl",
    "cfl",
    "cyclic",
    "ditto",
    "dpsgd",
    "drfa",
    "evaluation",
    "fedamp",
    "fedasync",
    "fedavg",
    "fedbabu",
    "fedbn",
    "fedbuff",
    "feddf",
    "feddyn",
    "fedexp",
    "fedgkt",
    "fedlin",
    "fedlora",
    "fedmatch",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fine_tuning",
    "hierfavg",
    "ifca",
    "lg_fedavg",
    "local_only",
    "mime",
    "mimelite",
    "moments",
    "moon",
    "one_shot",
    "one_shot_ensemble",
    "per_fedavg",
    "pfedme",
    "pretrain",
    "private_heads",
    "pseudo_label",
    "push_sum",
    "qfedavg",
    "scaffold",
    "split",
    "splitfed",
    "swarm",
    "term",
    "vertical_logistic",
    "vertical_towers",
]
