"""p(x|z): what the decoder's output says of x.

Each likelihood is a pair. A *distribution* (`Bernoulli`, `Gaussian`, `DiscretizedLogistic`) is normalized over x:
its probabilities sum to 1, its densities integrate to 1. A *likelihood module* (`BernoulliLikelihood`, ...) turns
decoder outputs into that distribution; it says how many outputs it needs, where they start, and it owns the
parameters that do not depend on z.

x is on the model's scale (see `vaelab.data.DataSpec`): binary values are 0 or 1, a level l of L is l / (L − 1),
real values are as they are. `log_prob` is in nats and summed over the event dimensions.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.config import PositiveFloat, build, register, section
from vaelab.data.spec import DataSpec, Kind
from vaelab.errors import InputError

LOG_2PI = math.log(2 * math.pi)


def sum_event(values: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last `event_ndim` dimensions."""
    return values.flatten(-event_ndim).sum(-1)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise inside the open interval (0, 1), so that its logit is finite."""
    noise = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return noise.clamp_(torch.finfo(like.dtype).tiny, 1 - torch.finfo(like.dtype).eps / 2)


# -- distributions -------------------------------------------------------------------------------------------------


class LikelihoodDistribution(ABC):
    """A normalized distribution of x, given z. Batch dimensions lead, event dimensions come last."""

    event_ndim: int

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x|z) in nats, [...]; x is [..., *event] and broadcasts over leading dimensions."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x|z], [..., *event]."""

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x for every z, [..., *event]."""


@dataclass
class Bernoulli(LikelihoodDistribution):
    """Each dimension is 1 with probability sigmoid(logits), else 0."""

    logits: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        # P(1) = σ(l), P(0) = σ(−l): the sign of the logit is all that x decides.
        return sum_event(F.logsigmoid((2 * x - 1) * self.logits), self.event_ndim)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean, generator=generator)


@dataclass
class Gaussian(LikelihoodDistribution):
    """Independent normal dimensions; a *density* in x, so log p may be positive."""

    loc: Tensor
    scale: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        noise = (x - self.loc) / self.scale
        log_scale = self.scale.log().expand_as(noise)
        return -sum_event(0.5 * noise.square() + log_scale + 0.5 * LOG_2PI, self.event_ndim)

    @property
    def mean(self) -> Tensor:
        return self.loc

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.loc.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        return self.loc + self.scale * noise


@dataclass
class DiscretizedLogistic(LikelihoodDistribution):
    """A logistic density cut into L bins around the levels l / (L − 1); the end bins reach to infinity.

    Kingma et al. 2016 (arXiv:1606.04934), section 5.2, with open ends as in Salimans et al. 2017 (arXiv:1701.05517),
    section 2.1. Let F be the logistic CDF, a and b the standardized upper and lower edge of the bin that holds x.
    Then P(x) = F(a) − F(b), and that difference is F(a) · F(−b) · (1 − exp(b − a)): three factors without
    cancellation, so no probability needs a floor.
    """

    loc: Tensor
    scale: Tensor
    levels: int
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        half_bin = 0.5 / (self.levels - 1)
        centered = x - self.loc
        above = F.logsigmoid((centered + half_bin) / self.scale)  # log F(a)
        below = F.logsigmoid((half_bin - centered) / self.scale)  # log F(−b)
        width = torch.log(-torch.expm1(-2 * half_bin / self.scale))  # log(1 − exp(b − a))
        level = (x * (self.levels - 1)).round()
        lowest, highest = level <= 0, level >= self.levels - 1
        inside = above + below + width
        return sum_event(torch.where(lowest, above, torch.where(highest, below, inside)), self.event_ndim)

    @property
    def mean(self) -> Tensor:
        # E[l] = Σ_{l ≥ 1} P(level ≥ l), and level ≥ l means above the lower edge of bin l. One level at a time:
        # all levels at once would take L times the memory of a picture.
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels):
            edge = (level - 0.5) / (self.levels - 1)
            total += torch.sigmoid((self.loc - edge) / self.scale)
        return total / (self.levels - 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        value = self.loc + self.scale * torch.logit(uniform(self.loc, generator))
        return (value * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)


# -- likelihood modules --------------------------------------------------------------------------------------------


FOLLOWS: dict[Kind, str] = {"binary": "bernoulli", "levels": "discretized-logistic", "real": "gaussian"}
REMEDIES: dict[Kind, str] = {
    "binary": "use likelihood.name=bernoulli, or data.values=real for a density",
    "levels": "use likelihood.name=discretized-logistic, data.binarize=dynamic for Bernoulli, "
    "or data.values=real for a density",
    "real": "use likelihood.name=gaussian",
}


class Likelihood(nn.Module, ABC):
    """Turns decoder outputs [..., *output_shape] into a distribution of x.

    Attributes:
        kinds: the kinds of data on which it is normalized.
        discrete: whether log p is that of a probability, so that bits per dimension mean something.
        output_shape: what the decoder must return for one z: `(parameters, *event)`.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    discrete: ClassVar[bool]
    output_shape: tuple[int, ...]

    def __init__(self, data: DataSpec, parameters: int) -> None:
        super().__init__()
        if data.kind not in self.kinds:
            raise InputError(f"{type(self).__name__} is not normalized on {data.kind} data: {REMEDIES[data.kind]}")
        self.event_shape = data.shape
        self.event_ndim = len(data.shape)
        self.output_shape = (parameters, *data.shape)

    @abstractmethod
    def forward(self, outputs: Tensor) -> LikelihoodDistribution:
        """The distribution that these decoder outputs [..., *output_shape] stand for."""

    @abstractmethod
    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        """Start at the data: set own parameters, and return the outputs [*output_shape] that fit best.

        Args:
            mean, std: of the training data, [*event], on the model's scale.
        """

    def fraction_at_floor(self, distribution: LikelihoodDistribution) -> Tensor | None:
        """Share of scales that their floor holds up, a scalar tensor; None where no scale is learned."""
        return None

    def unbind(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """[..., P, *event] -> P tensors [..., *event]."""
        axis = -self.event_ndim - 1
        # A view back and forth, where unbind would copy the gradient.
        return (outputs.squeeze(axis),) if outputs.shape[axis] == 1 else outputs.unbind(axis)


@register("likelihood", "auto")
def follow_data(data: DataSpec) -> Likelihood:
    """The likelihood that follows from the kind of data, with its default keys."""
    return build("likelihood", section("likelihood", {"name": FOLLOWS[data.kind]}), data)


@register("likelihood", "bernoulli")
class BernoulliLikelihood(Likelihood):
    """For binary data. One output a dimension: the logit of P(x = 1)."""

    kinds = ("binary",)
    discrete = True

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=1)

    def forward(self, outputs: Tensor) -> Bernoulli:
        (logits,) = self.unbind(outputs)
        return Bernoulli(logits, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0.01, 0.99)).unsqueeze(0)


