"""`fedray contribution RUN`: what each site adds to the model of a run that is over.

The run is replayed without some of its sites, by its own configuration; the replay of all sites must come to
the parameters that the run has. What is found lies in the run's directory: see `store.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

METHODS = ("auto", "shapley", "leave_one_out", "tmc", "gtg")
SPLITS = ("valid", "test")


def add_parser(subparsers: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = subparsers.add_parser(
        "contribution",
        help="say what each site adds to the model of a run",
        description="Replay a run without some of its sites and divide what all of them are worth.",
    )
    parser.add_argument("run", nargs="?", default="runs/latest", help="directory of a run (runs/latest)")
    parser.add_argument("--method", choices=METHODS, default="auto",
                        help="exact Shapley values up to 10 sites, drawn orders beyond (auto)")  # fmt: skip
    parser.add_argument("--metric", help="of the model, on the rows of all sites; evaluate.metric")
    parser.add_argument("--split", choices=SPLITS, default="test", help="the rows that are measured (test)")
    parser.add_argument("--permutations", type=int, default=1000, metavar="N",
                        help="most orders that tmc draws, and gtg in a round (1000)")  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X",
                        help="of the metric: an order is cut where less is left (0.001)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the orders (0)")
    parser.add_argument("--taking-part", action="store_true",
                        help="also compare each site's own model with the common one")  # fmt: skip
    parser.add_argument("--together", action="store_true",
                        help="train coalitions as one program: faster, equal to float rounding")  # fmt: skip
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE",
                        help="let `_target_` name code of this package")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code. Raises ConfigError where the run cannot be replayed."""
    from fedray.report.commands import find

    folder = find(args.run)
    told, path = _found(args, folder, _quiet if args.json else _say)
    if args.json:
        print(json.dumps(told))
        return 0
    print("\n".join(_table(told)))
    print(f"open {path}" if path else f"in {folder / 'contribution'}")
    return 0


def _found(
    args: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], Path | None]:
    from fedray import experiment as runs
    from fedray.contribution.store import Store

    built = _experiment(folder, args.allow)
    _refuse(built, args.method)
    method = _method(args, len(built.data))
    with built.federate() as federation:
        ready = runs.prepare(built, federation).experiment
        metric = args.metric or str(ready.tree["evaluate"].get("metric", "auroc"))
        about = {"split": args.split, "rounds": ready.rounds, "together": args.together}
        store = Store(folder / "contribution", about)
        game = _game(ready, federation, args, metric, store, say)
        found = method(game, ready)
        taking_part = _taking_part(game, args.taking_part)
        facts = {"metric": game.metric, "split": args.split, "is_replay": _is_replay(game, folder)}
        told = store.write([found], taking_part, facts)
    picture = store.picture(told)
    return told, _page(folder) or picture


def _experiment(folder: Path, allow: list[str]) -> Any:
    """Build the experiment of a run, its sites in this process unless they live on a cluster."""
    import yaml

    from fedray import config
    from fedray.config_build import build_experiment
    from fedray.rundir import RunDirectory

    text = RunDirectory.open(folder).config_yaml
    moved = ["runtime=in_process"] if yaml.safe_load(text)["runtime"]["kind"] == "ray" else []
    tree = config.to_plain(config.recompose(text, moved, allow))
    config.check(tree)
    return build_experiment(tree)


def _refuse(experiment: Any, method: str) -> None:
    """Raise ConfigError for runs in which nobody can be left out, or whose models gtg cannot put together."""
    name = experiment.tree["algorithm"]["_target_"].rpartition(".")[2]
    if name == "local_only":
        raise ConfigError("algorithm=local_only has no common model to add to. "
                          "Fix: fedray run algorithm=fedavg")  # fmt: skip
    if len(experiment.data) < 2:
        raise ConfigError("the run has one site (algorithm=pooled?): nobody can be left out. "
                          "Fix: fedray run algorithm=fedavg")  # fmt: skip
    if method == "gtg" and name not in ("fedavg", "fedprox"):
        raise ConfigError("--method gtg puts models together as FedAvg does, and the run's algorithm is "
                          f"{name}. Fix: --method tmc")  # fmt: skip


def _game(
    experiment: Any, federation: Any, args: argparse.Namespace, metric: str, store: Any,
    say: Callable[[str], None],
) -> Any:  # fmt: skip
    import fedray as fr
    from fedray import contribution
    from fedray.config_build import algorithm_for

    tree, training = experiment.tree, experiment.training
    settings = tree["evaluate"]
    utility = fr.algorithms.evaluation(
        training.model, split=args.split, per_site=bool(settings.get("per_site", True)),
        bins=settings.get("bins", 1000),
    )  # fmt: skip
    fit: dict[str, Any] = {"every": experiment.every, "ledger": experiment.ledger()}  # replays spend too
    if experiment.early_stop is not None:
        fit |= {"early_stop": experiment.early_stop, "evaluate": {"valid": training.evaluate["valid"]}}

    def tell(replay: Any) -> None:
        store.add(replay)
        names = ", ".join(replay.sites) or "no site"
        say(f"{replay.seconds:7.1f} s  {metric} {replay.value:.4f}  {names}")

    return contribution.game(
        lambda sites: algorithm_for(experiment, sites), federation, init=training.init,
        rounds=experiment.rounds, utility=utility, metric=metric, schedule=experiment.schedule,
        passes=experiment.passes, seed=experiment.seed, together=args.together, tell=tell,
        done=store.replays(), **fit,
    )  # fmt: skip


