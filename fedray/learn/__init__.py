"""What sites learn with: models, local training, server optimizers, metrics. Start at `sgd.py`.

Names are bound here at once: a function may have the name of its module (`fr.learn.sgd` is the function).
"""

from fedray.learn import optimizer
from fedray.learn.functional import from_module
from fedray.learn.intervals import auroc, delong_interval, nadeau_bengio
from fedray.learn.metrics import evaluate, site_record, summarise
from fedray.learn.models import Model, bag_of_embeddings, cnn, gradient, gru, linear, logistic, mlp
from fedray.learn.schedules import constant, cosine, step, warmup
from fedray.learn.sgd import LocalTraining, adamw, sgd
from fedray.learn.update import LocalUpdate, Update

__all__ = [
    "LocalTraining",
    "LocalUpdate",
    "Model",
    "Update",
    "adamw",
    "auroc",
    "bag_of_embeddings",
    "cnn",
    "constant",
    "cosine",
    "delong_interval",
    "evaluate",
    "from_module",
    "gradient",
    "gru",
    "linear",
    "logistic",
    "mlp",
    "nadeau_bengio",
    "optimizer",
    "sgd",
    "site_record",
    "step",
    "summarise",
    "warmup",
]
