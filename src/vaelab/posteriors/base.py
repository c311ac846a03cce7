"""What every posterior is: a module that turns features into a distribution of z, and that distribution."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from vaelab.latents import Holds, LatentSpec

Capability = Literal["density", "reparameterized", "stochastic", "log-prob", "marginals", "moments"]
"""What an objective may need of q(z|x):

density          log q of its own draws; without it there is no ELBO
reparameterized  gradients flow through the draws
stochastic       two draws differ
log-prob         log q(z|x) at any z, and with detached parameters
marginals        the same for each latent alone
moments          mean and covariance in closed form
"""


class PosteriorDistribution(ABC):
    """q(z|x) for a batch of B examples; z is [K, B, D]."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[z|x], [B, D]."""

    @property
    def stddev(self) -> Tensor | None:
        """Standard deviation of each number of z, [B, D]; None where all mass is on one point."""
        return None

    @abstractmethod
    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`num_samples` (K) reparameterized draws.

        Returns:
            z [K, B, D], and log q(z|x) [K, B] in nats, or None where q has no density.
        """

    def sample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Exact draws: those above, but where a family relaxes them to have gradients."""
        return self.rsample_with_log_prob(num_samples, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z|x) in nats at any z [..., B, D] -> [..., B]. Capability `log-prob`."""
        raise NotImplementedError

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Log q(z_g|x) of each of G latents, [..., B, D] -> [..., B, G]. Capability `marginals`.

        Leading axes broadcast: `marginal_log_prob(z[..., None, :])` scores every draw under every example's posterior.
        """
        raise NotImplementedError

    @property
    def covariance(self) -> Tensor:
        """Cov[z|x], [B, D, D]. Capability `moments`."""
        raise NotImplementedError

    def detached(self) -> Self:
        """The same distribution with parameters that pass no gradient on. Capability `log-prob`."""
        raise NotImplementedError


class Posterior(nn.Module, ABC):
    """Turns features [B, F] into q(z|x).

    Attributes:
        provides: what its distributions can do.
        holds: of what kind its latents are.
        by_place: whether it wants features place by place, as quantizers do.
        latents: what z is.
    """

    provides: frozenset[Capability]
    holds: ClassVar[Holds] = "real"
    by_place: ClassVar[bool] = False
    latents: LatentSpec

    @abstractmethod
    def forward(self, features: Tensor) -> PosteriorDistribution:
        """The posterior of each example."""
