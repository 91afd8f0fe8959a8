"""The import rule, the budget of lines and the public names, read from the source.

Arrows may be imported; what is not listed as a layer (config, cli, data, report, ...) may import all:

    tree, rows, coded, frozen, rng, noise, settings, errors, cancellation  <-  core  <-  passes
    algorithms -> core, learn
    tree, rows, coded, frozen, rng, noise, settings, errors, cancellation  <-  learn     runtime -> core
    errors, settings  <-  accounting
    core, learn  <-  airlock: its pass reads graphs, its tests read models and rows
    errors  <-  secrecy  <-  passes: masks and shares are read and tested without a graph, a model or torch

What spends privacy (passes, learn) carries a record of accounting, and the runtime charges it.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedray

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fedray"
FILES = sorted(PACKAGE.rglob("*.py"))
FOUNDATION = tuple(
    f"fedray.{name}"
    for name in ("tree", "rows", "coded", "frozen", "rng", "noise", "settings", "errors", "cancellation")
)
LAYERS = {
    "fedray.tree": FOUNDATION,
    "fedray.rows": FOUNDATION,
    "fedray.coded": FOUNDATION,
    "fedray.frozen": FOUNDATION,
    "fedray.rng": FOUNDATION,
    "fedray.noise": FOUNDATION,
    "fedray.settings": FOUNDATION,
    "fedray.errors": FOUNDATION,
    "fedray.cancellation": FOUNDATION,
    "fedray.core": (*FOUNDATION, "fedray.core"),
    "fedray.passes": (*FOUNDATION, "fedray.core", "fedray.accounting", "fedray.secrecy", "fedray.passes"),
    "fedray.learn": (*FOUNDATION, "fedray.accounting", "fedray.learn"),
    "fedray.algorithms": (*FOUNDATION, "fedray.core", "fedray.learn", "fedray.algorithms"),
    "fedray.runtime": (*FOUNDATION, "fedray.core", "fedray.accounting", "fedray.runtime"),
    "fedray.accounting": ("fedray.errors", "fedray.settings", "fedray.accounting"),
    "fedray.airlock": (*FOUNDATION, "fedray.core", "fedray.learn", "fedray.data.site", "fedray.airlock"),
    "fedray.secrecy": ("fedray.errors", "fedray.secrecy"),
}
EXCEPTIONS = {
    ("fedray.runtime.plan", "fedray.passes.lowering"),  # compile() lowers every program
    ("fedray.learn.private_training", "fedray.core.graph"),  # the label of what it lets leave
}
HOMES = {  # third-party package: where fedray may import it
    "ray": ("fedray.runtime.ray_*", "fedray.sweep", "fedray.cluster"),
    "hydra": ("fedray.config*", "fedray.cli", "fedray.sweep"),
    "omegaconf": ("fedray.config*", "fedray.cli", "fedray.sweep"),
    "pandas": ("fedray.data", "fedray.track", "fedray.report"),
}
MAX_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_PUBLIC_NAMES = 30


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lies_in(module: str, home: str) -> bool:
    if home.endswith("*"):
        return module.startswith(home[:-1])
    return module == home or module.startswith(home + ".")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def public(name: str) -> str:
    """Return the module that a name of the package itself stands for: fr.map is fedray.core.trace."""
    return f"fedray.{name}" if is_module(f"fedray.{name}") else fedray._NAMES.get(name, "fedray")


def from_import(node: ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Yield the modules behind one `from ... import ...`, relative ones resolved."""
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[:len(parts) - node.level + is_package]
        base = ".".join([*parts, *([base] if base else [])])
    for alias in node.names:
        if base == "fedray":
            yield public(alias.name)
        else:
            yield f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Return every module that a source imports anywhere in it; `fr.<name>` counts as the name's home."""
    parsed = ast.parse(source)
    found: set[str] = set()
    aliases: set[str] = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or "fedray" for alias in node.names if alias.name == "fedray"}
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= set(from_import(node, module, is_package))
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(public(node.attr))
    return found


def violations(module: str, imported: set[str]) -> list[str]:
    """Return what a module may not import, as sentences."""
    layer = next((name for name in LAYERS if lies_in(module, name)), None)
    wrong = [f"{module} imports {name}" for package, homes in HOMES.items() for name in imported
             if lies_in(name, package) and not any(lies_in(module, home) for home in homes)]
    if layer is None:
        return wrong
    inner = {name for name in imported if lies_in(name, "fedray")} - {"fedray"}
    wrong += [f"{module} imports {name}, a layer that {layer} does not stand on" for name in inner
              if not any(lies_in(name, allowed) for allowed in LAYERS[layer])
              and (module, name) not in EXCEPTIONS]
    if layer == "fedray.core":
        wrong += [f"{module} imports {name}: only tree does" for name in imported if lies_in(name, "torch")]
    return wrong


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_module_imports_only_what_its_layer_stands_on(path: Path) -> None:
    imported = imports(path.read_text("utf-8"), module_of(path), path.name == "__init__.py")
    assert violations(module_of(path), imported) == []


@pytest.mark.parametrize(("module", "source"), [
    ("fedray.core.trace", "import torch"),
    ("fedray.core.trace", "from fedray import learn"),
    ("fedray.core.trace", "from ..runtime import plan"),
    ("fedray.passes.lowering", "import fedray as fr\nfr.fit"),
    ("fedray.learn.sgd", "def late():\n    from fedray.core.trace import trace"),
    ("fedray.runtime.loop", "from ray import wait"),
    ("fedray.runtime.loop", "from fedray.algorithms.fedavg import fedavg"),
    ("fedray.report.page", "from omegaconf import DictConfig"),
    ("fedray.learn.metrics", "import pandas as pd"),
])
def test_forbidden_import_is_found(module: str, source: str) -> None:
    assert violations(module, imports(source, module))


@pytest.mark.parametrize(("module", "source"), [
    ("fedray.algorithms.fedavg", "import fedray as fr\nfr.map\nfrom fedray.learn.optimizer import sgd"),
    ("fedray.runtime.ray_actors", "import ray"),
    ("fedray.runtime.pack", "from fedray.rng import Key\nimport torch"),
    ("fedray.passes.lowering", "from fedray import tree\nfrom fedray.core import graph"),
])
def test_allowed_import_is_not_found(module: str, source: str) -> None:
    assert violations(module, imports(source, module)) == []


def test_no_module_is_called_ray() -> None:
    assert [path for path in FILES if "ray" in path.relative_to(PACKAGE).with_suffix("").parts] == []


def test_no_file_is_over_the_budget_of_lines() -> None:
    files = [path for folder in ("fedray", "experiments", "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_function_is_over_the_budget_of_lines(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8")))
                 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_public_names_are_few() -> None:
    assert len([name for name in fedray.__all__ if not name.startswith("_")]) <= MAX_PUBLIC_NAMES


@pytest.mark.parametrize("name", fedray.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(fedray, name) is not None


def test_import_of_the_package_loads_neither_torch_nor_ray() -> None:
    program = "import json, sys, fedray; dir(fedray); print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", program]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "ray", "numpy", "hydra"}.isdisjoint(json.loads(asked.stdout))
