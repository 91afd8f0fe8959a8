"""`fedray doctor`: is this machine fit for a run? One line per check, PASS or the problem and its fix.

NOTE is said of what is only worth knowing. The exit code is 1 where a check says FAIL.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fedray
from fedray.errors import HostError
from fedray.runtime.findings import FAIL, NOTE, PASS, Finding

GIB = 2**30
MEMORY = 2 * GIB  # what the default preset takes on Ray with two packs, rounded up
SHARED = GIB // 2  # below it Ray puts its objects on disk
DISK = 2 * GIB
SOCKET_PATH = 107  # characters that the system allows for the path of a socket
RAY_PATH = 62  # of these go to Ray's own folders and socket names
DATA_SETS = ("eicu-demo", "eicu-demo-hourly", "heart-disease")


def add_parser(subparsers: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = subparsers.add_parser("doctor", help="check this machine")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--no-ray", action="store_true", help="leave the start of Ray out")


def run(args: argparse.Namespace) -> int:
    """Print every check and return 0, or 1 where one failed."""
    findings = []
    for finding in examine(with_ray=not args.no_ray):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    failed = sum(finding.status == FAIL for finding in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in findings]}))
    elif failed:
        print(f"{failed} problem{'s' if failed > 1 else ''} to mend")
    else:
        print("this machine is ready: fedray run")
    return 1 if failed else 0


def examine(with_ray: bool = True) -> Iterator[Finding]:
    """Yield the findings of all checks, the start of Ray last."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _versions,
        _pins,
        _report,
        _processors,
        _memory,
        _shared,
        _disk,
        _sockets,
        _data,
        _telemetry,
    )
    for check in checks:
        yield from check()
    yield from _torch()
    if with_ray:
        yield from _ray()


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if os.name == "nt":
        yield Finding(
            "python", FAIL, f"{found}; Ray actors need Linux or macOS", "wsl --install, then run it in WSL"
        )
    else:
        yield Finding("python", PASS, found)


def _requirements() -> list[str]:
    """Return what fedray requires: from the installed package, or from the pyproject.toml of a checkout."""
    try:
        return [text for text in importlib.metadata.requires("fedray") or [] if "extra ==" not in text]
    except importlib.metadata.PackageNotFoundError:
        text = (_checkout() / "pyproject.toml").read_text()
        return list(tomllib.loads(text)["project"]["dependencies"])


def _checkout() -> Path:
    return Path(fedray.__file__).resolve().parent.parent


def installed(package: str) -> str | None:
    """Return the public version of an installed package (`2.13.0` of `2.13.0+cpu`), or None."""
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wrong, kept = [], []
    for requirement in map(Requirement, _requirements()):
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (found {version or 'none'})")
        else:
            kept.append(f"{requirement.name} {version}")
    if wrong:
        yield Finding(
            "versions", FAIL, f"needed: {', '.join(wrong)}", "pip install -c constraints.txt -e '.[dev]'"
        )
    else:
        yield Finding("versions", PASS, ", ".join(kept[:3]) + f" and {len(kept) - 3} more, all in range")


