"""Probabilities of counts 0, 1, 2, ...: a level of L is a count, the model's scale divides it by L − 1."""

import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.config import register
from vaelab.data.spec import DataSpec
from vaelab.likelihoods.base import LOG_2PI, Likelihood, LikelihoodDistribution, sum_event, to_levels
from vaelab.likelihoods.special import log_gamma_draw, log_gamma_remainder, log_rising

LEAST = 0.01  # expected count, and distance from the highest one, at the start: a dimension that never varies
_Distribution = TypeVar("_Distribution", "BetaBinomial", "NegativeBinomial")
MANY_LEVELS = 1024  # above, float32 loses too much: at 4,096 the probabilities of a beta-binomial sum to 1 ± 0.003
LARGEST_RATE = 1e9  # drawn from: torch.poisson counts in integers


def bound_of(levels: int) -> float:
    """Where the concentration or dispersion ends: what is left of overdispersion there, no data can show.

    The variance is then within 0.1 % of the binomial's, or of the Poisson's for means up to L − 1. Beyond, float32
    would lose the probability in the difference of large numbers.
    """
    return 1000.0 * (levels - 1)


def log_bounded(raw: Tensor, levels: int) -> Tensor:
    """The log of 1 / (exp(−raw) + 1 / bound): as raw, but below a bound, which it nears smoothly."""
    return -torch.logaddexp(-raw, raw.new_tensor(-math.log(bound_of(levels))))


