"""FedBN: batch normalisation stays at the site.

Source: Li et al., FedBN: Federated learning on non-IID features via local batch normalization, ICLR 2021,
Algorithm 1: all layers but BatchNorm are averaged, uniformly. The site keeps scale, shift, running mean and
running variance of every BatchNorm layer. The counter of batches never travels and is never averaged: each
local training starts a fresh one, which matters only to layers with momentum=None. Deviation: the server
averages deltas, over the sites of the cohort.
"""

from collections.abc import Sequence
from typing import Any

import fedray as fr
from fedray.algorithms.fedper import partly_shared
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer


def fedbn(
    local: Any,
    personal: Sequence[str] | None = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = False,
) -> fr.Algorithm:
    """Average all parameters but the model's BatchNorm layers (or those named in `personal`)."""
    part = parts.part_of(personal, local, parts.batch_norms)
    return partly_shared(local, part, optimizer, weighted, "fedbn")
