"""One data load for all trials: a data set stays open until a trial asks for another.

Trials in one process read the very tensors that the first one opened. Trials whose sites are Ray actors read
from keeper actors, which live as long as the sweep; a cluster's sites stay on the nodes that hold them.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.config_build import OF_THE_RUN
from fedray.data.site import Dataset, Open, SiteData
from fedray.runtime.learnt import Learnt
from fedray.runtime.ray_transport import start_ray

MAX_KEEPERS = 4  # processes that open sites side by side; each costs the import of torch once a sweep


def data_key(tree: Mapping[str, Any]) -> str:
    """Return what the data of a configuration depends on, as text: equal keys, equal data."""
    settings = {key: value for key, value in tree["data"].items() if key not in OF_THE_RUN}
    return json.dumps([settings, list(tree["allow"]), bool(tree["algorithm"].get("pooled"))], sort_keys=True)


class Kept:
    """The data set that was opened last. Close it to end the keepers that it started."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._data: Dataset | None = None
        self._keepers: list[Any] = []
        self._transform: Once | None = None
        self._found: dict[Any, Any] = {}
        self.learnt = Learnt()  # of plans, by the trials before
        self._lock = threading.Lock()

    def __call__(self, tree: Mapping[str, Any], make: Callable[[], Dataset]) -> Dataset:
        """Return the data of a configuration, made only where the last one was another."""
        with self._lock:
            return self._opened(tree, make)

    def _opened(self, tree: Mapping[str, Any], make: Callable[[], Dataset]) -> Dataset:
        kind = tree["runtime"]["kind"]
        key = (kind, data_key(tree))
        if self._data is None or key != self._key:
            self.close()
            data = make()
            if kind == "ray":
                start_ray("local", tree["runtime"].get("num_cpus"))
                self._keepers = start_keepers(data)
                data = from_keepers(data, self._keepers)
            elif kind == "in_process":
                data = replace(data, sites={site: KeptSite(opener) for site, opener in data.sites.items()})
            self._key, self._data = key, data
        return self._data

    def shared(self, transform: Any) -> Any:
        """Return a transform that is computed once for each site, where trials in this process ask for equal
        ones.
        """
        if self._key is None or self._key[0] != "in_process":
            return transform
        with self._lock:
            if self._transform is None or self._transform.transform != transform:
                self._transform = Once(transform)
            return self._transform

    def once(self, question: Any, ask: Callable[[], Any]) -> Any:
        """Return what the open data answer to a question, asked the first time only.

        A cluster's sites are not opened here, and their data may change: they are asked every time.
        """
        if self._key is None or self._key[0] not in ("in_process", "ray"):
            return ask()
        if question not in self._found:
            self._found[question] = ask()
        return self._found[question]

    def close(self) -> None:
        """Forget the data and what was found in them, and end the keepers."""
        end_keepers(self._keepers)
        self._found, self.learnt = {}, Learnt()
        self._keepers, self._data, self._transform = [], None, None


class Once:
    """Transform a site's data the first time, and answer with the same data from then on."""

    def __init__(self, transform: Callable[[SiteData], SiteData]) -> None:
        self.transform = transform
        self._made: dict[int, tuple[SiteData, SiteData]] = {}
        self._lock = threading.Lock()

    def __call__(self, data: SiteData) -> SiteData:
        """Return the transformed data."""
        with self._lock:
            if id(data) not in self._made:
                self._made[id(data)] = (data, self.transform(data))  # which keeps the data, and so its id
            return self._made[id(data)][1]


class KeptSite:
    """Open a site the first time, and answer with the same data from then on; pickled, it is not open."""

    def __init__(self, opener: Open) -> None:
        self._opener = opener
        self._data: SiteData | None = None
        self._lock = threading.Lock()  # trials that train together must see the same object

    def __call__(self) -> SiteData:
        """Return the site's data."""
        with self._lock:
            if self._data is None:
                self._data = self._opener()
        return self._data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._opener, name)  # a contract, and whatever else an opener tells without opening

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptSite, (self._opener,)


class Keeper:
    """An actor that opens its sites once, for all trials."""

    def __init__(self, openers: Mapping[str, Open]) -> None:
        self._sites = {site: KeptSite(opener) for site, opener in openers.items()}

    def open(self, site: str) -> SiteData:
        """Return a site's data."""
        return self._sites[site]()


@dataclass(frozen=True)
class StoredSite:
    """Fetch a site from its keeper; where that is gone, open the site here."""

    opener: Open
    site: str
    keeper: Any

    def __call__(self) -> SiteData:
        """Return the site's data."""
        try:
            data: SiteData = ray.get(self.keeper.open.remote(self.site))
        except ray_errors.RayTaskError as error:
            raise error.cause from None  # a DataError, as if it had been opened here
        except ray_errors.RayError:
            return self.opener()
        return data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.opener, name)


def start_keepers(data: Dataset) -> list[Any]:
    """Start actors that hold the sites of a data set between them."""
    count = min(MAX_KEEPERS, os.cpu_count() or 1, len(data))
    names = list(data)
    start = ray.remote(Keeper).options(num_cpus=0.001).remote  # as packs: a trace, so that Ray spreads them
    return [start({site: data[site] for site in names[place::count]}) for place in range(count)]


def from_keepers(data: Dataset, keepers: list[Any]) -> Dataset:
    """Return a data set whose sites are fetched from keepers that `start_keepers` made of it."""
    return replace(data, sites={site: StoredSite(opener, site, keepers[place % len(keepers)])
                                for place, (site, opener) in enumerate(data.sites.items())})


def end_keepers(keepers: list[Any]) -> None:
    """End keeper actors; those of a Ray that is gone are gone with it."""
    if ray.is_initialized():
        for keeper in keepers:
            ray.kill(keeper)
