"""Stacked training in which some layers are held still: those whose leaves lie behind the trainable elements.

They are gone through forward, and back only where a layer below them learns; so a head alone costs no way
back through its body. Penalties, pulls and corrections leave what is still alone. A layer is held still
whole.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedray.learn.planes import Planes
from fedray.learn.stacked import Training, is_plain_step
from fedray.tree import Schema

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining
    from fedray.learn.rows import Stackable


def holds_still(schema: Schema) -> bool:
    """Tell whether some leaves of a model that has no statistics are not to be stepped."""
    return any(leaf.offset >= schema.trainable for leaf in schema.leaves)


def can_train(local: "LocalTraining", how: "Stackable", schema: Schema) -> bool:
    """Tell whether the stacked form holds still what the layout says; the plain form always does."""
    if not holds_still(schema):
        return True
    decays = not is_plain_step(local) and bool(local.rule.weight_decay)
    if local.patience is not None or local.record_clip is not None or local.form == "vmap" or decays:
        return False
    kinds = [_learns(layer, schema) for layer in how.chain.layers()]
    return None not in kinds and True in kinds


def _learns(layer: Any, schema: Schema) -> bool | None:
    """Tell whether a layer has leaves that are stepped; None where it has both kinds."""
    names = {f"{getattr(layer, 'name', '?')}{kind}" for kind in ("weight", "bias")}
    kinds = {leaf.offset < schema.trainable for leaf in schema.leaves if leaf.name in names}
    return None if len(kinds) > 1 else True in kinds


class PartlyStill(Training):
    """The training of a model of which some layers are held still."""

    def _bind(self, active: int) -> list[Any]:
        layers = super()._bind(active)
        self.learning = [bool(_learns(layer, self.schema)) for layer in layers]
        return layers

    def _decays(self, fixed: float) -> dict[str, float]:
        found = super()._decays(fixed)
        still = {leaf.name for leaf in self.schema.leaves if leaf.offset >= self.schema.trainable}
        return {name: 0.0 if name in still else decay for name, decay in found.items()}

    def _constant(self, name: str, constant: Tensor | None) -> list[Tensor] | None:
        return super()._constant(name, self._moving(constant))

    def _fixed(self, pull: Tensor | None, correction: Tensor | None) -> Planes | None:
        return super()._fixed(self._moving(pull), self._moving(correction))

    def _moving(self, constant: Tensor | None) -> Tensor | None:
        """Return a constant that leaves what is still alone."""
        if constant is not None:
            constant = constant.clone()
            constant[:, self.schema.trainable :] = 0.0
        return constant

    def _block(self, x: Tensor, kept: Tensor, target: Tensor, moves: Tensor) -> None:
        for layer in self.layers:
            x = layer.forward(x)
        kept.copy_(x)
        g: Any = self.head.gradient(x, target, moves)
        lowest = self.learning.index(True)
        for number in range(len(self.layers) - 1, lowest - 1, -1):
            g = self.layers[number].backward(g, number > lowest)
            if self.learning[number]:
                self.layers[number].learn()
