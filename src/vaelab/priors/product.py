"""Two priors side by side: real latents and categorical ones."""

import torch
from torch import Tensor

from vaelab.latents import LatentSpec
from vaelab.posteriors import PosteriorDistribution
from vaelab.posteriors.product import Product
from vaelab.priors.base import Prior


class ProductPrior(Prior):
    """p(z) = p(z_1) p(z_2): z is real numbers from one prior, then one-hot latents from another."""

    holds = "joint"

    def __init__(self, real: Prior, categorical: Prior) -> None:
        one, other = real.latents, categorical.latents
        super().__init__(LatentSpec(one.real, other.categorical, other.categories))
        self.real, self.categorical = real, categorical

    def log_prob(self, z: Tensor) -> Tensor:
        first, second = self._split(z)
        return self.real.log_prob(first) + self.categorical.log_prob(second)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat(
            (self.real.sample(num_samples, generator), self.categorical.sample(num_samples, generator)), dim=-1
        )

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        if not isinstance(posterior, Product):
            return None
        first, second = self.real.kl(posterior.parts[0]), self.categorical.kl(posterior.parts[1])
        return None if first is None or second is None else torch.cat((first, second), dim=-1)

    def start(self, x: Tensor) -> None:
        self.real.start(x)
        self.categorical.start(x)

    @property
    def start_examples(self) -> int:
        return max(self.real.start_examples, self.categorical.start_examples)

    def fit(self, z: Tensor, generator: torch.Generator) -> None:
        first, second = self._split(z)
        self.real.fit(first, generator)
        self.categorical.fit(second, generator)

    @property
    def fit_draws(self) -> int:
        return max(self.real.fit_draws, self.categorical.fit_draws)

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.split([self.real.latent_dim, self.categorical.latent_dim], dim=-1)
