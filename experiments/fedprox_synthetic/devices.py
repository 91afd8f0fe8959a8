"""FedProx's synthetic(alpha, beta): devices whose labels and inputs are drawn each in its own way.

Source: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, section 5.1, and its code: of
alpha and beta the code takes the standard deviation where the paper says variance; so does this file.
"""

from dataclasses import dataclass

import numpy as np
import torch

import fedray as fr
from fedray.data.site import SiteData

NUM_DEVICES, NUM_INPUTS, NUM_CLASSES = 30, 60, 10


@dataclass(frozen=True)
class Devices:
    """Training rows of each device, and all test rows by device."""

    train: dict[str, SiteData]
    test: dict[str, SiteData]


def synthetic(
    alpha: float, beta: float, num_devices: int, seed: int, sigma: float = 2.0, share_alike: float = 0.0
) -> Devices:
    """Return devices with a 90/10 split of their rows.

    `sigma` spreads their sizes; a first share of the devices is alike: one model, inputs around zero.
    """
    draws = np.random.RandomState(seed)  # the recipe's generator, asked in the recipe's order
    sizes = draws.lognormal(4, sigma, num_devices).astype(int) + 50
    u, centres = draws.normal(0, alpha, num_devices), draws.normal(0, beta, num_devices)
    covariance = np.diag(np.arange(1, NUM_INPUTS + 1) ** -1.2)
    means = [draws.normal(centre, 1, NUM_INPUTS) for centre in centres]
    apart = np.random.RandomState(seed + 1)  # so that the plain recipe's draws stay as they are
    common = apart.normal(0, 1, (NUM_INPUTS, NUM_CLASSES)), apart.normal(0, 1, NUM_CLASSES)
    train, test = {}, {}
    for number, size in enumerate(sizes.tolist()):
        weight = draws.normal(u[number], 1, (NUM_INPUTS, NUM_CLASSES))
        bias = draws.normal(u[number], 1, NUM_CLASSES)
        is_alike = number < share_alike * num_devices
        if is_alike:
            weight, bias = common
        x = draws.multivariate_normal(0 * means[number] if is_alike else means[number], covariance, size)
        y = (x @ weight + bias).argmax(1)
        cut = int(0.9 * size)
        for table, part in ((train, slice(0, cut)), (test, slice(cut, size))):
            rows = {"x": torch.from_numpy(x[part]).float(), "y": torch.from_numpy(y[part])}
            table[f"d{number:03d}"] = SiteData(rows)
    return Devices(train, test)


def model() -> fr.learn.Model:
    """Return multinomial logistic regression that starts at zero."""
    return fr.learn.logistic(NUM_INPUTS, num_classes=NUM_CLASSES)
