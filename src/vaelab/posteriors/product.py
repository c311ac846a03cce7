"""Two posteriors side by side: real latents and categorical ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaelab.latents import LatentSpec
from vaelab.posteriors.base import Posterior, PosteriorDistribution


@dataclass
class Product(PosteriorDistribution):
    """q(z|x) = q(z_1|x) q(z_2|x); z is the two, one after the other."""

    parts: tuple[PosteriorDistribution, PosteriorDistribution]

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], dim=-1)

    @property
    def stddev(self) -> Tensor | None:
        found = [part.stddev for part in self.parts]
        return None if found[0] is None or found[1] is None else torch.cat((found[0], found[1]), dim=-1)

    def rsample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return _joined([part.rsample_with_log_prob(num_samples, generator) for part in self.parts])

    def sample_with_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return _joined([part.sample_with_log_prob(num_samples, generator) for part in self.parts])

    def log_prob(self, z: Tensor) -> Tensor:
        first, second = (part.log_prob(own) for part, own in zip(self.parts, self._split(z), strict=True))
        return first + second

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        return torch.cat(
            [part.marginal_log_prob(own) for part, own in zip(self.parts, self._split(z), strict=True)], dim=-1
        )

    def detached(self) -> "Product":
        return Product((self.parts[0].detached(), self.parts[1].detached()))

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        width = self.parts[0].mean.shape[-1]
        return z.split([width, z.shape[-1] - width], dim=-1)


def _joined(draws: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    (first, log_first), (second, log_second) = draws
    log_q = None if log_first is None or log_second is None else log_first + log_second
    return torch.cat((first, second), dim=-1), log_q


class ProductPosterior(Posterior):
    """Real latents from one posterior, and categorical ones from another, given the same features."""

    def __init__(self, real: Posterior, categorical: Posterior) -> None:
        super().__init__()
        self.real, self.categorical = real, categorical
        self.provides = real.provides & categorical.provides
        self.latents = LatentSpec(real.latents.real, categorical.latents.categorical, categorical.latents.categories)

    def forward(self, features: Tensor) -> Product:
        return Product((self.real(features), self.categorical(features)))
