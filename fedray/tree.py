"""Structured values: nested dict, list, tuple and frozen dataclass of tensors and numbers.

A named set of tensors of one dtype is kept as a `Flat`: ONE buffer of shape (rows, stride) with a schema. Its
leaves are views, so it reads like a mapping, while sums, optimizers and norms run once over the buffer.
`Flat`, tensor and number are the leaves of every function here; anything else (None, a string) is passed
through. Leaves of a schema start on 64-byte lines and the stride is a multiple of 32 elements; the padding
is zero.
"""

import builtins
import dataclasses
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

LINE_BYTES = 64
STRIDE_ELEMENTS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """Where one named tensor lies in a row of a buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """Layout of one row: leaves in order, dtype, and the padded length.

    The first `trainable` elements are parameters; what follows (BatchNorm statistics) is averaged but never
    touched by an optimizer, and what follows the first `moving` is frozen: it never changes.
    """

    leaves: tuple[Leaf, ...]
    dtype: torch.dtype
    stride: int
    trainable: int
    moving: int

    @property
    def num_elements(self) -> int:
        """Number of elements without padding."""
        return builtins.sum(leaf.size for leaf in self.leaves)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def schema_of(
    tensors: Mapping[str, Tensor], buffers: Sequence[str] = (), frozen: Sequence[str] = ()
) -> Schema:
    """Lay out named tensors of one dtype: parameters, then those in `buffers`, then those in `frozen`.

    Raises ValueError where dtypes differ or there is no tensor, TypeError where these are no named tensors.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(it, Tensor) for it in tensors.values()):
        held = tensors.values() if isinstance(tensors, Mapping) else [tensors]
        kinds = sorted({type(it).__name__ for it in held if not isinstance(it, Tensor)} or {"Tensor"})
        raise TypeError(f"parameters are a mapping {{name: torch tensor}}, got {', '.join(kinds)}: convert")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise ValueError(
            f"a flat value has one dtype, got {sorted(str(dtype) for dtype in dtypes) or 'no tensor'}: "
            "cast the tensors or keep them in separate mappings"
        )
    dtype = dtypes.pop()
    line = LINE_BYTES // dtype.itemsize
    leaves, offset, ends = [], 0, []
    for kind in (0, 1, 2):
        for name in tensors:
            if kind == (2 if name in frozen else name in buffers):
                leaves.append(Leaf(name, tuple(tensors[name].shape), offset))
                offset += _round_up(tensors[name].numel(), line)
        ends.append(offset)
    return Schema(tuple(leaves), dtype, _round_up(offset, STRIDE_ELEMENTS), ends[0], ends[1])


class Flat(Mapping[str, Tensor]):
    """Named tensors in one buffer of shape (rows, stride).

    With one row (the server, one site) `flat["weight"]` is a view of the leaf's own shape. With k rows,
    `stacked("weight")` is a view of shape (k, *shape) and `row(i)` is the value of row i.
    """

    __slots__ = ("buffer", "schema")

    def __init__(self, buffer: Tensor, schema: Schema) -> None:
        self.buffer = buffer
        self.schema = schema

    def _leaf(self, name: str) -> Leaf:
        for leaf in self.schema.leaves:
            if leaf.name == name:
                return leaf
        raise KeyError(f"no leaf {name!r} here; there are {[leaf.name for leaf in self.schema.leaves]}")

    def __getitem__(self, name: str) -> Tensor:
        leaf = self._leaf(name)
        if self.buffer.shape[0] != 1:
            raise ValueError(f"{name!r} of {self.buffer.shape[0]} rows: use stacked({name!r}) or row(i)")
        return self.buffer[0, leaf.offset : leaf.offset + leaf.size].view(leaf.shape)

    def __iter__(self) -> Iterator[str]:
        return (leaf.name for leaf in self.schema.leaves)

    def __len__(self) -> int:
        return len(self.schema.leaves)

    def __repr__(self) -> str:
        shapes = {leaf.name: leaf.shape for leaf in self.schema.leaves}
        return f"Flat({self.buffer.shape[0]} x {shapes}, {self.schema.dtype})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Flat) and self.schema == other.schema and torch.equal(self.buffer, other.buffer)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # numpy arrays cross process borders without a copy, torch tensors do not
        return _open_flat, (self.buffer.detach().cpu().numpy(), self.schema)

    def stacked(self, name: str) -> Tensor:
        """Return the leaf of all rows, shape (rows, *shape), a view."""
        leaf = self._leaf(name)
        found = self.buffer[:, leaf.offset : leaf.offset + leaf.size].unflatten(1, leaf.shape or (1,))
        return found.reshape(self.buffer.shape[0], *leaf.shape)

    def row(self, index: int) -> "Flat":
        """Return row `index` as a value of its own, a view."""
        return Flat(self.buffer[index : index + 1], self.schema)

    def clone(self) -> "Flat":
        """Return a copy with a buffer of its own."""
        return Flat(self.buffer.clone(), self.schema)


