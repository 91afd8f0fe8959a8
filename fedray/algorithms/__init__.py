"""Algorithms say what is computed; each is a few lines over the nine verbs. Start at `fedavg.py`."""

import importlib
from typing import Any

_HOMES = {
    "fedavg": ("fedavg", "fedsgd"),
    "fedprox": ("fedprox",),
    "scaffold": ("scaffold",),
    "ditto": ("ditto",),
    "baselines": ("local_only", "one_shot"),
    "evaluation": ("evaluation",),
    "moments": ("moments",),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_NAMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"fedray.algorithms has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"fedray.algorithms.{_NAMES[name]}"), name)
    globals()[name] = value
    return value
