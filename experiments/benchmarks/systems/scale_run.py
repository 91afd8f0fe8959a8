"""One point of the scaling benchmark: `fr.fit` over made-up sites, a model of a wanted size.

Further words: sites, hidden width, cohort, packs. Width 0 is logistic regression. With one pack everything is
in this process, with more on Ray. Each site holds 64 rows of 16 columns: two steps of batch 32.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from systems import reporting

import fedray as fr
from fedray.data.site import Dataset, SiteData

ROWS, FEATURES, BATCH_SIZE = 64, 16, 32
STEPS = ROWS // BATCH_SIZE


@dataclass(frozen=True)
class MadeUp:
    """Draws one site where its pack lives."""

    index: int

    def __call__(self) -> SiteData:
        """Return the site's rows."""
        generator = torch.Generator().manual_seed(self.index)
        x = torch.randn(ROWS, FEATURES, generator=generator)
        return SiteData({"x": x, "y": (x[:, 0] > 0).float()})


def main() -> None:
    """Train one point; the weights are of no interest."""
    _, report, out = reporting.start("ray")
    num_sites, width, cohort, packs = map(int, sys.argv[4:8])
    names = [f"site{index:06d}" for index in range(num_sites)]
    data = Dataset({name: MadeUp(index) for index, name in enumerate(names)}, name="made up",
                   sizes=dict.fromkeys(names, ROWS))
    model = fr.learn.mlp(FEATURES, hidden=(width, width)) if width else fr.learn.logistic(FEATURES)
    local = fr.learn.sgd(model, lr=0.05, epochs=1, batch_size=BATCH_SIZE)
    runtime: dict[str, Any] = {"runtime": "ray", "packs": packs} if packs > 1 else {"runtime": "in_process"}
    with fr.simulate(data, **runtime) as federation:
        fr.fit(fr.algorithms.fedavg(local), federation, init=model.init(seed=0), rounds=report.rounds,
               schedule=fr.synchronous(cohort=cohort), tracker=reporting.RoundLines(report))
    reporting.save(out, {})
