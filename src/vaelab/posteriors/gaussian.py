"""Posteriors with a location and a scale: Gaussian, Laplace, and a point."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from vaelab.config import register
from vaelab.latents import LatentSpec
from vaelab.likelihoods import LOG_2PI
from vaelab.posteriors.base import Capability, Posterior, PosteriorDistribution


@dataclass
class LocationScale(PosteriorDistribution):
    """z = loc + scale · noise, number by number; loc and scale are [B, D]."""

    loc: Tensor
    scale: Tensor

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draws of the standard member of the family: location 0, scale 1."""

    @abstractmethod
    def noise_log_prob(self, noise: Tensor) -> Tensor:
        """The standard member's log-density in nats, number by number."""

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    @abstractmethod
    def stddev(self) -> Tensor: ...

    @property
    def covariance(self) -> Tensor:
        return self.stddev.square().diag_embed()

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        noise = self.noise((num_samples, *self.loc.shape), generator)
        z = self.loc + self.scale * noise  # Kingma & Welling 2013, section 2.4
        # The density at z with (z − loc) / scale = noise put in directly: no division, the same gradient.
        return z, (self.noise_log_prob(noise) - self.scale.log()).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.marginal_log_prob(z).sum(-1)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        return self.noise_log_prob((z - self.loc) / self.scale) - self.scale.log()

    def detached(self) -> Self:
        return replace(self, loc=self.loc.detach(), scale=self.scale.detach())


class DiagonalGaussian(LocationScale):
    """N(loc, diag(scale²)), [B, D]."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)

    def noise_log_prob(self, noise: Tensor) -> Tensor:
        return -0.5 * (noise.square() + LOG_2PI)

    @property
    def stddev(self) -> Tensor:
        return self.scale


class Laplace(LocationScale):
    """Density exp(−|z − loc| / scale) / (2 scale) for each number of z, [B, D]."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        # Two exponential variables differ by a Laplace one. Unlike the inverse of the cumulative distribution
        # function, this never takes the logarithm of a uniform number that was rounded to 0.
        pair = torch.empty(2, *shape, dtype=self.loc.dtype, device=self.loc.device)
        first, second = pair.exponential_(generator=generator)
        return first - second

    def noise_log_prob(self, noise: Tensor) -> Tensor:
        return -noise.abs() - math.log(2)

    @property
    def stddev(self) -> Tensor:
        return math.sqrt(2) * self.scale


@dataclass
class FullGaussian(PosteriorDistribution):
    """N(loc, L Lᵀ) with L lower triangular.

    Attributes:
        loc: the mean μ, [B, D].
        scale_tril: L, [B, D, D], with a positive diagonal.
    """

    loc: Tensor
    scale_tril: Tensor

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale_tril.square().sum(-1).sqrt()

    @property
    def covariance(self) -> Tensor:
        return self.scale_tril @ self.scale_tril.mT

    @property
    def conditional_stddev(self) -> Tensor:
        """L's diagonal, [B, D]: the standard deviation of z_j once z_1 … z_{j−1} are known."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1)

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        shape = (num_samples, *self.loc.shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        # One product of matrices an example serves all K draws, so that L is never copied K times.
        z = self.loc + torch.einsum("bij,kbj->kbi", self.scale_tril, noise)
        return z, self._log_density(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        offset = z - self.loc
        # All leading axes become columns of one right-hand side an example: the memory is z's, not z's times D.
        columns = offset.flatten(0, -3) if offset.ndim > 2 else offset[None]
        noise = torch.linalg.solve_triangular(self.scale_tril, columns.permute(1, 2, 0), upper=False)
        return self._log_density(noise.permute(2, 0, 1)).reshape(offset.shape[:-1])

    def _log_density(self, noise: Tensor) -> Tensor:
        """Log q at z = loc + L noise: log|det L| is the sum over L's diagonal."""
        return -0.5 * (noise.square() + LOG_2PI).sum(-1) - self.conditional_stddev.log().sum(-1)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        return DiagonalGaussian(self.loc, self.stddev).marginal_log_prob(z)

    def detached(self) -> "FullGaussian":
        return FullGaussian(self.loc.detach(), self.scale_tril.detach())


@dataclass
class Deterministic(PosteriorDistribution):
    """All mass on one point: an autoencoder. It has no density, hence no rate and no ELBO."""

    loc: Tensor

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def covariance(self) -> Tensor:
        return torch.zeros_like(self.loc).diag_embed()

    def rsample_with_log_prob(self, num_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, None]:
        return self.loc.expand(num_samples, *self.loc.shape), None


def location_and_scale(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's 2 D outputs as a location [B, D], and as a standard deviation [B, D] given by its log-variance."""
    loc, log_variance = outputs.chunk(2, dim=-1)
    return loc, (0.5 * log_variance).exp()


EVERYTHING: frozenset[Capability] = frozenset(
    {"density", "reparameterized", "stochastic", "log-prob", "marginals", "moments"}
)


@register("posterior", "gaussian")
class GaussianPosterior(Posterior):
    """A diagonal Gaussian whose mean and log-variance are linear in the features (Kingma & Welling 2013, eq. 9)."""

    provides = EVERYTHING

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, 2 * latent_dim)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(*location_and_scale(self.head(features)))


@register("posterior", "full-gaussian")
class FullGaussianPosterior(Posterior):
    """A Gaussian whose latents may be correlated: N(μ, L Lᵀ), with μ and L linear in the features.

    L's diagonal is the exponential of half a linear output, as the diagonal Gaussian's standard deviation is; below it
    L is free (Kingma & Welling 2019, arXiv:1906.02691, section 2.5.1). It starts diagonal. The last layer has
    D (D + 3) / 2 outputs, and L takes B·D² numbers: with 128 examples 0.2 MB at D = 20, 20 MB at D = 200.
    """

    provides = EVERYTHING

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, latent_dim * (latent_dim + 3) // 2)
        with torch.no_grad():  # random correlations would add D (D − 1) / 2 terms to the rate at the start
            self.head.weight[2 * latent_dim :] = 0
            self.head.bias[2 * latent_dim :] = 0

    def forward(self, features: Tensor) -> FullGaussian:
        size = self.latents.real
        outputs, below_diagonal = self.head(features).tensor_split((2 * size,), dim=-1)
        loc, conditional_stddev = location_and_scale(outputs)
        scale_tril = conditional_stddev.diag_embed()
        rows, columns = torch.tril_indices(size, size, -1, device=features.device)
        scale_tril[..., rows, columns] = below_diagonal
        return FullGaussian(loc, scale_tril)


@register("posterior", "laplace")
class LaplacePosterior(Posterior):
    """Independent Laplace distributions: sharper peaks and heavier tails than a Gaussian's.

    Location and log-variance are linear in the features. A Laplace distribution of scale b has variance 2 b², so it
    starts with the variance that the Gaussian would have.
    """

    provides = EVERYTHING

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, 2 * latent_dim)

    def forward(self, features: Tensor) -> Laplace:
        loc, stddev = location_and_scale(self.head(features))
        return Laplace(loc, stddev / math.sqrt(2))


@register("posterior", "deterministic")
class DeterministicPosterior(Posterior):
    """A point: z is linear in the features. Makes the model a plain autoencoder."""

    provides = frozenset({"reparameterized", "moments"})

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.latents = LatentSpec(real=latent_dim)
        self.head = nn.Linear(num_features, latent_dim)

    def forward(self, features: Tensor) -> Deterministic:
        return Deterministic(self.head(features))
