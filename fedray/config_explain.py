"""Answer `--explain KEY`: the value, who set it (file and line, or the command line) and what it means."""

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from fedray.config_help import keys_of, lookup, nearest
from fedray.config_schema import SCHEMAS, Config
from fedray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """One piece of a composition: a YAML file (or a schema, without a file) and the key it fills."""

    name: str
    package: str
    file: Path | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `--explain` prints."""

    key: str
    value: Any
    set_by: str
    meaning: str

    def __str__(self) -> str:
        shown = self.value
        if isinstance(shown, Mapping):
            shown = "\n" + yaml.safe_dump(dict(shown), sort_keys=False, indent=2).rstrip()
            shown = shown.replace("\n", "\n    ")
        shown = "null" if shown is None else shown
        return f"{self.key} = {shown}\n  set by  {self.set_by}\n  means   {self.meaning}"


def explain(key: str, tree: Mapping[str, Any], overrides: Sequence[str],
            sources: Sequence[Source]) -> Explanation:
    """Explain one key of a composed config. Raises ConfigError with the nearest key where there is none."""
    known = list(keys_of(tree))
    if key not in known:
        close = nearest(key, known)
        raise ConfigError(f"--explain {key}: there is no such setting. "
                          f"Fix: --explain {close or known[0]}")
    schemas = _schemas(sources)
    return Explanation(key, lookup(tree, key), _origin(key, overrides, sources), _meaning(key, schemas))


def _origin(key: str, overrides: Sequence[str], sources: Sequence[Source]) -> str:
    for text in reversed(overrides):
        name = text.lstrip("+~").split("=")[0]
        if key == name or (key.startswith(name + ".") and name not in SCHEMAS):
            return f"the command line: {text}"
    for source in reversed(sources):
        if source.file is not None:
            line = _line_in_file(source, key)
            if line:
                return f"{source.file}:{line}"
    for at, schema in _schemas(sources).items():
        found = documented(schema).get(_inside(key, at) or "")
        if found:
            return f"the default of {schema.__name__} in {Path(inspect.getfile(schema)).name}:{found[0]}"
    return "the option chosen for its group"


def _schemas(sources: Sequence[Source]) -> dict[str, type]:
    """Return the schema behind each package of this composition."""
    found: dict[str, type] = {}
    for source in sources:
        group, _, name = source.name.rpartition("/_schema/")
        if group in SCHEMAS:
            found[group] = SCHEMAS[group][name]
    return {**found, "": Config}


def _inside(key: str, package: str) -> str | None:
    """Return the key as seen from inside a package, or None where it lies elsewhere."""
    if not package:
        return key
    return key.removeprefix(package + ".") if key.startswith(package + ".") else None


def _line_in_file(source: Source, key: str) -> int | None:
    assert source.file is not None
    node = yaml.compose(source.file.read_text())
    if key in SCHEMAS and not source.package:
        return _choice_line(node, key)
    inner = _inside(key, source.package)
    line = None
    for part in inner.split(".") if inner else ():
        if not isinstance(node, yaml.MappingNode):
            return None
        pair = next((pair for pair in node.value if pair[0].value == part), None)
        if pair is None:
            return None
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def _choice_line(node: Any, group: str) -> int | None:
    """Return the line of a defaults list that chooses an option of the group."""
    for name, items in node.value if isinstance(node, yaml.MappingNode) else ():
        for item in items.value if name.value == "defaults" else ():
            for choice, _ in item.value if isinstance(item, yaml.MappingNode) else ():
                if choice.value in (group, f"override /{group}"):
                    return int(choice.start_mark.line) + 1
    return None


def _meaning(key: str, schemas: Mapping[str, type]) -> str:
    for at, schema in sorted(schemas.items(), key=lambda pair: -len(pair[0])):
        if at == key:
            return inspect.cleandoc(schema.__doc__ or "").splitlines()[0]
        inner = _inside(key, at)
        if inner and inner in documented(schema):
            return documented(schema)[inner][1]
    return "a setting of this option's own"


@cache
def documented(schema: type) -> dict[str, tuple[int, str]]:
    """Return line and text of every documented field of a schema, nested records with a dot."""
    found: dict[str, tuple[int, str]] = {}
    for base in reversed(schema.__mro__[:-1]):
        found |= _texts(sys.modules[base.__module__]).get(base.__name__, {})
    for item in fields(schema):
        nested: Any = item.default_factory  # a class, where it is one
        if isinstance(nested, type) and is_dataclass(nested):
            found |= {f"{item.name}.{name}": place for name, place in documented(nested).items()}
    return found


@cache
def _texts(module: ModuleType) -> dict[str, dict[str, tuple[int, str]]]:
    """Read the strings below the fields of every class in a module: {class: {field: (line, text)}}."""
    tree = ast.parse(inspect.getsource(module))
    return {item.name: dict(_fields_of(item.body)) for item in tree.body if isinstance(item, ast.ClassDef)}


def _fields_of(body: Sequence[ast.stmt]) -> Iterable[tuple[str, tuple[int, str]]]:
    for this, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            yield this.target.id, (this.lineno, str(text.value) if isinstance(text, ast.Constant) else "")
