"""Checkpoints: the server's state and each host's site state, without pickle.

    sites-7-pack0.safetensors, sites-7-pack0.json   what the sites of a host keep after round 7
    server-7.safetensors, server-7.json             the server's state, and the seals of all the others

A checkpoint of round r is complete when `server-r.json` is there: hosts write their sites first, the server
last. A seal is the length and the SHA-256 of a file; a JSON file is sealed in itself too, so that one that
was cut off, changed or left out is noticed. Values are written as safetensors beside a JSON structure. Site
files are keyed by site, so that a resumed run may pack its sites another way. Where they lie: storage.py.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedray import tree
from fedray.errors import CheckpointError, DamagedError
from fedray.frozen import Cut
from fedray.runtime.storage import Store, check_address, is_address, open_store

FORMAT = 4
ASIDE = ".damaged"  # ends the name of the last file of a checkpoint that was found damaged
Seal = tuple[int, str]  # bytes, SHA-256
Parts = Mapping[str, Seal]  # the JSON files of the hosts by name; each seals its tensors itself
Saved = tuple[str, int, Parts]  # address, round, parts
_BODY, _SEAL, _END = b'{"body":', b',"sha256":"', b'"}'
_TAIL = len(_SEAL) + 64 + len(_END)


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often: every `every_s` seconds, at the end and on Ctrl-C; the last `keep` and the best
    stay.

    `directory` is a folder, or an address such as "s3://bucket/prefix": see storage.py. `is_shared` says that
    every machine of the run sees the same there, as is always so for an address. `local` is a folder for what
    must be a file of this machine beside an address; without one, a folder for temporary files. `also` is
    called before each checkpoint, for what is to be kept with it. A round that is never run again waits up to
    `patience_s` for its checkpoint.
    """

    directory: str | Path
    every_s: float = 30.0
    keep: int = 2
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    is_shared: bool = False
    local: Path | None = None
    also: Callable[[], None] | None = field(default=None, compare=False)
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", check_address(self.directory))
        object.__setattr__(self, "is_shared", self.is_shared or is_address(self.directory))

    @property
    def address(self) -> str:
        """The folder or the address, as text."""
        return str(self.directory)

    @cached_property
    def store(self) -> Store:
        """What lies there."""
        return open_store(self.directory)

    def rounds(self) -> list[int]:
        """Return the rounds of the complete checkpoints, oldest first."""
        return _complete(self.store.names())

    def thin(self, best: int | None) -> None:
        """Remove all but the last `keep` and the best, and what is left of any that was never completed."""
        names = self.store.names()
        rounds = _complete(names)
        kept = {*rounds[-self.keep :], *([] if best is None else [best])}
        for round in sorted({found for name in names if (found := _round_of(name)) is not None} - kept):
            if rounds and round < rounds[-1]:
                self.drop(round, names)

    def drop(self, round: int, names: Collection[str] | None = None) -> None:
        """Remove what there is of a round's checkpoint."""
        mine = [name for name in names or self.store.names() if _round_of(name) == round]
        # the server's first: what follows is then no checkpoint any more
        for name in sorted(mine, key=lambda name: name != f"server-{round}.json"):
            self.store.remove(name)

    def set_aside(self, round: int) -> None:
        """Let a damaged checkpoint be none any more; what there is of it stays to be looked at."""
        name = f"server-{round}.json"
        self.store.write(name + ASIDE, self.store.read(name))
        self.store.remove(name)


def _complete(names: Collection[str]) -> list[int]:
    """Return the rounds whose last file is among these."""
    return sorted(
        int(name[7:-5])
        for name in names
        if name.startswith("server-") and name.endswith(".json") and name[7:-5].isdigit()
    )


def _round_of(name: str) -> int | None:
    """Return the round to whose checkpoint a file belongs; None for other files."""
    kind, _, rest = name.partition("-")
    number = rest.partition("-")[0].partition(".")[0]
    is_part = kind in ("server", "sites") and number.isdigit()
    return int(number) if is_part else None


