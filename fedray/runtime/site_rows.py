"""What a site's data are, as far as a pack has to know: tables of rows, and rows that lie together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def is_table(data: Any) -> bool:
    """Tell whether a site's data are a plain mapping of columns: all of its rows are training rows."""
    columns = data.values() if isinstance(data, Mapping) and not hasattr(data, "splits") else ()
    return bool(columns) and all(isinstance(column, torch.Tensor) and column.dim() for column in columns)


def num_rows(data: Any) -> int:
    """Return the number of a site's training rows; of data of another kind, its length."""
    if hasattr(data, "splits"):
        return int(data.train.num_rows)
    return len(next(iter(data.values()))) if is_table(data) else len(data)


def together(opened: Sequence[Any]) -> None:
    """Let the sites' rows lie in one table, where their data can."""
    if opened and all(type(data) is type(opened[0]) and hasattr(data, "together") for data in opened):
        opened[0].together(opened)
