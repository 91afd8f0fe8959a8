"""The `fedray` command: `run`, `resume` and `sweep` compose a configuration, the rest are plain subcommands.

Nothing heavy is imported here: `fedray --help` and `fedray run --cfg job` answer without torch and ray.
Exit codes: 0 done, 1 failed run, 2 wrong configuration or data, 3 below quorum, 130 interrupted.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fedray
from fedray import errors
from fedray.runtime.interrupt import terminable

DONE, FAILED, BAD_INPUT, BELOW_QUORUM, INTERRUPTED = 0, 1, 2, 3, 130
MAX_LINES = 20  # of one message on bad input, so that it fits a small terminal

HELP = """\
fedray: federated learning for hospitals on Ray

  fedray run [key=value ...]         train; `fedray run --help` lists groups and options
  fedray resume RUN [key=value ...]  go on with a run: its directory, or its address in a store
  fedray sweep key=a,b [...]         train once per combination, in one session
  fedray status RUN                  say what a run is doing now, or how it ended
  fedray logs RUN [--site ID]        show its log: driver, aggregator and hosts; --follow goes on
  fedray contribution RUN            say what each site adds to the model of a run
  fedray report RUN                  write report.html of a run again
  fedray diff A B                    name the first round and value in which two runs differ
  fedray clean [--keep 10]           remove older runs after asking
  fedray data build|get|synth|describe|validate
  fedray privacy plan|show|verify    plan noise; read a privacy ledger
  fedray cluster check|certs|plan    check a Ray cluster; make its certificates and token; plan its traffic
  fedray doctor                      check this machine
  fedray completion bash|zsh|fish    print the tab completion of a shell

--json prints machine-readable output. Exit codes: 0 done, 1 failed run, 2 wrong configuration or data,
3 below quorum, 130 interrupted. Start with `fedray run`; every preset is `fedray run experiment=NAME`."""

RUN_HELP = """\
Train a model over hospitals: fedray run [key=value ...] [flags]

  fedray run                                     the preset icu_mortality
  fedray run experiment=eicu_demo                another preset
  fedray run algorithm=scaffold local.lr=0.05    another option of a group, another value
  fedray run -m seed=0,1,2                       one run per value

Groups (group=option):
{groups}

