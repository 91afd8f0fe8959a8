"""Messages as bytes: one canonical form, so that equal messages have equal hashes and signatures.

Fields follow each other in the order of the record, without names or kinds: numbers as 8 bytes little-endian,
bytes and text with their length, tuples and mappings with their number of entries, keys ascending. A reader
knows the record that it expects; anything else is E_LENGTH or E_SCHEMA, found before memory is taken.
"""

import dataclasses
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fedray.errors import SecrecyError

T = TypeVar("T")
NUMBER_BYTES = 8


def to_bytes(message: Any) -> bytes:
    """Return the canonical bytes of a record."""
    out = bytearray()
    _write(out, type(message), message)
    return bytes(out)


def from_bytes(kind: type[T], data: bytes) -> T:
    """Read a record of this kind. Raises SecrecyError E_LENGTH or E_SCHEMA on any other bytes."""
    message, end = _read(kind, memoryview(data), 0)
    if end != len(data):
        raise SecrecyError("E_LENGTH", f"{len(data) - end} bytes follow a {kind.__name__}")
    return message  # type: ignore[no-any-return]


@cache
def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))


def _write(out: bytearray, kind: Any, value: Any) -> None:
    if kind is int:
        out += value.to_bytes(NUMBER_BYTES, "little")
    elif kind is bytes:
        out += len(value).to_bytes(NUMBER_BYTES, "little") + value
    elif get_origin(kind) is tuple:
        _write(out, int, len(value))
        for item in value:
            _write(out, get_args(kind)[0], item)
    elif get_origin(kind) is dict:
        _write(out, int, len(value))
        for key in sorted(value):
            _write(out, int, key)
            _write(out, get_args(kind)[1], value[key])
    else:
        for name, inner in _fields(kind):
            _write(out, inner, getattr(value, name))


def _read(kind: Any, data: memoryview, at: int) -> tuple[Any, int]:
    if kind is int:
        return int.from_bytes(_slice(data, at, NUMBER_BYTES), "little"), at + NUMBER_BYTES
    if kind is bytes:
        size, at = _read(int, data, at)
        return bytes(_slice(data, at, size)), at + size
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind)[0], data, at)
    if get_origin(kind) is dict:
        return _read_dict(get_args(kind)[1], data, at)
    values = {}
    for name, inner in _fields(kind):
        values[name], at = _read(inner, data, at)
    return kind(**values), at


def _read_tuple(kind: Any, data: memoryview, at: int) -> tuple[Any, int]:
    count, at = _read(int, data, at)
    _slice(data, at, count * NUMBER_BYTES)  # every entry takes as much at least
    items = []
    for _ in range(count):
        item, at = _read(kind, data, at)
        items.append(item)
    return tuple(items), at


def _read_dict(kind: Any, data: memoryview, at: int) -> tuple[Any, int]:
    count, at = _read(int, data, at)
    _slice(data, at, 2 * count * NUMBER_BYTES)
    found: dict[int, Any] = {}
    last = -1
    for _ in range(count):
        key, at = _read(int, data, at)
        if key <= last:
            raise SecrecyError("E_SCHEMA", "keys of a mapping are not ascending")
        found[key], at = _read(kind, data, at)
        last = key
    return found, at


def _slice(data: memoryview, at: int, size: int) -> memoryview:
    if size > len(data) - at:
        raise SecrecyError("E_LENGTH", "a message ends before its fields do")
    return data[at : at + size]
