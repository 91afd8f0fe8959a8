"""Data sets: what a site holds, and where it comes from. Start reading at `site.py`, then `contract.py`.

A `Dataset` maps site names to functions that open a `SiteData` where the site lives. Sources: `synthetic_icu`
(needs no file), `eicu_mortality`, `heart_disease`, `digits`, `assays`, any table by `csv`, `from_frames` and
`from_datasets`, tables that only the sites' own machines hold by `at_sites`, a built folder by `read_dataset`, very many
sites in memory-mapped files by `read_shards`, one table dealt to simulated sites by `partition`. Sites that
hold other columns of the same records: `parties`, `by_columns` (simulated), and `link`.
`prepare` scales inputs over all sites. Names are resolved on first use, so that importing this package loads
neither torch nor pandas.
"""

import importlib
from typing import Any

_HOMES = {
    "fedray.data.site": ("SiteData", "Dataset"),
    "fedray.data.contract": ("Contract", "Column"),
    "fedray.data.folder": ("read_dataset",),
    "fedray.data.shard_files": ("read_shards",),
    "fedray.data.shard_writer": ("write_shards", "made_up_sites"),
    "fedray.data.tables": ("csv", "from_frames", "from_datasets"),
    "fedray.data.own_folders": ("at_sites",),
    "fedray.data.partition": ("iid", "dirichlet", "quantity", "shards", "feature_shift", "natural"),
    "fedray.data.prepare": ("Clip", "Preparation", "fit_preparation", "contract_of"),
    "fedray.data.synthetic": ("synthetic_icu",),
    "fedray.data.eicu": ("eicu_mortality", "eicu_first_use"),
    "fedray.data.linkage": ("link", "parties", "Linkage"),
    "fedray.data.columns": ("by_columns",),
    "fedray.data.pooling": ("pooled",),
    "fedray.data.unlabelled": ("few_labels", "public_rows"),
    "fedray.data.scaling": ("standardise", "standardising"),
    "fedray.data.heart": ("heart_disease", "heart_disease_first_use"),
    "fedray.data.digit_images": ("digits",),
    "fedray.data.assays": ("assays",),
}
_MODULES = ("contract", "partition", "prepare", "folder")
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fedray.data.{name}")
    else:
        raise AttributeError(f"module 'fedray.data' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