Flags:
  --cfg job         print the configuration and stop
  --explain KEY     print a value, the file and line that set it, and what it means
  -m, --multirun    sweep over every value given as a=1,2,3 or a=range(5)
  --allow PACKAGE   let `_target_` name code of this package
  --config-dir DIR  look for further groups and presets in this folder
  --json            print the result as JSON
  --hydra-help      help on the grammar of overrides and further flags"""

_ELSEWHERE = {"contribution": "fedray.contribution.commands", "report": "fedray.report.commands",
              "diff": "fedray.report.commands", "clean": "fedray.report.commands", "doctor": "fedray.doctor",
              "cluster": "fedray.cluster.commands", "status": "fedray.observe.commands",
              "logs": "fedray.observe.commands", "data": "fedray.data.commands",
              "privacy": "fedray.accounting.commands"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; messages about bad input go to standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    head = words[0] if words else "--help"
    try:
        with terminable():
            return _dispatch(head, words)
    except errors.FedrayError as error:
        return _say(error, "--json" in words)
    except KeyboardInterrupt:
        print("fedray: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of a pipe left: nothing more to tell it
        return DONE


def _dispatch(head: str, words: list[str]) -> int:
    own: dict[str, Callable[[list[str]], int]] = {"run": _run, "resume": _resume, "sweep": _sweep,
                                                  "completion": _completion}
    if head in ("--help", "-h", "help"):
        print(HELP)
        return DONE
    if head == "--version":
        print(f"fedray {fedray.__version__}")
        return DONE
    if head == "-sc":
        return _complete(words)
    if head in own:
        return own[head](words[1:])
    if head in _ELSEWHERE:
        parser = argparse.ArgumentParser(prog="fedray")
        commands = importlib.import_module(_ELSEWHERE[head])
        commands.add_parser(parser.add_subparsers(dest="command", required=True))
        return int(commands.run(parser.parse_args(words)))
    from fedray.config_help import nearest
    close = nearest(head, [*own, *_ELSEWHERE])
    fix = f"fedray run {' '.join(words)}" if "=" in head else f"fedray {close}" if close else "fedray --help"
    raise errors.ConfigError(f"there is no command {head!r}. Fix: {fix}")


def _say(error: errors.FedrayError, as_json: bool) -> int:
    """Print what went wrong, at most MAX_LINES lines, and return the exit code."""
    code = exit_code(error)
    found = error.problems if isinstance(error, errors.ConfigError) else [str(error)]
    if as_json:
        told = {"status": "failed", "exit_code": code, "error": type(error).__name__, "problems": found}
        print(json.dumps(told))
    lines = [f"fedray: {error.heading}{f', {len(found)} problems' if len(found) > 1 else ''}"]
    for text in found:
        what, fix, remedy = text.partition(" Fix: ")
        lines += [f"  - {what}", *([f"    fix: {remedy}"] if fix else [])]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES - 1], f"  ... and more: {len(found)} in all, mend these first"]
    print("\n".join(lines), file=sys.stderr)
    return code


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error stands for."""
    if isinstance(error, errors.QuorumError):
        return BELOW_QUORUM
    if isinstance(error, (errors.ConfigError, errors.DataError, errors.ScheduleError, errors.PassError,
                          errors.VerifyError, errors.TraceError, errors.MemoryForecastError,
                          errors.BudgetError, errors.LedgerError)):
        return BAD_INPUT
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def _flags(words: Sequence[str], *names: str) -> tuple[argparse.Namespace, list[str]]:
    """Take fedray's own flags out of a command line; return them and what is left for Hydra."""
    parser = argparse.ArgumentParser(prog="fedray", add_help=False, allow_abbrev=False)
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE")
    parser.add_argument("--config-dir", "-cd", default=None)
    parser.add_argument("--json", action="store_true")
    for name in names:
        parser.add_argument(*name.split("|"), action="store_true" if "|" in name else "store")
    return parser.parse_known_args(list(words))


def _run(words: list[str]) -> int:
    flags, rest = _flags(words, "--explain", "-m|--multirun", "-h|--help")
    if flags.help:
        from fedray import config
        groups = config.group_options(flags.config_dir).items()
        lines = [f"  {group}: {', '.join(options)}" for group, options in groups]
        print(RUN_HELP.format(groups="\n".join(lines)))
        return DONE
    if any(word.startswith("-") for word in rest):
        return _through_hydra(rest, flags.config_dir)
    if flags.multirun:
        from fedray.sweep.multirun import run as multirun
        return multirun([word for word in words if word not in ("-m", "--multirun")])
    from fedray import config
    if flags.explain is not None:
        print(config.explain(flags.explain, rest, flags.config_dir))
        return DONE
    composed = config.compose_run(rest, flags.config_dir, flags.allow)
    config.check(composed.config)
    from fedray import phases
    from fedray.experiment import asked_for
    phases.ended("configuration composed and checked")
    return _train(asked_for(composed), flags.json)


def _resume(words: list[str]) -> int:
    flags, rest = _flags(words)
    if not rest or "=" in rest[0] or rest[0].startswith("-"):
        raise errors.ConfigError("resume needs a run's directory. Fix: fedray resume runs/latest [rounds=N]")
    from fedray.experiment import asked_again
    from fedray.observe import status
    asked = asked_again(rest[0], rest[1:], flags.allow)
    with status.resuming(asked.run_dir):
        return _train(asked, flags.json)


def _train(asked: Any, as_json: bool) -> int:
    """Train here, or in a process that holds the aggregator where the sites are on Ray; return the exit code.

    Neither torch nor Ray is loaded here in the second case.
    """
    if not asked.is_on_ray:
        from fedray import experiment
        from fedray.live import view
        return _finish(experiment.run(asked, experiment.build(asked), None if as_json else view), as_json)
    from fedray import session
    running = session.launch(asked, is_shown=not as_json)
    if not as_json:
        print("starting Ray and opening the sites ...", file=sys.stderr, flush=True)
    from fedray.live import view
    try:
        return _finish(running.follow(view), as_json)
    except session.Crashed:
        return FAILED