def _method(args: argparse.Namespace, num_sites: int) -> Callable[[Any, Any], Any]:
    """Return what values the sites: a function of the game and of the experiment."""
    from fedray import contribution
    from fedray.contribution.games import MOST_EXACT

    if args.permutations < 2 or args.tolerance < 0:
        raise ConfigError("--permutations is 2 or more and --tolerance 0 or more. Fix: leave them out")
    drawn = {"permutations": args.permutations, "seed": args.seed}
    name = args.method
    if name == "auto":
        name = "shapley" if num_sites <= MOST_EXACT else "tmc"
    if name == "shapley" and num_sites > MOST_EXACT:
        raise ConfigError(f"--method shapley: {num_sites} sites are 2^{num_sites} trainings. "
                          "Fix: --method tmc")  # fmt: skip
    if name == "gtg":
        return lambda game, experiment: contribution.gtg_shapley(
            game, within=args.tolerance, between=args.tolerance, **_averaging(experiment), **drawn
        )
    if name == "tmc":
        return lambda game, _: contribution.tmc_shapley(game, tolerance=args.tolerance, **drawn)
    return lambda game, _: getattr(contribution, name)(game)


def _averaging(experiment: Any) -> dict[str, Any]:
    """Return local training, server optimizer and weights of a run with FedAvg or FedProx."""
    from dataclasses import replace

    from fedray.config_targets import realise

    settings, allow = experiment.tree["algorithm"], tuple(experiment.tree["allow"])
    local = experiment.training.local
    if settings["_target_"].endswith(".fedprox"):
        local = replace(local, prox=settings["mu"])
    optimizer = realise("algorithm.optimizer", settings.get("optimizer"), allow)
    return {"local": local, "optimizer": optimizer, "weighted": settings.get("weighted", True)}


def _taking_part(game: Any, is_asked: bool) -> Any:
    """Return the value of taking part where it is asked for, or costs no training."""
    from fedray import contribution

    done = game.worth.done
    needed = [game.everybody, *(frozenset({site}) for site in game.players)]
    if is_asked or all(each in done and done[each].per_site for each in needed):
        return contribution.value_of_taking_part(game)
    return None


def _is_replay(game: Any, folder: Path) -> bool | None:
    """Tell whether the replay of all sites has the run's own bits; None where it was not replayed."""
    result, whole = folder / "result.json", game.worth.done.get(game.everybody)
    if whole is None or not result.exists():
        return None
    return bool(json.loads(result.read_text()).get("params_sha256") == whole.params_sha256)


def _page(folder: Path) -> Path | None:
    """Write the run's page again where there is one."""
    from fedray.report import page

    has_page = (folder / "report.html").exists() and page.is_available()
    return page.write(folder) if has_page else None


def _table(told: Mapping[str, Any]) -> list[str]:
    """Return the lines that a person reads."""
    methods = told["methods"]
    width = max(len(site) for site in (*methods[0]["values"], "all - none", "trainings"))
    lines = [f"{'':{width}}  " + "  ".join(f"{each['method']:>18}" for each in methods)]
    for site in methods[0]["values"]:
        shown = [_shown(each["values"][site], each["errors"].get(site)) for each in methods]
        lines.append(f"{site:{width}}  " + "  ".join(f"{text:>18}" for text in shown))
    totals = [_shown(each["whole"] - each["empty"], None) for each in methods]
    trained = [str(each["trainings"]) for each in methods]
    for name, row in (("all - none", totals), ("trainings", trained)):
        lines.append(f"{name:{width}}  " + "  ".join(f"{text:>18}" for text in row))
    lines.append(f"added to {told['metric']} on the {told['split']} rows of all sites")
    if told["is_replay"] is False:
        lines.append("the replay of all sites has other bits than the run: another version or processor, or "
                     "--together")  # fmt: skip
    part = told["taking_part"]
    if part:
        gains = ", ".join(f"{site} {_shown(gain, None)}" for site, gain in part["gains"].items())
        lines.append(f"taking part, {part['metric']} on own rows, common model - own model: {gains}")
    return lines


def _shown(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.4f}" if error is None else f"{value:+.4f} ± {error:.4f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _quiet(text: str) -> None:
    """Say nothing, where JSON alone is asked for."""