def pins(text: str) -> dict[str, str]:
    """Return the versions of a constraints file by package."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))


def _pins() -> Iterator[Finding]:
    file = _checkout() / "constraints.txt"
    if not file.is_file():
        return  # an installed wheel: the ranges above are what it promises
    wanted = pins(file.read_text())
    found = {name: version for name in wanted if (version := installed(name)) is not None}
    other = [
        f"{name} {version} (pinned {wanted[name]})"
        for name, version in found.items()
        if version != wanted[name]
    ]
    if other:
        more = f" and {len(other) - 4} more" if len(other) > 4 else ""
        yield Finding(
            "constraints",
            NOTE,
            f"not as pinned: {', '.join(other[:4])}{more}",
            "rm -r .venv && python3.11 bootstrap.py fedray doctor",
        )
    else:
        yield Finding(
            "constraints", PASS, f"{len(found)} installed packages are as pinned in constraints.txt"
        )


def _report() -> Iterator[Finding]:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(
            "report",
            NOTE,
            f"no page at the end of a run: {' and '.join(missing)} not installed",
            "pip install 'fedray[report]'",
        )
    else:
        yield Finding("report", PASS, "report.html can be written")


def _processors() -> Iterator[Finding]:
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processors", PASS, f"{found} for this process")


def _memory() -> Iterator[Finding]:
    from fedray.runtime.memory import available_bytes

    free = available_bytes()
    if not free:
        yield Finding("memory", NOTE, "this system does not tell how much is free")
    elif free < MEMORY:
        yield Finding(
            "memory",
            FAIL,
            f"{_gib(free)} free, {_gib(MEMORY)} needed by the default preset",
            "close other programs, or fedray run runtime=in_process",
        )
    else:
        yield Finding("memory", PASS, f"{_gib(free)} free")


def _shared() -> Iterator[Finding]:
    if not os.path.isdir("/dev/shm"):
        yield Finding("shared memory", PASS, "not used on this system")
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < SHARED:
        yield Finding(
            "shared memory",
            FAIL,
            f"/dev/shm has {_gib(free)} free, Ray wants {_gib(SHARED)}",
            "in a container: docker run --shm-size=2g; else runtime=in_process",
        )
    else:
        yield Finding("shared memory", PASS, f"/dev/shm has {_gib(free)} free")


def _disk() -> Iterator[Finding]:
    for where, folder in (("this folder", "."), ("the folder for temporary files", tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Finding(
                "disk",
                FAIL,
                f"{where} cannot be written to",
                "fedray run runs_dir=FOLDER data_dir=FOLDER"
                if folder == "."
                else "export TMPDIR=FOLDER that you may write to",
            )
        elif free < DISK:
            yield Finding(
                "disk", FAIL, f"{where} has {_gib(free)} free, {_gib(DISK)} wanted", "fedray clean --keep 10"
            )
        else:
            yield Finding("disk", PASS, f"{where} has {_gib(free)} free")


def _sockets() -> Iterator[Finding]:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) + RAY_PATH > SOCKET_PATH:
        yield Finding(
            "sockets",
            FAIL,
            f"the folder for temporary files has a path of {len(folder)} characters: too "
            f"long for Ray's sockets, {SOCKET_PATH - RAY_PATH} fit",
            "export RAY_TMPDIR=/tmp",
        )
    if os.environ.get("RAY_ADDRESS"):
        yield Finding(
            "sockets", NOTE, "RAY_ADDRESS is set; runtime=ray_local starts a Ray of its own and ignores it"
        )


def _data() -> Iterator[Finding]:
    folder = os.environ.get("FEDRAY_DATA")
    if not folder:
        yield Finding(
            "FEDRAY_DATA",
            NOTE,
            "not set: synthetic data needs none, eicu_demo and heart_disease do",
            "export FEDRAY_DATA=FOLDER, or fedray data get eicu-demo",
        )
    elif not os.path.isdir(folder):
        yield Finding("FEDRAY_DATA", FAIL, "names something that is no folder", "export FEDRAY_DATA=FOLDER")
    else:
        there = [name for name in DATA_SETS if (Path(folder) / name).is_dir()]
        yield Finding(
            "FEDRAY_DATA",
            PASS if there else NOTE,
            f"holds {', '.join(there) or 'none of the known data sets'}",
        )


def _telemetry() -> Iterator[Finding]:
    """Check that nothing on this machine reports home."""
    on = [name for name, value in telemetry(os.environ).items() if value]
    if on:
        yield Finding(
            "telemetry",
            FAIL,
            f"switched on: {', '.join(on)}",
            "export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true WANDB_MODE=offline",
        )
    else:
        yield Finding(
            "telemetry",
            PASS,
            "Ray usage reports are off" + (", MLflow telemetry is off" if installed("mlflow") else ""),
        )


def telemetry(environment: Mapping[str, str]) -> dict[str, bool]:
    """Return which reporting is on: Ray's where asked for, others' where installed and not switched off."""
    ask = environment.get
    mlflow_off = ask("MLFLOW_DISABLE_TELEMETRY", "").lower() in ("true", "1") or ask("DO_NOT_TRACK", "") in (
        "1",
        "true",
    )
    wandb_off = ask("WANDB_MODE", "") in ("offline", "disabled")
    return {
        "Ray usage reports": ask("RAY_USAGE_STATS_ENABLED", "0") not in ("0", "false"),
        "MLflow telemetry": installed("mlflow") is not None and not mlflow_off,
        "Weights & Biases online": installed("wandb") is not None and not wandb_off,
    }


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return  # said under versions
    import torch

    gpu = (
        f", {torch.cuda.get_device_name(0)}"
        if torch.cuda.is_available()
        else ", no GPU: all runs on processors"
    )
    yield Finding("torch", PASS, f"{torch.__version__}{gpu}")


def _ray() -> Iterator[Finding]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    began = time.monotonic()
    try:
        from fedray.runtime.ray_check import check_ray

        took = check_ray()
    except (HostError, ImportError) as error:
        yield Finding(
            "ray",
            FAIL,
            f"{error} after {time.monotonic() - began:.0f} s",
            "fedray run runtime=in_process; RAY_TMPDIR=/tmp and a free /dev/shm help most often",
        )
        return
    yield Finding(
        "ray",
        PASS,
        f"started in {took['start_s']:.1f} s, ran a task in {took['task_s']:.1f} s, "
        f"stopped in {took['stop_s']:.1f} s",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
