"""What is learnt at a site and how the server steps. Start at `local.py` and `models.py`.

Names are resolved on first use, so that this package loads no torch before it is needed.
"""

import importlib
from typing import Any

_HOMES = {
    "budget": ("budgeted", "Budgeted"),
    "halves": ("Halves",),
    "many_tasks": ("ManyTasks",),
    "local": ("sgd", "adamw", "LocalTraining"),
    "private_training": ("private_sgd", "PrivateTraining"),
    "models": ("Model", "logistic", "linear", "mlp", "cnn", "gru", "bag_of_embeddings", "from_module"),
    "update": ("Update", "LocalUpdate", "stop_if_cancelled"),
    "schedules": ("constant", "step", "cosine", "warmup"),
    "metrics": ("evaluate", "site_record", "summarise", "auroc", "delong_interval", "nadeau_bengio"),
}
_MODULES = (
    "batches",
    "budget",
    "dropout",
    "functional",
    "halves",
    "intervals",
    "local",
    "losses",
    "metrics",
    "models",
    "objectives",
    "optimizer",
    "parts",
    "rules",
    "schedules",
    "update",
)
_NAMES = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted({*_NAMES, "optimizer"})  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"fedray.learn.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fedray.learn.{name}")
    else:
        raise AttributeError(f"fedray.learn has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value
