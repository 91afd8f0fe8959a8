"""A large model that takes one step at a site: `rows.py` chooses it, `stacked.py` is the usual training."""

from typing import TYPE_CHECKING

from torch import Tensor

from fedray.learn.planes import Leaves, blank
from fedray.learn.stacked import Extras, Training, is_plain_step

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining

LARGE_BYTES = 2**20  # a model from here on fills a group alone or nearly so


class OneStep(Training):
    """One step of one site on a large model: the gradient times -lr is the update, and nothing is copied."""

    @staticmethod
    def fits(local: "LocalTraining", extras: Extras, stride_bytes: int) -> bool:
        """Tell whether a site that takes one step is trained this way; it depends on the settings alone."""
        decays = (extras.prox, local.l2, getattr(local.rule, "weight_decay", 0.0))
        return stride_bytes >= LARGE_BYTES and is_plain_step(local) and not any(decays)

    def _choose(self, extras: Extras) -> None:
        self.is_fused, self.is_folded, self.rate = False, True, -self.rate
        self.kind = False, 0

    def _load(self, extras: Extras) -> None:
        self.fixed = extras.correction
        self.found = blank(1, self.schema, self.device)
        self._bound = {}
        target = Leaves(self.found, self.schema)
        self.frame = self._framed(Leaves(self.start, self.schema), target, target)
        self._name_masks(self.frame)

    def _step(self, stepping: int, step: int) -> None:
        if self.fixed is not None:
            self.found.add_(self.fixed * self.rate)

    def delta(self) -> Tensor:
        """Return local - global, (1, stride), once; zero where the site has no row. No model stays here."""
        found = self.found if self.plan.chunks else self.found.zero_()
        del self.found, self.frame, self.start
        self.layers, self._bound, self._frames = [], {}, {}
        return found