def encode(value: Any, tensors: dict[str, torch.Tensor], prefix: str) -> Any:
    """Return the JSON structure of a value and put its tensors into `tensors` under names that start with
    `prefix`.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value if not isinstance(value, float) else {"float": value.hex()}
    if isinstance(value, tree.Flat):
        tensors[prefix] = value.buffer.detach().cpu().contiguous().clone()
        return {"flat": prefix, **_layout(value.schema)}
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().cpu().contiguous().clone()
        return {"tensor": prefix}
    children = (
        [[key, encode(child, tensors, f"{prefix}.{key}")] for key, child in tree.children(value)]
        if not tree.is_leaf(value)
        else None
    )
    if children is None:
        raise CheckpointError(
            f"a state holds a {type(value).__name__}, which a checkpoint cannot write: "
            "use tensors, numbers, strings, dict, list, tuple and frozen dataclasses"
        )
    if isinstance(value, Mapping):
        return {"dict": children}
    if isinstance(value, (list, tuple)):
        return {
            type(value).__name__ if type(value) in (list, tuple) else "tuple": [item for _, item in children]
        }
    return {"record": f"{type(value).__module__}:{type(value).__qualname__}", "fields": children}


def _layout(schema: tree.Schema) -> dict[str, Any]:
    leaves = [[leaf.name, list(leaf.shape), leaf.offset] for leaf in schema.leaves]
    ends = {"stride": schema.stride, "trainable": schema.trainable, "moving": schema.moving}
    origin = {"origin": _layout(schema.origin)} if isinstance(schema, Cut) else {}
    return {"leaves": leaves, **ends, **origin}


def _schema(spec: Mapping[str, Any], dtype: torch.dtype) -> tree.Schema:
    leaves = tuple(tree.Leaf(name, tuple(shape), offset) for name, shape, offset in spec["leaves"])
    found = leaves, dtype, spec["stride"], spec["trainable"], spec["moving"]
    return Cut(*found, _schema(spec["origin"], dtype)) if "origin" in spec else tree.Schema(*found)


def record_kinds(*values: Any) -> dict[str, type]:
    """Return the dataclasses in some values by name: the only ones that `decode` makes."""
    found: dict[str, type] = {}
    for value in values:
        if tree.is_leaf(value):
            continue
        if dataclasses.is_dataclass(value):
            found[f"{type(value).__module__}:{type(value).__qualname__}"] = type(value)
        found |= record_kinds(*(child for _, child in tree.children(value)))
    return found


def decode(spec: Any, tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, type]) -> Any:
    """Return the value of a JSON structure. Nothing is imported: dataclasses are those in `kinds`."""
    if not isinstance(spec, dict):
        return spec
    if "float" in spec:
        return float.fromhex(spec["float"])
    if "flat" in spec:
        buffer = tensors[spec["flat"]]
        return tree.Flat(buffer, _schema(spec, buffer.dtype))
    if "tensor" in spec:
        return tensors[spec["tensor"]]
    if "dict" in spec:
        return {key: decode(child, tensors, kinds) for key, child in spec["dict"]}
    if "list" in spec:
        return [decode(child, tensors, kinds) for child in spec["list"]]
    if "tuple" in spec:
        return tuple(decode(child, tensors, kinds) for child in spec["tuple"])
    if spec["record"] not in kinds:
        raise CheckpointError(
            f"the checkpoint holds a {spec['record']}, and the run starts with "
            f"{sorted(kinds) or 'no record'}: it is broken or of another program"
        )
    return kinds[spec["record"]](**{key: decode(child, tensors, kinds) for key, child in spec["fields"]})


def seal_of(data: bytes) -> Seal:
    """Return the length and the SHA-256 of a file's bytes."""
    return len(data), hashlib.sha256(data).hexdigest()


