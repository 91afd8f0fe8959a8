"""The site map of a cluster's operator: on which nodes the sites are, in which region, and what they take.

    map = SiteMap.read("cluster/site-map.yaml")
    map.sites["h001"].place, map.regions["eu-west"].place

The map holds no data and no secret. Paths of data are paths on the site's own node. The format is explained
in `cluster/site-map.yaml`; here every key is checked, and what is wrong is said all at once.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedray.errors import ConfigError
from fedray.runtime.place import GIB, Labels, Place, label_problem
from fedray.settings import is_number

SITE_LABEL, REGION_LABEL, ROLE_LABEL = "fedray.site", "fedray.region", "fedray.role"
AGGREGATOR = "aggregator"  # the value of the role
_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_MEMORY = re.compile(r"(?P<amount>\d+(?:\.\d+)?) ?(?P<unit>[A-Za-z]+)")
_TOP = ("aggregator", "regions", "defaults", "sites")
_RESOURCES = ("num_cpus", "memory", "num_gpus")
_OF_A_SITE = ("region", "labels", "data", *_RESOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site: its node, its region ("" where it has none), and the folder or file of its data there."""

    id: str
    place: Place
    region: str = ""
    data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region: where its aggregator runs."""

    name: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMap:
    """Sites and regions by name; `aggregator` is where the aggregator runs, None on the node that is labelled
    so or, without one, the head.
    """

    sites: Mapping[str, Site]
    regions: Mapping[str, Region]
    aggregator: Place | None = None
    file: str = "site map"

    @staticmethod
    def read(path: str | Path) -> "SiteMap":
        """Return the map in a file. Raises ConfigError with all that is wrong: file, key and fix."""
        file = str(path)
        try:
            content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
        except FileNotFoundError:
            raise ConfigError(f"{file}: there is no such file. Fix: copy cluster/site-map.yaml and name your "
                              "sites in it") from None
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{file} cannot be read ({type(error).__name__}). Fix: give the path of a "
                              "site map that you may read") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            said = getattr(error, "problem", None) or type(error).__name__
            raise ConfigError(f"{file}{line}: this is not YAML ({said}). Fix: mend the line") from None
        return SiteMap.of(content, file)

    @staticmethod
    def of(content: Any, file: str = "site map") -> "SiteMap":
        """Return the map of plain values. Raises ConfigError as `read` does."""
        problems = list(_problems(content))
        if problems:
            raise ConfigError([f"{file}: {problem}" for problem in problems])
        defaults = content.get("defaults") or {}
        regions = {
            str(name): Region(name=str(name), place=Place(labels=_labels(
                (told or {}).get("aggregator") or {REGION_LABEL: name}), **_resources(told or {})))
            for name, told in (content.get("regions") or {}).items()
        }
        sites = {str(name): _site(str(name), {**defaults, **(told or {})})
                 for name, told in content["sites"].items()}
        told = content.get("aggregator")
        aggregator = Place(labels=_labels(told)) if told else None
        return SiteMap(sites=sites, regions=regions, aggregator=aggregator, file=file)


class _Loader(yaml.SafeLoader):
    """Refuse a key that is given twice, which YAML lets the later one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is text, and no list or mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _site(name: str, told: Mapping[str, Any]) -> Site:
    labels = _labels(told.get("labels") or {SITE_LABEL: name})
    return Site(id=name, place=Place(labels=labels, **_resources(told)), region=str(told.get("region") or ""),
                data=told.get("data"))


def _labels(told: Mapping[Any, Any]) -> Labels:
    return tuple(sorted((str(key), str(value)) for key, value in told.items()))


def _resources(told: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: told[key] for key in _RESOURCES if told.get(key) is not None}
    if "memory" in found:
        found["memory"] = _bytes(found["memory"])
    return found


def _bytes(told: Any) -> int | None:
    """Return a number of bytes; None where it is none."""
    if isinstance(told, int) and not isinstance(told, bool) and told >= 0:
        return told
    found = _MEMORY.fullmatch(told.strip()) if isinstance(told, str) else None
    if found is None or found["unit"].upper() not in _UNITS:
        return None
    return int(float(found["amount"]) * _UNITS[found["unit"].upper()])


