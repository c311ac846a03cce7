"""A logistic density cut into the bins of the data's own levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.config import PositiveFloat, register
from vaelab.data.spec import DataSpec
from vaelab.likelihoods.base import sum_event, to_levels, uniform
from vaelab.likelihoods.scales import Learned, LocScaleDistribution, LocScaleLikelihood, ScaleShape

WINDOW = 64  # levels that `bin_mean` sums one by one


def bin_log_prob(x: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Log P of the bin around x, dimension by dimension (all arguments broadcast).

    Let F be the logistic CDF, a and b the standardized upper and lower edge of the bin that holds x.
    Then P(x) = F(a) − F(b), and that difference is F(a) · F(−b) · (1 − exp(b − a)): three factors without
    cancellation, so no probability needs a floor. The end bins reach to infinity.
    """
    half_bin = 0.5 / (levels - 1)
    centered = x - loc
    above = F.logsigmoid((centered + half_bin) / scale)  # log F(a)
    below = F.logsigmoid((half_bin - centered) / scale)  # log F(−b)
    width = torch.log(-torch.expm1(-2 * half_bin / scale))  # log(1 − exp(b − a))
    level = to_levels(x, levels)
    lowest, highest = level <= 0, level >= levels - 1
    inside = above + below + width
    return torch.where(lowest, above, torch.where(highest, below, inside))


def bin_mean(loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    """E[x] of the binned logistic, [...].

    E[l] = Σ_{l ≥ 1} P(level ≥ l), and level ≥ l means above the lower edge of bin l: a sum over f(t) = σ((loc − t) / s)
    at levels − 1 equally spaced t. The 64 levels around loc are summed one by one (all at once would take that many
    times the memory of a picture). Left and right of them f is smooth, and the sum over whole bins is the integral less
    h²/24 · (f′ at the upper end − f′ at the lower end), h being the bins' width (Euler–Maclaurin). What the series
    leaves out is at most 1e-7 h: f‴ is small where f is flat, and where s is many bins wide.
    """
    steps = levels - 1
    window = min(WINDOW, steps)
    first = (loc * steps - window // 2).round().clamp(0, steps - window)  # bins below the window
    total = torch.zeros_like(loc + scale)
    for level in range(window):
        total = total + torch.sigmoid((loc - (first + (level + 0.5)) / steps) / scale)
    total = total / steps
    if window == steps:
        return total

    return total + _smooth_part(loc, scale, 0, first, steps) + _smooth_part(loc, scale, first + window, steps, steps)


def _smooth_part(loc: Tensor, scale: Tensor, first: Tensor | int, last: Tensor | int, steps: int) -> Tensor:
    """What the bins `first` up to `last` of all `steps` add to `bin_mean`, by their integral and its correction."""
    width = (last - first) / steps / scale
    start, end = (loc - first / steps) / scale, (loc - last / steps) / scale
    # The integral of f is s · (softplus(start) − softplus(end)), which would cancel where s is wide.
    narrow = torch.log1p(end.sigmoid() * torch.expm1(width.clamp(max=1)))
    rise = torch.where(width < 1, narrow, F.softplus(start) - F.softplus(end))
    slopes = end.sigmoid() * (-end).sigmoid() - start.sigmoid() * (-start).sigmoid()  # s · (f′ start − f′ end)
    return scale * rise + slopes / (24 * steps**2) / scale


def bin_sample(loc: Tensor, scale: Tensor, levels: int, generator: torch.Generator | None) -> Tensor:
    """One draw for every loc."""
    value = loc + scale * torch.logit(uniform(loc, generator))
    return to_levels(value, levels).clamp(0, levels - 1) / (levels - 1)


@dataclass
class DiscretizedLogistic(LocScaleDistribution):
    """A logistic density cut into L bins around the levels l / (L − 1); the end bins reach to infinity.

    Kingma et al. 2016 (arXiv:1606.04934), section 5.2, with open ends as in Salimans et al. 2017 (arXiv:1701.05517),
    section 2.1.
    """

    loc: Tensor
    scale: Tensor
    levels: int
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        return sum_event(bin_log_prob(x, self.loc, self.scale, self.levels), self.event_ndim)

    @property
    def mean(self) -> Tensor:
        return bin_mean(self.loc, self.scale, self.levels)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return bin_sample(self.loc, self.scale, self.levels, generator)


@register("likelihood", "discretized-logistic")
class DiscretizedLogisticLikelihood(LocScaleLikelihood):
    """For integer levels: the default for gray and color pictures. Over the data's own number of levels."""

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
