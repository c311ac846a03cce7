"""Encoders and decoders: tensors in, tensors out, no distributions.

    encoder: x [N, *event] -> features [N, num_features]
    decoder: z [N, latent_dim] -> outputs [N, *output_shape]

`network.name` chooses a *family*, which makes both. A family can be replaced by any pair of `nn.Module`s of these
shapes. Every decoder ends with one learned number an output, `bias` [*output_shape], which starts at the data.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from vaelab.config import PositiveInt, register
from vaelab.errors import InputError

Shape = tuple[int, ...]
Activation = Literal["relu", "gelu", "silu", "tanh", "elu", "leaky-relu"]
Widths = Annotated[
    tuple[PositiveInt, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)
]
"""Layer widths; a single number stands for a single layer."""
Stages = Annotated[Widths, Field(min_length=1)]


class Tanh(nn.Tanh):
    """tanh(x). Without a gradient 2 σ(2x) − 1, within 2e-7: twice as quick on AVX2, a tenth of a whole evaluation."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that torch gives it)
        if input.requires_grad:
            return torch.tanh(input)
        return (2 * input).sigmoid_().mul_(2).sub_(1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": Tanh,
    "elu": nn.ELU,
    "leaky-relu": nn.LeakyReLU,
}


class Encoder(nn.Module):
    """Layers, the shape of one example that goes in, and the number of features that come out."""

    def __init__(self, layers: nn.Module, input_shape: Shape, num_features: int) -> None:
        super().__init__()
        self.layers = layers
        self.input_shape = input_shape
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Layers, shaped to `output_shape`, plus a bias for each output.

    Args:
        layers: z [N, D] -> [N, ...], numbers of their own and no view of z.
        output_shape: of one example.
    """

    def __init__(self, layers: nn.Module, output_shape: Shape) -> None:
        super().__init__()
        self.layers = layers
        self.bias = nn.Parameter(torch.zeros(output_shape))

    def forward(self, z: Tensor) -> Tensor:
        outputs = self.layers(z).view(-1, *self.bias.shape)
        if outputs.requires_grad or outputs.dtype != self.bias.dtype:
            return outputs + self.bias
        return outputs.add_(self.bias)  # a pass over new memory less: 3 % of an evaluation


PLACES = 16  # of a dense network that was not told how many codes it shall have


class Family(ABC):
    """Makes an encoder and a decoder that mirror each other."""

    @abstractmethod
    def encoder(self, event_shape: Shape) -> Encoder:
        """[N, *event_shape] -> [N, num_features]."""

    @abstractmethod
    def decoder(self, latent_dim: int, output_shape: Shape) -> Decoder:
        """[N, latent_dim] -> [N, *output_shape]; output_shape is (parameters, *event_shape)."""

    # What quantized models use: P places with C numbers each, instead of one vector. Dense networks take any P.

    def places(self, event_shape: Shape, wanted: int | None) -> int:
        """P: as many as are wanted, or as many as the network has of itself.

        Raises:
            InputError: it has another number than is wanted.
        """
        return wanted or PLACES

    def grid_encoder(self, event_shape: Shape, places: int, channels: int) -> Encoder:
        """[N, *event_shape] -> [N, P * C], place by place."""
        inner = self.encoder(event_shape)
        last = nn.Linear(inner.num_features, places * channels)
        return Encoder(nn.Sequential(inner, last), event_shape, places * channels)

    def grid_decoder(self, event_shape: Shape, places: int, channels: int, output_shape: Shape) -> Decoder:
        """[N, P * C] -> [N, *output_shape]."""
        return self.decoder(places * channels, output_shape)


@register("network", "linear")
class Linear(Family):
    """No hidden layer: the linear VAE (Lucas et al. 2019, arXiv:1911.02469)."""

    def encoder(self, event_shape: Shape) -> Encoder:
        return Encoder(nn.Flatten(), event_shape, math.prod(event_shape))

    def decoder(self, latent_dim: int, output_shape: Shape) -> Decoder:
        return Decoder(nn.Linear(latent_dim, math.prod(output_shape), bias=False), output_shape)


@register("network", "mlp")
class MLP(Family):
    """Fully connected. `hidden` are the encoder's widths from x to z; the decoder has them in reverse."""

    def __init__(self, *, hidden: Widths = (512,), activation: Activation = "gelu") -> None:
        self.hidden = tuple(hidden)
        self.activation = ACTIVATIONS[activation]

    def encoder(self, event_shape: Shape) -> Encoder:
        widths = (math.prod(event_shape), *self.hidden)
        return Encoder(nn.Sequential(nn.Flatten(), *self._layers(widths)), event_shape, widths[-1])

    def decoder(self, latent_dim: int, output_shape: Shape) -> Decoder:
        widths = (latent_dim, *reversed(self.hidden))
        last = nn.Linear(widths[-1], math.prod(output_shape), bias=False)
        return Decoder(nn.Sequential(*self._layers(widths), last), output_shape)

    def _layers(self, widths: Shape) -> list[nn.Module]:
        return [layer for ends in pairwise(widths) for layer in (nn.Linear(*ends), self.activation())]


