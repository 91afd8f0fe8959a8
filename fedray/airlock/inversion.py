"""Rows read off an update without any optimisation: the ratio of weight and bias of a layer that sees rows.

The gradient of output o of a linear layer is sum_b g_bo x_b in its weights and sum_b g_bo in its bias, so
their ratio is a weighted mean of rows, and a row itself where one row alone has moved that output.
Source: Aono et al., Privacy-preserving deep learning via additively homomorphic encryption, TIFS 2018,
section 3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

TINY = 1e-12  # a bias that has not moved, in units of the largest that has


def ratios(delta: Mapping[str, Tensor], width: int) -> Tensor:
    """Return the candidates for rows of this width, (candidates, width), of all layers that may see rows."""
    found = []
    for name in delta:
        if name.rpartition(".")[2] != "weight" or delta[name].dim() != 2 or delta[name].shape[1] != width:
            continue
        bias = name.removesuffix("weight") + "bias"
        if bias not in delta:
            continue
        below = delta[bias].double()
        is_moved = below.abs() > TINY * below.abs().max()
        found.append(delta[name].double()[is_moved] / below[is_moved, None])
    return torch.cat(found) if found else torch.zeros(0, width, dtype=torch.float64)


def relative_errors(candidates: Tensor, rows: Tensor) -> Tensor:
    """Return, for each row, how far the nearest candidate is from it, in units of its norm: (rows,)."""
    rows = rows.flatten(1).double().nan_to_num()
    if not len(candidates):
        return torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    found: Tensor = torch.cdist(rows, candidates).amin(1) / rows.norm(dim=1).clamp_min(1e-300)
    return found


def rebuilt_rows(delta: Mapping[str, Tensor], rows: Tensor, tolerance: float = 0.1) -> Tensor | None:
    """Tell of each row whether a candidate lies within `tolerance` of it; None where no layer sees rows."""
    width = rows[:1].numel() if len(rows) else 0
    layers = [name for name in delta if delta[name].dim() == 2 and delta[name].shape[1] == width]
    if not layers or not rows.is_floating_point():
        return None
    return relative_errors(ratios(delta, width), rows) <= tolerance