def in_float64(distribution: _Distribution) -> _Distribution:
    """The same distribution with parameters in float64."""
    tensors = {one.name: getattr(distribution, one.name) for one in fields(distribution)}
    wide = {name: value.double() for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(distribution, **wide)


def raw_of(value: Tensor, levels: int) -> Tensor:
    """The inverse of `log_bounded(raw).exp()`, for values brought into 1e-3 ... bound / 2."""
    return -(1 / value.clamp(1e-3, bound_of(levels) / 2) - 1 / bound_of(levels)).log()


class CountLikelihood(Likelihood):
    """What the likelihoods of counts share: the data's own levels."""

    kinds = ("levels", "binary")
    discrete = True

    def __init__(self, data: DataSpec, parameters: int) -> None:
        super().__init__(data, parameters)
        assert data.levels is not None
        self.levels = data.levels


# -- 0 ... L − 1 ---------------------------------------------------------------------------------------------------


@dataclass
class BetaBinomial(LikelihoodDistribution):
    """n = L − 1 trials whose probability of success is itself a Beta(α, β) draw; α + β is the concentration.

    P(k) = C(n, k) B(k + α, n − k + β) / B(α, β), α = concentration · sigmoid(logits), β = concentration − α. It can be
    a hump, flat, or high at both ends (α, β < 1), as pictures are; nothing is wider than its values.
    """

    logits: Tensor
    log_concentration: Tensor
    levels: int
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        if self.levels > MANY_LEVELS and self.logits.dtype != torch.float64:
            return in_float64(self).log_prob(x.double()).to(self.logits.dtype)
        successes = to_levels(x, self.levels)
        trials = self.logits.new_tensor(self.levels - 1.0)
        log_p = (
            log_rising(successes, self._log_alpha)
            + log_rising(trials - successes, self._log_beta)
            - log_rising(trials, self.log_concentration)
        )
        return sum_event(log_p, self.event_ndim)

    @property
    def _log_alpha(self) -> Tensor:
        return self.log_concentration + F.logsigmoid(self.logits)

    @property
    def _log_beta(self) -> Tensor:
        return self.log_concentration + F.logsigmoid(-self.logits)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        log_odds = log_gamma_draw(self._log_alpha.exp(), generator) - log_gamma_draw(self._log_beta.exp(), generator)
        trials = torch.full_like(log_odds, self.levels - 1.0)
        return torch.binomial(trials, log_odds.sigmoid(), generator=generator) / trials


@register("likelihood", "beta-binomial")
class BetaBinomialLikelihood(CountLikelihood):
    """For integer levels. Two outputs a dimension: the logit of the mean, and the log of the concentration."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=2)

    def forward(self, outputs: Tensor) -> BetaBinomial:
        logits, raw = self.unbind(outputs)
        return BetaBinomial(logits, log_bounded(raw, self.levels), self.levels, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        return torch.stack(beta_binomial_of(mean, std, self.levels))


def beta_binomial_of(mean: Tensor, std: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Logits and raw concentration of the beta-binomial with this mean and, where there is one, this spread."""
    trials = levels - 1
    center = mean.clamp(LEAST / trials, 1 - LEAST / trials)
    # Var(k) / n² = m (1 − m) / n · (1 + (n − 1) / (concentration + 1)); for n = 1 the concentration says nothing.
    excess = std.square() * trials / (center * (1 - center)) - 1
    concentration = (trials - 1) / excess.clamp(min=1e-6) - 1
    return torch.logit(center), raw_of(concentration, levels)


# -- 0 ... ∞ -------------------------------------------------------------------------------------------------------


@dataclass
class Poisson(LikelihoodDistribution):
    """Counts at a rate exp(log_rate): P(k) = rateᵏ exp(−rate) / k!.

    Its support is every integer ≥ 0, so some of the probability lies above the highest level L − 1, and draws may
    exceed 1 on the model's scale.
    """

    log_rate: Tensor
    levels: int
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        count = to_levels(x, self.levels)
        # k! in the form of `log_gamma_remainder`; its large parts and the rate's cancel in d, not after.
        d = self.log_rate - (count + 5).log()
        excess = count * d - (count + 5) * torch.expm1(d)
        rest = 0.5 * (count + 5).log() + 0.5 * LOG_2PI + log_gamma_remainder(count + 1)
        return sum_event(excess - rest, self.event_ndim)

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp() / (self.levels - 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(self.log_rate.exp().clamp(max=LARGEST_RATE), generator=generator) / (self.levels - 1)


@register("likelihood", "poisson")
class PoissonLikelihood(CountLikelihood):
    """For counts. One output a dimension: the log of the rate, which is both mean and variance of the count."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=1)

    def forward(self, outputs: Tensor) -> Poisson:
        (log_rate,) = self.unbind(outputs)
        return Poisson(log_rate, self.levels, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        return (mean * (self.levels - 1)).clamp(min=LEAST).log().unsqueeze(0)


@dataclass
class NegativeBinomial(LikelihoodDistribution):
    """A Poisson count whose rate is a Gamma draw of shape r = dispersion: mean m, variance m + m² / r.

    P(k) = Γ(k + r) / (Γ(r) k!) · (r / (r + m))ʳ (m / (r + m))ᵏ; Poisson as r → ∞. Support as `Poisson`.
    """

    log_mean: Tensor
    log_dispersion: Tensor
    levels: int
    event_ndim: int

    def log_prob(self, x: Tensor) -> Tensor:
        if self.levels > MANY_LEVELS and self.log_mean.dtype != torch.float64:
            return in_float64(self).log_prob(x.double()).to(self.log_mean.dtype)
        count = to_levels(x, self.levels)
        log_odds = self.log_mean - self.log_dispersion
        log_none = -self.log_dispersion.exp() * F.softplus(log_odds)
        log_each = F.logsigmoid(log_odds)
        return sum_event(log_rising(count, self.log_dispersion) + log_none + count * log_each, self.event_ndim)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp() / (self.levels - 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        log_factor = log_gamma_draw(self.log_dispersion.exp(), generator) - self.log_dispersion  # of mean 1
        return Poisson(self.log_mean + log_factor, self.levels, self.event_ndim).sample(generator)


@register("likelihood", "negative-binomial")
class NegativeBinomialLikelihood(CountLikelihood):
    """For counts that spread wider than Poisson's. Two outputs a dimension: the logs of the mean and the dispersion."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, parameters=2)

    def forward(self, outputs: Tensor) -> NegativeBinomial:
        log_mean, raw = self.unbind(outputs)
        return NegativeBinomial(log_mean, log_bounded(raw, self.levels), self.levels, self.event_ndim)

    def initialize(self, mean: Tensor, std: Tensor) -> Tensor:
        count = (mean * (self.levels - 1)).clamp(min=LEAST)
        excess = (std * (self.levels - 1)).square() - count
        return torch.stack((count.log(), raw_of(count.square() / excess.clamp(min=1e-6), self.levels)))
