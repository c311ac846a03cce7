"""The Fréchet distance between two Gaussians, and between the Gaussians fitted to two samples."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vaelab.errors import InputError
from vaelab.evaluation.quality.arrays import Rows, pair

MOST_DIMENSIONS = 2048  # eigenvalues of larger covariances take minutes


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean [D] and covariance [D, D], float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Gaussian":
        """The Gaussian with the mean and the (unbiased) covariance of a sample [N, D]."""
        return cls(x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance. Negative eigenvalues are rounding, and count as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(self, other: "Gaussian") -> float:
        """|μ − μ'|² + Tr(C + C' − 2 (C^½ C' C^½)^½): Heusel et al. 2017, eq. 6, in its symmetric form.

        The trace of the last root is the sum of the roots of its eigenvalues, which are real and not negative: C C',
        as the equation is written, has them too, but is not symmetric, and its root comes out complex by rounding.
        """
        between = torch.linalg.eigvalsh(self.root @ other.covariance @ self.root)
        spread = self.covariance.trace() + other.covariance.trace() - 2 * between.clamp(min=0).sqrt().sum()
        return max(0.0, float((self.mean - other.mean).square().sum() + spread))  # rounding may leave less

    def bias(self, n: int, m: int) -> float:
        """What `frechet_distance` gives in expectation for N and M draws from this one Gaussian, to order 1/N and 1/M.

        With the eigenvalues λ of C it is (1/N + 1/M) (Tr C + ½ Σ_ij λ_i λ_j (1 + δ_ij) / (λ_i + λ_j)). The first term
        is what the means differ by. The second is ½ E[Σ_ij Δ_ij² / (λ_i + λ_j)]: for covariances that differ by a small
        Δ, the rest of the distance comes down to that, and E[Δ_ij²] = (1/N + 1/M) λ_i λ_j (1 + δ_ij).
        """
        values = torch.linalg.eigvalsh(self.covariance).clamp(min=0)
        values = values[values > values.max() * 1e-12]
        pairs = values[:, None] * values / (values[:, None] + values)
        return (1 / n + 1 / m) * float(values.sum() + (pairs.sum() + pairs.trace()) / 2)


def frechet_distance(x: Rows, y: Rows) -> float:
    """The squared Fréchet distance between the Gaussians fitted to samples x [N, D] and y [M, D].

    Heusel et al. 2017, eq. 6; of features of the Inception network it is known as FID. It sees means and covariances
    alone. It is biased upwards: two samples of one distribution are at a distance above 0, the more so the fewer they
    are (`frechet_bias`). So compare at equal N and M, and with the value for real against real.

    Raises:
        InputError: no two samples of at most 2048 features.
    """
    one, other = pair(x, y)
    if one.shape[1] > MOST_DIMENSIONS:
        most = f"{MOST_DIMENSIONS:,}"
        raise InputError(f"{one.shape[1]:,} features: the Fréchet distance takes at most {most}; use fewer components")
    return Gaussian.of(one).distance(Gaussian.of(other))


def frechet_bias(x: Rows, n: int, m: int) -> float:
    """What `frechet_distance` gives in expectation for N and M draws of one Gaussian with the covariance of x.

    To order 1/N and 1/M: see `Gaussian.bias`. Features that are not Gaussian have another bias.
    """
    one, _ = pair(x, x)
    return Gaussian.of(one).bias(n, m)