def _write(store: Store, name: str, body: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Parts:
    """Write `name.safetensors`, then `name.json`, which seals it; return the seal of that."""
    seal = None
    if tensors:
        data = save(tensors)
        store.write(f"{name}.safetensors", data)
        seal = seal_of(data)
        del data
    text = json.dumps({**body, "tensors": seal}).encode()
    whole = _BODY + text + _SEAL + hashlib.sha256(text).hexdigest().encode() + _END
    store.write(f"{name}.json", whole)
    return {f"{name}.json": seal_of(whole)}


def _sealed(store: Store, name: str, seal: Seal | None) -> bytes:
    """Return a file's bytes. Raises DamagedError where it is gone, or is not as it was written."""
    try:
        data = store.read(name)
    except FileNotFoundError:
        raise _damaged(store, name, "is missing") from None
    if seal is not None and len(data) != seal[0]:
        raise _damaged(store, name, f"has {len(data)} bytes and was written with {seal[0]}")
    if seal is not None and seal_of(data) != seal:
        raise _damaged(store, name, "has other bytes than were written (its SHA-256 differs)")
    return data


def _body(store: Store, name: str, seal: Seal | None = None) -> dict[str, Any]:
    """Return what a JSON file holds. Raises DamagedError as `_sealed` does."""
    data = _sealed(store, f"{name}.json", seal)
    text = data[len(_BODY) : -_TAIL]
    if data != _BODY + text + _SEAL + hashlib.sha256(text).hexdigest().encode() + _END:
        _refuse_older(store, name, data)
        raise _damaged(store, f"{name}.json", "was cut off or changed (its SHA-256 differs)")
    found: dict[str, Any] = json.loads(text)
    return found


def _refuse_older(store: Store, name: str, data: bytes) -> None:
    try:
        found = json.loads(data)
    except ValueError:
        return
    if isinstance(found, dict) and "format" in found:
        raise CheckpointError(
            f"the checkpoint {name} in {store.address} has format {found['format']}, this is {FORMAT}"
        )


def _tensors(store: Store, name: str, body: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors beside a JSON file, each on a line of the cache of its own: rows need that."""
    if body["tensors"] is None:
        return {}
    size, digest = body["tensors"]
    try:
        found = load(_sealed(store, f"{name}.safetensors", (size, digest)))
    except (ValueError, SafetensorError) as error:
        raise _damaged(store, f"{name}.safetensors", f"cannot be read ({type(error).__name__})") from error
    return {key: value.clone() for key, value in found.items()}


def _damaged(store: Store, name: str, what: str) -> DamagedError:
    return DamagedError(f"{name} in {store.address} {what}")


def write_sites(
    address: str, round: int, host: str, sites: Collection[str], state: Mapping[tuple[str, str], Any]
) -> Parts:
    """Write what the sites of a host keep, for a checkpoint; return the seals. Nothing where none keeps
    anything.
    """
    if not state:
        return {}
    tensors: dict[str, torch.Tensor] = {}
    told = [[slot, site, encode(value, tensors, f"{slot}/{site}")] for (slot, site), value in state.items()]
    body = {"sites": sorted(sites), "state": told}
    return _write(open_store(address), f"sites-{round}-{quote(host, safe=' ')}", body, tensors)


def read_sites(
    address: str, round: int, parts: Parts, sites: Collection[str], kinds: Mapping[str, type]
) -> dict[tuple[str, str], Any]:
    """Return what these sites keep, from all parts of a checkpoint.

    Raises DamagedError where a part is not as it was written, or a site's is not to be found here.
    """
    store, wanted = open_store(address), set(sites)
    state: dict[tuple[str, str], Any] = {}
    missing: list[DamagedError] = []
    for file, seal in sorted(parts.items()):
        name = file.removesuffix(".json")
        try:
            body = _body(store, name, (seal[0], seal[1]))
        except DamagedError as error:
            missing.append(error)
            continue
        if not wanted.isdisjoint(body["sites"]):
            found = _decoded(store, name, body, kinds)
            state.update({key: value for key, value in found.items() if key[1] in wanted})
            wanted -= set(body["sites"])
    if missing and wanted:  # else these are other hosts' parts, on disks of theirs
        raise DamagedError(f"{missing[0]}; {len(wanted)} sites may be in it, {min(wanted)} among them")
    return state


def remove_before(address: str, round: int) -> None:
    """Remove the files of earlier rounds, as far as this machine sees them."""
    store = open_store(address)
    for name in store.names():
        found = _round_of(name)
        if found is not None and found < round:
            store.remove(name)


def read_part(address: str, name: str, kinds: Mapping[str, type]) -> dict[tuple[str, str], Any]:
    """Return what is kept in one host's file, by slot and site; nothing where there is none."""
    store = open_store(address)
    if f"{name}.json" not in store.names():
        return {}
    return _decoded(store, name, _body(store, name), kinds)


def _decoded(
    store: Store, name: str, body: Mapping[str, Any], kinds: Mapping[str, type]
) -> dict[tuple[str, str], Any]:
    tensors = _tensors(store, name, body)
    return {(slot, site): decode(value, tensors, kinds) for slot, site, value in body["state"]}


def write_server(
    address: str,
    round: int,
    facts: Mapping[str, Any],
    state: Any,
    memory: Mapping[str, Any],
    parts: Parts,
) -> None:
    """Write the server's state, what passes keep there, the facts of the run and the seals of the hosts'
    parts; this completes a checkpoint.
    """
    tensors: dict[str, torch.Tensor] = {}
    kept = {"state": encode(state, tensors, "state"), "memory": encode(memory, tensors, "memory")}
    body = {"format": FORMAT, "round": round, **facts, "parts": dict(parts), **kept}
    _write(open_store(address), f"server-{round}", body, tensors)


def read_server(
    address: str, round: int, kinds: Mapping[str, type]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return the facts, the server's state and its memory of passes. Raises DamagedError where a file is not
    as it was written.
    """
    store, name = open_store(address), f"server-{round}"
    body = _body(store, name)
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint of round {round} has format {body.get('format')}, this is {FORMAT}"
        )
    if body["round"] != round:
        raise _damaged(store, f"{name}.json", f"is that of round {body['round']}")
    tensors = _tensors(store, name, body)
    return body, decode(body["state"], tensors, kinds), decode(body["memory"], tensors, kinds)
