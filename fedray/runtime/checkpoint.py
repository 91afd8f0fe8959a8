"""Checkpoints: the server's state and each host's site state, without pickle.

A checkpoint of round r is complete when `server-r.json` is there: hosts write their sites first, the server
last, and every file appears by one rename. Values are written as safetensors beside a JSON structure. Site
files are keyed by site, so that a resumed run may pack its sites another way.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedray import tree
from fedray.errors import CheckpointError
from fedray.frozen import Cut

FORMAT = 3


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often: every `every_s` seconds, at the end and on Ctrl-C; the last `keep` and the best
    stay.
    """

    directory: str | Path
    every_s: float = 30.0
    keep: int = 2
    clock: Any = field(default=time.monotonic, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.directory)

    def rounds(self) -> list[int]:
        """Return the rounds of the complete checkpoints, oldest first."""
        return sorted(int(path.stem.split("-")[1]) for path in self.path.glob("server-*.json"))

    def thin(self, best: int | None) -> None:
        """Remove all but the last `keep` and the best."""
        rounds = self.rounds()
        for round in rounds[: -self.keep]:
            if round != best:
                # first: what follows is then no checkpoint any more
                (self.path / f"server-{round}.json").unlink()
                for path in [
                    *self.path.glob(f"server-{round}.safetensors"),
                    *self.path.glob(f"sites-{round}-*"),
                ]:
                    path.unlink()


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


def _write(path: Path, spec: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Write `path.safetensors`, then `path.json`, each by one rename."""
    for target, write in (
        (f"{path}.safetensors", lambda temp: save_file(tensors or _NOTHING, temp)),
        (f"{path}.json", lambda temp: Path(temp).write_text(json.dumps(spec))),
    ):
        temporary = f"{target}.{os.getpid()}.part"
        write(temporary)
        os.replace(temporary, target)


_NOTHING = {"_": torch.zeros(1)}


def _read(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    try:
        with safe_open(f"{path}.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(Path(f"{path}.json").read_text()), tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path.name} cannot be read ({type(error).__name__}): "
            "remove it to go on from the one before"
        ) from error


def write_sites(directory: str, round: int, host: str, state: Mapping[tuple[str, str], Any]) -> None:
    """Write a host's site state for a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    spec = [[slot, site, encode(value, tensors, f"{slot}/{site}")] for (slot, site), value in state.items()]
    _write(Path(directory) / f"sites-{round}-{host}", spec, tensors)


def read_sites(
    directory: str, round: int, sites: set[str], kinds: Mapping[str, type]
) -> dict[tuple[str, str], Any]:
    """Return the state of these sites from all site files of a round."""
    state = {}
    for path in sorted(Path(directory).glob(f"sites-{round}-*.json")):
        found = read_part(path.with_suffix(""), kinds)
        state.update({key: value for key, value in found.items() if key[1] in sites})
    return state


def read_part(path: Path, kinds: Mapping[str, type]) -> dict[tuple[str, str], Any]:
    """Return the state in one host's file, by slot and site."""
    spec, tensors = _read(path)
    return {(slot, site): decode(value, tensors, kinds) for slot, site, value in spec}


def write_server(
    directory: str, round: int, facts: Mapping[str, Any], state: Any, memory: Mapping[str, Any]
) -> None:
    """Write the server's state, what passes keep there, and the facts of the run; this completes a
    checkpoint.
    """
    tensors: dict[str, torch.Tensor] = {}
    kept = {"state": encode(state, tensors, "state"), "memory": encode(memory, tensors, "memory")}
    spec = {"format": FORMAT, "round": round, **facts, **kept}
    _write(Path(directory) / f"server-{round}", spec, tensors)


def read_server(
    directory: str, round: int, kinds: Mapping[str, type]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return the facts, the server's state and its memory of passes. Raises CheckpointError where it is
    broken.
    """
    spec, tensors = _read(Path(directory) / f"server-{round}")
    if spec.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint of round {round} has format {spec.get('format')}, this is {FORMAT}"
        )
    return spec, decode(spec["state"], tensors, kinds), decode(spec["memory"], tensors, kinds)
