"""How labels enter a conditional model (Sohn, Lee & Yan 2015): beside x in the encoder, beside z in the decoder."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.errors import InputError


class Labels(nn.Module):
    """Joins labels y [B] to examples and to latents.

    Args:
        classes: how many labels there are; y holds 0 … classes − 1.
        event_shape: of an example.

    Attributes:
        input_shape: what the encoder sees. A picture gets one more channel, which is learned for each label; anything
            else is flattened, and the label follows it one-hot.
        counts: how often each label is among the training data, [classes].
    """

    def __init__(self, classes: int, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.is_picture = len(event_shape) == 3
        if self.is_picture:
            channels, height, width = event_shape
            self.input_shape: tuple[int, ...] = (channels + 1, height, width)
            self.planes = nn.Parameter(0.1 * torch.randn(classes, 1, height, width))
        else:
            self.input_shape = (math.prod(event_shape) + classes,)
        self.register_buffer("counts", torch.ones(classes))
        self.counts: Tensor

    def join_input(self, x: Tensor, y: Tensor | None) -> Tensor:
        """X [B, *event] and y [B] -> [B, *input_shape]."""
        y = self._checked(y, len(x))
        if self.is_picture:
            return torch.cat((x, self.planes[y].to(x.dtype)), dim=1)
        return torch.cat((x.flatten(1), F.one_hot(y, self.classes).to(x.dtype)), dim=1)

    def join_latents(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Z [..., B, D] and y [B] -> [..., B, D + classes]."""
        y = self._checked(y, z.shape[-2])
        one_hot = F.one_hot(y, self.classes).to(z.dtype)
        return torch.cat((z, one_hot.expand(*z.shape[:-1], self.classes)), dim=-1)

    def sample(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Labels as often as in the training data, in ascending order, int64 [number]."""
        return torch.multinomial(self.counts, number, replacement=True, generator=generator).sort().values

    def _checked(self, y: Tensor | None, number: int) -> Tensor:
        if y is None:
            raise InputError(f"the model is conditional: give y, {number} labels from 0 to {self.classes - 1}")
        is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        if y.shape != (number,) or not is_integer or not ((y >= 0) & (y < self.classes)).all():
            raise InputError(f"y must be {number} integers from 0 to {self.classes - 1}, one an example")
        return y.long()
