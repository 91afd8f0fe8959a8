"""Turn a `_target_` into an object, but only code of fedray or of a package that the user allowed.

The name alone decides nothing: `fedray.x.os.system` starts well and ends in another package. So the name is
looked at before anything is imported, and the object that it leads to is looked at again: its home module
must be allowed and must know it by its own name. Nothing outside the allowed packages is ever imported.
"""

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from fedray.errors import ConfigError

OWN = "fedray"


def find_targets(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, target) for every `_target_` in a plain config, also inside lists and `_args_`."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            place = f"{at}.{key}" if at else str(key)
            if key == "_target_":
                yield place, value
            else:
                yield from find_targets(value, place)
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for index, value in enumerate(tree):
            yield from find_targets(value, f"{at}[{index}]")


def is_under(name: str, prefixes: Sequence[str]) -> bool:
    """Tell whether a dotted name is a package or lies inside one; `fedrayevil` is not inside `fedray`."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def check_prefix(prefix: str) -> str | None:
    """Return what is wrong with an allowed package, or None."""
    if not isinstance(prefix, str) or not all(part.isidentifier() for part in prefix.split(".")):
        return f"allow={prefix!r} is not the name of a package. Fix: --allow mypackage"
    if prefix.split(".")[0] in sys.stdlib_module_names:
        return (f"allow={prefix!r} is part of Python itself and is never allowed. "
                "Fix: wrap what you need in a function of your own package and --allow that package")
    return None


def check_name(at: str, target: Any, allow: Sequence[str]) -> str | None:
    """Return what is wrong with a target's name, or None; imports nothing."""
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        return f"{at}={target!r} is not a dotted name. Fix: {at}=package.module.function"
    if is_under(target, (OWN, *allow)):
        return None
    head = target.split(".")[0]
    if head in sys.stdlib_module_names:
        fix = f"Fix: leave {at} out, or name a function of your own package and --allow that package"
    else:
        fix = f"Fix: fedray run --allow {head} {at}={target}"
    return f"{at}={target} is neither part of fedray nor of an allowed package. {fix}"


def locate(at: str, target: Any, allow: Sequence[str] = ()) -> Any:
    """Return the function or class that a target names.

    Raises ConfigError where it is missing, or its name or home is outside fedray and the allowed packages.
    """
    wrong = check_name(at, target, allow) or next(filter(None, map(check_prefix, allow)), None)
    if wrong:
        raise ConfigError(wrong)
    found = _resolve(at, target)
    home = _home(found)
    if home is None or not is_under(home, (OWN, *allow)):
        raise ConfigError(f"{at}={target} leads to {home or type(found).__name__!r}, outside fedray and the "
                          "allowed packages. "
                          f"Fix: name a function or class defined in {target.split('.')[0]} itself")
    return found


def _resolve(at: str, target: str) -> Any:
    parts = target.split(".")
    found: Any = _import(at, target, parts[0])
    for index, part in enumerate(parts[1:], start=1):
        if inspect.ismodule(found) and not hasattr(found, part):
            found = _import(at, target, ".".join(parts[:index + 1]))
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise ConfigError(f"{at}={target}: {'.'.join(parts[:index])} has no {part!r}. "
                              "Fix: check the spelling")
    # a package may name a function as its module is named: which of the two it shows depends on imports
    return getattr(found, parts[-1], found) if inspect.ismodule(found) else found


def _import(at: str, target: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not is_under(module, (error.name,)):
            raise ConfigError(f"{at}={target}: {module} needs the package {error.name!r}, which is not "
                              f"installed. Fix: pip install {error.name}") from error
        raise ConfigError(f"{at}={target}: there is no {module!r}, neither installed nor in the working "
                          "directory. Fix: check the spelling") from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{at}={target}: {module} cannot be imported: {error}. "
                          f"Fix: python -c 'import {module}'") from error


def _home(found: Any) -> str | None:
    """Return the module that defines a function or class and knows it by its own name, else None."""
    function = found.__func__ if isinstance(found, MethodType) else found
    if isinstance(found, MethodType) and not isinstance(found.__self__, type):
        return None
    if not isinstance(function, (FunctionType, type)):
        return getattr(function, "__module__", None) if callable(function) else None
    known: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        known = getattr(known, part, None)
    same = known is function or getattr(known, "__func__", None) is function
    return function.__module__ if same else None


def call(at: str, spec: Mapping[str, Any], allow: Sequence[str] = (), spare: Collection[str] = (),
         **known: Any) -> Any:
    """Call the factory that `spec` names with its settings and return what it makes.

    `known` are values of run time; each goes to the parameter of its name that settings leave null or out.
    `spare` names settings of the shipped options: code from elsewhere gets them only where it takes them.
    Raises ConfigError with what the factory said.
    """
    target = locate(f"{at}._target_", spec.get("_target_"), allow)
    parameters = inspect.signature(target).parameters
    takes_all = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    settings = {key: realise(f"{at}.{key}", value, allow) for key, value in spec.items() if key[0] != "_"}
    if not takes_all and not is_under(spec["_target_"], (OWN,)):
        settings = {key: value for key, value in settings.items() if key in parameters or key not in spare}
    settings |= {name: value for name, value in known.items()
                 if name in parameters and settings.get(name) is None}
    unknown = [key for key in settings if key not in parameters and not takes_all]
    if unknown:
        raise ConfigError([f"{at}.{key}: {spec['_target_']} takes no {key!r}, only {', '.join(parameters)}. "
                           f"Fix: ~{at}.{key}" for key in unknown])
    arguments = realise(f"{at}._args_", spec.get("_args_", ()), allow)
    if spec.get("_partial_"):
        return functools.partial(target, *arguments, **settings)
    try:
        inspect.signature(target).bind(*arguments, **settings)
        return target(*arguments, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{at}: {error}. Fix: see `fedray run --explain {at}`") from error
    except Exception as error:
        if is_under(spec["_target_"], (OWN,)):
            raise
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"{at}: {spec['_target_']} raised {type(error).__name__}: "
                          f"{error} ({Path(line.filename).name}:{line.lineno}). Fix: mend it, or its "
                          "settings") from error


def realise(at: str, value: Any, allow: Sequence[str] = ()) -> Any:
    """Return a setting with every nested `_target_` replaced by what it makes."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return call(at, value, allow)
        return {key: realise(f"{at}.{key}", item, allow) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [realise(f"{at}[{index}]", item, allow) for index, item in enumerate(value)]
    return value
