"""Who contributed: what each site adds to a federated model, by game theory. Start reading at `games.py`.

A game says what every coalition of sites is worth: the utility of the model that these sites train together.
`game` makes one of an algorithm and a federation; its coalitions are replays of one run, in which only the
sites that are asked differ. The methods divide what all sites together are worth among them.
Names are resolved on first use, so that the command line answers without torch.
"""

import importlib
from typing import Any

_HOMES = {
    "Coalition": "games",
    "Contribution": "record",
    "Game": "games",
    "Replay": "replays",
    "TakingPart": "record",
    "game": "replays",
    "gtg_shapley": "gtg",
    "leave_one_out": "games",
    "shapley": "games",
    "tmc_shapley": "sampling",
    "value_of_taking_part": "taking_part",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedray.contribution' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"fedray.contribution.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
