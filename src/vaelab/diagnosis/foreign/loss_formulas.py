"""The formulas that foreign losses are made of, right ones and wrong ones."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from vaelab.diagnosis.foreign.reading import READINGS


def _bce(p: Tensor, x: Tensor) -> Tensor:
    return -(x * p.log() + (1 - x) * (1 - p).log())


def _with_logits(logits: Tensor, x: Tensor) -> Tensor:
    return F.softplus(logits) - x * logits


STRETCHED = "squared error, of 2x − 1"
SHRUNK = "of x / 255"
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared error": lambda r, x: (r - x).square(),
    "binary cross-entropy": _bce,
    "binary cross-entropy with logits": _with_logits,
    "absolute error": lambda r, x: (r - x).abs(),
    "binary cross-entropy with logits of a sigmoid": lambda r, x: _with_logits(r.sigmoid(), x),
    STRETCHED: lambda r, x: (r - (2 * x - 1)).square(),
    "squared error of a sigmoid": lambda r, x: (r.sigmoid() - x).square(),
    "binary cross-entropy of swapped arguments": lambda r, x: _bce(x, r),
    "binary cross-entropy with logits of swapped arguments": lambda r, x: _with_logits(x, r),
    "half of a binary cross-entropy, −x ln r": lambda r, x: -x * r.log(),
    f"squared error {SHRUNK}": lambda r, x: (r - x / 255).square(),
    f"binary cross-entropy {SHRUNK}": lambda r, x: _bce(r, x / 255),
    f"binary cross-entropy with logits {SHRUNK}": lambda r, x: _with_logits(r, x / 255),
}
"""ℓ(r, x) of one pixel."""

BASIS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "m²": lambda m, s: m.square(),
    "exp(s)": lambda m, s: s.exp(),
    "s": lambda m, s: s,
    "exp(2s)": lambda m, s: (2 * s).exp(),
    "exp(s/2)": lambda m, s: (s / 2).exp(),
    "s²": lambda m, s: s.square(),
    "ln|s|": lambda m, s: s.abs().log(),
    "m": lambda m, s: m,
    "|m|": lambda m, s: m.abs(),
    "exp(m)": lambda m, s: m.exp(),
}
"""What KL formulas of one latent are made of, right ones and wrong ones."""

FORMULAS: dict[str, dict[str, float]] = {
    "log-variance": {"m²": 0.5, "exp(s)": 0.5, "s": -0.5},
    "log-standard-deviation": {"m²": 0.5, "exp(2s)": 0.5, "s": -1.0},
    "standard-deviation": {"m²": 0.5, "s²": 0.5, "ln|s|": -1.0},
    "variance": {"m²": 0.5, "s": 0.5, "ln|s|": -0.5},
}
"""KL(N(m, σ²) ‖ N(0, 1)) = ½ (m² + σ² − 1 − ln σ²) as terms of `BASIS`, by what s is."""


def _kl(m: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * (m.square() + sigma.square() - 1) - sigma.log()


def _reversed(m: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * ((1 + m.square()) / sigma.square() - 1) + sigma.log()


RIGHT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    name: lambda m, s, sigma=sigma: _kl(m, sigma(s)) for name, (_, sigma, _) in READINGS.items()
}
"""The KL of one latent, by what s is."""

EXCHANGED = "exchanged"
REVERSED = "reversed"
WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    EXCHANGED: lambda m, s: _kl(s, (m / 2).exp()),
    REVERSED: lambda m, s: _reversed(m, (s / 2).exp()),
    f"{REVERSED}, of a standard deviation": _reversed,
}
"""Whole formulas that are taken for the KL: mean and log-variance exchanged, and KL(N(0, 1) ‖ N(m, σ²))."""
