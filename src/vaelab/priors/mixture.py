"""Priors that are mixtures of diagonal Gaussians: with components of their own, and with those of the encoder."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vaelab.config import PositiveInt, register
from vaelab.latents import LatentSpec
from vaelab.likelihoods import LOG_2PI
from vaelab.networks import Encoder
from vaelab.posteriors import DiagonalGaussian, GaussianPosterior
from vaelab.priors.base import Prior
from vaelab.priors.normal import StandardNormal


class GaussianMixture(Prior):
    """p(z) = Σ_m w_m N(z; μ_m, diag(σ_m²)), a sum of M densities of the whole vector z."""

    def __init__(self, latents: LatentSpec | int) -> None:
        super().__init__(latents)
        self.noise = StandardNormal(latents)

    @abstractmethod
    def mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        """Log weights log w [M], and the components, [M, D]."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, [..., D] -> [...].

        Σ_d (z_d − μ_d)² / σ_d² is expanded, so that all pairs of a z and a component are one product of matrices and
        nothing of size [..., M, D] is made. The expansion cancels: in float32 it would lose |μ/σ|² · 10⁻⁷ nats. So it
        is float64, wherever there is such a thing.
        """
        log_weights, components = self.mixture()
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        loc, scale, flat = components.loc.to(wide), components.scale.to(wide), z.reshape(-1, z.shape[-1]).to(wide)
        precision = scale**-2
        constant = log_weights - (0.5 * loc.square() * precision + scale.log() + 0.5 * LOG_2PI).sum(-1)
        coefficients = torch.cat((-0.5 * precision, loc * precision), dim=-1)
        log_joint = torch.addmm(constant, torch.cat((flat.square(), flat), dim=-1), coefficients.T)
        return log_joint.to(z.dtype).logsumexp(-1).view(z.shape[:-1])

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws [num_samples, D]; gradients flow to locations and scales, not to the weights."""
        log_weights, components = self.mixture()
        chosen = torch.multinomial(log_weights.exp(), num_samples, replacement=True, generator=generator)
        noise = self.noise.sample(num_samples, generator)
        return components.loc[chosen] + components.scale[chosen] * noise


@register("prior", "mixture")
class MixturePrior(GaussianMixture):
    """A mixture of `components` Gaussians whose weights, means and standard deviations are learned.

    Starts with equal weights, means drawn from N(0, I), and standard deviations 1.
    """

    def __init__(self, latents: LatentSpec | int, *, components: PositiveInt = 100) -> None:
        super().__init__(latents)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, self.latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, self.latent_dim))

    def mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        return self.logits.log_softmax(-1), DiagonalGaussian(self.loc, self.log_scale.exp())


@register("prior", "vamp")
class VampPrior(GaussianMixture):
    """The posterior's average over learned pseudo-inputs u_m: Tomczak & Welling 2018 (arXiv:1705.07120), eq. 9.

    p(z) = 1/M Σ_m q(z|u_m), where q is a Gaussian head of the prior's own on the model's encoder. So it combines with
    any posterior of real numbers. Every evaluation encodes all M = `components` pseudo-inputs. They start at training
    examples, and move freely from there: the paper's bound, [0, 1], does not suit every kind of data.

    Args:
        latents: what z is.
        encoder: the model's. Its weights stay the model's: they are not among the prior's parameters.
    """

    def __init__(self, latents: LatentSpec | int, encoder: Encoder, *, components: PositiveInt = 500) -> None:
        super().__init__(latents)
        self._encoder = (encoder,)  # torch looks for submodules among attributes, but not in tuples; copying does
        self.pseudo_inputs = nn.Parameter(torch.rand(components, *encoder.input_shape))
        self.head = GaussianPosterior(encoder.num_features, self.latent_dim)

    @property
    def encoder(self) -> Encoder:
        """The model's encoder."""
        return self._encoder[0]

    def mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        components = self.head(self.encoder(self.pseudo_inputs))
        count = len(self.pseudo_inputs)
        return components.loc.new_full((count,), 1 / count).log(), components

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Pseudo-inputs start at x [n, *event], repeated if there are fewer."""
        rows = torch.arange(len(self.pseudo_inputs), device=x.device) % len(x)
        self.pseudo_inputs.copy_(x[rows])

    @property
    def start_examples(self) -> int:
        return len(self.pseudo_inputs)
