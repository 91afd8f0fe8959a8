"""Say what is wrong with an override and how to write it, with the nearest spelling that exists."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fedray.config_schema import SCHEMAS
from fedray.settings import nearest


def shorten(text: str) -> str:
    """Return a message of Hydra as one line without its links and search paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("See http", "provider=", "Config search path", "full_key")
    kept = [line for line in lines if not line.startswith(noise)]
    return "; ".join(kept)


def clash(text: str) -> str:
    """Say which preset and which chosen option do not fit, where that is why nothing composes."""
    form = r"In '(?P<preset>[^']+)'.*Key '(?P<key>[^']+)' not in '(?P<schema>\w+)'"
    found = re.search(form, text, re.DOTALL)
    places = {schema.__name__: (group, f"{group}={option}") for group, options in SCHEMAS.items()
              for option, schema in options.items()}
    if found is None or found["schema"] not in places:
        return shorten(text)
    group, choice = places[found["schema"]]
    preset = found["preset"].replace("/", "=")
    return (f"{preset} sets {group}.{found['key']}, which {choice} does not have: the two do not fit. "
            f"Fix: leave {choice} out, or take experiment=none and set what you need")


def keys_of(tree: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield every dotted key of a plain config."""
    for key, value in tree.items():
        place = f"{at}.{key}" if at else str(key)
        yield place
        if isinstance(value, Mapping):
            yield from keys_of(value, place)


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None."""
    found: Any = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def unreadable(text: str, why: str) -> str:
    """Describe an override that does not parse."""
    if "=" not in text:
        return f"{text!r} is not an override. Fix: write key=value, as in rounds=20 or experiment=debug"
    return f"{text!r} cannot be read: {shorten(why)}. Fix: quote it, as in '{text.split('=')[0]}=\"text\"'"


def unknown_option(text: str, group: str, option: Any, options: Mapping[str, Sequence[str]]) -> str | None:
    """Describe a choice that its group does not have; None where it has it."""
    if isinstance(option, str) and option in options[group]:
        return None
    if option is None:
        fix = "none" if "none" in options[group] else options[group][0]
        return f"{text}: null is no option of {group}. Fix: {group}={fix}"
    close = nearest(str(option), options[group])
    guess = f"Did you mean {close}? Fix: {group}={close}" if close else f"Fix: {group}={options[group][0]}"
    return f"{text}: {group} has no option {str(option)!r}, only {', '.join(options[group])}. {guess}"


def refused_value(text: str, key: str, cause: BaseException, tree: Mapping[str, Any],
                  options: Mapping[str, Sequence[str]]) -> str:
    """Describe an override whose key is unknown or whose value has the wrong type."""
    known = list(keys_of(tree))
    if key not in known:
        return _unknown_key(text, key, known, options)
    current = lookup(tree, key)
    why = shorten(str(cause)).split(";")[0]
    allowed = _choices(str(cause))
    close = nearest(text.split("=", 1)[1], allowed) if allowed else None
    if close is not None:
        return f"{text}: {why}. Did you mean {close}? Fix: {key}={close}"
    return f"{text}: {why}. Fix: {key}={_literal(current)} (the value without this override)"


def _unknown_key(text: str, key: str, known: Sequence[str], options: Mapping[str, Sequence[str]]) -> str:
    value = text.split("=", 1)[1] if "=" in text else ""
    if key == "sweep":
        return f"{text}: a grid is run by another command. Fix: fedray sweep {text}"
    close = _nearest_key(key, known, options)
    owner, name = _owner(key)
    if owner and (name == key or close is None):
        guess = "has this setting" if name == key else f"has a setting {name}"
        return f"{text}: only {owner} {guess}. Fix: {owner} {name}={value}"
    if close:
        return f"{text}: there is no setting {key!r}. Did you mean {close}? Fix: {close}={value}"
    parent = key.rsplit(".", 1)[0]
    siblings = [name for name in known if name.rsplit(".", 1)[0] == parent]
    siblings = siblings or [name for name in known if "." not in name]
    return (f"{text}: there is no setting {key!r}, only {', '.join(siblings)}. "
            f"Fix: leave it out; `fedray run --cfg job` lists every setting")


def _nearest_key(key: str, known: Sequence[str], options: Mapping[str, Sequence[str]]) -> str | None:
    """Return the closest key: beside it, else with a like last part (same group first), else as a whole."""
    parent, _, name = key.rpartition(".")
    siblings = [item for item in [*known, *options] if item.rpartition(".")[0] == parent]
    beside = {item.rpartition(".")[2]: item for item in siblings}
    same_group_first = sorted(known, key=lambda item: item.split(".")[0] == key.split(".")[0])
    anywhere = {item.rpartition(".")[2]: item for item in same_group_first if "." in item}
    for names in (beside, anywhere):
        close = nearest(name, list(names))
        if close:
            return names[close]
    return None if parent in known else nearest(key, list(known))


def _owner(key: str) -> tuple[str | None, str]:
    """Return `group=option` of the first option whose schema has this key or a close one, and that key."""
    group, _, name = key.partition(".")
    schemas = SCHEMAS.get(group, {})
    has = {option: [item.name for item in fields(schema)] for option, schema in schemas.items()}
    for option, names in has.items():
        if name in names:
            return f"{group}={option}", key
    for option, names in has.items():
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        if close:
            return f"{group}={option}", f"{group}.{close[0]}"
    return None, key


def _choices(message: str) -> list[str]:
    _, found, rest = message.partition("expected one of [")
    return rest.split("]")[0].split(", ") if found else []


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
