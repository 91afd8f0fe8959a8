"""Local early stop: which epoch of a site was the best, and whether it is time to stop.

After every epoch, and after the last step, the loss on the site's own validation rows is taken; the
parameters of the lowest are what the site sends. What a site starts from is no candidate.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining


class Watch:
    """The early stop of one site that has `rows` training rows and takes at most `steps` steps."""

    def __init__(self, local: "LocalTraining", rows: int, steps: int) -> None:
        assert local.patience is not None
        self.patience, self.steps = local.patience, steps
        self.steps_an_epoch = max(1, -(-rows // (local.batch_size or max(rows, 1))))
        self.best = math.nan
        self.misses = self.done = 0

    def is_due(self, done: int) -> bool:
        """Tell whether the loss is to be taken after so many steps, and note how many there were."""
        self.done = done
        return done == self.steps or done % self.steps_an_epoch == 0

    def note(self, loss: float) -> bool:
        """Take a loss and tell whether it is the best so far: the first is, and any that follows a NaN."""
        is_best = math.isnan(self.best) or loss < self.best
        self.best, self.misses = (loss, 0) if is_best else (self.best, self.misses + 1)
        return is_best

    @property
    def is_over(self) -> bool:
        """Tell whether the site takes no more steps."""
        return self.misses >= self.patience or self.done >= self.steps