class Pyramid(Family):
    """What the convolutional families share: stages that halve height and width, then one dense layer.

    Any size works: a stage maps n to ⌈n / 2⌉, and on the way back it doubles and drops the surplus row or column.

    Args:
        channels: channels after each stage; one stage an entry.
        hidden: width of the dense layer between the smallest feature map and the latent.
    """

    name: str

    def __init__(self, channels: Widths, hidden: int, activation: str) -> None:
        self.channels = tuple(channels)
        self.hidden = hidden
        self.activation = ACTIVATIONS[activation]

    def encoder(self, event_shape: Shape) -> Encoder:
        smallest = self._smallest(event_shape)
        dense = nn.Linear(self.channels[-1] * math.prod(smallest), self.hidden)
        layers = nn.Sequential(*self._down(event_shape), nn.Flatten(), dense, self.activation())
        return Encoder(layers, event_shape, self.hidden)

    def decoder(self, latent_dim: int, output_shape: Shape) -> Decoder:
        shape = (self.channels[-1], *self._smallest(output_shape[1:]))
        dense = [nn.Linear(latent_dim, self.hidden), self.activation(), nn.Linear(self.hidden, math.prod(shape))]
        return Decoder(
            nn.Sequential(*dense, self.activation(), nn.Unflatten(1, shape), *self._up(output_shape)), output_shape
        )

    def places(self, event_shape: Shape, wanted: int | None) -> int:
        found = math.prod(self._smallest(event_shape))
        if wanted not in (None, found):
            raise InputError(
                f"model.places={wanted}: network.name={self.name} with {len(self.channels)} stages has {found} places "
                f"for {event_shape}; leave it out, or change network.channels"
            )
        return found

    def grid_encoder(self, event_shape: Shape, places: int, channels: int) -> Encoder:
        last = nn.Conv2d(self.channels[-1], channels, 1)
        layers = nn.Sequential(*self._down(event_shape), last, nn.Flatten(2), Transpose(), nn.Flatten())
        return Encoder(layers, event_shape, places * channels)

    def grid_decoder(self, event_shape: Shape, places: int, channels: int, output_shape: Shape) -> Decoder:
        to_picture = [
            nn.Unflatten(1, (places, channels)),
            Transpose(),
            nn.Unflatten(2, self._smallest(event_shape)),
            nn.Conv2d(channels, self.channels[-1], 3, padding=1),
            self.activation(),
        ]
        return Decoder(nn.Sequential(*to_picture, *self._up(output_shape)), output_shape)

    def _down(self, event_shape: Shape) -> list[nn.Module]:
        """[N, *event_shape] -> the smallest feature map."""
        return [layer for ends in pairwise((event_shape[0], *self.channels)) for layer in self.down(*ends)]

    def _up(self, output_shape: Shape) -> list[nn.Module]:
        """The smallest feature map -> [N, channels, height, width], for as many channels as there are outputs."""
        larger = self._sizes(*output_shape[-2:])[:-1]
        layers: list[nn.Module] = []
        for stage, ends in enumerate(pairwise((*reversed(self.channels), math.prod(output_shape[:-2]))), start=1):
            layers += [*self.up(*ends, bias=stage < len(larger)), Crop(*larger[-stage]), self.activation()]
        return layers[:-1]  # no activation at the end

    @abstractmethod
    def down(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        """Layers that halve height and width (rounding up)."""

    @abstractmethod
    def up(self, channels_in: int, channels_out: int, bias: bool) -> list[nn.Module]:
        """Layers that double height and width. The last ones need no bias, for `Decoder` adds one."""

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        sizes = [(height, width)]
        for _ in self.channels:
            height, width = -(-height // 2), -(-width // 2)
            sizes.append((height, width))
        return sizes

    def _smallest(self, event_shape: Shape) -> tuple[int, int]:
        """Height and width of the smallest feature map."""
        if len(event_shape) != 3:
            raise InputError(
                f"network.name={self.name}: wants pictures (C, H, W), but an example has shape {event_shape}; "
                "network.name=mlp takes any shape"
            )
        return self._sizes(*event_shape[1:])[-1]


class Transpose(nn.Module):
    """[N, A, B] -> [N, B, A]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Crop(nn.Module):
    """Keeps the first `height` rows and `width` columns."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


@register("network", "conv")
class Convolutional(Pyramid):
    """Strided convolutions down, transposed ones up (kernel 4, stride 2: every pixel is written equally often)."""

    name = "conv"

    def __init__(
        self, *, channels: Stages = (32, 64), hidden: PositiveInt = 256, activation: Activation = "gelu"
    ) -> None:
        super().__init__(channels, hidden, activation)

    def down(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), self.activation()]

    def up(self, channels_in: int, channels_out: int, bias: bool) -> list[nn.Module]:
        return [nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)]


@register("network", "resnet")
class Residual(Pyramid):
    """`blocks` residual blocks (He et al. 2016, arXiv:1603.05027) before each halving and after each doubling.

    No normalization: a block's last convolution starts at zero, so a deep network starts as a shallow one.
    """

    name = "resnet"

    def __init__(
        self,
        *,
        channels: Stages = (32, 64),
        blocks: Annotated[int, Field(ge=1)] = 1,
        hidden: PositiveInt = 256,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__(channels, hidden, activation)
        self.blocks = blocks

    def down(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), *self._blocks(channels_out)]

    def up(self, channels_in: int, channels_out: int, bias: bool) -> list[nn.Module]:
        return [
            *self._blocks(channels_in),
            nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=bias),
        ]

    def _blocks(self, channels: int) -> list[nn.Module]:
        return [ResidualBlock(channels, self.activation) for _ in range(self.blocks)]


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), [N, C, H, W] -> the same shape."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(activation(), nn.Conv2d(channels, channels, 3, padding=1), activation(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
