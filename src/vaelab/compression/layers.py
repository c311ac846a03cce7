"""From the layers of a trained network to steps in whole numbers."""

from copy import deepcopy
from functools import singledispatch

import torch
from torch import Tensor, nn

from vaelab.compression.integers import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    Convolution,
    Cut,
    Dense,
    Lookup,
    Shape,
    Shift,
    Step,
    Sum,
    TransposedConvolution,
    Widen,
    activations,
    bounded,
    to_integers,
)
from vaelab.errors import InputError
from vaelab.hierarchical import Climb
from vaelab.networks import Crop, Decoder, Encoder, ResidualBlock

POINTWISE = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.ELU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Hardtanh,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softsign,
)
"""Functions of one number: each becomes a table."""
TRANSPARENT = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, Crop)
"""Layers that change no number (in evaluation)."""
NORMALIZING = (nn.BatchNorm1d, nn.BatchNorm2d)
"""In evaluation an affine map, which the layer before it takes over."""
SUMS = ACTIVATION_BITS + WEIGHT_BITS


@singledispatch
def steps_of(layer: nn.Module, name: str, bits: int) -> tuple[Step, ...]:
    """A layer in evaluation mode as steps from activations to whole numbers at 2⁻ᵇⁱᵗˢ.

    Args:
        layer: the layer, or a network of layers.
        name: of the layer, for messages.
        bits: precision of what it gives.

    Raises:
        InputError: a kind of layer that is not known here.
    """
    if isinstance(layer, POINTWISE):
        return (Lookup(_table(layer)), *_widened(bits))
    kind = type(layer).__name__
    remedy = "compression takes dense, convolutional and residual layers and functions of one number"
    if isinstance(layer, NORMALIZING):
        raise _unfoldable(layer, name)
    if "Norm" in kind:
        remedy = "its statistics depend on each example, so it cannot be a table; train without it (BatchNorm will do)"
    raise InputError(f"{name} is a {kind}: {remedy}")


def _widened(bits: int) -> tuple[Step, ...]:
    return () if bits == ACTIVATION_BITS else (Widen(),)


def _table(function: nn.Module) -> Tensor:
    """The function at every activation."""
    with torch.no_grad():
        return to_integers(function(activations()), ACTIVATION_BITS)


@steps_of.register
def _(layer: nn.Sequential, name: str, bits: int) -> tuple[Step, ...]:
    layers = [(f"{name}.{key}", one) for key, one in layer.named_children()]
    last = max(
        (i for i, (_, one) in enumerate(layers) if not isinstance(one, (*TRANSPARENT, *NORMALIZING))), default=-1
    )
    steps: list[Step] = list(_widened(bits)) if last < 0 else []
    for place, (where, one) in enumerate(layers):
        after_where, after = layers[place + 1] if place + 1 < len(layers) else ("", None)
        if isinstance(after, NORMALIZING):
            one = _folded(one, after, after_where)
        elif isinstance(one, NORMALIZING) and place > 0:
            continue  # the layer before has taken it over
        steps += steps_of(one, where, bits if place == last else ACTIVATION_BITS)
    return tuple(steps)


def _unfoldable(norm: nn.Module, name: str) -> InputError:
    return InputError(
        f"{name} is a {type(norm).__name__} that does not follow a dense or convolutional layer directly, or keeps no "
        "statistics; train without it"
    )


def _folded(layer: nn.Module, norm: nn.Module, name: str) -> nn.Module:
    """A dense or convolutional layer that does what it and the BatchNorm after it do."""
    assert isinstance(norm, NORMALIZING)
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) or norm.running_var is None:
        raise _unfoldable(norm, name)
    assert norm.running_mean is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * gain
    if norm.affine:
        gain, shift = gain * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    by_output = (
        gain.view(1, -1, 1, 1)
        if isinstance(layer, nn.ConvTranspose2d)
        else gain.view(-1, *[1] * (layer.weight.ndim - 1))
    )
    made = deepcopy(layer)
    made.weight = nn.Parameter((layer.weight.double() * by_output).detach())
    bias = 0 if layer.bias is None else layer.bias.double() * gain
    made.bias = nn.Parameter((bias + shift).detach())
    return made


