"""fedray: federated learning for hospitals on Ray. Import as `import fedray as fr`.

Names are resolved on first use, so that `import fedray` loads neither torch nor ray. Start reading at
`fedray/runtime/loop.py`, the whole loop, and at `fedray/algorithms/fedavg.py`, the smallest algorithm.
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# MKL reads this at its first product. Without it, on some processors, the bits of a product depend on where
# in memory its operands begin, and so on the layout of the sites; it costs nothing that we could measure.
os.environ.setdefault("MKL_CBWR", "AUTO")

_HOMES = {
    "fedray.core.trace": ("map", "apply", "broadcast", "scatter", "sum", "mean", "gather", "count", "mix",
                          "Algorithm", "Outputs"),
    "fedray.core.graph": ("Graph",),
    "fedray.core.explain": ("explain", "egress"),
    "fedray.runtime.plan": ("Plan", "compile"),
    "fedray.runtime.federation": ("simulate", "Federation"),
    "fedray.cluster.connect": ("connect",),
    "fedray.runtime.loop": ("fit", "compute", "Result"),
    "fedray.runtime.schedule": ("synchronous",),
    "fedray.runtime.buffered": ("buffered",),
}
_MODULES = ("algorithms", "passes", "learn", "data", "tree", "errors")
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_NAMES, *_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fedray.{name}")
    else:
        raise AttributeError(f"module 'fedray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