def _problems(content: Any) -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield "a mapping with the key 'sites' is expected. Fix: see cluster/site-map.yaml"
        return
    yield from _unknown("", content, _TOP)
    for key in ("regions", "defaults", "sites"):
        if not isinstance(content.get(key) or {}, Mapping):
            yield f"{key}: a mapping is expected. Fix: see cluster/site-map.yaml"
            return
    if not content.get("sites"):
        yield "sites: no site is named. Fix: name each site, such as 'h001: {region: eu-west}'"
    yield from _selector("aggregator", content.get("aggregator"))
    for name, told in (content.get("regions") or {}).items():
        yield from _section(f"regions.{name}", told, ("aggregator", *_RESOURCES))
        yield from _is_name(f"regions.{name}", name)
        if isinstance(told, Mapping):
            yield from _selector(f"regions.{name}.aggregator", told.get("aggregator"))
    yield from _section("defaults", content.get("defaults"), (*_RESOURCES, "region", "labels"))
    known = [str(name) for name in content.get("regions") or {}]
    if isinstance(defaults := content.get("defaults"), Mapping):
        yield from _site_problems("defaults", defaults, known)
    for name, told in (content.get("sites") or {}).items():
        yield from _section(f"sites.{name}", told, _OF_A_SITE)
        yield from _is_name(f"sites.{name}", name)
        if isinstance(told, Mapping):
            yield from _site_problems(f"sites.{name}", told, known)


def _site_problems(at: str, told: Mapping[Any, Any], regions: Sequence[str]) -> Iterator[str]:
    yield from _selector(f"{at}.labels", told.get("labels"))
    region, data = told.get("region"), told.get("data")
    if region is not None and not str(region).strip():
        yield f"{at}.region={region!r} names no region. Fix: leave it out, or name one of " \
              f"{', '.join(regions) or 'those under regions'}"
    elif region is not None and str(region) not in regions:
        yield f"{at}.region={region}: this region is not declared.{_near(str(region), regions)} " \
              f"Fix: add '{region}: {{}}' under regions, or name one of {', '.join(regions) or 'them there'}"
    if data is not None and not (isinstance(data, str) and data.startswith("/")):
        yield f"{at}.data={data!r} is not an absolute path on the site's node. Fix: data: /srv/fedray/data"


def _section(at: str, told: Any, keys: Sequence[str]) -> Iterator[str]:
    if told is None:
        return
    if not isinstance(told, Mapping):
        yield f"{at}: a mapping is expected, such as {{{keys[0]}: ...}}. Fix: {at}: {{}}"
        return
    yield from _unknown(at, told, keys)
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "num_cpus": (lambda value: is_number(value) and value >= 0, "a number, 0 or more. Fix: num_cpus: 1"),
        "num_gpus": (lambda value: is_number(value) and value >= 0, "a number, 0 or more. Fix: num_gpus: 1"),
        "memory": (lambda value: _bytes(value) is not None, "bytes, or text as '4 GiB'. Fix: memory: 4 GiB"),
    }
    for key, (is_fine, must) in checks.items():
        if told.get(key) is not None and not is_fine(told[key]):
            yield f"{at}.{key}={told[key]!r} is not {must}"


def _unknown(at: str, told: Mapping[Any, Any], keys: Sequence[str]) -> Iterator[str]:
    for key in told:
        if key not in keys:
            place = f"{at}.{key}" if at else str(key)
            yield f"{place}: there is no such key.{_near(str(key), keys)} Fix: one of {', '.join(keys)}"


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {close[0]}?" if close else ""


def _is_name(at: str, name: Any) -> Iterator[str]:
    """Names of sites and regions become parts of the names of hosts and files."""
    if not isinstance(name, str):
        yield f"{at}: this name is read as {type(name).__name__}. Fix: put it into quotes"
    elif not name.strip():
        yield f"{at}: {name!r} is no name. Fix: one of letters and digits, such as h001"
    elif not re.fullmatch(r"[\w -]+", name):
        yield f"{at}: a name is made of letters, digits, '-', '_' and blanks. Fix: rename it"


def _selector(at: str, told: Any) -> Iterator[str]:
    if told is None:
        return
    if not isinstance(told, Mapping) or not told:
        yield f"{at}: labels are a mapping, such as {{{SITE_LABEL}: h001}}. Fix: give key and value"
        return
    for key, value in told.items():
        if not isinstance(value, str):
            yield f"{at}.{key}={value!r} is no text, which the value of a label is. Fix: put it into quotes"
        elif wrong := label_problem(str(key), str(value)):
            yield f"{at}: {wrong}. Fix: give it as `ray start --labels` does"
