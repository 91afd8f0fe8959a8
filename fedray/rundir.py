"""The run directory: everything a run leaves behind, so that it can be read, compared, resumed and repeated.

    runs/20261123-171200-icu_mortality-7f3a91/
      config.yaml overrides.txt env.json        what was asked for, on what
      STATUS log.txt                            running, done, failed or interrupted, and why
      log.jsonl status.json timeline.json       what driver and hosts said and did: see observe/
      plan.json egress.txt trust.txt            the round, all that leaves a site in it, what is protected
      rounds.jsonl evaluations.jsonl sites.jsonl  (and .parquet): see track.py
      stored-in.txt                             where it is kept besides: see stored.py
      checkpoints/ result.json model.safetensors model.json report.html

`runs/latest` points to the newest. Nothing here holds a patient value or the path of a folder.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import fedray
from fedray.errors import ConfigError, StorageError
from fedray.runtime.storage import failed
from fedray.track import append_whole, plain

STATES = ("running", "done", "failed", "interrupted")
RECORDED = ("ray", "torch", "numpy", "pandas", "pyarrow", "hydra-core", "omegaconf", "safetensors")
GIT_PATIENCE_S = 10.0
MOST_STATUS = 500  # characters, where there is room for no more than the block that STATUS has


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's folder. Make it with `create` before any work starts, open an older one with `open`."""

    path: Path

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        config_yaml: str,
        overrides: Sequence[str],
        seed: int,
        *,
        path: str | Path | None = None,
        config_hash: str | None = None,
    ) -> "RunDirectory":
        """Make `root/<time>-<name>-<hash6>/`, or `path`, and write what is known before the run.

        `config_hash` is the hash of the configuration where that is not the SHA-256 of its text.
        Raises ConfigError where the folder cannot be made.
        """
        digest = config_hash or hashlib.sha256(config_yaml.encode()).hexdigest()
        wanted = Path(path or Path(root) / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{digest[:6]}")
        try:
            run = cls(_make(wanted))
            run.write("config.yaml", config_yaml)
            run.write("overrides.txt", "".join(f"{text}\n" for text in overrides))
            run.write_json("env.json", {**environment(), "seed": seed, "name": name, "config_sha256": digest})
            run.set_status("running")
            run.checkpoints.mkdir(exist_ok=True)
            if run.path.parent == Path(root):
                _point(Path(root) / "latest", run.path.name)
        except (OSError, StorageError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"runs_dir={root}: a run directory cannot be made there ({why}). "
                "Fix: runs_dir=FOLDER that you may write to"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open the directory of an earlier run, a symbolic link such as `runs/latest` included.

        Raises ConfigError where it is none.
        """
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is not the directory of a run: it holds no config.yaml. "
                "Fix: name one of the folders in runs/, or runs/latest"
            )
        return cls(Path(os.path.relpath(folder.resolve())) if folder.is_symlink() else folder)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def config_yaml(self) -> str:
        """The text of the resolved configuration."""
        return (self.path / "config.yaml").read_text()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides that made it, later ones of `resume` included."""
        return tuple((self.path / "overrides.txt").read_text().splitlines())

    @property
    def env(self) -> dict[str, Any]:
        """What the run started on: versions, commit, processors, seed, config hash."""
        found: dict[str, Any] = json.loads((self.path / "env.json").read_text())
        return found

    @property
    def status(self) -> tuple[str, str]:
        """The state and its reason; `unknown` where none was written."""
        file = self.path / "STATUS"
        state, _, reason = file.read_text().partition("\n") if file.exists() else ("unknown", "", "")
        return state, reason.strip()

    def set_status(self, state: str, reason: str = "") -> None:
        """Write `running`, `done`, `failed` or `interrupted`, with a reason in a line of its own."""
        if state not in STATES:
            raise ValueError(f"a run is one of {', '.join(STATES)}, not {state!r}")
        text = f"{state}\n{reason}\n" if reason else f"{state}\n"
        try:
            self.write("STATUS", text)
        except StorageError:
            if not _is_written_over(self.path / "STATUS", text[:MOST_STATUS]):
                raise

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file by one rename, so that a kill leaves the old one or the new one."""
        target = self.path / name
        temporary = target.with_name(f"{name}.part")
        data = content.encode() if isinstance(content, str) else content
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise failed(target, error, "written", len(data)) from error
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file; NaN and infinity become null."""
        return self.write(name, json.dumps(plain(value), indent=1) + "\n")

    def add_overrides(self, overrides: Sequence[str]) -> None:
        """Note the overrides of a resumed run behind the first ones."""
        self.write("overrides.txt", "".join(f"{text}\n" for text in (*self.overrides, *overrides)))

    def write_plan(self, plan: Any, facts: Mapping[str, Any] | None = None, also: Sequence[Any] = ()) -> None:
        """Write `plan.json`, `trust.txt` and `egress.txt`; `also` are the plans of evaluations, whose egress
        is listed too.
        """
        from fedray.core.explain import egress, egress_rows, explain
        from fedray.core.trust import trust_statement

        told = {
            "name": plan.name,
            "digest": plan.digest,
            "stages": plan.last_stage + 1,
            "egress": egress_rows(plan),
            "facts": dict(facts or {}),
            "explain": explain(plan).splitlines(),
            "evaluations": [
                {"name": other.name, "digest": other.digest, "egress": egress_rows(other)} for other in also
            ],
        }
        self.write_json("plan.json", told)
        self.write("trust.txt", trust_statement(plan) + "\n")
        titles = ["Each round of training", *["Each evaluation"] * len(also)]
        self.write(
            "egress.txt",
            "\n\n".join(f"{title}\n{egress(each)}" for title, each in zip(titles, (plan, *also), strict=True))
            + "\n",
        )

    def plan_tracker(self, also: Sequence[Any] = ()) -> "PlanTracker":
        """Return a tracker that writes the plan when `fit` starts, sizes known; `also` as in `write_plan`."""
        return PlanTracker(self, also)

    def write_result(self, result: Any, extras: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write `result.json`, the model and STATUS; return what result.json holds. See
        `rundir_result.write`.
        """
        from fedray import rundir_result

        return rundir_result.write(self, result, extras or {})

    @contextlib.contextmanager
    def log(self, level: int = logging.INFO) -> Iterator[None]:
        """Append what fedray logs to `log.txt` inside the block."""
        handler = _LogFile(self.path / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        thread = threading.get_ident()  # trials that train together run each in a thread, and log apart
        handler.addFilter(lambda record: record.thread == thread)
        logger = logging.getLogger("fedray")
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(min(level, before) if before else level)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            handler.close()


class _LogFile(logging.Handler):
    """A log from which a full disk leaves lines out: it says how many, and the terminal has the warnings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.lost = path, 0
        append_whole(path, b"")

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        left_out = f"({self.lost} lines before this one found no room)\n" * bool(self.lost)
        try:
            append_whole(self.path, f"{left_out}{self.format(record)}\n".encode())
            self.lost = 0
        except OSError:  # it must not be logged: that line would come here too
            self.lost += 1
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)


@dataclass(frozen=True, slots=True)
class PlanTracker:
    """Write the plan when a run starts; nothing else."""

    run: RunDirectory
    also: Sequence[Any] = ()

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Write plan.json and egress.txt; evaluation plans with the sizes that `fit` has learnt."""
        told = dict(facts)
        sized = {other.digest: other for other in told.pop("evaluations", ())}
        self.run.write_plan(plan, told, [sized.get(other.digest, other) for other in self.also])

    def round(self, record: Any) -> None:
        """Take a round; there is nothing to do."""

    def evaluation(self, record: Any) -> None:
        """Take an evaluation; there is nothing to do."""

    def finish(self, result: Any) -> None:
        """Take the result; there is nothing to do."""


def _is_written_over(path: Path, text: str) -> bool:
    """Write into the block that a short file has already, which a full disk takes; tell whether it did."""
    try:
        with path.open("rb+", buffering=0) as file:
            file.write(text.encode())
            file.truncate()
    except OSError:
        return False
    return True


def _make(wanted: Path) -> Path:
    """Make a folder that was not there; a second run of the same second gets a number behind its name."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}~{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise OSError(17, "a thousand runs of this name exist")


def _point(link: Path, target: str) -> None:
    """Let a symbolic link name the newest run, by one rename; where there are no links, do without."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        logging.getLogger(__name__).info("no link %s: this file system has none", link.name)
        temporary.unlink(missing_ok=True)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions that a run records; they are read once, for a sweep asks at every trial."""
    versions = {"fedray": fedray.__version__}
    for package in RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def environment() -> dict[str, Any]:
    """Return versions, commit, processor and memory; never a host name, a user or a path."""
    commit = _git("rev-parse", "HEAD")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _gpu_name(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git(*words: str) -> str | None:
    """Ask git about the working directory; None where it is no checkout or git is not there."""
    try:
        asked = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=GIT_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # asked only where it is loaded: the name is not worth two seconds
    return str(torch.cuda.get_device_name(0)) if torch is not None and torch.cuda.is_available() else None


def as_json(value: Any) -> Any:
    """Return frozen records, nested, as plain values for `model.json`."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return plain(value)
