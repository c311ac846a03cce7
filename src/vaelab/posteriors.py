"""q(z|x): the approximate posterior.

A *posterior module* turns the encoder's features [B, F] into a distribution of z. It owns the last, linear layer,
so that any encoder serves any posterior. A *posterior distribution* returns a sample together with its
log-density, because for some families (autoregressive flows) the density of a given z costs far more.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaelab.config import register
from vaelab.likelihoods import LOG_2PI


class PosteriorDistribution(ABC):
    """q(z|x) for a batch of B examples."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[z|x], [B, D]."""

    @abstractmethod
    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`num_samples` (K) reparameterized draws.

        Returns:
            z [K, B, D], and log q(z|x) [K, B] in nats, or None where q has no density.
        """


@dataclass
class DiagonalGaussian(PosteriorDistribution):
    """N(loc, diag(scale²)), [B, D]."""

    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        return self.loc

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        shape = (num_samples, *self.loc.shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        z = self.loc + self.scale * noise  # Kingma & Welling 2013, section 2.4
        # log N(z; loc, scale²) with (z − loc) / scale = noise put in directly: no division, the same gradient.
        log_qz_x = -(0.5 * noise.square() + self.scale.log() + 0.5 * LOG_2PI).sum(-1)
        return z, log_qz_x

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z|x) in nats at any z [..., B, D] -> [..., B]."""
        noise = (z - self.loc) / self.scale
        return -(0.5 * noise.square() + self.scale.log() + 0.5 * LOG_2PI).sum(-1)


@dataclass
class Deterministic(PosteriorDistribution):
    """All mass on one point: an autoencoder. It has no density, hence no rate and no ELBO."""

    loc: Tensor

    @property
    def mean(self) -> Tensor:
        return self.loc

    def rsample_with_log_prob(self, num_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, None]:
        return self.loc.expand(num_samples, *self.loc.shape), None


class Posterior(nn.Module, ABC):
    """Turns features [B, F] into q(z|x)."""

    has_density: bool = True

    @abstractmethod
    def forward(self, features: Tensor) -> PosteriorDistribution:
        """The posterior of each example."""


@register("posterior", "gaussian")
class GaussianPosterior(Posterior):
    """A diagonal Gaussian whose mean and log-variance are linear in the features (Kingma & Welling 2013, eq. 9)."""

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_features, 2 * latent_dim)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        loc, log_variance = self.head(features).chunk(2, dim=-1)
        return DiagonalGaussian(loc, (0.5 * log_variance).exp())


@register("posterior", "deterministic")
class DeterministicPosterior(Posterior):
    """A point: z is linear in the features. Makes the model a plain autoencoder."""

    has_density = False

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_features, latent_dim)

    def forward(self, features: Tensor) -> Deterministic:
        return Deterministic(self.head(features))