def _finish(outcome: Any, as_json: bool) -> int:
    """Print the result where it is asked for and return the exit code of a finished or interrupted run."""
    if as_json:
        print(json.dumps(outcome.summary))
    return INTERRUPTED if outcome.stopped == "interrupted" else DONE


def _sweep(words: list[str]) -> int:
    from fedray.sweep.commands import run
    return run(words)


def _through_hydra(words: list[str], config_dir: str | None) -> int:
    """Hand a command line to Hydra (`--cfg`, `--info`, completion); its errors take our form."""
    import hydra

    from fedray import config
    from fedray.config_help import shorten
    config.register()
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    overrides = [word for word in words if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    if "-sc" in words:
        overrides = []  # its `query=bash` is no override
    flags = [word for word in words if word not in overrides]  # argparse wants all overrides in one place
    sys.argv = ["fedray run", *flags, *(["--config-dir", config_dir] if config_dir else []), *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits itself
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            folder = str(config.conf_folder())
            hydra.main(version_base="1.3", config_path=folder, config_name="config")(_nothing)()
    except config.BROKEN as error:
        config.compose_run(overrides, config_dir)  # says every problem
        raise errors.ConfigError(shorten(str(error))) from None
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
        _print_without_schemas(printed.getvalue(), by_word="-sc" in words)
    return DONE


def _print_without_schemas(text: str, by_word: bool) -> None:
    """Print what Hydra printed without the internal schemas: lines of help, or words of a completion."""
    parts = text.split() if by_word else text.rstrip().splitlines()
    kept = [part for part in parts if "_schema" not in part]
    if kept:
        print("\n".join(kept))


def _nothing(_: Any) -> None:
    """Stand in for the task that Hydra would run; with the flags handed over it runs none."""


SCRIPTS = {
    "bash": """\
_fedray() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local offered="$(COMP_LINE="$line" COMP_POINT=$COMP_POINT fedray -sc query=bash 2>/dev/null)"
    COMPREPLY=($(compgen -W "$offered" -- "${line##* }"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _fedray fedray""",
    "fish": """\
function __fedray
    set -lx COMP_LINE (commandline -cp)
    fedray -sc query=fish 2>/dev/null
end
complete -c fedray -x -a '(__fedray)'""",
}
FLAGS = {"status": "--json", "logs": "--site --round --level --follow --json"}
SCRIPTS["zsh"] = "autoload -U +X bashcompinit && bashcompinit\n" + SCRIPTS["bash"]


def _completion(words: list[str]) -> int:
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise errors.ConfigError("completion needs the name of a shell: bash, zsh or fish. "
                                 "Fix: eval \"$(fedray completion bash)\"")
    print(SCRIPTS[words[0]])
    return DONE


def _complete(words: list[str]) -> int:
    """Answer a shell that asks for completions: subcommands here, overrides through Hydra.

    Hydra reads COMP_LINE and takes the subcommand for an override, so that word is taken out of the line.
    """
    line = os.environ.get("COMP_LINE", "")
    parts = line.split()
    typing_first = len(parts) < 2 or (len(parts) == 2 and not line.endswith(" "))
    if typing_first:
        print("\n".join(["run", "resume", "sweep", "completion", *_ELSEWHERE]))
    elif parts[1] in ("run", "sweep"):
        program = parts[0] if line else "fedray"
        rest = line.split(parts[1], 1)[1]
        os.environ["COMP_LINE"] = f"{program}{rest}"
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
        return _through_hydra(words, None)
    elif parts[1] in ("resume", "report", "diff", "contribution", "status", "logs"):
        runs = os.scandir("runs") if os.path.isdir("runs") else ()
        print("\n".join([*sorted(f"runs/{entry.name}" for entry in runs if entry.is_dir()),
                         *FLAGS.get(parts[1], "").split()]))
    elif parts[1] == "completion":
        print("\n".join(SCRIPTS))
    return DONE
