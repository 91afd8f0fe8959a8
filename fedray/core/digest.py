"""A digest of what a plan computes: graph, functions and the numbers inside them.

Two plans with equal digests do the same; another learning rate or another line of a round gives another
digest. Equal in every process, so that a checkpoint knows whether it belongs to the plan that wants to go on
with it.
"""

import dataclasses
import enum
import hashlib
import types
from collections.abc import Mapping
from typing import Any

from fedray import tree
from fedray.core.graph import Graph, stages


def describe(thing: Any, depth: int = 0) -> str:
    """Return a text that names a function or a value by its content, never by its address."""
    if depth > 12:
        return "..."
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return repr(thing)
    if isinstance(thing, enum.Enum):
        return f"{type(thing).__qualname__}.{thing.name}"
    if isinstance(thing, types.FunctionType):
        return _function(thing, depth)
    if isinstance(thing, types.MethodType):
        return f"{describe(thing.__self__, depth + 1)}.{thing.__func__.__qualname__}"
    if isinstance(thing, (types.BuiltinFunctionType, type)):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, types.CodeType):
        consts = ",".join(describe(const, depth + 1) for const in thing.co_consts)
        return f"{thing.co_name}:{thing.co_code.hex()}:{','.join(thing.co_names)}:{consts}"
    if isinstance(thing, tree.Flat):
        return f"Flat({describe(thing.schema, depth + 1)},{_bytes(thing.buffer)})"
    if isinstance(thing, Mapping):
        return (
            "{"
            + ",".join(f"{describe(k, depth + 1)}:{describe(v, depth + 1)}" for k, v in thing.items())
            + "}"
        )
    if isinstance(thing, (set, frozenset)):
        return "{" + ",".join(sorted(describe(item, depth + 1) for item in thing)) + "}"
    if isinstance(thing, (list, tuple)):
        return f"{type(thing).__name__}[" + ",".join(describe(item, depth + 1) for item in thing) + "]"
    if hasattr(thing, "detach") and hasattr(thing, "dtype"):
        return f"{thing.dtype}{tuple(thing.shape)}{_bytes(thing)}"
    if hasattr(thing, "tobytes") and hasattr(thing, "dtype"):
        return f"{thing.dtype}{thing.shape}{hashlib.sha256(thing.tobytes()).hexdigest()}"
    return _object(thing, depth)


def _bytes(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _function(fn: types.FunctionType, depth: int) -> str:
    cells = [cell.cell_contents for cell in fn.__closure__ or ()]
    return (
        f"{fn.__module__}.{fn.__qualname__}({describe(fn.__code__, depth + 1)};"
        f"{describe(fn.__defaults__, depth + 1)};{describe(fn.__kwdefaults__, depth + 1)};"
        f"{describe(cells, depth + 1)})"
    )


def _object(thing: Any, depth: int) -> str:
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if dataclasses.is_dataclass(thing):
        parts = {item.name: getattr(thing, item.name) for item in dataclasses.fields(thing)}
        return f"{name}({describe(parts, depth + 1)})"
    if hasattr(thing, "state_dict"):
        return f"{name}({thing!r},{describe(dict(thing.state_dict()), depth + 1)})"
    if hasattr(thing, "func") and hasattr(thing, "keywords"):
        return f"{name}({describe([thing.func, thing.args, thing.keywords], depth + 1)})"
    return f"{name}({describe(vars(thing), depth + 1)})" if hasattr(thing, "__dict__") else name


def digest(graph: Graph) -> str:
    """Return 64 hex digits for the graph; `where` lines and the number of rounds are not part of it."""
    nodes = graph.nodes
    number = {node: index for index, node in enumerate(nodes)}
    stage = stages(nodes)
    lines = [
        f"{node.op}|{node.placement}|{[number[arg] for arg in node.args]}|{describe(node.fn)}|"
        f"{describe(node.params)}|{node.name}|{stage[node]}"
        for node in nodes
    ]
    lines += [
        f"{placement}:{slot}={number[node]}" for (placement, slot), node in sorted(graph.outputs.items())
    ]
    lines += [
        f"{placement}:{slot}~{describe(init)}" for (placement, slot), init in sorted(graph.inits.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
