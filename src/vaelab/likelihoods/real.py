"""Densities of real numbers: Gaussian, Laplace, Student's t."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vaelab.config import PositiveFloat, register
from vaelab.data.spec import DataSpec
from vaelab.likelihoods.base import LOG_2PI, sum_event, uniform
from vaelab.likelihoods.scales import Learned, LocScaleDistribution, LocScaleLikelihood, ScaleShape
from vaelab.likelihoods.special import log_gamma_draw, log_gamma_step

MOMENTUM = 0.1  # of the running variance: a batch's share, as in batch normalization
START_DEGREES = 5.0  # of freedom, where they are learned


@dataclass
class Gaussian(LocScaleDistribution):
    """Independent normal dimensions; a *density* in x, so log p may be positive."""

    loc: Tensor
    scale: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        noise = (x - self.loc) / self.scale
        log_scale = self.scale.log().expand_as(noise)
        return -sum_event(0.5 * noise.square() + log_scale + 0.5 * LOG_2PI, self.event_ndim)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.loc.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        return self.loc + self.scale * noise


@dataclass
class BatchOptimalGaussian(Gaussian):
    """While training with `scale=optimal`: x is scored with the σ that is best for the very batch that holds it.

    The σ that maximizes the mean log p of all examples, draws and dimensions is the root mean squared error
    (Rybkin et al. 2021, arXiv:2006.13202), so the mean of −log p is D/2 · (ln MSE + 1 + ln 2π). No
    density of a single x, then: outside of training the running σ holds.

    Attributes:
        scale: the running σ, for draws.
        running_variance: the average of σ² over batches; `log_prob` adds the batch's own.
        floor: the least σ.
    """

    running_variance: Tensor
    floor: float

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p [..., B] of a whole batch x [B, *event], with as many leading draws as `loc` has."""
        variance = (x - self.loc).square().mean().clamp(min=self.floor**2)
        found = variance.detach()
        # A batch that overflowed is skipped by the optimizer; it must not stay in the average, either.
        self.running_variance.lerp_(torch.where(found.isfinite(), found, self.running_variance), MOMENTUM)
        return Gaussian(self.loc, variance.sqrt(), self.event_ndim).log_prob(x)


@register("likelihood", "gaussian")
class GaussianLikelihood(LocScaleLikelihood):
    """For real data. With σ fixed, −log p is ‖x − loc‖² / (2σ²) plus a constant that is kept.

    `scale=optimal` learns σ without a gradient: in training mode it is the batch's root mean squared error, in
    evaluation mode the root of that error's running mean (see `BatchOptimalGaussian`).
    """

    kinds = ("real",)
    discrete = False
    std_to_scale = 1.0

    def __init__(
        self,
        data: DataSpec,
        *,
        scale: PositiveFloat | Literal["learned", "optimal"] = "learned",
        scale_shape: ScaleShape = "one",
        scale_floor: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(data, scale, scale_shape, scale_floor)
        self.running_variance: Tensor | None
        self.register_buffer("running_variance", torch.ones(()) if scale == "optimal" else None)

    def forward(self, outputs: Tensor) -> Gaussian:
        if self.running_variance is None:
            return Gaussian(*self.loc_scale(outputs), self.event_ndim)
        (loc,) = self.unbind(outputs)
        scale = self.running_variance.sqrt().clamp(min=self.scale_floor)
        if not self.training:
            return Gaussian(loc, scale, self.event_ndim)
        return BatchOptimalGaussian(loc, scale, self.event_ndim, self.running_variance, self.scale_floor)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.running_variance is not None:
            self.running_variance.copy_(std.square().mean())
        return super().initialize(mean, std)


@dataclass
class Laplace(LocScaleDistribution):
    """Independent dimensions with the density exp(−|x − loc| / b) / (2b), b = scale. −log p is an absolute error."""

    loc: Tensor
    scale: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        error = (x - self.loc).abs() / self.scale
        return -sum_event(error + (2 * self.scale).log(), self.event_ndim)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        # The difference of two exponentials: unlike the inverse CDF it has no place where it is infinite.
        there, back = uniform(self.loc, generator).log(), uniform(self.loc, generator).log()
        return self.loc + self.scale * (there - back)


@register("likelihood", "laplace")
class LaplaceLikelihood(LocScaleLikelihood):
    """For real data: an absolute error, which minds outliers less than a squared one. Learns medians."""

    kinds = ("real",)
    discrete = False
    std_to_scale = 1 / math.sqrt(2)  # a Laplace density of scale b has variance 2 b²

    def __init__(
        self,
        data: DataSpec,
        *,
        scale: PositiveFloat | Learned = "learned",
        scale_shape: ScaleShape = "one",
        scale_floor: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(data, scale, scale_shape, scale_floor)

    def forward(self, outputs: Tensor) -> Laplace:
        return Laplace(*self.loc_scale(outputs), self.event_ndim)


@dataclass
class StudentT(LocScaleDistribution):
    """Independent Student's t dimensions with ν degrees of freedom: ν = 1 is Cauchy's, ν → ∞ the normal density.

    `mean` is loc. For ν ≤ 1 no mean exists, and loc is the median.
    """

    loc: Tensor
    scale: Tensor
    degrees_of_freedom: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        degrees = self.degrees_of_freedom
        squared = ((x - self.loc) / self.scale).square()
        log_kernel = -0.5 * (degrees + 1) * torch.log1p(squared / degrees)
        log_constant = log_gamma_step(degrees / 2) - 0.5 * (degrees * math.pi).log() - self.scale.log()
        return sum_event(log_kernel + log_constant, self.event_ndim)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.loc.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        half = (self.degrees_of_freedom / 2).expand_as(self.loc)
        log_precision = log_gamma_draw(half, generator) - half.log()  # of mean 1
        return self.loc + self.scale * noise * torch.exp(-0.5 * log_precision)


@register("likelihood", "student-t")
class StudentTLikelihood(LocScaleLikelihood):
    """For real data with outliers. The degrees of freedom ν are fixed, or learned: one ν > 1 for all dimensions."""

    kinds = ("real",)
    discrete = False

    def __init__(
        self,
        data: DataSpec,
        *,
        degrees_of_freedom: PositiveFloat | Learned = "learned",
        scale: PositiveFloat | Learned = "learned",
        scale_shape: ScaleShape = "one",
        scale_floor: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(data, scale, scale_shape, scale_floor)
        start = START_DEGREES if isinstance(degrees_of_freedom, str) else degrees_of_freedom
        # Of scale s the variance is s² ν / (ν − 2); where ν is near 2 or below, that of ν = 3 has to do.
        self.std_to_scale = math.sqrt(1 - 2 / max(3.0, start))
        self.fixed_degrees: float | None = None
        self.log_degrees: nn.Parameter | None = None
        if isinstance(degrees_of_freedom, str):  # ν = 1 + exp(raw): above 1, so that the mean exists
            self.log_degrees = nn.Parameter(torch.tensor(math.log(START_DEGREES - 1)))
        else:
            self.fixed_degrees = degrees_of_freedom

    def degrees_of_freedom(self, like: Tensor) -> Tensor:
        """ν, a scalar tensor."""
        return like.new_tensor(self.fixed_degrees) if self.log_degrees is None else 1 + self.log_degrees.exp()

    def forward(self, outputs: Tensor) -> StudentT:
        return StudentT(*self.loc_scale(outputs), self.degrees_of_freedom(outputs), self.event_ndim)
