"""Categorical latents, and their continuous relaxation."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.config import PositiveFloat, register
from vaelab.latents import LatentSpec
from vaelab.posteriors.base import Posterior, PosteriorDistribution


@dataclass
class Categorical(PosteriorDistribution):
    """G independent categorical latents of C categories each; z is their one-hot blocks, [..., B, G·C].

    Attributes:
        logits: log π, normalized log-probabilities, [B, G, C].
        temperature: τ of the relaxed draws; towards 0 they become one-hot.
        straight_through: relaxed draws are one-hot in value, and relaxed in their gradient alone.
    """

    logits: Tensor
    temperature: float = 2 / 3
    straight_through: bool = False

    @property
    def mean(self) -> Tensor:
        """The probabilities π, [B, G·C]."""
        return self.logits.exp().flatten(-2)

    @property
    def stddev(self) -> Tensor:
        return (self.mean * (1 - self.mean)).sqrt()

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Relaxed draws softmax((log π + Gumbel noise) / τ), and Σ_c z_c log π_c, summed over the latents.

        Jang et al. 2017 (arXiv:1611.01144), eq. 2; Maddison et al. 2017 (arXiv:1611.00712), eq. 10. The second value
        is the discrete log-probability, carried on linearly between the one-hots. It is not the density of the relaxed
        draws (Maddison et al., eq. 10): that one would have to be compared with a relaxed prior.
        """
        scores = self._scores(num_samples, generator)
        z = (scores / self.temperature).softmax(-1)
        if self.straight_through:
            # The difference is exactly zero, so z stays exactly one-hot.
            z = self._one_hot(scores) + (z - z.detach())
        return self._with_log_prob(z.flatten(-2))

    def sample_with_log_prob(self, num_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """True one-hot draws: the largest of log π + Gumbel noise. No gradient flows through them."""
        return self._with_log_prob(self._one_hot(self._scores(num_samples, generator)).flatten(-2))

    def log_prob(self, z: Tensor) -> Tensor:
        return self.marginal_log_prob(z).sum(-1)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        # A product of matrices, so that [..., B, 1, D] against B examples does not take B² · D numbers.
        return torch.einsum("...gc,...gc->...g", z.unflatten(-1, self.logits.shape[-2:]), self.logits)

    def detached(self) -> "Categorical":
        return replace(self, logits=self.logits.detach())

    def _scores(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        """Log π + Gumbel noise, [K, B, G, C]. Minus the logarithm of an exponential variable is a Gumbel one."""
        shape = (num_samples, *self.logits.shape)
        exponential = torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device)
        return self.logits - exponential.exponential_(generator=generator).log()

    def _one_hot(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)

    def _with_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.log_prob(z)


@register("posterior", "gumbel-softmax")
class GumbelSoftmaxPosterior(Posterior):
    """Categorical latents, relaxed while training (Jang et al. 2017; Maddison et al. 2017).

    `model.latent_dim` counts the latents; each takes `categories` numbers of z. Their logits are linear in the
    features. The default `temperature`, 2/3, lies within the 0.5 to 1 over which Jang et al. anneal theirs: lower,
    and the gradient's variance grows; higher, and relaxed draws are further from the true ones that evaluation makes.
    """

    provides = frozenset({"density", "reparameterized", "stochastic", "log-prob", "marginals"})
    holds = "categorical"

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        *,
        categories: Annotated[int, Field(strict=True, ge=2)] = 10,
        temperature: PositiveFloat = 0.67,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        self.latents = LatentSpec(categorical=latent_dim, categories=categories)
        self.temperature = temperature
        self.straight_through = straight_through
        self.head = nn.Linear(num_features, self.latents.width)

    def forward(self, features: Tensor) -> Categorical:
        logits = self.head(features).unflatten(-1, (self.latents.categorical, self.latents.categories))
        return Categorical(logits.log_softmax(-1), self.temperature, self.straight_through)
