"""From overrides to a configuration that can run: compose (Hydra), then `check`, then `build`.

    from fedray.config import build, check, compose
    config = compose("experiment=icu_mortality", "runtime=in_process", "rounds=5")
    check(config)
    experiment = build(config)

Only this file, the command line and the sweeps know Hydra and OmegaConf; the rest of the library takes plain
arguments. Nothing here imports torch or ray: `check` reads, `build` is what loads them.
"""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedray import config_check, config_explain, config_help
from fedray.config_help import shorten
from fedray.config_schema import SCHEMAS, Config
from fedray.errors import ConfigError

TRUTHS = ("y", "n", "yes", "no", "true", "false", "on", "off")  # in any case, of YAML 1.1
BROKEN = (HydraException, OmegaConfBaseException, ValueError)


@dataclass(frozen=True, slots=True)
class Composed:
    """A configuration, the run directory that it asks for, and the overrides that made it."""

    config: DictConfig
    run_dir: Path
    overrides: tuple[str, ...]


def conf_folder() -> Path:
    """Return the folder of the YAML files: inside the installed package, or beside it in a checkout."""
    spec = importlib.util.find_spec("fedray.conf")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(__file__).resolve().parent.parent / "conf"


def config_hash(config: DictConfig) -> str:
    """Return the SHA-256 of the resolved configuration without Hydra's own part."""
    keys = [str(key) for key in config if key != "hydra"]
    return plain_hash(to_plain(OmegaConf.masked_copy(config, keys)))


