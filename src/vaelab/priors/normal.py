"""The standard normal prior."""

import math

import torch
from torch import Tensor

from vaelab.config import register
from vaelab.likelihoods import LOG_2PI
from vaelab.posteriors import DiagonalGaussian, FullGaussian, Laplace, PosteriorDistribution
from vaelab.priors.base import Prior

LAPLACE_ENTROPY = 1 + math.log(2) - 0.5 * (LOG_2PI + 1)
"""Entropy of a Laplace distribution of scale 1, above that of N(0, 1), in nats."""


@register("prior", "normal")
class StandardNormal(Prior):
    """N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        like = self.origin
        return torch.randn(num_samples, self.latent_dim, dtype=like.dtype, device=like.device, generator=generator)

    def kl(self, posterior: PosteriorDistribution) -> Tensor | None:
        """KL(q(z|x) ‖ N(0, I)), [B, D]: the second moments, less the entropies.

        Of the diagonal Gaussian this is ½ (σ² + μ² − 1 − log σ²), Kingma & Welling 2013, appendix B. Of a Gaussian
        with covariance L Lᵀ column j is E[KL(q(z_j|z_<j, x) ‖ N(0, 1))], so that the columns sum to the whole: given
        z_<j, z_j has variance L_jj² and a mean whose own mean square is μ_j² + Σ_{k<j} L_jk². Together these are
        Σ_jj + μ_j². A column is not the KL of z_j's marginal, which leaves out what z_j shares with z_<j.
        """
        if isinstance(posterior, DiagonalGaussian):
            entropy, stddev = posterior.scale.log(), posterior.scale
        elif isinstance(posterior, FullGaussian):
            entropy, stddev = posterior.conditional_stddev.log(), posterior.stddev
        elif isinstance(posterior, Laplace):
            entropy, stddev = posterior.scale.log() + LAPLACE_ENTROPY, posterior.stddev
        else:
            return None
        return 0.5 * (stddev.square() + posterior.loc.square() - 1) - entropy
