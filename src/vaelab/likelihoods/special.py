"""Functions around Γ that stay exact in float32, where differences of `lgamma` do not: lgamma(1e6) is off by 0.5."""

import torch
from torch import Tensor

from vaelab.likelihoods.base import LOG_2PI, uniform


def log_gamma_remainder(x: Tensor) -> Tensor:
    """ρ(x) for x ≥ 1 in log Γ(x) = (x − ½) log(x + 4) − (x + 4) + ½ log 2π + ρ(x): small, and smooth.

    It is Stirling's series (Abramowitz & Stegun 1964, 6.1.40) for log Γ(x + 4), less log(x (x + 1) (x + 2) (x + 3)),
    with the large parts taken out. Exact to 4e-10.
    """
    u = 1 / (x + 4)
    square = u.square()
    series = u * (1 / 12 + square * (-1 / 360 + square * (1 / 1260 - square / 1680)))
    return series - torch.log((1 - u) * (1 - 2 * u) * (1 - 3 * u) * (1 - 4 * u))


def log_gamma_step(a: Tensor) -> Tensor:
    """Log Γ(a + ½) − log Γ(a), a > 0."""
    # Γ(a + ½) / Γ(a) = a / (a + ½) · Γ(b + ½) / Γ(b) with b = a + 1 ≥ 1; the large parts of these two are combined.
    b = a + 1
    large = (b - 0.5) * torch.log1p(0.5 / (b + 4)) + 0.5 * (b + 4.5).log() - 0.5
    return a.log() - (a + 0.5).log() + large + log_gamma_remainder(b + 0.5) - log_gamma_remainder(b)


def log_rising(count: Tensor, log_a: Tensor) -> Tensor:
    """Log of Γ(k + a) / (Γ(a) k!), k = 0, 1, 2, ..., from log a: the coefficient of tᵏ in (1 − t)⁻ᵃ.

    Where a underflows, log a still counts.
    """
    # For k ≥ 1 this is a / k · Γ(m + b) / (Γ(b) m!), m = k − 1, b = a + 1 ≥ 1; their large parts are combined.
    positive = count.clamp(min=1)
    m, b = positive - 1, log_a.exp() + 1
    large = (b - 0.5) * torch.log1p(m / (b + 4)) + m * ((m + b + 4) / (m + 5)).log() - 0.5 * (m + 5).log()
    remainders = log_gamma_remainder(m + b) - log_gamma_remainder(b) - log_gamma_remainder(positive)
    return torch.where(count >= 1, log_a - positive.log() + large + (5 - 0.5 * LOG_2PI) + remainders, 0)


def log_gamma_draw(a: Tensor, generator: torch.Generator | None) -> Tensor:
    """The log of one draw from Γ(a, 1) for every a: for small a the draw itself underflows."""
    a = a.clamp(min=1e-30)
    # Γ(a) = Γ(a + 1) · U^(1/a) in distribution. torch.distributions.Gamma takes no generator.
    larger = torch._standard_gamma(a + 1, generator)  # pyright: ignore[reportPrivateUsage,reportPrivateImportUsage]
    return larger.log() + uniform(a, generator).log() / a