@steps_of.register
def _(layer: nn.Linear, name: str, bits: int) -> tuple[Step, ...]:
    weight, bias = _whole(layer.weight, WEIGHT_BITS), _bias(layer.bias, layer.out_features)
    bounded(weight, bias, name)
    return (Dense(weight, bias, bits),)


@steps_of.register
def _(layer: nn.Conv2d, name: str, bits: int) -> tuple[Step, ...]:
    _plain(layer, name)
    weight = _whole(layer.weight, WEIGHT_BITS).flatten(1)
    bias = _bias(layer.bias, layer.out_channels).view(-1, 1)
    bounded(weight, bias, name)
    return (Convolution(weight, bias, _two(layer.kernel_size), _two(layer.stride), _two(layer.padding), bits),)


@steps_of.register
def _(layer: nn.ConvTranspose2d, name: str, bits: int) -> tuple[Step, ...]:
    _plain(layer, name)
    weight = _whole(layer.weight, WEIGHT_BITS).permute(1, 2, 3, 0)  # [O, k, k, C]
    bias = _bias(layer.bias, layer.out_channels).view(-1, 1, 1)
    bounded(weight.flatten(1), bias, name)  # an output sees each weight of its channel at most once
    sizes = (_two(layer.kernel_size), _two(layer.stride), _two(layer.padding), _two(layer.output_padding))
    return (TransposedConvolution(weight.flatten(0, 2).contiguous(), bias, *sizes, bits),)


@steps_of.register
def _(layer: Encoder, name: str, bits: int) -> tuple[Step, ...]:
    return steps_of(layer.layers, name, bits)


@steps_of.register
def _(layer: Decoder, name: str, bits: int) -> tuple[Step, ...]:
    shift = Shift(to_integers(layer.bias.detach(), bits), bits)
    return (*steps_of(layer.layers, name, bits), Shape(tuple(layer.bias.shape)), shift)


@steps_of.register
def _(layer: ResidualBlock, name: str, bits: int) -> tuple[Step, ...]:
    return (Sum((), steps_of(layer.layers, name, ACTIVATION_BITS)), *_widened(bits))


@steps_of.register
def _(layer: Climb, name: str, bits: int) -> tuple[Step, ...]:
    shortcut = steps_of(layer.shortcut, f"{name}.shortcut", ACTIVATION_BITS)
    return (Sum(shortcut, steps_of(layer.residual, f"{name}.residual", ACTIVATION_BITS)), *_widened(bits))


@steps_of.register
def _(layer: nn.Flatten, name: str, bits: int) -> tuple[Step, ...]:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise InputError(
            f"{name} flattens axes {layer.start_dim} to {layer.end_dim}; compression knows nn.Flatten() alone"
        )
    return (Shape((-1,)), *_widened(bits))


@steps_of.register
def _(layer: nn.Unflatten, name: str, bits: int) -> tuple[Step, ...]:
    if layer.dim != 1:
        raise InputError(f"{name} unflattens axis {layer.dim}; compression knows axis 1 alone")
    return (Shape(tuple(layer.unflattened_size)), *_widened(bits))


@steps_of.register
def _(layer: Crop, name: str, bits: int) -> tuple[Step, ...]:
    return (Cut(layer.height, layer.width), *_widened(bits))


@steps_of.register(nn.Identity)
@steps_of.register(nn.Dropout)
@steps_of.register(nn.Dropout2d)
def _(layer: nn.Module, name: str, bits: int) -> tuple[Step, ...]:
    return _widened(bits)


def _whole(weight: Tensor, bits: int) -> Tensor:
    return (weight.detach().double().cpu() * 2.0**bits).round()


def _bias(bias: Tensor | None, outputs: int) -> Tensor:
    return torch.zeros(outputs, dtype=torch.float64) if bias is None else _whole(bias, SUMS)


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d, name: str) -> None:
    """Raise an InputError unless a convolution is of the common kind."""
    for key, usual in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if (found := getattr(layer, key)) != usual:
            raise InputError(f"{name} has {key}={found}; compression knows {key}={usual} alone")
    if isinstance(layer.padding, str):
        raise InputError(f"{name} has padding={layer.padding}; give it as numbers")


def _two(pair: object) -> tuple[int, int]:
    assert isinstance(pair, tuple) and len(pair) == 2
    return pair
