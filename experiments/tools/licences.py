"""Write THIRD_PARTY_LICENSES.md: every package that fedray brings with it and the licence that it names.

    python experiments/tools/licences.py          write the file
    python experiments/tools/licences.py --check  exit code 1 if a package is missing in it

Covers the dependencies and the extras that are installed here.
"""

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "THIRD_PARTY_LICENSES.md"
START = "fedray"
UNNAMED = "not named by the package"
HEAD = """\
# Licences of the dependencies

fedray itself is under the Apache License 2.0 (`LICENSE`). It copies nothing of the packages below; they are
installed beside it, each under its own licence. Made by `make licences` from what the packages say of
themselves. `needed by` is `fedray` for what every installation has, otherwise the extras that bring it. On
machines where torch comes with CUDA it also brings NVIDIA's libraries (`nvidia-*`), under NVIDIA's licences.

| package | version | licence | needed by |
|---|---|---|---|
"""
TEXTS = (
    ("Apache License", "Apache-2.0"),
    ("MIT License", "MIT"),
    ("Permission is hereby granted, free", "MIT"),
    ("BSD 3-Clause", "BSD-3-Clause"),
    ("Neither the name", "BSD-3-Clause"),
    ("Redistribution and use in source", "BSD-2-Clause"),
    ("Mozilla Public License", "MPL-2.0"),
)
ROW = re.compile(r"^\| ([a-z0-9-]+) \| \d", re.MULTILINE)


def canonical(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(package: str, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """Return what an installed package asks for with these extras, as (name, extras of it)."""
    from packaging.requirements import Requirement  # comes with pytest; only this tool needs it

    found = []
    for text in metadata.requires(package) or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            found.append((canonical(need.name), frozenset(need.extras)))
    return found


def closure(extras: frozenset[str]) -> set[str]:
    """Return the installed packages that fedray with these extras brings, directly or through others."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(START, extras | {""})]
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen or not is_installed(package):
            continue
        seen.add((package, wanted))
        waiting += requirements(package, wanted | {""})
    return {package for package, _ in seen} - {START}


def is_installed(package: str) -> bool:
    """Say whether a package is there to be read."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def licence(package: str) -> str:
    """Return the licence of a package: its expression, its classifiers, its own field or its text."""
    about = metadata.metadata(package)
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classes = [line.split(" :: ") for line in about.get_all("Classifier", [])]
    named = [parts[-1] for parts in classes if parts[0] == "License" and len(parts) > 2]
    if named:
        return " and ".join(named)
    short = str(about.get("License") or "").strip()
    if short and "\n" not in short and len(short) <= 60:
        return short
    return licence_of_text(package, short)


def licence_of_text(package: str, text: str) -> str:
    """Name the licence whose words a package's licence file holds."""
    files = [file for file in metadata.files(package) or [] if "LICENSE" in file.name.upper()]
    text += "".join(file.read_text() for file in files[:1])
    return next((name for words, name in TEXTS if words.lower() in text.lower()), UNNAMED)


def table() -> str:
    """Return the whole file."""
    extras = sorted(set(metadata.metadata(START).get_all("Provides-Extra", [])) - {"dev"})
    always = closure(frozenset())
    brought = {extra: closure(frozenset({extra})) - always for extra in [*extras, "dev"]}
    lines = []
    for package in sorted(always.union(*brought.values())):
        by = [extra for extra in extras if package in brought[extra]] or ["dev"]
        version = metadata.version(package).split("+")[0]
        lines.append(f"| {package} | {version} | {licence(package)} | "
                     f"{'fedray' if package in always else ', '.join(by)} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write the list, or say which packages it lacks."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true")
    new = table()
    if not parser.parse_args().check:
        TARGET.write_text(new, "utf-8")
        print(f"{TARGET.name}: {len(ROW.findall(new))} packages, {new.count(UNNAMED)} without a licence")
        return 0
    missing = sorted(set(ROW.findall(new)) - set(ROW.findall(TARGET.read_text("utf-8"))))
    print(f"missing in {TARGET.name}: {', '.join(missing)}; run make licences" if missing else "complete")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
