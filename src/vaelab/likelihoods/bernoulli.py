"""One logit a dimension: Bernoulli for 0 and 1, continuous Bernoulli for everything between."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.config import register
from vaelab.data.spec import DataSpec
from vaelab.errors import InputError
from vaelab.likelihoods.base import Likelihood, LikelihoodDistribution, suitable, sum_event, uniform

FACTORS = 64
"""At most, of one product: in float32 it underflows where they have less than 1/4 each, as a geometric mean."""


def sum_log(chances: Tensor) -> tuple[Tensor, Tensor]:
    """Σ log p over the last axis, [..., D] -> [...]: one logarithm for a product of up to 64 factors, not for each.

    Evaluation of binary pictures takes a seventh less time for it. Also which sums are wrong, for a product underflows.
    """
    size = chances.shape[-1]
    factors = max(number for number in range(1, FACTORS + 1) if size % number == 0)
    products = chances.unflatten(-1, (-1, factors)).prod(-1)
    return products.log().sum(-1), (products < torch.finfo(chances.dtype).tiny).any(-1)


@dataclass
class Bernoulli(LikelihoodDistribution):
    """Each dimension is 1 with probability sigmoid(logits), else 0."""

    logits: Tensor
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        # P(1) = σ(l), P(0) = σ(−l): the sign of the logit is all that x decides.
        signed = ((2 * x - 1) * self.logits).flatten(-self.event_ndim)
        if signed.requires_grad:  # the gradient of a product takes longer than it saves
            return F.logsigmoid(signed).sum(-1)
        # In float32 the rounding of σ(v) near 1 costs up to 1e-7 nats a number.
        total, underflow = sum_log(signed.sigmoid_())
        if underflow.any():  # each factor has its own logarithm there
            logits = self.logits.expand(*underflow.shape, *self.logits.shape[-self.event_ndim :])[underflow]
            values = x.expand(*underflow.shape, *x.shape[-self.event_ndim :])[underflow]
            total[underflow] = F.logsigmoid((2 * values - 1) * logits).flatten(-self.event_ndim).sum(-1)
        return total

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean, generator=generator)


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


@dataclass
class ContinuousBernoulli(LikelihoodDistribution):
    """A density on [0, 1]: p(x) = C λˣ (1 − λ)¹⁻ˣ, λ = sigmoid(logits). Loaiza-Ganem & Cunningham 2019, eq. 5.

    arXiv:1907.06845. With the logit η = ln(λ / (1 − λ)) this is p(x) = exp(ηx − A(η)), where
    A(η) = ln((exp(η) − 1) / η) = η/2 + ln(sinh(η/2) / (η/2)), and E[x] = A′(η). A is smooth at η = 0 (λ = ½), but its
    two parts are infinite there, so a Taylor series takes over around it.
    """

    logits: Tensor
    event_ndim: int

    def _branches(self, narrow: float) -> tuple[Tensor, Tensor, Tensor]:
        """Whether |η| < `narrow`; η where it is, else 0; |η| where it is not, else 1. No gradient of 0 · ∞ arises."""
        near = self.logits.abs() < narrow
        return near, torch.where(near, self.logits, 0), torch.where(near, 1, self.logits.abs())

    def log_prob(self, x: Tensor) -> Tensor:
        near, small, large = self._branches(0.5)
        square = small.square()
        series = square * (
            1 / 24 + square * (-1 / 2880 + square * (1 / 181440 + square * (-1 / 9676800 + square / 479001600)))
        )
        closed = large / 2 + torch.log(-torch.expm1(-large)) - large.log()
        return sum_event((x - 0.5) * self.logits - torch.where(near, series, closed), self.event_ndim)

    @property
    def mean(self) -> Tensor:
        near, small, large = self._branches(0.5)
        square = small.square()
        series = small * (
            1 / 12 + square * (-1 / 720 + square * (1 / 30240 + square * (-1 / 1209600 + square / 47900160)))
        )
        closed = torch.copysign(-1 / torch.expm1(-large) - 1 / large - 0.5, self.logits)
        return 0.5 + torch.where(near, series, closed)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        # The inverse CDF for −|η|, where nothing overflows; x -> 1 − x turns −η into η.
        near, _, large = self._branches(1e-4 if self.logits.dtype == torch.float32 else 1e-9)
        u = uniform(self.logits, generator)
        x = torch.where(near, u, -torch.log1p(u * torch.expm1(-large)) / large)
        return torch.where(self.logits > 0, 1 - x, x)


@register("likelihood", "continuous-bernoulli")
class ContinuousBernoulliLikelihood(Likelihood):
    """For real data in [0, 1]. One output a dimension: the logit η of λ; the mean is σ-shaped in η, but not σ(η)."""

    kinds = ("real",)
    discrete = False

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=1)

    def forward(self, outputs: Tensor) -> ContinuousBernoulli:
        (logits,) = self.unbind(outputs)
        return ContinuousBernoulli(logits, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        wanted = mean.clamp(0.01, 0.99).double()
        low, high = torch.full_like(wanted, -200.0), torch.full_like(wanted, 200.0)
        for _ in range(60):  # bisection: the mean rises with the logit, from 0.005 at −200 to 0.995 at 200
            middle = (low + high) / 2
            below = ContinuousBernoulli(middle, self.event_ndim).mean < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.to(mean.dtype).unsqueeze(0)

    def check(self, low: Tensor | float, high: Tensor | float) -> None:
        if float(low) < 0 or float(high) > 1:
            raise InputError(
                f"likelihood.name=continuous-bernoulli: wants values from 0 to 1, and the data reach from "
                f"{float(low):.6g} to {float(high):.6g}; scale them, or use another of the likelihoods "
                f"{suitable('real')}"
            )