SHARED_BYTES = 16 * 2**20  # from here on a value out of shared memory is read where it lies
_is_sharing = False


@contextmanager
def sharing() -> Iterator[None]:
    """Read large values out of shared memory without a copy: who writes to them ends the process.

    For hosts, whose functions write to none of their inputs.
    """
    global _is_sharing  # noqa: PLW0603 (unpickling takes no argument)
    before, _is_sharing = _is_sharing, True
    try:
        yield
    finally:
        _is_sharing = before


def _open_flat(array: np.ndarray, schema: Schema) -> Flat:
    if array.flags.writeable:
        return Flat(torch.from_numpy(array), schema)
    if not _is_sharing or array.nbytes < SHARED_BYTES:
        return Flat(torch.from_numpy(array.copy()), schema)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Flat(torch.from_numpy(array), schema)


def flatten(
    tensors: Mapping[str, Tensor],
    schema: Schema | None = None,
    buffers: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> Flat:
    """Copy named tensors of one dtype into one row. Raises ValueError on other names or shapes."""
    if isinstance(tensors, Flat):
        return tensors
    schema = schema or schema_of(tensors, buffers, frozen)
    names = [leaf.name for leaf in schema.leaves]
    if sorted(names) != sorted(tensors):
        raise ValueError(f"expected tensors named {names}, got {list(tensors)}")
    flat = Flat(torch.zeros(1, schema.stride, dtype=schema.dtype), schema)
    for name in names:
        view = flat[name]
        if view.shape != tensors[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(view.shape)}")
        view.copy_(tensors[name].detach())
    return flat


def is_leaf(value: Any) -> bool:
    """Tell whether this is where a structure ends."""
    kind = type(value)
    found = _IS_LEAF.get(kind)  # which depends on the type alone, and is asked some hundred times a round
    if found is None:
        is_container = isinstance(value, (Mapping, list, tuple)) or _is_record(value)
        found = _IS_LEAF[kind] = isinstance(value, Flat) or not is_container
    return found


_IS_LEAF: dict[type, bool] = {}


def is_number(value: Any) -> bool:
    """Tell whether this is a plain number."""
    return isinstance(value, (int, float, bool, np.number))


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def children(value: Any) -> list[tuple[Any, Any]]:
    """Return the (key, child) pairs of a container; a record's keys are its field names."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]


def rebuild(like: Any, values: Sequence[Any]) -> Any:
    """Return a container of the same kind as `like` that holds other children."""
    if isinstance(like, Mapping):
        return dict(zip(like, values, strict=True))
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*values)
    if isinstance(like, (list, tuple)):
        return type(like)(values)
    return dataclasses.replace(
        like, **{item.name: value for item, value in zip(dataclasses.fields(like), values, strict=True)}
    )


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return (path, leaf) pairs in order; paths join keys with a dot."""
    if is_leaf(value):
        return [(path, value)]
    return [
        pair
        for key, child in children(value)
        for pair in leaves(child, f"{path}.{key}" if path else str(key))
    ]


def replace_leaves(like: Any, new: Iterator[Any] | Sequence[Any]) -> Any:
    """Return the structure of `like` with its leaves replaced, in the order of `leaves`."""
    return _filled(like, iter(new))


def _filled(like: Any, source: Iterator[Any]) -> Any:
    # not a closure: one that calls itself is a cycle, and would keep the leaves until it is collected
    if is_leaf(like):
        return next(source)
    return rebuild(like, [_filled(child, source) for _, child in children(like)])


def map(fn: Callable[..., Any], *values: Any) -> Any:
    """Apply `fn` leaf by leaf; a `Flat` is one leaf, given as its buffer and wrapped again.

    A single leaf (a number, a scalar) beside a structure meets every leaf of it. A mapping beside a `Flat` is
    laid out as the `Flat` is. Raises ValueError where structures differ.
    """
    first = next((value for value in values if not is_leaf(value)), None)
    flat = next((value for value in values if isinstance(value, Flat)), None)
    if flat is not None:
        return _map_flat(fn, flat, values)
    if first is None:
        return fn(*values) if builtins.all(_is_numeric(value) for value in values) else values[0]
    keys = [key for key, _ in children(first)]
    columns = []
    for value in values:
        if is_leaf(value):
            columns.append([value] * len(keys))
            continue
        pairs = dict(children(value))
        if set(pairs) != set(keys):
            raise ValueError(f"structures differ: {list(pairs)} beside {keys}")
        columns.append([pairs[key] for key in keys])
    return rebuild(first, [map(fn, *column) for column in zip(*columns, strict=True)])


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or is_number(value) or getattr(value, "is_numeric", False)


def _map_flat(fn: Callable[..., Any], flat: Flat, values: Sequence[Any]) -> Any:
    operands = []
    for value in values:
        if isinstance(value, Mapping):
            other = flatten(value, flat.schema)
            if [leaf.name for leaf in other.schema.leaves] != [leaf.name for leaf in flat.schema.leaves]:
                raise ValueError(f"structures differ: {list(other)} beside {list(flat)}")
            operands.append(other.buffer)
        else:
            operands.append(value)
    result = fn(*operands)
    if isinstance(result, Tensor) and result.dim() == 2 and result.shape[1] == flat.schema.stride:
        schema = (
            flat.schema
            if result.dtype == flat.schema.dtype
            else dataclasses.replace(flat.schema, dtype=result.dtype)
        )
        return Flat(result, schema)
    return result


def add(a: Any, b: Any) -> Any:
    """Return a + b, leaf by leaf."""
    return map(operator.add, a, b)


def sub(a: Any, b: Any) -> Any:
    """Return a - b, leaf by leaf."""
    return map(operator.sub, a, b)


def mul(a: Any, b: Any) -> Any:
    """Return a * b, leaf by leaf."""
    return map(operator.mul, a, b)


def div(a: Any, b: Any) -> Any:
    """Return a / b, leaf by leaf."""
    return map(operator.truediv, a, b)


def scale(value: Any, factor: float) -> Any:
    """Return the value times one number."""
    return map(lambda leaf: leaf * factor, value)


def zeros_like(value: Any) -> Any:
    """Return zeros of the same structure."""
    return map(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else type(leaf)(0), value)


def clone(value: Any) -> Any:
    """Return a copy that shares no memory."""
    return map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def norm(value: Any) -> float:
    """Return the Euclidean norm over all leaves, computed in float64."""
    total = 0.0
    for _, leaf in leaves(value):
        numbers = leaf.buffer if isinstance(leaf, Flat) else leaf
        if isinstance(numbers, Tensor):
            total += float(numbers.detach().double().square().sum())
        elif is_number(numbers):
            total += float(numbers) ** 2
    return math.sqrt(total)


def nbytes(value: Any) -> int:
    """Return the bytes that the leaves take; a number counts as a float64."""
    total = 0
    for _, leaf in leaves(value):
        numbers = leaf.buffer if isinstance(leaf, Flat) else leaf
        if isinstance(numbers, Tensor):
            total += numbers.numel() * numbers.element_size()
        elif is_number(numbers):
            total += 8
    return total


def select(value: Mapping[str, Tensor], keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the named tensors whose name passes."""
    return {name: value[name] for name in value if keep(name)}


def equal(a: Any, b: Any) -> bool:
    """Tell whether two values have the same structure and the same bits."""
    left, right = leaves(a), leaves(b)
    if [path for path, _ in left] != [path for path, _ in right]:
        return False
    return builtins.all(_same(x, y) for (_, x), (_, y) in zip(left, right, strict=True))


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Flat) and isinstance(y, Flat):
        return x.schema == y.schema and _same(x.buffer, y.buffer)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        is_alike = x.shape == y.shape and x.dtype == y.dtype
        return is_alike and x.detach().cpu().numpy().tobytes() == y.detach().cpu().numpy().tobytes()
    return bool(x == y)
