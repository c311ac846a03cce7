"""What the likelihoods with a location and a scale share."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods.base import Likelihood, LikelihoodDistribution

Learned = Literal["learned"]
ScaleShape = Literal["one", "dimension", "pixel"]


def floored(log_scale: Tensor, floor: float) -> Tensor:
    """√(floor² + exp(log_scale)²): smooth, so that a scale can come back from its floor."""
    return torch.hypot(log_scale.exp(), log_scale.new_tensor(floor))  # the squares alone would overflow


def share_at_floor(scale: Tensor, floor: float) -> Tensor:
    """Share of scales whose floor makes up more than half of their square."""
    return (scale < math.sqrt(2) * floor).float().mean()


class LocScaleDistribution(LikelihoodDistribution):
    """A distribution with a location [..., *event], which is its mean, and a scale that broadcasts to it."""

    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        return self.loc


class LocScaleLikelihood(Likelihood):
    """A location from the decoder, and a scale with a floor.

    The scale is fixed (a number), or learned in one of three shapes:
    `one` for all; one a `dimension` (the same for every x); or one a `pixel`, which the decoder predicts from z.
    A learned scale is σ = √(floor² + s²), with s = exp(raw): smooth, so that a scale can come back from its
    floor. Without a floor, a dimension that never varies would send σ to 0 and the density to infinity.

    Attributes:
        std_to_scale: the scale of the member of the family whose standard deviation is 1.
    """

    std_to_scale: float

    def __init__(self, data: DataSpec, scale: float | str, scale_shape: ScaleShape, scale_floor: float) -> None:
        super().__init__(data, parameters=2 if scale_shape == "pixel" and scale == "learned" else 1)
        if scale != "learned" and scale_shape != "one":
            raise InputError(
                f"likelihood.scale_shape={scale_shape}: scale={scale} is one for all; "
                "use likelihood.scale_shape=one, or likelihood.scale=learned"
            )
        self.scale_floor = scale_floor
        self.fixed_scale = None if isinstance(scale, str) else scale
        self.log_scale: nn.Parameter | None = None
        if scale == "learned" and scale_shape != "pixel":
            shape = data.shape if scale_shape == "dimension" else (1,) * len(data.shape)
            self.log_scale = nn.Parameter(torch.zeros(shape))

    @property
    def quick_parameters(self) -> list[nn.Parameter]:
        """The logarithm of a scale that is no output of the decoder.

        Adam moves a number by its learning rate an update, whatever the gradient. ln σ has far to go, from the data's
        spread to that of the errors, and until it is there the rate counts too much: 1,500 updates of the default
        recipe left σ 1.6 times too large.
        """
        return [] if self.log_scale is None else [self.log_scale]

    def loc_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Location [..., *event] and scale (which broadcasts to it)."""
        loc, *predicted = self.unbind(outputs)
        if self.fixed_scale is not None:
            return loc, loc.new_tensor(self.fixed_scale)
        log_scale = predicted[0] if predicted else self.log_scale
        assert log_scale is not None
        return loc, floored(log_scale, self.scale_floor)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        start = (std * self.std_to_scale).clamp(min=10 * self.scale_floor)
        if self.log_scale is not None:
            pooled = start if self.log_scale.shape == start.shape else start.square().mean().sqrt()
            self.log_scale.data.copy_(pooled.log())
        return torch.stack((mean, start.log())[: self.output_shape[0]])

    def fraction_at_floor(self, distribution: LikelihoodDistribution) -> Tensor | None:
        if self.fixed_scale is not None:
            return None
        assert isinstance(distribution, LocScaleDistribution)
        return share_at_floor(distribution.scale, self.scale_floor)