def plain_hash(tree: Mapping[str, Any]) -> str:
    """Return the hash of a configuration given as plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def register() -> None:
    """Hand the schemas and the `hash6` resolver to Hydra, once: each schema takes it ten milliseconds."""
    store = ConfigStore.instance()
    if "_schema" in store.repo:
        return
    store.store(group="_schema", name="config", node=Config, package="_global_")
    for group, options in SCHEMAS.items():
        for name, schema in options.items():
            store.store(group=f"{group}/_schema", name=name, node=schema, package=group)
    OmegaConf.register_new_resolver("hash6", lambda *, _root_: config_hash(_root_)[:6], replace=True)


@contextlib.contextmanager
def _hydra(config_dir: str | None) -> Iterator[list[str]]:
    """Open Hydra on the shipped files, yield the overrides that add search paths, put back what was there."""
    register()
    extra = [Path(config_dir)] if config_dir is not None else []
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir} is not a folder. "
                          "Fix: name a folder that holds groups as sub-folders, such as experiment/")
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(conf_folder()), job_name="fedray", version_base="1.3"):
            paths = ",".join(f"'file://{path.resolve()}'" for path in extra)
            yield [f"hydra.searchpath=[{paths}]"] if extra else []
    finally:
        GlobalHydra.instance().hydra = outer


def compose(*overrides: str, config_dir: str | None = None, allow: Sequence[str] = ()) -> DictConfig:
    """Return the resolved configuration for these overrides, with typed groups.

    Raises ConfigError with every override that is wrong, each with its fix.
    """
    return compose_run(overrides, config_dir, allow).config


def compose_run(overrides: Sequence[str], config_dir: str | None = None,
                allow: Sequence[str] = ()) -> Composed:
    """Compose and also return the run directory; see `compose`. `allow` is added to what the files allow."""
    with _hydra(config_dir) as paths:
        try:
            return _compose([*paths, *overrides], overrides, allow)
        except BROKEN as error:
            options = group_options(config_dir)
            raise ConfigError(_findings(overrides, paths, options, error, allow)) from None


def _compose(lines: Sequence[str], overrides: Sequence[str], allow: Sequence[str] = ()) -> Composed:
    config = hydra_compose("config", overrides=list(lines), return_hydra_config=True)
    config.allow = sorted({*config.allow, *allow})
    run_dir = Path(config.hydra.run.dir)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    OmegaConf.resolve(config)
    return Composed(config, run_dir, tuple(overrides))


def _findings(overrides: Sequence[str], paths: Sequence[str], options: Mapping[str, Sequence[str]],
              error: Exception, allow: Sequence[str] = ()) -> list[str]:
    """Say for each override on its own whether and why it is wrong, then check the rest."""
    parser = OverridesParser.create()
    problems: list[str] = []
    chosen: list[str] = []
    values: dict[str, str] = {}  # override -> the key that it sets
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as wrong:
            problems.append(config_help.unreadable(text, str(wrong)))
            continue
        if override.key_or_group in options:
            wrong_choice = config_help.unknown_option(text, override.key_or_group, override.value(), options)
            (problems.append(wrong_choice) if wrong_choice else chosen.append(text))
        else:
            values[text] = override.key_or_group
    good = [*paths, *chosen]
    try:
        base = to_plain(_compose(good, good).config)
    except BROKEN as wrong:
        return problems or [config_help.clash(str(wrong))]
    accepted = []
    for text, key in values.items():
        try:
            _compose([*good, text], good)
            accepted.append(text)
        except BROKEN as wrong:
            problems.append(config_help.refused_value(text, key, wrong.__cause__ or wrong, base, options))
    if not problems:
        return [shorten(str(error.__cause__ or error))]
    return problems + _checked_rest([*good, *accepted], allow)


def _checked_rest(lines: Sequence[str], allow: Sequence[str]) -> list[str]:
    try:
        return config_check.problems(to_plain(_compose(lines, lines, allow).config))
    except BROKEN:
        return []  # the overrides that compose one by one clash with each other; the first list says enough


# what cannot change a bit of what is computed
RESUMABLE = ("rounds", "runtime", "tracker", "report", "metrics")


def recompose(saved: str, overrides: Sequence[str], allow: Sequence[str] = ()) -> DictConfig:
    """Return an earlier run's configuration (YAML text) with what may change on resuming.

    What the file allows is dropped: `allow` and one's own defaults hold. Raises ConfigError on others.
    """
    before = OmegaConf.create(saved)
    assert isinstance(before, DictConfig)
    keys = {text: text.lstrip("+~").split("=")[0] for text in overrides}
    fixed = {text: key.split(".")[0] for text, key in keys.items() if key.split(".")[0] not in RESUMABLE}
    problems = [f"{text}: a resumed run keeps its {part}; only {', '.join(RESUMABLE)} may change. "
                f"Fix: fedray run {text}" for text, part in fixed.items()]
    if problems:
        raise ConfigError(problems)
    kept = {group: _option_of(group, before[group]) for group in RESUMABLE
            if group in SCHEMAS and group not in keys.values()}
    options = [f"{group}={option}" for group, option in kept.items() if option is not None]
    after = compose("experiment=none", *options, *overrides, allow=allow)
    for key in sorted(keys.values(), key=lambda key: key.count(".")):  # groups before single values
        OmegaConf.update(before, key, OmegaConf.select(after, key), merge=False)
    before.allow = after.allow
    return before


def _option_of(group: str, settings: Any) -> str | None:
    """Return the shipped option of a group with just these settings."""
    return next((name for name, schema in SCHEMAS[group].items()
                 if {item.name for item in fields(schema)} == set(settings or {})), None)


def explain(key: str, overrides: Sequence[str] = (),
            config_dir: str | None = None) -> config_explain.Explanation:
    """Return the value of a setting, where it was set and what it means.

    Raises ConfigError on an unknown key.
    """
    tree = to_plain(compose_run(overrides, config_dir).config)
    with _hydra(config_dir) as paths:
        return config_explain.explain(key, tree, overrides, _sources([*paths, *overrides]))


def _sources(lines: Sequence[str]) -> list[config_explain.Source]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    loader = hydra.config_loader
    parts = loader.compute_defaults_list("config", list(lines), RunMode.RUN).defaults
    folders = [conf_folder(), *(Path(source.path.removeprefix("file://")) for source in loader.get_sources()
                                if source.path.startswith("file://"))]
    return [config_explain.Source(str(part.config_path), part.package or "",
                                  next(filter(Path.is_file, (folder / f"{part.config_path}.yaml"
                                                             for folder in folders)), None))
            for part in parts if not str(part.config_path).startswith("hydra")]


def group_options(config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the options of every group: the files in the shipped folder and in one's own."""
    found: dict[str, set[str]] = {}
    for folder in (conf_folder(), *([Path(config_dir)] if config_dir is not None else [])):
        for path in folder.glob("*/*.yaml"):
            if path.parent.name not in ("user", "sweep"):
                found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dicts of plain values."""
    if not isinstance(config, DictConfig):
        return dict(config)
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def plain_yaml(tree: Mapping[str, Any]) -> str:
    """Return the YAML text of a configuration given as plain values."""
    text: str = yaml.dump(tree, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper)
    return text


class _Dumper(yaml.CSafeDumper):
    """Write what OmegaConf reads back as equal: it takes more texts for numbers than YAML does."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a list that occurs twice twice."""
        return True


def _text(dumper: yaml.CSafeDumper, text: str) -> yaml.ScalarNode:
    is_quoted = text.lower() in TRUTHS or _is_number(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if is_quoted else None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _text)


def check(config: Any) -> None:
    """Raise ConfigError with everything that cannot run, each with the override that fixes it."""
    found = config_check.problems(to_plain(config))
    if found:
        raise ConfigError(found)


def build(config: Any, keep: Any = None) -> Any:
    """Return the `Experiment` that a configuration describes; this is what loads torch.

    `keep(settings, make)` may answer with a data set that is open already: see `fedray.sweep.kept`.
    """
    from fedray.config_build import build_experiment
    return build_experiment(to_plain(config), keep)
