"""p(z): the distribution that latents are drawn from when the model generates."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vaelab.config import register
from vaelab.likelihoods import LOG_2PI
from vaelab.posteriors import DiagonalGaussian, PosteriorDistribution


class Prior(nn.Module, ABC):
    """A distribution of z, [D]."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats: [..., D] -> [...]."""

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of z, [num_samples, D]."""

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        """KL(q(z|x) ‖ p(z)) in closed form, in nats, latent by latent [B, D]; None where there is no closed form."""
        return None


@register("prior", "normal")
class StandardNormal(Prior):
    """N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # Draws must follow the model to its device and precision, and a prior without parameters has no other mark.
        self.register_buffer("origin", torch.zeros(()), persistent=False)
        self.origin: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        like = self.origin
        return torch.randn(num_samples, self.latent_dim, dtype=like.dtype, device=like.device, generator=generator)

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        if not isinstance(posterior, DiagonalGaussian):
            return None
        # ½ (σ² + μ² − 1 − log σ²), Kingma & Welling 2013, appendix B.
        return 0.5 * (posterior.scale.square() + posterior.loc.square() - 1) - posterior.scale.log()
