"""Own data and an own model for the tests of sweeps: data that counts its openings, a model that can fail."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

import fedray as fr
from fedray.data.site import Dataset, SiteData


@dataclass(frozen=True)
class Counted:
    """Open a hospital and note in a file which process did."""

    opener: object
    site: str
    log: str

    def __call__(self) -> SiteData:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {self.site}\n")
        return self.opener()


def hospitals(log: str, seed: int = 7) -> Dataset:
    """Return four small hospitals."""
    data = fr.data.synthetic_icu(num_sites=4, scale=0.02, seed=seed)
    sites = {site: Counted(opener, site, log) for site, opener in data.sites.items()}
    return Dataset(sites, name="counted", features=data.features, sizes=data.sizes)


class Mortal(torch.nn.Module):
    """A linear model that ends its process in the first forward step, if a file is not there yet."""

    def __init__(self, num_features: int, file: str) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(num_features, 1)
        self.file = Path(file)

    def forward(self, x):
        if not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x)


def logistic(num_features: int, fault: str = "none"):
    """Return a model; with `raise` it cannot be made, with `kill:FILE` its process dies in training, once."""
    if fault == "raise":
        raise ZeroDivisionError("this model cannot be made")
    kind, _, file = fault.partition(":")
    return Mortal(num_features, file) if kind == "kill" else fr.learn.logistic(num_features)
