"""Which modules are a chain: a sequence of layers that can be trained for many sites at once, by hand.

Linear layers, elementwise functions, dropout, LayerNorm and bags of embeddings, in `Sequential`s of any
depth.
A parameter-free layer that works row by row and has no derivative here goes through autograd over the stacked
rows. Everything else has no chain, and its sites are trained one after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedray.learn import dropout
from fedray.learn.layers import Activation, Bag, Dropout, LayerNorm, Linear
from fedray.learn.planes import Matrices
from fedray.learn.thin import Single, Thin

aten = torch.ops.aten
FLIPPED_ELEMENTS = 2**16


def _relu_backward(g: Tensor, y: Tensor) -> Tensor:
    return aten.threshold_backward.grad_input(g, y, 0, grad_input=g)


def _tanh_backward(g: Tensor, y: Tensor) -> Tensor:
    return aten.tanh_backward.grad_input(g, y, grad_input=g)


def _sigmoid_backward(g: Tensor, y: Tensor) -> Tensor:
    return aten.sigmoid_backward.grad_input(g, y, grad_input=g)


ByHand = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], str]


def _by_hand(module: nn.Module, in_place: bool) -> ByHand | None:
    """Return (function, derivative, what the derivative needs) of an activation, None where autograd does it.

    `in_place`: what the function is given is the buffer of a linear layer, which nobody reads again.
    """
    kind = type(module)  # a subclass may compute something else
    if kind is nn.ReLU:
        return torch.relu_ if in_place else torch.relu, _relu_backward, "output"
    if kind is nn.Tanh:
        return torch.tanh_ if in_place else torch.tanh, _tanh_backward, "output"
    if kind is nn.Sigmoid:
        return torch.sigmoid_ if in_place else torch.sigmoid, _sigmoid_backward, "output"
    if kind is nn.GELU:
        form = module.approximate
        return (
            lambda x: F.gelu(x, approximate=form),
            lambda g, x: aten.gelu_backward(g, x, approximate=form),
            "input",
        )
    if kind is nn.SiLU:
        return F.silu, aten.silu_backward.default, "input"
    if kind is nn.LeakyReLU:
        slope = module.negative_slope
        return (
            lambda x: F.leaky_relu(x, slope),
            lambda g, x: aten.leaky_relu_backward(g, x, slope, False),
            "input",
        )
    return None


# of torch.nn.modules.activation, those without parameters that work on each element
ELEMENTWISE = (
    nn.ELU, nn.CELU, nn.SELU, nn.Hardtanh, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
    nn.Softshrink, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Mish, nn.LogSigmoid, nn.Threshold,
)  # fmt: skip
OVER_FEATURES = (nn.Softmax, nn.LogSoftmax)


@dataclass(frozen=True)
class Chain:
    """Makers of the layers, in order, and what the chain needs."""

    makers: tuple[Callable[[], Any], ...]
    matrices: Matrices
    inputs: int  # features of a row, words of a bag are any number (0)
    outputs: int
    num_dropouts: int
    kind: str = "by hand"

    def layers(self) -> list[Any]:
        """Return the layers of one training."""
        return [make() for make in self.makers]


def chain_of(module: nn.Module) -> Chain | None:
    """Return the chain of a module, None where it is none."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if not tensors or any(not value.requires_grad for _, value in tensors):
        return None  # frozen leaves and statistics are not stepped
    if any(_has_hooks(layer) for layer in module.modules()):
        return None
    if len({name for name, _ in module.named_parameters(remove_duplicate=False)}) != len(tensors):
        return None  # one parameter in two places
    makers: list[Callable[[], Any]] = []
    width = first = 0
    made: Any = None
    for name, layer in _flattened(module, ""):
        maker = _maker(name, layer, width, made)
        if maker is None:
            return None
        if maker is SKIP:
            continue
        made = maker()
        if not makers:
            first = 0 if isinstance(made, Bag) else made.inputs
        makers.append(maker)
        width = made.width
    layers = [make() for make in makers]
    if not layers or not isinstance(layers[0], (Linear, Single, Thin, Bag)):
        return None
    return Chain(
        tuple(makers),
        _matrices(layers),
        first,
        width,
        1 + max((layer.number for layer in layers if isinstance(layer, Dropout)), default=-1),
    )


def _matrices(layers: Sequence[Any]) -> Matrices:
    """Return which leaves get planes. Flipped is the first layer alone: only its W' is in no other product.

    Loading and reading out such a matrix goes across the cache, so it must fit into it.
    """
    first = layers[0]
    is_flipped = isinstance(first, Linear) and first.inputs * first.width <= FLIPPED_ELEMENTS
    return Matrices(
        tuple(name for layer in layers for name in layer.matrices),
        tuple(name for layer in layers if isinstance(layer, Single) for name in layer.matrices),
        first.matrices if is_flipped else (),
    )


def _skip() -> None:
    """Stand for a layer that changes nothing."""


SKIP: Callable[[], Any] = _skip


def _flattened(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        for name, child in module._modules.items():  # one that stands in two places is applied twice
            assert child is not None
            yield from _flattened(child, f"{prefix}{name}.")
    else:
        yield prefix, module


def _maker(name: str, layer: nn.Module, width: int, before: Any) -> Callable[[], Any] | None:
    is_first = before is None
    if type(layer) is nn.Linear:
        return _linear(name, layer, width)
    if type(layer) is nn.EmbeddingBag:
        return _bag(name, layer) if is_first else None
    if is_first and not isinstance(layer, (nn.Identity, nn.Flatten)):
        return None
    if type(layer) is nn.LayerNorm and layer.normalized_shape == (width,):
        has_scale = layer.elementwise_affine
        has_bias = has_scale and layer.bias is not None
        return lambda: LayerNorm(name, width, layer.eps, has_scale, has_bias)
    if type(layer) is nn.Identity or (type(layer) is nn.Flatten and layer.start_dim == 1 and not is_first):
        return SKIP
    if isinstance(layer, dropout.Dropout):
        return (
            SKIP
            if layer.p == 0
            else None
            if layer.channelwise
            else lambda: Dropout(width, layer.p, layer.layer)
        )
    return _activation(layer, width, isinstance(before, (Linear, Single, Thin)))


def _has_hooks(layer: nn.Module) -> bool:
    return any(
        getattr(layer, kind)
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def _linear(name: str, layer: nn.Linear, width: int) -> Callable[[], Any] | None:
    if width and layer.in_features != width:
        return None
    kind: Any = Linear
    if 1 in (layer.in_features, layer.out_features):
        kind = Single if layer.out_features == 1 and Single.fits(layer.in_features) else Thin
    return lambda: kind(name, layer.in_features, layer.out_features, layer.bias is not None)


def _bag(name: str, layer: nn.EmbeddingBag) -> Callable[[], Any] | None:
    if (
        layer.mode not in ("mean", "sum")
        or layer.max_norm is not None
        or layer.sparse
        or layer.scale_grad_by_freq
        or layer.embedding_dim == 1
    ):
        return None
    return lambda: Bag(name, layer.embedding_dim, layer.num_embeddings, layer.padding_idx, layer.mode)


def _activation(layer: nn.Module, width: int, in_place: bool) -> Callable[[], Any] | None:
    by_hand = _by_hand(layer, in_place)
    if by_hand is not None:
        return lambda: Activation(width, *by_hand)
    if type(layer) in ELEMENTWISE and not getattr(layer, "inplace", False):
        return lambda: Activation(width, layer, None)
    if type(layer) in OVER_FEATURES and layer.dim in (1, -1):
        over_last = type(layer)(dim=-1)
        return lambda: Activation(width, over_last, None)
    return None