ScaleShape = Literal["one", "dimension", "pixel"]


class LocScaleLikelihood(Likelihood):
    """What `gaussian` and `discretized-logistic` share: a location, and a scale with a floor.

    The scale is fixed (a number), or learned in one of three shapes:
    `one` for all; one a `dimension` (the same for every x); or one a `pixel`, which the decoder predicts from z.
    A learned scale is σ = √(floor² + s²), with s = exp(raw): smooth, so that a scale can come back from its
    floor. Without a floor, a dimension that never varies would send σ to 0 and the density to infinity.
    """

    std_to_scale: ClassVar[float]

    def __init__(self, data: DataSpec, scale: float | str, scale_shape: ScaleShape, scale_floor: float) -> None:
        super().__init__(data, parameters=2 if scale_shape == "pixel" and scale == "learned" else 1)
        if scale != "learned" and scale_shape != "one":
            raise InputError(f"likelihood.scale_shape={scale_shape}: a fixed scale is one for all; drop it")
        self.scale_floor = scale_floor
        self.fixed_scale = None if isinstance(scale, str) else scale
        self.log_scale: nn.Parameter | None = None
        if scale == "learned" and scale_shape != "pixel":
            shape = data.shape if scale_shape == "dimension" else (1,) * len(data.shape)
            self.log_scale = nn.Parameter(torch.zeros(shape))

    def loc_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Location [..., *event] and scale (which broadcasts to it)."""
        loc, *predicted = self.unbind(outputs)
        if self.fixed_scale is not None:
            return loc, loc.new_tensor(self.fixed_scale)
        log_scale = predicted[0] if predicted else self.log_scale
        assert log_scale is not None
        return loc, (self.scale_floor**2 + (2 * log_scale).exp()).sqrt()

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        start = (std * self.std_to_scale).clamp(min=10 * self.scale_floor)
        if self.log_scale is not None:
            pooled = start if self.log_scale.shape == start.shape else start.square().mean().sqrt()
            self.log_scale.data.copy_(pooled.log())
        return torch.stack((mean, start.log())[: self.output_shape[0]])

    def fraction_at_floor(self, distribution: LikelihoodDistribution) -> Tensor | None:
        if self.fixed_scale is not None:
            return None
        assert isinstance(distribution, Gaussian | DiscretizedLogistic)
        # s < floor, where the floor makes up more than half of σ².
        return (distribution.scale < math.sqrt(2) * self.scale_floor).float().mean()


Learned = Literal["learned"]


@register("likelihood", "gaussian")
class GaussianLikelihood(LocScaleLikelihood):
    """For real data. With σ fixed, −log p is ‖x − loc‖² / (2σ²) plus a constant that is kept."""

    kinds = ("real",)
    discrete = False
    std_to_scale = 1.0

    def __init__(
        self,
        data: DataSpec,
        *,
        scale: PositiveFloat | Learned = "learned",
        scale_shape: ScaleShape = "one",
        scale_floor: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(data, scale, scale_shape, scale_floor)

    def forward(self, outputs: Tensor) -> Gaussian:
        return Gaussian(*self.loc_scale(outputs), self.event_ndim)


@register("likelihood", "discretized-logistic")
class DiscretizedLogisticLikelihood(LocScaleLikelihood):
    """For integer levels: the default for grey and colour pictures. Over the data's own number of levels."""

    kinds = ("levels", "binary")
    discrete = True
    std_to_scale = math.sqrt(3) / math.pi  # a logistic of scale s has variance s² π² / 3

    def __init__(
        self,
        data: DataSpec,
        *,
        scale: PositiveFloat | Learned = "learned",
        scale_shape: ScaleShape = "pixel",
        scale_floor: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(data, scale, scale_shape, scale_floor)
        assert data.levels is not None
        self.levels = data.levels

    def forward(self, outputs: Tensor) -> DiscretizedLogistic:
        return DiscretizedLogistic(*self.loc_scale(outputs), self.levels, self.event_ndim)
